"""The same run on a Dask cluster of two workers, one of them killed in the middle."""

import os
import signal
import threading
import time

import pytest
from test_axon_runs import digest, stored

from napari_openmedlab.axons.cluster import execute_on, plan_of_run
from napari_openmedlab.axons.plan import Settings, make_plan
from napari_openmedlab.axons.run import execute
from napari_openmedlab.axons.source import open_source, source_of_array
from napari_openmedlab.axons.store import Results
from napari_openmedlab.errors import EngineError, ReadError
from napari_openmedlab.models.catalogue import load_engine
from napari_openmedlab.models.contract import Monitor

distributed = pytest.importorskip("distributed")


@pytest.fixture
def planned(tmp_path):
    engine = load_engine("axon-filter")
    source = open_source(stored(tmp_path / "brain.zarr", (32, 64, 128)))
    return make_plan(source, Settings("axon-filter", {"block": 32}), engine, Monitor(), timed=False)


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path, planned):
    out = tmp_path / "out"
    execute(planned, tmp_path / "one go", load_engine("axon-filter"), Monitor())
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0
    ) as cluster:
        first = next(iter(cluster.workers.values()))
        killed = []

        def kill():
            journal = out / "journal.jsonl"
            while not (journal.exists() and journal.read_bytes().count(b"\n")):
                time.sleep(0.01)
            killed.append(first.pid)
            os.kill(first.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        results = execute_on(cluster.scheduler_address, planned, out, Monitor())
        killer.join(10)
    assert killed
    assert digest(out) == digest(tmp_path / "one go")
    assert len(results.done()) == len(planned.blocks) == 8
    assert results.complete


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
