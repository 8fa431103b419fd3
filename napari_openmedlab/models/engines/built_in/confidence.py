"""How far the answer is to be trusted, judged without knowing the truth."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi

from napari_openmedlab.models.engines.built_in.appearance import Bins
from napari_openmedlab.models.engines.built_in.solver import Solution

__all__ = ["LOW", "estimate", "notes_on", "signs"]

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Start = Literal["points", "box", "click"]

#: Below this estimate the user is told to look twice.
LOW = 0.65
#: Fewer voxels than this can't be judged.
LEAST_VOXELS = 8
#: Steps across the surface are counted up to this many noise levels.
LARGEST_STEP = 6.0
#: Constant and weights of the five signs, and what starting with less than points costs.
CONSTANT = 4.452
WEIGHTS = np.array([0.38, -0.272, -1.518, -2.254, -0.388])
START: dict[Start, float] = {"points": 0.0, "box": -0.434, "click": -1.428}


def estimate(
    image: Floats, spacing: NDArray[np.float64], solution: Solution, start: Start
) -> float:
    """Return an estimate of the Dice overlap with the truth, in [0, 1].

    A logistic function of five signs and of the kind of start; its coefficients were
    fitted to simulated prompts on painted organs and real slices, not on the scan that the
    benchmark judges it on.
    """
    if np.count_nonzero(solution.mask) < LEAST_VOXELS:
        return 0.0
    odds = CONSTANT + START[start] + float(WEIGHTS @ signs(image, spacing, solution))
    return float(1 / (1 + np.exp(-np.clip(odds, -10, 10))))


def notes_on(score: float, is_empty: bool) -> tuple[str, ...]:
    """Return what the user should know about an answer of this score."""
    if is_empty:
        return ("Nothing was found here: move the prompts or add a positive click.",)
    if score < LOW:
        return (f"Low confidence ({score:.2f}): check the mask slice by slice, or add clicks.",)
    return ()


def signs(image: Floats, spacing: NDArray[np.float64], solution: Solution) -> NDArray[np.float64]:
    """Return what hints at a good mask, shape (5,).

    Certainty of the solver inside the mask; mean intensity step across its surface in noise
    levels; share of the surface without a step; likeness of the intensities just outside to
    those inside (Bhattacharyya coefficient); log of surface over volume to the 2/3.
    """
    mask = solution.mask
    certainty = float(np.abs(2 * solution.probability[mask] - 1).mean())
    steps, areas = [], []
    for axis in range(3):
        border = np.diff(mask.astype(np.int8), axis=axis) != 0
        step = np.abs(np.diff(image, axis=axis))[border] / solution.noise
        steps.append(np.minimum(step, LARGEST_STEP))
        areas.append(np.full(step.size, 1 / spacing[axis]))
    step, area = np.concatenate(steps), np.concatenate(areas)
    surface = float(area.sum()) + 1e-9
    ring = ndi.binary_dilation(mask, iterations=2) & ~mask
    volume = float(np.count_nonzero(mask) * spacing.prod())
    return np.array(
        [
            certainty,
            float((step * area).sum()) / surface,
            float(((step < 1) * area).sum()) / surface,
            _likeness(solution.bins, mask, ring),
            float(np.log(surface * spacing.prod() / volume ** (2 / 3))),
        ]
    )


def _likeness(bins: Bins, first: Bools, second: Bools) -> float:
    """Overlap of two intensity distributions, 0 (apart) to 1 (the same)."""
    shares = []
    for mask in (first, second):
        counts = np.bincount(bins.index[mask], minlength=bins.count).astype(float)
        smooth = ndi.gaussian_filter1d(counts, bins.blur, mode="nearest")
        shares.append(smooth / max(float(smooth.sum()), 1e-12))
    return float(np.sqrt(shares[0] * shares[1]).sum())
