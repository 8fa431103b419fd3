"""Linear interpolation between grids in slabs, so that memory follows from what comes out.

Every axis has taps: for each output position the two input positions around it and the weight
of the upper one. Source and result are in the scan's axes (z, y, x); planes across axis 0 lie
together in memory and on disk, so work goes along them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Volume

__all__ = ["Taps", "expand", "shrink"]

_SLAB_BYTES = 8 * 2**20  # of floats at a time; about the size of a processor's cache
_LAZY_DEPTH = 32  # planes at a time of an array that doesn't say how it is stored
_THIN = 0.75  # where fewer planes than this share are used, the others are left out first


@dataclass(frozen=True, eq=False)
class Taps:
    """Where the positions along one output axis lie between those of the input.

    Attributes
    ----------
    lower, upper : ndarray of int, shape (n,)
        Input positions around each output position.
    weight : ndarray of float32, shape (n,)
        Of the upper one.
    """

    lower: NDArray[np.intp]
    upper: NDArray[np.intp]
    weight: NDArray[np.float32]

    @classmethod
    def at(cls, positions: NDArray[np.floating[Any]], n: int) -> Taps:
        """Return the taps of fractional positions, clamped to ``0 .. n - 1``."""
        clamped = np.clip(positions, 0, n - 1)
        lower = np.minimum(np.floor(clamped).astype(np.intp), max(0, n - 2))
        upper = np.minimum(lower + 1, n - 1)
        return cls(lower, upper, (clamped - lower).astype(np.float32))

    def __len__(self) -> int:
        return len(self.lower)

    def __getitem__(self, part: slice) -> Taps:
        return Taps(self.lower[part], self.upper[part], self.weight[part])

    def used(self) -> tuple[NDArray[np.intp], Taps]:
        """Return the input positions to read, ascending, and the taps counted among them.

        All between the first and the last, unless many of them would be read in vain.
        """
        used = np.unique(np.concatenate([self.lower, self.upper]))
        if used.size >= _THIN * (used[-1] + 1 - used[0]):
            used = np.arange(used[0], used[-1] + 1)
        return used, Taps(
            np.searchsorted(used, self.lower), np.searchsorted(used, self.upper), self.weight
        )


def shrink(
    volume: Volume, taps: Sequence[Taps], limits: tuple[float, float] | None = None
) -> NDArray[np.float32]:
    """Return the voxels of a volume interpolated at the taps of its axes.

    Parameters
    ----------
    volume : Volume
        May be lazy: read in slabs as thick as its chunks.
    taps : sequence of Taps, for (z, y, x)
    limits : (low, high), optional
        Clip the voxels to these before interpolation.

    Returns
    -------
    ndarray of float32, shape (len(z), len(y), len(x))
    """
    (planes, over), (rows, across), (columns, along) = (each.used() for each in taps)
    thinned = np.empty((len(planes), len(across), len(along)), dtype=np.float32)
    low, high = (planes[0], rows[0], columns[0]), (planes[-1], rows[-1], columns[-1])
    area = (high[1] - low[1] + 1) * (high[2] - low[2] + 1)
    depth = _depth(volume.array, int(area))
    for begin, end in _slabs(int(low[0]), int(high[0]) + 1, depth):
        first, last = np.searchsorted(planes, (begin, end))
        if first == last:
            continue
        box = Box((begin, int(low[1]), int(low[2])), (end, int(high[1]) + 1, int(high[2]) + 1))
        block = volume.crop(box)
        for axis, kept in enumerate((planes[first:last] - begin, rows - low[1], columns - low[2])):
            if len(kept) < block.shape[axis]:
                block = block.take(kept, axis=axis)
        with np.errstate(over="ignore", invalid="ignore"):  # infinite voxels are the caller's
            block = np.asarray(block, dtype=np.float32)
            if limits is not None:
                block = np.clip(block, *limits)
            thinned[first:last] = _linear(_linear(block, 1, across), 2, along)
    with np.errstate(invalid="ignore"):
        return _linear(thinned, 0, over)


def expand(
    block: NDArray[np.float32], taps: Sequence[Taps], *, nearest: bool = False
) -> NDArray[np.bool_]:
    """Return where ``block``, interpolated at the taps of its axes, is positive.

    Parameters
    ----------
    block : ndarray of float32, shape (z, y, x)
    taps : sequence of Taps, for (z, y, x)
    nearest : bool
        Take the sign of the nearest input position instead of interpolating.
    """
    cut = tuple(slice(int(t.lower.min()), int(t.upper.max()) + 1) for t in taps)
    block = np.ascontiguousarray(block[cut])
    over, across, along = (
        Taps(t.lower - c.start, t.upper - c.start, t.weight) for t, c in zip(taps, cut, strict=True)
    )
    step: Callable[..., NDArray[np.float32]] = _nearest if nearest else _linear
    mask = np.empty((len(over), len(across), len(along)), dtype=np.bool_)
    depth = max(1, _SLAB_BYTES // (4 * max(1, len(across) * len(along))))
    for begin in range(0, len(over), depth):
        part = slice(begin, begin + depth)
        slab = step(step(step(block, 0, over[part]), 1, across), 2, along)
        np.greater(slab, 0.0, out=mask[part])
    return mask


def _linear(block: NDArray[np.float32], axis: int, taps: Taps) -> NDArray[np.float32]:
    shape = [1, 1, 1]
    shape[axis] = -1
    upper = block.take(taps.upper, axis=axis)
    lower = block.take(taps.lower, axis=axis)
    upper -= lower
    upper *= taps.weight.reshape(shape)
    upper += lower
    return upper


def _nearest(block: NDArray[np.float32], axis: int, taps: Taps) -> NDArray[np.float32]:
    return block.take(np.where(taps.weight >= 0.5, taps.upper, taps.lower), axis=axis)


def _slabs(begin: int, end: int, depth: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of planes that end at multiples of ``depth``, as chunks do."""
    while begin < end:
        until = min(end, (begin // depth + 1) * depth)
        yield begin, until
        begin = until


def _depth(array: Any, area: int) -> int:
    """Return how many planes to read at a time."""
    chunks = getattr(array, "chunks", None)
    if chunks:  # dask: sizes of all chunks by axis; zarr: one size by axis
        return max(1, int(np.max(chunks[0])))
    if not isinstance(array, np.ndarray):
        return _LAZY_DEPTH
    return max(1, _SLAB_BYTES // (4 * max(1, area)))
