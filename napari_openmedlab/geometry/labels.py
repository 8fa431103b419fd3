"""Pieces of masks and label maps: what engines return and what undo keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box, box_of_mask

__all__ = ["LabelPatch", "MaskPatch", "count_labels", "smallest_label_dtype"]


@dataclass(frozen=True, eq=False)
class MaskPatch:
    """A boolean mask inside a box of a larger grid; everything outside the box is False.

    Attributes
    ----------
    box : Box
        Where the mask lies on the grid.
    mask : ndarray of bool, shape ``box.shape``, read-only
    """

    box: Box
    mask: NDArray[np.bool_]

    def __post_init__(self) -> None:
        mask = np.asarray(self.mask, dtype=bool).view()
        if mask.shape != self.box.shape:
            raise GeometryError(f"mask of shape {mask.shape} in a box of shape {self.box.shape}")
        mask.setflags(write=False)
        object.__setattr__(self, "mask", mask)

    @classmethod
    def empty(cls) -> MaskPatch:
        """Return a patch without voxels."""
        return cls(Box((0, 0, 0), (0, 0, 0)), np.zeros((0, 0, 0), dtype=bool))

    @classmethod
    def of(cls, mask: NDArray[Any]) -> MaskPatch:
        """Return the trimmed patch of a full-size mask."""
        box = box_of_mask(mask)
        return cls(box, np.array(mask[box.slices], dtype=bool))

    @property
    def count(self) -> int:
        """Number of voxels in the mask."""
        return int(np.count_nonzero(self.mask))

    @property
    def is_empty(self) -> bool:
        """Whether no voxel is set."""
        return not self.mask.any()

    def trimmed(self) -> MaskPatch:
        """Return the same mask in its smallest box (an empty patch if no voxel is set)."""
        inner = box_of_mask(self.mask)
        if inner.shape == self.box.shape:
            return self
        if inner.is_empty:
            return MaskPatch.empty()
        return MaskPatch(inner.shift(self.box.start), self.mask[inner.slices])

    def clip(self, shape: Sequence[int]) -> MaskPatch:
        """Return the part of the mask on a grid of this shape."""
        box = self.box.clip(shape)
        return self if box == self.box else MaskPatch(box, self.inside(box))

    def inside(self, box: Box) -> NDArray[np.bool_]:
        """Return the mask as an array over another box (False where this one does not reach)."""
        out = np.zeros(box.shape, dtype=bool)
        shared = self.box.intersection(box)
        if not shared.is_empty:
            out[shared.relative_to(box).slices] = self.mask[shared.relative_to(self.box).slices]
        return out

    def to_full(self, shape: Sequence[int]) -> NDArray[np.bool_]:
        """Return the mask as a full-size array; for tests and exports, not for each click."""
        return self.inside(Box.whole(shape))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MaskPatch):
            return NotImplemented
        box = self.box.union(other.box)
        return np.array_equal(self.inside(box), other.inside(box))

    def __hash__(self) -> int:
        slim = self.trimmed()
        return hash((slim.box, slim.mask.tobytes()))


@dataclass(frozen=True, eq=False)
class LabelPatch:
    """A change of a label map: what stood in a box before, and what stands there after.

    Attributes
    ----------
    box : Box
    before, after : ndarray of int, shape ``box.shape``, read-only
    """

    box: Box
    before: NDArray[Any]
    after: NDArray[Any]

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            array = np.asarray(getattr(self, name)).view()
            if array.shape != self.box.shape:
                raise GeometryError(
                    f"label patch '{name}' has shape {array.shape}, its box {self.box.shape}"
                )
            array.setflags(write=False)
            object.__setattr__(self, name, array)


def smallest_label_dtype(largest: int) -> np.dtype[Any]:
    """Return the smallest unsigned integer dtype that holds label values up to ``largest``.

    Raises
    ------
    GeometryError
        If ``largest`` is negative or does not fit into 32 bits.
    """
    for dtype in (np.uint8, np.uint16, np.uint32):
        if 0 <= largest <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    raise GeometryError(f"label values run from 0 to 4294967295, got {largest}")


def count_labels(labels: NDArray[Any]) -> dict[int, int]:
    """Return how many voxels each label value has, 0 left out.

    Parameters
    ----------
    labels : ndarray of int, shape (z, y, x), no negative values

    Notes
    -----
    Counted plane by plane: a histogram of the whole array would first copy it to 64 bits.
    """
    total: dict[int, int] = {}
    for plane in labels:
        if labels.dtype.itemsize <= 2:
            found = np.bincount(plane.astype(np.uint16, copy=False).ravel())
            values = np.flatnonzero(found)
            counts = found[values]
        else:
            values, counts = np.unique(plane, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            total[value] = total.get(value, 0) + count
    total.pop(0, None)
    return total
