"""Bright thin tubes against their background: a filter for machines without weights.

The score of a voxel is

``r = t (G0.7 - G3) / G10``, mapped to ``r / (r + 0.15)``

where ``Gs`` is the volume smoothed with a Gaussian of ``s`` voxels and ``t`` (0 to 1) says how
tube-like the place is (:mod:`.shape`). So 0.5 stands for ``r = 0.15``, and a threshold can be moved
from ``r = 0.05`` (score 0.25) upwards without a new run.
"""

from __future__ import annotations

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

__all__ = ["ALIGNMENT", "BYTES_PER_VOXEL", "HALO", "FilterSettings", "ratio_of", "score_block"]

ALIGNMENT = 8
"""Cores and halos have to be multiples of this: the background is made of 8 x 8 x 8 means."""

HALO = 24
"""Voxels around a core beyond which nothing changes its scores; a multiple of the alignment."""

BYTES_PER_VOXEL = 28
"""Memory while a block is scored, per voxel of core and halo, the block itself left out."""

_MIDDLE = 0.15  # r whose score is 0.5
_FINE, _COARSE_BINS, _BACKGROUND_BINS = 0.7, 1.42, 1.3  # sigmas: voxels, bins of 2, bins of 8


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
    """

    shape: bool = True
    dark: float = 0.0
    floor: float = 1.0
    lowest: float = 0.05


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
    fine = smooth(image, (gaussian_weights(_FINE, 2),) * 3)
    half = halved(image)
    del image
    background = _background(half)
    background -= np.float32(settings.dark)
    np.maximum(background, np.float32(max(settings.floor, 1e-6)), out=background)
    ratio = _ratios(fine, half, background, settings.lowest)
    if settings.shape:
        weaken_others(fine, ratio, background, settings.lowest)
    score = ratio[: shape[0], : shape[1], : shape[2]]
    score /= score + np.float32(_MIDDLE)
    return np.ascontiguousarray(score)


def _whole_bins(block: NDArray[Any]) -> NDArray[np.float32]:
    """Return the block as float32, its far ends repeated to a multiple of the alignment.

    What is not a number counts as 0.
    """
    fill = [(0, -n % ALIGNMENT) for n in block.shape]
    image = block.astype(np.float32)
    if block.dtype.kind == "f":
        np.nan_to_num(image, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return np.pad(image, fill, mode="edge") if any(n for _, n in fill) else image


def _ratios(
    fine: NDArray[np.float32],
    half: NDArray[np.float32],
    background: NDArray[np.float32],
    lowest: float,
) -> NDArray[np.float32]:
    """Return the difference of Gaussians over the background; 0 below the lowest of interest."""
    around = smooth(half, (gaussian_weights(_COARSE_BINS, 4),) * 3)
    ratio = np.empty_like(fine)
    for z in range(fine.shape[0]):
        np.subtract(fine[z], doubled(around, z), out=ratio[z])
        ratio[z] /= doubled(background, z)
        ratio[z][ratio[z] < lowest] = 0.0
    return ratio


def _background(half: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the background at half the resolution, from means of 8 x 8 x 8 voxels."""
    coarse = halved(halved(half))
    coarse = smooth(coarse, (gaussian_weights(_BACKGROUND_BINS, 2),) * 3)
    for _ in range(2):
        coarse = np.stack([doubled(coarse, z) for z in range(2 * coarse.shape[0])])
    return coarse
