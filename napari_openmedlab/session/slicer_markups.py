"""Prompts from 3D Slicer's markups files (``.mrk.json``): point lists and ROI boxes.

How a markup becomes prompts:

* A **point list** (type ``Fiducial``) of exactly six placed points gives the six extreme points,
  unless one of them is negative. Any other number gives clicks.
* A click is **negative** if the label or description of its point, or else the name of the
  list, holds the word ``neg``, ``negative``, ``background`` or ``bg``; else it is positive.
* An **ROI** gives the box around it, with edges along the image's axes.
* Markups that share an object's name become prompts of one object. The object's name is the
  markup's without a word or number that only says what it is: ``liver negative``,
  ``liver_neg``, ``liver ROI`` and ``liver`` are all the object ``liver``.

Points that were not placed (``positionStatus`` other than ``defined``) are passed over.

References
----------
3D Slicer, ``markups-schema-v1.0.3.json``: ``coordinateSystem`` is LPS unless it says RAS; of
``orientation``, values 0, 3 and 6 are the ROI's x axis.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.prompts import BoxPrompt, Click, Point, PromptSet, as_point
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.session.prompt_json import JsonFile, flip_ras

__all__ = ["read_markups"]

_NEGATIVE = re.compile(r"(?<![a-z])(neg|negative|background|bg)(?![a-z])", re.IGNORECASE)
_KIND_WORDS = re.compile(
    r"[\s_-]*(?<![a-z])(neg|negative|pos|positive|background|foreground|bg|fg|roi|box|points?|"
    r"extreme|extremes|clicks?)(?![a-z])[\s_-]*",
    re.IGNORECASE,
)
_UM_PER_MM = 1000.0
_IDENTITY = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]


def read_markups(file: JsonFile, geometry: Geometry) -> dict[str, PromptSet]:
    """Return the prompts of each object in a markups file, in the volume's world frame.

    Raises
    ------
    PromptError
        Naming the file and the key that is missing or wrong.
    """
    found: dict[str, PromptSet] = {}
    for number, item in enumerate(file.items(file.content.get("markups"), "markups")):
        key = f"markups[{number}]"
        markup = file.table(item, key)
        kind = file.text(markup.get("type"), f"{key}.type")
        if kind not in ("Fiducial", "ROI"):
            continue
        title = str(markup.get("name") or "")
        name = _KIND_WORDS.sub(" ", title).strip() or "object"
        old = found.get(name, PromptSet())
        reader = _MarkupReader(file, key, markup, geometry)
        found[name] = reader.roi(old) if kind == "ROI" else reader.points(old, title)
    if not found:
        raise PromptError(
            f"{file.path} holds no point list and no ROI; lines, curves and planes are not prompts"
        )
    return found


class _MarkupReader:
    """Reads one markup."""

    def __init__(
        self, file: JsonFile, key: str, markup: dict[str, Any], geometry: Geometry
    ) -> None:
        self._file = file
        self._key = key
        self._markup = markup
        self._geometry = geometry
        self._ras = self._is_ras()
        self._scale = self._unit_scale()

    def _is_ras(self) -> bool:
        system = self._markup.get("coordinateSystem", "LPS")
        if system in ("LPS", 1, "1"):
            return False
        if system in ("RAS", 0, "0"):  # old point files number them
            return True
        raise self._file.wrong(f"{self._key}.coordinateSystem", '"LPS" or "RAS"', system)

    def _unit_scale(self) -> float:
        units = self._markup.get("coordinateUnits", "mm")
        unit = units[0] if isinstance(units, list) and units else units
        if unit not in ("mm", "um"):
            raise self._file.wrong(f"{self._key}.coordinateUnits", '"mm" or "um"', units)
        if unit == self._geometry.unit or self._geometry.unit == "pixel":
            return 1.0
        return _UM_PER_MM if unit == "mm" else 1.0 / _UM_PER_MM

    def _world(self, point: Point) -> Point:
        x, y, z = flip_ras(point) if self._ras else point
        return x * self._scale, y * self._scale, z * self._scale

    def points(self, old: PromptSet, title: str) -> PromptSet:
        """Add a point list to an object's prompts."""
        placed: list[Click] = []
        key = f"{self._key}.controlPoints"
        for number, item in enumerate(self._file.items(self._markup.get("controlPoints"), key)):
            entry = self._file.table(item, f"{key}[{number}]")
            if entry.get("positionStatus", "defined") != "defined":
                continue
            point = self._file.point(entry.get("position"), f"{key}[{number}].position")
            words = f"{entry.get('label') or ''} {entry.get('description') or ''} {title}"
            placed.append(Click(self._world(point), _NEGATIVE.search(words) is None))
        if len(placed) == 6 and all(c.positive for c in placed):
            if old.extreme_points:
                raise PromptError(
                    f"{self._file.path} has two lists of six extreme points for '{title}'; give "
                    "them different names"
                )
            return replace(old, extreme_points=tuple(c.point for c in placed))
        return replace(old, clicks=(*old.clicks, *placed))

    def roi(self, old: PromptSet) -> PromptSet:
        """Add an ROI to an object's prompts, as the box along the image axes that holds it."""
        file, key = self._file, self._key
        centre = np.array(file.point(self._markup.get("center"), f"{key}.center"))
        size = np.array(file.point(self._markup.get("size"), f"{key}.size"))
        if (size < 0).any():
            raise file.wrong(f"{key}.size", "three lengths of at least 0", size.tolist())
        turn = self._markup.get("orientation", _IDENTITY)
        axes = np.array(file.numbers(turn, f"{key}.orientation", 9)).reshape(3, 3)
        signs = np.array(list(product((-0.5, 0.5), repeat=3)))
        corners = centre + (signs * size) @ axes.T
        world = [self._world(as_point(corner)) for corner in corners]
        index = self._geometry.to_index(world)
        low, high = self._geometry.to_world([index.min(axis=0), index.max(axis=0)])
        return replace(old, boxes=(*old.boxes, BoxPrompt(as_point(low), as_point(high))))
