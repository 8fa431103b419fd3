"""Requests on their way to the engine, and their answers on the way into the session."""

from __future__ import annotations

from dataclasses import dataclass

from qtpy.QtCore import QObject, Qt, Signal

from napari_openmedlab.errors import OpenMedLabError, SessionError
from napari_openmedlab.models.contract import Prediction, Progress, Request
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.answers import answer_text
from napari_openmedlab.widgets.worker_bridge import WorkerBridge

__all__ = ["RequestDesk"]


@dataclass(frozen=True, eq=False)
class _Asked:
    """A request that waits for its answer."""

    request: Request
    object_id: int


class RequestDesk(QObject):
    """Sends a session's requests to the worker and writes the answers that are still wanted.

    Parameters
    ----------
    session : Session
    worker : WorkerBridge
        Shared by all sessions of a panel.

    Attributes
    ----------
    said : Signal(str, str)
        A sentence for the status line and its severity.
    busy_changed : Signal(bool)
    progressed : Signal(Progress)
    """

    said = Signal(str, str)
    busy_changed = Signal(bool)
    progressed = Signal(object)

    def __init__(
        self, session: Session, worker: WorkerBridge, parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self._session = session
        self._worker = worker
        self._asked: dict[int, _Asked] = {}
        self._closed = False
        for signal, slot in self._links():
            signal.connect(slot, Qt.ConnectionType.QueuedConnection)

    def submit(self, object_id: int | None = None) -> None:
        """Ask the engine for an object (default: the active one); overtakes an older request.

        Raises
        ------
        OpenMedLabError
            If the object is locked, or nothing says where it is.
        """
        found = self._session.get(object_id)
        if not found.prompts.has_positive:
            raise SessionError(
                "Mark where the object is first: an extreme point, a box, a click inside it, "
                "or a mask."
            )
        request = self._session.request(found.id)
        engine = self._session.choice.engine
        number = self._worker.submit(engine, self._session.volume, request, found.id)
        self.forget(found.id)
        self._asked[number] = _Asked(request, found.id)
        self.busy_changed.emit(True)
        self.said.emit(f"Segmenting {found.name}…", "busy")

    def forget(self, object_id: int) -> None:
        """Want no answer for an object any more; what runs may go on."""
        self._asked = {k: a for k, a in self._asked.items() if a.object_id != object_id}

    def cancel(self) -> None:
        """Cancel what runs and waits; nothing of it will be written."""
        self._asked.clear()
        self._worker.cancel()
        self.busy_changed.emit(False)

    def close(self) -> None:
        """Cancel, and listen to the worker no more."""
        if not self._closed:
            self._closed = True
            self._asked.clear()
            self._worker.cancel()
            for signal, slot in self._links():
                signal.disconnect(slot)

    def _links(self) -> tuple[tuple[Signal, object], ...]:
        worker = self._worker
        return (
            (worker.finished, self._on_finished),
            (worker.failed, self._on_failed),
            (worker.progressed, self._on_progressed),
            (worker.idle, self._on_idle),
        )

    def _on_finished(self, generation: int, prediction: Prediction) -> None:
        asked = self._asked.pop(generation, None)
        if asked is None or self._closed or not self._worker.is_current(generation):
            return
        try:
            self._session.apply(prediction, asked.request, asked.object_id)
        except OpenMedLabError as error:
            self.said.emit(str(error), "error")
            return
        self.said.emit(*answer_text(self._session, asked.object_id, prediction))

    def _on_failed(self, generation: int, error: OpenMedLabError) -> None:
        if self._asked.pop(generation, None) is not None and not self._closed:
            self.said.emit(str(error), "error")

    def _on_progressed(self, generation: int, progress: Progress) -> None:
        if generation in self._asked:
            self.progressed.emit(progress)

    def _on_idle(self) -> None:
        if not self._closed and not self._worker.busy:
            self.busy_changed.emit(False)
