"""Smoothing of blocks: float32, one axis at a time, in pieces that fit the processor's cache.

Every value is the same sum in the same order wherever it lies, so a block gives bit for bit what
the whole volume gives, away from the block's border.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["doubled", "gaussian_weights", "halved", "smooth"]

Array = NDArray[np.float32]

_ROWS = 8  # rows taken together along z: a slab of 300 x 8 x 300 float32 is 3 MB


def gaussian_weights(sigma: float, reach: int) -> Array:
    """Return the weights 0 to ``reach`` of a symmetric Gaussian whose sum over both sides is 1.

    A ``sigma`` below 0.2 gives no smoothing.
    """
    if sigma < 0.2 or reach < 1:
        return np.ones(1, dtype=np.float32)
    weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    weights /= weights[0] + 2.0 * weights[1:].sum()
    return weights.astype(np.float32)


def _along(padded: Array, weights: Array, axis: int, out: Array) -> None:
    """Write the convolution of an array, padded on both sides of ``axis``, into ``out``."""
    reach, length = len(weights) - 1, out.shape[axis]
    cut = [slice(None)] * padded.ndim

    def shifted(start: int) -> Array:
        cut[axis] = slice(start, start + length)
        return padded[tuple(cut)]

    np.multiply(shifted(reach), weights[0], out=out)
    part = np.empty_like(out)
    for step in range(1, reach + 1):
        np.add(shifted(reach - step), shifted(reach + step), out=part)
        part *= weights[step]
        out += part


def _padded(array: Array, reach: int, axis: int) -> Array:
    width = [(0, 0)] * array.ndim
    width[axis] = (reach, reach)
    return np.pad(array, width, mode="edge")


def smooth(array: Array, weights: Sequence[Array]) -> Array:
    """Return an array smoothed along its three axes; its edges are repeated outwards.

    Parameters
    ----------
    array : ndarray of float32, shape (z, y, x)
    weights : three arrays
        For z, y, x: see :func:`gaussian_weights`.
    """
    along_z, along_y, along_x = weights
    out = np.empty_like(array)
    row = np.empty(array.shape[1:], dtype=np.float32)
    for z in range(array.shape[0]):
        _along(_padded(array[z], len(along_y) - 1, 0), along_y, 0, row)
        _along(_padded(row, len(along_x) - 1, 1), along_x, 1, out[z])
    if len(along_z) > 1:
        for y in range(0, array.shape[1], _ROWS):
            slab = out[:, y : y + _ROWS]
            _along(_padded(slab, len(along_z) - 1, 0), along_z, 0, slab)
    return out


def halved(array: Array, axes: Sequence[bool] = (True, True, True)) -> Array:
    """Return the means of 2 neighbouring voxels along each chosen axis, which must be even."""
    half = array
    if axes[2]:
        half = half[:, :, 0::2] + half[:, :, 1::2]
    if axes[1]:
        half = half[:, 0::2] + half[:, 1::2]
    if axes[0]:
        half = half[0::2] + half[1::2]
    if any(axes):
        half *= np.float32(0.5 ** sum(map(bool, axes)))
    return half


def doubled(array: Array, z: int, axes: Sequence[bool] = (True, True, True)) -> Array:
    """Return plane ``z`` of an array enlarged twice along the chosen axes, interpolated.

    Parameters
    ----------
    array : ndarray of float32, shape (z, y, x)
        Made by :func:`halved`: voxel ``i`` covers voxels ``2 i`` and ``2 i + 1``.
    z : int
        Plane of the enlarged array.
    axes : three bools
        As given to :func:`halved`.

    Returns
    -------
    ndarray of float32, shape (2 y, 2 x) if these axes were chosen
        May be the array's own plane: not to be written to.
    """
    plane: Array = array[z // 2 if axes[0] else z]
    if axes[0]:
        beside = min(max(z // 2 + (1 if z % 2 else -1), 0), array.shape[0] - 1)
        plane = np.float32(0.75) * plane + np.float32(0.25) * array[beside]
    if axes[1]:
        plane = _doubled_rows(plane)
    return _doubled_rows(plane.T).T if axes[2] else plane


def _doubled_rows(plane: Array) -> Array:
    """Return a plane with twice the rows, interpolated."""
    padded = _padded(plane, 1, 0)
    near = np.float32(0.75) * plane
    far = np.float32(0.25) * padded
    out = np.empty((2 * plane.shape[0], plane.shape[1]), dtype=np.float32)
    np.add(near, far[:-2], out=out[0::2])
    np.add(near, far[2:], out=out[1::2])
    return out
