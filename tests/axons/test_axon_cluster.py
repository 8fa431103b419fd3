"""The same run on a Dask cluster of two workers: killed, cancelled, unlike each other."""

import os
import shutil
import signal
import threading
import time

import block_engines
import pytest
import zarr
from block_engines import Smooth
from test_axon_runs import StopAt, digest, stored

from napari_openmedlab.axons.cluster import execute_on, plan_of_run
from napari_openmedlab.axons.plan import Settings, make_plan
from napari_openmedlab.axons.run import execute
from napari_openmedlab.axons.source import open_source, source_of_array
from napari_openmedlab.axons.store import Results, relabel
from napari_openmedlab.errors import Cancelled, EngineError, ReadError, WriteError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.catalogue import load_engine
from napari_openmedlab.models.contract import Monitor

distributed = pytest.importorskip("distributed")


@pytest.fixture
def planned(tmp_path):
    engine = load_engine("axon-filter")
    source = open_source(stored(tmp_path / "brain.zarr", (32, 64, 128)))
    return make_plan(source, Settings("axon-filter", {"block": 32}), engine, Monitor(), timed=False)


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path):
    source = open_source(stored(tmp_path / "brain.zarr", (64, 128, 192)))
    engine = load_engine("axon-filter")
    settings = Settings("axon-filter", {"block": 32}, skip_background=False)
    planned = make_plan(source, settings, engine, Monitor(), timed=False)
    out = tmp_path / "out"
    execute(planned, tmp_path / "one go", engine, Monitor())
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0
    ) as cluster:
        first = next(iter(cluster.workers.values()))
        done_when_killed = []

        def kill():
            journal = out / "journal.jsonl"
            while not (journal.exists() and journal.read_bytes().count(b"\n")):
                time.sleep(0.01)
            os.kill(first.pid, signal.SIGKILL)
            done_when_killed.append(len(Results.open(out).done()))

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        results = execute_on(cluster.scheduler_address, planned, out, Monitor())
        killer.join(10)
    assert len(results.done()) == len(planned.blocks) == 48
    assert 1 <= done_when_killed[0] < 40  # in the middle of the run
    assert digest(out) == digest(tmp_path / "one go")
    assert results.complete


@pytest.fixture
def cluster():
    """Two workers in this process, so that they know the engines of the tests."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as found:
        yield found.scheduler_address


@pytest.fixture
def smooth_plan(tmp_path, monkeypatch):
    """Makes plans of the same volume for a small engine whose precision depends on the machine."""
    block_engines.register(monkeypatch)
    source = open_source(stored(tmp_path / "brain.zarr", (32, 48, 64)))

    def made(**changes):
        settings = Settings("smooth", skip_background=False, **changes)
        return make_plan(source, settings, load_engine("smooth"), Monitor(), timed=False)

    return made


def provenance_by_machine(monkeypatch, **machines):
    """Have the engine say ``{**base, **machines[name]}``; this program's name is ``here``."""

    def provenance(self, options):
        try:
            name = f"worker_{distributed.get_worker().name}"
        except ValueError:
            name = "here"
        return {"engine": "smooth", **machines[name]}

    monkeypatch.setattr(Smooth, "provenance", provenance)


def test_a_cancelled_run_goes_on_at_another_threshold(tmp_path, cluster, smooth_plan):
    out = tmp_path / "out"
    execute(smooth_plan(threshold=0.7), tmp_path / "one go", load_engine("smooth"), Monitor())
    with pytest.raises(Cancelled):
        execute_on(cluster, smooth_plan(), out, StopAt(4))
    assert 4 <= len(Results.open(out).done()) < 24
    relabel(out, 0.7, Monitor())
    results = execute_on(cluster, smooth_plan(threshold=0.7), out, Monitor())
    assert len(results.done()) == 24
    assert digest(out) == digest(tmp_path / "one go")


def test_another_run_in_the_same_folder_is_not_taken_for_the_first(tmp_path, cluster, smooth_plan):
    out = tmp_path / "out"
    execute_on(cluster, smooth_plan(), out, Monitor())
    shutil.rmtree(out)
    part = smooth_plan(region=Box((3, 5, 7), (30, 45, 60)), threshold=0.6)
    execute(part, tmp_path / "one go", load_engine("smooth"), Monitor())
    execute_on(cluster, part, out, Monitor())
    assert digest(out) == digest(tmp_path / "one go")


def test_a_block_in_hand_is_not_written_into_the_next_run(
    tmp_path, cluster, smooth_plan, monkeypatch
):
    out, begun, go = tmp_path / "out", threading.Event(), threading.Event()
    monitor, inner = Monitor(), Smooth.score

    def slow(self, *arguments):
        score = inner(self, *arguments)
        begun.set()
        go.wait(20)
        return score

    with monkeypatch.context() as patch:
        patch.setattr(Smooth, "score", slow)
        threading.Thread(target=lambda: begun.wait(20) and monitor.cancel(), daemon=True).start()
        with pytest.raises(Cancelled):
            execute_on(cluster, smooth_plan(), out, monitor)
    assert not Results.open(out).done()
    relabel(out, 0.7, Monitor())
    go.set()
    time.sleep(0.5)
    assert not Results.open(out).probability[:].any()
    execute_on(cluster, smooth_plan(threshold=0.7), out, Monitor())
    execute(smooth_plan(threshold=0.7), tmp_path / "one go", load_engine("smooth"), Monitor())
    assert digest(out) == digest(tmp_path / "one go")


def test_a_worker_that_would_compute_something_else_is_named(
    tmp_path, cluster, smooth_plan, monkeypatch
):
    same = {"weights_sha256": "a" * 64, "device": "cpu", "precision": "float32"}
    half = {**same, "device": "cuda", "precision": "bfloat16"}
    provenance_by_machine(monkeypatch, here=same, worker_0=same, worker_1=half)
    with pytest.raises(
        EngineError, match=r"the worker [01] can't .*device c.*, precision (b?float\d+) instead of"
    ):
        execute_on(cluster, smooth_plan(), tmp_path / "a", Monitor())
    other = {**same, "weights_sha256": "b" * 64}
    provenance_by_machine(monkeypatch, here=same, worker_0=other, worker_1=other)
    with pytest.raises(EngineError, match=r"worker [01] .*weights_sha256 b{12} instead of a{12}\)"):
        execute_on(cluster, smooth_plan(), tmp_path / "b", Monitor())
    assert not (tmp_path / "b").exists()


def test_device_and_precision_are_those_of_the_workers(tmp_path, cluster, smooth_plan, monkeypatch):
    here = {"device": "cpu", "precision": "float32"}
    there = {"device": "cuda", "precision": "bfloat16"}
    provenance_by_machine(monkeypatch, here=here, worker_0=there, worker_1=there)
    results = execute_on(cluster, smooth_plan(), tmp_path / "out", Monitor())
    assert results.run["provenance"] == {"engine": "smooth", **there}
    with pytest.raises(WriteError, match="differs in provenance"):
        execute(smooth_plan(), tmp_path / "out", load_engine("smooth"), Monitor())


def test_a_volume_that_changed_meanwhile_is_noticed(tmp_path, cluster, smooth_plan):
    plan = smooth_plan()
    with pytest.raises(Cancelled):
        execute_on(cluster, plan, tmp_path / "out", StopAt(4))
    zarr.open_array(str(tmp_path / "brain.zarr" / "0"), mode="r+")[10:20] = 7
    with pytest.raises(WriteError, match="differs in source"):
        execute_on(cluster, plan, tmp_path / "out", Monitor())
    run = Results.open(tmp_path / "out").run
    with pytest.raises(ReadError, match="has other voxels than when the run was started"):
        plan_of_run(run, load_engine("smooth"))


def test_a_plan_comes_back_from_its_folder(tmp_path, planned):
    execute(planned, tmp_path / "out", load_engine("axon-filter"), Monitor())
    run = Results.open(tmp_path / "out").run
    again = plan_of_run(run, load_engine("axon-filter"))
    assert again.blocks == planned.blocks
    assert again.context == planned.context
    other = source_of_array(planned.source.volume.array[:-1], name="shorter")
    with pytest.raises(ReadError, match="has another shape"):
        plan_of_run(run, load_engine("axon-filter"), other)
    with pytest.raises(ReadError, match="came from no file"):
        plan_of_run({**run, "address": None}, load_engine("axon-filter"))


def test_what_a_cluster_cannot_do_is_said(tmp_path, planned):
    from dataclasses import replace

    bare = replace(planned, source=replace(planned.source, address=None))
    with pytest.raises(ReadError, match="has to come from a file that all workers see"):
        execute_on("tcp://127.0.0.1:1", bare, tmp_path / "out", Monitor())
    slabs = replace(planned, layout=replace(planned.layout, slabs=True))
    with pytest.raises(EngineError, match="run them on one machine"):
        execute_on("tcp://127.0.0.1:1", slabs, tmp_path / "out", Monitor())
