"""Prompts as SAM-Med3D takes them: points, one step after the other.

The published weights know positive and negative points and a mask, no boxes. A box or extreme
points become a positive point at their centre, as upstream's own baseline does with boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.geometry.prompts import BoxPrompt, Point, PromptSet, Scribble, as_point
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.models.engines.sam_med3d.crops import CROP, SPACING_MM, WorkingGrid

__all__ = ["Step", "new_steps", "region_of", "steps_of", "within", "working_spacing"]

_SCRIBBLE_POINTS = 5  # a stroke counts as this many clicks at most
_FILL = 0.875  # of a crop's edge that an object may span before the grid gets coarser
_SPAN_OTHER = 64  # voxels that an object spans where no spacing was trained (microscopy)


@dataclass(frozen=True)
class Step:
    """One interaction: points in world coordinates (x, y, z), and whether each is inside."""

    points: tuple[Point, ...]
    positive: tuple[bool, ...]

    @property
    def centre(self) -> Point:
        """The mean of the points."""
        return as_point(np.mean(self.points, axis=0))


def within(prompts: PromptSet, geometry: Geometry) -> PromptSet:
    """Return the prompts with boxes clipped to the scan.

    Raises
    ------
    PromptError
        If a point or a whole box lies outside the scan.
    """
    prompts.check_inside(geometry)
    clipped = tuple(BoxPrompt.from_box(b.to_box(geometry), geometry) for b in prompts.boxes)
    return replace(prompts, boxes=clipped)


def steps_of(prompts: PromptSet) -> tuple[Step, ...]:
    """Return all steps in a fixed order: box or extreme points, scribbles, clicks.

    A positive step comes first where there is one: a crop is opened by it.
    """
    steps: list[Step] = []
    region = region_of(prompts)
    if region is not None:
        steps.append(Step((as_point(region.mean(axis=0)),), (True,)))
    steps += [_stroke(scribble) for scribble in prompts.scribbles]
    steps += [Step((click.point,), (click.positive,)) for click in prompts.clicks]
    first = next((n for n, step in enumerate(steps) if step.positive[0]), None)
    if first:
        steps.insert(0, steps.pop(first))
    return tuple(steps)


def new_steps(prompts: PromptSet, before: PromptSet) -> tuple[Step, ...] | None:
    """Return the steps that came after ``before``; ``None`` if some were taken away or moved."""
    old, now = list(steps_of(before)), list(steps_of(prompts))
    if before.mask != prompts.mask:
        return None
    for step in old:
        if step not in now:
            return None
        now.remove(step)
    return tuple(now)


def region_of(prompts: PromptSet) -> NDArray[np.float64] | None:
    """Return lower and upper corner (2, 3) in world axes of boxes and extreme points."""
    rows = [*prompts.extreme_points]
    rows += [corner for box in prompts.boxes for corner in (box.corner, box.opposite)]
    if not rows or (not prompts.boxes and len(rows) < 2):
        return np.array([rows[0], rows[0]]) if rows else None
    points = np.array(rows)
    return np.array([points.min(axis=0), points.max(axis=0)])


def working_spacing(grid: WorkingGrid, prompts: PromptSet) -> float:
    """Return the working voxel for these prompts, in the unit of the scan.

    Patients: 1.5 mm as trained, coarser only where a box or extreme points span more than 7/8
    of the 192 mm that a crop holds. Elsewhere no spacing is trained: an object marked by its
    extent spans 64 voxels, a click alone takes the scan's coarsest spacing.
    """
    rows = [*prompts.extreme_points]
    rows += [corner for box in prompts.boxes for corner in (box.corner, box.opposite)]
    reach = 0.0
    if len(rows) > 1:
        index = grid.source.to_index(rows)
        reach = float((np.ptp(index, axis=0) * grid.source.spacing).max())
    if grid.source.unit == "mm":
        return max(SPACING_MM, reach / (_FILL * CROP))
    return reach / _SPAN_OTHER if reach > 0 else max(grid.source.spacing)


def _stroke(scribble: Scribble) -> Step:
    points: Sequence[NDArray[np.float64]] = list(scribble.points)
    places = np.linspace(0, len(points) - 1, min(_SCRIBBLE_POINTS, len(points)))
    chosen = tuple(as_point(points[round(place)]) for place in places)
    return Step(chosen, (scribble.positive,) * len(chosen))
