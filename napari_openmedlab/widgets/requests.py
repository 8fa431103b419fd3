"""Requests on their way to the engine, and their answers on the way into the session."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from qtpy.QtCore import QObject, Qt, Signal

from napari_openmedlab.errors import CheckpointError, OpenMedLabError, SessionError
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.contract import Prediction, Progress, Request
from napari_openmedlab.session.prompt_checks import extends
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.answers import answer_text
from napari_openmedlab.widgets.batch import Batch
from napari_openmedlab.widgets.live_options import LiveOptions
from napari_openmedlab.widgets.local_models import Need
from napari_openmedlab.widgets.worker_bridge import WorkerBridge

__all__ = ["RequestDesk"]


@dataclass(frozen=True, eq=False)
class _Asked:
    """A request that waits for its answer."""

    request: Request
    object_id: int
    engine: str


class RequestDesk(QObject):
    """Sends a session's requests to the worker and writes the answers that are still wanted.

    Objects whose engine lacks a model wait here until there is one. Several objects asked for
    at once are sent one after the other, each with the masks of those before it in place. Clicks
    added while an engine encodes their surroundings wait for that: starting anew with each click
    would encode the same again and again.

    Parameters
    ----------
    session : Session
    worker : WorkerBridge
        Shared by all sessions of a panel.
    live : LiveOptions
        Fills in the options that follow the view.
    need : callable() -> Need or None
        What the session's engine lacks to run.

    Attributes
    ----------
    said : Signal(str, str)
        A sentence for the status line and its severity.
    busy_changed : Signal(bool)
    progressed : Signal(Progress)
    answered : Signal(Prediction)
        An answer was written.
    """

    said = Signal(str, str)
    busy_changed = Signal(bool)
    progressed = Signal(object)
    answered = Signal(object)

    def __init__(
        self,
        session: Session,
        worker: WorkerBridge,
        live: LiveOptions,
        need: Callable[[], Need | None],
        parent: QObject | None = None,
    ) -> None:
        super().__init__(parent)
        self._session = session
        self._worker = worker
        self._live = live
        self._need = need
        self._asked: dict[int, _Asked] = {}
        self._batch: Batch | None = None
        self._waiting: list[int] = []
        self._held: set[int] = set()
        self._started = 0
        self._closed = False
        for signal, slot in self._links():
            signal.connect(slot, Qt.ConnectionType.QueuedConnection)

    def submit(self, object_id: int | None = None, **options: Any) -> None:
        """Ask the engine for an object (default: the active one); overtakes an older request.

        Parameters
        ----------
        object_id : int, optional
        **options
            Option values for this request only.

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
        request = self._request(found.id, options)
        if need := self._need():
            self._wait([found.id], need)
            return
        if not options and self._goes_on(found.id, request):
            self._held.add(found.id)
            return
        engine = self._session.choice.engine
        number = self._worker.submit(engine, self._session.volume, request, found.id)
        self._held.discard(found.id)
        self._asked = self._others(found.id)
        self._waiting = [n for n in self._waiting if n != found.id]
        self._asked[number] = _Asked(request, found.id, engine)
        self.busy_changed.emit(True)
        self.said.emit(self._doing(found.id), "busy")

    def submit_all(self, object_ids: Iterable[int]) -> None:
        """Ask for several objects in one run; one that can't be asked for is told at the end."""
        ids = list(object_ids)
        if need := self._need():
            self._wait(ids, need)
        elif ids:
            self._batch = Batch.of(ids)
            self._send_next()

    def try_again(self) -> None:
        """Ask for the objects that waited for a model, if there is one now."""
        if not self._waiting or self._need():
            return
        ids, self._waiting = self._waiting, []
        askable = [o.id for o in self._session.objects if not o.locked and o.prompts.has_positive]
        ids = [n for n in ids if n in askable]
        if len(ids) == 1:
            self.submit(ids[0])
        else:
            self.submit_all(ids)

    def forget(self, object_id: int) -> None:
        """Want no answer for an object any more; what runs may go on."""
        self._asked = self._others(object_id)
        self._held.discard(object_id)
        self._waiting = [n for n in self._waiting if n != object_id]
        if self._batch is not None:
            self._batch.drop(object_id)
            if self._batch.current == object_id:
                self._batch.total -= 1
                self._send_next()

    def cancel(self) -> str:
        """Cancel what runs and waits, and return a sentence on what is left of it."""
        batch, self._batch = self._batch, None
        self._clear()
        self.busy_changed.emit(False)
        return batch.stopped() if batch else "Cancelled. Prompts and masks are as they were."

    def close(self) -> None:
        """Cancel, and listen to the worker no more."""
        if not self._closed:
            self._closed = True
            self._batch = None
            self._clear()
            for signal, slot in self._links():
                signal.disconnect(slot)

    # -- inside ----------------------------------------------------------------------------

    def _clear(self) -> None:
        self._waiting.clear()
        self._held.clear()
        self._asked.clear()
        self._worker.cancel(self._session.volume)

    def _goes_on(self, object_id: int, request: Request) -> bool:
        """Return whether what runs for an object is work that the new request needs as well."""
        running = self._asked.get(self._started)
        if running is None or running.object_id != object_id:
            return False
        if running.engine != self._session.choice.engine:
            return False
        encodes = get_spec(running.engine).ahead == "point"
        same = running.request.options == request.options
        return encodes and same and extends(request.prompts, running.request.prompts)

    def _resumed(self, object_id: int) -> bool:
        """Ask again for an object whose prompts were added to meanwhile; the old answer is void."""
        if object_id not in self._held:
            return False
        self._held.discard(object_id)
        try:
            self.submit(object_id)
        except OpenMedLabError as error:
            self._fail(object_id, error)
        return True

    def _request(self, object_id: int, options: dict[str, Any]) -> Request:
        request = self._session.request(object_id)
        spec = get_spec(self._session.choice.engine)
        asked = {**request.options, **options}
        filled = self._live.fill(spec, asked, object_id, request.prompts)
        return replace(request, options=filled)

    def _others(self, object_id: int) -> dict[int, _Asked]:
        return {k: a for k, a in self._asked.items() if a.object_id != object_id}

    def _wait(self, object_ids: list[int], need: Need) -> None:
        """Keep these objects, and those still to come, until the engine can run."""
        batch, self._batch = self._batch, None
        ids = [*object_ids, *(batch.waiting if batch else ())]
        self._waiting = [*(n for n in self._waiting if n not in ids), *ids]
        self.said.emit(need.text, "unsure")

    def _doing(self, object_id: int) -> str:
        name = self._session.get(object_id).name
        if self._batch is not None and self._batch.current == object_id:
            return f"Segmenting {name}: {self._batch.number} of {self._batch.total}…"
        return f"Segmenting {name}…"

    def _send_next(self) -> None:
        """Send the next object of a batch that can be asked for, or tell how it went."""
        while self._batch is not None:
            object_id = self._batch.take_next()
            if object_id is None:
                batch, self._batch = self._batch, None
                self.said.emit(*batch.summary())
                return
            try:
                self.submit(object_id)
                return
            except OpenMedLabError as error:
                self._batch.failed[self._name(object_id)] = str(error)

    def _name(self, object_id: int) -> str:
        found = self._session.state.find(object_id)
        return f"object {object_id}" if found is None else found.name

    def _on_started(self, generation: int) -> None:
        self._started = generation

    def _on_finished(self, generation: int, prediction: Prediction) -> None:
        asked = self._asked.pop(generation, None)
        if asked is None or self._closed or not self._worker.is_current(generation):
            return
        if self._resumed(asked.object_id):
            return
        try:
            self._session.apply(prediction, asked.request, asked.object_id)
        except OpenMedLabError as error:
            self._fail(asked.object_id, error)
            return
        self.answered.emit(prediction)
        text, severity = answer_text(self._session, asked.object_id, prediction)
        self.said.emit(text, severity)
        if self._batch is not None and self._batch.current == asked.object_id:
            self._batch.done += 1
            self._batch.unsure += severity == "unsure"
            self._send_next()

    def _on_failed(self, generation: int, error: OpenMedLabError) -> None:
        asked = self._asked.pop(generation, None)
        if asked is None or self._closed or self._resumed(asked.object_id):
            return
        need = self._need() if isinstance(error, CheckpointError) else None
        if need is None:
            self._fail(asked.object_id, error)
        else:  # the model went away between the question and the answer
            self._wait([asked.object_id], need)

    def _fail(self, object_id: int, error: OpenMedLabError) -> None:
        if self._batch is not None and self._batch.current == object_id:
            self._batch.failed[self._name(object_id)] = str(error)
            self._send_next()
        else:
            self.said.emit(str(error), "error")

    def _on_progressed(self, generation: int, progress: Progress) -> None:
        asked = self._asked.get(generation)
        if asked is None:
            return
        if progress.text:
            self.said.emit(f"{self._doing(asked.object_id)} {progress.text}", "busy")
        if self._batch is not None and self._batch.current == asked.object_id:
            progress = self._batch.progress(progress)
        self.progressed.emit(progress)

    def _on_idle(self) -> None:
        if not self._closed and not self._worker.busy:
            self.busy_changed.emit(False)

    def _links(self) -> tuple[tuple[Signal, object], ...]:
        worker = self._worker
        return (
            (worker.started, self._on_started),
            (worker.finished, self._on_finished),
            (worker.failed, self._on_failed),
            (worker.progressed, self._on_progressed),
            (worker.idle, self._on_idle),
        )
