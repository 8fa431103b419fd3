"""Saving labels layers by napari's File menu and ``layer.save``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari.layers import Layer

from napari_openmedlab.bridge.exporting import job_of_layer, write_job

__all__ = ["write_labels"]


def write_labels(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write a labels layer on the grid of the file its image came from (npe2 writer command).

    A labels layer of another origin is written on its own grid: its scale, translate, rotation
    and units.

    Parameters
    ----------
    path : str
        Ends in ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``.
    data : array of int
    meta : dict
        The layer's attributes, as napari passes them.

    Raises
    ------
    OpenMedLabError
        With a sentence; the old file, if any, is untouched.
    """
    job = job_of_layer(Layer.create(data, meta, "labels"))
    written = write_job(job, Path(path), tuple(job.objects))
    return [str(file) for file in written]
