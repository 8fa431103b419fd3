"""Half-open voxel boxes in array order (z, y, x)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_openmedlab.errors import GeometryError

__all__ = ["Box", "box_of_mask", "box_of_points"]

Index3 = tuple[int, int, int]


@dataclass(frozen=True, order=True)
class Box:
    """A block of voxels ``[start, stop)`` on each axis, array order (z, y, x).

    Raises
    ------
    GeometryError
        If ``stop`` lies before ``start`` on an axis. An empty box (``stop == start``) is legal.

    Examples
    --------
    >>> Box((0, 2, 3), (4, 6, 9)).shape
    (4, 4, 6)
    """

    start: Index3
    stop: Index3

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", tuple(int(v) for v in self.start))
        object.__setattr__(self, "stop", tuple(int(v) for v in self.stop))
        if len(self.start) != 3 or len(self.stop) != 3:
            raise GeometryError(f"a box has three axes, got {self.start} and {self.stop}")
        if any(b < a for a, b in zip(self.start, self.stop, strict=True)):
            raise GeometryError(f"a box can't stop before it starts: {self.start} to {self.stop}")

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """Return the box that covers an array of this shape."""
        return cls((0, 0, 0), (int(shape[0]), int(shape[1]), int(shape[2])))

    @property
    def shape(self) -> Index3:
        """Voxels along each axis."""
        a, b, c = (q - p for p, q in zip(self.start, self.stop, strict=True))
        return a, b, c

    @property
    def size(self) -> int:
        """Number of voxels."""
        a, b, c = self.shape
        return a * b * c

    @property
    def is_empty(self) -> bool:
        """Whether the box holds no voxel."""
        return self.size == 0

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index expression that cuts the box out of an array."""
        a, b, c = (slice(p, q) for p, q in zip(self.start, self.stop, strict=True))
        return a, b, c

    def clip(self, shape: Sequence[int]) -> Box:
        """Return the part of the box inside an array of this shape (perhaps empty)."""
        return self.intersection(Box.whole(shape))

    def intersection(self, other: Box) -> Box:
        """Return the voxels in both boxes (perhaps an empty box)."""
        start = np.maximum(self.start, other.start)
        stop = np.maximum(np.minimum(self.stop, other.stop), start)
        return Box(tuple(start), tuple(stop))

    def union(self, other: Box) -> Box:
        """Return the smallest box that holds both; an empty box adds nothing."""
        if self.is_empty:
            return other
        if other.is_empty:
            return self
        start = np.minimum(self.start, other.start)
        return Box(tuple(start), tuple(np.maximum(self.stop, other.stop)))

    def grow(self, voxels: int | Sequence[int]) -> Box:
        """Return the box with this many voxels added on every side (per axis if a sequence)."""
        margin = np.broadcast_to(np.asarray(voxels, dtype=int), 3)
        start, stop = np.array(self.start) - margin, np.array(self.stop) + margin
        return Box(tuple(start), tuple(stop))

    def shift(self, offset: Sequence[int]) -> Box:
        """Return the box moved by ``offset`` voxels."""
        move = np.asarray(offset, dtype=int)
        return Box(tuple(np.array(self.start) + move), tuple(np.array(self.stop) + move))

    def contains(self, other: Box) -> bool:
        """Return whether every voxel of ``other`` lies in this box."""
        return other.is_empty or self.intersection(other) == other

    def contains_index(self, index: ArrayLike) -> bool:
        """Return whether the voxel nearest to this (perhaps fractional) index lies inside."""
        voxel = np.rint(np.asarray(index, dtype=float))
        return bool((voxel >= self.start).all() and (voxel < self.stop).all())

    def relative_to(self, other: Box) -> Box:
        """Return this box in the index coordinates of an array cut out with ``other``."""
        return self.shift([-v for v in other.start])


def box_of_points(points: ArrayLike) -> Box:
    """Return the smallest box that holds the voxels nearest to the points.

    Parameters
    ----------
    points : array-like of float, shape (N, 3), N >= 1
        Index coordinates (z, y, x). The box is not clipped to any volume.
    """
    voxels = np.rint(np.atleast_2d(np.asarray(points, dtype=float))).astype(int)
    if voxels.size == 0:
        raise GeometryError("a box needs at least one point")
    return Box(tuple(voxels.min(axis=0)), tuple(voxels.max(axis=0) + 1))


def box_of_mask(mask: NDArray[Any]) -> Box:
    """Return the smallest box that holds all non-zero voxels; an empty box if there are none.

    Notes
    -----
    Three reductions over the array, no index list: memory is bounded by the array's faces.
    """
    spans: list[tuple[int, int]] = []
    for axis in range(3):
        others: Iterable[int] = (a for a in range(3) if a != axis)
        hit = np.flatnonzero(mask.any(axis=tuple(others)))
        if hit.size == 0:
            return Box((0, 0, 0), (0, 0, 0))
        spans.append((int(hit[0]), int(hit[-1]) + 1))
    start, stop = zip(*spans, strict=True)
    return Box(start, stop)
