"""What a session knows and how it remembers: state, labels, signals, undo.

:class:`Ledger` is the half of a session that keeps; ``session.Session`` adds the commands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_openmedlab.errors import SessionError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import MaskPatch, count_labels
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.session.history import (
    DEFAULT_BUDGET,
    EngineRun,
    History,
    LabelChange,
    Step,
    StepKind,
)
from napari_openmedlab.session.label_map import LabelMap, StartLabels, as_labels
from napari_openmedlab.session.objects import (
    Colour,
    OverlapRule,
    SegmentObject,
    SessionState,
    distinct_colour,
)
from napari_openmedlab.session.snapshot import Snapshot

__all__ = ["Ledger", "new_object"]

_CUBIC_ML = {"mm": 1e-3, "um": 1e-12}  # ml per cubic unit


class Ledger:
    """State, labels and history of a session; see :class:`~.session.Session`."""

    objects_changed = Signal()
    active_changed = Signal()
    prompts_changed = Signal(int)
    labels_changed = Signal(Box)
    choice_changed = Signal()
    history_changed = Signal()

    def __init__(
        self,
        volume: Volume,
        *,
        labels: NDArray[Any] | None = None,
        history_bytes: int = DEFAULT_BUDGET,
    ) -> None:
        shape = volume.geometry.shape
        if labels is None:
            labels = np.zeros(shape, dtype=np.uint16)
        self._volume = volume
        self._map = LabelMap(as_labels(labels, shape))
        self._start = StartLabels.of(self._map.array)
        self._overlap = OverlapRule.KEEP
        self._state = SessionState()
        for value, count in self._map.counts.items():
            self._state = self._state.with_object(new_object(value, voxels=count))
        if self._state.objects:
            self._state = replace(self._state, active_id=self._state.objects[0].id)
        self._start_state = self._state
        self._history = History(history_bytes, self._forget)

    @classmethod
    def resume(cls, snapshot: Snapshot, volume: Volume | None = None) -> Self:
        """Return a session that goes on where a snapshot was taken, undo and redo included.

        Parameters
        ----------
        snapshot : Snapshot
        volume : Volume, optional
            The image, if the snapshot's own stands for an absent one.
        """
        image = snapshot.volume if volume is None else volume
        start = StartLabels(image.geometry.shape, snapshot.start_slices)
        labels = start.to_array()
        for step in snapshot.past:
            if step.change is not None:
                step.change.write(labels)
        session = cls(image, labels=labels)
        session._start, session._start_state = start, snapshot.start_state
        session._state, session._overlap = snapshot.state, snapshot.overlap
        session._history.restore(list(snapshot.past), list(snapshot.future), snapshot.dropped)
        return session

    def snapshot(self) -> Snapshot:
        """Return the session as frozen parts that share its large pieces."""
        return Snapshot(
            self._volume,
            dict(self._start.slices),
            self._start_state,
            self._history.past,
            self._history.future,
            self._history.dropped,
            self._state,
            self._overlap,
        )

    # -- what there is ---------------------------------------------------------------------

    @property
    def volume(self) -> Volume:
        """The image."""
        return self._volume

    @property
    def labels(self) -> NDArray[np.uint16]:
        """The label array, shape (z, y, x): one array for the session's whole life."""
        return self._map.array

    @property
    def state(self) -> SessionState:
        """Objects, active object and engine choice as one frozen value."""
        return self._state

    @property
    def history(self) -> History:
        """Steps done and undone."""
        return self._history

    @property
    def objects(self) -> tuple[SegmentObject, ...]:
        """All objects, in the order in which they were added."""
        return self._state.objects

    @property
    def active_id(self) -> int | None:
        """Id of the object that prompts go to."""
        return self._state.active_id

    @property
    def active(self) -> SegmentObject | None:
        """The object that prompts go to."""
        active_id = self._state.active_id
        return None if active_id is None else self._state.find(active_id)

    def count_voxels(self) -> dict[int, int]:
        """Return the voxels of each value, counted in the whole array."""
        return count_labels(self.labels)

    def get(self, object_id: int | None = None) -> SegmentObject:
        """Return an object (default: the active one), or raise :class:`SessionError`."""
        wanted = self.active_id if object_id is None else object_id
        if wanted is None:
            raise SessionError("there is no object yet; add one first")
        found = self._state.find(wanted)
        if found is None:
            raise SessionError(f"there is no object {wanted}; it may have been removed")
        return found

    def mask_of(self, object_id: int) -> MaskPatch:
        """Return the object's voxels in their smallest box."""
        found = self.get(object_id)
        return self._map.mask_of(found.id) if found.voxels else MaskPatch.empty()

    def volume_ml(self, object_id: int) -> float:
        """Return the object's volume in millilitres; NaN if the voxel size is not known."""
        geometry = self._volume.geometry
        factor = _CUBIC_ML.get(geometry.unit, math.nan)
        return self.get(object_id).voxels * geometry.voxel_volume * factor

    # -- undo ------------------------------------------------------------------------------

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return self._history.last is not None

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to do again."""
        return bool(self._history.future)

    def undo(self) -> bool:
        """Take the last step back: prompts, mask, properties and engine choice together."""
        return self._travel(self._history.undo(), back=True)

    def redo(self) -> bool:
        """Do the step again that was taken back last."""
        return self._travel(self._history.redo(), back=False)

    # -- inside ----------------------------------------------------------------------------

    def _travel(self, step: Step | None, *, back: bool) -> bool:
        if step is None:
            return False
        if step.change is not None:
            self._map.replay(step.change, back=back)
        target = _keep_view(step.before if back else step.after, self._state)
        self._become(target, step.change, stepped=True)
        return True

    def _commit(
        self,
        kind: StepKind,
        text: str,
        object_id: int,
        after: SessionState,
        change: LabelChange | None = None,
        run: EngineRun | None = None,
    ) -> None:
        step = Step(kind, text, object_id, self._state, after, change, run)
        self._history.push(step)
        self._become(after, change, stepped=True)

    def _become(
        self, after: SessionState, change: LabelChange | None = None, *, stepped: bool = False
    ) -> None:
        """Take a new state and tell listeners what differs from the old one."""
        before, self._state = self._state, after
        if before.objects != after.objects:
            self.objects_changed.emit()
        for changed in after.objects:
            old = before.find(changed.id)
            if old is None or old.prompts != changed.prompts:
                self.prompts_changed.emit(changed.id)
        if before.active_id != after.active_id:
            self.active_changed.emit()
        if before.choice != after.choice:
            self.choice_changed.emit()
        if change is not None:
            self.labels_changed.emit(change.box)
        if stepped:
            self.history_changed.emit()

    def _forget(self, step: Step) -> None:
        """Make the oldest step part of the start, as undo no longer knows it."""
        if step.change is not None:
            self._start.fold(step.change)
        self._start_state = step.after


def new_object(
    object_id: int, name: str | None = None, colour: Colour | None = None, voxels: int = 0
) -> SegmentObject:
    """Return an object with the name and colour its id stands for, unless others are given."""
    chosen = distinct_colour(object_id) if colour is None else colour
    label = f"object {object_id}" if name is None else name.strip()
    return SegmentObject(object_id, label, chosen, voxels=voxels)


def _keep_view(target: SessionState, now: SessionState) -> SessionState:
    """Return ``target`` with what is a matter of view, not of work, as it is now."""
    shown: Mapping[int, bool] = {o.id: o.visible for o in now.objects}
    objects = tuple(
        o if shown.get(o.id, o.visible) == o.visible else replace(o, visible=shown[o.id])
        for o in target.objects
    )
    choice = replace(target.choice, auto_run=now.choice.auto_run)
    return replace(target, objects=objects, choice=choice)
