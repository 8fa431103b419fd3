"""What several templates say of one structure becomes one box, or none, with a confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.extreme_points import box_of_walls
from napari_openmedlab.geometry.prompts import as_point
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.models.engines.atlas.working import to_world
from napari_openmedlab.models.localisation import WALLS, Found

__all__ = ["Guess", "fuse", "nowhere"]

LEAST_INSIDE = 0.5
"""Part of the box that must lie in the scan."""
LEAST_LIKENESS = 0.1
"""Correlation of the surroundings below which nothing there looks like the templates."""
_SURE_LIKENESS = 0.85
_SPREAD_MM = 15.0  # disagreement of templates at which confidence has fallen to a third
_ONE_TEMPLATE = 0.75  # with a single template nothing can disagree


@dataclass(frozen=True, eq=False)
class Guess:
    """What one template says.

    Attributes
    ----------
    points : ndarray of float64, shape (6, 3)
        Upright mm in the scan, order of ``WALLS``.
    likeness : float
        Correlation around the structure once the scans are aligned, -1 to 1.
    """

    points: NDArray[np.float64]
    likeness: float


def nowhere(name: str, note: str, templates: int = 0, **checks: float) -> Found:
    """Return the answer for a structure that was not found, and why."""
    empty = Box((0, 0, 0), (0, 0, 0))
    return Found(name, empty, (), 0.0, False, templates, checks, (note,))


def fuse(name: str, guesses: Sequence[Guess], geometry: Geometry) -> Found:
    """Return one structure from what the templates say.

    Each coordinate of each point is the median over the templates, weighted by how much the
    surroundings look alike.
    """
    if not guesses:
        return nowhere(name, "no template that has it could be laid over this scan")
    likeness = np.array([each.likeness for each in guesses])
    weights = np.clip(likeness, 0.05, 1) ** 4
    stack = np.stack([each.points for each in guesses])
    points = _median(stack, weights)
    spread = _spread(stack, points, weights)
    world = to_world(points)
    inside = _part_inside(world, geometry)
    alike = float((weights * likeness).sum() / weights.sum())
    checks = {"likeness": alike, "inside": inside, "spread_mm": spread}
    used = len(guesses)
    box = box_of_walls(world, geometry)
    if inside < LEAST_INSIDE or box.is_empty:
        note = f"it seems to lie outside this scan ({inside:.0%} of its box is inside)"
        return nowhere(name, note, used, **checks)
    if alike < LEAST_LIKENESS:
        note = "nothing at its place looks like it does in the templates"
        return nowhere(name, note, used, **checks)
    agree = np.exp(-((spread / _SPREAD_MM) ** 2)) if used > 1 else _ONE_TEMPLATE
    sure = np.clip((alike - LEAST_LIKENESS) / (_SURE_LIKENESS - LEAST_LIKENESS), 0.02, 1)
    confidence = float(agree * sure * np.clip(inside, 0, 1))
    notes = () if inside > 0.97 else ("it reaches the edge of the scan and may be cut off there",)
    return Found(
        name,
        box,
        tuple(as_point(p) for p in world),
        confidence,
        True,
        used,
        checks,
        notes,
    )


def _median(stack: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weighted median over the first axis; the mean of two where the weight halves."""
    order = np.argsort(stack, axis=0, kind="stable")
    values = np.take_along_axis(stack, order, axis=0)
    share = np.cumsum(weights[order], axis=0) / weights.sum()
    low = (share < 0.5 - 1e-9).sum(axis=0)
    high = (share <= 0.5 + 1e-9).sum(axis=0).clip(max=len(stack) - 1)
    pair = [np.take_along_axis(values, k[None], axis=0)[0] for k in (low, high)]
    middle: NDArray[np.float64] = (pair[0] + pair[1]) / 2
    return middle


def _spread(
    stack: NDArray[np.float64], points: NDArray[np.float64], weights: NDArray[np.float64]
) -> float:
    """Return how far the templates' walls lie apart, mm (weighted mean over walls)."""
    walls = np.arange(len(WALLS))
    gaps = np.abs(stack[:, walls, walls % 3] - points[walls, walls % 3]).mean(axis=1)
    return float((gaps * weights).sum() / weights.sum())


def _part_inside(world: NDArray[np.float64], geometry: Geometry) -> float:
    """Return which part of the box between the walls lies in the scan."""
    index = geometry.to_index(world)
    low, high = index.min(axis=0), index.max(axis=0)
    whole = np.maximum(high - low, 1e-6)
    limits = np.array(geometry.shape) - 0.5
    kept = np.clip(np.minimum(high, limits) - np.maximum(low, -0.5), 0, None)
    return float(np.prod(kept / whole))
