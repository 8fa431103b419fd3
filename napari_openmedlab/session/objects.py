"""What a session is made of: objects, the engine chosen, and the state undo goes back to."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from napari_openmedlab.errors import SessionError
from napari_openmedlab.geometry.prompts import PromptSet

__all__ = [
    "LARGEST_ID",
    "Colour",
    "EngineChoice",
    "OverlapRule",
    "SegmentObject",
    "SessionState",
    "distinct_colour",
    "plain_values",
]

Colour = tuple[float, float, float]

LARGEST_ID = 65535
"""Labels are unsigned 16-bit integers."""

_GOLDEN_RATIO = 0.618033988749895


class OverlapRule(StrEnum):
    """Who keeps a voxel that two objects want. Locked objects always keep theirs."""

    KEEP = "keep"
    """Existing objects win: a new mask takes background only."""
    OVERWRITE = "overwrite"
    """The new mask wins over objects that are not locked."""


@dataclass(frozen=True)
class EngineChoice:
    """Which engine answers, and how it is asked.

    Attributes
    ----------
    engine : str
        Id in the catalogue.
    options : mapping
        Values that differ from the engine's defaults.
    auto_run : bool
        Whether every new prompt starts a run. A habit of the user: undo leaves it alone.
    avoid_neighbours : bool
        Whether voxels of other objects are handed to the engine as obstacles.
    """

    engine: str = "built-in"
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    auto_run: bool = True
    avoid_neighbours: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def __hash__(self) -> int:
        return hash((self.engine, tuple(sorted(self.options)), self.auto_run))


@dataclass(frozen=True)
class SegmentObject:
    """One structure being segmented. Frozen: every change makes a new one.

    Attributes
    ----------
    id : int
        Its value in the label array, 1 to 65535.
    name : str
    colour : tuple of float
        Red, green, blue in [0, 1].
    visible : bool
        Shown or hidden; a matter of view, so undo leaves it alone.
    locked : bool
        A locked object neither loses nor gains voxels.
    prompts : PromptSet
    score : float
        The engine's estimate of the mask's quality in [0, 1]; NaN if it gave none.
    engine : str
        Id of the engine that made the mask; ``""`` if none did.
    seconds : float
        Time that engine took for its last answer.
    voxels : int
        Voxels the object has in the label array.
    answered : PromptSet or None
        The prompts that stood when an engine last answered.
    notes : tuple of str
        The engine's sentences about its last answer.
    provenance : mapping
        What the engine said of itself: version, checkpoint hash, device (plain JSON values).
    """

    id: int
    name: str
    colour: Colour
    visible: bool = True
    locked: bool = False
    prompts: PromptSet = field(default_factory=PromptSet)
    score: float = math.nan
    engine: str = ""
    seconds: float = 0.0
    voxels: int = 0
    answered: PromptSet | None = None
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if not 1 <= self.id <= LARGEST_ID:
            raise SessionError(f"an object's id lies between 1 and {LARGEST_ID}, got {self.id}")
        if not self.name.strip():
            raise SessionError("an object needs a name")
        colour = tuple(float(c) for c in self.colour)
        if len(colour) != 3 or not all(0.0 <= c <= 1.0 for c in colour):
            raise SessionError(f"a colour is three numbers between 0 and 1, got {self.colour}")
        object.__setattr__(self, "colour", colour)
        object.__setattr__(self, "score", math.nan if math.isnan(self.score) else self.score)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SegmentObject):
            return NotImplemented
        # Tuples ask for identity first, so the one NaN of a missing score equals itself; the
        # comparison that dataclasses make from Python 3.13 on does not.
        names = [item.name for item in fields(self)]
        return tuple(getattr(self, n) for n in names) == tuple(getattr(other, n) for n in names)

    def __hash__(self) -> int:
        return hash((self.id, self.name, self.voxels))


@dataclass(frozen=True)
class SessionState:
    """Everything undo restores besides the label array. Small: its parts are shared.

    Attributes
    ----------
    objects : tuple of SegmentObject
        In the order in which they were added.
    active_id : int or None
        The object that new prompts go to.
    choice : EngineChoice
    """

    objects: tuple[SegmentObject, ...] = ()
    active_id: int | None = None
    choice: EngineChoice = field(default_factory=EngineChoice)

    def find(self, object_id: int) -> SegmentObject | None:
        """Return the object with this id, or ``None``."""
        return next((o for o in self.objects if o.id == object_id), None)

    def with_object(self, changed: SegmentObject) -> SessionState:
        """Return the state with the object of the same id replaced, or added at the end."""
        if self.find(changed.id) is None:
            return replace(self, objects=(*self.objects, changed))
        objects = tuple(changed if o.id == changed.id else o for o in self.objects)
        return replace(self, objects=objects)

    def without(self, object_id: int) -> SessionState:
        """Return the state without this object; the last remaining one becomes active."""
        objects = tuple(o for o in self.objects if o.id != object_id)
        active = self.active_id
        if active == object_id:
            active = objects[-1].id if objects else None
        return replace(self, objects=objects, active_id=active)

    def counted(self, deltas: Mapping[int, int]) -> SessionState:
        """Return the state with these numbers of voxels added to its objects."""
        objects = tuple(
            replace(o, voxels=o.voxels + deltas[o.id]) if deltas.get(o.id) else o
            for o in self.objects
        )
        return replace(self, objects=objects)

    def free_id(self, taken: Iterable[int] = ()) -> int:
        """Return the smallest unused id, or raise :class:`SessionError` if all are used."""
        used = {o.id for o in self.objects} | set(taken)
        for candidate in range(1, LARGEST_ID + 1):
            if candidate not in used:
                return candidate
        raise SessionError(f"a session holds at most {LARGEST_ID} objects")


def plain_values(value: Any) -> Any:
    """Return what an engine said of itself in values that JSON holds, so it can be saved.

    NumPy numbers and arrays become Python's, numbers that are not finite become ``None``, and
    what JSON has no word for becomes its text.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_values(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def distinct_colour(object_id: int) -> Colour:
    """Return a colour that differs from those of neighbouring ids and is always the same.

    Hues follow the golden ratio, so any run of consecutive ids is spread around the circle;
    every sixth id changes brightness as well.

    Examples
    --------
    >>> distinct_colour(1) == distinct_colour(1) != distinct_colour(2)
    True
    """
    hue = (0.02 + _GOLDEN_RATIO * (object_id - 1)) % 1.0
    tier = (object_id - 1) // 6 % 3
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.55, 0.95)[tier], (0.95, 1.0, 0.7)[tier])
    return round(red, 4), round(green, 4), round(blue, 4)
