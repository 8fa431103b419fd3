"""Two coarse scans brought into line: by an affine map, then by a smooth field around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_openmedlab.models.engines.atlas.matching import lattice, match
from napari_openmedlab.models.engines.atlas.placing import shifts
from napari_openmedlab.models.engines.atlas.working import Worked, coarser

__all__ = ["Alignment", "align", "correlation", "warped"]

_STIFF = 0.15  # how strongly the affine map is held near a mere shift
_OUTLIER_MM = 14.0
_LIKELY = 0.75  # of the best place's score: those below are not followed up
_SLACK = 0.02  # weight of "no movement" against that of the blocks in the smooth field

Affine = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where upright points of a template lie in a query.

    Attributes
    ----------
    matrix, offset : ndarray
        The affine map, upright mm.
    field : ndarray of float32, shape (3, ...)
        What a template's point moves before the affine map, mm, on ``grid``.
    grid : Worked
        The template's grid that the field lies on.
    score : float
        Normalised correlation of the two scans where both see, after the affine map.
    overlap : float
        Part of the smaller scan that both see.
    """

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]
    field: NDArray[np.float32] | None
    grid: Worked
    score: float
    overlap: float

    def map(self, upright: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return points (N, 3) of the template in the query, upright mm."""
        points = np.asarray(upright, dtype=np.float64)
        if self.field is not None:
            at = self.grid.index(points).T
            moves = [ndimage.map_coordinates(f, at, order=1, mode="nearest") for f in self.field]
            points = points + np.stack(moves, axis=1)
        found: NDArray[np.float64] = points @ self.matrix.T + self.offset
        return found


def align(
    template: Worked, query: Worked, tick: Callable[[], None], *, fine: bool = True
) -> Alignment | None:
    """Return the best alignment found, ``None`` if the two scans share nothing.

    The likeliest places are followed up by affine maps from matched blocks; the best of them is
    refined by smooth fields, first on 8 mm voxels, then on 4 mm.

    Parameters
    ----------
    template, query : Worked
    tick : callable
        Called between steps; raises to cancel.
    fine : bool
        Refine on 4 mm too: about half of the time.
    """
    one, other = coarser(template, 2), coarser(query, 2)
    tried = []
    places = shifts(template, query)
    for shift, likely in places:
        if likely < _LIKELY * places[0][1]:
            break
        tick()
        start: Affine = (np.eye(3), shift)
        for reach in (3, 2):
            start = _affine_step(one, other, start, reach)
        tried.append(_judged(one, other, start))
    if not tried:
        return None
    best = max(tried, key=lambda each: np.arctanh(min(each.score, 0.999)) * each.overlap**0.5)
    place: Affine = (best.matrix, best.offset)
    for _ in range(2):
        tick()
        place = _affine_step(one, other, place, 2)
    best = _judged(one, other, place)
    best = _bent(one, other, best, (4, 2, 3, 24.0), tick)
    return _bent(template, query, best, (5, 3, 3, 16.0), tick) if fine else best


def warped(query: Worked, grid: Worked, alignment: Alignment) -> Worked:
    """Return the query as it looks on the template's grid."""
    shape = grid.image.shape
    if alignment.field is None:
        matrix = alignment.matrix * (grid.step / query.step)
        offset = query.index(alignment.matrix @ grid.origin + alignment.offset)
        image = ndimage.affine_transform(query.image, matrix, offset, shape, order=1)
        seen = ndimage.affine_transform(query.seen, matrix, offset, shape, order=0)
        return Worked(image, seen, grid.origin, grid.step)
    axes = [o + np.arange(n) * grid.step for o, n in zip(grid.origin, shape, strict=True)]
    places = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    index = query.index(alignment.map(places.T)).T.astype(np.float32)
    image = ndimage.map_coordinates(query.image, index, order=1).reshape(shape)
    seen = ndimage.map_coordinates(query.seen, index, order=0).reshape(shape)
    return Worked(image, seen, grid.origin, grid.step)


def _judged(one: Worked, other: Worked, place: Affine) -> Alignment:
    plain = Alignment(place[0], place[1], None, one, 0.0, 0.0)
    moved = warped(other, one, plain)
    both = moved.seen & one.seen
    least = min(int(one.seen.sum()), int(other.seen.sum()))
    overlap = min(1.0, float(np.count_nonzero(both)) / max(1.0, float(least)))
    score = correlation(one.image[both], moved.image[both])
    return Alignment(place[0], place[1], None, one, score, overlap)


def correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the correlation of two lists of values, -1 if one of them is flat."""
    if one.size < 8:
        return -1.0
    a, b = one - one.mean(), other - other.mean()
    bottom = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / bottom) if bottom > 1e-6 else -1.0


def _affine_step(one: Worked, other: Worked, place: Affine, reach: int) -> Affine:
    """Match blocks under an affine map and fit the map anew."""
    moved = warped(other, one, Alignment(place[0], place[1], None, one, 0.0, 0.0))
    axes = lattice(one.image.shape, 4)
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    both = one.seen & moved.seen & ((one.image > 0.1) | (moved.image > 0.1))
    centres = centres[both[tuple(centres.T)]]
    found = match(one, moved, centres, 3, reach)
    keep = found.weights > 0
    if np.count_nonzero(keep) < 12:
        return place
    source = one.origin + found.centres[keep] * one.step
    target = (source + found.shifts[keep] * one.step) @ place[0].T + place[1]
    return _fit(source, target, found.weights[keep], place)


def _fit(
    source: NDArray[np.float64],
    target: NDArray[np.float64],
    weights: NDArray[np.float64],
    place: Affine,
) -> Affine:
    """Fit an affine map; blocks that disagree with the others count less each round."""
    matrix, offset = place
    for round_ in range(4):
        gap = np.linalg.norm(source @ matrix.T + offset - target, axis=1)
        limit = _OUTLIER_MM * (2 if round_ == 0 else 1)
        weight = weights / (1 + (gap / limit) ** 2) ** 2
        total = weight.sum()
        middle, aim = weight @ source / total, weight @ target / total
        a, b = source - middle, target - aim
        spread = (a * weight[:, None]).T @ a / total
        hold = _STIFF * np.eye(3) * np.trace(spread) / 3
        cross = (b * weight[:, None]).T @ a / total
        matrix = (cross + hold) @ np.linalg.inv(spread + hold)
        offset = aim - matrix @ middle
    return matrix, offset


def _bent(
    one: Worked,
    other: Worked,
    start: Alignment,
    sizes: tuple[int, int, int, float],
    tick: Callable[[], None],
) -> Alignment:
    """Add a smooth field: matched blocks, averaged over their surroundings."""
    every, half, reach, smooth = sizes
    tick()
    moved = warped(other, one, start)
    axes = lattice(one.image.shape, every)
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    both = one.seen & moved.seen & (one.image > 0.1)
    wanted = both[tuple(centres.T)]
    found = match(one, moved, centres[wanted], half, reach)
    shape = tuple(len(a) for a in axes)
    weights = np.zeros(len(centres))
    moves = np.zeros((len(centres), 3))
    weights[wanted], moves[wanted] = found.weights, found.shifts * one.step
    sigma = smooth / (every * one.step)
    total = ndimage.gaussian_filter(weights.reshape(shape), sigma) + _SLACK
    at = [(np.arange(n) - int(a[0])) / every for n, a in zip(one.image.shape, axes, strict=True)]
    field = np.empty((3, *one.image.shape), dtype=np.float32)
    grid = np.stack(np.meshgrid(*at, indexing="ij"))
    old = None
    if start.field is not None:  # two small moves one after the other: they add
        places = (one.origin[:, None] + np.indices(one.image.shape).reshape(3, -1) * one.step).T
        index = start.grid.index(places).T
        old = [ndimage.map_coordinates(f, index, order=1, mode="nearest") for f in start.field]
    for axis in range(3):
        push = ndimage.gaussian_filter((weights * moves[:, axis]).reshape(shape), sigma) / total
        field[axis] = ndimage.map_coordinates(push, grid, order=1, mode="nearest")
        if old is not None:
            field[axis] += old[axis].reshape(one.image.shape)
    return Alignment(start.matrix, start.offset, field, one, start.score, start.overlap)
