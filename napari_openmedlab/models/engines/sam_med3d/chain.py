"""A chain of interactions: which crop each one goes to, and the logits that stand after it.

Pure functions of the steps: the same steps give the same chain, so undo, replay and a second
machine come to the same mask. The network is called through one function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.models.engines.sam_med3d.crops import CROP, Crop, WorkingGrid
from napari_openmedlab.models.engines.sam_med3d.steps import Step

__all__ = ["LOW", "Chain", "CropState", "Decode", "advance", "start_from_mask", "with_mask"]

LOW = 32  # edge of the low-resolution logits
_SCALE = CROP // LOW
_MARGIN = 8  # voxels from an open face within which a click opens a crop of its own
_CERTAIN = 8.0  # logit that stands for a voxel of a mask drawn by hand

_Indices = tuple[tuple[int, int, int], ...]

Decode = Callable[
    [Crop, NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]], NDArray[np.float32]
]
"""Crop, points (n, 3) as crop indices, labels (n,), mask prompt (32, 32, 32) -> logits."""


@dataclass(frozen=True, eq=False)
class CropState:
    """A crop with what the network said last.

    Attributes
    ----------
    crop : Crop
    logits : ndarray of float32, shape (32, 32, 32)
        Raw low-resolution logits, axes (R, A, S); all zero before the first answer, which is
        also how the network is told that there is no mask yet.
    points : tuple of (int, int, int)
        Crop indices of all points so far, and in ``labels`` 1 for inside, 0 for outside.
    labels : tuple of int
    """

    crop: Crop
    logits: NDArray[np.float32]
    points: _Indices = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Chain:
    """All crops opened for one object, in the order in which they were opened."""

    states: tuple[CropState, ...] = ()
    missed: int = 0
    """Negative steps that lay in no crop, and so could change nothing."""


def start_from_mask(grid: WorkingGrid, mask: MaskPatch, step: Step | None) -> Chain:
    """Return a chain whose first crop holds a mask of the scan as its logits.

    The crop is centred on the mask; if the mask is larger than a crop and a step is given, on
    that step.
    """
    low = grid.source.to_world(mask.box.start)
    high = grid.source.to_world(np.array(mask.box.stop) - 1)
    ends = np.sort(grid.to_grid([low, high]), axis=0)
    middle = np.floor(ends.mean(axis=0) + 0.5).astype(int)
    if step is not None and not _holds(grid.crop_around(middle.tolist()), step):
        middle = np.array(grid.nearest(step.centre))
    crop = grid.crop_around(middle.tolist())
    logits = (2 * _share(crop, mask) - 1) * np.float32(_CERTAIN)
    return Chain((CropState(crop, logits),))


def with_mask(chain: Chain, mask: MaskPatch, grid: WorkingGrid, step: Step | None) -> Chain:
    """Return a chain that says what a mask of the scan says, as far as its crops reach.

    Logits stay where their decision agrees with the mask; where it does not (edited by hand, cut
    by a neighbour, made by another engine) the mask is certain. The crops stay too, so nothing
    has to be encoded again, unless none of them holds the step that comes next.
    """
    states = []
    for state in chain.states:
        share = _share(state.crop, mask)
        differs = (share > 0.5) != (state.logits > 0)
        certain = np.where(share > 0.5, np.float32(_CERTAIN), np.float32(-_CERTAIN))
        states.append(replace(state, logits=np.where(differs, certain, state.logits)))
    if step is not None and not any(_holds(state.crop, step) for state in states):
        states += start_from_mask(grid, mask, step).states
    return replace(chain, states=tuple(states))


def advance(
    chain: Chain, step: Step, grid: WorkingGrid, decode: Decode, *, history: bool = False
) -> Chain:
    """Return the chain after one more step.

    The step goes to every crop that holds it; a positive one that lies in none (or close to a
    face beyond which the scan goes on) opens a crop of its own.

    Parameters
    ----------
    history : bool
        Give the network all points so far; otherwise only the newest, as it was trained.
    """
    takers = [n for n, state in enumerate(chain.states) if _holds(state.crop, step)]
    states = list(chain.states)
    if not takers and any(step.positive):
        states.append(_opened(chain.states, grid, step))
        takers = [len(states) - 1]
    if not takers:
        takers = [n for n, state in enumerate(states) if _holds(state.crop, step, margin=0)]
    for n in takers:
        states[n] = _answered(states[n], step, decode, history)
    return Chain(tuple(states), chain.missed + (not takers))


def _share(crop: Crop, mask: MaskPatch) -> NDArray[np.float32]:
    """Return the part of each low-resolution voxel that a mask of the scan fills."""
    cells = crop.take(mask).reshape(LOW, _SCALE, LOW, _SCALE, LOW, _SCALE)
    share: NDArray[np.float32] = cells.mean(axis=(1, 3, 5), dtype=np.float32)
    return share


def _holds(crop: Crop, step: Step, margin: int = _MARGIN) -> bool:
    return all(crop.contains(point, margin) for point in step.points)


def _opened(states: Sequence[CropState], grid: WorkingGrid, step: Step) -> CropState:
    """Return a new crop around a step, seeded with the neighbours' logits where they overlap."""
    crop = grid.crop_around(grid.nearest(step.centre))
    logits = np.zeros((LOW, LOW, LOW), np.float32)
    if not states:
        return CropState(crop, logits)
    # On the first crop's lattice of four voxels, so that logits can be handed over exactly.
    base = np.array(states[0].crop.start)
    start = base + _SCALE * np.rint((np.array(crop.start) - base) / _SCALE).astype(int)
    crop = replace(crop, start=(int(start[0]), int(start[1]), int(start[2])))
    for state in states:
        shift = (start - np.array(state.crop.start)) // _SCALE
        if (np.abs(shift) >= LOW).any():
            continue
        here = tuple(slice(max(0, -s), min(LOW, LOW - s)) for s in shift)
        there = tuple(slice(max(0, s), min(LOW, LOW + s)) for s in shift)
        known = logits[here] != 0
        logits[here] = np.where(
            known, np.maximum(logits[here], state.logits[there]), state.logits[there]
        )
    return CropState(crop, logits)


def _answered(state: CropState, step: Step, decode: Decode, history: bool) -> CropState:
    index = np.floor(state.crop.to_crop(step.points) + 0.5).clip(0, CROP - 1).astype(int)
    points = tuple((int(i), int(j), int(k)) for i, j, k in index)
    labels = tuple(int(positive) for positive in step.positive)
    all_points, all_labels = (*state.points, *points), (*state.labels, *labels)
    used, signs = (all_points, all_labels) if history else (points, labels)
    logits = decode(
        state.crop,
        np.array(used, dtype=np.float32).reshape(-1, 3),
        np.array(signs, dtype=np.int64),
        state.logits,
    )
    return CropState(state.crop, logits, all_points, all_labels)
