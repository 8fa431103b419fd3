"""Point-like prompts as rows of a points layer, and such rows back as prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.geometry.prompts import Click, Point, PromptSet, Scribble
from napari_openmedlab.geometry.volume import Frame
from napari_openmedlab.widgets.tools import assign_roles

__all__ = ["COLOURS", "PointRows", "rows_of", "rows_to_prompts"]

COLOURS = {
    ("extreme", True): "#fbbf24",
    ("click", True): "#22c55e",
    ("click", False): "#ef4444",
    ("scribble", True): "#22c55e",
    ("scribble", False): "#ef4444",
    ("corner", True): "#22d3ee",
}
"""Colour of a prompt by kind and sign."""

_SYMBOLS = {"extreme": "disc", "click": "disc", "scribble": "square", "corner": "cross"}


@dataclass(frozen=True, eq=False)
class PointRows:
    """What the points layer shows, one row per point.

    Attributes
    ----------
    points : ndarray, shape (N, 3)
        World (x, y, z).
    kinds : tuple of str
        extreme, click, scribble, or corner (of a box in the making).
    positive : tuple of bool
    groups : tuple of int
        Number of the scribble a point belongs to, else -1.
    labels : tuple of str
        Text beside the point.
    """

    points: NDArray[np.float64]
    kinds: tuple[str, ...]
    positive: tuple[bool, ...]
    groups: tuple[int, ...]
    labels: tuple[str, ...]

    def features(self) -> dict[str, Any]:
        """Return the columns of the layer's features table."""
        return {
            "kind": np.array(self.kinds, dtype=object),
            "positive": np.array(self.positive, dtype=bool),
            "group": np.array(self.groups, dtype=int),
            "row": np.arange(len(self.kinds)),
            "label": np.array(self.labels, dtype=object),
        }

    def colours(self) -> list[str]:
        """Return the colour of each point."""
        return [COLOURS[key] for key in zip(self.kinds, self.positive, strict=True)]

    def symbols(self) -> list[str]:
        """Return the marker of each point."""
        return [_SYMBOLS[kind] for kind in self.kinds]


def rows_of(prompts: PromptSet, frame: Frame, corner: Point | None = None) -> PointRows:
    """Return the rows that show a set of prompts.

    Parameters
    ----------
    corner : point, optional
        First corner of a box that waits for its second.
    """
    roles = assign_roles(prompts.extreme_points, frame)
    rows: list[tuple[Sequence[float], str, bool, int, str]] = [
        (point, "extreme", True, -1, role.letter)
        for point, role in zip(prompts.extreme_points, roles, strict=True)
    ]
    rows += [(c.point, "click", c.positive, -1, "+" if c.positive else "−") for c in prompts.clicks]
    for group, scribble in enumerate(prompts.scribbles):
        rows += [(p, "scribble", scribble.positive, group, "") for p in scribble.points]
    if corner is not None:
        rows.append((corner, "corner", True, -1, ""))
    points = np.array([row[0] for row in rows], dtype=np.float64).reshape(-1, 3)
    _, kinds, positive, groups, labels = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return PointRows(points, tuple(kinds), tuple(positive), tuple(groups), tuple(labels))


def rows_to_prompts(before: PromptSet, points: NDArray[np.float64], table: Any) -> PromptSet:
    """Return the prompts that the rows of an edited points layer stand for.

    Parameters
    ----------
    before : PromptSet
        Gives box and mask, which have no rows.
    points : ndarray, shape (N, 3)
        World (x, y, z) of each row.
    table : data frame
        The layer's features. A row added with napari's own tool is a click.
    """
    kinds = [str(kind) for kind in table["kind"]]
    positive = [bool(sign) for sign in table["positive"]]
    groups = [int(group) for group in table["group"]]
    scribbles = []
    for group in sorted({g for g, kind in zip(groups, kinds, strict=True) if kind == "scribble"}):
        rows = [k for k, g in enumerate(groups) if g == group and kinds[k] == "scribble"]
        scribbles.append(Scribble(points[rows], positive[rows[0]]))
    extreme = [points[k] for k, kind in enumerate(kinds) if kind == "extreme"]
    clicks = [Click(points[k], positive[k]) for k, kind in enumerate(kinds) if kind == "click"]
    return replace(
        before,
        extreme_points=tuple(extreme),
        clicks=tuple(clicks),
        scribbles=tuple(scribbles),
    )
