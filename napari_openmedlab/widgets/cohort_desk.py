"""One case on the desk: its scan, masks and boxes in the viewer, and what is done with them.

The masks are objects of an ordinary session, so that every prompt of the Segment panel corrects
them. What was changed is written to the case's folder a few seconds after the last change, and
before the next case is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from napari.layers import Image, Layer
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QTimer, Signal

from napari_openmedlab.bridge.layers import volume_to_layer_data
from napari_openmedlab.bridge.positions import jump_to
from napari_openmedlab.bridge.view import show_plane
from napari_openmedlab.cohort.as_session import as_session, box_prompts
from napari_openmedlab.cohort.handing_over import cut, handed_box
from napari_openmedlab.cohort.records import ReviewState, StructureRecord
from napari_openmedlab.cohort.review import Corrected, Reviewer
from napari_openmedlab.errors import OpenMedLabError
from napari_openmedlab.geometry.labels import LabelPatch
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.contract import Prediction, Request
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.background import Background
from napari_openmedlab.widgets.box_handles import BoxHandles
from napari_openmedlab.widgets.workplace import Workplace

__all__ = ["ReviewDesk"]

_SAVE_AFTER_MS = 3000  # of quiet after a change of the masks

Opened = tuple[Volume, NDArray[np.uint16], Session]


@dataclass(eq=False)
class _OnDesk:
    """The case that is open."""

    case: str
    image: Layer
    session: Session
    before: NDArray[np.uint16]
    handles: BoxHandles
    structure: str = ""


class ReviewDesk(QObject):
    """Opens cases in the viewer, one at a time.

    Parameters
    ----------
    viewer : napari.Viewer
    workplace : Workplace
    background : Background
        Of the workplace's worker.

    Attributes
    ----------
    said : Signal(str, str)
        A sentence and its severity.
    opened : Signal(str)
        A case is on the desk; ``""``: none.
    changed : Signal(str)
        The result or review of a case changed.
    """

    said = Signal(str, str)
    opened = Signal(str)
    changed = Signal(str)

    def __init__(
        self, viewer: Any, workplace: Workplace, background: Background, parent: QObject
    ) -> None:
        super().__init__(parent)
        self._viewer, self._workplace, self._background = viewer, workplace, background
        self.reviewer: Reviewer | None = None
        self._on: _OnDesk | None = None
        self.saver = QTimer(self)
        self.saver.setSingleShot(True)
        self.saver.setInterval(_SAVE_AFTER_MS)
        self.saver.timeout.connect(lambda: self.save(_nothing))

    @property
    def case(self) -> str:
        """The case on the desk, ``""`` for none."""
        return "" if self._on is None else self._on.case

    @property
    def session(self) -> Session | None:
        """Its session."""
        return None if self._on is None else self._on.session

    @property
    def handles(self) -> BoxHandles | None:
        """The box on the canvas."""
        return None if self._on is None else self._on.handles

    # -- opening and leaving ---------------------------------------------------------------

    def open(self, case: str) -> None:
        """Put a case on the desk; what was changed in the one before is saved first."""
        reviewer = self.reviewer
        if reviewer is None or not case:
            return

        def read() -> None:
            self.said.emit(f"Opening {case} ...", "busy")
            self._background.run(
                lambda _bench, _monitor: _read(reviewer, case),
                lambda found: self._put(case, found),
                self._fail,
            )

        self.save(read)

    def save(self, then: Callable[[], None]) -> None:
        """Write what was changed, then go on; on an error the case stays on the desk."""
        on, reviewer = self._on, self.reviewer
        if on is None or reviewer is None or not (names := _changed(on)):
            then()
            return
        labels = on.session.labels.copy()
        kept = Corrected(labels, on.session.objects, names)
        case, volume = on.case, on.session.volume

        def done(_record: Any) -> None:
            if self._on is on:
                on.before = labels
            self.changed.emit(case)
            then()

        if then is not _nothing:
            self.said.emit(f"Saving {', '.join(names)} ...", "busy")
        self._background.run(
            lambda _bench, _monitor: reviewer.keep_masks(case, volume, kept), done, self._fail
        )

    def save_at_once(self) -> None:
        """Write what was changed in this thread: the panel goes, and its worker with it."""
        on, reviewer = self._on, self.reviewer
        if on is None or reviewer is None or not (names := _changed(on)):
            return
        labels = on.session.labels.copy()
        try:
            reviewer.keep_masks(
                on.case, on.session.volume, Corrected(labels, on.session.objects, names)
            )
        except OpenMedLabError as error:
            self._fail(error)  # the session's autosave has it, and offers it again
        else:
            on.before = labels

    def finish(self, state: ReviewState, then: Callable[[], None]) -> None:
        """Save, keep the reviewer's word on the case, then go on."""
        on, reviewer = self._on, self.reviewer
        if on is None or reviewer is None:
            self.said.emit("Open a case first.", "info")
            return

        def say() -> None:
            try:
                reviewer.say(on.case, state)
            except OpenMedLabError as error:
                self._fail(error)
                return
            self.said.emit(f"{on.case}: {state}.", "done")
            self.changed.emit(on.case)
            then()

        self.save(say)

    def clear(self) -> None:
        """Take the case off the desk, its layers and session too; changes must have been saved."""
        on, self._on = self._on, None
        if on is None:
            return
        self._stop_saving(on)
        sessions = self._workplace.sessions
        on.handles.close()
        if on.session in sessions.sessions:
            labels, autosave = sessions.labels_of(on.session), sessions.autosave_of(on.session)
            if autosave is not None and not _changed(on):
                autosave.discard()
            if on.image in self._viewer.layers:
                self._viewer.layers.remove(on.image)
            sessions.close_session(on.session)
            if labels in self._viewer.layers:
                self._viewer.layers.remove(labels)
        self.opened.emit("")

    def end(self, *, remove: bool) -> None:
        """Save what was changed and let go; the scan and its objects stay in the viewer.

        Parameters
        ----------
        remove : bool
            Take the box away; not where the window goes anyway.
        """
        self.save_at_once()
        on, self._on = self._on, None
        if on is None:
            return
        self._stop_saving(on)
        if not _changed(on):
            self._workplace.note_saved(on.session)  # then its autosave is not offered again
        on.handles.close(remove=remove)

    def _put(self, case: str, found: Opened) -> None:
        self.clear()
        volume, labels, session = found
        data, keywords, _ = volume_to_layer_data(volume)
        image = Image(data, **{**keywords, "name": case})
        sessions, layers = self._workplace.sessions, self._viewer.layers
        try:
            # Before the image is in the viewer: other panels would open a session of their own.
            sessions.adopt(image, session)
        except OpenMedLabError as error:
            self._fail(error)
            return
        layers.insert(layers.index(sessions.labels_of(session)), image)
        session.labels_changed.connect(self._on_labels)
        handles = BoxHandles(self._viewer, image, session.volume)
        handles.moved.connect(self._on_wall)
        self._on = _OnDesk(case, image, session, labels, handles)
        show_plane(self._viewer, "axial")
        self.said.emit(f"{case} is open.", "info")
        self.opened.emit(case)

    def _on_labels(self, _box: Any) -> None:
        self.saver.start()

    def _stop_saving(self, on: _OnDesk) -> None:
        self.saver.stop()
        on.session.labels_changed.disconnect(self._on_labels, missing_ok=True)

    def _fail(self, error: OpenMedLabError) -> None:
        self.said.emit(str(error), "error")

    # -- one structure ---------------------------------------------------------------------

    def select(self, structure: str) -> None:
        """Show a structure's box, go to its middle, and make it the active object."""
        on, row = self._on, self._row(structure)
        if on is None or row is None:
            return
        on.structure = structure
        if on.session.state.find(row.value) is not None:
            on.session.set_active(row.value)
        on.handles.show(row.box if row.found else None, structure)
        if not row.found:
            self.said.emit(
                f"{structure} was not found here. If it is there, mark it with the Segment panel: "
                "its object is the active one.",
                "unsure",
            )
        else:
            middle = (np.array(row.box.start) + np.array(row.box.stop) - 1) / 2
            jump_to(self._viewer, on.image, [float(v) for v in np.rint(middle)])

    def _row(self, structure: str) -> StructureRecord | None:
        if self._on is None or self.reviewer is None:
            return None
        record = self.reviewer.results.record(self._on.case)
        return None if record is None else record.structure(structure)

    def _on_wall(self, wall: str, boundary: int) -> None:
        """Keep the wall that was let go, and segment anew inside the box."""
        on, reviewer = self._on, self.reviewer
        if on is None or reviewer is None:
            return
        try:
            row = reviewer.set_box(on.case, on.structure, {wall: boundary})
        except OpenMedLabError as error:
            self._fail(error)
            return
        on.handles.show(row.box, on.structure)
        self.changed.emit(on.case)
        if reviewer.job.settings.engine:
            self._segment(on, row)

    def _segment(self, on: _OnDesk, row: StructureRecord) -> None:
        """Ask the session's engine for the structure inside its box."""
        assert self.reviewer is not None
        session, settings = on.session, self.reviewer.job.settings
        grid = session.volume.geometry
        try:
            if session.state.find(row.value) is None:
                raise _gone(row.name)
            _wipe(session, row.value)
            session.set_prompts(box_prompts(row, grid, settings), row.value)
            request = session.request(row.value)
        except OpenMedLabError as error:
            self._fail(error)
            return
        limit = handed_box(row.box, grid, settings.margin_mm)
        engine, worker = session.choice.engine, self._workplace.worker

        def done(answer: Prediction) -> None:
            self._apply(on, cut(answer, limit), request, row)

        self.said.emit(f"Segmenting {row.name} in its new box ...", "busy")
        self._background.submit(
            lambda: worker.submit(engine, session.volume, request, row.value), done, self._fail
        )

    def _apply(
        self, on: _OnDesk, answer: Prediction, request: Request, row: StructureRecord
    ) -> None:
        if on is not self._on:
            return
        try:
            on.session.apply(answer, request, row.value)
        except OpenMedLabError as error:
            self._fail(error)
            return
        size = on.session.get(row.value).voxels
        notes = " ".join(answer.notes)
        text = f"{row.name}: {size} voxels. {notes}" if size else f"{row.name}: nothing found."
        self.said.emit(text.strip(), "done" if size else "unsure")
        self.changed.emit(on.case)


def _read(reviewer: Reviewer, case: str) -> Opened:
    """Return scan, masks as on disk, and a session of them; takes seconds, so not in the window."""
    volume, labels, _ = reviewer.open(case)
    record = reviewer.results.record(case)
    assert record is not None
    return volume, labels, as_session(volume, labels, record, reviewer.job.settings)


def _nothing() -> None:
    """Go on as before."""


def _gone(name: str) -> OpenMedLabError:
    return OpenMedLabError(f"the object '{name}' was deleted; undo that, or add it in Segment")


def _wipe(session: Session, value: int) -> None:
    """Empty an object, as a step that can be undone: the engine shall start afresh."""
    mask = session.mask_of(value)
    if mask.is_empty:
        return
    before = session.labels[mask.box.slices].copy()
    after = np.where(mask.mask, 0, before).astype(np.uint16)
    session.apply_edit(LabelPatch(mask.box, before, after))


def _changed(on: _OnDesk) -> tuple[str, ...]:
    """Return the names of the objects whose voxels differ from what is on disk."""
    differs = on.session.labels != on.before
    if not differs.any():
        return ()
    values = set(np.unique(on.session.labels[differs]).tolist())
    values |= set(np.unique(on.before[differs]).tolist())
    known = {o.id: o.name for o in on.session.objects}
    return tuple(known.get(v, f"object {v}") for v in sorted(values) if v)
