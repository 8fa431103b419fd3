"""Prompts of a volume as marks on single slices: a rectangle, strokes of points, an outline.

Clicks count on the slice they lie on; a 3D box and extreme points on every slice they span. A
box, scribble or set of extreme points that lies in one slice belongs to that slice, whatever
the axis chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.boxes import Box, box_of_points
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import PromptSet, Scribble
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.models.engines.sam_slices.boxes import (
    BoxRule,
    rectangles_of_box,
    rectangles_of_points,
)
from napari_openmedlab.models.engines.sam_slices.planes import (
    Outline,
    Plane,
    Rectangle,
    in_plane_axes,
    outline_on,
)

__all__ = ["Marks", "Stroke", "axis_of", "read_marks"]

_STROKE_POINTS = 5  # of a scribble on a slice; the networks saw up to nine points at a time


@dataclass(frozen=True)
class Stroke:
    """Points of one gesture on a slice.

    Attributes
    ----------
    places : tuple of (int, int)
        Rows and columns.
    positive : bool
        Inside the object or outside it.
    extent : Rectangle
        Around the whole gesture, not only the points chosen of it.
    """

    places: tuple[tuple[int, int], ...]
    positive: bool
    extent: Rectangle


@dataclass(frozen=True)
class Marks:
    """All prompts on one slice.

    Attributes
    ----------
    box : Rectangle or None
    strokes : tuple of Stroke
        In a fixed order: scribbles, then clicks, each as they were made.
    mask : Outline or None
        Of a mask prompt.
    closed : bool
        Whether the slice is one of a 3D box or of extreme points, which say where the object
        ends: nothing is propagated from it.
    """

    box: Rectangle | None = None
    strokes: tuple[Stroke, ...] = ()
    mask: Outline | None = None
    closed: bool = False

    @property
    def has_positive(self) -> bool:
        """Whether anything says where the object is."""
        return bool(self.box or self.mask or any(stroke.positive for stroke in self.strokes))


def axis_of(wanted: str, prompts: PromptSet, geometry: Geometry) -> int:
    """Return the array axis that slices are taken along.

    Parameters
    ----------
    wanted : {"auto", "0", "1", "2"}
        ``"auto"``: the axis across the slice that a box, extreme points, a scribble or a mask
        lie in; 0 if none of them lies in one slice. An image of one slice has only one axis.
    """
    single = [axis for axis, count in enumerate(geometry.shape) if count == 1]
    if len(single) == 1:
        return single[0]
    if wanted != "auto":
        return int(wanted)
    for box in _extents(prompts, geometry):
        thin = _thin_axes(box, geometry)
        if len(thin) == 1:
            return thin[0]
    return 0


def read_marks(
    prompts: PromptSet, geometry: Geometry, axis: int, rule: BoxRule
) -> dict[Plane, Marks]:
    """Return the marks on each slice that has any.

    Raises
    ------
    PromptError
        If a prompt lies outside the volume.
    """
    prompts.check_inside(geometry)
    found: dict[Plane, Marks] = {}
    for box in (prompt.to_box(geometry) for prompt in prompts.boxes):
        own = _own_axis(box, geometry, axis)
        _add_rectangles(found, own, rectangles_of_box(box, own))
    points = geometry.to_index(prompts.extreme_points) if prompts.extreme_points else None
    if points is not None and len(points) > 1:
        box = box_of_points(points).clip(geometry.shape)
        own = _own_axis(box, geometry, axis)
        _add_rectangles(found, own, rectangles_of_points(points, box, own, rule))
    elif points is not None:
        _add_stroke(found, points, axis, positive=True)
    if prompts.mask is not None:
        _add_mask(found, prompts.mask.on_grid(geometry).trimmed(), geometry, axis)
    for scribble in prompts.scribbles:
        _add_scribble(found, scribble, geometry, axis)
    for click in prompts.clicks:
        index = geometry.to_index(click.point)
        _add_stroke(found, index[None], axis, positive=click.positive)
    return found


def _extents(prompts: PromptSet, geometry: Geometry) -> list[Box]:
    """Return the boxes of what may lie in one slice."""
    found = [prompt.to_box(geometry) for prompt in prompts.boxes]
    if len(prompts.extreme_points) > 1:
        found.append(box_of_points(geometry.to_index(prompts.extreme_points)))
    found += [box_of_points(geometry.to_index(s.points)) for s in prompts.scribbles]
    if prompts.mask is not None:
        found.append(prompts.mask.on_grid(geometry).trimmed().box)
    return [box for box in found if not box.is_empty]


def _thin_axes(box: Box, geometry: Geometry) -> list[int]:
    return [axis for axis in range(3) if box.shape[axis] == 1 and geometry.shape[axis] > 1]


def _own_axis(box: Box, geometry: Geometry, axis: int) -> int:
    """Return the axis of the one slice that something lies in, else the chosen axis."""
    thin = _thin_axes(box, geometry)
    return thin[0] if len(thin) == 1 and box.shape[axis] > 1 else axis


def _add_rectangles(found: dict[Plane, Marks], axis: int, rectangles: dict[int, Rectangle]) -> None:
    closed = len(rectangles) > 1
    for number, rectangle in rectangles.items():
        found[Plane(axis, number)] = Marks(box=rectangle, closed=closed)


def _add_mask(found: dict[Plane, Marks], mask: MaskPatch, geometry: Geometry, axis: int) -> None:
    if mask.is_empty:
        raise PromptError("the mask prompt has no voxel on this image")
    own = _own_axis(mask.box, geometry, axis)
    for number in range(mask.box.start[own], mask.box.stop[own]):
        plane = Plane(own, number)
        outline = outline_on(mask, plane)
        if outline.area:
            found[plane] = replace(found.get(plane, Marks()), mask=outline)


def _add_scribble(
    found: dict[Plane, Marks], scribble: Scribble, geometry: Geometry, axis: int
) -> None:
    index = np.rint(geometry.to_index(scribble.points)).astype(int)
    index = index[((index >= 0) & (index < geometry.shape)).all(axis=1)]
    if not len(index):
        raise PromptError("a scribble lies outside the image; paint it on the image")
    own = _own_axis(box_of_points(index), geometry, axis)
    for number in np.unique(index[:, own]):
        on_slice = index[index[:, own] == number].astype(float)
        _add_stroke(found, on_slice, own, positive=scribble.positive)


def _add_stroke(
    found: dict[Plane, Marks], points: NDArray[np.float64], axis: int, *, positive: bool
) -> None:
    """Add the points (n, 3) of a gesture, all on one slice along ``axis``."""
    index = np.rint(points).astype(int)
    plane = Plane(axis, int(index[0, axis]))
    flat = index[:, list(in_plane_axes(axis))]
    (r0, c0), (r1, c1) = flat.min(axis=0).tolist(), (flat.max(axis=0) + 1).tolist()
    chosen = tuple((int(r), int(c)) for r, c in _spread_out(flat, _STROKE_POINTS))
    stroke = Stroke(chosen, positive, (float(r0), float(c0), float(r1), float(c1)))
    marks = found.get(plane, Marks())
    found[plane] = replace(marks, strokes=(*marks.strokes, stroke))


def _spread_out(places: NDArray[np.int_], count: int) -> Sequence[NDArray[np.int_]]:
    """Choose places that lie far apart: first the one nearest the middle."""
    middle = places.mean(axis=0)
    chosen = [int(((places - middle) ** 2).sum(axis=1).argmin())]
    nearest = np.full(len(places), np.inf)
    while len(chosen) < min(count, len(places)):
        gap = ((places - places[chosen[-1]]) ** 2).sum(axis=1)
        nearest = np.minimum(nearest, gap)
        if not nearest.max() > 0:
            break
        chosen.append(int(nearest.argmax()))
    return [places[n] for n in chosen]
