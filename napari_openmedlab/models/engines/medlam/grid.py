"""MedLAM's 3 mm grid over a scan, axes to Superior, Anterior and Left, and the way back.

Upstream's grid is corner-aligned: the first and last voxel centres are those of the scan. Voxels
are therefore not 3 mm to the last digit, which upstream forgets on the way back (up to half a
working voxel); here every position goes through one affine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_openmedlab.errors import EngineError
from napari_openmedlab.geometry.frames import Reorientation, display_reorientation
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.models.tiling.resampling import along

__all__ = ["ENGINE_ID", "HALF", "LEAST", "PATCH", "SPACING_MM", "WorkingGrid", "resample"]

ENGINE_ID = "medlam"
SPACING_MM = 3.0
PATCH = 64  # working voxels along each edge of what the network sees: 192 mm
HALF = PATCH // 2
LEAST = 8  # working voxels: the 24 mm around a point that are compared must fit in
_MOST = 1024  # working voxels along an axis: three metres, longer than a patient


@dataclass(frozen=True)
class WorkingGrid:
    """The grid on which MedLAM sees a scan; axes (z, y, x) grow to Superior, Anterior, Left.

    Attributes
    ----------
    source : Geometry
        The scan's grid. Without patient axes it is taken to be in display order (I, P, L).

    Raises
    ------
    EngineError
        On use, if the voxel size is not known or can't be a patient's, or the scan is thinner
        than 24 mm.
    """

    source: Geometry

    @cached_property
    def order(self) -> Reorientation:
        """From the scan's axes to Superior, Anterior, Left: permutation and flips, lossless."""
        if self.source.frame != "patient":
            return Reorientation((0, 1, 2), (True, True, False))
        display = display_reorientation(self.source.affine)
        head, back, left = display.flips
        return Reorientation(display.order, (not head, not back, left))

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Of the scan, in working order."""
        if self.source.unit == "pixel":
            raise EngineError(
                "this image has no voxel size in mm, which MedLAM needs; set the scale of its "
                "layer",
                engine=ENGINE_ID,
                stage="prepare",
            )
        factor = 1e-3 if self.source.unit == "um" else 1.0
        z, y, x = (factor * self.source.spacing[axis] for axis in self.order.order)
        return z, y, x

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Working voxels along each axis: ``n * spacing / 3``, rounded half to even."""
        counts = np.array(self.order.apply_shape(self.source.shape))
        z, y, x = (int(n) for n in np.rint(counts * (np.array(self.spacing_mm) / SPACING_MM)))
        extent = " x ".join(f"{n * SPACING_MM:.3g}" for n in (z, y, x))
        if min(z, y, x) < LEAST:
            raise EngineError(
                f"the scan spans only {extent} mm (feet to head, back to front, right to left); "
                f"MedLAM compares cubes of {LEAST * SPACING_MM:.0f} mm and needs at least that",
                engine=ENGINE_ID,
                stage="prepare",
            )
        if max(z, y, x) > _MOST:
            raise EngineError(
                f"the scan would span {extent} mm, more than a patient does: its voxel size is "
                "wrong. Correct the scale of its layer",
                engine=ENGINE_ID,
                stage="prepare",
            )
        return z, y, x

    @cached_property
    def padded_shape(self) -> tuple[int, int, int]:
        """With half a patch of air on every side."""
        z, y, x = (n + PATCH for n in self.shape)
        return z, y, x

    @cached_property
    def steps(self) -> NDArray[np.float64]:
        """Source voxels from one working voxel to the next, in working order."""
        counts = np.array(self.order.apply_shape(self.source.shape), dtype=np.float64)
        found: NDArray[np.float64] = (counts - 1) / (np.array(self.shape) - 1)
        return found

    @cached_property
    def to_source(self) -> NDArray[np.float64]:
        """4 x 4: working index (not padded) to index in the scan's own array."""
        scaled = np.diag([*self.steps, 1.0])
        found: NDArray[np.float64] = self.order.index_map(self.source.shape) @ scaled
        return found

    def indices(self, working: ArrayLike) -> NDArray[np.float64]:
        """Return indices (..., 3) in the scan's array for working ones (..., 3), not padded."""
        points = np.asarray(working, dtype=np.float64)
        found: NDArray[np.float64] = points @ self.to_source[:3, :3].T + self.to_source[:3, 3]
        return found

    def world(self, working: ArrayLike) -> NDArray[np.float64]:
        """Return world points (..., 3) as (x, y, z) for working indices (..., 3), not padded."""
        return self.source.to_world(self.indices(working))

    def working(self, world: ArrayLike) -> NDArray[np.float64]:
        """Return fractional working indices (..., 3), not padded, for world points (..., 3)."""
        index = self.source.to_index(world) - self.to_source[:3, 3]
        found: NDArray[np.float64] = index @ np.linalg.inv(self.to_source[:3, :3]).T
        return found


def resample(array: NDArray[Any], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Resample with cubic splines between grids that share their corner voxels.

    Parameters
    ----------
    array : ndarray, shape (z, y, x)
        Finite, any real type.
    shape : tuple of int

    Returns
    -------
    ndarray of float32
        The numbers of ``scipy.ndimage.zoom(order=3)``, but without its float64 copies: a spline
        along one axis is linear, so it is a small matrix. The axis that shrinks most goes first.
    """
    found: NDArray[Any] = array
    for axis in sorted(range(3), key=lambda axis: shape[axis] / array.shape[axis]):
        if found.shape[axis] != shape[axis]:
            found = along(found, _matrix(found.shape[axis], shape[axis]), axis)
    return found.astype(np.float32, copy=False)


def _matrix(source: int, target: int) -> NDArray[np.float64]:
    """Return the matrix (target, source) of a corner-aligned cubic spline along one axis."""
    from scipy import ndimage

    if source == 1:
        return np.ones((target, 1))
    knots = ndimage.spline_filter1d(np.eye(source), order=3, axis=0, mode="mirror")
    place = np.linspace(0.0, source - 1.0, target)
    first = np.minimum(np.floor(place).astype(np.intp), source - 2)
    t = (place - first)[:, None]
    weights = (
        (1 - t) ** 3 / 6,
        (4 - 6 * t**2 + 3 * t**3) / 6,
        (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6,
        t**3 / 6,
    )
    last = source - 1
    taps = (last - np.abs(last - np.abs(first - 1 + n)) for n in range(4))  # mirrored
    matrix: NDArray[np.float64] = np.sum(
        [weight * knots[tap] for weight, tap in zip(weights, taps, strict=True)], axis=0
    )
    return matrix
