"""Windows of a fixed size over a block, and one score from what they say. NumPy only.

Three ways. *Cores*: windows side by side, each keeps what lies ``halo`` voxels from its border.
*Gaussian*: windows at half their size, weighted by a Gaussian; where a block reaches half a
window beyond its core, every voxel of the core has all the windows that any block would give
it, so block borders can't show. *Upstream's*: cores in a slab, the last flush with its end, later
windows over earlier ones, in the published order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.models.tiling.placement import gaussian_line

__all__ = ["Corner", "Scorer", "by_cores", "by_gaussian", "by_slab", "slab_corners"]

Corner = tuple[int, int, int]
Block = NDArray[np.float32]
Scorer = Callable[[Sequence[Block]], Iterator[Block]]
"""Takes windows, yields their scores in order; decides itself how many run at a time."""


def by_cores(block: Block, window: int, halo: int, score: Scorer) -> Block:
    """Return the scores of a block whose edges less ``2 * halo`` are multiples of the core.

    Parameters
    ----------
    block : ndarray of float32, shape (z, y, x)
        Normalised.
    window : int
        Edge of the windows.
    halo : int
        Voxels at the border of a window that its neighbour decides; at the block's own border
        the outer window decides.
    score : callable
    """
    core = window - 2 * halo
    lines = [range(0, n - window + 1, core) for n in block.shape]
    if any(line[-1] + window != n for line, n in zip(lines, block.shape, strict=True)):
        raise ValueError(f"windows of {window} with a halo of {halo} don't fit {block.shape}")
    corners = [(z, y, x) for z, y, x in product(*lines)]
    out = np.empty(block.shape, np.float32)
    found = score(_Windows(block, window, corners))
    for corner, scores in zip(corners, found, strict=True):
        inner, outer = [], []
        for start, n in zip(corner, block.shape, strict=True):
            low = 0 if start == 0 else halo
            high = window if start + window == n else window - halo
            inner.append(slice(low, high))
            outer.append(slice(start + low, start + high))
        out[tuple(outer)] = scores[tuple(inner)]
    return out


def by_gaussian(block: Block, window: int, score: Scorer) -> Block:
    """Return the weighted mean of windows at every half window; edges are multiples of that."""
    half = window // 2
    if any(n % half or n < window for n in block.shape):
        raise ValueError(f"windows of {window} at half their size don't fit {block.shape}")
    line = gaussian_line(window).astype(np.float32)
    weights = line[:, None, None] * line[:, None] * line
    total, norm = np.zeros(block.shape, np.float32), np.zeros(block.shape, np.float32)
    corners = [(z, y, x) for z, y, x in product(*(range(0, n - half, half) for n in block.shape))]
    for (z, y, x), scores in zip(corners, score(_Windows(block, window, corners)), strict=True):
        place = slice(z, z + window), slice(y, y + window), slice(x, x + window)
        total[place] += scores * weights
        norm[place] += weights
    total /= norm
    return total


def by_slab(block: Block, window: int, overlap: int, score: Scorer) -> Block:
    """Return upstream's scores of a slab: ``window`` slices thick, ``overlap`` beyond the region.

    What lies in the halo is 0.
    """
    if block.shape[0] != window:
        raise ValueError(f"a slab has {window} slices, got {block.shape[0]}")
    out = np.zeros(block.shape, np.float32)
    corners = slab_corners(block.shape[1], block.shape[2], window, overlap)
    inner = slice(overlap, window - overlap)
    found = score(_Windows(block, window, corners))
    for (_, y, x), scores in zip(corners, found, strict=True):
        rows = slice(y + overlap, y + window - overlap)
        columns = slice(x + overlap, x + window - overlap)
        out[inner, rows, columns] = scores[inner, inner, inner]
    return out


def slab_corners(rows: int, columns: int, window: int, overlap: int) -> list[Corner]:
    """Return where upstream's windows start in a slab, in its order; later ones win.

    Parameters
    ----------
    rows, columns : int
        Of the slab, the overlap included.
    window, overlap : int
    """
    core = window - 2 * overlap
    last_y, last_x = rows - window, columns - window
    corners = []
    for y in range(0, last_y + 1, core):
        for x in range(0, last_x + 1, core):
            corners.append((0, y, x))
            end_y, end_x = y + core >= last_y, x + core >= last_x
            if end_y and end_x:
                corners.append((0, last_y, last_x))
            if end_x:
                corners.append((0, y, last_x))
            if end_y:
                corners.append((0, last_y, x))
    return corners


class _Windows(Sequence[Block]):
    """The windows of a block, cut out when they are asked for."""

    def __init__(self, block: Block, window: int, corners: Sequence[Corner]) -> None:
        self._block, self._window, self._corners = block, window, corners

    def __len__(self) -> int:
        return len(self._corners)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        z, y, x = self._corners[number]
        edge = self._window
        return self._block[z : z + edge, y : y + edge, x : x + edge]
