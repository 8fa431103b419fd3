"""What a gesture on the canvas means for the prompts of an object. No Qt, no layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.bridge.strokes import stroke_voxels
from napari_openmedlab.errors import PromptError, SessionError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.prompts import BoxPrompt, Point, PromptSet, as_point
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.widgets.tools import Tool

__all__ = ["Gesture", "ToolState", "prompts_after", "rectangle_path"]


@dataclass(frozen=True, eq=False)
class Gesture:
    """A press of the left button, up to its release.

    Attributes
    ----------
    path : ndarray of float, shape (N, 3), N >= 1
        Fractional voxel indices (z, y, x) from press to release; on the axis that is not on
        screen the whole number of the visible slice.
    dragged : bool
        Whether the mouse moved farther than an unsteady hand.
    swapped : bool
        Whether Shift was held: inside means outside and the other way round.
    axis : int
        Array axis that is not on screen.
    """

    path: NDArray[np.float64]
    dragged: bool
    swapped: bool
    axis: int


@dataclass(frozen=True)
class ToolState:
    """How the next gesture is read.

    Attributes
    ----------
    tool : Tool or None
    positive : bool
        Whether clicks and strokes mean inside.
    brush : float
        Diameter of the brush in the unit of the volume.
    corner : point or None
        First corner of a box that waits for its second, world (x, y, z).
    """

    tool: Tool | None = None
    positive: bool = True
    brush: float = 4.0
    corner: Point | None = None


def prompts_after(
    gesture: Gesture, prompts: PromptSet, state: ToolState, geometry: Geometry
) -> PromptSet | Point:
    """Return the prompts after a gesture, or the first corner of a box in the making.

    Raises
    ------
    SessionError
        If all six extreme points are set already.
    PromptError
        If the gesture lies beside the image.
    """
    if state.tool is Tool.BOX:
        return _after_box(gesture, prompts, state.corner, geometry)
    point = geometry.to_world(gesture.path[0])
    positive = state.positive != gesture.swapped
    if state.tool is Tool.EXTREME:
        if len(prompts.extreme_points) >= 6:
            raise SessionError(
                "All six extreme points are set. Correct the mask with clicks (C); or undo one, "
                "or move or delete it with the tools of the points layer."
            )
        return prompts.with_extreme_point(point)
    if state.tool is Tool.CLICK:
        return prompts.with_click(point, positive)
    voxels = stroke_voxels(gesture.path, geometry, gesture.axis, state.brush / 2)
    if not len(voxels):
        raise PromptError("The stroke lies beside the image; paint on the image itself.")
    return prompts.with_scribble(geometry.to_world(voxels), positive)


def _after_box(
    gesture: Gesture, prompts: PromptSet, corner: Point | None, geometry: Geometry
) -> PromptSet | Point:
    """Read a drag as a rectangle; a click as a corner, or as a place the box has to hold."""
    place = gesture.path[[0, -1]] if gesture.dragged else gesture.path[:1]
    if not geometry.contains_index(place).any():
        raise PromptError("That is beside the image; draw the box on the image itself.")
    ends = np.clip(place, 0, np.array(geometry.shape) - 1)
    world = [as_point(p) for p in geometry.to_world(ends)]
    if gesture.dragged:
        return prompts.with_box(BoxPrompt(world[0], world[1]))
    if corner is not None:
        return prompts.with_box(BoxPrompt(corner, world[0]))
    if not prompts.boxes:
        return world[0]
    voxel = np.rint(ends[0]).astype(int)
    grown = prompts.boxes[0].to_box(geometry).union(Box(tuple(voxel), tuple(voxel + 1)))
    return prompts.with_box(BoxPrompt.from_box(grown, geometry))


def rectangle_path(gesture: Gesture) -> NDArray[np.float64]:
    """Return the closed outline (5, 3) of the rectangle between press and last point."""
    first, last = gesture.path[0], gesture.path[-1]
    one = next(axis for axis in (0, 1, 2) if axis != gesture.axis)
    corner, opposite = last.copy(), first.copy()
    corner[one], opposite[one] = first[one], last[one]
    return np.array([first, corner, last, opposite, first])
