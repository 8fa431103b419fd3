"""Scans without labels to pre-train on: found in folders, checked, listed with reasons.

Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import Cancelled, OpenMedLabError, SettingsError
from napari_openmedlab.geometry.boxes import box_of_mask
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.io.suffixes import stem_of, suffix_of
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.training.cases import Case, CasesFound, Checked
from napari_openmedlab.training.volume_fusion import CLASSES

__all__ = ["LEVELS", "Unlabelled", "check_scans", "find_scans"]

LEVELS = {value: f"mixing level {value}" for value in range(1, CLASSES)}

_SUFFIXES = (
    ".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".tif", ".tiff", ".ome.tif", ".ome.tiff",
    ".zarr", ".ome.zarr",
)  # fmt: skip
_BODY = -500.0  # Hounsfield units; what lies above all around is the patient (and the table)
_THINNEST = 4  # slices


@dataclass(frozen=True, eq=False)
class Unlabelled(Case):
    """A scan of which only the image is used."""

    labels: NDArray[Any] | Path = Path()

    def read(self) -> tuple[Volume, NDArray[Any], dict[int, str]]:
        """Return the scan, cut to the body if it is a CT; no labels, no names."""
        from napari_openmedlab.io.api import read

        scan = read(self.image) if isinstance(self.image, Path) else self.image
        scan = _body(scan)
        return scan, np.broadcast_to(np.uint8(0), scan.geometry.shape), {}


def find_scans(places: Iterable[Path]) -> list[Case]:
    """Return what may be scans: files given, and the files and DICOM folders in folders given.

    Raises
    ------
    SettingsError
        If a place does not exist, or there is nothing in any.
    """
    found: dict[Path, Path] = {}
    for place in places:
        if not place.exists():
            raise SettingsError(f"{place} does not exist; give a folder of scans")
        for path in _inside(place):
            found.setdefault(path.resolve(), path)
    if not found:
        raise SettingsError(
            "there is no scan in the folders given; put NIfTI, NRRD, MetaImage or TIFF files, or "
            "folders of DICOM series there"
        )
    return [
        Unlabelled(name, path) for name, path in zip(_names(found), found.values(), strict=True)
    ]


def check_scans(cases: Sequence[Case], monitor: Monitor | None = None) -> CasesFound:
    """Look at every scan and say which can be used.

    Parameters
    ----------
    cases : sequence of Case
        From :func:`find_scans`, or open images as :class:`Unlabelled`.
    monitor : Monitor, optional
        Hears of each scan, and may cancel.

    Returns
    -------
    CasesFound
        Its classes are the mixing levels.

    Raises
    ------
    SettingsError
        If none can be used; the text lists why.
    Cancelled
        After a cancel.
    """
    monitor = monitor or Monitor()
    usable: list[Checked] = []
    left_out: list[tuple[str, str]] = []
    for number, case in enumerate(cases):
        monitor.step(number, len(cases), f"looking at {case.name}")
        try:
            usable.append(_checked(case))
        except Cancelled:
            raise
        except OpenMedLabError as error:
            left_out.append((case.name, str(error)))
    if not usable:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out[:5])
        raise SettingsError(f"no scan can be used. {reasons}")
    return CasesFound(tuple(usable), LEVELS, tuple(left_out))


def _checked(case: Case) -> Checked:
    volume, _, _ = case.read()
    shape = volume.geometry.shape
    if min(shape) < _THINNEST:
        size = " x ".join(map(str, shape))
        raise SettingsError(f"it has {size} voxels; volumes of at least {_THINNEST} are needed")
    low, high = np.inf, -np.inf
    for plane in volume.array:
        values = np.asarray(plane)
        values = values[np.isfinite(values)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if not low < high:
        raise SettingsError("every voxel has the same value")
    counts = dict.fromkeys(LEVELS, 1)
    return Checked(case, volume.geometry, volume.modality, counts, {}, low)


def _body(scan: Volume) -> Volume:
    """Return a CT cut to what is not air, as published; another scan as it is."""
    if scan.modality not in ("", "CT"):
        return scan
    array = np.asarray(scan.array)
    if not scan.modality and not float(np.nanmin(array)) < _BODY:
        return scan
    box = box_of_mask(array > _BODY)
    if box.is_empty or box.shape == scan.geometry.shape:
        return scan
    return Volume(array[box.slices], scan.geometry.crop(box), name=scan.name, modality="CT")


def _inside(place: Path) -> list[Path]:
    if place.is_file() or suffix_of(place) in _SUFFIXES:
        return [place]
    visible = [p for p in sorted(place.iterdir()) if not p.name.startswith(".")]
    series = [p for p in visible if p.is_dir() and any(p.iterdir())]
    files = [p for p in visible if suffix_of(p) in _SUFFIXES]
    found = sorted({*series, *files})
    # A folder of nothing but other files is a DICOM series itself.
    return found or ([place] if visible else [])


def _names(paths: Iterable[Path]) -> list[str]:
    names: list[str] = []
    for path in paths:
        name = stem_of(path) if suffix_of(path) in _SUFFIXES else path.name
        same = sum(each == name or each.startswith(f"{name} (") for each in names)
        names.append(f"{name} ({same + 1})" if same else name)
    return names
