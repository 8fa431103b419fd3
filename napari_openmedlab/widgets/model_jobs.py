"""Long work of the Models panel: downloads, imports and checks, one after the other.

One thread does it all, so that two jobs never write the same file and the window never waits.
It ends when the panel does; what it was about to report is then dropped.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qtpy.QtCore import QObject, Signal

from napari_openmedlab.errors import Cancelled, OpenMedLabError
from napari_openmedlab.models.contract import Monitor, Progress

__all__ = ["Job", "ModelWorker"]

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """Something to be done in the worker thread.

    Attributes
    ----------
    key : str
        Row of the table it belongs to; ``""`` for none.
    doing : str
        For the status column: ``"downloading"``, ``"importing"``.
    title : str
        What is being worked on, for the sentence under the table.
    work : callable(Monitor) -> str
        Called in the worker thread; returns the sentence to show.
    otherwise : callable(OpenMedLabError), optional
        Called with the error in the window's thread, before it is shown; returns whether the
        error has been dealt with.
    """

    key: str
    doing: str
    title: str
    work: Callable[[Monitor], str]
    otherwise: Callable[[OpenMedLabError], bool] | None = None
    monitor: Monitor = field(default_factory=Monitor)


class ModelWorker(QObject):
    """Runs jobs in a thread of its own; connect the signals with a queued connection.

    Attributes
    ----------
    started : Signal(Job)
    progressed : Signal(Job, Progress)
    finished : Signal(Job, str)
    failed : Signal(Job, OpenMedLabError)
        :class:`~napari_openmedlab.errors.Cancelled` among them.
    """

    started = Signal(object)
    progressed = Signal(object, object)
    finished = Signal(object, str)
    failed = Signal(object, object)

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue. After :meth:`close` it is dropped."""
        job.monitor = Monitor(lambda progress: self._report(job, progress))
        with self._changed:
            if self._closed:
                return
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="openmedlab-models", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def cancel(self) -> None:
        """Stop what runs, at its next step, and drop what waits."""
        with self._changed:
            dropped = list(self._waiting)
            self._waiting.clear()
            if self._running is not None:
                self._running.monitor.cancel()
            quiet = self._closed
        if not quiet:
            for job in dropped:
                self.failed.emit(job, Cancelled("cancelled"))

    def close(self) -> None:
        """Cancel everything; the thread ends at its next step and no signal comes after."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.cancel()

    def _report(self, job: Job, progress: Progress) -> None:
        if not self._closed:
            self.progressed.emit(job, progress)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._send(self.started, job)
            try:
                result = job.work(job.monitor)
            except OpenMedLabError as error:
                self._end(self.failed, job, error)
            except Exception as error:  # the worker boundary: nothing may get lost here
                logger.exception("%s of %s failed", job.doing, job.title)
                sentence = f"{job.title}: {type(error).__name__}: {error}"
                self._end(self.failed, job, OpenMedLabError(sentence))
            else:
                self._end(self.finished, job, result)

    def _next(self) -> Job | None:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            self._running = self._waiting.popleft()
            return self._running

    def _end(self, signal: Any, job: Job, value: Any) -> None:
        with self._changed:
            self._running = None
        self._send(signal, job, value)

    def _send(self, signal: Any, *values: Any) -> None:
        if not self._closed:
            signal.emit(*values)
