"""The same run on a Dask cluster: equal results, a dying worker costs nothing, cancel arrives."""

from __future__ import annotations

import builtins
import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from napari_openmedlab.cohort.results import Results
from napari_openmedlab.cohort.run import run_cohort
from napari_openmedlab.errors import Cancelled, EngineError
from napari_openmedlab.io.api import read_labels
from napari_openmedlab.models.contract import Monitor

distributed = pytest.importorskip("distributed", reason="a cluster needs the extra 'cluster'")


class TestEngines(distributed.WorkerPlugin):
    """Puts the test engines into the catalogue of every worker, of restarted ones too."""

    __test__ = False

    def setup(self, worker):
        import sys

        if "/tests" not in "".join(sys.path):
            sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        import proportional_localizer

        from napari_openmedlab.models import catalogue

        catalogue.entry_points = proportional_localizer.points


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes of one thread each."""
    from distributed import Client, LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "memory_limit": None}
    with (
        LocalCluster(**options, dashboard_address=None) as made,
        Client(made, set_as_default=False) as client,
    ):
        client.register_plugin(TestEngines(), name="test-engines")
        yield client


def slow(plan, steps=12):
    options = {"steps": steps, "pause": 0.1}
    settings = replace(plan.settings, localizer_options=options)
    return replace(plan, settings=settings)


def test_a_worker_killed_in_the_middle_of_a_case_changes_nothing(plan, cluster):
    address = cluster.scheduler.address
    far = replace(slow(plan), scheduler=address, out=plan.out / "far")
    killed = []

    def kill_one_at_work():
        deadline = time.monotonic() + 20
        while not killed and time.monotonic() < deadline:
            busy = [w for w, tasks in cluster.processing().items() if tasks]
            if busy:
                time.sleep(0.4)  # well inside a case of 1.2 s
                pid = cluster.run(os.getpid, workers=[busy[0]])[busy[0]]
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.02)

    thread = threading.Thread(target=kill_one_at_work)
    thread.start()
    summary = run_cohort(far)
    thread.join()

    assert killed
    assert summary.done == 3
    assert list(summary.failed) == ["broken"]
    near = replace(slow(plan, steps=1), out=plan.out / "near")
    run_cohort(near)
    for case in ("patient11__ct", "patient12__ct", "dicom__series"):
        one, two = (
            read_labels(p.out / "cases" / case / "masks.nii.gz")[0].array for p in (far, near)
        )
        assert np.array_equal(one, two)
    again = run_cohort(far)
    assert (again.done, again.skipped) == (0, 3)


def test_a_cancel_reaches_the_workers(plan, cluster):
    far = replace(slow(plan, steps=600), scheduler=cluster.scheduler.address)
    monitor = Monitor()
    timer = threading.Timer(2.0, monitor.cancel)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        run_cohort(far, monitor)
    assert time.monotonic() - began < 20  # a case would take 60 s
    assert Results(far.out).record("patient11__ct") is None
    deadline = time.monotonic() + 10
    while any(cluster.processing().values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(cluster.processing().values())


def test_no_scheduler_at_the_address(plan, monkeypatch):
    from napari_openmedlab.cohort import cluster as module

    monkeypatch.setattr(module, "_PATIENCE", 0.5)
    with pytest.raises(EngineError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"):
        run_cohort(replace(plan, scheduler="tcp://127.0.0.1:9"))


def test_without_dask_the_sentence_says_what_to_install(plan, monkeypatch):
    import sys

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "distributed":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EngineError, match=r"pip install 'napari-openmedlab\[cluster\]'"):
        run_cohort(replace(plan, scheduler="tcp://127.0.0.1:8786"))
