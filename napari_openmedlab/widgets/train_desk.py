"""Training on its way: cases are looked at, a run is prepared, its program followed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Qt, Signal

from napari_openmedlab.errors import Cancelled, OpenMedLabError
from napari_openmedlab.models.contract import Progress
from napari_openmedlab.training.jobs import Begun, Source, beginning, looking
from napari_openmedlab.training.process import TrainingProcess
from napari_openmedlab.training.settings import TrainSettings
from napari_openmedlab.training.wire import Ended
from napari_openmedlab.widgets.run_follower import RunFollower
from napari_openmedlab.widgets.worker_bridge import WorkerBridge

__all__ = ["TrainDesk"]


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
        self._run = RunFollower(self)
        self._run.heard.connect(self.heard)
        self._run.ended.connect(self._on_ended)
        for signal, slot in self._links():
            signal.connect(slot, Qt.ConnectionType.QueuedConnection)

    @property
    def busy(self) -> str:
        """What is being done; empty if nothing."""
        return self._busy

    @property
    def process(self) -> TrainingProcess | None:
        """The run that is under way."""
        return self._run.process

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
        self._run.follow(folder)
        self._set("training")

    def cancel(self) -> None:
        """Stop what is being done; a run can be gone on with."""
        if self.process is not None:
            self.process.cancel()
        elif self._generation is not None:
            self._worker.cancel_work(self._tag)
            self._generation = None
            self._set("")

    def close(self) -> None:
        """Stop everything; a run keeps its state and ends by itself."""
        if self._generation is not None:
            self._worker.cancel_work(self._tag)
            self._generation = None
        self._run.close()
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

    def _on_ended(self, ended: Ended) -> None:
        self._set("")
        self.ended.emit(ended)

    def _links(self) -> tuple[tuple[Any, Any], ...]:
        worker = self._worker
        return (
            (worker.progressed, self._on_progressed),
            (worker.finished, self._on_finished),
            (worker.failed, self._on_failed),
        )
