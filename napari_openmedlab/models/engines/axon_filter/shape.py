"""How tube-like a place is, from the second derivatives of the smoothed image.

Along a bright tube's axis the light changes little, across it falls off in both directions. At a
flat border it falls off in one direction only, in a ball in all three (Sato et al., "Three-
dimensional multi-scale line filter for segmentation and visualization of curvilinear structures
in medical images", Medical Image Analysis 1998).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.models.engines.axon_filter.smoothing import gaussian_weights, smooth

__all__ = ["derivatives", "weaken_others"]

_SIGMA = 1.2  # on top of 0.7: 1.4 voxels altogether, fit for tubes 2 to 4 voxels thick
_SCALE = 1.4
_GAIN = 3.5  # on the centre-lines of drawn tubes the fall is 0.24 to 0.39 of the ratio
_PROFILE = 2.5  # variance of a tube smoothed by 1.4 voxels
_PIECE = 1 << 16  # voxels at a time


def weaken_others(
    fine: NDArray[np.float32],
    ratio: NDArray[np.float32],
    background: NDArray[np.float32],
    axes: Sequence[bool],
    lowest: float,
    sizes: Sequence[float] = (1.0, 1.0, 1.0),
) -> None:
    """Weaken in place the ratios of voxels that lie in no tube.

    Parameters
    ----------
    fine : ndarray of float32, shape (z, y, x)
        The image smoothed by 0.7 voxels.
    ratio : ndarray of float32, shape (z, y, x)
        Only voxels above 0 are looked at.
    background : ndarray of float32
        What the ratios were divided by, at half the resolution along the axes chosen.
    axes : three bools
        Those axes.
    lowest : float
        What falls below becomes 0.
    sizes : three floats
        How long a voxel is along z, y and x, the shortest being 1.

    Notes
    -----
    With eigenvalues ``l1 <= l2 <= l3`` of the second derivatives and gradient ``g`` at ``s = 1.4``
    voxels, a place is as tube-like as ``3.5 (-l2 s^2 - g s / 2) / background`` compared with its
    ratio: the light falls off in two directions, and as fast on either side. Beside a step the
    gradient outweighs the curvature, so borders and balls vanish. In a ball's middle ``l3`` is as
    strong as ``l1``. Each voxel takes the best of itself and its 6 neighbours, so that tubes keep
    their thickness.
    """
    wide = smooth(fine, [gaussian_weights(_SIGMA / k, max(1, round(3 / k))) for k in sizes])
    likeness = np.zeros_like(ratio)
    places = np.flatnonzero(ratio)
    for start in range(0, len(places), _PIECE):
        some = places[start : start + _PIECE]
        low, middle, high, slope = derivatives(wide, some, sizes)
        fall = -middle * np.float32(_SCALE**2) - np.float32(0.5 * _SCALE) * slope
        at = np.unravel_index(some, ratio.shape)
        bins = tuple(n // 2 if half else n for n, half in zip(at, axes, strict=True))
        amplitude = ratio.reshape(-1)[some] * background[bins]
        round_ = np.clip(high / np.minimum(low, np.float32(-1e-12)), 0.0, 1.0)
        tube = np.clip(np.float32(_GAIN) * fall / amplitude, 0.0, 1.0)
        likeness.reshape(-1)[some] = tube * np.clip(2.0 - 2.0 * round_, 0.0, 1.0)
    for z in range(ratio.shape[0]):
        ratio[z] *= _best_around(likeness, z)
        ratio[z][ratio[z] < lowest] = 0.0


def _best_around(values: NDArray[np.float32], z: int) -> NDArray[np.float32]:
    """Return for each voxel of a plane the largest value of itself and its 6 neighbours."""
    best: NDArray[np.float32] = values[z].copy()
    for other in (z - 1, z + 1):
        if 0 <= other < values.shape[0]:
            np.maximum(best, values[other], out=best)
    plane = values[z]
    np.maximum(best[1:], plane[:-1], out=best[1:])
    np.maximum(best[:-1], plane[1:], out=best[:-1])
    np.maximum(best[:, 1:], plane[:, :-1], out=best[:, 1:])
    np.maximum(best[:, :-1], plane[:, 1:], out=best[:, :-1])
    return best


def derivatives(
    image: NDArray[np.float32],
    places: NDArray[np.intp],
    sizes: Sequence[float] = (1.0, 1.0, 1.0),
) -> tuple[NDArray[np.float32], ...]:
    """Return eigenvalues of the second derivatives, smallest first, and the gradient's length.

    Parameters
    ----------
    image : ndarray of float32, shape (z, y, x)
    places : ndarray of int
        Flat indices; at the image's border the derivative of the voxel next to it is taken.
    sizes : three floats
        How long a voxel is along z, y and x, the shortest being 1.

    Notes
    -----
    Closed form for symmetric 3 x 3 matrices (O. K. Smith, Communications of the ACM 1961).
    Differences over long voxels fall short of the derivative; they are scaled so that a Gaussian
    of the variance of a smoothed tube has the same second difference along every axis.
    """
    depth, height, width = image.shape
    z, rest = np.divmod(places, height * width)
    y, x = np.divmod(rest, width)
    for index, size in ((z, depth), (y, height), (x, width)):
        np.clip(index, 1, max(size - 2, 0), out=index)
    if min(image.shape) < 3:
        zero = np.zeros(len(places), dtype=np.float32)
        return zero, zero, zero, zero
    flat = image.reshape(-1)
    here = (z * height + y) * width + x
    steps = (height * width, width, 1)
    centre = np.float32(2.0) * flat[here]
    per = [_per_step(k) for k in sizes]
    pure = [
        (flat[here - s] + flat[here + s] - centre) * (p * p)
        for s, p in zip(steps, per, strict=True)
    ]
    mixed = [
        np.float32(0.25)
        * (per[i] * per[j])
        * (flat[here + a + b] + flat[here - a - b] - flat[here + a - b] - flat[here - a + b])
        for i, j in ((0, 1), (0, 2), (1, 2))
        for a, b in [(steps[i], steps[j])]
    ]
    slopes = [
        np.float32(0.5) * p * (flat[here + s] - flat[here - s])
        for s, p in zip(steps, per, strict=True)
    ]
    slope = np.sqrt(slopes[0] ** 2 + slopes[1] ** 2 + slopes[2] ** 2)
    return (*_eigenvalues(pure, mixed), slope)


def _per_step(size: float) -> np.float32:
    """Return what a difference between voxels of a length counts; 1 for the length 1."""
    fall = -np.expm1(-0.5 * np.array((1.0, size)) ** 2 / _PROFILE)
    return np.float32(np.sqrt(fall[0] / fall[1]))


def _eigenvalues(
    pure: list[NDArray[np.float32]], mixed: list[NDArray[np.float32]]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    zz, yy, xx = pure
    zy, zx, yx = mixed
    mean = (zz + yy + xx) / np.float32(3)
    a, b, c = zz - mean, yy - mean, xx - mean
    off = zy * zy + zx * zx + yx * yx
    spread = np.sqrt((a * a + b * b + c * c + 2 * off) / np.float32(6))
    spread = np.maximum(spread, np.float32(1e-12))
    half_det = (a * (b * c - yx * yx) - zy * (zy * c - yx * zx) + zx * (zy * yx - b * zx)) / (
        2 * spread**3
    )
    angle = np.arccos(np.clip(half_det, -1.0, 1.0)) / np.float32(3)
    high = mean + 2 * spread * np.cos(angle)
    low = mean + 2 * spread * np.cos(angle + np.float32(2 * np.pi / 3))
    return low, 3 * mean - high - low, high
