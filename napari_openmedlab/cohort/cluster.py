"""The same run on a Dask cluster: one case a task, results collected by whoever started it.

Workers need this package, the scans and the templates under the same paths, and the weights.
They write nothing: the files of a case travel back as bytes. When a worker dies, Dask gives its
case to another one; a case that ends worker after worker is listed as failed.
"""

from __future__ import annotations

import importlib
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_openmedlab.cohort.records import CaseRecord
from napari_openmedlab.cohort.work import Delivery, Task, work_on, write_masks
from napari_openmedlab.errors import Cancelled, EngineError
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.localisation import Template
from napari_openmedlab.session.workbench import Workbench

__all__ = ["Parcel", "deliveries"]

_POLL = 0.1  # seconds between two looks at finished cases, and at a cancel
_PATIENCE = 30.0  # seconds to wait for the scheduler and for its first worker
_AHEAD = 2  # cases handed out per thread of a worker, so that none waits
_ATTRIBUTE = "openmedlab_cohort"  # of the worker that keeps our loaded engines


@dataclass(frozen=True, eq=False)
class Parcel:
    """A case on its way back: the record, and its files as bytes."""

    record: CaseRecord
    files: Mapping[str, bytes]
    unchanged: bool = False

    def write(self, folder: Path) -> tuple[str, ...]:
        """Write the files into a folder and return their names."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return tuple(self.files)


def deliveries(
    address: str, tasks: Iterator[Task], templates: Sequence[Template], monitor: Monitor
) -> Generator[Delivery, None, None]:
    """Hand cases out to a cluster and yield them as they come back.

    Parameters
    ----------
    address : str
        Of the scheduler, ``tcp://HOST:8786`` say.
    tasks : iterator of Task
        Asked for the next one only when a worker could take it.
    templates : sequence of Template
    monitor : Monitor
        A cancel reaches the workers at their next step.

    Raises
    ------
    EngineError
        If ``distributed`` is not installed, no scheduler answers, or it has no workers.
    Cancelled
        After a cancel.
    """
    client = _connected(address)
    stop = f"openmedlab-cancel-{uuid.uuid4().hex}"
    run = _Handing(client, stop, tuple(templates), tasks)
    try:
        yield from run.results(monitor)
    finally:
        run.close()
        client.close()


class _Handing:
    """Cases handed out, and those not yet."""

    def __init__(
        self, client: Any, stop: str, templates: tuple[Template, ...], tasks: Iterator[Task]
    ) -> None:
        self._client, self._stop, self._templates, self._tasks = client, stop, templates, tasks
        self._flag = _dask().Event(stop, client=client)
        self._out: dict[Any, Task] = {}

    def results(self, monitor: Monitor) -> Generator[Delivery, None, None]:
        more = True
        while more or self._out:
            monitor.step(0, 0, "waiting for the cluster")
            more = more and self._hand_out()
            for future in self._finished():
                yield self._delivery(future)

    def close(self) -> None:
        """Take back what is not done, and let the workers let go of their engines."""
        if self._out:
            self._flag.set()
            self._client.cancel(list(self._out), force=True)
            self._out.clear()
        self._client.run(_release, on_error="ignore")

    def _hand_out(self) -> bool:
        """Hand out as much as the workers can take; return whether there is more."""
        room = max(1, _AHEAD * sum(self._client.nthreads().values())) - len(self._out)
        for _ in range(room):
            task = next(self._tasks, None)
            if task is None:
                return False
            future = self._client.submit(
                _remote, task, self._templates, self._stop,
                key=f"openmedlab-{task.case.id}-{uuid.uuid4().hex[:8]}", pure=False,
            )  # fmt: skip
            self._out[future] = task
        return True

    def _finished(self) -> list[Any]:
        """Return what came back since the last look; waits a moment if nothing did."""
        done = [future for future in self._out if future.done()]
        if not done and self._out:
            time.sleep(_POLL)
        return done

    def _delivery(self, future: Any) -> Delivery:
        task = self._out.pop(future)
        if future.status == "finished":
            parcel = future.result()
            future.release()
            return Delivery(parcel.record, parcel.write, parcel.unchanged)
        if future.status in ("cancelled", "lost"):
            raise EngineError(
                "the connection to the Dask scheduler was lost; what is finished stays, run it "
                "again to go on"
            )
        error = future.exception() if future.status == "error" else None
        if isinstance(error, Cancelled):
            raise error
        reason = _why(error)
        case = task.case
        return Delivery(CaseRecord(case.id, task.title, "failed", case.series, reason))


def _why(error: BaseException | None) -> str:
    if type(error).__name__ == "KilledWorker":
        return (
            "the worker that had this case died each time it was tried, perhaps for want of "
            "memory; run it on a machine with more"
        )
    return f"a worker of the cluster could not run it: {type(error).__name__}: {error}"


def _dask() -> Any:
    """Return the package ``distributed``, which is loaded for a cluster only."""
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise EngineError(
            "a run on a cluster needs Dask: pip install 'napari-openmedlab[cluster]'"
        ) from error


def _connected(address: str) -> Any:
    try:
        client = _dask().Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:  # a late answer is an OSError, too
        raise EngineError(
            f"no Dask scheduler answers at {address}; start one with 'dask scheduler' and some "
            "workers with 'dask worker ADDRESS', or check the address"
        ) from error
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except OSError as error:
        client.close()
        raise EngineError(
            f"the Dask scheduler at {address} has no workers; start some with 'dask worker "
            f"{address}'"
        ) from error
    return client


# -- on the worker -----------------------------------------------------------------------------


@dataclass(eq=False)
class _Place:
    """What a worker keeps between two cases: loaded engines, used by one case at a time."""

    bench: Workbench
    lock: threading.Lock


def _remote(task: Task, templates: tuple[Template, ...], stop: str) -> Parcel:
    """Work on one case in a worker."""
    dask = _dask()
    place = _place_of(dask.get_worker())
    monitor = _WorkerMonitor(dask.Event(stop).is_set)
    with place.lock:
        monitor.step()
        outcome = work_on(task, templates, place.bench, monitor)
        with tempfile.TemporaryDirectory(prefix="openmedlab-") as folder:
            names = write_masks(outcome, task.settings, Path(folder))
            files = {name: Path(folder, name).read_bytes() for name in names}
    return Parcel(outcome.record, files, outcome.unchanged)


def _place_of(worker: Any) -> _Place:
    found = getattr(worker, _ATTRIBUTE, None)
    if not isinstance(found, _Place):
        found = _Place(Workbench(limit=1), threading.Lock())
        setattr(worker, _ATTRIBUTE, found)
    return found


def _release(dask_worker: Any) -> None:
    """Let go of the engines a worker has loaded, unless another run uses them just now."""
    found = getattr(dask_worker, _ATTRIBUTE, None)
    if isinstance(found, _Place) and found.lock.acquire(blocking=False):
        try:
            found.bench.release()
        finally:
            found.lock.release()


class _WorkerMonitor(Monitor):
    """Asks the scheduler now and then whether the run was cancelled."""

    def __init__(self, asked: Callable[[], bool], every: float = 1.0) -> None:
        super().__init__()
        self._asked, self._every, self._next = asked, every, 0.0

    def step(self, done: int = 0, total: int = 0, text: str = "") -> None:
        """Raise after a cancel."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            if self._asked():
                self.cancel()
        super().step(done, total, text)
