"""One answer on the working grid: from marked voxels to the probability of being the object.

The steps (measured one by one in the project's benchmark):

1. links between extreme points give seeds inside the object;
2. histograms of seeds against surroundings say how object-like each intensity is;
3. geodesic distances to seeds and to sure surroundings say on whose side of an edge a voxel is;
4. a random walker settles the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi

from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.engines.built_in.appearance import (
    Bins,
    log_ratio,
    make_bins,
    noise_level,
)
from napari_openmedlab.models.engines.built_in.seeds import (
    PointModel,
    inward_steps,
    link_points,
    point_model,
)
from napari_openmedlab.models.engines.built_in.walker import (
    UNREACHED,
    edge_weights,
    geodesic_distance,
    solve_walker,
)

__all__ = ["Marks", "Solution", "connected_to", "solve"]

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]
Check = Callable[[], None]

#: Links: base cost, so that flat regions still prefer short paths; least gradient that costs.
LINK_BASE, LINK_GRADIENT = 0.2, 0.2
#: A link voxel less likely than this (-log density ratio) is no seed: the path cut a corner.
SEED_UNLIKELY = 2.5
#: Histogram evidence is cut off here: a histogram of fifty seeds knows no more.
EVIDENCE_LIMIT = 4.0
#: Weight of the geodesic ratio (in -.5 .. .5) in the log odds.
GEODESIC_WEIGHT = 10.0
#: Cost of a step without gradient; small, so that edges decide.
GEODESIC_BASE = 0.05
#: Surroundings for sure: as unlikely as this by the point model and by the histograms.
SURE_UNLIKELY, SURE_EVIDENCE = 5.0, -2.0
#: Smoothing before gradients, in finest voxels.
EDGE_SIGMA = 0.6
#: Intensity step, in noise levels, and posterior step over which the walker's coupling fades.
EDGE_NOISE, EDGE_POSTERIOR = 0.7, 0.15
EDGE_FLOOR = 1e-3
#: How firmly a free voxel holds on to its prior, and a seed to its label.
HOLD_FREE, HOLD_SEED = 0.05, 100.0
#: Intensities further than this many spreads from the seeds are all the same "other tissue".
CLIP_SPREADS = 5.0
#: Log odds given to the mask as it stands, and to a click at its own place.
PREVIOUS_ODDS, CLICK_ODDS = 3.0, 8.0
#: Geodesic distance over which a click's push fades.
CLICK_REACH = 5.0
#: Fewer surrounding voxels than this are no sample: the box corners join them.
LEAST_SURROUNDINGS = 200


@dataclass(frozen=True)
class Marks:
    """What is known about the object on the working grid.

    Attributes
    ----------
    box : Box
        The object does not leave this box.
    points : ndarray of int, shape (N, 3)
        Extreme points; N may be 0.
    clicks : ndarray of int, shape (M, 3)
        Places known to be inside, whose intensities are the object's.
    inside, outside : ndarray of bool, shape of the grid
        Voxels known to belong and not to belong.
    blocked : ndarray of bool
        Voxels that can't belong but say nothing about the surroundings (finished neighbours).
    guess : ndarray of bool
        Voxels taken for the object in want of points: a start from a box or a mask.
    previous : ndarray of float32 or None
        Share of each voxel covered by the mask as it stands.
    """

    box: Box
    points: Ints
    clicks: Ints
    inside: Bools
    outside: Bools
    blocked: Bools
    guess: Bools
    previous: Floats | None = None


@dataclass(frozen=True)
class Solution:
    """The answer with what led to it.

    Attributes
    ----------
    probability : ndarray of float32
        Of belonging to the object; 0 outside the box.
    mask : ndarray of bool
        Probability above one half, joined to a seed, without holes.
    seeds : ndarray of bool
    noise : float
    bins : Bins
    evidence : ndarray of float64, shape (bins.count,)
        Log odds of each intensity bin.
    """

    probability: Floats
    mask: Bools
    seeds: Bools
    noise: float
    bins: Bins
    evidence: NDArray[np.float64]


def solve(image: Floats, spacing: NDArray[np.float64], marks: Marks, check: Check) -> Solution:
    """Return the object's probability on the working grid.

    Parameters
    ----------
    image : ndarray of float32, shape (z, y, x)
        Finite intensities.
    spacing : ndarray, shape (3,)
        Voxel size (z, y, x).
    marks : Marks
    check : callable
        Called between steps; raises after a cancel.
    """
    noise = noise_level(image[marks.box.slices])
    unlikely = _unlikeliness(image, marks, noise)
    check()
    seeds = _seeds(image, spacing, marks, unlikely, noise)
    check()
    free = np.zeros(image.shape, bool)
    free[marks.box.slices] = True
    free &= ~marks.blocked
    bins = make_bins(image, image[marks.box.slices], noise)
    evidence = _evidence(bins, seeds, unlikely, marks, free)
    odds = evidence[bins.index]
    likely = np.clip(odds, -EVIDENCE_LIMIT, EVIDENCE_LIMIT).astype(np.float32)
    contrast = _clip_to_seeds(image, seeds, noise)
    sure = ~free | marks.outside | ((unlikely > SURE_UNLIKELY) & (odds < SURE_EVIDENCE) & ~seeds)
    sure &= ~(seeds & free & ~marks.outside)
    walk = _Geodesics(contrast, spacing, noise, marks.box)
    log_odds = likely + _sides(walk, seeds, sure)
    check()
    log_odds += _from_user(walk, marks)
    check()
    weights = _couplings(contrast, spacing, noise, likely)
    probability = _walk(weights, log_odds, seeds, free, marks, check)
    mask = connected_to(probability > 0.5, seeds)
    mask = ndi.binary_fill_holes(mask) & free & ~marks.outside
    return Solution(probability, mask, seeds, noise, bins, evidence)


def connected_to(mask: Bools, seeds: Bools) -> Bools:
    """Return the parts of a mask that touch a seed; the largest part if none does."""
    parts, count = ndi.label(mask)
    if count <= 1:
        return mask
    keep = np.zeros(count + 1, dtype=bool)
    keep[np.unique(parts[seeds & mask])] = True
    keep[0] = False
    if not keep.any():
        keep[1 + int(np.argmax(np.bincount(parts.ravel())[1:]))] = True
    return np.asarray(keep[parts])


def _unlikeliness(image: Floats, marks: Marks, noise: float) -> Floats:
    """Cost of each voxel's intensity under the model of points, clicks or guess."""
    cost: Floats | None = None
    if len(marks.points):
        steps = inward_steps(marks.points)
        cost = point_model(image, marks.points, steps, noise).unlikeliness(image)
    elif marks.guess.any():
        cost = _model_of(image[marks.guess], noise).unlikeliness(image)
    if len(marks.clicks):
        steps = np.zeros_like(marks.clicks)
        clicked = point_model(image, marks.clicks, steps, noise).unlikeliness(image)
        # A click widens the model: what it shows may be another tissue of the same object.
        cost = clicked if cost is None else np.minimum(cost, clicked + 0.5)
    if cost is None:
        cost = _model_of(image[marks.inside], noise).unlikeliness(image)
    return cost


def _model_of(values: Floats, noise: float) -> PointModel:
    """One Gaussian round the median of a sample."""
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    return PointModel(np.array([middle]), np.array([max(1.5 * noise, spread)]))


def _seeds(
    image: Floats, spacing: NDArray[np.float64], marks: Marks, unlikely: Floats, noise: float
) -> Bools:
    """Voxels taken for the object: links, points, guess and what the user marked."""
    seeds = marks.guess.copy()
    if len(marks.points):
        gradient = ndi.gaussian_gradient_magnitude(image, 0.7) / (2 * noise)
        cost = (LINK_BASE + np.maximum(gradient - LINK_GRADIENT, 0) + unlikely).astype(float)
        low, high = marks.points.min(axis=0), marks.points.max(axis=0) + 1
        inner = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        path = link_points(np.ascontiguousarray(cost[inner]), marks.points - low, spacing) + low
        likely = unlikely[tuple(path.T)] < SEED_UNLIKELY
        seeds[tuple(path[likely].T)] = True
        seeds[tuple(marks.points.T)] = True
    seeds |= marks.inside
    seeds &= ~marks.outside & ~marks.blocked
    return seeds


def _evidence(
    bins: Bins, seeds: Bools, unlikely: Floats, marks: Marks, free: Bools
) -> NDArray[np.float64]:
    """Log odds of each intensity bin: seeds and their like neighbours against surroundings."""
    like = ndi.binary_dilation(seeds) & free & (unlikely < SEED_UNLIKELY / 2)
    inside = (seeds | like).astype(np.float32) + marks.inside
    box = np.zeros(free.shape, bool)
    box[marks.box.slices] = True
    outside = (~box).astype(np.float32)
    if np.count_nonzero(outside) < LEAST_SURROUNDINGS:
        outside += _corners(free.shape, marks.box)
    outside += marks.outside
    if marks.previous is not None:
        inside += np.where(marks.outside, 0, marks.previous)
        outside += box & (marks.previous < 0.5) & ~marks.inside
    return log_ratio(bins, inside, outside)


def _corners(shape: tuple[int, ...], box: Box) -> Bools:
    """Voxels outside the ellipsoid that touches the six faces of the box."""
    middle = (np.array(box.start) + np.array(box.stop) - 1) / 2
    half = np.array(box.shape) / 2
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    reach = sum(((g - m) / h) ** 2 for g, m, h in zip(grid, middle, half, strict=True))
    return np.asarray(reach > 1)


def _clip_to_seeds(image: Floats, seeds: Bools, noise: float) -> Floats:
    """Intensities limited to the range round the seeds where edges matter."""
    values = image[seeds]
    middle = float(np.median(values))
    spread = max(1.4826 * float(np.median(np.abs(values - middle))), noise)
    return np.clip(image, middle - CLIP_SPREADS * spread, middle + CLIP_SPREADS * spread)


class _Geodesics:
    """Edge-aware distances inside the box and one voxel round it."""

    def __init__(
        self, contrast: Floats, spacing: NDArray[np.float64], noise: float, box: Box
    ) -> None:
        self._where = box.grow(1).clip(contrast.shape).slices
        gradient = ndi.gaussian_gradient_magnitude(contrast[self._where], EDGE_SIGMA) / noise
        self._cost = (GEODESIC_BASE + gradient).astype(float)
        self._spacing = spacing
        self._shape = contrast.shape

    def __call__(self, sources: Bools) -> Floats:
        """Return distances to the nearest source; far where none lies in the box."""
        out = np.full(self._shape, UNREACHED, np.float32)
        out[self._where] = geodesic_distance(self._cost, sources[self._where], self._spacing)
        return out


def _sides(walk: _Geodesics, seeds: Bools, sure: Bools) -> Floats:
    """Log odds from the ratio of the distances to seeds and to sure surroundings."""
    to_seeds, to_sure = walk(seeds), walk(sure)
    ratio = to_sure / (to_seeds + to_sure + np.float32(1e-6))
    return np.asarray(np.float32(GEODESIC_WEIGHT) * (ratio - np.float32(0.5)), dtype=np.float32)


def _from_user(walk: _Geodesics, marks: Marks) -> Floats:
    """Log odds from the mask as it stands and from what the user marked."""
    odds = np.zeros(marks.inside.shape, np.float32)
    if marks.previous is not None:
        odds += np.float32(PREVIOUS_ODDS) * (2 * marks.previous - 1)
    for marked, sign in ((marks.inside, 1.0), (marks.outside, -1.0)):
        if marked.any():
            odds += np.float32(sign * CLICK_ODDS) * np.exp(-walk(marked) / np.float32(CLICK_REACH))
    return odds


def _walk(
    weights: list[Floats],
    log_odds: Floats,
    seeds: Bools,
    free: Bools,
    marks: Marks,
    check: Check,
) -> Floats:
    """Hold seeds and surroundings, give the rest its prior, and solve the random walker."""
    prior = (1 / (1 + np.exp(-np.clip(log_odds, -15, 15)))).astype(np.float32)
    hold = np.full(free.shape, HOLD_FREE, np.float32)
    never = ~free | marks.outside
    always = (seeds | marks.inside) & ~never
    hold[never | always] = HOLD_SEED
    prior[never], prior[always] = 0.0, 1.0
    probability = solve_walker(weights, hold, prior, check=check)
    probability[never] = 0.0
    return probability


def _couplings(
    contrast: Floats, spacing: NDArray[np.float64], noise: float, likely: Floats
) -> list[Floats]:
    """Weights of neighbours: weak where either the intensity or the tissue changes."""
    smooth = ndi.gaussian_filter(contrast, EDGE_SIGMA * spacing.min() / spacing)
    posterior = ndi.gaussian_filter(1 / (1 + np.exp(-likely)), 0.5)
    by_image = edge_weights(smooth, spacing, EDGE_NOISE * noise, EDGE_FLOOR)
    by_tissue = edge_weights(posterior, spacing, EDGE_POSTERIOR, EDGE_FLOOR)
    return [np.minimum(a, b) for a, b in zip(by_image, by_tissue, strict=True)]
