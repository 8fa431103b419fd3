"""Work ahead of a prompt: done while idle, kept when it helps, stopped when it does not."""

from __future__ import annotations

import threading
import time

import pytest

from napari_openmedlab.errors import Cancelled
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.contract import Hint, Request
from napari_openmedlab.session.runner import Runner

WAIT = 20.0


@pytest.fixture
def ahead(flood, monkeypatch):
    """The flood engine with slow work ahead of a prompt; a list of what became of each."""
    ended: list[tuple[tuple[float, ...], str]] = []

    def anticipate(self, prepared, hint, monitor):
        try:
            for _ in range(40):
                time.sleep(0.005)
                monitor.step()
        except Cancelled:
            ended.append((hint.point, "cancelled"))
            raise
        ended.append((hint.point, "done"))

    monkeypatch.setattr(flood, "anticipate", anticipate, raising=False)
    return ended


@pytest.fixture
def runner(flood):
    results, errors = [], []
    made = Runner(
        on_result=lambda _n, answer: results.append(answer),
        on_error=lambda _n, error: errors.append(error),
    )
    made.results, made.errors = results, errors
    yield made
    assert made.close(WAIT)


def until(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def request_at(point, **options):
    checked = get_spec("flood").check_options(options)
    return Request(PromptSet().with_click(point), options=checked)


def test_a_hint_is_worked_on_while_nothing_else_is_to_do(runner, ahead, volume, at):
    runner.anticipate("flood", volume, Hint(at(5, 8, 6)))
    assert not runner.busy
    until(lambda: ahead)
    assert ahead == [(at(5, 8, 6), "done")]
    assert runner.results == []


def test_a_request_elsewhere_stops_the_work(runner, ahead, volume, at):
    runner.anticipate("flood", volume, Hint(at(1, 1, 1)))
    time.sleep(0.05)
    runner.submit("flood", volume, request_at(at(5, 8, 6)))
    until(lambda: runner.results)
    assert ahead == [(at(1, 1, 1), "cancelled")]


def test_a_request_at_the_hint_waits_for_the_work(runner, ahead, volume, at):
    runner.anticipate("flood", volume, Hint(at(5, 8, 6)))
    time.sleep(0.05)
    runner.submit("flood", volume, request_at(at(5, 8, 6)))
    until(lambda: runner.results)
    assert ahead == [(at(5, 8, 6), "done")]


def test_the_newest_hint_wins(runner, ahead, volume, at):
    runner.anticipate("flood", volume, Hint(at(1, 1, 1)))
    time.sleep(0.05)
    for z in (2, 3, 4):
        runner.anticipate("flood", volume, Hint(at(z, 1, 1)))
    until(lambda: len(ahead) == 2)
    assert ahead == [(at(1, 1, 1), "cancelled"), (at(4, 1, 1), "done")]


def test_hints_are_ignored_while_a_request_runs(runner, ahead, volume, at):
    runner.submit("flood", volume, request_at(at(5, 8, 6), steps=20, pause=0.01))
    runner.anticipate("flood", volume, Hint(at(5, 8, 6)))
    until(lambda: runner.results)
    time.sleep(0.1)
    assert ahead == []


def test_cancel_and_close_stop_the_work(runner, ahead, volume, at):
    runner.anticipate("flood", volume, Hint(at(1, 1, 1)))
    time.sleep(0.05)
    runner.cancel()
    until(lambda: ahead)
    assert ahead[0][1] == "cancelled"
    runner.anticipate("flood", volume, Hint(at(1, 1, 1)))
    time.sleep(0.05)
    assert runner.close(WAIT)


def test_a_failure_ahead_bothers_nobody_and_the_request_is_answered(
    runner, flood, volume, at, monkeypatch
):
    failed = threading.Event()

    def anticipate(self, prepared, hint, monitor):
        failed.set()
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(flood, "anticipate", anticipate, raising=False)
    runner.anticipate("flood", volume, Hint(at(5, 8, 6)))
    assert failed.wait(WAIT)
    runner.submit("flood", volume, request_at(at(5, 8, 6)))
    until(lambda: runner.results)
    assert runner.errors == []


def test_an_engine_that_cannot_work_ahead_is_only_prepared(runner, flood, volume, at):
    runner.anticipate("flood", volume, Hint(at(5, 8, 6)))
    until(lambda: flood.prepared == 1)
    runner.submit("flood", volume, request_at(at(5, 8, 6)))
    until(lambda: runner.results)
    assert flood.prepared == 1


def test_a_hint_serves_requests_at_its_point_or_on_its_slice(volume, at):
    request = Request(PromptSet().with_click(at(5, 8, 6)))
    assert Hint(at(5, 8, 6)).serves(request)
    assert not Hint(at(5, 8, 7)).serves(request)
    normal = tuple(volume.geometry.affine[:3, 0] / (sum(volume.geometry.affine[:3, 0] ** 2) ** 0.5))
    assert Hint(at(5, 2, 2), normal).serves(request)
    assert not Hint(at(6, 8, 6), normal).serves(request)
    assert not Hint(at(5, 8, 6)).serves(Request(PromptSet()))
