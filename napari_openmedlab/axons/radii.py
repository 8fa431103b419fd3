"""Distance from some voxels of a mask to its outside, without a distance map of the whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["radii_at"]

_NEAR = 5  # voxels: thin structures end here, thicker ones take a distance map


def radii_at(
    mask: NDArray[np.bool_],
    points: NDArray[np.int64],
    spacing: tuple[float, float, float],
    farthest: int,
) -> NDArray[np.float32]:
    """Return the Euclidean distance transform of a mask at some of its voxels.

    Parameters
    ----------
    mask : ndarray of bool, shape (z, y, x)
    points : ndarray of int, shape (N, 3)
        Voxels of the mask (z, y, x).
    spacing : tuple of float
        Voxel size (z, y, x); the unit of the result.
    farthest : int
        Distances stop at this many voxels (of the finest axis): a block can't see farther.

    Returns
    -------
    ndarray of float32, shape (N,)
        Distance between voxel centres, as the distance transform has it.
    """
    limit = farthest * min(spacing)
    radii = np.full(len(points), limit, dtype=np.float32)
    open_ = np.arange(len(points))
    top = np.array(mask.shape)
    for distance, offset in _offsets(spacing, min(limit, _NEAR * min(spacing))):
        if not len(open_):
            return radii
        beside = points[open_] + offset
        there = ((beside >= 0) & (beside < top)).all(axis=1)
        outside = np.zeros(len(open_), dtype=bool)
        outside[there] = ~mask[tuple(beside[there].T)]
        radii[open_[outside]] = distance
        open_ = open_[~outside]
    if len(open_) and not mask.all():
        from scipy import ndimage

        far = ndimage.distance_transform_edt(mask, sampling=spacing)
        radii[open_] = np.minimum(far[tuple(points[open_].T)], limit)
    return radii


def _offsets(
    spacing: tuple[float, float, float], limit: float
) -> list[tuple[float, NDArray[np.int64]]]:
    """Return steps to other voxels, nearest first, up to a distance."""
    reach = [int(limit / s) for s in spacing]
    axes = np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij")
    steps = np.stack([a.ravel() for a in axes], axis=1).astype(np.int64)
    distances = np.sqrt(((steps * np.array(spacing)) ** 2).sum(axis=1))
    order = np.argsort(distances, kind="stable")
    return [(float(distances[i]), steps[i]) for i in order if 0 < distances[i] <= limit]
