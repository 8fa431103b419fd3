"""The built-in engine's adapter to the contract: prompts in, a sub-mask with its box out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi

from napari_openmedlab.geometry.boxes import Box, box_of_mask
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.contract import Monitor, Prediction, Request
from napari_openmedlab.models.engines.built_in import confidence
from napari_openmedlab.models.engines.built_in.corrections import click_radius, marked_ball, settle
from napari_openmedlab.models.engines.built_in.reading import Hints, read_hints
from napari_openmedlab.models.engines.built_in.region import Region, cut_region
from napari_openmedlab.models.engines.built_in.solver import Marks, Solution, solve
from napari_openmedlab.models.engines.built_in.starts import core_of, guess_in_box, share_on_faces

__all__ = ["BuiltIn"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]

ENGINE_ID, VERSION = "built-in", "1"
#: Working voxels of the final solve, and of the trials that look for the scale of a click.
MAX_VOXELS, TRIAL_VOXELS = 150_000, 40_000
#: Surroundings looked at beyond the object's box: share of its mean side, of each side, voxels.
MARGIN_MEAN, MARGIN_SIDE, MARGIN_VOXELS = 0.15, 0.05, 2
#: Half-sides of the boxes tried round a click: first one in finest voxels, growth, number.
TRIAL_FIRST, TRIAL_GROWTH, TRIALS = 25.0, 1.6, 3
#: A mask with less than this share of its voxels on the faces of its box is complete.
TRIAL_CONTACT = 0.02
#: The box of a complete mask is fitted to it this many times, with this share of room.
TIGHTENINGS, TIGHT_ROOM = 2, 0.1
#: Room given to a mask that is corrected or completed, as a share of its side.
ROOM = 0.15
#: Dice that other starts must promise over the exact points: room round them, their box alone.
HANDICAPS = (0.0, 0.03, 0.15)


@dataclass(frozen=True)
class _Case:
    """One request on its region."""

    hints: Hints
    region: Region
    box: Box
    obstacles: MaskPatch | None
    monitor: Monitor


class BuiltIn:
    """Training-free engine for any contrast: random walker with learned-on-the-spot priors."""

    def prepare(self, volume: Volume, monitor: Monitor) -> Volume:
        """Return the volume itself: nothing is computed before the first prompt."""
        monitor.step(0, 1, "ready")
        return volume

    def predict(self, prepared: Volume, request: Request, monitor: Monitor) -> Prediction:
        """Segment one object.

        Raises
        ------
        PromptError
            If nothing says where the object is, or a point lies outside the volume.
        Cancelled
            Soon after a cancel (within a few solver iterations).
        """
        started = time.perf_counter()
        monitor.step(0, 4, "reading prompts")
        hints = read_hints(request, prepared.geometry)
        options = get_spec(ENGINE_ID).check_options(request.options)
        box = _object_box(hints, prepared, monitor)
        monitor.step(1, 4, "solving")
        case = _cut(prepared, hints, box, request.obstacles, monitor)
        case, solution = _best_start(prepared, case, _tolerance(hints, prepared, options))
        patch, solution = _answer(case, solution, options)
        monitor.step(3, 4, "finishing")
        image, spacing = case.region.image, case.region.spacing
        score = confidence.estimate(image, spacing, solution, _start_of(hints))
        notes = confidence.notes_on(score, patch.is_empty)
        return Prediction(
            box=patch.box,
            mask=np.array(patch.mask),
            score=score,
            seconds=time.perf_counter() - started,
            provenance={"engine": ENGINE_ID, "version": VERSION, "options": options},
            notes=notes,
        )

    def unload(self) -> None:
        """Nothing is held between requests."""


def _start_of(hints: Hints) -> confidence.Start:
    """Return the strongest kind of prompt the answer rests on."""
    if len(hints.points) or hints.previous is not None:
        return "points"
    return "box" if hints.box is not None else "click"


def _object_box(hints: Hints, volume: Volume, monitor: Monitor) -> Box:
    """Return the native box that the object is held to."""
    shape = volume.geometry.shape
    box = hints.extent
    if box is not None:
        if hints.is_correction and hints.previous is not None:
            box = box.union(hints.previous.box)
    elif hints.previous is not None:
        room = np.ceil(ROOM * np.array(hints.previous.box.shape)).astype(int) + 1
        box = hints.previous.box.grow([int(v) for v in room])
    else:
        box = _box_of_click(volume, hints, monitor)
    for voxel in hints.inside:
        box = box.union(Box(tuple(voxel), tuple(voxel + 1)))
    return box.clip(shape)


def _tolerance(hints: Hints, volume: Volume, options: Mapping[str, Any]) -> list[int]:
    """Return by how many voxels extreme points may be off; drawn boxes are taken as they are."""
    if not len(hints.points) or hints.previous is not None:
        return [0, 0, 0]
    spacing = np.array(volume.geometry.spacing)
    is_mm = volume.geometry.unit == "mm"
    room = options["tolerance"] if is_mm else min(options["tolerance"], 1.0) * spacing.min()
    return [round(float(v)) for v in room / spacing]


def _cut(
    volume: Volume,
    hints: Hints,
    box: Box,
    obstacles: MaskPatch | None,
    monitor: Monitor,
    max_voxels: int = MAX_VOXELS,
) -> _Case:
    """Cut out a box with its surroundings."""
    spacing = np.array(volume.geometry.spacing)
    sides = np.array(box.shape) * spacing
    mean = float(np.exp(np.log(sides).mean()))
    margin = np.maximum(MARGIN_SIDE * sides, MARGIN_MEAN * mean) / spacing
    wide = box.grow([max(MARGIN_VOXELS, round(float(m))) for m in margin])
    region = cut_region(
        volume.array, volume.geometry.spacing, wide.clip(volume.geometry.shape), max_voxels
    )
    return _Case(hints, region, box, obstacles, monitor)


def _box_of_click(volume: Volume, hints: Hints, monitor: Monitor) -> Box:
    """Find the scale of a clicked object: the trial box whose answer is best closed by edges."""
    spacing = np.array(volume.geometry.spacing)
    low, high = hints.inside.min(axis=0), hints.inside.max(axis=0) + 1
    box = Box(tuple(low), tuple(high))
    for k in range(TRIALS):
        monitor.step(0, 0, "finding the object's size")
        half = np.maximum(1, np.rint(TRIAL_FIRST * TRIAL_GROWTH**k * spacing.min() / spacing))
        box = Box(tuple(low - half.astype(int)), tuple(high + half.astype(int)))
        box = box.clip(volume.geometry.shape)
        case = _cut(volume, hints, box, None, monitor, TRIAL_VOXELS)
        mask = _solve(case, None).mask
        if share_on_faces(mask, case.region.box_to_working(box)) < TRIAL_CONTACT:
            break
    return _tightened(volume, case, box, mask)


def _tightened(volume: Volume, case: _Case, box: Box, mask: Bools) -> Box:
    """Fit the box to the mask found in it: nearer surroundings describe the object better."""
    for _ in range(TIGHTENINGS):
        inner = box_of_mask(mask)
        if inner.is_empty:
            break
        factor, start = np.array(case.region.factor), np.array(case.region.box.start)
        low, high = start + np.array(inner.start) * factor, start + np.array(inner.stop) * factor
        room = np.ceil(TIGHT_ROOM * (high - low)).astype(int) + 1
        fitted = Box(tuple(low - room), tuple(high + room)).intersection(box)
        if fitted == box:
            break
        box = fitted
        case = _cut(volume, case.hints, box, None, case.monitor, TRIAL_VOXELS)
        mask = _solve(case, None).mask
    return box


def _best_start(volume: Volume, case: _Case, room: list[int]) -> tuple[_Case, Solution | None]:
    """Take extreme points as exact, as imprecise, or only for their box; return the best.

    Points that missed the object mislead more than no points: where each of them lies in
    another tissue, the box round them still says where to look. Which answer is best is told
    by the engine's own estimate of its quality. Without room nothing is solved yet.
    """
    if not any(room):
        return case, None
    wider = case.box.grow(room).clip(volume.geometry.shape)
    boxed = replace(case.hints, points=case.hints.points[:0], box=case.box)
    tries: tuple[Callable[[], _Case], ...] = (
        lambda: case,
        lambda: _cut(volume, case.hints, wider, case.obstacles, case.monitor),
        lambda: replace(case, hints=boxed),
    )
    best: tuple[float, _Case, Solution | None] = (-np.inf, case, None)
    for make, handicap in zip(tries, HANDICAPS, strict=True):
        if best[0] >= 1.0 - handicap:
            break  # an estimate never passes 1, so none of the others can win
        each = make()
        solution = _solve(each, None)
        score = confidence.estimate(each.region.image, each.region.spacing, solution, "points")
        if score - handicap > best[0]:
            best = (score - handicap, each, solution)
    return best[1], best[2]


def _answer(
    case: _Case, solution: Solution | None, options: Mapping[str, Any]
) -> tuple[MaskPatch, Solution]:
    """Solve unless that was done, and keep the effect of a correction local."""
    hints, region = case.hints, case.region
    restart = hints.is_correction and _missed(case)
    keep = hints.previous is not None and not restart
    before = hints.previous.inside(region.box) if hints.previous is not None and keep else None
    solution = solution or _solve(case, before)
    native = _to_native(region, solution)
    if before is not None and hints.is_correction and options["local_corrections"]:
        native = _corrected(case, before, solution, native)
    native = _obey(case, native)
    return _whole_patch(case, native), solution


def _missed(case: _Case) -> bool:
    """Whether the first click in a drawn box says that the start found something else.

    So it does if the click misses the mask by more than the mask is deep.
    """
    hints, region = case.hints, case.region
    first = len(hints.new_inside) == len(hints.inside)
    if len(hints.points) or hints.box is None or not first or hints.previous is None:
        return False
    mask = region.shrink(hints.previous.inside(region.box)) > 0.5
    if not mask.any():
        return True
    depth = ndi.distance_transform_edt(np.pad(mask, 1), sampling=region.spacing)
    added = region.to_working(_within(hints.new_inside, region.box))
    away = ndi.distance_transform_edt(~mask, sampling=region.spacing)
    return bool(away[tuple(added.T)].max(initial=0.0) > depth.max())


def _solve(case: _Case, before: Bools | None) -> Solution:
    """Mark what is known on the working grid and solve."""
    return solve(
        case.region.image, case.region.spacing, _marks(case, before), lambda: case.monitor.step()
    )


def _marks(case: _Case, before: Bools | None) -> Marks:
    hints, region = case.hints, case.region
    shape = region.image.shape
    previous = None if before is None else region.shrink(before)
    inside, outside = (np.zeros(shape, bool) for _ in range(2))
    for target, voxels, fresh, positive in (
        (inside, hints.inside, hints.new_inside, True),
        (outside, hints.outside, hints.new_outside, False),
    ):
        inner = _within(voxels, region.box)
        target[tuple(region.to_working(inner).T)] = True
        target[:] = _next_to(target, region.spacing)
        if previous is not None and len(fresh) == 1:
            target |= _ball(case, previous > 0.5, fresh[0], positive)
    outside[tuple(region.to_working(_within(hints.inside, region.box)).T)] = False
    inside &= ~outside
    box = region.box_to_working(case.box)
    blocked = np.zeros(shape, bool)
    if case.obstacles is not None:
        blocked = region.shrink(case.obstacles.inside(region.box)) > 0.5
        blocked &= ~inside
    marks = Marks(
        box=box,
        points=np.unique(region.to_working(hints.points), axis=0),
        clicks=np.unique(region.to_working(hints.clicks), axis=0),
        inside=inside,
        outside=outside,
        blocked=blocked,
        guess=np.zeros(shape, bool),
        previous=previous,
    )
    return replace(marks, guess=_guess(case, marks))


def _guess(case: _Case, marks: Marks) -> Bools:
    """Seeds where extreme points give none: the core of the mask so far, else a guess."""
    if len(marks.points):
        return marks.guess
    by_click = case.hints.box is None and marks.inside.any()
    if marks.previous is not None and not by_click:
        covered = (marks.previous > 0.5) & ~marks.outside
        if covered.any():
            return core_of(covered, case.region.spacing)
    if marks.inside.any():
        return marks.guess
    return guess_in_box(case.region.image, case.region.spacing, marks.box, marks.outside)


def _ball(case: _Case, mask: Bools, voxel: Ints, positive: bool) -> Bools:
    """Working voxels that one new click stands for."""
    region = case.region
    work = region.to_working(voxel)[0]
    sides = np.array(mask.shape) * region.spacing
    largest = 0.25 * float(np.exp(np.log(sides).mean()))
    radius = click_radius(mask, work, positive, region.spacing, largest)
    return marked_ball(mask.shape, work, radius, region.spacing)


def _next_to(marked: Bools, spacing: NDArray[np.float64]) -> Bools:
    """Add the face neighbours at the smallest distance: hands are not exact."""
    cross = np.zeros((3, 3, 3), bool)
    cross[1, 1, 1] = True
    for axis in np.flatnonzero(spacing <= 1.25 * spacing.min()):
        cross[tuple(slice(None) if k == axis else 1 for k in range(3))] = True
    return np.asarray(ndi.binary_dilation(marked, cross))


def _within(voxels: Ints, box: Box) -> Ints:
    """Voxels that lie in a box."""
    return voxels[((voxels >= box.start) & (voxels < box.stop)).all(axis=1)]


def _to_native(region: Region, solution: Solution) -> Bools:
    """Return the working answer on the native grid."""
    if not region.is_coarse:
        return solution.mask
    low, high = np.float32(0.4999), np.float32(0.5001)
    settled = np.where(
        solution.mask,
        np.maximum(solution.probability, high),
        np.minimum(solution.probability, low),
    )
    return np.asarray(region.enlarge(settled) > 0.5)


def _corrected(case: _Case, before: Bools, solution: Solution, native: Bools) -> Bools:
    """Return the mask as it stood with the local effect of the new marks."""
    region, hints = case.region, case.hints
    out = before.copy()
    work = region.shrink(before) > 0.5
    marks = _marks(case, before)
    for voxels, positive in ((hints.new_inside, True), (hints.new_outside, False)):
        voxels = _within(voxels, region.box)
        if not len(voxels):
            continue
        marked = np.zeros(work.shape, bool)
        marked[tuple(region.to_working(voxels).T)] = True
        if len(voxels) == 1:
            marked |= _ball(case, work, voxels[0], positive)
            marked &= marks.inside if positive else marks.outside
        flipped = settle(work, solution.mask, marked, positive, region.spacing)
        if region.is_coarse:
            flipped = region.repeat(flipped) & (native == positive)
        out[flipped] = positive
    return out


def _obey(case: _Case, native: Bools) -> Bools:
    """Set and clear the very voxels the user marked, and leave the obstacles free."""
    out = native.copy()
    start = np.array(case.region.box.start)
    if case.obstacles is not None:
        out &= ~case.obstacles.inside(case.region.box)
    for voxels, value in ((case.hints.outside, False), (case.hints.inside, True)):
        out[tuple((_within(voxels, case.region.box) - start).T)] = value
    return out


def _whole_patch(case: _Case, native: Bools) -> MaskPatch:
    """Return the answer as a patch of the volume, with the old mask beyond the region."""
    region, previous = case.region, case.hints.previous
    patch = MaskPatch(region.box, native)
    if previous is None or not case.hints.is_correction or region.box.contains(previous.box):
        inner = box_of_mask(native)
        return (
            MaskPatch(inner.shift(region.box.start), native[inner.slices])
            if not inner.is_empty
            else MaskPatch.empty()
        )
    box = region.box.union(previous.box)
    mask = previous.inside(box)
    mask[region.box.relative_to(box).slices] = patch.mask
    return MaskPatch(box, mask).trimmed()
