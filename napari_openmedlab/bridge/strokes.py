"""A brush stroke on one slice as voxels."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_openmedlab.geometry.volume import Geometry

__all__ = ["stroke_voxels"]

_STEP = 0.5  # voxels between two samples of the stroke: no gap on the grid


def stroke_voxels(
    path: ArrayLike, geometry: Geometry, axis: int, radius: float
) -> NDArray[np.int64]:
    """Return the voxels a round brush touches on its way.

    Parameters
    ----------
    path : array-like of float, shape (N, 3), N >= 1
        Fractional voxel indices (z, y, x) along the stroke.
    geometry : Geometry
        Grid of the image; voxels off it are left out.
    axis : int
        Array axis that is not on screen; the brush stays on the slice of the first point.
    radius : float
        Radius of the brush in the unit of the geometry. The voxel under the path itself is
        always touched.

    Returns
    -------
    ndarray of int, shape (M, 3)
        Each voxel once, in array order; perhaps none (a stroke beside the image).
    """
    points = np.asarray(path, dtype=np.float64).reshape(-1, 3).copy()
    points[:, axis] = np.rint(points[0, axis])
    line = np.unique(np.rint(_resample(points)).astype(np.int64), axis=0)
    touched = (line[:, None, :] + _disc(geometry.spacing, axis, radius)[None]).reshape(-1, 3)
    voxels = np.unique(touched, axis=0)
    return voxels[geometry.contains_index(voxels)]


def _resample(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the path with samples no farther apart than half a voxel."""
    pieces = [points[:1]]
    for start, stop in itertools.pairwise(points):
        count = max(1, int(np.ceil(np.abs(stop - start).max() / _STEP)))
        pieces.append(start + (stop - start) * np.linspace(0, 1, count + 1)[1:, None])
    return np.concatenate(pieces)


def _disc(spacing: tuple[float, float, float], axis: int, radius: float) -> NDArray[np.int64]:
    """Return the offsets of voxels within the radius, on the plane across ``axis``."""
    reach = [0 if a == axis else int(radius // spacing[a]) for a in range(3)]
    grids = np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij")
    offsets = np.stack([grid.ravel() for grid in grids], axis=1)
    lengths = np.linalg.norm(offsets * np.array(spacing), axis=1)
    near: NDArray[np.int64] = offsets[lengths <= radius + 1e-9]
    return near if len(near) else np.zeros((1, 3), dtype=np.int64)
