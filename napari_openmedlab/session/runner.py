"""The worker: one persistent thread that runs engines, newest request first.

Engines load, warm up and run in one thread for good: fresh threads lose per-thread plans of
GPU libraries, which costs ten times the answer's own time.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias

from napari_openmedlab.errors import Cancelled, OpenMedLabError, SessionError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.contract import Hint, Monitor, Prediction, Progress, Request
from napari_openmedlab.session.workbench import Workbench, run_once

__all__ = ["Runner", "RunnerEvents", "Work", "Workbench", "run_once"]

logger = logging.getLogger(__name__)

_CALLBACK_WAIT = 1.0  # seconds close() waits for a callback that is just running

_MEMORY_HELP = (
    "there was not enough memory. Close other images, or choose a smaller region; nothing was "
    "changed"
)

Work: TypeAlias = Callable[[Workbench, Monitor], Any]
"""Work that is no answer to prompts: gets the thread's engines, and a monitor to obey."""


@dataclass(frozen=True)
class RunnerEvents:
    """What a runner reports. All are called in the worker thread, with the generation first.

    Attributes
    ----------
    on_started : callable(generation)
    on_progress : callable(generation, Progress)
    on_result : callable(generation, Prediction)
        Of :meth:`Runner.submit_work`: what the work returned.
    on_error : callable(generation, OpenMedLabError)
        Not called for a run that was cancelled or overtaken: the asker knows.
    on_idle : callable()
        Nothing runs or waits any more.
    """

    on_started: Callable[[int], None] | None = None
    on_progress: Callable[[int, Progress], None] | None = None
    on_result: Callable[[int, Prediction], None] | None = None
    on_error: Callable[[int, OpenMedLabError], None] | None = None
    on_idle: Callable[[], None] | None = None


@dataclass(eq=False)
class _Job:
    generation: int
    engine_id: str
    volume: Volume
    request: Request
    tag: Hashable
    prepare: Monitor
    predict: Monitor

    def cancel(self) -> None:
        self.prepare.cancel()
        self.predict.cancel()

    def give_way_to(self, newer: _Job | _Work) -> None:
        """Stop, but go on preparing what the newer request needs as well."""
        self.predict.cancel()
        if not _on_the_same(self, newer):
            self.prepare.cancel()

    def answer(self, bench: Workbench) -> Prediction:
        bench.prepare(self.engine_id, self.volume, self.prepare)
        return bench.predict(self.engine_id, self.volume, self.request, self.predict)


@dataclass(eq=False)
class _Work:
    """Other work than an answer to prompts."""

    generation: int
    work: Work
    tag: Hashable
    monitor: Monitor

    def cancel(self) -> None:
        self.monitor.cancel()

    def give_way_to(self, newer: _Job | _Work) -> None:
        self.monitor.cancel()

    def answer(self, bench: Workbench) -> Any:
        self.monitor.step()
        try:
            return self.work(bench, self.monitor)
        except OpenMedLabError:
            raise
        except MemoryError as error:
            raise SessionError(_MEMORY_HELP) from error
        except Exception as error:
            logger.exception("work in the background failed")
            text = f"internal error: {type(error).__name__}: {error}; nothing was changed"
            raise SessionError(text) from error


@dataclass(eq=False)
class _Ahead:
    """Work ahead of a prompt; nobody waits for it, and its failure is nobody's concern."""

    engine_id: str
    volume: Volume
    hint: Hint
    monitor: Monitor
    tag: Hashable = "work ahead"

    def cancel(self) -> None:
        self.monitor.cancel()

    def give_way_to(self, newer: _Job | _Work) -> None:
        """Stop, unless the request needs just this work."""
        if not (
            isinstance(newer, _Job)
            and _on_the_same(self, newer)
            and self.hint.serves(newer.request)
        ):
            self.monitor.cancel()


def _on_the_same(running: _Job | _Ahead, newer: _Job | _Work) -> bool:
    """Return whether two runs need the same engine on the same volume."""
    if isinstance(newer, _Work):
        return False
    return running.volume is newer.volume and running.engine_id == newer.engine_id


class Runner:
    """Runs requests one after the other in a thread of its own.

    The newest request of a tag wins: older ones that wait are dropped, and one that runs is
    cancelled (work on preparing the same volume goes on). Requests of different tags run in
    the order in which they came.

    Parameters
    ----------
    on_started, on_progress, on_result, on_error, on_idle : callable, optional
        See :class:`RunnerEvents`. Called in the worker thread; they must not block on the
        thread that may call :meth:`close`.

    Notes
    -----
    After :meth:`close` no callback is called and nothing of the volumes is kept.
    """

    def __init__(
        self,
        *,
        on_started: Callable[[int], None] | None = None,
        on_progress: Callable[[int, Progress], None] | None = None,
        on_result: Callable[[int, Prediction], None] | None = None,
        on_error: Callable[[int, OpenMedLabError], None] | None = None,
        on_idle: Callable[[], None] | None = None,
    ) -> None:
        self._events = RunnerEvents(on_started, on_progress, on_result, on_error, on_idle)
        self._changed = threading.Condition()
        self._calling = threading.RLock()
        self._waiting: OrderedDict[Hashable, _Job | _Work] = OrderedDict()
        self._running: _Job | _Work | _Ahead | None = None
        self._ahead: _Ahead | None = None
        self._newest: dict[Hashable, int] = {}
        self._generation = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether something runs or waits."""
        with self._changed:
            return isinstance(self._running, _Job | _Work) or bool(self._waiting)

    def submit(self, engine_id: str, volume: Volume, request: Request, tag: Hashable = None) -> int:
        """Ask for an answer and return its generation: a number that grows with every request.

        Parameters
        ----------
        tag : hashable
            Whose answer it is (the object's id); a newer request of the same tag takes over.
        """
        with self._changed:
            number = self._next_number()
            monitors = Monitor(self._reporter(number)), Monitor(self._reporter(number))
            self._queue(_Job(number, engine_id, volume, request, tag, *monitors))
            return number

    def submit_work(self, work: Work, tag: Hashable) -> int:
        """Ask for other work than an answer to prompts and return its generation.

        Parameters
        ----------
        work : callable(Workbench, Monitor)
            Is called in the worker's thread; what it returns goes to ``on_result``.
        tag : hashable
            Newer work of the same tag takes over.
        """
        with self._changed:
            number = self._next_number()
            self._queue(_Work(number, work, tag, Monitor(self._reporter(number))))
            return number

    def _next_number(self) -> int:
        if self._closed:
            raise SessionError("the worker was closed; open the panel again")
        self._generation += 1
        return self._generation

    def _queue(self, job: _Job | _Work) -> None:
        """Put a job at the end of the queue, in the place of an older one of its tag."""
        self._newest[job.tag] = job.generation
        self._waiting.pop(job.tag, None)
        self._waiting[job.tag] = job
        self._ahead = None
        running = self._running
        if isinstance(running, _Ahead) or (running is not None and running.tag == job.tag):
            running.give_way_to(job)
        self._ensure_thread()
        self._changed.notify_all()

    def anticipate(self, engine_id: str, volume: Volume, hint: Hint) -> None:
        """Let an engine work ahead where a prompt is likely, while nothing else is to do.

        The newest hint wins, and a request stops the work unless it needs it. Does not count as
        busy; what goes wrong is only logged, the request will say it.
        """
        with self._changed:
            if self._closed or self._waiting or isinstance(self._running, _Job | _Work):
                return
            if isinstance(self._running, _Ahead) and self._running.hint == hint:
                return
            if self._running is not None:
                self._running.cancel()
            self._ahead = _Ahead(engine_id, volume, hint, Monitor())
            self._ensure_thread()
            self._changed.notify_all()

    def is_current(self, generation: int) -> bool:
        """Whether an answer of this generation is still wanted (not overtaken or cancelled)."""
        with self._changed:
            return not self._closed and generation in self._newest.values()

    def cancel(
        self, tag: Hashable = None, *, where: Callable[[Hashable], bool] | None = None
    ) -> None:
        """Cancel what runs and waits: of one tag, of the tags ``where`` says, or of all."""
        with self._changed:
            tags = [each for each in self._newest if where is None or where(each)]
            for each in tags if tag is None else [tag]:
                self._newest.pop(each, None)
                self._waiting.pop(each, None)
                if self._running is not None and self._running.tag == each:
                    self._running.cancel()
            self._ahead = None
            if isinstance(self._running, _Ahead):
                self._running.cancel()
            self._changed.notify_all()

    def close(self, timeout: float = 0.0) -> bool:
        """Cancel everything and end the thread at its next step; no callback comes after.

        Parameters
        ----------
        timeout : float
            Seconds to wait for the thread; 0 returns at once.

        Returns
        -------
        bool
            Whether the thread has ended.
        """
        with self._changed:
            self._closed = True
        self.cancel()
        # A callback that is just running may finish; none starts after.
        if self._calling.acquire(timeout=_CALLBACK_WAIT):
            self._calling.release()
        self._events = RunnerEvents()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return thread is None
        thread.join(timeout)
        return not thread.is_alive()

    def _ensure_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._work, name="openmedlab-runner", daemon=True
            )
            self._thread.start()

    def _work(self) -> None:
        bench = Workbench()
        try:
            while self._next():
                asked = isinstance(self._running, _Job | _Work)
                try:
                    self._run(bench)
                finally:
                    with self._changed:
                        self._running = None
                        idle = asked and not self._waiting
                if idle:
                    self._call(self._events.on_idle)
        finally:
            bench.release()

    def _next(self) -> bool:
        """Wait for a job and make it the running one; ``False`` when closed."""
        with self._changed:
            while not self._waiting and self._ahead is None and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            if self._waiting:
                _, self._running = self._waiting.popitem(last=False)
            else:
                self._running, self._ahead = self._ahead, None
            return True

    def _run(self, bench: Workbench) -> None:
        job = self._running
        if isinstance(job, _Ahead):
            _work_ahead(bench, job)
            return
        if job is None:
            return
        number = job.generation
        self._call(self._events.on_started, number)
        try:
            answer = job.answer(bench)
        except Cancelled:
            return
        except OpenMedLabError as error:
            del job  # the error's frames lead back to this one
            _drop_arrays(error)
            if self.is_current(number):
                self._call(self._events.on_error, number, error)
            return
        if self.is_current(number):
            self._call(self._events.on_result, number, answer)

    def _reporter(self, generation: int) -> Callable[[Progress], None]:
        return lambda progress: self._call(self._events.on_progress, generation, progress)

    def _call(self, callback: Callable[..., Any] | None, *values: Any) -> None:
        with self._calling:
            if callback is None or self._closed:
                return
            try:
                callback(*values)
            except Exception:
                logger.exception("a listener of the runner failed")


def _work_ahead(bench: Workbench, job: _Ahead) -> None:
    try:
        bench.anticipate(job.engine_id, job.volume, job.hint, job.monitor)
    except Cancelled:
        pass
    except OpenMedLabError as error:
        logger.info("work ahead of a prompt failed: %s", error)
        _drop_arrays(error)


def _drop_arrays(error: BaseException) -> None:
    """Free what the failed frames held: a report that is kept must not keep a volume.

    Where the cause was raised stays readable; the path through this thread says nothing.
    """
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    error.__traceback__ = None
