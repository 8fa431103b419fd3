"""The label array of a session and what is known of it without scanning it again."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import SessionError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import LabelPatch, MaskPatch, count_labels
from napari_openmedlab.session.history import LabelChange
from napari_openmedlab.session.objects import LARGEST_ID

__all__ = ["LabelMap", "StartLabels", "as_labels"]

Labels = NDArray[np.uint16]


def as_labels(labels: Any, shape: tuple[int, int, int]) -> Labels:
    """Return ``labels`` as a writable uint16 array; the array itself if it is one already.

    Raises
    ------
    SessionError
        For another shape, values that are not integers, or values outside 0 to 65535.
    """
    array = np.asarray(labels)
    if array.shape != shape:
        raise SessionError(
            f"the labels have shape {array.shape}, the image {shape}: choose labels that were "
            "made on this image"
        )
    if array.dtype == np.uint16 and array.flags.writeable:
        return array
    if array.dtype.kind not in "bui":
        raise SessionError(f"labels are whole numbers, these are of type {array.dtype}")
    if array.size and (int(array.min()) < 0 or int(array.max()) > LARGEST_ID):
        raise SessionError(
            f"label values lie between 0 and {LARGEST_ID}, these between {array.min()} and "
            f"{array.max()}"
        )
    return array.astype(np.uint16)


class LabelMap:
    """One label array, written in place, with a box around each value.

    Parameters
    ----------
    array : ndarray of uint16, shape (z, y, x)

    Notes
    -----
    A box holds all voxels of its value but may be larger than needed; :meth:`mask_of` tightens
    it. No method but the constructor looks at the whole array.
    """

    def __init__(self, array: Labels) -> None:
        self.array = array
        self.counts: dict[int, int] = {}
        self._boxes: dict[int, Box] = {}
        if array.any():
            self._scan()

    def _scan(self) -> None:
        from scipy import ndimage

        found = ndimage.find_objects(self.array)
        totals = count_labels(self.array)
        for value, where in enumerate(found, start=1):
            if where is not None:
                starts, stops = zip(*((s.start, s.stop) for s in where), strict=True)
                self._boxes[value] = Box(starts, stops)
                self.counts[value] = totals[value]

    def box_of(self, value: int) -> Box:
        """Return a box that holds all voxels of this value (an empty one if there are none)."""
        return self._boxes.get(value, Box((0, 0, 0), (0, 0, 0)))

    def mask_of(self, value: int) -> MaskPatch:
        """Return the voxels of one value, in their smallest box."""
        box = self.box_of(value)
        patch = MaskPatch(box, self.array[box.slices] == value).trimmed()
        self._boxes[value] = patch.box
        return patch

    def mask_of_others(self, value: int, others: Iterable[int]) -> MaskPatch:
        """Return the voxels of all objects but this one."""
        box = Box((0, 0, 0), (0, 0, 0))
        for other in others:
            box = box.union(self.box_of(other))
        inside = self.array[box.slices]
        return MaskPatch(box, (inside != 0) & (inside != value))

    def patch(self, box: Box) -> LabelPatch:
        """Return a patch over ``box`` that changes nothing yet."""
        before = self.array[box.slices].copy()
        return LabelPatch(box, before, before)

    def mask_patch(
        self, value: int, mask: MaskPatch, *, keep: bool, locked: Iterable[int]
    ) -> LabelPatch:
        """Return the patch that makes ``mask`` the voxels of ``value``.

        Parameters
        ----------
        value : int
        mask : MaskPatch
        keep : bool
            Take background only; otherwise any voxel but those of ``locked`` values.
        locked : iterable of int
        """
        mask = mask.clip(self.array.shape)
        patch = self.patch(mask.box.union(self.box_of(value)))
        after = patch.before.copy()
        after[after == value] = 0
        if not mask.box.is_empty:
            inner = after[mask.box.relative_to(patch.box).slices]
            inner[mask.mask & self._writable(inner, mask.box, keep, locked)] = value
        return LabelPatch(patch.box, patch.before, after)

    def _writable(
        self, values: NDArray[np.uint16], box: Box, keep: bool, locked: Iterable[int]
    ) -> NDArray[np.bool_]:
        if keep:
            return np.equal(values, 0)
        free = np.ones(values.shape, dtype=bool)
        for other in locked:
            if not self.box_of(other).intersection(box).is_empty:
                free &= values != other
        return free

    def write(self, patch: LabelPatch) -> tuple[LabelChange | None, dict[int, int]]:
        """Write ``patch.after`` and return the compressed change and the voxels gained by value.

        Only the smallest box around the voxels that the patch changes is written.
        """
        change, gained = LabelChange.of(patch)
        if change is not None:
            inner = change.box.relative_to(patch.box).slices
            self.array[change.box.slices] = patch.after[inner]
            self._grow(change, gained)
        return change, gained

    def place(self, change: LabelChange, boxes: Mapping[int, Box]) -> None:
        """Write a change whose new voxels lie in these boxes, by value."""
        change.write(self.array)
        for value, box in boxes.items():
            self._boxes[value] = self.box_of(value).union(box)

    def replay(self, change: LabelChange, *, back: bool = False) -> None:
        """Do a change again, or take it back."""
        change.write(self.array, back=back)
        values = np.flatnonzero(np.bincount(change.values(back=back)))
        self._grow(change, {int(v): 1 for v in values})

    def _grow(self, change: LabelChange, gained: Mapping[int, int]) -> None:
        for value in gained:
            if value:
                self._boxes[value] = self.box_of(value).union(change.box)


class StartLabels:
    """The label array as it was before the first step that undo still knows, compressed.

    Slices without labels take no memory. Replay and recovery start from here, so no copy of
    the whole array is ever needed.
    """

    def __init__(self, shape: tuple[int, int, int], slices: Mapping[int, bytes]) -> None:
        self.shape = shape
        self.slices = dict(slices)

    @classmethod
    def of(cls, labels: Labels) -> StartLabels:
        """Compress an array, slice by slice."""
        kept = {z: _pack(plane) for z, plane in enumerate(labels) if plane.any()}
        a, b, c = labels.shape
        return cls((a, b, c), kept)

    def fold(self, change: LabelChange) -> None:
        """Take a change in that undo no longer knows."""
        first, last = change.box.start[0], change.box.stop[0]
        slab = np.zeros((last - first, *self.shape[1:]), dtype=np.uint16)
        for z in range(first, last):
            slab[z - first] = self._plane(z)
        shifted = change.box.shift((-first, 0, 0))
        LabelChange(shifted, change.changed, change.before, change.after).write(slab)
        for z, plane in enumerate(slab, start=first):
            if plane.any():
                self.slices[z] = _pack(plane)
            else:
                self.slices.pop(z, None)

    def to_array(self) -> Labels:
        """Return the full array."""
        labels = np.zeros(self.shape, dtype=np.uint16)
        for z in self.slices:
            labels[z] = self._plane(z)
        return labels

    def _plane(self, z: int) -> Labels:
        if z not in self.slices:
            return np.zeros(self.shape[1:], dtype=np.uint16)
        data = zlib.decompress(self.slices[z])
        return np.frombuffer(data, dtype="<u2").reshape(self.shape[1:])


def _pack(plane: Labels) -> bytes:
    return zlib.compress(np.ascontiguousarray(plane, dtype="<u2").tobytes(), 1)
