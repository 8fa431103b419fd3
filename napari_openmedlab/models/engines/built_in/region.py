"""The part of a scan the engine looks at, and the coarser grid it first solves on.

All indices are array order (z, y, x). A *working* voxel is the mean of a block of ``factor``
native voxels, so a native index maps to its working voxel by an integer division.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_openmedlab.geometry.boxes import Box

__all__ = ["Region", "cut_region", "finite_values"]

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Region:
    """A crop of the scan together with its working grid.

    Attributes
    ----------
    box : Box
        The crop in native voxels of the whole volume.
    native : ndarray of float32, shape ``box.shape``
        Finite intensities of the crop.
    image : ndarray of float32
        Intensities on the working grid.
    factor : tuple of int
        Native voxels per working voxel along each axis.
    spacing : ndarray of float64, shape (3,)
        Size of a working voxel (z, y, x) in the unit of the volume.
    """

    box: Box
    native: Floats
    image: Floats
    factor: tuple[int, int, int]
    spacing: NDArray[np.float64]

    @property
    def is_coarse(self) -> bool:
        """Whether the working grid is coarser than the scan."""
        return max(self.factor) > 1

    def to_working(self, points: ArrayLike) -> NDArray[np.intp]:
        """Return the working voxels that hold native voxels of the volume, shape (N, 3)."""
        local = np.asarray(points, dtype=float).reshape(-1, 3) - np.array(self.box.start)
        voxel = np.floor((np.rint(local)) / np.array(self.factor)).astype(np.intp)
        return np.asarray(np.clip(voxel, 0, np.array(self.image.shape) - 1), dtype=np.intp)

    def box_to_working(self, box: Box) -> Box:
        """Return the working voxels touched by a native box, clipped to the region."""
        if box.is_empty:
            return Box((0, 0, 0), (0, 0, 0))
        low, high = self.to_working(np.array([box.start, np.array(box.stop) - 1]))
        return Box(tuple(low), tuple(high + 1))

    def shrink(self, mask: NDArray[Any]) -> Floats:
        """Return the share of each working voxel covered by a native mask of the region."""
        return block_mean(mask.astype(np.float32), self.factor)

    def enlarge(self, values: Floats) -> Floats:
        """Return working values on the native grid, linear between working voxel centres."""
        for axis, factor in enumerate(self.factor):
            values = _stretch(values, axis, factor, self.native.shape[axis])
        return values

    def repeat(self, mask: Bools) -> Bools:
        """Return a working mask on the native grid, every block filled with its value."""
        for axis, factor in enumerate(self.factor):
            if factor > 1:
                mask = mask.repeat(factor, axis=axis)
        return mask[tuple(slice(0, n) for n in self.native.shape)]


def cut_region(array: Any, spacing: Sequence[float], box: Box, max_voxels: int) -> Region:
    """Cut a box out of a scan and coarsen its finest axes until it is small enough.

    Parameters
    ----------
    array : array-like, shape (z, y, x)
        The scan, of any real dtype; only ``box`` is read.
    spacing : sequence of float
        Voxel size (z, y, x).
    box : Box
        Non-empty, inside the array.
    max_voxels : int
        Largest number of working voxels.
    """
    native = finite_values(np.asarray(array[box.slices]))
    size = np.asarray(spacing, dtype=float)
    factor = np.ones(3, dtype=int)
    shape = np.array(native.shape)
    while np.prod(-(-shape // factor)) > max_voxels:
        can = factor < shape
        factor[np.argmin(np.where(can, size * factor, np.inf))] += 1
    steps = (int(factor[0]), int(factor[1]), int(factor[2]))
    return Region(box, native, block_mean(native, steps), steps, size * factor)


def finite_values(values: NDArray[Any]) -> Floats:
    """Return float32 intensities; NaN and infinities become the smallest finite value."""
    out = values.astype(np.float32)
    bad = ~np.isfinite(out)
    if bad.any():
        out[bad] = out[~bad].min() if not bad.all() else 0.0
    return out


def block_mean(values: Floats, factor: Sequence[int]) -> Floats:
    """Return the mean of each block; a last, incomplete block is the mean of what it holds."""
    for axis, step in enumerate(factor):
        if step == 1:
            continue
        length = values.shape[axis]
        lead = (slice(None),) * axis
        whole = length // step
        total = np.zeros_like(values[(*lead, slice(0, length, step))])
        for k in range(step):
            part = values[(*lead, slice(k, length, step))]
            total[(*lead, slice(0, part.shape[axis]))] += part
        total[(*lead, slice(0, whole))] /= step
        if whole * step < length:
            total[(*lead, slice(whole, None))] /= length - whole * step
        values = total
    return values


def _stretch(values: Floats, axis: int, factor: int, length: int) -> Floats:
    """Linear interpolation along one axis to the centres of the native voxels."""
    if factor == 1:
        return values
    position = np.clip((np.arange(length) + 0.5) / factor - 0.5, 0, values.shape[axis] - 1)
    low = np.minimum(position.astype(np.intp), max(values.shape[axis] - 2, 0))
    weight = (position - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    lower = values.take(low, axis=axis)
    upper = values.take(np.minimum(low + 1, values.shape[axis] - 1), axis=axis)
    upper -= lower
    upper *= weight
    upper += lower
    return np.asarray(upper, dtype=np.float32)
