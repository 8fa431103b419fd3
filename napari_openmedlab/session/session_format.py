"""Sessions as JSON and a block of bytes: the format inside a session file.

Steps share most of their objects and prompts, so both are written once, in tables, and named by
number. Compressed label changes and scribbles go to the block of bytes as they are.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import BoxPrompt, Click, MaskPrompt, PromptSet, Scribble
from napari_openmedlab.session.fingerprint import geometry_from_json, geometry_to_json
from napari_openmedlab.session.history import EngineRun, LabelChange, Step, StepKind
from napari_openmedlab.session.objects import EngineChoice, SegmentObject, SessionState

__all__ = ["Decoder", "Encoder"]

Json = dict[str, Any]


class Encoder:
    """Turns states and steps into plain values, collecting tables and bytes on the way."""

    def __init__(self) -> None:
        self.tables: dict[str, list[Json]] = {"objects": [], "prompts": [], "choices": []}
        self._numbers: dict[tuple[str, int], int] = {}
        self._kept: list[Any] = []  # keeps what ids refer to alive
        self._blobs: list[bytes] = []
        self._end = 0

    @property
    def data(self) -> bytes:
        """All bytes collected."""
        return b"".join(self._blobs)

    def blob(self, content: bytes) -> list[int]:
        """Keep bytes and return where they lie: offset and length."""
        place = [self._end, len(content)]
        self._blobs.append(content)
        self._end += len(content)
        return place

    def state(self, state: SessionState) -> Json:
        """Return a state as numbers into the tables."""
        return {
            "objects": [self._number("objects", o, self._object) for o in state.objects],
            "active": state.active_id,
            "choice": self._number("choices", state.choice, self._choice),
        }

    def step(self, step: Step) -> Json:
        """Return a step as plain values."""
        return {
            "kind": step.kind.value,
            "text": step.text,
            "object": step.object_id,
            "before": self.state(step.before),
            "after": self.state(step.after),
            "change": None if step.change is None else self._change(step.change),
            "run": None if step.run is None else self._run(step.run),
        }

    def _number(self, table: str, item: Any, encode: Callable[[Any], Json]) -> int:
        key = (table, id(item))
        if key not in self._numbers:
            values = encode(item)
            self._numbers[key] = len(self.tables[table])
            self.tables[table].append(values)
            self._kept.append(item)
        return self._numbers[key]

    def _object(self, item: SegmentObject) -> Json:
        return {
            "id": item.id,
            "name": item.name,
            "colour": list(item.colour),
            "visible": item.visible,
            "locked": item.locked,
            "prompts": self._prompts(item.prompts),
            "answered": self._prompts(item.answered),
            "score": None if math.isnan(item.score) else item.score,
            "engine": item.engine,
            "seconds": item.seconds,
            "voxels": item.voxels,
            "notes": list(item.notes),
            "provenance": dict(item.provenance),
        }

    def _prompts(self, prompts: PromptSet | None) -> int | None:
        return None if prompts is None else self._number("prompts", prompts, self._prompt_set)

    def _prompt_set(self, prompts: PromptSet) -> Json:
        return {
            "extreme_points": [list(p) for p in prompts.extreme_points],
            "boxes": [[list(b.corner), list(b.opposite)] for b in prompts.boxes],
            "clicks": [[list(c.point), c.positive] for c in prompts.clicks],
            "scribbles": [self._number_of_scribble(s) for s in prompts.scribbles],
            "mask": None if prompts.mask is None else self._mask(prompts.mask),
        }

    def _number_of_scribble(self, scribble: Scribble) -> int:
        self.tables.setdefault("scribbles", [])
        return self._number(
            "scribbles",
            scribble,
            lambda s: {
                "positive": s.positive,
                "points": self.blob(zlib.compress(s.points.astype("<f8").tobytes(), 1)),
            },
        )

    def _mask(self, prompt: MaskPrompt) -> Json:
        bits = np.packbits(prompt.patch.mask).tobytes()
        return {
            "box": [list(prompt.patch.box.start), list(prompt.patch.box.stop)],
            "bits": self.blob(zlib.compress(bits, 1)),
            "geometry": geometry_to_json(prompt.geometry),
        }

    @staticmethod
    def _choice(choice: EngineChoice) -> Json:
        return {
            "engine": choice.engine,
            "options": dict(choice.options),
            "auto_run": choice.auto_run,
            "avoid_neighbours": choice.avoid_neighbours,
        }

    def _change(self, change: LabelChange) -> Json:
        return {
            "box": [list(change.box.start), list(change.box.stop)],
            "changed": self.blob(change.changed),
            "before": self.blob(change.before),
            "after": self.blob(change.after),
        }

    def _run(self, run: EngineRun) -> Json:
        return {
            "engine": run.engine,
            "options": dict(run.options),
            "prompts": self._prompts(run.prompts),
            "previous_prompts": self._prompts(run.previous_prompts),
            "previous": run.previous,
            "obstacles": run.obstacles,
            "overlap": run.overlap,
            "repeatable": run.repeatable,
            "provenance": dict(run.provenance),
        }


class Decoder:
    """Turns the plain values back. Raises ``KeyError``, ``ValueError`` ... on damaged ones."""

    def __init__(self, tables: Mapping[str, Sequence[Json]], data: bytes) -> None:
        self._data = data
        self._scribbles = [self._scribble(s) for s in tables.get("scribbles", ())]
        self._prompts = [self._prompt_set(p) for p in tables["prompts"]]
        self._objects = [self._object(o) for o in tables["objects"]]
        self._choices = [EngineChoice(**c) for c in tables["choices"]]

    def blob(self, place: Sequence[int]) -> bytes:
        """Return the bytes at an offset."""
        start, length = place
        content = self._data[start : start + length]
        if len(content) != length:
            raise ValueError("the block of bytes is too short")
        return content

    def state(self, values: Json) -> SessionState:
        """Return the state."""
        objects = tuple(self._objects[number] for number in values["objects"])
        return SessionState(objects, values["active"], self._choices[values["choice"]])

    def step(self, values: Json) -> Step:
        """Return the step."""
        return Step(
            StepKind(values["kind"]),
            values["text"],
            values["object"],
            self.state(values["before"]),
            self.state(values["after"]),
            None if values["change"] is None else self._change(values["change"]),
            None if values["run"] is None else self._run(values["run"]),
        )

    def _object(self, values: Json) -> SegmentObject:
        fields = dict(values)
        fields["prompts"] = self._prompts[values["prompts"]]
        fields["answered"] = self._optional(values["answered"])
        fields["score"] = math.nan if values["score"] is None else values["score"]
        fields["colour"] = tuple(values["colour"])
        fields["notes"] = tuple(values["notes"])
        return SegmentObject(**fields)

    def _optional(self, number: int | None) -> PromptSet | None:
        return None if number is None else self._prompts[number]

    def _prompt_set(self, values: Json) -> PromptSet:
        return PromptSet(
            extreme_points=tuple(tuple(p) for p in values["extreme_points"]),
            boxes=tuple(BoxPrompt(tuple(a), tuple(b)) for a, b in values["boxes"]),
            clicks=tuple(Click(tuple(p), bool(positive)) for p, positive in values["clicks"]),
            scribbles=tuple(self._scribbles[number] for number in values["scribbles"]),
            mask=None if values["mask"] is None else self._mask(values["mask"]),
        )

    def _scribble(self, values: Json) -> Scribble:
        points = np.frombuffer(zlib.decompress(self.blob(values["points"])), dtype="<f8")
        return Scribble(points.reshape(-1, 3), bool(values["positive"]))

    def _mask(self, values: Json) -> MaskPrompt:
        box = _box(values["box"])
        bits = np.frombuffer(zlib.decompress(self.blob(values["bits"])), dtype=np.uint8)
        mask = np.unpackbits(bits, count=box.size).astype(bool).reshape(box.shape)
        return MaskPrompt(MaskPatch(box, mask), geometry_from_json(values["geometry"]))

    def _change(self, values: Json) -> LabelChange:
        parts = (self.blob(values[name]) for name in ("changed", "before", "after"))
        return LabelChange(_box(values["box"]), *parts)

    def _run(self, values: Json) -> EngineRun:
        fields = dict(values)
        fields["prompts"] = self._prompts[values["prompts"]]
        fields["previous_prompts"] = self._optional(values["previous_prompts"])
        return EngineRun(**fields)


def _box(corners: Sequence[Sequence[int]]) -> Box:
    start, stop = corners
    if len(start) != 3 or len(stop) != 3:
        raise GeometryError(f"not a box: {corners}")
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
