"""Blocks of one image looked for in another around the same place, by normalised correlation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.models.engines.atlas.working import Worked

__all__ = ["Matches", "lattice", "match"]

_FLAT = 4e-4  # variance below which a block shows nothing to match (1 = air to bone, squared)
_AT_ONCE = 400  # blocks; bounds memory to some ten MB
_LEAST_SEEN = 0.6


@dataclass(frozen=True, eq=False)
class Matches:
    """Where blocks were found.

    Attributes
    ----------
    centres : ndarray of int, shape (N, 3)
        Voxels.
    shifts : ndarray of float64, shape (N, 3)
        Voxels to the best place, finer than a voxel.
    weights : ndarray of float64, shape (N,)
        0 for blocks that show nothing, lie outside a scan, or fit best at the search's edge.
    """

    centres: NDArray[np.int_]
    shifts: NDArray[np.float64]
    weights: NDArray[np.float64]


def lattice(shape: tuple[int, ...], every: int) -> list[NDArray[np.int_]]:
    """Return the block centres along each axis."""
    return [np.arange((n - 1) % every // 2, n, every) for n in shape]


def match(one: Worked, other: Worked, centres: NDArray[np.int_], half: int, reach: int) -> Matches:
    """Look for blocks of ``one`` in ``other``; both lie on one grid.

    Parameters
    ----------
    one, other : Worked
    centres : ndarray of int, shape (N, 3)
    half : int
        A block has ``2 half + 1`` voxels a side.
    reach : int
        Voxels searched to every side.
    """
    wide = half + reach
    a = np.pad(one.image, wide), np.pad(one.seen, wide)
    b = np.pad(other.image, wide), np.pad(other.seen, wide)
    parts = [
        _match(a, b, centres[first : first + _AT_ONCE], half, reach)
        for first in range(0, len(centres), _AT_ONCE)
    ]
    if not parts:
        return Matches(centres, np.zeros((0, 3)), np.zeros(0))
    return Matches(
        centres, np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    )


def _match(
    a: tuple[NDArray[Any], NDArray[Any]],
    b: tuple[NDArray[Any], NDArray[Any]],
    centres: NDArray[np.int_],
    half: int,
    reach: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    side, span = 2 * half + 1, 2 * reach + 1
    f, m = (_blocks(v, centres + reach, side).reshape(len(centres), -1) for v in a)
    g, n = (_blocks(v, centres, side + 2 * reach) for v in b)
    m = m.astype(np.float32)
    f = f.astype(np.float32) * m
    scores = np.full((len(centres), span, span, span), -1.0, dtype=np.float32)
    for i, j, k in product(range(span), repeat=3):
        cut = (slice(None), slice(i, i + side), slice(j, j + side), slice(k, k + side))
        both = m * n[cut].reshape(len(centres), -1)
        scores[:, i, j, k] = _correlations(f, g[cut].reshape(len(centres), -1), both)
    seen = (m.mean(axis=1) > _LEAST_SEEN) & (_variance(f, m) > _FLAT)
    return _peaks(scores, seen, reach)


def _blocks(array: NDArray[Any], corners: NDArray[np.int_], side: int) -> NDArray[Any]:
    windows = np.lib.stride_tricks.sliding_window_view(array, (side,) * 3)
    found: NDArray[Any] = windows[tuple(corners.T)]
    return found


def _variance(values: NDArray[Any], mask: NDArray[Any]) -> NDArray[Any]:
    count = np.maximum(mask.sum(axis=1), 1)
    mean = values.sum(axis=1) / count
    spread: NDArray[Any] = (values * values).sum(axis=1) / count - mean * mean
    return spread


def _correlations(f: NDArray[Any], g: NDArray[Any], both: NDArray[Any]) -> NDArray[Any]:
    """Return the correlation of each block over the voxels that both scans see."""
    count = both.sum(axis=1)
    safe = np.maximum(count, 1)
    gm, fm = g * both, f * both
    mg, mf = gm.sum(axis=1) / safe, fm.sum(axis=1) / safe
    top = np.einsum("ij,ij->i", fm, gm) / safe - mf * mg
    vf = np.einsum("ij,ij->i", fm, fm) / safe - mf * mf
    vg = np.einsum("ij,ij->i", gm, gm) / safe - mg * mg
    bottom = np.sqrt(np.maximum(vf, 0) * np.maximum(vg, 0))
    good = (count > _LEAST_SEEN * both.shape[1]) & (bottom > _FLAT / 4)
    found: NDArray[Any] = np.where(good, top / np.maximum(bottom, 1e-9), -1.0)
    return found


def _peaks(
    scores: NDArray[np.float32], seen: NDArray[np.bool_], reach: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = np.arange(len(scores))
    flat = scores.reshape(len(scores), -1)
    best = flat.argmax(axis=1)
    place = np.stack(np.unravel_index(best, scores.shape[1:]), axis=1)
    peak = flat[rows, best].astype(np.float64)
    inner = ((place > 0) & (place < 2 * reach)).all(axis=1)
    shifts = (place - reach).astype(np.float64)
    for axis in range(3):
        before, after = place.copy(), place.copy()
        before[:, axis] -= 1
        after[:, axis] += 1
        low = scores[(rows, *np.clip(before, 0, 2 * reach).T)].astype(np.float64)
        high = scores[(rows, *np.clip(after, 0, 2 * reach).T)].astype(np.float64)
        curve = low - 2 * peak + high
        fine = np.where(inner & (curve < -1e-6), 0.5 * (low - high) / np.minimum(curve, -1e-6), 0)
        shifts[:, axis] += np.clip(fine, -0.5, 0.5)
    weights = np.where(inner & seen, np.clip(peak, 0, 1) ** 4, 0.0)
    return shifts, weights
