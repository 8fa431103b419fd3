"""Grey values of a whole volume, looked at once: normalisation, and where there is nothing.

The coarsest level shows where tissue is. Mean and spread come from small blocks of the *finest*
level there: averaging on the way to a coarse level takes noise and thin axons away, and networks
were trained with both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.axons.source import Source
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.blocks import Intensity, Normalisation
from napari_openmedlab.models.contract import Monitor

__all__ = ["Background", "Survey", "survey"]

_LARGEST_COARSE = 24_000_000  # voxels of a coarse level that is held in memory
_SAMPLE = (8, 48, 48)  # voxels of a sampled block
_PLACES = (6, 3, 3)  # sampled blocks along z, y, x
_ABOVE_DARK = 0.15  # of the way from the dark level to tissue: below, there is nothing
_GLARE = 10.0  # times as bright as tissue: an injection site, which tells nothing of tissue
_BINS = 512
_SMALL_PART = 0.1  # of a volume: brighter parts smaller than this need not be all its tissue
_APART = 6.0  # standard deviations of the darker part
_NO_NOISE = 6.0  # standard deviations of noise: what lies farther from the median is a thing
_SEEN_IN = 0.05  # of all cubes
_CUBE = 8  # voxels
_PER_STEP = 1.048  # deviation of Gaussian noise, per median step between two voxels


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes
    ----------
    intensity : Intensity
    empty_below : float
        Coarse grey values below this are background.
    coarse : int
        Number of the coarse level that was used, counted in ``Source.levels``; -1: none.
    """

    intensity: Intensity
    empty_below: float
    coarse: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def survey(source: Source, region: Box, mode: Normalisation, monitor: Monitor) -> Survey:
    """Look at a region of a volume; reads the coarse level and 54 small blocks.

    Parameters
    ----------
    source : Source
    region : Box
        Inside the volume.
    mode : {"volume", "block", "plane"}
        How blocks shall be normalised.
    monitor : Monitor

    Returns
    -------
    Survey
        Robust: the brightest and darkest thousandth count as the value at that limit.
    """
    monitor.step(0, 0, "looking at grey values")
    number = _coarse_level(source)
    samples = _samples(source, region, monitor)
    means = _coarse_values(source, number, region) if number >= 0 else _means(samples)
    cubes = [cube for block in samples for cube in _cubes(block)]
    dark = float(np.percentile(means, 0.5))
    typical = _tissue(means, cubes)
    empty_below = dark + _ABOVE_DARK * (typical - dark)
    # A quarter of the voxels may be dark by noise; more, and the cube lies across a border.
    tissue = [cube for cube in cubes if np.percentile(cube, 25) >= empty_below] or cubes
    noise = _noise(tissue)
    glaring = max(dark + _GLARE * (typical - dark), typical + 3 * _GLARE * noise)
    tissue = [cube for cube in tissue if cube.mean() <= glaring] or tissue
    values = np.concatenate([cube.ravel() for cube in tissue]).astype(np.float64)
    low, high = np.percentile(values, [0.1, 99.9])
    np.clip(values, low, high, out=values)
    intensity = Intensity(
        mode=mode,
        centre=float(values.mean()),
        spread=max(float(values.std()), 1e-6),
        dark=dark,
        low=float(low),
        high=float(max(high, low + 1e-6)),
        noise=noise,
    )
    return Survey(intensity, float(empty_below), number)


class Background:
    """Says of blocks whether they hold nothing but background.

    Parameters
    ----------
    source : Source
    found : Survey
    """

    def __init__(self, source: Source, found: Survey) -> None:
        self._limit = found.empty_below
        self._coarse: NDArray[Any] | None = None
        self._ratio = np.ones(3)
        if found.coarse >= 0:
            self._coarse = source.read_level(found.coarse)
            self._ratio = np.array(source.shape) / np.array(self._coarse.shape)

    @property
    def ahead(self) -> bool:
        """Whether it can tell without reading the block."""
        return self._coarse is not None

    def is_empty(self, box: Box) -> bool:
        """Return whether the coarse level shows nothing in a box; needs :attr:`ahead`."""
        assert self._coarse is not None
        low = np.floor(np.array(box.start) / self._ratio).astype(int)
        high = np.ceil(np.array(box.stop) / self._ratio).astype(int)
        coarse = Box(tuple(low), tuple(np.maximum(high, low + 1))).clip(self._coarse.shape)
        return not coarse.is_empty and float(self._coarse[coarse.slices].max()) < self._limit

    def looks_empty(self, block: NDArray[Any]) -> bool:
        """Return the same of a block's own voxels, for volumes without coarser levels."""
        z, y, x = (n // 4 * 4 for n in block.shape)
        if min(z, y, x) == 0:
            return float(block.max()) < self._limit
        means = block[:z, :y, :x].reshape(z // 4, 4, y // 4, 4, x // 4, 4)
        return float(means.mean(axis=(1, 3, 5), dtype=np.float32).max()) < self._limit


def _coarse_level(source: Source) -> int:
    """Return the finest level that fits into memory and is at least four times coarser."""
    fitting = [
        n
        for n, level in enumerate(source.levels)
        if prod(level.geometry.shape) <= _LARGEST_COARSE
        and prod(source.shape) >= 16 * prod(level.geometry.shape)
    ]
    return fitting[0] if fitting else len(source.levels) - 1 if _small(source) else -1


def _small(source: Source) -> bool:
    return bool(source.levels) and prod(source.levels[-1].geometry.shape) <= _LARGEST_COARSE


def _coarse_values(source: Source, number: int, region: Box) -> NDArray[np.float64]:
    coarse = source.levels[number].geometry.shape
    ratio = np.array(source.shape) / np.array(coarse)
    low = np.floor(np.array(region.start) / ratio).astype(int)
    high = np.maximum(np.ceil(np.array(region.stop) / ratio).astype(int), low + 1)
    box = Box(tuple(low), tuple(high)).clip(coarse)
    return source.read_level(number, box).astype(np.float64).ravel()


def _samples(source: Source, region: Box, monitor: Monitor) -> list[NDArray[Any]]:
    """Return small blocks spread over the region, the first and last at its ends."""
    starts = [
        sorted({round(s) for s in np.linspace(a, max(a, b - n), count)})
        for a, b, n, count in zip(region.start, region.stop, _SAMPLE, _PLACES, strict=True)
    ]
    samples = []
    for z, y, x in product(*starts):
        monitor.step(0, 0, "looking at grey values")
        low = (z, y, x)
        high = tuple(min(a + n, b) for a, n, b in zip(low, _SAMPLE, region.stop, strict=True))
        samples.append(source.read(Box(low, (high[0], high[1], high[2]))))
    return samples


def _means(samples: list[NDArray[Any]]) -> NDArray[np.float64]:
    """Return means of small cubes: what a coarse level would show."""
    return np.array([c.mean(dtype=np.float64) for block in samples for c in _cubes(block)])


def _cubes(block: NDArray[Any]) -> Iterator[NDArray[Any]]:
    z, y, x = (max(1, n // _CUBE) for n in block.shape)
    for part in np.array_split(block, z):
        for rows in np.array_split(part, y, axis=1):
            yield from np.array_split(rows, x, axis=2)


def _noise(cubes: list[NDArray[Any]]) -> float:
    """Return the standard deviation of noise, from differences of neighbours along x.

    Pairs of equal voxels don't count: in volumes whose background was taken off, most are 0.
    """
    steps = np.concatenate([np.diff(c.astype(np.float64), axis=2).ravel() for c in cubes])
    steps = np.abs(steps[steps != 0.0])
    return float(np.median(steps)) * _PER_STEP if len(steps) else 0.0


def _tissue(means: NDArray[np.float64], cubes: list[NDArray[Any]]) -> float:
    """Return the median of what is brighter than the background.

    Otsu's threshold may split off something small and very bright instead: an injection site, a
    pipette. Then what lies below is split again, if it has two parts that lie well apart. If not,
    it is either the background of a small piece of tissue, which is mere noise, or all tissue.
    """
    threshold = _otsu(means)
    while np.mean(means > threshold) < _SMALL_PART:
        rest = means[means <= threshold]
        lower = _otsu(rest)
        if not _apart(rest, lower):
            if _structured([cube for cube in cubes if cube.mean() <= threshold]):
                return float(np.median(rest))
            break
        threshold = lower
    above = means[means > threshold]
    return float(np.median(above if len(above) else means))


def _structured(cubes: list[NDArray[Any]]) -> bool:
    """Return whether there is more than noise in some of the cubes."""
    if not cubes or not (noise := _noise(cubes)):
        return False
    limit = _NO_NOISE * noise
    seen = [np.count_nonzero(np.abs(cube - np.median(cube)) > limit) >= 3 for cube in cubes]
    return float(np.mean(seen)) >= _SEEN_IN


def _otsu(means: NDArray[np.float64]) -> float:
    """Return Otsu's threshold, the outermost thousandths counted as what lies beside them."""
    low, high = np.percentile(means, [0.1, 99.9])
    if high <= low:
        return float(low)
    counts, edges = np.histogram(np.clip(means, low, high), _BINS)
    centres = (edges[1:] + edges[:-1]) / 2
    weight = np.cumsum(counts)
    total = np.cumsum(counts * centres)
    above = weight[-1] - weight
    with np.errstate(divide="ignore", invalid="ignore"):
        between = weight * above * (total / weight - (total[-1] - total) / above) ** 2
    return float(centres[int(np.nanargmax(between[:-1]))])


def _apart(means: NDArray[np.float64], threshold: float) -> bool:
    """Return whether a threshold parts two things: halves of noise lie 3 deviations apart."""
    low, high = means[means <= threshold], means[means > threshold]
    return bool(len(high)) and float(high.mean() - low.mean()) > _APART * float(low.std())
