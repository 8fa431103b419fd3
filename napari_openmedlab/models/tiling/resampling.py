"""Between the scan's grid and a network's: cubic there, linear or nearest back, axis by axis.

The numbers are those of ``skimage.transform.resize`` (order 3, 1 and 0; ``mode="edge"``, no
anti-aliasing), which nnU-Net uses, without its float64 copies of the volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AxisMap",
    "along",
    "cubic",
    "cubic_matrix",
    "new_shape",
    "resize_labels",
    "separate_axis",
]

Index3 = tuple[int, int, int]

_PAD = 12  # voxels that SciPy repeats at the edge before it fits a spline
_BLOCK = 32 * 2**20  # bytes of float32 worked on at a time
_ANISOTROPIC = 3.0


@dataclass(frozen=True, eq=False)
class AxisMap:
    """Where the voxels of a target lie between those of a source, along one axis.

    Attributes
    ----------
    first, second : ndarray of int
        The two source voxels between which each target voxel lies; ascending, and equal where
        it takes one voxel's value.
    weight : ndarray of float64
        What the second one counts, in [0, 1); the first one counts the rest.
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    weight: NDArray[np.float64]

    @classmethod
    def linear(cls, source: int, target: int) -> AxisMap:
        """Return the map of linear interpolation from ``source`` to ``target`` voxels.

        Both grids have the same outer faces; beyond the outermost centres the edge value holds.
        """
        place = np.clip(_places(source, target), 0, source - 1)
        first = np.floor(place).astype(np.intp)
        second = np.minimum(first + 1, source - 1)
        weight = place - first
        return cls(first, np.where(weight > 0, second, first), weight)

    @classmethod
    def nearest(cls, source: int, target: int) -> AxisMap:
        """Return the map that takes the nearest voxel; of two equally near, the later one."""
        place = np.floor(_places(source, target) + 0.5)
        first = np.clip(place, 0, source - 1).astype(np.intp)
        return cls(first, first, np.zeros(target))

    def __len__(self) -> int:
        return len(self.first)

    def part(self, low: int, high: int, begin: int = 0) -> AxisMap:
        """Return the map of target voxels ``low`` to ``high`` in a source cut at ``begin``."""
        cut = slice(low, high)
        return AxisMap(self.first[cut] - begin, self.second[cut] - begin, self.weight[cut])


def new_shape(shape: Index3, spacing: tuple[float, ...], target: tuple[float, ...]) -> Index3:
    """Return the voxels of a grid at another spacing: rounded, half to even, at least 1."""
    old = np.array(shape, dtype=np.float64)
    found = np.round(np.array(spacing) / np.array(target) * old).astype(int)
    z, y, x = (max(1, int(n)) for n in found)
    return z, y, x


def separate_axis(spacing: tuple[float, ...], target: tuple[float, ...]) -> int | None:
    """Return the axis that nnU-Net resamples apart from the other two (thick slices), or None.

    It is the one with the largest spacing if that is more than three times the smallest - of the
    scan, else of the network's grid - and no other axis shares it.
    """
    for each in (spacing, target):
        if max(each) / min(each) > _ANISOTROPIC:
            widest = np.flatnonzero(np.array(each) == max(each))
            return int(widest[0]) if len(widest) == 1 else None
    return None


def cubic(array: NDArray[Any], shape: Index3, separate: int | None = None) -> NDArray[np.float32]:
    """Resample a volume with cubic splines, clipped to the values that were there.

    Parameters
    ----------
    array : ndarray, shape (z, y, x)
        Any real type. NaN counts as 0.
    shape : tuple of int
        Of the result; both grids have the same outer faces.
    separate : int, optional
        Along this axis the nearest slice is taken, and each slice is resampled by itself.

    Returns
    -------
    ndarray of float32

    Notes
    -----
    A spline along one axis is linear in its input: a small matrix, made once and multiplied
    with blocks of the volume. The axis that shrinks most goes first.
    """
    array = _finite(array)
    if tuple(shape) == array.shape:
        return array.astype(np.float32)
    limits = _limits(array, separate)
    order = sorted(range(3), key=lambda axis: shape[axis] / array.shape[axis])
    found: NDArray[Any] = array
    for axis in order:
        if axis != separate and shape[axis] != found.shape[axis]:
            found = along(found, cubic_matrix(found.shape[axis], shape[axis]), axis)
    found = found if found.dtype == np.float32 and found is not array else found.astype(np.float32)
    np.clip(found, *limits, out=found)
    if separate is not None:
        found = found.take(AxisMap.nearest(found.shape[separate], shape[separate]).first, separate)
    return found


def cubic_matrix(source: int, target: int) -> NDArray[np.float64]:
    """Return the matrix (target, source) of cubic spline interpolation along one axis."""
    from scipy import ndimage

    padded = np.pad(np.eye(source), ((_PAD, _PAD), (0, 0)), mode="edge")
    knots = ndimage.spline_filter1d(padded, order=3, axis=0, mode="mirror")
    place = _places(source, target) + _PAD
    first = np.floor(place).astype(np.intp) - 1
    t = place - np.floor(place)
    weights = (
        (1 - t) ** 3 / 6,
        (4 - 6 * t**2 + 3 * t**3) / 6,
        (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6,
        t**3 / 6,
    )
    last = len(knots) - 1
    taps = (
        weight[:, None] * knots[np.clip(first + n, 0, last)] for n, weight in enumerate(weights)
    )
    matrix: NDArray[np.float64] = np.sum(list(taps), axis=0)
    return matrix


def resize_labels(
    labels: NDArray[Any], maps: tuple[AxisMap, AxisMap, AxisMap], *, linear: bool
) -> NDArray[Any]:
    """Bring a label map to another grid.

    Parameters
    ----------
    labels : ndarray of unsigned int, shape (z, y, x)
    maps : tuple of three AxisMap
        Target voxels in ``labels``.
    linear : bool
        A voxel gets the largest label of which at least half is there when each is interpolated
        by itself (nnU-Net's "fast" export), 0 if none is. False: that of the nearest voxel, for
        maps from :meth:`AxisMap.nearest`.

    Returns
    -------
    ndarray of the type of ``labels``
    """
    z, y, x = maps
    if not linear:
        return labels[np.ix_(z.first, y.first, x.first)]
    out = np.empty((len(z), len(y), len(x)), dtype=labels.dtype)
    for row in range(len(z)):
        pair = labels[z.first[row]], labels[z.second[row]]
        out[row] = _linear_row(pair, float(z.weight[row]), (y, x))
    return out


def _linear_row(
    pair: tuple[NDArray[Any], NDArray[Any]], weight: float, maps: tuple[AxisMap, AxisMap]
) -> NDArray[Any]:
    y, x = maps
    corners, parts = [], []
    for plane, z_part in zip(pair, (1 - weight, weight), strict=True):
        for lines, y_part in ((y.first, 1 - y.weight), (y.second, y.weight)):
            for columns, x_part in ((x.first, 1 - x.weight), (x.second, x.weight)):
                corners.append(plane[np.ix_(lines, columns)])
                parts.append((z_part * y_part, x_part))
    row = corners[0].copy()
    mixed = np.nonzero(np.any([corner != row for corner in corners[1:]], axis=0))
    around = np.array([corner[mixed] for corner in corners])
    share = np.array([a[mixed[0]] * b[mixed[1]] for a, b in parts])
    found = np.zeros(len(mixed[0]), dtype=row.dtype)
    for label in around:
        half = np.where(around == label, share, 0.0).sum(axis=0) >= 0.5
        np.maximum(found, label, out=found, where=half)
    row[mixed] = found
    return row


def _places(source: int, target: int) -> NDArray[np.float64]:
    """Return where the centres of target voxels lie, in source voxels."""
    return (np.arange(target, dtype=np.float64) + 0.5) * (source / target) - 0.5


def _finite(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in array):
        return np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return array


def _limits(array: NDArray[Any], separate: int | None) -> tuple[Any, Any]:
    """Return the least and largest value of the volume, or of each slice that stands alone."""
    if separate is None:
        return np.float32(array.min()), np.float32(array.max())
    others = tuple(axis for axis in range(3) if axis != separate)
    low, high = array.min(axis=others, keepdims=True), array.max(axis=others, keepdims=True)
    return low.astype(np.float32), high.astype(np.float32)


def along(array: NDArray[Any], matrix: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """Multiply a matrix (target, source) with every line along one axis, block by block.

    The result is float32 of shape ``array.shape`` with ``target`` voxels along ``axis``.
    """
    shape = list(array.shape)
    shape[axis] = len(matrix)
    out = np.empty(shape, dtype=np.float32)
    small = matrix.astype(np.float32)
    across = 1 if axis == 0 else 0
    for block in _blocks(array.shape, across):
        cut = [slice(None)] * 3
        cut[across] = block
        values = np.ascontiguousarray(array[tuple(cut)], dtype=np.float32)
        out[tuple(cut)] = np.moveaxis(np.tensordot(small, values, axes=(1, axis)), 0, axis)
    return out


def _blocks(shape: tuple[int, ...], axis: int) -> Iterator[slice]:
    size = 4 * int(np.prod(shape)) // shape[axis]
    rows = max(1, _BLOCK // max(size, 1))
    for first in range(0, shape[axis], rows):
        yield slice(first, min(first + rows, shape[axis]))
