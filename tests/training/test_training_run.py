"""A run from cases to a model: the same in one go or in parts, nothing lost when it goes ill."""

from __future__ import annotations

import errno
import json
import shutil
import threading

import numpy as np
import pytest
from training_phantoms import cases, tiny

torch = pytest.importorskip("torch")

from napari_openmedlab.errors import (  # noqa: E402
    Cancelled,
    CheckpointError,
    EngineError,
    ReadError,
    SettingsError,
    WriteError,
)
from napari_openmedlab.models.checkpoints.store import ModelStore  # noqa: E402
from napari_openmedlab.models.contract import Monitor  # noqa: E402
from napari_openmedlab.models.finetuned import read_card  # noqa: E402
from napari_openmedlab.training import state as state_files  # noqa: E402
from napari_openmedlab.training.events import (  # noqa: E402
    Control,
    Note,
    Paused,
    Saved,
    Step,
    Validated,
)
from napari_openmedlab.training.plan import make_plan  # noqa: E402
from napari_openmedlab.training.run import finish, look, resume, train  # noqa: E402
from napari_openmedlab.training.run_folder import BEST, STATE  # noqa: E402
from napari_openmedlab.training.state import read_state  # noqa: E402
from napari_openmedlab.training.transfer import HEADS  # noqa: E402


@pytest.fixture(scope="module")
def found():
    return cases(3)


@pytest.fixture(scope="module")
def whole(found, tmp_path_factory):
    """A run in one go: what it returned, what it told, and its folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    events: list = []
    return train(found, tiny(), folder, on_event=events.append), events, folder


def weights(folder, name=STATE):
    tensors, _ = read_state(folder / name)
    return tensors


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


def cancelling(monitor, iteration):
    def hear(event):
        if isinstance(event, Step) and event.iteration == iteration:
            monitor.cancel()

    return hear


def test_a_run_tells_what_it_does_and_leaves_a_model(whole, found):
    done, events, folder = whole
    steps = [event for event in events if isinstance(event, Step)]
    assert [event.iteration for event in steps] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(event.loss) and event.seconds > 0 for event in steps)
    assert steps[-1].left == 0
    tried = [event for event in events if isinstance(event, Validated)]
    assert [event.iteration for event in tried] == [3, 6]
    assert set(tried[0].dice) == {"ball", "block"}
    assert [event.iteration for event in events if isinstance(event, Saved)] == [0, 3, 6]
    best = max(tried, key=lambda event: event.mean)
    assert (done.iteration, done.dice) == (best.iteration, dict(best.dice))
    assert not (folder / "prepared").exists()
    card = read_card(done.path)
    assert card == done.card
    assert card.names == {1: "ball", 2: "block"}
    made = card.provenance
    assert (made.cases, made.held_out, made.seed) == (2, 1, 1)
    assert made.held_out_dice == done.dice
    assert not any(c.case.name in json.dumps(card.as_json()) for c in found.cases)


def test_the_model_is_an_ordinary_one_of_the_store(whole, tmp_path):
    done, _, folder = whole
    store = ModelStore(tmp_path)
    record = store.import_file(done.path, "mine")
    assert record.network == "fmunet"
    loaded = store.load("mine").state_dict()
    kept = weights(folder, BEST if done.iteration == 3 else STATE)
    assert all(torch.equal(loaded[key], kept[f"network.{key}"]) for key in loaded)


def test_a_cancelled_run_goes_on_to_the_same_bits(whole, found, tmp_path):
    monitor, folder = Monitor(), tmp_path / "run"
    with pytest.raises(Cancelled, match="after iteration 4 of 6; it can be gone on with"):
        train(found, tiny(), folder, monitor=monitor, on_event=cancelling(monitor, 4))
    assert look(folder).iteration == 4
    done = resume(folder)
    one_go, _, its_folder = whole
    assert same(weights(folder), weights(its_folder))
    assert done.dice == one_go.dice
    assert look(folder).losses == look(its_folder).losses
    assert look(folder).dice == look(its_folder).dice
    assert look(folder).finished


def test_a_crash_at_any_moment_goes_on_to_the_same_bits(whole, found, tmp_path):
    """Copies of the folder, taken while a run goes on, are what a crash would leave."""
    folder, copies = tmp_path / "run", []

    def copy(event):
        measured = isinstance(event, Validated) and event.iteration == 3
        if measured or (isinstance(event, Step) and event.iteration == 4):
            copies.append(tmp_path / f"crash {len(copies)}")
            shutil.copytree(folder, copies[-1])

    train(found, tiny(), folder, on_event=copy)
    assert [look(left).iteration for left in copies] == [0, 3]
    wanted = weights(whole[2])
    for left in copies:
        (left / "history.jsonl").open("a").write('{"iteration": 2, "lo')  # half a line
        resume(left)
        assert same(weights(left), wanted)
        assert [iteration for iteration, _ in look(left).losses] == [1, 2, 3, 4, 5, 6]


def test_pause_writes_the_state_and_waits(found, tmp_path):
    control, told = Control(), []

    def hear(event):
        told.append(event)
        if isinstance(event, Step) and event.iteration == 2:
            control.pause()
        if event == Paused(True):
            assert look(tmp_path / "run").iteration == 2
            threading.Timer(0.1, control.go_on).start()

    train(found, tiny(iterations=4, held_out=0), tmp_path / "run", control=control, on_event=hear)
    assert Paused(True) in told
    assert Paused(False) in told
    assert isinstance(told[told.index(Paused(False)) + 1], (Step, Note))


def test_an_early_end_makes_the_model_of_what_was_learnt(found, tmp_path):
    control = Control()

    def hear(event):
        if isinstance(event, Step) and event.iteration == 2:
            control.end_early()

    done = train(found, tiny(), tmp_path / "run", control=control, on_event=hear)
    assert done.iteration == 2
    assert set(done.dice) == {"ball", "block"}  # measured, though it was not time yet


def test_without_held_out_cases_the_last_weights_count(found, tmp_path):
    done = train(found, tiny(iterations=2, held_out=0), tmp_path / "run")
    assert (done.iteration, done.dice) == (2, {})
    assert any("no honest figure" in note for note in done.notes)
    assert not (tmp_path / "run" / BEST).exists()


def test_a_stopped_run_can_be_made_a_model(found, tmp_path):
    monitor, folder = Monitor(), tmp_path / "run"
    with pytest.raises(Cancelled):
        train(found, tiny(), folder, monitor=monitor, on_event=cancelling(monitor, 4))
    best, last = finish(folder), finish(folder, "last")
    assert (best.iteration, last.iteration) == (3, 4)
    assert set(best.dice) == {"ball", "block"}
    assert last.dice == {}
    assert not look(folder).finished
    assert resume(folder).iteration in (3, 6)


def test_a_folder_is_not_used_twice_and_not_without_a_run(whole, found, tmp_path):
    done, _, folder = whole
    with pytest.raises(WriteError, match="there is a run in"):
        train(found, tiny(), folder)
    again = resume(folder)
    assert (again.path, again.dice, again.iteration) == (done.path, done.dice, done.iteration)
    assert look(tmp_path) is None
    for call in (resume, finish):
        with pytest.raises(ReadError, match="no training run"):
            call(tmp_path)


# -- what goes ill -----------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(found, tmp_path):
    folder = tmp_path / "run"
    wild = tiny(learning_rate=1e25, validate_every=6)
    with pytest.raises(EngineError, match=r"The loss became (nan|inf) at iteration") as told:
        train(found, wild, folder)
    assert "smaller learning rate" in str(told.value)
    kept = weights(folder)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())
    done = resume(folder, {"learning_rate": 1e-3})
    assert look(folder).plan.loop.trunk_rate == 1e-3
    assert done.iteration == 6
    with pytest.raises(ReadError):
        finish(tmp_path)


def test_only_some_settings_can_change_in_a_run(found, tmp_path):
    monitor, folder = Monitor(), tmp_path / "run"
    with pytest.raises(Cancelled):
        train(found, tiny(), folder, monitor=monitor, on_event=cancelling(monitor, 1))
    with pytest.raises(SettingsError, match="batch can't be changed"):
        resume(folder, {"batch": 3})


def test_a_disk_that_fills_up_leaves_the_last_state_whole(whole, found, tmp_path, monkeypatch):
    folder, real, calls = tmp_path / "run", state_files.write_weights, []

    def full(file, *arguments):
        calls.append(1)
        if len(calls) == 3:  # the state of iteration 3, behind the first one and the best
            file.write(b"half a st")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, *arguments)

    monkeypatch.setattr(state_files, "write_weights", full)
    with pytest.raises(WriteError, match="the disk is full"):
        train(found, tiny(), folder)
    assert look(folder).iteration == 0
    assert not list(folder.glob(".openmedlab-*"))
    monkeypatch.setattr(state_files, "write_weights", real)
    resume(folder)
    assert same(weights(folder), weights(whole[2]))


def test_too_little_room_on_the_disk_is_told_before_the_first_iteration(
    found, tmp_path, monkeypatch
):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    events: list = []
    real = shutil.disk_usage

    def nearly_full(path):
        prepared = (tmp_path / "run" / "prepared" / "cases.json").exists()
        return usage(10**9, 10**9, 10**6) if prepared else real(path)

    monkeypatch.setattr("shutil.disk_usage", nearly_full)
    with pytest.raises(WriteError, match="keeping the training"):
        train(found, tiny(), tmp_path / "run", on_event=events.append)
    assert not any(isinstance(event, Step) for event in events)


def test_memory_that_runs_out_halves_the_batch_and_says_so(found, tmp_path, monkeypatch):
    from napari_openmedlab.models.networks.fmunet import FMUNet

    forward = FMUNet.forward

    def greedy(self, patch):
        if len(patch) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 99 bytes")
        return forward(self, patch)

    monkeypatch.setattr(FMUNet, "forward", greedy)
    events: list = []
    settings = tiny(iterations=2, held_out=0)
    done = train(found, settings, tmp_path / "run", on_event=events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert "The memory of cpu is full: going on with 1 at a time instead of 2." in notes
    assert done.iteration == 2
    assert len([note for note in notes if "memory" in note]) == 1  # not tried again each time


def test_memory_that_is_short_everywhere_is_an_error(found, tmp_path, monkeypatch):
    from napari_openmedlab.models.networks.fmunet import FMUNet

    def greedy(self, patch):
        raise MemoryError

    monkeypatch.setattr(FMUNet, "forward", greedy)
    with pytest.raises(EngineError, match="not enough memory"):
        train(found, tiny(held_out=0), tmp_path / "run")
    assert look(tmp_path / "run").iteration == 0


def test_states_that_are_damaged_or_of_another_run_are_refused(whole, found, tmp_path):
    monitor, folder = Monitor(), tmp_path / "run"
    settings = tiny(seed=2)
    with pytest.raises(Cancelled):
        train(found, settings, folder, monitor=monitor, on_event=cancelling(monitor, 1))
    mine = (folder / STATE).read_bytes()
    shutil.copy(whole[2] / STATE, folder / STATE)
    with pytest.raises(CheckpointError, match="of another run"):
        resume(folder)
    (folder / STATE).write_bytes(mine[: len(mine) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        resume(folder)
    (folder / STATE).write_bytes(mine)
    (folder / "run.json").write_text('{"format": 99}')
    with pytest.raises(ReadError, match="newer version"):
        resume(folder)


# -- how it is computed ------------------------------------------------------------------------


def test_a_batch_in_parts_gives_nearly_the_same_loss(found, tmp_path):
    def losses(accumulation):
        folder = tmp_path / f"in {accumulation}"
        settings = tiny(iterations=1, held_out=0, accumulation=accumulation)
        train(found, settings, folder)
        return look(folder).losses[0][1]

    # Dropout is drawn in another order, and Dice is taken in each part.
    assert losses(2) == pytest.approx(losses(1), rel=0.05)


def test_half_precision_learns_as_float32_does(found, tmp_path):
    def losses(precision):
        folder = tmp_path / precision
        train(found, tiny(iterations=3, held_out=0, precision=precision), folder)
        assert all(t.dtype != torch.bfloat16 for t in weights(folder).values())
        return [loss for _, loss in look(folder).losses]

    np.testing.assert_allclose(losses("bfloat16"), losses("float32"), rtol=0.02)


def test_weights_taken_over_learn_at_their_own_rate(found, stand_ins, tmp_path):
    record = stand_ins.add("fmunet", channels=[2, 4, 4, 4, 4])
    start = stand_ins.store.load(record.name).state_dict()
    start = {key: value.clone() for key, value in start.items()}
    settings = tiny(iterations=1, held_out=0, init=record.name, trunk_rate=1e-12)
    events: list = []
    done = train(found, settings, tmp_path / "run", on_event=events.append)
    told = [event.text for event in events if isinstance(event, Note)]
    assert (
        f"Started from '{record.name}': 138 of 146 tensors were taken over, 8 start fresh." in told
    )
    after = weights(tmp_path / "run")
    taken = [key for key in start if not key.startswith("out_layers")]
    for key in taken:
        torch.testing.assert_close(after[f"network.{key}"], start[key], atol=1e-9, rtol=0)
    heads = [key for key in start if HEADS["fmunet"].match(key)]
    assert len(heads) == 8
    assert all(after[f"network.{key}"].shape[0] == 3 for key in heads)
    assert done.card.provenance.init == record.name
    assert done.card.provenance.init_sha256 == record.sha256


def test_pct_net_trains_too(found, tmp_path):
    settings = tiny(
        network="pct-net",
        size=(2, 2, 4, 8, 16),
        iterations=1,
        held_out=0,
        resolution_mode=None,
        batch=1,
        patch=(32, 32, 32),
    )
    assert make_plan(found, settings).variant["windows"] == [6, 4, 2]
    done = train(found, settings, tmp_path / "run")
    assert done.card.network == "pct-net"
    assert ModelStore(tmp_path / "store").import_file(done.path, "mine").network == "pct-net"


def test_training_leaves_the_users_chance_alone(found, tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    train(found, tiny(iterations=1, held_out=0), tmp_path / "run")
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.slow
def test_a_network_learns_a_structure(found, tmp_path):
    settings = tiny(
        iterations=50,
        size=(4, 8, 8, 8, 8),
        learning_rate=1e-2,
        held_out=("case 1",),
        validate_every=50,
        flips="none",
    )
    done = train(found, settings, tmp_path / "run")
    assert done.dice["ball"] > 0.8


def test_what_is_measured_is_what_the_engine_gives(whole, found, stand_ins):
    """The held-out Dice of a run is that of its model in use, voxel for voxel."""
    from napari_openmedlab.evaluation.metrics import dice
    from napari_openmedlab.geometry.boxes import Box
    from napari_openmedlab.models.catalogue import get_spec, load_engine

    done = whole[0]
    name = stand_ins.store.import_file(done.path, "measured").name
    held_out = make_plan(found, tiny()).held_out
    case = next(c.case for c in found.cases if c.case.name == held_out[0])
    volume, labels, _ = case.read()
    options = get_spec("mis-fm").check_options({"checkpoint": name, "device": "cpu"})
    engine = load_engine("mis-fm")
    given = engine.segment(volume, Box.whole(volume.geometry.shape), options, Monitor())
    engine.unload()
    assert given.names == {1: "ball", 2: "block"}
    for value, word in given.names.items():
        assert dice(given.labels == value, labels == value) == pytest.approx(done.dice[word])
