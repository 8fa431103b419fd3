"""Many structures become objects of a session in one step; nothing of the user's is lost."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from napari_openmedlab.errors import SessionError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import LabelPatch, MaskPatch
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.models.contract import Labelling, Prediction
from napari_openmedlab.session import store
from napari_openmedlab.session.objects import OverlapRule
from napari_openmedlab.session.replay import replay_steps
from napari_openmedlab.session.runner import Runner

NAMES = {1: "liver", 2: "spleen", 7: "aorta"}
BLOCKS = {1: np.s_[2:8, 2:10, 2:10], 2: np.s_[4:10, 10:18, 12:20], 7: np.s_[0:12, 9:11, 10:12]}


def labelling(volume, blocks=BLOCKS, names=NAMES, box=None):
    labels = np.zeros(volume.geometry.shape, dtype=np.uint8)
    for value, where in blocks.items():
        labels[where] = value
    box = box or Box.whole(volume.geometry.shape)
    return Labelling(box, labels[box.slices], names, 1.0, {"engine": "namer"})


def take(session, found, chosen=("liver", "spleen", "aorta")):
    return session.take_in(session.foresee(found, chosen))


def by_name(session):
    return {o.name: o for o in session.objects}


def test_structures_are_objects_in_one_step(session, volume):
    done = take(session, labelling(volume))
    assert done.ids == {"liver": 1, "spleen": 2, "aorta": 7}
    for name, found in by_name(session).items():
        assert found.voxels == (session.labels == done.ids[name]).sum() > 0
        assert session.mask_of(found.id).count == found.voxels
    assert [step.text for step in session.history.past] == ["name 3 structures"]
    labels = session.labels.copy()
    session.undo()
    assert not session.labels.any()
    assert session.objects == ()
    session.redo()
    np.testing.assert_array_equal(session.labels, labels)


def test_only_what_was_chosen_and_only_in_the_region(session, volume):
    region = Box((0, 0, 0), (6, 20, 24))
    done = take(session, labelling(volume, box=region), ("liver", "aorta"))
    assert set(by_name(session)) == {"liver", "aorta"}
    assert not session.labels[6:].any()
    assert done.absent == ()


@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("rule", list(OverlapRule))
def test_locked_objects_keep_every_voxel_others_as_the_rule_says(session, volume, rule, locked):
    mine = session.add_object("mine")
    box = Box((3, 3, 3), (7, 7, 7))
    after = np.full(box.shape, mine.id, dtype=np.uint16)
    session.apply_edit(LabelPatch(box, np.zeros_like(after), after))
    session.update_object(mine.id, locked=locked)
    session.overlap = rule
    take(session, labelling(volume))
    kept = locked or rule is OverlapRule.KEEP
    assert (session.labels == mine.id).sum() == session.get(mine.id).voxels == 64 * kept
    assert by_name(session)["liver"].voxels == 384 - 64 * kept


def test_what_the_user_refined_stays_and_the_rest_is_made_anew(session, volume, at):
    take(session, labelling(volume))
    session.set_prompts(PromptSet().with_click(at(5, 5, 5)), 1)
    request = session.request(1)
    mask = MaskPatch(Box((3, 3, 3), (5, 6, 7)), np.ones((2, 3, 4), dtype=bool))
    session.apply(Prediction(mask.box, mask.mask, provenance={"engine": "flood"}), request, 1)
    session.update_object(7, colour=(0.1, 0.2, 0.3))
    moved = {**BLOCKS, 2: np.s_[6:12, 12:20, 12:20]}
    done = take(session, labelling(volume, moved))
    assert done.left == ("liver",)
    assert session.get(1).voxels == 24
    assert not (session.labels[4:6, 10:12, 13:20] == 2).any()  # where the spleen was
    assert (session.labels[11, 12:20, 12:20] == 2).all()
    assert session.get(7).colour == (0.1, 0.2, 0.3)
    assert len(session.objects) == 3
    for found in session.objects:
        assert found.voxels == (session.labels == found.id).sum()


def test_a_structure_that_is_gone_takes_its_object_along(session, volume):
    take(session, labelling(volume))
    done = take(session, labelling(volume, {1: BLOCKS[1]}))
    assert set(by_name(session)) == {"liver"}
    assert set(done.absent) == {"spleen", "aorta"}


def test_a_change_meanwhile_is_taken_into_account(session, volume):
    arrival = session.foresee(labelling(volume), ("liver", "spleen"))
    mine = session.add_object("mine")
    assert mine.id == 1  # the liver's number
    done = session.take_in(arrival)
    assert done.ids["liver"] != 1
    assert {o.name for o in session.objects} == {"mine", "liver", "spleen"}


def test_nothing_found_is_no_step(session, volume):
    done = take(session, labelling(volume, {}))
    assert (done.ids, session.history.past) == ({}, ())
    shape = (13, 20, 24)
    big = Labelling(Box.whole(shape), np.zeros(shape, np.uint8), NAMES)
    with pytest.raises(SessionError, match="beyond"):
        session.foresee(big, ("liver",))


def test_a_saved_session_is_replayed_with_them(session, volume, tmp_path):
    take(session, labelling(volume))
    path = tmp_path / "organs.omlsession"
    store.save(session, path)
    replayed = replay_steps(path, volume)
    assert replayed.differences == ()
    np.testing.assert_array_equal(replayed.session.labels, session.labels)


# -- the worker ------------------------------------------------------------------------------


@pytest.fixture
def reports():
    found = []
    runner = Runner(
        on_result=lambda *values: found.append(values),
        on_error=lambda number, error: found.append((number, str(error))),
    )
    yield runner, found
    assert runner.close(20)


def wait(runner):
    end = time.monotonic() + 20
    while runner.busy:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_other_work_runs_in_the_worker_and_can_be_cancelled(reports):
    runner, found = reports
    number = runner.submit_work(lambda _bench, _monitor: threading.current_thread().name, "a")
    wait(runner)
    assert found == [(number, "openmedlab-runner")]
    begun, gate = threading.Event(), threading.Event()

    def work(_bench, monitor):
        begun.set()
        gate.wait(10)
        monitor.step()

    runner.submit_work(work, "a")
    kept = runner.submit_work(lambda *_: "kept", "b")
    assert begun.wait(10)
    runner.cancel("a")
    gate.set()
    wait(runner)
    assert found[1:] == [(kept, "kept")]


@pytest.mark.parametrize(
    ("error", "words"), [(ZeroDivisionError("x"), "internal error"), (MemoryError(), "memory")]
)
def test_failing_work_ends_in_words_and_the_worker_goes_on(reports, error, words):
    runner, found = reports

    def work(_bench, _monitor):
        raise error

    runner.submit_work(work, "a")
    wait(runner)
    runner.submit_work(lambda *_: "next", "a")
    wait(runner)
    assert words in found[0][1]
    assert found[1][1] == "next"
