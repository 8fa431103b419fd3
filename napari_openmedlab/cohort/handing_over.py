"""From a found box to an engine's prompts, and back: the mask ends where the box does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from napari_openmedlab.cohort.records import with_wall
from napari_openmedlab.cohort.settings import Settings
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.prompts import BoxPrompt, PromptSet
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.models.contract import Prediction
from napari_openmedlab.models.localisation import WALLS, Found

__all__ = ["cut", "handed_box", "prompts_for", "slabs", "with_locked_walls"]


def handed_box(box: Box, geometry: Geometry, margin_mm: float) -> Box:
    """Return the box that an engine is given: grown by the margin, inside the scan."""
    voxels = [int(np.rint(margin_mm / step)) for step in geometry.spacing]
    return box.grow(voxels).clip(geometry.shape)


def prompts_for(found: Found, geometry: Geometry, settings: Settings) -> PromptSet:
    """Return what the engine is told about a found structure.

    Whole box: one box. Sub-boxes: a box for each run of slices; slices that two sub-boxes share
    get a rectangle that holds both. With ``prompts="extreme_points"`` the six points, if all lie
    in the scan; otherwise the box.
    """
    six = settings.prompts == "extreme_points" and len(found.points) == len(WALLS)
    if six and bool(geometry.contains_index(geometry.to_index(found.points)).all()):
        return PromptSet(extreme_points=found.points)
    whole = handed_box(found.box, geometry, settings.margin_mm)
    pieces = _wider(slabs(found.parts), whole, geometry, settings.margin_mm) or [whole]
    return PromptSet(boxes=tuple(BoxPrompt.from_box(piece, geometry) for piece in pieces))


def _wider(parts: Sequence[Box], whole: Box, geometry: Geometry, margin_mm: float) -> list[Box]:
    """Return slabs grown by the margin: sideways each, along axis 0 the first and the last."""
    grown = [handed_box(part, geometry, margin_mm) for part in parts]
    ends = [(part.start[0], part.stop[0]) for part in parts]
    if ends:
        ends[0] = (whole.start[0], ends[0][1])
        ends[-1] = (ends[-1][0], whole.stop[0])
    return [
        Box((first, *box.start[1:]), (stop, *box.stop[1:]))
        for box, (first, stop) in zip(grown, ends, strict=True)
    ]


def slabs(parts: Sequence[Box]) -> list[Box]:
    """Return boxes that follow each other along axis 0 and hold the same voxels or more.

    Where parts share slices, the rectangle there is the smallest that holds theirs.
    """
    parts = [part for part in parts if not part.is_empty]
    found: list[Box] = []
    cuts = sorted({edge for part in parts for edge in (part.start[0], part.stop[0])})
    for first, stop in pairwise(cuts):
        here = [p for p in parts if p.start[0] <= first and p.stop[0] >= stop]
        if not here:
            continue
        held = here[0]
        for part in here[1:]:
            held = held.union(part)
        found.append(Box((first, *held.start[1:]), (stop, *held.stop[1:])))
    return found


def cut(answer: Prediction, limit: Box) -> Prediction:
    """Return the answer without what lies outside a box."""
    if limit.contains(answer.box):
        return answer
    box = answer.box.intersection(limit)
    return replace(answer, box=box, mask=answer.patch.inside(box))


def with_locked_walls(found: Found, walls: Mapping[str, int], shape: tuple[int, int, int]) -> Found:
    """Return what was found with the walls that were set by hand.

    A structure that was not found is there if all six of its walls were set.
    """
    if not walls:
        return found
    every = all(wall in walls for wall in WALLS)
    if found.box.is_empty and not every:
        return found
    box = found.box
    for wall, boundary in walls.items():
        box = with_wall(box, wall, int(boundary))
    box = box.clip(shape)
    if box.is_empty:
        return found
    parts = tuple(p for p in (each.intersection(box) for each in found.parts) if not p.is_empty)
    note = f"set by hand: {', '.join(wall for wall in WALLS if wall in walls)}"
    return replace(
        found,
        box=box,
        found=True,
        confidence=1.0 if every else found.confidence,
        notes=(*found.notes, note),
        parts=() if every else parts,
        points=() if every else found.points,
    )
