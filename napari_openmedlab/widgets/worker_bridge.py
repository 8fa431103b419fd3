"""From the worker thread to the window: Qt signals, and the entry in napari's activity dock.

The runner calls back in its own thread. Here each call becomes a queued signal, so that
whoever listens runs in the window's thread. napari's progress bars let the event loop run
inside their setters (``QApplication.processEvents``); everything here allows for being entered
again while it works.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from napari.utils.progress import cancelable_progress
from qtpy.QtCore import QObject, QTimer, Signal

from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.contract import Hint, Progress, Request
from napari_openmedlab.session.runner import Runner, Work

__all__ = ["ActivityEntry", "WorkerBridge"]

_SHOW_AFTER_MS = 700  # most answers come sooner; a bar that flashes up only distracts


class WorkerBridge(QObject):
    """One runner whose reports arrive as signals; connect them with a queued connection.

    Attributes
    ----------
    started : Signal(int)
    progressed : Signal(int, Progress)
    finished : Signal(int, Prediction)
        Or what other work returned.
    failed : Signal(int, OpenMedLabError)
    idle : Signal()
        The integer is the generation that :meth:`submit` returned.
    """

    started = Signal(int)
    progressed = Signal(int, object)
    finished = Signal(int, object)
    failed = Signal(int, object)
    idle = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._runner = Runner(
            on_started=self.started.emit,
            on_progress=self.progressed.emit,
            on_result=self.finished.emit,
            on_error=self.failed.emit,
            on_idle=self.idle.emit,
        )

    @property
    def busy(self) -> bool:
        """Whether something runs or waits."""
        return self._runner.busy

    def submit(self, engine_id: str, volume: Volume, request: Request, object_id: int) -> int:
        """Ask for an answer; a newer request for the same object takes its place."""
        return self._runner.submit(engine_id, volume, request, tag=(id(volume), object_id))

    def anticipate(self, engine_id: str, volume: Volume, hint: Hint) -> None:
        """Let the engine work ahead of a prompt while there is nothing else to do."""
        self._runner.anticipate(engine_id, volume, hint)

    def is_current(self, generation: int) -> bool:
        """Whether an answer of this generation is still wanted."""
        return self._runner.is_current(generation)

    def submit_work(self, work: Work, tag: Hashable) -> int:
        """Ask for other work than an answer to prompts; newer work of its tag takes its place."""
        return self._runner.submit_work(work, tag)

    def cancel(self, volume: Volume) -> None:
        """Cancel what runs and waits for the objects of one volume."""
        self._runner.cancel(where=lambda tag: isinstance(tag, tuple) and tag[0] == id(volume))

    def cancel_work(self, tag: Hashable) -> None:
        """Cancel other work of this tag."""
        self._runner.cancel(tag)

    def close(self) -> None:
        """Cancel everything; the thread ends at its next step and no signal comes after."""
        self._runner.close()


class ActivityEntry(QObject):
    """A bar in napari's activity dock for runs that take longer than a moment.

    Attributes
    ----------
    cancelled : Signal()
        The user pressed Cancel there.
    """

    cancelled = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._bar: _Bar | None = None
        self._text = ""
        self._running = False
        self._updating = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_SHOW_AFTER_MS)
        self._timer.timeout.connect(self._open)

    def begin(self, text: str) -> None:
        """Announce a run; the bar appears if it has not ended by then."""
        self._text = text
        if not self._running:
            self._running = True
            self._timer.start()

    def report(self, progress: Progress) -> None:
        """Move the bar, if it is there yet."""
        bar = self._bar
        if bar is None or self._updating:
            return
        self._updating = True
        try:
            if bar.total != progress.total:
                bar.total = progress.total
            if progress.total:
                bar.update(progress.done - bar.n)
        finally:
            self._updating = False

    def end(self) -> None:
        """Take the bar away."""
        self._running = False
        self._timer.stop()
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()

    def _open(self) -> None:
        bar = _Bar(desc=self._text, total=0, cancel_callback=self.cancelled.emit)
        if self._running and self._bar is None:
            self._bar = bar
        else:  # the run ended while the bar was being made
            bar.close()


class _Bar(cancelable_progress):
    """napari's bar; its Cancel button acts at once, not at the next turn of a loop."""

    def cancel(self) -> None:
        super().cancel()
        if self.cancel_callback is not None:
            self.cancel_callback()

    def close(self, *_: Any) -> None:
        """Close once; napari's own dock closes what is left when the window goes."""
        if self in type(self)._all_instances:
            super().close()
