"""Bright thin tubes against their background: a filter for machines without weights.

The score of a voxel is

``r = t (G0.7 - G3) / G10``, mapped to ``r / (r + 0.15)``

where ``Gs`` is the volume smoothed with a Gaussian of ``s`` voxels and ``t`` (0 to 1) says how
tube-like the place is (:mod:`.shape`). So 0.5 stands for ``r = 0.15``, and a threshold can be moved
from ``r = 0.05`` (score 0.25) upwards without a new run. Where voxels are longer along one axis, as
along z in most light-sheet volumes, ``s`` counts voxels of the finest axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.models.engines.axon_filter.shape import weaken_others
from napari_openmedlab.models.engines.axon_filter.smoothing import (
    doubled,
    gaussian_weights,
    halved,
    smooth,
)

__all__ = [
    "ALIGNMENT",
    "BYTES_PER_VOXEL",
    "HALO",
    "FilterSettings",
    "ratio_of",
    "relative_sizes",
    "score_block",
]

ALIGNMENT = 8
"""Cores and halos have to be multiples of this: the background is made of 8 x 8 x 8 means."""

HALO = 24
"""Voxels around a core beyond which nothing changes its scores; a multiple of the alignment."""

BYTES_PER_VOXEL = 30
"""Memory while a block is scored, per voxel of core and halo, the block itself left out."""

_MIDDLE = 0.15  # r whose score is 0.5
_FINE, _COARSE, _BACKGROUND = 0.7, 2.84, 10.4  # sigmas in voxels; means over bins add the rest
_COARSE_REACH, _BACKGROUND_REACH = 8, 16
_LEVELS = 3  # bins of 2, 4 and 8 voxels
_LONGEST = 8.0  # a longer voxel is taken for one of this length

Axes = tuple[bool, bool, bool]


@dataclass(frozen=True)
class FilterSettings:
    """What may be changed.

    Attributes
    ----------
    shape : bool
        Weaken what is not a tube: flat borders of bright tissue, round blobs.
    dark : float
        Grey value taken off the background; 0 for raw camera values.
    floor : float
        The least background, in grey values above ``dark``: keeps noise in empty places low.
    lowest : float
        Ratios below this get the score 0.
    sizes : tuple of float
        How long a voxel is along z, y and x, the shortest being 1: see :func:`relative_sizes`.
    """

    shape: bool = True
    dark: float = 0.0
    floor: float = 1.0
    lowest: float = 0.05
    sizes: tuple[float, float, float] = (1.0, 1.0, 1.0)


def relative_sizes(spacing: Sequence[float]) -> tuple[float, float, float]:
    """Return how long a voxel (z, y, x) is along each axis, the shortest being 1; at most 8."""
    z, y, x = (min(float(s) / min(spacing), _LONGEST) for s in spacing)
    return z, y, x


def ratio_of(score: float) -> float:
    """Return the ratio of tube to background that a score in (0, 1) stands for."""
    return _MIDDLE * score / (1.0 - score)


def score_block(block: NDArray[Any], settings: FilterSettings | None = None) -> NDArray[np.float32]:
    """Return how much each voxel looks like part of a bright thin tube.

    Parameters
    ----------
    block : ndarray of any real dtype, shape (z, y, x)
        Grey values; beyond the block its edges are repeated.
    settings : FilterSettings, optional

    Returns
    -------
    ndarray of float32, shape of the block
        0 to 1; 0.5 is the filter's own threshold. Bit for bit what a larger block gives,
        ``HALO`` voxels away from the borders, if both begin at the same place modulo
        ``ALIGNMENT``.
    """
    settings = settings or FilterSettings()
    shape = block.shape
    image = _whole_bins(block)
    fine = smooth(image, [gaussian_weights(_FINE / k, 2) for k in settings.sizes])
    halvings = _halvings(settings.sizes)
    axes = halvings[0]
    half = halved(image, axes)
    del image
    background = _background(half, settings.sizes, halvings)
    background -= np.float32(settings.dark)
    np.maximum(background, np.float32(max(settings.floor, 1e-6)), out=background)
    around = _blurred(half, _COARSE, _COARSE_REACH, _bins(settings.sizes, halvings[:1]))
    del half
    ratio = _ratios(fine, around, background, axes, settings.lowest)
    del around
    if settings.shape:
        weaken_others(fine, ratio, background, axes, settings.lowest, settings.sizes)
    score = ratio[: shape[0], : shape[1], : shape[2]]
    score /= score + np.float32(_MIDDLE)
    return np.ascontiguousarray(score)


def _halvings(sizes: Sequence[float]) -> list[Axes]:
    """Return which axes are halved at each level: bins are to be as long along all axes."""
    bins, halvings = list(sizes), []
    for level in range(1, _LEVELS + 1):
        z, y, x = (2 * b <= 2**0.5 * 2**level for b in bins)
        halvings.append((z, y, x))
        bins = [b * (1 + half) for b, half in zip(bins, halvings[-1], strict=True)]
    return halvings


def _bins(sizes: Sequence[float], halvings: Sequence[Axes]) -> list[float]:
    """Return how long the bins are after these halvings, in voxels of the finest axis."""
    return [k * 2 ** sum(level[axis] for level in halvings) for axis, k in enumerate(sizes)]


def _blurred(
    array: NDArray[np.float32], sigma: float, reach: int, bins: Sequence[float]
) -> NDArray[np.float32]:
    weights = [gaussian_weights(sigma / b, max(1, round(reach / b))) for b in bins]
    return smooth(array, weights)


def _whole_bins(block: NDArray[Any]) -> NDArray[np.float32]:
    """Return the block as float32, its far ends repeated to a multiple of the alignment.

    What is not a number counts as 0.
    """
    fill = [(0, -n % ALIGNMENT) for n in block.shape]
    image = block.astype(np.float32, order="C")  # pieces are written through flat views
    if block.dtype.kind == "f":
        np.nan_to_num(image, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return np.pad(image, fill, mode="edge") if any(n for _, n in fill) else image


def _ratios(
    fine: NDArray[np.float32],
    around: NDArray[np.float32],
    background: NDArray[np.float32],
    axes: Axes,
    lowest: float,
) -> NDArray[np.float32]:
    """Return the difference of Gaussians over the background; 0 below the lowest of interest."""
    ratio = np.empty_like(fine)
    for z in range(fine.shape[0]):
        np.subtract(fine[z], doubled(around, z, axes), out=ratio[z])
        ratio[z] /= doubled(background, z, axes)
        ratio[z][ratio[z] < lowest] = 0.0
    return ratio


def _background(
    half: NDArray[np.float32], sizes: Sequence[float], halvings: Sequence[Axes]
) -> NDArray[np.float32]:
    """Return the background at the resolution of ``half``, from means of 8 x 8 x 8 voxels."""
    coarse = half
    for axes in halvings[1:]:
        coarse = halved(coarse, axes)
    coarse = _blurred(coarse, _BACKGROUND, _BACKGROUND_REACH, _bins(sizes, halvings))
    for axes in reversed(halvings[1:]):
        planes = coarse.shape[0] * (1 + axes[0])
        coarse = np.stack([doubled(coarse, z, axes) for z in range(planes)])
    return coarse
