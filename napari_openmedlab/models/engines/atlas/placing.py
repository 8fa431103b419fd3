"""Where one coarse scan lies in another: every whole shift is tried at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from napari_openmedlab.models.engines.atlas.working import Worked, coarser

__all__ = ["shifts"]

_COARSE = 3  # working voxels to a voxel of the search for the place
_LEAST_OVERLAP = 0.25  # of the smaller scan
_APART_MM = 60.0  # two places nearer than this are one candidate


def shifts(
    template: Worked, query: Worked, count: int = 3
) -> list[tuple[NDArray[np.float64], float]]:
    """Return where the template lies in the query: upright mm to add, and the correlation.

    Normalised correlation of what both scans see, at every whole shift of the coarse grids.
    """
    one, other = coarser(template, _COARSE), coarser(query, _COARSE)
    scores, overlap = _correlation(one, other)
    least = _LEAST_OVERLAP * min(np.count_nonzero(one.seen), np.count_nonzero(other.seen))
    full = min(np.count_nonzero(one.seen), np.count_nonzero(other.seen))
    weight = np.sqrt(np.clip(overlap / full, 0, 1))
    scores = np.where(
        overlap < max(least, 30), -1.0, np.arctanh(np.clip(scores, -0.999, 0.999)) * weight
    )
    base = other.origin - one.origin
    found: list[tuple[NDArray[np.float64], float]] = []
    apart = max(1, round(_APART_MM / one.step))
    for _ in range(count):
        place = np.unravel_index(int(scores.argmax()), scores.shape)
        if scores[place] <= -1.0:
            break
        shift = np.array(place) - (np.array(one.image.shape) - 1)
        found.append((base + shift * one.step, float(scores[place])))
        low = [max(0, p - apart) for p in place]
        scores[tuple(slice(a, p + apart + 1) for a, p in zip(low, place, strict=True))] = -1.0
    return found


def _correlation(one: Worked, other: Worked) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return masked normalised correlation and overlap for shifts -(n1-1) .. n2-1 of ``one``."""
    shape = [a + b - 1 for a, b in zip(one.image.shape, other.image.shape, strict=True)]
    fast = [fft.next_fast_len(n, real=True) for n in shape]

    def forward(array: NDArray[Any], flip: bool) -> NDArray[Any]:
        array = array.astype(np.float32)
        found: NDArray[Any] = fft.rfftn(array[::-1, ::-1, ::-1] if flip else array, fast)
        return found

    def back(product: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = fft.irfftn(product, fast)[tuple(slice(n) for n in shape)]
        return found

    f, g = one.image - one.image[one.seen].mean(), other.image - other.image[other.seen].mean()
    f, g = f * one.seen, g * other.seen
    m1, m2 = forward(one.seen, True), forward(other.seen, False)
    f1, f2 = forward(f, True), forward(f * f, True)
    g1, g2 = forward(g, False), forward(g * g, False)
    n = np.maximum(back(m1 * m2), 0)
    safe = np.maximum(n, 1.0)
    sf, sg = back(f1 * m2), back(m1 * g1)
    top = back(f1 * g1) - sf * sg / safe
    vf = np.maximum(back(f2 * m2) - sf * sf / safe, 0)
    vg = np.maximum(back(m1 * g2) - sg * sg / safe, 0)
    bottom = np.sqrt(vf * vg)
    score = np.where(
        bottom > 1e-3 * max(float(bottom.max()), 1e-9), top / np.maximum(bottom, 1e-9), -1.0
    )
    return np.clip(score, -1, 1), n
