"""Labelled volumes to learn from: found in folders or open layers, checked, listed.

What can't be used is left out with a reason, never silently. Importing this module imports no
torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.contract import Monitor

__all__ = ["Case", "CasesFound", "Checked", "check_cases", "pair_folders", "pairs_in_file"]


@dataclass(frozen=True, eq=False)
class Case:
    """One volume with its labels, read when they are needed.

    Attributes
    ----------
    name : str
        Unique among the cases; stays on this machine.
    image : Volume or Path
        Of an open layer, or a file or folder :func:`napari_openmedlab.io.api.read` takes.
    labels : ndarray of int, shape of the image (z, y, x), or Path
        In display order; or a label file.
    names : mapping of int to str
        Class names by label value, where known; a label file's sidecar is asked too.
    """

    name: str
    image: Volume | Path
    labels: NDArray[Any] | Path
    names: Mapping[int, str] = field(default_factory=dict)

    def read(self) -> tuple[Volume, NDArray[Any], dict[int, str]]:
        """Return the scan, its labels (z, y, x) on the same grid, and names by value.

        Raises
        ------
        ReadError, GeometryError
            If a file can't be read, holds no labels, or lies on another grid than the scan.
        """
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Checked:
    """A case that can be used, and what was seen of it.

    Attributes
    ----------
    case : Case
    geometry : Geometry
    modality : str
    voxels : mapping of int to int
        Voxels by value of ``CasesFound.classes`` (the canonical value, after names were
        matched).
    mapping : mapping of int to int
        Label value in the case's own labels -> value in ``CasesFound.classes``. Other values
        count as background.
    lowest : float
        Smallest value of the image.
    """

    case: Case
    geometry: Geometry
    modality: str
    voxels: Mapping[int, int]
    mapping: Mapping[int, int]
    lowest: float


@dataclass(frozen=True, eq=False)
class CasesFound:
    """What a run may learn from.

    Attributes
    ----------
    cases : tuple of Checked
        Sorted by name.
    classes : mapping of int to str
        Name by label value, ascending; background (0) is not in it.
    left_out : tuple of (str, str)
        Name and reason of what can't be used.
    notes : tuple of str
        Sentences for the user (classes that are rare, odd voxel sizes).
    """

    cases: tuple[Checked, ...]
    classes: Mapping[int, str]
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def pair_folders(images: Path, labels: Path) -> tuple[list[Case], list[tuple[str, str]]]:
    """Pair the scans of one folder with the label files of another by their names.

    ``liver_01_0000.nii.gz`` (nnU-Net's channel number) goes with ``liver_01.nii.gz``; endings
    such as ``_seg``, ``_label``, ``_mask`` or ``_gt`` of a label file's name are not compared.

    Returns
    -------
    cases : list of Case
    left_out : list of (str, str)
        Name and reason: no partner, or two files with one case name.

    Raises
    ------
    ReadError
        If a folder is missing or holds nothing of use.
    """
    raise NotImplementedError


def pairs_in_file(path: Path) -> tuple[list[Case], dict[int, str]]:
    """Read pairs and class names from a JSON or CSV file; paths in it are relative to it.

    JSON: ``{"cases": [{"name": ..., "image": ..., "labels": ...}], "classes": {"1": "liver"}}``,
    or a list of the former. CSV: columns ``image``, ``labels`` and, if wished, ``name``.

    Raises
    ------
    ReadError
        If the file is missing or is not of this form.
    """
    raise NotImplementedError


def check_cases(
    cases: Iterable[Case],
    classes: Mapping[int, str] | None = None,
    *,
    others_as_background: bool = False,
    left_out: Sequence[tuple[str, str]] = (),
    monitor: Monitor | None = None,
) -> CasesFound:
    """Look at every case and say which can be used.

    Parameters
    ----------
    cases : iterable of Case
    classes : mapping of int to str, optional
        What to learn: name by value. Where a case names its labels, classes are matched by
        name, else by value. Without it: all classes that the cases have.
    others_as_background : bool
        Take label values outside of ``classes`` as background; otherwise the case is left out.
    left_out : sequence of (str, str)
        From :func:`pair_folders`, to be listed with the rest.
    monitor : Monitor, optional
        Hears of each case, and may cancel.

    Returns
    -------
    CasesFound

    Raises
    ------
    SettingsError
        If no case is left, no class is labelled anywhere, or a class is empty in all cases; the
        text lists what was left out.
    Cancelled
        After a cancel.
    """
    raise NotImplementedError
