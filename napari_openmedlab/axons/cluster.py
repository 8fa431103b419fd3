"""The same run on a Dask cluster. Workers read and write the same folders as this program.

A worker needs nothing but the run's folder: ``run.json`` says everything. It writes a block's
chunks and returns; the journal is kept here, so a block counts as done when its chunks are on the
disk. A block of a worker that died is computed by another, and bit for bit the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_openmedlab.axons.plan import Plan, Settings, blocks_of
from napari_openmedlab.axons.run import check_disk, time_left
from napari_openmedlab.axons.run_folder import RunFolder, write_block
from napari_openmedlab.axons.scoring import BlockWork
from napari_openmedlab.axons.source import Address, Source, open_source
from napari_openmedlab.axons.store import Results, label_level
from napari_openmedlab.axons.survey import Survey
from napari_openmedlab.errors import EngineError, OpenMedLabError, ReadError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.blocks import BlockEngine, Intensity
from napari_openmedlab.models.catalogue import load_engine
from napari_openmedlab.models.contract import Monitor

__all__ = ["execute_on", "plan_of_run"]

_POLL = 0.2
_AHEAD = 4  # tasks a worker thread has in hand at most


def execute_on(scheduler: str, plan: Plan, folder: str | Path, monitor: Monitor) -> Results:
    """Carry out a plan on a cluster; as :func:`.run.execute` otherwise.

    Parameters
    ----------
    scheduler : str
        Address of a Dask scheduler, for example ``"tcp://10.0.0.1:8786"``.
    plan : Plan
        Its source must have an address, its layout no slabs.
    folder : path
        On a disk that all workers see under the same path, as the source.
    monitor : Monitor

    Raises
    ------
    EngineError
        If the package ``distributed`` is missing or the cluster does not answer.
    """
    if plan.source.address is None:
        raise ReadError("on a cluster the volume has to come from a file that all workers see")
    if plan.layout.slabs:
        raise EngineError("upstream's slabs depend on their order; run them on one machine")
    client = _client(scheduler)
    try:
        with RunFolder.of(Path(folder).absolute(), plan) as run:
            done = run.results.done()
            todo = [b.number for b in plan.blocks if b.number not in done]
            check_disk(plan, run.results.folder, len(todo) / max(1, len(plan.blocks)))
            for number in plan.skipped.intersection(todo):
                run.write(number, None, 0.0)
            _work_off(client, run, [n for n in todo if n not in plan.skipped], plan, monitor)
            run.finish(monitor)
            return run.results
    finally:
        client.close()


def _client(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise EngineError(
            "a run on a cluster needs the package distributed: pip install "
            "'napari-openmedlab[cluster]'"
        ) from error
    try:
        connect: Any = Client
        return connect(scheduler, timeout=20)
    except (OSError, ValueError) as error:
        raise EngineError(f"no Dask scheduler answers at {scheduler}: {error}") from error


def _work_off(client: Any, run: RunFolder, todo: list[int], plan: Plan, monitor: Monitor) -> None:
    """Keep every worker busy, note what comes back; nothing is submitted after a failure."""
    from distributed import wait

    total, began = len(plan.blocks), time.perf_counter()
    before, waiting, finished = total - len(todo), list(reversed(todo)), 0
    running: set[Any] = set()
    wait_for: Any = wait
    try:
        while waiting or running:
            left = time_left(finished, len(todo), time.perf_counter() - began)
            monitor.step(before + finished, total, f"block {before + finished} of {total} {left}")
            room = _AHEAD * max(1, sum(client.nthreads().values())) - len(running)
            for _ in range(min(room, len(waiting))):
                number = waiting.pop()
                running.add(
                    client.submit(_remote, str(run.results.folder), number, pure=False, retries=2)
                )
            try:
                ended = wait_for(running, timeout=_POLL, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                continue
            for future in ended:
                run.note(_result(future))
                running.discard(future)
                finished += 1
    finally:
        client.cancel(list(running))
    monitor.step(total, total, "blocks done")


def _result(future: Any) -> Mapping[str, Any]:
    try:
        facts: Mapping[str, Any] = future.result()
    except OpenMedLabError:
        raise
    except Exception as error:  # a lost worker's errors are of any kind
        raise EngineError(f"a block failed on the cluster: {error}") from error
    return facts


def _remote(folder: str, number: int) -> dict[str, Any]:
    """Compute one block on a worker: read, score, write; return its line of the journal."""
    from distributed import get_worker

    works = get_worker().__dict__.setdefault("openmedlab_axons", {})
    if folder not in works:
        works.clear()  # of an earlier run
    work = works.get(folder) or works.setdefault(folder, _Remote(folder))
    facts: dict[str, Any] = work.block(number)
    return facts


class _Remote:
    """A run as a worker sees it, kept between its blocks."""

    def __init__(self, folder: str) -> None:
        self._results = Results.open(folder, "r+")
        self._engine: BlockEngine = load_engine(str(self._results.run["engine"]))
        self._plan = plan_of_run(self._results.run, self._engine)
        self._work = BlockWork(self._plan, self._engine)
        self._one = threading.Lock()  # an engine runs one block at a time
        self._level = label_level(self._results.threshold)

    def block(self, number: int) -> dict[str, Any]:
        began = time.perf_counter()
        block = self._plan.blocks[number]
        voxels = self._work.read(block)
        facts: dict[str, Any] = {"block": number}
        if voxels is None:
            return {**facts, "voxels": 0, "skipped": True, "seconds": 0.0}
        with self._one:
            score = self._work.stored(self._work.score(block, voxels, Monitor()))
        found = write_block(self._results, self._plan, number, score, self._level)
        return {**facts, "voxels": found, "seconds": round(time.perf_counter() - began, 3)}


def plan_of_run(run: Mapping[str, Any], engine: BlockEngine, source: Source | None = None) -> Plan:
    """Return the plan that a ``run.json`` describes; its source is opened anew if not given.

    Raises
    ------
    ReadError
        If the source can't be opened, or has changed since.
    """
    if source is None:
        if run["address"] is None:
            raise ReadError("the run's volume came from no file; open it and start from there")
        address = Address.from_json(run["address"])
        source = open_source(
            address.path,
            series=address.series,
            index=address.index,
            gaps=address.gaps,
            spacing=run["spacing"],
        )
    if list(source.shape) != run["source"]["shape"]:
        raise ReadError(f"{source.name} has another shape than when the run was started")
    start, stop = run["region"]
    found = run["intensity"]
    settings = Settings(
        engine=run["engine"],
        options=run["options"],
        region=Box(tuple(start), tuple(stop)),
        threshold=run["threshold"],
        normalisation=found["intensity"]["mode"],
        skip_background=run["skip_background"],
    )
    layout = engine.layout(settings.options)
    looked = Survey(
        Intensity.from_json(found["intensity"]), float(found["empty_below"]), int(found["coarse"])
    )
    blocks = blocks_of(settings.region or source.whole, layout)
    return Plan(source, settings, layout, looked, run["provenance"], blocks)
