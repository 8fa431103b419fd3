"""The session: the one owner of objects, prompts, labels and history.

Panels and the command line send it commands and listen to its signals; they keep no state of
their own. It is used from one thread (the GUI's); engines run elsewhere and hand their answers
back through :meth:`Session.apply`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from napari_openmedlab.errors import SessionError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import LabelPatch, MaskPatch
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.contract import Labelling, Prediction, Request
from napari_openmedlab.session.arrivals import Arrival, arrival_of, arrived, still_holds
from napari_openmedlab.session.history import (
    EngineRun,
    LabelChange,
    StepKind,
)
from napari_openmedlab.session.ledger import Ledger, new_object
from napari_openmedlab.session.objects import (
    Colour,
    EngineChoice,
    OverlapRule,
    SegmentObject,
    SessionState,
    plain_values,
)
from napari_openmedlab.session.prompt_checks import check_prompts, describe_change, extends

__all__ = ["Session"]


class Session(Ledger):
    """Objects, prompts and labels on one volume, with undo.

    Parameters
    ----------
    volume : Volume
        Never written to.
    labels : ndarray of int, shape of the volume, optional
        Labels to go on with; an object is made for every value. A writable uint16 array is
        used as it is and written in place, any other is copied once.
    history_bytes : int
        Memory for undo.

    Raises
    ------
    SessionError
        If the labels have another shape or can't be labels.

    Notes
    -----
    Signals: ``objects_changed()``, ``active_changed()``, ``prompts_changed(object_id)``,
    ``labels_changed(box)``, ``choice_changed()``, ``history_changed()``. They are emitted when
    the session is consistent again, in the caller's thread.
    """

    @property
    def choice(self) -> EngineChoice:
        """The engine and how it is asked; assigning checks it against the catalogue."""
        return self._state.choice

    @choice.setter
    def choice(self, choice: EngineChoice) -> None:
        get_spec(choice.engine).check_options(choice.options)
        self._become(replace(self._state, choice=choice))

    @property
    def overlap(self) -> OverlapRule:
        """Who keeps a voxel that two objects want."""
        return self._overlap

    @overlap.setter
    def overlap(self, rule: OverlapRule | str) -> None:
        self._overlap = OverlapRule(rule)
        self.choice_changed.emit()

    # -- objects ---------------------------------------------------------------------------

    def add_object(self, name: str | None = None, colour: Colour | None = None) -> SegmentObject:
        """Add an object and make it the active one."""
        added = new_object(self._state.free_id(), name, colour)
        after = replace(self._state.with_object(added), active_id=added.id)
        self._commit(StepKind.OBJECT, f"add {added.name}", added.id, after)
        return added

    def remove_object(self, object_id: int) -> None:
        """Remove an object and its voxels; refuses a locked one."""
        gone = self._unlocked(object_id)
        mask = self.mask_of(gone.id)
        patch = self._map.patch(mask.box)
        after = np.where(mask.mask, 0, patch.before).astype(np.uint16)
        change, _ = self._map.write(replace(patch, after=after))
        text = f"remove {gone.name}"
        self._commit(StepKind.OBJECT, text, gone.id, self._state.without(gone.id), change)

    def update_object(
        self,
        object_id: int,
        *,
        name: str | None = None,
        colour: Colour | None = None,
        visible: bool | None = None,
        locked: bool | None = None,
    ) -> None:
        """Change properties of an object. Hiding and showing is not a step of history."""
        old = self.get(object_id)
        given = {"name": name, "colour": colour, "locked": locked, "visible": visible}
        fields: dict[str, Any] = {key: v for key, v in given.items() if v is not None}
        after = self._state.with_object(replace(old, **fields))
        fields.pop("visible", None)
        if not any(getattr(old, key) != value for key, value in fields.items()):
            self._become(after)
            return
        words = {"name": "rename", "colour": "recolour", "locked": "lock" if locked else "unlock"}
        verb = words[next(iter(fields))]
        self._commit(StepKind.OBJECT, f"{verb} {old.name}", old.id, after)

    def set_active(self, object_id: int) -> None:
        """Choose the object that prompts go to."""
        self._become(replace(self._state, active_id=self.get(object_id).id))

    # -- prompts and answers ---------------------------------------------------------------

    def set_prompts(self, prompts: PromptSet, object_id: int | None = None) -> None:
        """Replace an object's prompts; one step together with the mask that follows.

        Raises
        ------
        PromptError
            If a prompt lies outside the volume or is given twice; nothing is changed.
        SessionError
            If there is no such object or it is locked.
        """
        old = self._unlocked(object_id)
        if prompts == old.prompts:
            return
        check_prompts(prompts, self._volume.geometry)
        text = f"{describe_change(old.prompts, prompts)} ({old.name})"
        after = self._state.with_object(replace(old, prompts=prompts))
        self._commit(StepKind.PROMPTS, text, old.id, after)

    def clear_prompts(self, object_id: int | None = None) -> None:
        """Take all prompts of an object away; its mask stays."""
        self.set_prompts(PromptSet(), object_id)

    def request(self, object_id: int | None = None) -> Request:
        """Return what an engine needs to answer for an object: a frozen snapshot.

        Raises
        ------
        SessionError
            If there is no such object or it is locked.
        EngineError
            If the chosen engine is not in the catalogue.
        """
        target = self._unlocked(object_id)
        options = get_spec(self.choice.engine).check_options(self.choice.options)
        return Request(
            prompts=target.prompts,
            previous=self.mask_of(target.id) if target.voxels else None,
            previous_prompts=target.answered,
            obstacles=self.obstacles(target.id) if self.choice.avoid_neighbours else None,
            options=MappingProxyType(options),
        )

    def obstacles(self, object_id: int) -> MaskPatch:
        """Return the voxels of all other objects."""
        return self._map.mask_of_others(object_id, (o.id for o in self.objects))

    def apply(
        self, prediction: Prediction, request: Request, object_id: int | None = None
    ) -> LabelPatch:
        """Write an engine's answer as the object's mask, under overlap rule and locks.

        Returns
        -------
        LabelPatch
            What changed in the labels.

        Raises
        ------
        SessionError
            If the object is gone or locked, or its mask or prompts were changed while the
            engine ran (a brush stroke, an undo): the answer belongs to another state and is
            dropped. Prompts added meanwhile are no obstacle.
        """
        target = self._unlocked(object_id)
        self._check_still_asked(target, request)
        run = self._run_of(prediction, request, target)
        patch = self._map.mask_patch(
            target.id,
            prediction.patch,
            keep=self._overlap is OverlapRule.KEEP,
            locked=[o.id for o in self.objects if o.locked],
        )
        change, deltas = self._map.write(patch)
        answered = replace(
            target,
            score=float(prediction.score),
            engine=run.engine,
            seconds=float(prediction.seconds),
            answered=request.prompts,
            notes=tuple(prediction.notes),
            provenance=run.provenance,
        )
        after = self._state.with_object(answered).counted(deltas)
        self._commit_answer(target, after, change, run)
        return patch

    def foresee(self, found: Labelling, chosen: Collection[str]) -> Arrival:
        """Return what it would change to take these structures in; see :meth:`take_in`.

        Only reads, so it may be called in the thread that labelled the scan.

        Parameters
        ----------
        found : Labelling
        chosen : collection of str
            Names of the structures to take.

        Raises
        ------
        SessionError
            If the labelling reaches beyond the volume, or there is no id left.
        """
        if not Box.whole(self.labels.shape).contains(found.box):
            raise SessionError("the structures reach beyond the labels")
        return arrival_of(self._map, self.state, self.history.last, self.overlap, found, chosen)

    def take_in(self, arrival: Arrival) -> Arrival:
        """Make structures objects with names and colours, all in one step of history.

        Locked objects keep their voxels, others as the overlap rule says. A structure whose
        object the user locked, refined or painted is left out.

        Returns
        -------
        Arrival
            What was done: computed again if something was changed meanwhile.
        """
        if not still_holds(arrival, self.state, self.history.last, self.overlap):
            arrival = self.foresee(arrival.found, arrival.chosen)
        after = arrived(arrival, self.state)
        if arrival.change is not None:
            self._map.place(arrival.change, arrival.boxes)
        if arrival.change is not None or after.objects != self.state.objects:
            count = len(arrival.ids)
            text = f"name {count} structure{'' if count == 1 else 's'}"
            self._commit(StepKind.OBJECT, text, 0, after, arrival.change)
        return arrival

    def apply_edit(self, patch: LabelPatch) -> LabelPatch:
        """Take in a stroke that was painted into :attr:`labels` by hand.

        Voxels that the stroke took from or gave to a locked object are put back. A value
        without an object gets one.

        Parameters
        ----------
        patch : LabelPatch
            What stood in the box before and what the painter put there.

        Returns
        -------
        LabelPatch
            The stroke without what was put back.
        """
        if not Box.whole(self.labels.shape).contains(patch.box):
            raise SessionError("the stroke reaches beyond the labels")
        before, after = patch.before.astype(np.uint16), patch.after.astype(np.uint16)
        locked = [o.id for o in self.objects if o.locked]
        kept = (np.isin(before, locked) | np.isin(after, locked)) & (before != after)
        after[kept] = before[kept]
        self.labels[patch.box.slices] = after
        effective = LabelPatch(patch.box, before, after)
        change, deltas = self._map.write(effective)
        if change is not None:
            state = self._with_unknown_values(deltas).counted(deltas)
            object_id = max(deltas, key=lambda v: (v != 0, deltas[v]), default=0)
            self._commit(StepKind.EDIT, "paint", object_id, state, change)
        if kept.any():
            self.labels_changed.emit(patch.box)
        return effective

    # -- inside ----------------------------------------------------------------------------

    def _unlocked(self, object_id: int | None) -> SegmentObject:
        found = self.get(object_id)
        if found.locked:
            raise SessionError(f"{found.name} is locked; unlock it first")
        return found

    def _check_still_asked(self, target: SegmentObject, request: Request) -> None:
        same_mask = (request.previous or MaskPatch.empty()) == self.mask_of(target.id)
        if not same_mask or not extends(target.prompts, request.prompts):
            raise SessionError(
                f"{target.name} was changed while the engine ran, so its answer was dropped; "
                "run it again"
            )

    def _run_of(self, prediction: Prediction, request: Request, target: SegmentObject) -> EngineRun:
        same_obstacles = request.obstacles is None or request.obstacles == self.obstacles(target.id)
        return EngineRun(
            engine=str(prediction.provenance.get("engine", self.choice.engine)),
            options=MappingProxyType(dict(request.options)),
            prompts=request.prompts,
            previous_prompts=request.previous_prompts,
            previous=request.previous is not None,
            obstacles=request.obstacles is not None,
            overlap=self._overlap.value,
            repeatable=same_obstacles,
            provenance=MappingProxyType(plain_values(prediction.provenance)),
        )

    def _commit_answer(
        self,
        target: SegmentObject,
        after: SessionState,
        change: LabelChange | None,
        run: EngineRun,
    ) -> None:
        """Push the answer, joined with the prompts it answers if they are the last step."""
        last = self._history.last
        asked_last = (
            last is not None
            and last.kind is StepKind.PROMPTS
            and last.object_id == target.id
            and not self._history.future
            and target.prompts == run.prompts
        )
        if asked_last and last is not None:
            step = replace(last, kind=StepKind.ENGINE, after=after, change=change, run=run)
            self._history.replace_last(step)
            self._become(after, change, stepped=True)
        elif change is None and target.answered == run.prompts:
            self._become(after)  # the same answer again: nothing for undo to show
        else:
            self._commit(StepKind.ENGINE, f"segment {target.name}", target.id, after, change, run)

    def _with_unknown_values(self, values: Iterable[int]) -> SessionState:
        state = self._state
        for value in values:
            if value and state.find(value) is None:
                state = state.with_object(new_object(value))
        return state
