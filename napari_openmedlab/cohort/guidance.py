"""Which of the six extreme points comes next, in words for whoever places them.

The order goes by view, so that the slice shown changes as little as it can: the lowest and the
highest slice first, then the four walls in an axial slice. Points may be placed in any order all
the same: which is which is decided when the structure is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.extreme_points import (
    ROLES,
    assign_walls,
    check_walls,
    wall_directions,
)
from napari_openmedlab.geometry.prompts import Point
from napari_openmedlab.geometry.volume import Geometry

__all__ = ["PLACING_ORDER", "Guidance", "guide"]

PLACING_ORDER = ("superior", "inferior", "right", "left", "anterior", "posterior")
"""The order in which points are asked for."""

_HOW = {
    "superior": "go up to the highest slice that shows it and click on it there",
    "inferior": "go down to the lowest slice that shows it and click on it there",
    "right": "click where it reaches farthest to the patient's right (left on the screen)",
    "left": "click where it reaches farthest to the patient's left (right on the screen)",
    "anterior": "click where it reaches farthest to the front (up in an axial slice)",
    "posterior": "click where it reaches farthest to the back (down in an axial slice)",
}


@dataclass(frozen=True)
class Guidance:
    """What to do next.

    Attributes
    ----------
    next : str
        The wall that the next point should mark; ``""`` if all six are there.
    sentence : str
        For the user.
    placed : tuple of str
        The wall each point so far is taken for, in the points' order.
    complete : bool
        Whether the six points can be kept as they are.
    """

    next: str
    sentence: str
    placed: tuple[str, ...] = ()
    complete: bool = False


def guide(points: Sequence[Point], name: str = "", geometry: Geometry | None = None) -> Guidance:
    """Return which point comes next.

    Parameters
    ----------
    points : sequence of (x, y, z)
        LPS mm, as placed so far.
    name : str
        Of the structure.
    geometry : Geometry, optional
        Grid of the scan, for oblique scans and the checks at the end.
    """
    what = f"'{name}'" if name else "the structure"
    count = len(points)
    if count > len(ROLES):
        return Guidance(
            "", f"{what} has {count} points: six are enough, remove {count - len(ROLES)}"
        )
    if count < len(ROLES):
        placed = _roles_so_far(points, geometry)
        wall = next(w for w in PLACING_ORDER if w not in placed)
        sentence = f"{count + 1} of 6, the {wall} end of {what}: {_HOW[wall]}"
        return Guidance(wall, sentence, placed)
    try:
        walls = assign_walls(points, geometry)
        notes = check_walls(walls, geometry, name or "structure")
    except PromptError as error:
        return Guidance("", f"{error}", _roles_so_far(points, geometry))
    placed = _roles_so_far(points, geometry)
    told = f" Look again: {notes[0]}" if notes else ""
    return Guidance("", f"{what} is complete: all six ends are marked.{told}", placed, True)


def _roles_so_far(points: Sequence[Point], geometry: Geometry | None) -> tuple[str, ...]:
    """Return the wall each point is taken for.

    While points are missing, positions can't tell (one point is the end of everything), so the
    order of asking counts; two points that plainly stand for each other's wall are swapped.
    """
    if len(points) == len(ROLES):
        from scipy.optimize import linear_sum_assignment

        upward = np.asarray(points, dtype=np.float64) @ wall_directions(geometry).T
        _, columns = linear_sum_assignment(np.hstack([upward, -upward]))
        return tuple(ROLES[c] for c in columns)
    placed = list(PLACING_ORDER[: len(points)])
    upward = np.asarray(points, dtype=np.float64).reshape(-1, 3) @ wall_directions(geometry).T
    for axis, (low, high) in enumerate(zip(ROLES[:3], ROLES[3:], strict=True)):
        if low in placed and high in placed:
            first, second = placed.index(low), placed.index(high)
            if upward[first, axis] > upward[second, axis]:
                placed[first], placed[second] = high, low
    return tuple(placed)
