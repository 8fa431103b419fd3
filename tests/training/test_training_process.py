"""A run in a program of its own: told by a file, steered by lines, safe from any crash."""

from __future__ import annotations

import io
import math
import os
import time

import pytest
from training_phantoms import cases, tiny

from napari_openmedlab.errors import Cancelled, WriteError
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.training import child, process
from napari_openmedlab.training.child import serve
from napari_openmedlab.training.events import Note, Paused, Saved, Step, Validated
from napari_openmedlab.training.jobs import Source, beginning
from napari_openmedlab.training.process import (
    TrainingProcess,
    forget_run,
    new_run_folder,
    runs_folder,
    stopped_runs,
)
from napari_openmedlab.training.run import begin, look
from napari_openmedlab.training.wire import EVENTS, Ended, EventReader, EventWriter


def settings(**changes):
    given = {"patch": (16, 32, 32), "resolution_mode": 1, "batch": 1, "spacing": "keep"}
    return tiny(**given | {"iterations": 3, "validate_every": 3} | changes)


class Open(io.StringIO):
    """Commands that came, with more that may come: a pipe whose other end is still there."""

    def __iter__(self):
        yield from self.getvalue().splitlines()
        while not self.closed:
            time.sleep(0.01)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "run"
    begin(cases(1), settings(), made)
    return made


def serve_open(folder, *commands):
    with Open("\n".join(commands)) as given:
        return serve(folder, given)


# -- what is told ------------------------------------------------------------------------------


def test_events_go_through_the_file_as_they_are(tmp_path):
    told = [
        Step(1, 9, 0.5, 1e-3, 0.2, 3.0),
        Validated(3, {"a": 0.5, "b": math.nan}, 0.5, True),
        Saved(3, tmp_path / "state"),
        Paused(True),
        Note("a sentence"),
        Ended("finished", "done", "mine"),
    ]
    reader = EventReader(tmp_path)
    assert reader.read() == []  # there is no file yet
    writer = EventWriter(tmp_path)
    for event in told:
        writer(event)
    writer.close()
    found = reader.read()
    assert math.isnan(found[1].dice["b"])
    assert [e for e in found if not isinstance(e, Validated)] == [
        e for e in told if not isinstance(e, Validated)
    ]
    assert reader.read() == []


def test_half_a_line_waits_and_nonsense_is_passed_over(tmp_path):
    reader, path = EventReader(tmp_path), tmp_path / EVENTS
    path.write_bytes(b'no json\n{"event": "Magic"}\n{"event": "Note", "text": "a"}\n{"event": "No')
    assert reader.read() == [Note("a")]
    with path.open("ab") as file:
        file.write(b'te", "text": "b"}\n[]\n')
    assert reader.read() == [Note("b")]


def test_steps_in_quick_succession_are_thinned_but_the_last_is_told(tmp_path):
    writer = EventWriter(tmp_path)
    for n in range(1, 101):
        writer(Step(n, 100, 0.5, 1e-3, 0.0, 0.0))
    writer.close()
    steps = [event.iteration for event in EventReader(tmp_path).read()]
    assert steps[0] == 1
    assert steps[-1] == 100
    assert len(steps) < 20


# -- a run that is steered ---------------------------------------------------------------------


def test_a_served_run_ends_in_the_store(folder):
    ended = serve_open(folder)
    assert ended.how == "finished"
    assert ended.model == "ball-and-block"
    assert "Nothing was held out" in ended.text
    assert ModelStore().get(ended.model).model_card.names == {1: "ball", 2: "block"}
    assert EventReader(folder).read()[-1] == ended


def test_when_nobody_is_left_to_ask_the_run_stops_and_can_be_gone_on_with(folder):
    ended = serve(folder, io.StringIO(""))
    assert ended.how == "stopped"
    assert look(folder).iteration < 3
    assert serve_open(folder).how == "finished"


def test_a_run_can_be_ended_early(tmp_path):
    begin(cases(1), settings(iterations=100_000), tmp_path / "run")
    ended = serve_open(tmp_path / "run", "end")
    assert ended.how == "finished"
    assert ModelStore().get(ended.model).model_card.provenance.iterations == 1


def test_faults_are_told_in_words(folder, monkeypatch, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    ended = serve_open(empty)
    assert (ended.how, "no training run" in ended.text) == ("failed", True)

    def faulty(*_, **__):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(child, "resume", faulty)
    ended = serve_open(folder)
    assert ended.how == "failed"
    assert "fault of the program: ZeroDivisionError: oh" in ended.text


def test_one_run_is_not_trained_twice_at_once(folder):
    from napari_openmedlab.models.checkpoints.locks import locked

    with locked(folder / child.LOCK, ""):
        with pytest.raises(WriteError, match="under way in another program"):
            TrainingProcess(folder)
        with pytest.raises(WriteError, match="under way in another program"):
            serve(folder, io.StringIO(""))


def test_a_killed_program_is_noticed_and_its_run_goes_on(tmp_path):
    folder = runs_folder() / "mine"
    begin(cases(1), settings(iterations=50_000), folder)
    run, heard = TrainingProcess(folder), []
    deadline = time.monotonic() + 120
    while not any(isinstance(event, Step) for event in heard):
        heard += run.events()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(run._process.pid, 9)
    while not any(isinstance(event, Ended) for event in heard):
        heard += run.events()
        time.sleep(0.02)
    run.close(5)
    assert heard[-1].how == "failed"
    assert "ended with code" in heard[-1].text
    (stopped,) = stopped_runs()
    assert stopped.folder == folder
    assert serve_open(folder, "end").how == "finished"
    assert not stopped_runs()


def test_a_preparation_that_is_cancelled_leaves_nothing_behind(tmp_path):
    monitor = Monitor(lambda p: monitor.cancel() if "preparing" in p.text else None, interval=0.0)
    source = Source(tuple(checked.case for checked in cases(2).cases))
    with pytest.raises(Cancelled):
        beginning(source, None, settings(), tmp_path / "run")(None, monitor)
    assert not (tmp_path / "run").exists()
    begun = beginning(source, {1: "ball"}, settings(), tmp_path / "run")(None, Monitor())
    assert [each.name for each in begun.plan.classes] == ["ball"]
    assert any("no honest figure" in note or "Nothing is held out" in note for note in begun.notes)


# -- folders -----------------------------------------------------------------------------------


def test_each_run_gets_a_folder_of_its_own(tmp_path):
    first = new_run_folder("My liver!", tmp_path)
    assert first.name.startswith("my-liver-2")
    first.mkdir()
    assert new_run_folder("My liver!", tmp_path) != first


def test_damaged_runs_are_not_offered(tmp_path, folder):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("no")
    (tmp_path / "file").write_text("")
    assert [each.folder for each in stopped_runs(tmp_path)] == [folder]
    forget_run(folder)
    assert stopped_runs(tmp_path) == ()
    assert stopped_runs(tmp_path / "missing") == ()


def test_a_program_that_does_not_even_start_is_told(folder, monkeypatch):
    monkeypatch.setattr(process, "_COMMAND", ("-c", "raise SystemExit('no such thing')"))
    run = TrainingProcess(folder)
    deadline, heard = time.monotonic() + 30, []
    while not heard and time.monotonic() < deadline:
        heard = run.events()
        time.sleep(0.02)
    run.close()
    assert heard[-1].how == "failed"
    assert "no such thing" in heard[-1].text
