"""From a CT to what MedLAM's network is given: 3 mm, 0 to 1, half a patch of air around."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_openmedlab.errors import EngineError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.medlam.grid import (
    ENGINE_ID,
    HALF,
    PATCH,
    SPACING_MM,
    WorkingGrid,
    resample,
)

__all__ = ["AIR", "VERSION", "Prepared", "normalised", "prepare"]

VERSION = 1
"""Of the pre-processing; part of every signature of kept features."""

AIR = 0.001
"""A normalised voxel below this is air."""

_AIR_HU = -1000.0
_OBLIQUE = 15.0  # degrees that the training data were turned by
_CT_BELOW = -10.0  # as upstream: a CT has voxels below this
_KNOTS = (-1000.0, -200.0, 200.0, 1500.0)
_LEVELS = (0.0, 0.2, 0.8, 1.0)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan as the network sees it.

    Attributes
    ----------
    grid : WorkingGrid
    padded : ndarray of float32, shape ``grid.padded_shape``
        In 0..1; half a patch of air (0) on every side.
    digest : str
        Of the scan's voxels in working order and its spacing: the same for the same scan, in
        whatever orientation it is stored.
    notes : tuple of str
        Sentences for the user.
    """

    grid: WorkingGrid
    padded: NDArray[np.float32]
    digest: str
    notes: tuple[str, ...] = ()

    def patches(self, centres: ArrayLike) -> NDArray[np.float32]:
        """Return the patches (N, 1, 64, 64, 64) around padded voxels (N, 3); air beyond."""
        centres = np.atleast_2d(np.asarray(centres, dtype=np.int64))
        out = np.zeros((len(centres), 1, PATCH, PATCH, PATCH), dtype=np.float32)
        limits = self.padded.shape
        for patch, centre in zip(out[:, 0], centres, strict=True):
            low = [max(0, int(c) - HALF) for c in centre]
            high = [min(n, int(c) + HALF) for c, n in zip(centre, limits, strict=True)]
            if all(a < b for a, b in zip(low, high, strict=True)):
                begin = [a - int(c) + HALF for a, c in zip(low, centre, strict=True)]
                to = tuple(slice(p, p + b - a) for p, a, b in zip(begin, low, high, strict=True))
                patch[to] = self.padded[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        return out


def prepare(volume: Volume, monitor: Monitor) -> Prepared:
    """Bring a CT to MedLAM's grid and intensities.

    Parameters
    ----------
    volume : Volume
        CT in Hounsfield units with a voxel size, any orientation. NaN counts as air.
    monitor : Monitor

    Raises
    ------
    EngineError
        If it is no CT, has no voxel size, is empty or thinner than 24 mm.
    """
    grid = WorkingGrid(volume.geometry)
    shape = grid.shape
    if volume.modality and volume.modality.upper() != "CT":
        raise EngineError(
            f"'{volume.name}' is {volume.modality}; MedLAM was made for CT only",
            engine=ENGINE_ID,
            stage="prepare",
        )
    monitor.step(0, 0, "reading the scan")
    array = _finite(grid.order.apply(np.asarray(volume.array)))
    digest = _digest(array, grid)
    monitor.step(0, 0, "resampling to 3 mm")
    values = resample(array, shape)
    notes = _notes(volume, values, grid)
    monitor.step(0, 0, "normalising")
    padded = np.zeros(grid.padded_shape, dtype=np.float32)
    inner = padded[HALF:-HALF, HALF:-HALF, HALF:-HALF]
    for target, plane in zip(inner, values, strict=True):
        target[...] = normalised(plane)
    if not any(float(plane.max()) >= AIR for plane in inner):
        raise EngineError(
            f"'{volume.name}' is empty: there is nothing but air in it",
            engine=ENGINE_ID,
            stage="prepare",
        )
    return Prepared(grid, padded, digest, notes)


def normalised(values: ArrayLike) -> NDArray[np.float32]:
    """Return Hounsfield units as 0..1: linear between -1000, -200, 200 and 1500 HU."""
    given = np.asarray(values, dtype=np.float64)
    found: NDArray[np.float32] = np.interp(given, _KNOTS, _LEVELS).astype(np.float32)
    return found


def _finite(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in array):
        array = np.nan_to_num(array, nan=_AIR_HU, posinf=_AIR_HU, neginf=_AIR_HU)
    return array


def _digest(array: NDArray[Any], grid: WorkingGrid) -> str:
    digest = hashlib.blake2b(digest_size=16)
    spacing = ",".join(f"{each:.4f}" for each in grid.spacing_mm)
    digest.update(f"{VERSION}|{array.dtype.str}|{array.shape}|{spacing}".encode())
    for plane in array:
        digest.update(np.ascontiguousarray(plane).data)
    return digest.hexdigest()


def _notes(volume: Volume, values: NDArray[np.float32], grid: WorkingGrid) -> tuple[str, ...]:
    notes = []
    lowest = min(float(plane.min()) for plane in values)
    highest = max(float(plane.max()) for plane in values)
    if lowest == highest:
        raise EngineError(
            f"'{volume.name}' is empty: every voxel is {lowest:g}",
            engine=ENGINE_ID,
            stage="prepare",
        )
    if lowest >= _CT_BELOW:
        if not volume.modality:
            raise EngineError(
                f"'{volume.name}' does not look like a CT in Hounsfield units (no voxel lies below "
                f"{_CT_BELOW:g}); MedLAM was made for CT only",
                engine=ENGINE_ID,
                stage="prepare",
            )
        notes.append(
            "No voxel of this CT lies below -10 HU: if its values are not Hounsfield units, "
            "positions are wrong."
        )
    if volume.geometry.frame != "patient":
        notes.append(
            "The file says nothing of the patient's orientation; it was taken as head first, back "
            "down, patient's left on the right of the picture. If that is wrong, so are positions."
        )
    if min(grid.shape) < PATCH:
        extent = " x ".join(f"{n * SPACING_MM:.0f}" for n in grid.shape)
        notes.append(
            f"The scan spans {extent} mm (feet to head, back to front, right to left), less than "
            f"the {PATCH * SPACING_MM:.0f} mm MedLAM looks at around a point: positions are less "
            "certain."
        )
    if volume.geometry.frame == "patient" and volume.geometry.obliquity > _OBLIQUE:
        notes.append(
            f"The scan is turned by {volume.geometry.obliquity:.0f} degrees against the patient's "
            "axes; MedLAM was trained on turns up to 15 degrees."
        )
    return tuple(notes)
