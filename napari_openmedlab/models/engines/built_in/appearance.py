"""What the object looks like against its surroundings: noise level and intensity histograms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi

__all__ = ["Bins", "log_ratio", "make_bins", "noise_level"]

Floats = NDArray[np.float32]

#: Median of |a - b| for two draws of unit Gaussian noise.
MEDIAN_STEP = 0.954


def noise_level(image: Floats) -> float:
    """Return the standard deviation of the noise, from the median step between neighbours."""
    steps = [np.abs(np.diff(image, axis=a)).ravel() for a in range(3) if image.shape[a] > 1]
    span = float(np.ptp(image))
    if not steps or span == 0:
        return 1e-6
    return float(np.median(np.concatenate(steps))) / MEDIAN_STEP + 1e-3 * span


@dataclass(frozen=True)
class Bins:
    """Histogram bin of every voxel.

    Attributes
    ----------
    index : ndarray of int, shape (z, y, x)
    count : int
        Number of bins.
    blur : float
        Standard deviation, in bins, by which histograms are smoothed (the noise level).
    """

    index: NDArray[np.intp]
    count: int
    blur: float


def make_bins(image: Floats, sample: Floats, noise: float) -> Bins:
    """Bin intensities in steps of half the noise over the .2 to 99.8 percentile of a sample."""
    low, high = np.percentile(sample, [0.2, 99.8])
    count = int(np.clip((high - low) / (noise / 2) + 1, 16, 256))
    width = (high - low) / (count - 1) + 1e-6
    index = np.rint(np.clip((image - low) / width, 0, count - 1)).astype(np.intp)
    return Bins(index, count, max(0.7, noise / width))


def log_ratio(
    bins: Bins, inside: Floats, outside: Floats, uniform: float = 0.05
) -> NDArray[np.float64]:
    """Return log p(bin | object) - log p(bin | surroundings) per bin.

    Parameters
    ----------
    inside, outside : ndarray of float32, shape (z, y, x)
        Weight of each voxel as a sample of the object and of its surroundings.
    uniform : float
        Share of a uniform distribution mixed into both.
    """
    logs = []
    for weight in (inside, outside):
        used = weight > 0
        counts = np.bincount(bins.index[used], weights=weight[used], minlength=bins.count)
        smooth = ndi.gaussian_filter1d(counts, bins.blur, mode="nearest")
        logs.append(np.log((1 - uniform) * smooth / (smooth.sum() + 1e-12) + uniform / bins.count))
    return np.asarray(logs[0] - logs[1])
