"""Slices of a volume along any of its three array axes, and masks on them.

A position on a slice is (row, column); rows and columns are the two other array axes in their
order, so that a slice along axis 0 has rows along y and columns along x.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.volume import Volume

__all__ = [
    "Outline",
    "Plane",
    "Rectangle",
    "assembled",
    "box_around",
    "cut",
    "cut_many",
    "in_plane_axes",
    "outline_on",
    "plane_shape",
]

Rectangle = tuple[float, float, float, float]
"""(first row, first column, row after the last, column after the last)."""


@dataclass(frozen=True, order=True)
class Plane:
    """One slice: the array axis across it and its index on that axis."""

    axis: int
    number: int

    def beside(self, step: int) -> Plane:
        """Return the slice ``step`` further on."""
        return Plane(self.axis, self.number + step)


def in_plane_axes(axis: int) -> tuple[int, int]:
    """Return the array axes of rows and columns of slices along ``axis``."""
    first, second = (a for a in range(3) if a != axis)
    return first, second


def plane_shape(shape: Sequence[int], axis: int) -> tuple[int, int]:
    """Return rows and columns of slices along ``axis`` of an array of this shape."""
    first, second = in_plane_axes(axis)
    return int(shape[first]), int(shape[second])


def cut(volume: Volume, plane: Plane) -> NDArray[Any]:
    """Return the voxels of one slice, shape (rows, columns)."""
    pixels: NDArray[Any] = cut_many(volume, plane.axis, plane.number, plane.number + 1)[0]
    return pixels


def cut_many(volume: Volume, axis: int, start: int, stop: int) -> NDArray[Any]:
    """Return the slices ``start`` to ``stop - 1``, read in one go; (slices, rows, columns)."""
    low, high = [0, 0, 0], list(volume.geometry.shape)
    low[axis], high[axis] = start, stop
    block = volume.crop(Box((low[0], low[1], low[2]), (high[0], high[1], high[2])))
    slices: NDArray[Any] = np.moveaxis(block, axis, 0)
    return slices


@dataclass(frozen=True, eq=False)
class Outline:
    """A mask on one slice, cut to what is set.

    Attributes
    ----------
    row, column : int
        Place of the mask's first element on the slice.
    mask : ndarray of bool, shape (rows, columns)
        Touches all four of its sides; shape (0, 0) if nothing is set.
    """

    row: int
    column: int
    mask: NDArray[np.bool_]

    @classmethod
    def of(cls, mask: NDArray[Any], row: int = 0, column: int = 0) -> Outline:
        """Return the outline of a mask that lies at (row, column) of a slice."""
        rows = np.flatnonzero(mask.any(axis=1))
        if not rows.size:
            return cls(0, 0, np.zeros((0, 0), dtype=bool))
        columns = np.flatnonzero(mask.any(axis=0))
        part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return cls(row + int(rows[0]), column + int(columns[0]), np.array(part, dtype=bool))

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def is_line(self) -> bool:
        """Whether it is at most one pixel wide: a cut through another slice's mask."""
        return bool(min(self.mask.shape) <= 1)

    @property
    def rectangle(self) -> Rectangle:
        """The smallest rectangle that holds it."""
        rows, columns = self.mask.shape
        return (self.row, self.column, self.row + rows, self.column + columns)

    def on(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the mask on its whole slice; what lies beyond the slice is cut off."""
        full = np.zeros(shape, dtype=bool)
        rows, columns = self.mask.shape
        r0, c0 = max(0, self.row), max(0, self.column)
        part = self.mask[
            r0 - self.row : max(0, min(rows, shape[0] - self.row)),
            c0 - self.column : max(0, min(columns, shape[1] - self.column)),
        ]
        full[r0 : r0 + part.shape[0], c0 : c0 + part.shape[1]] = part
        return full

    def without(self, other: NDArray[np.bool_]) -> Outline:
        """Return what is left where ``other`` (a mask of the whole slice) is not set."""
        rows, columns = self.mask.shape
        taken = other[self.row : self.row + rows, self.column : self.column + columns]
        return Outline.of(self.mask & ~taken, self.row, self.column)

    def shared(self, other: Outline) -> int:
        """Return the number of pixels that both have."""
        r0, c0 = max(self.row, other.row), max(self.column, other.column)
        r1 = min(self.row + self.mask.shape[0], other.row + other.mask.shape[0])
        c1 = min(self.column + self.mask.shape[1], other.column + other.mask.shape[1])
        if r1 <= r0 or c1 <= c0:
            return 0
        mine = self.mask[r0 - self.row : r1 - self.row, c0 - self.column : c1 - self.column]
        its = other.mask[r0 - other.row : r1 - other.row, c0 - other.column : c1 - other.column]
        return int(np.count_nonzero(mine & its))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Outline):
            return NotImplemented
        return bool(self.rectangle == other.rectangle and np.array_equal(self.mask, other.mask))

    def __hash__(self) -> int:
        return hash((self.rectangle, self.mask.tobytes()))


def outline_on(patch: MaskPatch | None, plane: Plane) -> Outline:
    """Return what a 3D mask has on one slice."""
    place = -1 if patch is None else plane.number - patch.box.start[plane.axis]
    if patch is None or not 0 <= place < patch.box.shape[plane.axis]:
        return Outline(0, 0, np.zeros((0, 0), dtype=bool))
    part = np.moveaxis(patch.mask, plane.axis, 0)[place]
    first, second = in_plane_axes(plane.axis)
    return Outline.of(part, patch.box.start[first], patch.box.start[second])


def box_around(plane: Plane, outline: Outline) -> Box:
    """Return the box of an outline in the volume (empty for an empty outline)."""
    first, second = in_plane_axes(plane.axis)
    start, stop = [0, 0, 0], [0, 0, 0]
    start[plane.axis], stop[plane.axis] = plane.number, plane.number + 1
    start[first], start[second] = outline.row, outline.column
    stop[first], stop[second] = (
        outline.row + outline.mask.shape[0],
        outline.column + outline.mask.shape[1],
    )
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def assembled(previous: MaskPatch | None, changed: Mapping[Plane, Outline]) -> MaskPatch:
    """Return the 3D mask that has the given outlines on their slices, else ``previous``.

    Work and memory follow the boxes of the masks, not the volume.
    """
    before = MaskPatch.empty() if previous is None else previous.trimmed()
    box = before.box
    for plane, outline in changed.items():
        if outline.mask.size:
            box = box.union(box_around(plane, outline))
    if box.is_empty:
        return MaskPatch.empty()
    mask = before.inside(box)
    for plane in _by_axis(changed):
        if box.start[plane.axis] <= plane.number < box.stop[plane.axis]:
            where: list[Any] = [slice(None)] * 3
            where[plane.axis] = plane.number - box.start[plane.axis]
            mask[tuple(where)] = False
    for plane, outline in changed.items():
        if outline.mask.size:
            place = box_around(plane, outline).relative_to(box)
            mask[place.slices] |= np.expand_dims(outline.mask, plane.axis)
    return MaskPatch(box, mask).trimmed()


def _by_axis(planes: Iterable[Plane]) -> list[Plane]:
    return sorted(planes)
