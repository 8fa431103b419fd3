"""The prompt tools as pure state: their keys, what the next click means, what to tell the user.

Nothing here knows Qt or napari, so every sentence of guidance is tested without a window.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike

from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.geometry.volume import Frame

__all__ = [
    "IMAGE_ROLES",
    "PATIENT_ROLES",
    "SIGN_KEY",
    "TOOLS",
    "Role",
    "Tool",
    "ToolInfo",
    "assign_roles",
    "guidance",
    "kinds_of",
    "roles_of",
]


class Tool(StrEnum):
    """A way to give a prompt on the canvas."""

    EXTREME = "extreme"
    BOX = "box"
    CLICK = "click"
    SCRIBBLE = "scribble"


@dataclass(frozen=True)
class ToolInfo:
    """How a tool is offered.

    Attributes
    ----------
    title : str
    key : str
        The letter that switches to it while any of our tools is on.
    kind : str
        The prompt kind an engine has to accept for it.
    drags : bool
        Whether the left button draws; otherwise dragging pans the view as always.
    tooltip : str
    """

    title: str
    key: str
    kind: str
    drags: bool
    tooltip: str


TOOLS: dict[Tool, ToolInfo] = {
    Tool.EXTREME: ToolInfo(
        "Extreme points",
        "E",
        "extreme_points",
        False,
        "Six clicks on the surface of the object: its outermost point in each direction. "
        "The surest way to a whole organ. Any order will do.",
    ),
    Tool.BOX: ToolInfo(
        "Box",
        "B",
        "box",
        True,
        "Drag a rectangle, or click two opposite corners; scroll and click again to make the "
        "box deeper. Hold Space to pan.",
    ),
    Tool.CLICK: ToolInfo(
        "Clicks",
        "C",
        "click",
        False,
        "Click inside the object to add, outside it to take away (Shift swaps). "
        "Good for corrections.",
    ),
    Tool.SCRIBBLE: ToolInfo(
        "Scribble",
        "S",
        "scribble",
        True,
        "Paint a stroke inside the object, or outside it (Shift swaps). Hold Space to pan.",
    ),
}

SIGN_KEY = "X"
"""The letter that swaps inside and outside."""


@dataclass(frozen=True)
class Role:
    """What an extreme point is the extreme of.

    Attributes
    ----------
    name : str
        As in "most anterior".
    letter : str
        Shown beside the point.
    direction : tuple of float
        World (x, y, z) in which it lies farthest.
    """

    name: str
    letter: str
    direction: tuple[float, float, float]


PATIENT_ROLES: tuple[Role, ...] = (
    Role("most superior (toward the head)", "S", (0, 0, 1)),
    Role("most inferior (toward the feet)", "I", (0, 0, -1)),
    Role("most anterior (front)", "A", (0, -1, 0)),
    Role("most posterior (back)", "P", (0, 1, 0)),
    Role("most to the patient's right", "R", (-1, 0, 0)),
    Role("most to the patient's left", "L", (1, 0, 0)),
)
"""In LPS: x grows to the left, y to the back, z to the head."""

IMAGE_ROLES: tuple[Role, ...] = (
    Role("on the first slice (z)", "z-", (0, 0, -1)),
    Role("on the last slice (z)", "z+", (0, 0, 1)),
    Role("lowest y", "y-", (0, -1, 0)),
    Role("highest y", "y+", (0, 1, 0)),
    Role("lowest x", "x-", (-1, 0, 0)),
    Role("highest x", "x+", (1, 0, 0)),
)


def roles_of(frame: Frame) -> tuple[Role, ...]:
    """Return the six roles in the order in which they are asked for."""
    return PATIENT_ROLES if frame == "patient" else IMAGE_ROLES


def assign_roles(points: ArrayLike, frame: Frame) -> tuple[Role, ...]:
    """Return what each extreme point is, whatever the order they were given in.

    The order asked for is believed as long as it is possible: each point lies farthest, among
    those given, in its role's direction. Otherwise the six roles are dealt out so that the
    points lie as far along them as they can.

    Parameters
    ----------
    points : array-like of float, shape (N, 3), N <= 6
        World (x, y, z).
    """
    roles = roles_of(frame)
    places = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    count = len(places)
    directions = np.array([role.direction for role in roles], dtype=np.float64)
    reach = (places - places.mean(axis=0)) @ directions.T if count else np.zeros((0, 6))
    asked = np.arange(count)
    if count and np.allclose(reach[asked, asked], reach.max(axis=0)[asked]):
        return roles[:count]
    best = max(
        itertools.permutations(range(6), count),
        key=lambda dealt: reach[asked, list(dealt)].sum() if count else 0.0,
    )
    return tuple(roles[k] for k in best)


def guidance(
    tool: Tool | None, prompts: PromptSet, frame: Frame, positive: bool, *, corner: bool = False
) -> str:
    """Return the sentence that says what the next click will do.

    Parameters
    ----------
    tool : Tool or None
        The tool that is on.
    prompts : PromptSet
        Prompts of the active object.
    frame : {"patient", "image"}
    positive : bool
        Whether clicks and scribbles mean inside.
    corner : bool
        Whether the first corner of a box waits for the second.
    """
    if tool is None:
        return "Choose a tool, then click on the image."
    if tool is Tool.EXTREME:
        return _extreme_guidance(prompts.extreme_points, frame)
    if tool is Tool.BOX:
        return _box_guidance(bool(prompts.boxes), corner)
    side, other = ("inside", "outside") if positive else ("outside", "inside")
    verb = "Click" if tool is Tool.CLICK else "Paint"
    return (
        f"{verb} {side} the object. {SIGN_KEY} swaps to {other}; "
        f"Shift+{verb.lower()} is {other} once."
    )


def _extreme_guidance(points: Sequence[tuple[float, float, float]], frame: Frame) -> str:
    if len(points) >= 6:
        return "All six extreme points are set. Correct with clicks (C) or scribbles (S)."
    taken = assign_roles(points, frame)
    wanted = next(role for role in roles_of(frame) if role not in taken)
    return (
        f"Extreme point {len(points) + 1} of 6: {wanted.name}. "
        "Scroll to it and click (any order works)."
    )


def _box_guidance(has_box: bool, corner: bool) -> str:
    if corner:
        return "Box: scroll to the far end of the object and click the opposite corner."
    if has_box:
        return "Box: click beyond an edge, or on another slice, to enlarge it; drag to start anew."
    return "Box: drag a rectangle around the object, or click one corner of it."


def kinds_of(prompts: PromptSet) -> str:
    """Return in words what is set: ``"6 extreme points, 1 click"``."""
    counts = (
        (len(prompts.extreme_points), "extreme point"),
        (len(prompts.boxes), "box"),
        (len(prompts.clicks), "click"),
        (len(prompts.scribbles), "scribble"),
        (int(prompts.mask is not None), "mask"),
    )
    plural = {"box": "boxes"}
    words = [f"{n} {w if n == 1 else plural.get(w, w + 's')}" for n, w in counts if n]
    return ", ".join(words) or "no prompts yet"
