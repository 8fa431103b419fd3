"""Work in a panel's background: what comes back calls a function in the window's thread."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qtpy.QtCore import QObject, Qt

from napari_openmedlab.errors import OpenMedLabError, SessionError
from napari_openmedlab.models.contract import Monitor, Progress
from napari_openmedlab.session.workbench import Workbench
from napari_openmedlab.widgets.worker_bridge import WorkerBridge

__all__ = ["Background"]


@dataclass(frozen=True)
class _Waiting:
    done: Callable[[Any], None]
    failed: Callable[[OpenMedLabError], None]
    progressed: Callable[[Progress], None] | None


class Background(QObject):
    """Hands work to a worker and its results to whoever asked.

    Parameters
    ----------
    worker : WorkerBridge
    parent : QObject, optional
    """

    def __init__(self, worker: WorkerBridge, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._worker = worker
        self._waiting: dict[int, _Waiting] = {}
        self._numbers = itertools.count()
        for signal, slot in self._links():
            signal.connect(slot, Qt.ConnectionType.QueuedConnection)

    @property
    def busy(self) -> bool:
        """Whether something was asked for that has not come back."""
        return bool(self._waiting)

    def run(
        self,
        work: Callable[[Workbench, Monitor], Any],
        done: Callable[[Any], None],
        failed: Callable[[OpenMedLabError], None],
        progressed: Callable[[Progress], None] | None = None,
    ) -> None:
        """Let the worker do something; exactly one of ``done`` and ``failed`` is called.

        Neither is called after :meth:`close`.
        """
        tag = ("openmedlab-background", id(self), next(self._numbers))
        try:
            generation = self._worker.submit_work(work, tag)
        except SessionError as error:
            failed(error)
            return
        self._waiting[generation] = _Waiting(done, failed, progressed)

    def submit(
        self,
        ask: Callable[[], int],
        done: Callable[[Any], None],
        failed: Callable[[OpenMedLabError], None],
    ) -> None:
        """As :meth:`run`, for what another call puts on its way; ``ask`` returns its generation."""
        try:
            generation = ask()
        except OpenMedLabError as error:
            failed(error)
            return
        self._waiting[generation] = _Waiting(done, failed, None)

    def close(self) -> None:
        """Stop listening."""
        self._waiting.clear()
        for signal, slot in self._links():
            signal.disconnect(slot)

    def _links(self) -> tuple[tuple[Any, Any], ...]:
        worker = self._worker
        return (
            (worker.finished, self._on_finished),
            (worker.failed, self._on_failed),
            (worker.progressed, self._on_progressed),
        )

    def _on_finished(self, generation: int, result: Any) -> None:
        waiting = self._waiting.pop(generation, None)
        if waiting is not None:
            waiting.done(result)

    def _on_failed(self, generation: int, error: OpenMedLabError) -> None:
        waiting = self._waiting.pop(generation, None)
        if waiting is not None:
            waiting.failed(error)

    def _on_progressed(self, generation: int, progress: Progress) -> None:
        waiting = self._waiting.get(generation)
        if waiting is not None and waiting.progressed is not None:
            waiting.progressed(progress)
