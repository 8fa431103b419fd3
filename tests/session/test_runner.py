import gc
import random
import threading
import time
import weakref

import flood_engine
import numpy as np
import pytest

from napari_openmedlab.errors import Cancelled, EngineError, PromptError, SessionError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.contract import Monitor, Prediction, Request
from napari_openmedlab.session.runner import Runner, Workbench, run_once

WAIT = 20.0


class Log:
    """Everything a runner reports, and where."""

    def __init__(self):
        self.started, self.progress, self.results, self.errors = [], [], [], []
        self.threads = set()
        self.idle = threading.Event()

    def runner(self):
        def note(store):
            def callback(*values):
                self.threads.add(threading.get_ident())
                store.append(values)

            return callback

        return Runner(
            on_started=note(self.started),
            on_progress=note(self.progress),
            on_result=note(self.results),
            on_error=note(self.errors),
            on_idle=self.idle.set,
        )

    def wait(self, runner):
        end = time.monotonic() + WAIT
        while runner.busy or not self.idle.is_set():
            assert time.monotonic() < end, "the runner never came to rest"
            time.sleep(0.005)
        assert self.idle.wait(WAIT)


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def runner(flood, log):
    made = log.runner()
    yield made
    assert made.close(WAIT)


@pytest.fixture
def ask(at):
    """A request at a voxel of the left block, with options."""

    def make(index=(5, 8, 6), **options):
        checked = get_spec("flood").check_options(options)
        return Request(PromptSet().with_click(at(*index)), options=checked)

    return make


def submit_and_wait(runner, log, volume, request, engine="flood"):
    log.idle.clear()
    generation = runner.submit(engine, volume, request, tag=1)
    log.wait(runner)
    return generation


def test_an_answer_arrives_with_its_generation(runner, log, volume, ask):
    generation = submit_and_wait(runner, log, volume, ask())
    ((number, answer),) = log.results
    assert number == generation
    assert answer.patch.count == 420
    assert answer.provenance["engine"] == "flood"
    assert runner.is_current(generation)
    assert log.progress
    assert log.errors == []


def test_one_thread_does_all_and_it_is_not_this_one(runner, log, volume, ask):
    for _ in range(3):
        submit_and_wait(runner, log, volume, ask())
    assert len(log.threads) == 1
    assert threading.get_ident() not in log.threads


def test_only_the_newest_of_many_quick_requests_is_answered(runner, log, volume, ask):
    last = 0
    for _ in range(20):
        last = runner.submit("flood", volume, ask(steps=20, pause=0.01), tag=1)
        time.sleep(0.005)
    log.wait(runner)
    assert [number for number, _ in log.results] == [last]
    assert log.errors == []


def test_requests_of_different_objects_are_all_answered_in_order(runner, log, volume, ask):
    sent = [runner.submit("flood", volume, ask(steps=3, pause=0.01), tag=n) for n in range(5)]
    log.wait(runner)
    assert [number for number, _ in log.results] == sent


def test_a_newer_request_lets_preparing_go_on(runner, log, volume, ask, flood, monkeypatch):
    begun, release = threading.Event(), threading.Event()

    def slow(self, volume, monitor):
        flood.prepared += 1
        begun.set()
        assert release.wait(WAIT)
        monitor.step()
        return volume

    monkeypatch.setattr(flood, "prepare", slow)
    runner.submit("flood", volume, ask(), tag=1)
    assert begun.wait(WAIT)
    second = runner.submit("flood", volume, ask(), tag=1)
    release.set()
    log.wait(runner)
    assert [number for number, _ in log.results] == [second]
    assert flood.prepared == 1


def test_cancel_acts_at_the_next_step_and_reports_nothing(runner, log, volume, ask):
    generation = runner.submit("flood", volume, ask(steps=1000, pause=0.02), tag=1)
    while not log.progress:
        time.sleep(0.005)
    began = time.monotonic()
    runner.cancel()
    log.wait(runner)
    assert time.monotonic() - began < 2.0  # of 20 s
    assert log.results == log.errors == []
    assert not runner.is_current(generation)


def test_cancel_of_one_object_leaves_the_others(runner, log, volume, ask):
    runner.submit("flood", volume, ask(steps=20, pause=0.01), tag=1)
    runner.submit("flood", volume, ask(), tag=2)
    kept = runner.submit("flood", volume, ask(), tag=3)
    runner.cancel(1)
    runner.cancel(2)
    log.wait(runner)
    assert [number for number, _ in log.results] == [kept]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("defect", "internal error in engine 'flood': ZeroDivisionError: half a voxel"),
        ("memory", "not enough memory for 'flood'.*prompts and masks are kept"),
        ("gpu", "not enough memory for 'flood'.*smaller"),
    ],
)
def test_every_failure_is_a_sentence_with_its_cause(runner, log, volume, ask, how, sentence):
    submit_and_wait(runner, log, volume, ask(fail=how))
    ((_, error),) = log.errors
    assert isinstance(error, EngineError)
    assert error.__cause__ is not None
    with pytest.raises(EngineError, match=sentence):
        raise error
    submit_and_wait(runner, log, volume, ask())  # and the worker lives on
    assert len(log.results) == 1


def test_our_own_errors_pass_as_they_are(runner, log, volume, ask):
    submit_and_wait(runner, log, volume, Request(PromptSet(), options=ask().options))
    ((_, error),) = log.errors
    assert type(error) is PromptError
    submit_and_wait(runner, log, volume, ask(), engine="magic")
    assert "no engine 'magic'" in str(log.errors[1][1])


def test_an_interrupt_is_not_swallowed_and_the_next_request_still_runs(
    runner, log, volume, ask, monkeypatch
):
    escaped = []
    monkeypatch.setattr(threading, "excepthook", lambda args: escaped.append(args.exc_type))
    runner.submit("flood", volume, ask(fail="interrupt"), tag=1)
    end = time.monotonic() + WAIT
    while not escaped and time.monotonic() < end:
        time.sleep(0.005)
    assert escaped == [KeyboardInterrupt]
    submit_and_wait(runner, log, volume, ask())
    assert len(log.results) == 1
    with pytest.raises(KeyboardInterrupt):
        run_once("flood", volume, ask(fail="interrupt"))


def test_a_listeners_defect_does_not_end_the_worker(flood, volume, ask, caplog):
    idle = threading.Event()
    got = []

    def bad(_generation, answer):
        got.append(answer)
        raise RuntimeError("deleted widget")

    runner = Runner(on_result=bad, on_idle=idle.set)
    for _ in range(2):
        idle.clear()
        runner.submit("flood", volume, ask())
        assert idle.wait(WAIT)
    assert len(got) == 2
    assert "deleted widget" in caplog.text
    assert runner.close(WAIT)


def test_a_wrong_answer_of_an_engine_is_an_error(flood, volume, ask, monkeypatch):
    beyond = Prediction(Box((0, 0, 0), (99, 1, 1)), np.ones((99, 1, 1), dtype=bool))
    for answer, sentence in ((beyond, "beyond the image"), ("mask", "returned str")):
        monkeypatch.setattr(flood, "predict", lambda *_args, a=answer: a)
        with pytest.raises(EngineError, match=sentence):
            run_once("flood", volume, ask())


def test_closing_in_the_middle_is_quick_and_quiet(flood, log, volume, ask):
    runner = log.runner()
    runner.submit("flood", volume, ask(steps=1000, pause=0.05), tag=1)
    while not log.progress:
        time.sleep(0.005)
    began = time.monotonic()
    runner.close()
    assert time.monotonic() - began < 1.0  # of 50 s
    seen = len(log.progress)
    assert runner.close(WAIT)
    assert time.monotonic() - began < 5.0
    assert (len(log.progress), log.results, log.errors) == (seen, [], [])
    assert flood.unloaded == flood.loaded == 1
    with pytest.raises(SessionError, match="worker was closed"):
        runner.submit("flood", volume, ask())


def test_closing_what_never_ran_and_closing_twice_is_fine(flood):
    runner = Runner()
    assert runner.close(WAIT)
    assert runner.close(WAIT)


@pytest.mark.parametrize("fail", ["no", "defect"])
def test_nothing_of_the_volume_is_kept_after_close(flood, log, ask, fail):
    array = np.full((12, 20, 24), 7.0)
    grid = Geometry.from_spacing(array.shape, (1.0, 1.0, 1.0))
    options = get_spec("flood").check_options({"fail": fail})
    request = Request(PromptSet().with_click((5.0, 5.0, 5.0)), options=options)
    runner = log.runner()
    volume = Volume(array, grid)
    submit_and_wait(runner, log, volume, request)
    seen = weakref.ref(array)
    assert runner.close(WAIT)
    del array, volume
    gc.collect()
    assert seen() is None
    assert len(log.results) + len(log.errors) == 1  # even though the report is still held


def test_a_volume_is_prepared_once_and_the_oldest_is_given_up(flood, volume, ask):
    bench = Workbench(limit=2)
    others = [Volume(volume.array, volume.geometry) for _ in range(2)]
    for each in (volume, volume, others[0], volume):
        run_once("flood", each, ask(), bench=bench)
    assert (flood.prepared, flood.loaded) == (2, 1)
    run_once("flood", others[1], ask(), bench=bench)  # others[0] leaves, volume stays
    run_once("flood", volume, ask(), bench=bench)
    assert flood.prepared == 3
    run_once("flood", others[0], ask(), bench=bench)
    assert flood.prepared == 4
    bench.release()
    assert flood.unloaded == 1


def test_run_once_gives_what_the_runner_gives(runner, log, volume, ask, flood):
    submit_and_wait(runner, log, volume, ask())
    assert run_once("flood", volume, ask()).patch == log.results[0][1].patch


def test_run_once_obeys_a_cancel(flood, volume, ask):
    monitor = Monitor()
    monitor.cancel()
    with pytest.raises(Cancelled):
        run_once("flood", volume, ask(), monitor)


def test_hundreds_of_requests_with_random_cancels_end_in_order(flood, log, volume, ask):
    rng = random.Random(5)
    runner = log.runner()
    newest = {}
    for _ in range(600):
        tag = rng.randrange(4)
        if rng.random() < 0.1:
            runner.cancel(None if rng.random() < 0.3 else tag)
        fail = "defect" if rng.random() < 0.05 else "no"
        request = ask(steps=rng.randrange(3), pause=0.001, fail=fail)
        newest[tag] = runner.submit("flood", volume, request, tag=tag)
        if rng.random() < 0.2:
            time.sleep(rng.random() * 0.01)
    last = runner.submit("flood", volume, ask(), tag="last")
    log.wait(runner)
    delivered = [number for number, _ in log.results] + [number for number, _ in log.errors]
    assert len(delivered) == len(set(delivered))
    assert [n for n, _ in log.results] == sorted(n for n, _ in log.results)
    current = [n for n in newest.values() if runner.is_current(n)]
    assert set(current) <= set(delivered)
    assert last in delivered
    assert all(isinstance(error, EngineError) for _, error in log.errors)
    assert len(log.threads) == 1
    assert runner.close(WAIT)
    assert flood_engine.Flood.loaded == flood_engine.Flood.unloaded == 1
