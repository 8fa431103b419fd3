"""Undo and redo: steps that keep the state and a compressed change of the label array."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.geometry.boxes import Box, box_of_mask
from napari_openmedlab.geometry.labels import LabelPatch
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.session.objects import SessionState

__all__ = ["EngineRun", "History", "LabelChange", "Step", "StepKind"]

DEFAULT_BUDGET = 512 * 1024 * 1024
"""Bytes of history kept in memory."""

_LEVEL = 1  # masks are runs of equal bytes: higher levels cost time and gain little
_STEP_OVERHEAD = 512  # bytes counted for a step's own objects

Labels = NDArray[np.uint16]


@dataclass(frozen=True)
class LabelChange:
    """A change of the label array in compressed form: which voxels, from what, to what.

    Attributes
    ----------
    box : Box
        The smallest box that holds all changed voxels.
    changed : bytes
        zlib of the packed bits of the changed voxels (``numpy.packbits``, C order).
    before, after : bytes
        zlib of the little-endian uint16 values of the changed voxels, C order; a single value
        if they all have the same one.
    """

    box: Box
    changed: bytes
    before: bytes
    after: bytes

    @classmethod
    def of(cls, patch: LabelPatch) -> tuple[LabelChange | None, dict[int, int]]:
        """Compress a patch and count the voxels that each value gained (or lost, if negative).

        The change is ``None`` if the patch changes nothing.
        """
        changed = patch.before != patch.after
        inner = box_of_mask(changed)
        if inner.is_empty:
            return None, {}
        changed = changed[inner.slices]
        before = _picked(patch.before[inner.slices], changed)
        after = _picked(patch.after[inner.slices], changed)
        gained: dict[int, int] = {}
        count = int(np.count_nonzero(changed))
        for values, sign in ((before, -1), (after, 1)):
            for value, voxels in _tally(values, count).items():
                gained[value] = gained.get(value, 0) + sign * voxels
        bits = np.packbits(changed)
        packed = (zlib.compress(part.tobytes(), _LEVEL) for part in (bits, before, after))
        return cls(inner.shift(patch.box.start), *packed), gained

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return len(self.changed) + len(self.before) + len(self.after)

    def mask(self) -> NDArray[np.bool_]:
        """Return the changed voxels, shape ``box.shape``."""
        bits = np.frombuffer(zlib.decompress(self.changed), dtype=np.uint8)
        return np.unpackbits(bits, count=self.box.size).astype(bool).reshape(self.box.shape)

    def values(self, *, back: bool) -> Labels:
        """Return what the changed voxels get (``back``: had), one value or one per voxel."""
        return np.frombuffer(zlib.decompress(self.before if back else self.after), dtype="<u2")

    def write(self, labels: NDArray[Any], *, back: bool = False) -> None:
        """Write the change into a full-size label array, in place; ``back`` takes it back."""
        labels[self.box.slices][self.mask()] = _spread(self.values(back=back))


def _picked(values: NDArray[Any], changed: NDArray[np.bool_]) -> Labels:
    """Return the changed values, or only the first one if they are all equal."""
    picked = values[changed].astype("<u2", copy=False)
    return picked[:1] if picked.min() == picked.max() else picked


def _tally(picked: Labels, count: int) -> dict[int, int]:
    if len(picked) == 1:
        return {int(picked[0]): count}
    found = np.bincount(picked)
    return {int(value): int(found[value]) for value in np.flatnonzero(found)}


def _spread(values: Labels) -> Any:
    return values[0] if len(values) == 1 else values


class StepKind(StrEnum):
    """What a step did."""

    OBJECT = "object"
    """An object was added, removed, renamed, recoloured or locked."""
    PROMPTS = "prompts"
    """Prompts changed and no mask followed (yet)."""
    ENGINE = "engine"
    """An engine answered, perhaps to the prompts given in the same step."""
    EDIT = "edit"
    """Labels were painted by hand."""


@dataclass(frozen=True)
class EngineRun:
    """What is needed, besides the state before the step, to ask the engine again.

    Attributes
    ----------
    engine : str
    options : mapping
        All options, defaults filled in.
    prompts : PromptSet
        The prompts the engine answered.
    previous_prompts : PromptSet or None
    previous : bool
        Whether the object's mask as it stood was handed over.
    obstacles : bool
        Whether the other objects were handed over as obstacles.
    overlap : str
        The overlap rule under which the answer was written.
    repeatable : bool
        ``False`` if the labels around the object changed while the engine ran, so that asking
        again would ask something else; replay then takes the stored change.
    provenance : mapping
        What the engine said of itself.
    """

    engine: str
    options: Mapping[str, Any]
    prompts: PromptSet
    previous_prompts: PromptSet | None
    previous: bool
    obstacles: bool
    overlap: str
    repeatable: bool = True
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Step:
    """One undoable step.

    Attributes
    ----------
    kind : StepKind
    text : str
        What undo would take back, for menus: ``"add liver"``.
    object_id : int
    before, after : SessionState
    change : LabelChange or None
    run : EngineRun or None
        For steps of kind ENGINE.
    """

    kind: StepKind
    text: str
    object_id: int
    before: SessionState
    after: SessionState
    change: LabelChange | None = None
    run: EngineRun | None = None

    @property
    def nbytes(self) -> int:
        """About how many bytes the step holds that no other step shares."""
        size = _STEP_OVERHEAD + 8 * (len(self.before.objects) + len(self.after.objects))
        size += 0 if self.change is None else self.change.nbytes
        old, new = self.before.find(self.object_id), self.after.find(self.object_id)
        if new is None:
            return size
        known = {id(s) for s in old.prompts.scribbles} if old else set()
        size += sum(s.points.nbytes for s in new.prompts.scribbles if id(s) not in known)
        mask = new.prompts.mask
        if mask is not None and (old is None or old.prompts.mask is not mask):
            size += mask.patch.mask.nbytes
        size += 100 * (len(new.prompts.clicks) + len(new.prompts.extreme_points))
        return size


class History:
    """Steps done and undone, within a budget of bytes; the oldest are given up first.

    Parameters
    ----------
    budget : int
        Bytes. The newest step is kept whatever its size.
    on_drop : callable, optional
        Told each step that leaves at the old end, oldest first.
    """

    def __init__(
        self, budget: int = DEFAULT_BUDGET, on_drop: Callable[[Step], None] | None = None
    ) -> None:
        self.budget = budget
        self.dropped = 0
        self._on_drop = on_drop
        self._past: list[Step] = []
        self._future: list[Step] = []
        self._nbytes = 0

    @property
    def past(self) -> tuple[Step, ...]:
        """Steps that can be undone, oldest first."""
        return tuple(self._past)

    @property
    def future(self) -> tuple[Step, ...]:
        """Steps that can be redone, the next one last."""
        return tuple(self._future)

    @property
    def nbytes(self) -> int:
        """Bytes held by all steps."""
        return self._nbytes

    @property
    def last(self) -> Step | None:
        """The step that undo would take back."""
        return self._past[-1] if self._past else None

    def push(self, step: Step) -> None:
        """Add a step; what could be redone is forgotten."""
        self._nbytes += step.nbytes - sum(s.nbytes for s in self._future)
        self._future.clear()
        self._past.append(step)
        self._trim()

    def replace_last(self, step: Step) -> None:
        """Put a step in the place of the last one (it and a prompt change became one)."""
        self._nbytes -= self._past.pop().nbytes
        self.push(step)

    def undo(self) -> Step | None:
        """Move the last step to those that can be redone and return it."""
        if not self._past:
            return None
        self._future.append(self._past.pop())
        return self._future[-1]

    def redo(self) -> Step | None:
        """Move the next step back and return it."""
        if not self._future:
            return None
        self._past.append(self._future.pop())
        return self._past[-1]

    def restore(self, past: list[Step], future: list[Step], dropped: int) -> None:
        """Take over the steps of a saved session."""
        self._past, self._future, self.dropped = list(past), list(future), dropped
        self._nbytes = sum(s.nbytes for s in (*past, *future))
        self._trim()

    def _trim(self) -> None:
        gone = 0
        while self._nbytes > self.budget and gone < len(self._past) - 1:
            self._nbytes -= self._past[gone].nbytes
            gone += 1
        for step in self._past[:gone]:
            if self._on_drop is not None:
                self._on_drop(step)
        del self._past[:gone]
        self.dropped += gone
