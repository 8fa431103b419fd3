"""Connected pieces of a mask that is seen block by block (26 neighbours)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.geometry.boxes import Box

__all__ = ["PieceCounter"]

_FULL = np.ones((3, 3, 3), dtype=bool)


class PieceCounter:
    """Labels blocks of a regular grid and joins pieces over the planes that blocks share.

    A block is looked at with one more voxel on its far sides: the first plane of its neighbour.
    Both see that plane with the same borders, so of every patch in it one voxel (its first)
    is enough to know that two pieces are one.

    Parameters
    ----------
    shape : tuple of int
        Of the volume (z, y, x).
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._sizes: list[NDArray[np.int64]] = [np.zeros(1, dtype=np.int64)]
        self._number = 1  # piece 0 is the background
        self._voxels: list[NDArray[np.int64]] = []
        self._pieces: list[NDArray[np.int64]] = []
        self._joined: NDArray[np.int64] | None = None

    def add(self, region: NDArray[np.bool_], box: Box) -> tuple[NDArray[np.int32], int]:
        """Label a block and remember what touches its shared planes.

        Parameters
        ----------
        region : ndarray of bool
            The block's voxels with one more on each far side that has a neighbour.
        box : Box
            Of the block, without these.

        Returns
        -------
        labels : ndarray of int32, shape ``box.shape``
            Pieces of this block from 1, 0 outside the mask.
        offset : int
            What makes these numbers unique over all blocks when added.
        """
        from scipy import ndimage

        local, count = ndimage.label(region, _FULL)
        offset = self._number - 1
        core: NDArray[np.int32] = local[tuple(slice(0, n) for n in box.shape)]
        self._sizes.append(np.bincount(core.ravel(), minlength=count + 1)[1:].astype(np.int64))
        self._number += count
        for axis in range(3):
            if box.start[axis] > 0:
                self._note(local, offset, box, (axis, 0))
            if region.shape[axis] > box.shape[axis]:
                self._note(local, offset, box, (axis, box.shape[axis]))
        self._joined = None
        return core, offset

    def _note(
        self, labels: NDArray[np.int32], offset: int, box: Box, where: tuple[int, int]
    ) -> None:
        """Remember one voxel of each patch in a plane, and its piece."""
        from scipy import ndimage

        axis, at = where
        plane = np.take(labels, at, axis=axis)
        patches, count = ndimage.label(plane > 0, np.ones((3, 3), dtype=bool))
        if not count:
            return
        _, first = np.unique(patches.ravel(), return_index=True)
        first = first[-count:]  # what is no patch comes first
        places = list(np.unravel_index(first, plane.shape))
        places.insert(axis, np.full(count, at))
        world = tuple(p.astype(np.int64) + a for p, a in zip(places, box.start, strict=True))
        self._voxels.append(np.ravel_multi_index(world, self.shape).astype(np.int64))
        self._pieces.append(plane.ravel()[first].astype(np.int64) + offset)

    def totals(self) -> NDArray[np.int64]:
        """Return for each piece number the voxels of the whole piece, over all blocks."""
        sizes = np.concatenate(self._sizes)
        joined = self._join()
        whole = np.bincount(joined, weights=sizes).astype(np.int64)
        totals: NDArray[np.int64] = whole[joined]
        return totals

    def count(self, smallest: int) -> tuple[int, int]:
        """Return how many whole pieces have ``smallest`` voxels or more, and how many there are."""
        sizes = np.concatenate(self._sizes)
        whole = np.bincount(self._join(), weights=sizes).astype(np.int64)
        return int((whole >= max(smallest, 1)).sum()), int((whole > 0).sum())

    def _join(self) -> NDArray[np.int64]:
        """Return for each piece number the number of its group."""
        if self._joined is not None:
            return self._joined
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not self._voxels:
            self._joined = np.arange(self._number, dtype=np.int64)
            return self._joined
        voxels, pieces = np.concatenate(self._voxels), np.concatenate(self._pieces)
        order = np.argsort(voxels, kind="stable")
        voxels, pieces = voxels[order], pieces[order]
        same = voxels[1:] == voxels[:-1]
        ends = pieces[:-1][same], pieces[1:][same]
        graph = coo_array(
            (np.ones(len(ends[0]), dtype=np.int8), ends), shape=(self._number, self._number)
        )
        groups = connected_components(graph, directed=False)[1]
        self._joined = np.asarray(groups, dtype=np.int64)
        return self._joined
