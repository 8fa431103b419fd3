"""Training on its way: cases are looked at, a run is prepared, its program followed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Qt, QTimer, Signal

from napari_openmedlab.errors import Cancelled, OpenMedLabError
from napari_openmedlab.models.contract import Progress
from napari_openmedlab.training.events import Event
from napari_openmedlab.training.jobs import Begun, Source, beginning, looking
from napari_openmedlab.training.process import TrainingProcess
from napari_openmedlab.training.settings import TrainSettings
from napari_openmedlab.training.wire import Ended
from napari_openmedlab.widgets.worker_bridge import WorkerBridge

__all__ = ["TrainDesk"]

_LOOK_MS = 150  # between two looks at what a run tells
_LEAVE_SECONDS = 2.0  # a closing panel waits so long for the run to stop by itself


class TrainDesk(QObject):
    """Does one thing at a time: looks, prepares, or follows a run.

    Parameters
    ----------
    worker : WorkerBridge
        Shared with the viewer's other panels; looks and prepares. The run itself has a program
        of its own.

    Attributes
    ----------
    busy_changed : Signal(str)
        ``"looking"``, ``"preparing"``, ``"training"`` or, nothing to do, ``""``.
    progressed : Signal(Progress)
        Of looking and preparing.
    looked : Signal(CasesFound)
    begun : Signal(Begun)
        A run is prepared; its program starts at once.
    heard : Signal(Event)
        From the run.
    ended : Signal(Ended)
        The run is over.
    failed : Signal(str)
        Looking or preparing failed; a sentence.
    """

    busy_changed = Signal(str)
    progressed = Signal(object)
    looked = Signal(object)
    begun = Signal(object)
    heard = Signal(object)
    ended = Signal(object)
    failed = Signal(str)

    def __init__(self, worker: WorkerBridge, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._worker = worker
        self._generation: int | None = None
        self._busy = ""
        self._process: TrainingProcess | None = None
        self._timer = QTimer(self)
        self._timer.setInterval(_LOOK_MS)
        self._timer.timeout.connect(self._hear)
        for signal, slot in self._links():
            signal.connect(slot, Qt.ConnectionType.QueuedConnection)

    @property
    def busy(self) -> str:
        """What is being done; empty if nothing."""
        return self._busy

    @property
    def process(self) -> TrainingProcess | None:
        """The run that is under way."""
        return self._process

    def look(self, source: Source) -> None:
        """Look at the cases of a source."""
        self._submit(looking(source), "looking")

    def begin(
        self,
        source: Source,
        classes: Mapping[int, str] | None,
        settings: TrainSettings,
        folder: Path,
    ) -> None:
        """Prepare a run, then train it."""
        self._submit(beginning(source, classes, settings, folder), "preparing")

    def follow(self, folder: Path) -> None:
        """Train a prepared or stopped run.

        Raises
        ------
        WriteError, EngineError
            If the program can't be started.
        """
        self._process = TrainingProcess(folder)
        self._timer.start()
        self._set("training")

    def cancel(self) -> None:
        """Stop what is being done; a run can be gone on with."""
        if self._process is not None:
            self._process.cancel()
        elif self._generation is not None:
            self._worker.cancel_work(self._tag)
            self._generation = None
            self._set("")

    def close(self) -> None:
        """Stop everything; a run keeps its state and ends by itself."""
        self._timer.stop()
        if self._generation is not None:
            self._worker.cancel_work(self._tag)
            self._generation = None
        process, self._process = self._process, None
        if process is not None:
            process.close(_LEAVE_SECONDS)
        for signal, slot in self._links():
            signal.disconnect(slot)

    # -- inside ----------------------------------------------------------------------------

    @property
    def _tag(self) -> tuple[str, int]:
        return "train", id(self)

    def _submit(self, work: Any, what: str) -> None:
        self._generation = self._worker.submit_work(work, self._tag)
        self._set(what)

    def _set(self, what: str) -> None:
        self._busy = what
        self.busy_changed.emit(what)

    def _on_progressed(self, generation: int, progress: Progress) -> None:
        if generation == self._generation:
            self.progressed.emit(progress)

    def _on_finished(self, generation: int, answer: Any) -> None:
        if generation != self._generation:
            return
        self._generation = None
        self._set("")
        if not isinstance(answer, Begun):
            self.looked.emit(answer)
            return
        self.begun.emit(answer)
        try:
            self.follow(answer.folder)
        except OpenMedLabError as error:
            self.failed.emit(str(error))

    def _on_failed(self, generation: int, error: OpenMedLabError) -> None:
        if generation != self._generation:
            return
        self._generation = None
        self._set("")
        if not isinstance(error, Cancelled):
            self.failed.emit(str(error))

    def _hear(self) -> None:
        process = self._process
        if process is None:
            return
        events: list[Event | Ended] = process.events()
        for event in events:
            if isinstance(event, Ended):
                self._timer.stop()
                self._process = None
                process.close(_LEAVE_SECONDS)
                self._set("")
                self.ended.emit(event)
                return
            self.heard.emit(event)

    def _links(self) -> tuple[tuple[Any, Any], ...]:
        worker = self._worker
        return (
            (worker.progressed, self._on_progressed),
            (worker.finished, self._on_finished),
            (worker.failed, self._on_failed),
        )
