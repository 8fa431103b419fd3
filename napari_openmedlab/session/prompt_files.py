"""Prompts in files: our JSON, in and out, and 3D Slicer's markups, in.

Our format::

    {"coordinate_system": "LPS",
     "objects": [{"name": "spleen",
                  "extreme_points": [[x, y, z], ...],
                  "box": [[x, y, z], [x, y, z]],
                  "clicks": [{"point": [x, y, z], "positive": true}],
                  "scribbles": "spleen_scribbles.nii.gz"}]}

Points are world points (mm for a patient), ``coordinate_system`` is ``"LPS"`` or ``"RAS"``.
``scribbles`` names a label image on any grid, relative to the JSON: 1 inside, 2 outside the
object. All keys but ``name`` may be left out. An image without patient axes has only its own
axes; its points go by ``"LPS"`` as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_openmedlab.errors import PromptError, ReadError
from napari_openmedlab.geometry.prompts import BoxPrompt, Click, Point, PromptSet, Scribble
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.io.atomic import staging
from napari_openmedlab.session.prompt_checks import check_prompts
from napari_openmedlab.session.prompt_json import JsonFile, flip_ras
from napari_openmedlab.session.slicer_markups import read_markups

__all__ = ["NamedPrompts", "read_prompts", "write_prompts"]

_INSIDE, _OUTSIDE = 1, 2
_OBJECT_KEYS = {"name", "extreme_points", "box", "clicks", "scribbles"}


@dataclass(frozen=True)
class NamedPrompts:
    """The prompts of one object and its name."""

    name: str
    prompts: PromptSet


def read_prompts(path: str | Path, volume: Volume) -> list[NamedPrompts]:
    """Read the prompts of one or more objects.

    Parameters
    ----------
    path : path
        Our JSON, or a markups file of 3D Slicer (see ``slicer_markups``).
    volume : Volume
        The image they are meant for.

    Raises
    ------
    ReadError
        If the file, or a scribble image it names, is missing or can't be read.
    PromptError
        If a key is missing or wrong, or a prompt lies outside the volume; names file and key.
    """
    file = JsonFile.open(Path(path))
    if "markups" in file.content:
        found = list(read_markups(file, volume.geometry).items())
    else:
        found = _read_objects(file, volume.geometry)
    for name, prompts in found:
        try:
            check_prompts(prompts, volume.geometry)
        except PromptError as error:
            raise PromptError(f"in {file.path}, object '{name}': {error}") from error
    return [NamedPrompts(name, prompts) for name, prompts in found]


def _read_objects(file: JsonFile, geometry: Geometry) -> list[tuple[str, PromptSet]]:
    if "coordinate_system" not in file.content:
        raise file.wrong("coordinate_system", '"LPS" or "RAS"', None)
    system = file.content["coordinate_system"]
    if system not in ("LPS", "RAS"):
        raise file.wrong("coordinate_system", '"LPS" or "RAS"', system)
    if system == "RAS" and geometry.frame != "patient":
        raise PromptError(
            f"{file.path} gives points in RAS, but the image has no patient axes; write them in "
            'the image\'s own axes with "coordinate_system": "LPS"'
        )
    found = []
    items = file.items(file.content.get("objects"), "objects")
    for number, item in enumerate(items):
        key = f"objects[{number}]"
        entry = file.table(item, key)
        if unknown := sorted(set(entry) - _OBJECT_KEYS):
            raise PromptError(
                f"in {file.path}, {key} has the unknown key '{unknown[0]}'; known are "
                f"{', '.join(sorted(_OBJECT_KEYS))}"
            )
        name = file.text(entry.get("name"), f"{key}.name")
        found.append((name, _read_object(file, key, entry, flip_ras if system == "RAS" else _same)))
    if not found:
        raise PromptError(f"{file.path} has no objects")
    return found


def _same(point: Point) -> Point:
    return point


def _read_object(
    file: JsonFile, key: str, entry: dict[str, Any], turn: Callable[[Point], Point]
) -> PromptSet:
    extremes, boxes, clicks = [], [], []
    where = f"{key}.extreme_points"
    for number, value in enumerate(file.items(entry.get("extreme_points", []), where)):
        extremes.append(turn(file.point(value, f"{where}[{number}]")))
    if len(extremes) > 6:
        raise file.wrong(where, "at most six points", f"{len(extremes)} points")
    if entry.get("box") is not None:
        corners = file.items(entry["box"], f"{key}.box", (2,))
        first, second = (turn(file.point(c, f"{key}.box[{n}]")) for n, c in enumerate(corners))
        boxes.append(BoxPrompt(first, second))
    where = f"{key}.clicks"
    for number, value in enumerate(file.items(entry.get("clicks", []), where)):
        click = file.table(value, f"{where}[{number}]")
        point = turn(file.point(click.get("point"), f"{where}[{number}].point"))
        positive = file.flag(click.get("positive", True), f"{where}[{number}].positive")
        clicks.append(Click(point, positive))
    scribbles: tuple[Scribble, ...] = ()
    if entry.get("scribbles") is not None:
        scribbles = _read_scribbles(file, entry["scribbles"], f"{key}.scribbles")
    return PromptSet(tuple(extremes), tuple(boxes), tuple(clicks), scribbles)


def _read_scribbles(file: JsonFile, value: object, key: str) -> tuple[Scribble, ...]:
    from napari_openmedlab.io.api import read_labels

    path = file.path.parent / file.text(value, key)
    if not path.exists():
        raise ReadError(f"in {file.path}, '{key}' names {path}, which does not exist", path)
    painted, _ = read_labels(path)
    labels = np.asarray(painted.array)
    found = []
    for number, positive in ((_INSIDE, True), (_OUTSIDE, False)):
        index = np.argwhere(labels == number)
        if len(index):
            found.append(Scribble(painted.geometry.to_world(index), positive))
    if not found:
        raise PromptError(
            f"in {file.path}, '{key}' names {path}, which holds neither {_INSIDE} (inside) nor "
            f"{_OUTSIDE} (outside)"
        )
    return tuple(found)


def write_prompts(path: str | Path, named: Sequence[NamedPrompts], volume: Volume) -> Path:
    """Write prompts as JSON in LPS, scribbles as label images beside it.

    Points, boxes and clicks read back to the same bits. Scribbles read back as the same voxels
    of ``volume``, one scribble inside and one outside; where both were painted the later one
    counts. Several boxes of an object are written as the one that holds them all. A mask prompt
    has no place in this format: export it as labels.

    Raises
    ------
    PromptError
        If an object has a mask prompt.
    WriteError
        If a file can't be written.
    """
    path = Path(path)
    objects = [_object_to_json(each, number, path, volume) for number, each in enumerate(named)]
    content = {"coordinate_system": "LPS", "objects": objects}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with staging(path.parent) as folder:
        (folder / path.name).write_text(text, encoding="utf-8")
    return path


def _object_to_json(each: NamedPrompts, number: int, path: Path, volume: Volume) -> dict[str, Any]:
    prompts = each.prompts
    if prompts.mask is not None:
        raise PromptError(
            f"'{each.name}' starts from a mask, which a prompt file can't hold; export the mask "
            "as labels instead"
        )
    entry: dict[str, Any] = {"name": each.name}
    if prompts.extreme_points:
        entry["extreme_points"] = [list(p) for p in prompts.extreme_points]
    if prompts.boxes:
        box = _united(prompts.boxes, volume.geometry)
        entry["box"] = [list(box.corner), list(box.opposite)]
    if prompts.clicks:
        entry["clicks"] = [{"point": list(c.point), "positive": c.positive} for c in prompts.clicks]
    if prompts.scribbles:
        entry["scribbles"] = _write_scribbles(each, number, path, volume)
    return entry


def _united(boxes: Sequence[BoxPrompt], geometry: Geometry) -> BoxPrompt:
    if len(boxes) == 1:
        return boxes[0]
    whole = boxes[0].to_box(geometry)
    for box in boxes[1:]:
        whole = whole.union(box.to_box(geometry))
    return BoxPrompt.from_box(whole, geometry)


def _write_scribbles(each: NamedPrompts, number: int, path: Path, volume: Volume) -> str:
    from napari_openmedlab.io.api import write

    labels = np.zeros(volume.geometry.shape, dtype=np.uint8)
    for scribble in each.prompts.scribbles:
        index = np.rint(volume.geometry.to_index(scribble.points)).astype(int)
        labels[tuple(index.T)] = _INSIDE if scribble.positive else _OUTSIDE
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", each.name) or "object"
    name = f"{path.name.removesuffix('.json')}_{number + 1}_{safe}_scribbles.nii.gz"
    write(path.with_name(name), labels, volume)
    return name
