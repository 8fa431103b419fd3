"""Intensities as grey levels 0 to 255: by the slice, by a window, or by the whole volume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import EngineError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.sam_slices.planes import cut_many

__all__ = ["CT_WINDOW", "MEDLSAM_WINDOW", "Grey", "of_slice", "of_volume", "of_window"]

CT_WINDOW = (-160.0, 240.0)  # HU: level 40, width 400 (soft tissue), as MedSAM's training data
MEDLSAM_WINDOW = (-500.0, 1000.0)  # HU, as MedLSAM published
_PERCENTILES = (0.5, 99.5)  # of the voxels that are not 0: MedSAM's training data other than CT
_BINS = 2**16
_BLOCK = 2**22  # voxels read at a time


@dataclass(frozen=True)
class Grey:
    """A straight line from intensities to grey levels.

    Attributes
    ----------
    low, high : float
        Intensities that become 0 and 255. Equal if there is no contrast: all becomes 0.
    keeps_zero : bool
        Whether an intensity of exactly 0 becomes level 0.
    room : float
        What is added to ``high - low``, relative to it, before division: the largest intensity
        then falls just short of 255 and is cut to 254, as in SAM-Med2D's published images.
    """

    low: float
    high: float
    keeps_zero: bool = False
    room: float = 0.0

    @property
    def is_flat(self) -> bool:
        """Whether there is no contrast at all."""
        return not self.high > self.low

    def __call__(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Return grey levels (fractions cut off); what is no finite number becomes 0."""
        if self.is_flat:
            return np.zeros(values.shape, dtype=np.uint8)
        exact = np.asarray(values, dtype=np.float64)
        exact = np.where(np.isfinite(exact), exact, self.low) if exact.size else exact
        span = (self.high - self.low) * (1.0 + self.room)
        levels = (np.clip(exact, self.low, self.high) - self.low) / span * 255.0
        if self.keeps_zero:
            levels[np.asarray(values) == 0] = 0.0
        return levels.astype(np.uint8)


def of_slice(plane: NDArray[Any]) -> Grey:
    """Return the grey levels of one slice by its own smallest and largest finite value."""
    if not np.issubdtype(plane.dtype, np.floating):
        return Grey(float(plane.min()), float(plane.max()), room=1e-9)
    finite = plane[np.isfinite(plane)]
    if not finite.size:
        return Grey(0.0, 0.0)
    return Grey(float(finite.min()), float(finite.max()), room=1e-9)


def of_window(low: float, high: float) -> Grey:
    """Return the grey levels of a window.

    Raises
    ------
    EngineError
        If the window has no width.
    """
    if not high > low:
        raise EngineError(
            f"the contrast window runs from {low:g} to {high:g}: its upper end must lie above "
            "its lower end (options window_low and window_high)"
        )
    return Grey(low, high)


def of_volume(
    volume: Volume, window: tuple[float, float] | None, monitor: Monitor, *, keeps_zero: bool
) -> Grey:
    """Return grey levels for a whole volume, which is read block by block.

    Parameters
    ----------
    window : (float, float), optional
        Intensities are clipped to these first (CT). Without it they are clipped to the 0.5 and
        99.5 percentiles of the voxels other than 0.
    keeps_zero : bool
        Whether voxels of exactly 0 become level 0.

    Notes
    -----
    After clipping, the smallest and largest value left become 0 and 255. Percentiles of floats
    are exact to 1/65536 of their range.
    """
    if window is None:
        return _by_percentiles(volume, monitor)
    low, high = np.inf, -np.inf
    for block in _blocks(volume, monitor):
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        if low <= window[0] and high >= window[1]:
            break  # as soon as both ends are reached; the first blocks of most scans do
    if not np.isfinite((low, high)).all():
        return Grey(0.0, 0.0)
    low, high = (float(min(max(end, window[0]), window[1])) for end in (low, high))
    return Grey(low, high, keeps_zero=keeps_zero)


def _by_percentiles(volume: Volume, monitor: Monitor) -> Grey:
    low, high = np.inf, -np.inf
    for block in _blocks(volume, monitor):
        low, high = min(low, float(block.min())), max(high, float(block.max()))
    if not low < high:
        return Grey(0.0, 0.0)
    whole = not np.issubdtype(volume.array.dtype, np.floating) and high - low < _BINS
    width = 1.0 if whole else (high - low) / (_BINS - 1)
    counts = np.zeros(_BINS, dtype=np.int64)
    for block in _blocks(volume, monitor):
        bins = ((block[block != 0].astype(np.float64) - low) / width).astype(np.int64)
        counts += np.bincount(bins, minlength=_BINS)[:_BINS]
    if not counts.any():
        return Grey(0.0, 0.0)
    ends = [low + width * _percentile(counts, each) for each in _PERCENTILES]
    return Grey(ends[0], ends[1], keeps_zero=True)


def _percentile(counts: NDArray[np.int64], percent: float) -> float:
    """Return a percentile in bins, straight between two neighbours in rank as NumPy does."""
    ranks = np.cumsum(counts)
    place = percent / 100.0 * (ranks[-1] - 1)
    below, share = int(np.floor(place)), place - np.floor(place)
    first = int(np.searchsorted(ranks, below, side="right"))
    second = int(np.searchsorted(ranks, min(below + 1, ranks[-1] - 1), side="right"))
    return float(first + (second - first) * share)


def _blocks(volume: Volume, monitor: Monitor) -> Iterator[NDArray[Any]]:
    """Yield the finite voxels of a few planes at a time, flat; never an empty block."""
    depth, rows, columns = volume.geometry.shape
    step = max(1, _BLOCK // (rows * columns))
    for start in range(0, depth, step):
        monitor.step(start, depth, "reading intensities")
        block = cut_many(volume, 0, start, min(depth, start + step)).reshape(-1)
        if np.issubdtype(block.dtype, np.floating):
            block = block[np.isfinite(block)]
        if block.size:
            yield block
