"""What the Export panel can write: the objects of a session, or any labels layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Labels
from numpy.typing import NDArray

from napari_openmedlab.bridge.layers import tag_of, volume_of_layer
from napari_openmedlab.bridge.objects import SESSION_KEY
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.io.sidecar import LabelInfo
from napari_openmedlab.session.export import provenance_of
from napari_openmedlab.session.session import Session

__all__ = [
    "ExportJob",
    "job_of_layer",
    "job_of_session",
    "marked_session",
    "suggested_path",
    "write_job",
]


@dataclass(frozen=True, eq=False)
class ExportJob:
    """Labels ready to be written, with nothing left to ask a layer or a session.

    Attributes
    ----------
    labels : ndarray of int, shape of the volume
        Shared with the viewer; :func:`write_job` works on a copy.
    volume : Volume
        The image the labels belong to: its file's grid is the one written.
    objects : mapping of int to LabelInfo
    voxels : mapping of int to int
        How many voxels each value has.
    provenance : mapping
        JSON values for the sidecar.
    """

    labels: NDArray[Any]
    volume: Volume
    objects: Mapping[int, LabelInfo]
    voxels: Mapping[int, int]
    provenance: Mapping[str, Any]


def marked_session(layer: Labels) -> Session | None:
    """Return the session a labels layer shows, ``None`` for any other labels layer."""
    found = layer.metadata.get(SESSION_KEY)
    data = np.asarray(layer.data) if isinstance(found, Session) else None
    # A layer that was given another array since no longer shows the session.
    return found if data is not None and np.shares_memory(data, found.labels) else None


def job_of_session(session: Session) -> ExportJob:
    """Return a session's objects that have a mask."""
    found = [o for o in session.objects if o.voxels]
    return ExportJob(
        session.labels,
        session.volume,
        {o.id: LabelInfo(o.name, o.colour) for o in found},
        {o.id: o.voxels for o in found},
        provenance_of(session),
    )


def job_of_layer(layer: Labels) -> ExportJob:
    """Return all values of a labels layer, on the grid of its file if it has one.

    Raises
    ------
    GeometryError
        If the layer is not a single 2D or 3D label map.
    """
    volume = volume_of_layer(layer)
    labels = np.asarray(volume.array)
    values, counts = np.unique(labels, return_counts=True)
    voxels = {int(v): int(n) for v, n in zip(values, counts, strict=True) if v > 0}
    tag = tag_of(layer)
    named = dict(tag.objects) if tag is not None else {}
    objects = {v: named[v] if v in named else _plain_info(layer, v) for v in voxels}
    return ExportJob(labels, volume, objects, voxels, {})


def write_job(
    job: ExportJob, path: Path, chosen: Collection[int], *, one_file_per_object: bool = False
) -> tuple[Path, ...]:
    """Write the chosen objects; safe to call in another thread.

    Returns
    -------
    tuple of Path
        The files written, sidecars included.

    Raises
    ------
    OpenMedLabError
        If a file can't be written; old files are then untouched.
    """
    from napari_openmedlab.io.api import write

    labels = np.array(job.labels)
    kept = np.zeros(int(labels.max(initial=0)) + 1, dtype=bool)
    kept[[v for v in chosen if v < len(kept)]] = True
    if not kept[list(job.objects) if job.objects else []].all():
        labels[~kept[labels]] = 0
    made = [row for row in job.provenance.get("objects", ()) if row["value"] in chosen]
    return write(
        path,
        labels,
        job.volume,
        objects={v: info for v, info in job.objects.items() if v in chosen},
        provenance={**job.provenance, "objects": made} if made else dict(job.provenance),
        one_file_per_object=one_file_per_object,
    )


def suggested_path(volume: Volume, suffix: str) -> Path:
    """Return a file name beside the image's file, else in the user's home folder."""
    from napari_openmedlab.io.suffixes import safe_name

    path = getattr(volume.source, "path", None)
    ours = Path(__file__).resolve().parents[1]  # where the samples lie
    inside = path is None or ours in Path(path).resolve().parents
    folder = Path.home() if inside or path is None else Path(path).parent
    return folder / f"{safe_name(volume.name)}_mask{suffix}"


def _plain_info(layer: Labels, value: int) -> LabelInfo:
    """Return a value's colour on screen, and its name if the layer's features have one."""
    colour = [float(c) for c in np.ravel(layer.get_color(value))[:3]]
    table = layer.features
    rows = table[table["index"] == value] if {"index", "name"} <= set(table) else table[:0]
    name = str(rows["name"].iloc[0]) if len(rows) else f"label {value}"
    return LabelInfo(name, (colour[0], colour[1], colour[2]))
