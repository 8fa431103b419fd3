"""From prompts in patient coordinates to voxels of the scan, with what is new since last time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.boxes import Box, box_of_points
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import Click, PromptSet, Scribble
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.models.contract import Request

__all__ = ["Hints", "read_hints"]

T = TypeVar("T", Click, Scribble)

Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Hints:
    """Prompts as voxels of the whole scan, array order (z, y, x).

    Attributes
    ----------
    points : ndarray of int, shape (N, 3)
        Extreme points.
    box : Box or None
        Union of the drawn boxes, clipped to the scan.
    inside, outside : ndarray of int, shape (M, 3)
        Voxels of clicks and scribbles, positive and negative.
    new_inside, new_outside : ndarray of int, shape (K, 3)
        Those of them that came since ``previous`` was made.
    clicks : ndarray of int, shape (L, 3)
        Positive clicks alone.
    previous : MaskPatch or None
        The mask to correct: the object's mask as it stands, else a mask prompt.
    is_correction : bool
        Whether only clicks and scribbles came since ``previous``: its rest is to be kept.
    """

    points: Ints
    box: Box | None
    inside: Ints
    outside: Ints
    new_inside: Ints
    new_outside: Ints
    clicks: Ints
    previous: MaskPatch | None
    is_correction: bool

    @property
    def extent(self) -> Box | None:
        """Box that points and drawn boxes agree to hold the object; ``None`` without both."""
        found = box_of_points(self.points) if len(self.points) else None
        if self.box is not None:
            found = self.box if found is None else found.union(self.box)
        return found


def read_hints(request: Request, geometry: Geometry) -> Hints:
    """Read a request on a grid.

    Raises
    ------
    PromptError
        If nothing says where the object is, or a point or every scribble lies off the grid.
    """
    prompts = request.prompts
    if prompts.is_empty:
        raise PromptError("there is no prompt yet: mark extreme points, a box, or click the object")
    before = request.previous_prompts
    fresh_start = before is not None and not _same_start(prompts, before)
    previous = _previous(request, geometry, with_current=not fresh_start)
    if not prompts.has_positive and previous is None:
        raise PromptError(
            "only negative prompts say where the object is not; add a positive click, extreme "
            "points or a box first"
        )
    prompts.check_inside(geometry)
    new = _only_new(prompts, before) if before is not None else PromptSet()
    corrected = bool(new.clicks or new.scribbles) and _same_start(prompts, before)
    boxes = [box.to_box(geometry) for box in prompts.boxes]
    hints = Hints(
        points=_voxels(prompts.extreme_points, geometry),
        box=_union(boxes),
        inside=_marked(prompts, geometry, positive=True),
        outside=_marked(prompts, geometry, positive=False),
        new_inside=_marked(new, geometry, positive=True),
        new_outside=_marked(new, geometry, positive=False),
        clicks=_voxels([c.point for c in prompts.clicks if c.positive], geometry),
        previous=previous,
        is_correction=corrected and previous is not None,
    )
    if hints.extent is None and previous is None and not len(hints.inside):
        raise PromptError("no positive prompt lies inside the volume; mark the object again")
    return hints


def _previous(request: Request, geometry: Geometry, *, with_current: bool) -> MaskPatch | None:
    """Return the mask to go on from: what stands, else the mask prompt; ``None`` if empty.

    Moved extreme points or a new box ask for a new answer, not for the old one again.
    """
    patch = request.previous if with_current else None
    if patch is None and request.prompts.mask is not None:
        patch = request.prompts.mask.on_grid(geometry)
    if patch is None:
        return None
    patch = patch.clip(geometry.shape).trimmed()
    return None if patch.is_empty else patch


def _same_start(prompts: PromptSet, before: PromptSet | None) -> bool:
    """Whether extreme points, boxes and mask prompt are those of last time."""
    return before is not None and (prompts.extreme_points, prompts.boxes, prompts.mask) == (
        before.extreme_points,
        before.boxes,
        before.mask,
    )


def _only_new(prompts: PromptSet, before: PromptSet) -> PromptSet:
    """Clicks and scribbles that were not there last time (each copy counts once)."""
    return PromptSet(
        clicks=_added(prompts.clicks, before.clicks),
        scribbles=_added(prompts.scribbles, before.scribbles),
    )


def _added(now: Iterable[T], before: Iterable[T]) -> tuple[T, ...]:
    old = Counter(before)
    fresh = []
    for item in now:
        if old[item] > 0:
            old[item] -= 1
        else:
            fresh.append(item)
    return tuple(fresh)


def _marked(prompts: PromptSet, geometry: Geometry, *, positive: bool) -> Ints:
    """Voxels of clicks and scribbles of one sign; scribble points off the grid are left out."""
    clicks = _voxels([c.point for c in prompts.clicks if c.positive == positive], geometry)
    painted = [_voxels(s.points, geometry) for s in prompts.scribbles if s.positive == positive]
    painted = [p[((p >= 0) & (p < geometry.shape)).all(axis=1)] for p in painted]
    return np.concatenate([clicks, *painted])


def _voxels(points: object, geometry: Geometry) -> Ints:
    """Nearest voxels of world points, shape (N, 3)."""
    array = np.asarray(points, dtype=float).reshape(-1, 3)
    if not len(array):
        return np.zeros((0, 3), dtype=np.intp)
    return np.rint(geometry.to_index(array)).astype(np.intp)


def _union(boxes: list[Box]) -> Box | None:
    found: Box | None = None
    for box in boxes:
        found = box if found is None else found.union(box)
    return found
