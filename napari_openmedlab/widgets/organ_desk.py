"""Runs of the Organs panel on their way: to the worker, into the session, into the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtpy.QtCore import QObject, Qt, QTimer, Signal

from napari_openmedlab.errors import Cancelled, OpenMedLabError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.models.contract import Progress
from napari_openmedlab.models.organ_table import OrganRow
from napari_openmedlab.session.arrivals import Arrival
from napari_openmedlab.session.objects import SegmentObject
from napari_openmedlab.session.organ_work import measuring, naming
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.worker_bridge import WorkerBridge

__all__ = ["OrganDesk"]

_QUIET_MS = 500  # without a change before objects are measured
_Key = tuple[str, int, PromptSet | None]


class OrganDesk(QObject):
    """Names structures and keeps the rows of all objects of a session up to date.

    Parameters
    ----------
    worker : WorkerBridge
        Shared with the viewer's other panels.

    Attributes
    ----------
    said : Signal(str, str)
        A sentence and its severity.
    busy_changed : Signal(bool)
    progressed : Signal(Progress)
    arrived : Signal(Arrival)
        Structures are objects now.
    measured : Signal()
        :attr:`rows` changed.
    """

    said = Signal(str, str)
    busy_changed = Signal(bool)
    progressed = Signal(object)
    arrived = Signal(object)
    measured = Signal()

    def __init__(self, worker: WorkerBridge, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._worker = worker
        self._session: Session | None = None
        self._running: tuple[int, Session] | None = None
        self._measuring: tuple[int, dict[int, _Key]] | None = None
        self._rows: dict[int, OrganRow] = {}
        self._seen: dict[int, _Key] = {}
        self._quiet = QTimer(self)
        self._quiet.setSingleShot(True)
        self._quiet.setInterval(_QUIET_MS)
        self._quiet.timeout.connect(self._measure)
        for signal, slot in self._links():
            signal.connect(slot, Qt.ConnectionType.QueuedConnection)

    @property
    def rows(self) -> tuple[OrganRow, ...]:
        """What was measured of the session's objects, by id."""
        return tuple(self._rows[number] for number in sorted(self._rows))

    @property
    def busy(self) -> bool:
        """Whether structures are being named."""
        return self._running is not None

    def follow(self, session: Session | None) -> None:
        """Measure the objects of this session from now on."""
        if session is self._session:
            return
        self._leave()
        self._session = session
        if session is not None:
            session.objects_changed.connect(self._on_objects)
            self._on_objects()
        self.measured.emit()

    def run(
        self,
        session: Session,
        engine: str,
        region: Box,
        options: Mapping[str, Any],
        chosen: tuple[str, ...],
    ) -> None:
        """Name structures in a region; a run that is under way gives way."""
        work = naming(session, engine, region, options, chosen)
        number = self._worker.submit_work(work, _tag(session, "name"))
        self._running = (number, session)
        self.busy_changed.emit(True)
        self.said.emit("Waits for the engine…", "busy")

    def cancel(self, why: str = "Cancelled; nothing was changed.") -> None:
        """Stop naming; the session stays as it is."""
        running, self._running = self._running, None
        if running is not None:
            self._worker.cancel_work(_tag(running[1], "name"))
            self.busy_changed.emit(False)
            self.said.emit(why, "info")

    def close(self) -> None:
        """Stop what runs, and listen no more."""
        running, self._running = self._running, None
        if running is not None:
            self._worker.cancel_work(_tag(running[1], "name"))
        self._leave()
        for signal, slot in self._links():
            signal.disconnect(slot)

    # -- naming ----------------------------------------------------------------------------

    def _on_started(self, generation: int) -> None:
        if self._running is not None and self._running[0] == generation:
            self.said.emit("Naming structures…", "busy")

    def _on_progressed(self, generation: int, progress: Progress) -> None:
        if self._running is not None and self._running[0] == generation:
            if progress.text:
                self.said.emit(f"Naming structures: {progress.text}…", "busy")
            self.progressed.emit(progress)

    def _on_finished(self, generation: int, answer: Any) -> None:
        if self._measuring is not None and self._measuring[0] == generation:
            self._take_rows(answer)
        elif self._running is not None and self._running[0] == generation:
            session, self._running = self._running[1], None
            self.busy_changed.emit(False)
            self._take_in(session, answer)

    def _take_in(self, session: Session, arrival: Arrival) -> None:
        try:
            done = session.take_in(arrival)
        except OpenMedLabError as error:
            self.said.emit(str(error), "error")
            return
        self.arrived.emit(done)

    def _on_failed(self, generation: int, error: OpenMedLabError) -> None:
        if self._measuring is not None and self._measuring[0] == generation:
            self._measuring = None
            self.said.emit(f"The objects could not be measured: {error}", "error")
        elif self._running is not None and self._running[0] == generation:
            self._running = None
            self.busy_changed.emit(False)
            if not isinstance(error, Cancelled):
                self.said.emit(str(error), "error")

    # -- measuring -------------------------------------------------------------------------

    def _on_objects(self) -> None:
        self._quiet.start()

    def _measure(self) -> None:
        """Have the worker measure what changed; rows of what is gone go at once."""
        session = self._session
        if session is None:
            return
        keys = {o.id: _key(o) for o in session.objects if o.voxels}
        gone = set(self._rows) - set(keys)
        for number in gone:
            del self._rows[number]
            self._seen.pop(number, None)
        changed = {n: key for n, key in keys.items() if not _same(self._seen.get(n), key)}
        if changed:
            work = measuring(session, changed, self.rows)
            self._measuring = (self._worker.submit_work(work, _tag(session, "measure")), changed)
        if gone or not changed:
            self.measured.emit()

    def _take_rows(self, rows: tuple[OrganRow, ...]) -> None:
        assert self._measuring is not None
        seen, self._measuring = self._measuring[1], None
        self._rows.update({row.value: row for row in rows})
        self._seen.update(seen)
        self.measured.emit()
        self._quiet.start()  # for what changed meanwhile

    def _leave(self) -> None:
        self._quiet.stop()
        session, self._session = self._session, None
        if session is not None:
            session.objects_changed.disconnect(self._on_objects, missing_ok=True)
            self._worker.cancel_work(_tag(session, "measure"))
        self._measuring = None
        self._rows.clear()
        self._seen.clear()

    def _links(self) -> tuple[tuple[Any, Any], ...]:
        worker = self._worker
        return (
            (worker.started, self._on_started),
            (worker.progressed, self._on_progressed),
            (worker.finished, self._on_finished),
            (worker.failed, self._on_failed),
        )


def _tag(session: Session, what: str) -> tuple[str, int]:
    return what, id(session)


def _key(found: SegmentObject) -> _Key:
    return found.name, found.voxels, found.answered


def _same(seen: _Key | None, now: _Key) -> bool:
    """Return whether an object is as it was measured; prompts are compared by identity."""
    return seen is not None and seen[:2] == now[:2] and seen[2] is now[2]
