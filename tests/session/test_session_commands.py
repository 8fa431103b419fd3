import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from napari_openmedlab.errors import EngineError, PromptError, SessionError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import LabelPatch, MaskPatch
from napari_openmedlab.geometry.prompts import BoxPrompt, MaskPrompt, PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.contract import Prediction
from napari_openmedlab.session.objects import EngineChoice, OverlapRule, distinct_colour
from napari_openmedlab.session.runner import run_once
from napari_openmedlab.session.session import Session


def click(session, point, positive=True):
    """A click and the mask it leads to, as the viewer does it."""
    session.set_prompts(session.active.prompts.with_click(point, positive))
    request = session.request()
    return session.apply(run_once("flood", session.volume, request), request)


def block(*bounds):
    """A prediction that fills a box."""
    start, stop = bounds[::2], bounds[1::2]
    box = Box(start, stop)
    return Prediction(box, np.ones(box.shape, dtype=bool))


def paint(session, box, value):
    """A brush stroke, as napari paints it: the array first, the session told after."""
    before = session.labels[box.slices].copy()
    session.labels[box.slices] = value
    return session.apply_edit(LabelPatch(box, before, session.labels[box.slices].copy()))


def test_one_undo_takes_back_a_click_and_its_mask(session, at):
    session.add_object("liver")
    click(session, at(5, 8, 6))
    assert session.active.voxels == 6 * 10 * 7
    session.undo()
    assert session.active.name == "liver"
    assert session.active.prompts.is_empty
    assert not session.labels.any()
    session.redo()
    assert session.active.voxels == 6 * 10 * 7
    assert len(session.active.prompts.clicks) == 1


def test_prompts_without_a_mask_are_steps_and_the_last_joins_the_mask(session, at):
    session.add_object()
    session.set_prompts(PromptSet().with_click(at(5, 8, 6)))
    session.set_prompts(session.active.prompts.with_click(at(5, 9, 6)))
    request = session.request()
    session.apply(run_once("flood", session.volume, request), request)
    assert [s.kind.value for s in session.history.past] == ["object", "prompts", "engine"]
    session.undo()
    assert len(session.active.prompts.clicks) == 1
    assert session.active.voxels == 0


def test_undo_goes_back_through_a_stroke_to_the_mask_before_it(session, at):
    session.add_object()
    click(session, at(5, 8, 6))
    masked = session.labels.copy()
    paint(session, Box((0, 0, 0), (2, 2, 2)), 1)
    assert session.active.voxels == 420 + 8
    session.undo()
    np.testing.assert_array_equal(session.labels, masked)
    assert session.active.voxels == 420


def test_undo_restores_the_engine_choice_but_not_the_auto_run_habit(session, at):
    session.add_object()
    click(session, at(5, 8, 6))
    session.choice = EngineChoice("flood", {"tolerance": 5.0})
    click(session, at(5, 9, 6))
    session.choice = replace(session.choice, auto_run=False)
    session.undo()
    session.undo()
    assert session.choice.options == {}
    assert session.choice.auto_run is False


def test_hiding_an_object_is_no_step_and_survives_undo(session, at):
    session.add_object()
    click(session, at(5, 8, 6))
    session.update_object(1, visible=False)
    assert session.history.last.kind.value == "engine"
    session.undo()
    assert session.active.visible is False


def test_removing_an_object_is_undone_with_mask_prompts_and_colour(session, at):
    session.add_object("kidney", (0.1, 0.2, 0.3))
    click(session, at(5, 8, 6))
    before, old = session.labels.copy(), session.active
    session.remove_object(1)
    assert session.objects == ()
    assert session.active is None
    assert not session.labels.any()
    session.undo()
    assert session.active == old
    np.testing.assert_array_equal(session.labels, before)


def test_keep_rule_takes_background_only(session):
    session.add_object()
    session.apply(block(0, 4, 0, 4, 0, 4), session.request())
    session.add_object()
    session.apply(block(2, 6, 0, 4, 0, 4), session.request())
    assert [o.voxels for o in session.objects] == [64, 32]


def test_overwrite_rule_takes_from_unlocked_objects_only(session):
    for start in (0, 8):
        session.add_object()
        session.apply(block(0, 4, 0, 4, start, start + 4), session.request())
    session.update_object(1, locked=True)
    session.add_object()
    session.overlap = OverlapRule.OVERWRITE
    session.apply(block(0, 4, 0, 4, 0, 12), session.request())
    assert [o.voxels for o in session.objects] == [64, 0, 4 * 4 * 8]


def test_a_stroke_cannot_take_from_or_give_to_a_locked_object(session):
    session.add_object()
    session.apply(block(0, 4, 0, 4, 0, 4), session.request())
    session.update_object(1, locked=True)
    session.add_object()
    told = []
    session.labels_changed.connect(told.append)
    paint(session, Box((0, 0, 0), (4, 4, 8)), 2)
    assert [o.voxels for o in session.objects] == [64, 64]
    assert (session.labels[:4, :4, :4] == 1).all()
    assert Box((0, 0, 0), (4, 4, 8)) in told  # the viewer must redraw what was put back
    paint(session, Box((6, 6, 6), (8, 8, 8)), 1)
    assert session.get(1).voxels == 64
    assert not session.labels[6:8, 6:8, 6:8].any()


def test_a_stroke_of_an_unknown_value_gets_an_object(session):
    paint(session, Box((0, 0, 0), (1, 2, 3)), 7)
    assert [(o.id, o.voxels) for o in session.objects] == [(7, 6)]
    session.undo()
    assert session.objects == ()


def test_an_answer_for_a_removed_or_locked_object_is_dropped(session):
    session.add_object("spleen")
    request = session.request()
    session.update_object(1, locked=True)
    with pytest.raises(SessionError, match="spleen is locked"):
        session.apply(block(0, 2, 0, 2, 0, 2), request, 1)
    session.update_object(1, locked=False)
    session.remove_object(1)
    with pytest.raises(SessionError, match="no object 1"):
        session.apply(block(0, 2, 0, 2, 0, 2), request, 1)
    assert not session.labels.any()


def test_an_answer_never_swallows_a_stroke_made_meanwhile(session):
    session.add_object()
    request = session.request()
    paint(session, Box((0, 0, 0), (2, 2, 2)), 1)
    with pytest.raises(SessionError, match="was changed while the engine ran"):
        session.apply(block(4, 6, 4, 6, 4, 6), request, 1)
    assert session.active.voxels == 8


def test_an_answer_to_a_prompt_taken_back_meanwhile_is_dropped(session, at):
    session.add_object()
    session.set_prompts(PromptSet().with_click(at(5, 8, 6)))
    request = session.request()
    session.undo()
    with pytest.raises(SessionError, match="was changed while the engine ran"):
        session.apply(block(0, 2, 0, 2, 0, 2), request, 1)


def test_an_answer_is_taken_when_prompts_were_only_added_meanwhile(session, at):
    session.add_object()
    session.set_prompts(PromptSet().with_click(at(5, 8, 6)))
    request = session.request()
    session.set_prompts(session.active.prompts.with_click(at(5, 9, 6)))
    session.apply(block(0, 2, 0, 2, 0, 2), request)
    assert session.active.answered == request.prompts
    session.undo()
    assert len(session.active.prompts.clicks) == 2  # the newer click is a step of its own


def test_the_same_answer_again_is_no_step(session, at):
    session.add_object()
    click(session, at(5, 8, 6))
    steps = len(session.history.past)
    request = session.request()
    session.apply(run_once("flood", session.volume, request), request)
    assert len(session.history.past) == steps


def test_request_holds_previous_mask_prompts_and_neighbours(session, at):
    session.add_object()
    click(session, at(5, 8, 6))
    session.add_object()
    session.choice = EngineChoice("flood", avoid_neighbours=True)
    request = session.request(2)
    assert request.previous is None
    assert request.obstacles == MaskPatch.of(session.labels == 1)
    session.choice = EngineChoice("flood")
    request = session.request(1)
    assert request.previous == MaskPatch.of(session.labels == 1)
    assert request.previous_prompts == session.get(1).prompts
    assert request.obstacles is None
    assert request.options["tolerance"] == 20.0


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        (lambda w: PromptSet().with_click(w(99, 0, 0)), "click 1 .* outside the volume"),
        (lambda w: PromptSet((w(1, 1, 1), w(1, 1, -5))), "extreme point 2 .* outside"),
        (
            lambda w: PromptSet((w(1, 1, 1), w(2, 2, 2), w(1.2, 1, 1))),
            "extreme points 1 and 3 are the same voxel",
        ),
        (lambda w: PromptSet((), (BoxPrompt(w(50, 0, 0), w(60, 3, 3)),)), "lies outside"),
        (
            lambda w: PromptSet().with_scribble([w(1, 1, 1), w(-9, 0, 0)]),
            "scribble 1 has 1 of 2 points outside",
        ),
    ],
)
def test_prompts_that_cannot_be_meant_are_refused_and_change_nothing(
    session, at, prompts, sentence
):
    session.add_object()
    with pytest.raises(PromptError, match=sentence):
        session.set_prompts(prompts(at))
    assert session.active.prompts.is_empty
    assert len(session.history.past) == 1


def test_a_mask_prompt_off_the_volume_is_refused(session):
    session.add_object()
    far = Geometry.from_spacing((4, 4, 4), (1.0, 1.0, 1.0), frame="patient")
    mask = MaskPrompt(MaskPatch.of(np.ones((4, 4, 4), dtype=bool)), far)
    with pytest.raises(PromptError, match="mask prompt has no voxel inside"):
        session.set_prompts(PromptSet(mask=mask))


def test_fewer_than_six_extreme_points_are_legal(session, at):
    session.add_object()
    session.set_prompts(PromptSet((at(1, 1, 1), at(3, 3, 3))))
    assert len(session.active.prompts.extreme_points) == 2


def test_commands_on_nothing_or_locked_objects_say_so(session, at):
    with pytest.raises(SessionError, match="add one first"):
        session.set_prompts(PromptSet().with_click(at(1, 1, 1)))
    session.add_object("aorta")
    session.update_object(1, locked=True)
    for command in (session.remove_object, session.request):
        with pytest.raises(SessionError, match="aorta is locked"):
            command(1)
    with pytest.raises(SessionError, match="no object 5"):
        session.set_active(5)


def test_given_labels_become_objects_and_are_not_copied(volume):
    labels = np.zeros(volume.geometry.shape, dtype=np.uint16)
    labels[1:3, 2:5, 3:4], labels[6:, 6:, 6:] = 4, 9
    session = Session(volume, labels=labels)
    assert session.labels is labels
    assert {o.id: o.voxels for o in session.objects} == {4: 6, 9: 6 * 14 * 18}
    assert session.mask_of(4) == MaskPatch.of(labels == 4)
    assert session.add_object().id == 1


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.zeros((2, 2, 2), dtype=np.uint8), "have shape"),
        (np.zeros((12, 20, 24)), "whole numbers"),
        (np.full((12, 20, 24), -1), "between 0 and 65535"),
        (np.full((12, 20, 24), 70000), "between 0 and 65535"),
    ],
)
def test_labels_that_cannot_be_labels_are_refused(volume, labels, sentence):
    with pytest.raises(SessionError, match=sentence):
        Session(volume, labels=labels)


def test_bool_and_wide_labels_are_taken_as_uint16(volume):
    session = Session(volume, labels=np.ones(volume.geometry.shape, dtype=np.int64))
    assert session.labels.dtype == np.uint16
    assert session.get(1).voxels == 12 * 20 * 24


def test_unknown_engine_and_option_are_refused(session):
    with pytest.raises(EngineError, match="no engine 'magic'"):
        session.choice = EngineChoice("magic")
    with pytest.raises(EngineError, match="has no option speed"):
        session.choice = EngineChoice("flood", {"speed": 3})


def test_volume_in_ml_follows_the_unit(flood):
    labels = np.ones((10, 10, 10), dtype=np.uint16)
    for unit, spacing, ml in (("mm", 2.0, 8.0), ("um", 1000.0, 1.0), ("pixel", 1.0, math.nan)):
        grid = Geometry.from_spacing((10, 10, 10), (spacing,) * 3, unit=unit)
        session = Session(Volume(np.zeros((10, 10, 10)), grid), labels=labels)
        assert session.volume_ml(1) == pytest.approx(ml, nan_ok=True)


def test_colours_of_neighbouring_ids_differ_and_stay():
    colours = [distinct_colour(n) for n in range(1, 31)]
    assert len(set(colours)) == 30
    gaps = [math.dist(a, b) for a, b in pairwise(colours)]
    assert min(gaps) > 0.25


def test_signals_tell_what_changed_and_nothing_else(session, at):
    told = []
    for name in (
        "objects_changed",
        "active_changed",
        "prompts_changed",
        "labels_changed",
        "choice_changed",
        "history_changed",
    ):
        getattr(session, name).connect(lambda *a, n=name: told.append((n, *a)))
    session.add_object()
    assert [t[0] for t in told] == [
        "objects_changed",
        "prompts_changed",
        "active_changed",
        "history_changed",
    ]
    told.clear()
    patch = click(session, at(5, 8, 6))
    assert ("labels_changed", Box((3, 4, 3), (9, 14, 10))) in told
    assert patch.box == Box((3, 4, 3), (9, 14, 10))
    assert not any(t[0] == "active_changed" for t in told)
    told.clear()
    session.undo()
    assert ("prompts_changed", 1) in told
    assert ("labels_changed", Box((3, 4, 3), (9, 14, 10))) in told


def test_the_volume_is_never_written_to(session, at):
    before = session.volume.array.copy()
    session.add_object()
    click(session, at(5, 8, 6))
    np.testing.assert_array_equal(session.volume.array, before)


def test_an_empty_answer_clears_the_mask_and_undo_brings_it_back(session, at):
    session.add_object()
    click(session, at(5, 8, 6))
    empty = MaskPatch.empty()
    session.apply(Prediction(empty.box, empty.mask), session.request())
    assert session.active.voxels == 0
    session.undo()
    assert session.active.voxels == 420
