"""A training program followed from the window: what it tells, and how it is told to stop."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import QObject, QTimer, Signal

from napari_openmedlab.training.process import TrainingProcess
from napari_openmedlab.training.wire import Ended

__all__ = ["RunFollower"]

_LOOK_MS = 150  # between two looks at what a run tells
_LEAVE_SECONDS = 2.0  # a closing panel waits so long for the run to stop by itself


class RunFollower(QObject):
    """Starts the program of one run at a time and hears of it.

    Attributes
    ----------
    heard : Signal(Event)
    ended : Signal(Ended)
        The run is over; :attr:`process` is ``None`` again.
    """

    heard = Signal(object)
    ended = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.process: TrainingProcess | None = None
        self._timer = QTimer(self)
        self._timer.setInterval(_LOOK_MS)
        self._timer.timeout.connect(self._hear)

    def follow(self, folder: Path) -> None:
        """Train a prepared or stopped run.

        Raises
        ------
        WriteError, EngineError
            If the program can't be started.
        """
        self.process = TrainingProcess(folder)
        self._timer.start()

    def close(self) -> None:
        """Let the run stop by itself; it keeps its state."""
        self._timer.stop()
        process, self.process = self.process, None
        if process is not None:
            process.close(_LEAVE_SECONDS)

    def _hear(self) -> None:
        process = self.process
        if process is None:
            return
        for event in process.events():
            if isinstance(event, Ended):
                self.close()
                self.ended.emit(event)
                return
            self.heard.emit(event)
