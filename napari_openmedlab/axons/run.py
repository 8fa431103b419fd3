"""A whole run: reading ahead, computing and writing overlap; it can stop and go on at any block.

One thread reads the next blocks, one writes finished ones; between them the caller's thread
scores, or several threads where the engine can. At most :data:`.IN_FLIGHT` blocks wait on either
side, so memory does not depend on the volume.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from napari_openmedlab.axons.plan import IN_FLIGHT, Block, Plan
from napari_openmedlab.axons.run_folder import RunFolder
from napari_openmedlab.axons.scoring import BlockWork, Within
from napari_openmedlab.axons.store import Results
from napari_openmedlab.errors import Cancelled, WriteError
from napari_openmedlab.models.blocks import BlockEngine
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.words import time_text

__all__ = ["check_disk", "execute", "time_left"]

_POLL = 0.1  # seconds between looks at a stop
_Item = tuple[Block, Any, float]


def execute(plan: Plan, folder: str | Path, engine: BlockEngine, monitor: Monitor) -> Results:
    """Carry out a plan, or what is left of it, into a folder.

    Parameters
    ----------
    plan : Plan
    folder : path
        New, empty, or of the same run, which then goes on. Finished blocks are not computed
        again, and the result is bit for bit that of a run in one go.
    engine : BlockEngine
    monitor : Monitor
        Hears of every block; a cancel acts within one, and finished blocks stay.

    Raises
    ------
    WriteError
        If the folder is another run's, the disk is full or read-only.
    ReadError
        If voxels can't be read.
    Cancelled
        After a cancel.
    """
    with RunFolder.of(folder, plan) as run:
        done = run.results.done()
        todo = [block for block in plan.blocks if block.number not in done]
        check_disk(plan, run.results.folder, len(todo) / max(1, len(plan.blocks)))
        _Pipeline(plan, run, BlockWork(plan, engine), monitor).work_off(todo)
        run.finish(monitor)
        return run.results


def check_disk(plan: Plan, folder: Path, part: float = 1.0) -> None:
    """Raise :class:`WriteError` if the disk has less room than a tenth of the largest result.

    Results of sparse axons compress to a few per cent, so the full size is no reason to refuse.
    """
    from napari_openmedlab.models.checkpoints.disk import size_text

    free = plan.free_disk(folder)
    needed = int(plan.disk * part / 10)
    if free < needed:
        raise WriteError(
            f"{folder} has {size_text(free)} free, and this run needs at least "
            f"{size_text(needed)} (at most {size_text(plan.disk * part)}); free some space or "
            "choose another folder",
            folder,
        )


def time_left(done: int, total: int, seconds: float) -> str:
    """Return a phrase such as ``"3 min left"``; ``""`` before the first block is done.

    Examples
    --------
    >>> time_left(2, 8, 60.0)
    '3 min left'
    """
    return f"{time_text(seconds / done * (total - done))} left" if done > 0 else ""


class _Pipeline:
    """Reader thread -> the caller's thread -> writer thread."""

    def __init__(self, plan: Plan, run: RunFolder, work: BlockWork, monitor: Monitor) -> None:
        self._plan, self._run, self._work, self._monitor = plan, run, work, monitor
        self._read: queue.Queue[_Item | BaseException | None] = queue.Queue(IN_FLIGHT)
        self._write: queue.Queue[_Item | None] = queue.Queue(IN_FLIGHT)
        self._stop = threading.Event()
        self._failed: list[BaseException] = []

    def work_off(self, todo: list[Block]) -> None:
        """Compute these blocks in turn."""
        total = len(self._plan.blocks)
        with self._threads(todo):
            if self._plan.workers > 1:
                self._side_by_side(len(todo))
            else:
                self._one_by_one(len(todo))
        self._raise_failure()
        self._monitor.step(total, total, "blocks done")

    def _one_by_one(self, count: int) -> None:
        """Score in the caller's thread: graphics libraries keep plans per thread."""
        began = time.perf_counter()
        for number in range(count):
            within = self._report(number, count, began)
            item = self._next()
            if item is None:
                return
            self._put(self._write, self._computed(item, within))
            self._raise_failure()

    def _side_by_side(self, count: int) -> None:
        """Score several blocks at once; they are written in the order in which they end."""
        began, finished = time.perf_counter(), 0
        running: set[Future[_Item]] = set()
        quiet = Within(self._monitor)
        name = "openmedlab-axons-score"
        with ThreadPoolExecutor(self._plan.workers, thread_name_prefix=name) as pool:
            more = True
            while more or running:
                self._report(finished, count, began)
                while more and len(running) < self._plan.workers:
                    item = self._next()
                    more = item is not None
                    if item is not None:
                        running.add(pool.submit(self._computed, item, quiet))
                ended, running = wait(running, _POLL, FIRST_COMPLETED)
                for future in ended:
                    self._put(self._write, future.result())
                    finished += 1
                self._raise_failure()

    def _report(self, number: int, count: int, began: float) -> Within:
        """Tell how far it is; return what an engine may report of the block at hand."""
        total = len(self._plan.blocks)
        done = total - count + number
        left = time_left(number, count, time.perf_counter() - began)
        text = f"block {min(done + 1, total)} of {total}" + (f", {left}" if left else "")
        self._monitor.step(done, total, text)
        return Within(self._monitor, done, total, text)

    def _computed(self, item: _Item, monitor: Monitor) -> _Item:
        block, voxels, seconds = item
        began = time.perf_counter()
        score = None
        if voxels is not None:
            score = self._work.stored(self._work.score(block, voxels, monitor))
        return block, score, seconds + time.perf_counter() - began

    def _next(self) -> _Item | None:
        while True:
            self._raise_failure()
            if self._monitor.cancelled:
                raise Cancelled("cancelled; finished blocks are kept")
            try:
                item = self._read.get(timeout=_POLL)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                raise item
            return item

    def _raise_failure(self) -> None:
        if self._failed:
            raise self._failed[0]

    @contextmanager
    def _threads(self, todo: list[Block]) -> Iterator[None]:
        reader = _thread("read", lambda: self._reading(todo))
        writer = _thread("write", self._writing)
        try:
            yield
        finally:
            self._stop.set()
            reader.join()
            self._write.put(None)  # what is computed is written first
            writer.join()

    def _reading(self, todo: list[Block]) -> None:
        try:
            for block in todo:
                if self._stop.is_set():
                    return
                began = time.perf_counter()
                voxels = self._work.read(block)
                self._put(self._read, (block, voxels, time.perf_counter() - began))
            self._put(self._read, None)
        except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
            self._put(self._read, error)

    def _writing(self) -> None:
        while True:
            item = self._write.get()
            if item is None:
                return
            if self._failed:
                continue  # goes on taking, so that nobody waits for ever
            block, score, seconds = item
            try:
                self._run.write(block.number, score, seconds)
            except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
                self._failed.append(error)

    def _put(self, where: queue.Queue[Any], item: Any) -> None:
        while True:
            try:
                where.put(item, timeout=_POLL)
                return
            except queue.Full:
                if self._stop.is_set():
                    return


def _thread(name: str, target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, name=f"openmedlab-axons-{name}", daemon=True)
    thread.start()
    return thread
