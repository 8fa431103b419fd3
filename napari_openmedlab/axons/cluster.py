"""The same run on a Dask cluster. Workers read and write the same folders as this program.

A worker needs nothing but the run's folder: ``run.json`` says everything, and its hash goes with
every task, so that a worker never goes on with an earlier run of the same folder. It writes a
block's chunks and returns; the journal is kept here, so a block counts as done when its chunks are
on the disk. A block of a worker that died is computed by another, and bit for bit the same: a
worker that would compute something else is refused.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from napari_openmedlab import __version__
from napari_openmedlab.axons.plan import Plan, Settings, blocks_of
from napari_openmedlab.axons.run import check_disk, time_left
from napari_openmedlab.axons.run_folder import RunFolder, write_block
from napari_openmedlab.axons.scoring import BlockWork
from napari_openmedlab.axons.source import Address, Source, open_source
from napari_openmedlab.axons.store import Results, label_level, run_hash
from napari_openmedlab.axons.survey import Survey
from napari_openmedlab.errors import EngineError, OpenMedLabError, ReadError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.blocks import BlockEngine, Intensity
from napari_openmedlab.models.catalogue import load_engine
from napari_openmedlab.models.contract import Monitor

__all__ = ["execute_on", "plan_of_run"]

_POLL = 0.05  # seconds between looks at what is done
_AHEAD = 4  # tasks a worker thread has in hand at most
_KEPT = "openmedlab_axons"  # where a worker keeps the run it has open
_OPENING = threading.Lock()
# Of a provenance: decided by the machine that computes, where the options leave it open.
_PLACE = ("device", "precision")


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
        If the package ``distributed`` is missing, the cluster does not answer, or a worker would
        compute something else than the others.
    """
    if plan.source.address is None:
        raise ReadError("on a cluster the volume has to come from a file that all workers see")
    if plan.layout.slabs:
        raise EngineError("upstream's slabs depend on their order; run them on one machine")
    client = _client(scheduler)
    try:
        plan = _as_computed(client, plan, monitor)
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
        # Not for this program's own reading, which would wait for workers too.
        return connect(scheduler, timeout=20, set_as_default=False)
    except (OSError, ValueError) as error:
        raise EngineError(f"no Dask scheduler answers at {scheduler}: {error}") from error


def _as_computed(client: Any, plan: Plan, monitor: Monitor) -> Plan:
    """Return the plan with device and precision of the workers; this machine may have others."""
    asked = client.submit(
        _placed, plan.settings.engine, dict(plan.settings.options), dict(plan.provenance),
        pure=False, retries=2,
    )  # fmt: skip
    while not asked.done():
        monitor.step(0, 0, "waiting for a worker")
        time.sleep(_POLL)
    return replace(plan, provenance=_result(asked))


def _work_off(client: Any, run: RunFolder, todo: list[int], plan: Plan, monitor: Monitor) -> None:
    """Keep every worker busy, note what comes back; nothing is submitted after a failure."""
    folder, digest = run.results.folder, run_hash(run.results.folder)
    total, began = len(plan.blocks), time.perf_counter()
    before, waiting, finished = total - len(todo), list(reversed(todo)), 0
    running: set[Any] = set()
    try:
        while waiting or running:
            left = time_left(finished, len(todo), time.perf_counter() - began)
            monitor.step(before + finished, total, f"block {before + finished} of {total} {left}")
            room = _AHEAD * max(1, sum(client.nthreads().values())) - len(running)
            for _ in range(min(room, len(waiting))):
                number = waiting.pop()
                task = (str(folder), digest, number)
                running.add(client.submit(_remote, *task, pure=False, retries=2))
            ended = [future for future in running if future.done()]
            if not ended:
                time.sleep(_POLL)
            for future in ended:
                run.note(_result(future))
                running.discard(future)
                finished += 1
    finally:
        client.cancel(list(running))
    monitor.step(total, total, "blocks done")


def _result(future: Any) -> Any:
    try:
        found = future.result()
    except OpenMedLabError:
        raise
    except Exception as error:  # a lost worker's errors are of any kind
        raise EngineError(f"a block failed on the cluster: {error}") from error
    if isinstance(found, OpenMedLabError):
        raise found
    return found


# -- on a worker ---------------------------------------------------------------------------------


def _placed(engine: str, options: Mapping[str, Any], wanted: Mapping[str, Any]) -> Any:
    """Return a provenance with device and precision of a worker, or why it can't be had there."""
    from distributed import get_worker

    try:
        found = load_engine(engine).provenance(options)
        agreed = {**wanted, **{name: found[name] for name in _PLACE if name in found}}
        _refuse_unlike(found, agreed)
    except OpenMedLabError as error:
        return _said_by(get_worker(), error)
    return agreed


def _remote(folder: str, digest: str, number: int) -> dict[str, Any] | OpenMedLabError:
    """Compute one block on a worker: read, score, write; return its line of the journal."""
    from distributed import get_worker

    worker = get_worker()
    try:
        work = _opened(worker, folder, digest)
    except OpenMedLabError as error:
        return _said_by(worker, error)
    return work.block(number)


def _said_by(worker: Any, error: OpenMedLabError) -> OpenMedLabError:
    """Return an error to hand back as a value: raised, another worker would be tried."""
    return type(error)(f"the worker {worker.name} can't take part: {error}")


def _refuse_unlike(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise if an engine here would not compute what the run's does."""
    differing = [
        f"{name} {_short(found, name)} instead of {_short(wanted, name)}"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
    if differing:
        raise EngineError(
            f"it would compute something else ({', '.join(differing)}); give all machines the "
            "same version, weights and kind of device, or choose device and precision by name, "
            "then repeat the command"
        )


def _short(facts: Mapping[str, Any], name: str) -> str:
    return str(facts.get(name, "none"))[:12]  # hashes are long


def _opened(worker: Any, folder: str, digest: str) -> _Remote:
    """Return the run a worker has open, which is opened first if it had another, or none."""
    with _OPENING:
        kept: _Remote | None = worker.__dict__.get(_KEPT)
        if kept is not None and kept.key == (folder, digest):
            return kept
        work = _Remote(folder, digest)
        if kept is not None:
            kept.close()
        worker.__dict__[_KEPT] = work
        return work


class _Remote:
    """A run as a worker sees it, kept between its blocks."""

    def __init__(self, folder: str, digest: str) -> None:
        import dask

        self.key = (folder, digest)
        self._check()
        self._results = Results.open(folder, "r+")
        run = self._results.run
        self._engine: BlockEngine = load_engine(str(run["engine"]))
        found = {**self._engine.provenance(run["options"]), "openmedlab": __version__}
        _refuse_unlike(found, {**run["provenance"], "openmedlab": run["version"]})
        # A task that gives its reading to the cluster would wait for itself.
        with dask.config.set(scheduler="synchronous"):
            self._plan = plan_of_run(run, self._engine)
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
        self._check()  # the run may have been cancelled, and another begun in its folder
        found = write_block(self._results, self._plan, number, score, self._level)
        return {**facts, "voxels": found, "seconds": round(time.perf_counter() - began, 3)}

    def close(self) -> None:
        """Let go of the network, after the block at hand."""
        with self._one:
            self._engine.unload()

    def _check(self) -> None:
        folder, digest = self.key
        if run_hash(Path(folder)) != digest:
            raise ReadError(
                f"{folder} does not hold the run that was started; all machines have to see the "
                "same disk under the same path, and nothing may change the folder meanwhile",
                folder,
            )


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
    if source.fingerprint() != run["source"]:
        raise ReadError(
            f"{source.name} has other voxels than when the run was started; bring back the volume "
            "as it was, or start anew in another folder"
        )
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
