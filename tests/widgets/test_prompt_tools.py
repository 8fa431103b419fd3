"""Tools, gestures and rows without a window: what a click means and what the user is told."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_openmedlab.bridge.strokes import stroke_voxels
from napari_openmedlab.errors import PromptError, SessionError
from napari_openmedlab.geometry.prompts import BoxPrompt, Click, PromptSet, Scribble
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.widgets.answers import answer_text, waits_for
from napari_openmedlab.widgets.gestures import Gesture, ToolState, prompts_after
from napari_openmedlab.widgets.point_rows import rows_of, rows_to_prompts
from napari_openmedlab.widgets.tools import (
    IMAGE_ROLES,
    PATIENT_ROLES,
    Tool,
    assign_roles,
    guidance,
    kinds_of,
)

GEOMETRY = Geometry.from_spacing((20, 40, 50), (3.0, 1.0, 0.5), unit="mm", frame="patient")

# One point per role in the order asked for: S, I, A, P, R, L in LPS.
IN_ORDER = [(1, 2, 30), (3, -2, -30), (2, -20, 4), (0, 20, -3), (-15, 1, 2), (15, 3, 1)]


def gesture(*path, dragged=False, swapped=False, axis=0):
    return Gesture(np.array(path, dtype=float), dragged, swapped, axis)


# -- roles ---------------------------------------------------------------------------------


@given(st.permutations(range(6)))
def test_six_extreme_points_are_recognised_in_any_order(order):
    points = [IN_ORDER[k] for k in order]
    assert assign_roles(points, "patient") == tuple(PATIENT_ROLES[k] for k in order)


@given(st.lists(st.tuples(*[st.floats(-100, 100)] * 3), min_size=1, max_size=6, unique=True))
def test_every_point_gets_a_role_of_its_own(points):
    roles = assign_roles(points, "patient")
    assert len(set(roles)) == len(points)


def test_the_order_asked_for_is_believed_when_the_object_lies_aslant():
    # The superior point lies far to the right of the inferior one: still S and I.
    points = [(-40, 0, 10), (40, 0, -10)]
    assert [r.letter for r in assign_roles(points, "patient")] == ["S", "I"]


@pytest.mark.parametrize("count", range(6))
def test_guidance_names_the_next_extreme_point(count):
    text = guidance(Tool.EXTREME, PromptSet(tuple(IN_ORDER[:count])), "patient", True)
    assert f"point {count + 1} of 6: {PATIENT_ROLES[count].name}" in text


def test_guidance_skips_roles_that_were_given_out_of_order():
    points = (IN_ORDER[5], IN_ORDER[4])  # left and right first
    text = guidance(Tool.EXTREME, PromptSet(points), "patient", True)
    assert "point 3 of 6: most superior" in text


def test_guidance_speaks_of_image_axes_without_a_patient():
    text = guidance(Tool.EXTREME, PromptSet(), "image", True)
    assert IMAGE_ROLES[0].name in text
    assert "superior" not in text


def test_every_tool_and_sign_has_its_own_guidance():
    texts = {
        guidance(tool, PromptSet(), "patient", sign, corner=corner)
        for tool, sign, corner in itertools.product((None, *Tool), (True, False), (True, False))
    }
    assert len(texts) == 8


def test_prompts_are_counted_in_words():
    prompts = PromptSet(tuple(IN_ORDER), clicks=(Click((0, 0, 0)),))
    assert kinds_of(prompts) == "6 extreme points, 1 click"
    assert kinds_of(PromptSet()) == "no prompts yet"


# -- gestures ------------------------------------------------------------------------------


def test_click_is_taken_at_its_very_place():
    after = prompts_after(
        gesture((4, 10.25, 20.5), swapped=True), PromptSet(), ToolState(Tool.CLICK), GEOMETRY
    )
    assert not after.clicks[0].positive
    np.testing.assert_allclose(GEOMETRY.to_index(after.clicks[0].point), (4, 10.25, 20.5))


def test_seventh_extreme_point_is_refused():
    with pytest.raises(SessionError, match="six extreme points are set"):
        prompts_after(
            gesture((4, 10, 20)), PromptSet(tuple(IN_ORDER)), ToolState(Tool.EXTREME), GEOMETRY
        )


def test_box_grows_to_hold_every_click():
    state = ToolState(Tool.BOX)
    corner = prompts_after(gesture((4, 10, 20)), PromptSet(), state, GEOMETRY)
    assert isinstance(corner, tuple)
    prompts = prompts_after(
        gesture((8, 30, 30)), PromptSet(), ToolState(Tool.BOX, corner=corner), GEOMETRY
    )
    prompts = prompts_after(gesture((12, 20, 40)), prompts, state, GEOMETRY)
    box = prompts.boxes[0].to_box(GEOMETRY)
    assert (box.start, box.stop) == ((4, 10, 20), (13, 31, 41))


def test_box_dragged_over_the_edge_ends_at_the_edge():
    drag = gesture((4, 10, 20), (4, 99, 99), dragged=True)
    prompts = prompts_after(drag, PromptSet(), ToolState(Tool.BOX), GEOMETRY)
    box = prompts.boxes[0].to_box(GEOMETRY)
    assert (box.start, box.stop) == ((4, 10, 20), (5, 40, 50))


@pytest.mark.parametrize("tool", [Tool.BOX, Tool.SCRIBBLE])
def test_gesture_beside_the_image_is_refused(tool):
    away = gesture((4, -30, 20), (4, -20, 20), dragged=True)
    with pytest.raises(PromptError, match="beside the image"):
        prompts_after(away, PromptSet(), ToolState(tool), GEOMETRY)


def test_stroke_touches_every_voxel_on_its_way_and_a_round_brush_in_mm():
    voxels = stroke_voxels([(5, 10, 10), (5, 10, 30)], GEOMETRY, 0, 2.0)
    assert {(5, 10, x) for x in range(10, 31)} <= {tuple(v) for v in voxels}
    away = (voxels[:, 1] - 10) * 1.0, np.clip(10 - voxels[:, 2], 0, None) * 0.5
    assert np.hypot(*away).max() <= 2.0 + 1e-9
    assert voxels[:, 1].min() == 8
    assert voxels[:, 2].min() == 6
    assert set(voxels[:, 0]) == {5}


@given(
    st.integers(0, 2),
    st.lists(st.tuples(*[st.floats(-10, 60)] * 3), min_size=1, max_size=6),
    st.floats(0, 5),
)
def test_stroke_stays_on_its_slice_and_on_the_grid(axis, path, radius):
    voxels = stroke_voxels(path, GEOMETRY, axis, radius)
    assert GEOMETRY.contains_index(voxels).all()
    assert set(voxels[:, axis]) <= {int(np.rint(path[0][axis]))}
    assert len(np.unique(voxels, axis=0)) == len(voxels)


# -- rows ----------------------------------------------------------------------------------


def test_rows_and_back_are_the_same_prompts():
    prompts = PromptSet(
        tuple(IN_ORDER[:3]),
        boxes=(BoxPrompt((0, 0, 0), (1, 1, 1)),),
        clicks=(Click((1, 2, 3)), Click((4, 5, 6), positive=False)),
        scribbles=(Scribble([(1, 1, 1), (2, 2, 2)]), Scribble([(3, 3, 3)], positive=False)),
    )
    rows = rows_of(prompts, "patient", corner=(9, 9, 9))
    assert rows.kinds.count("corner") == 1
    assert rows_to_prompts(prompts, rows.points, rows.features()) == prompts


# -- waiting and answers -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "tool", "word"),
    [
        (PromptSet(tuple(IN_ORDER[:5])), Tool.EXTREME, "5 of 6"),
        (PromptSet(tuple(IN_ORDER)), Tool.EXTREME, ""),
        (PromptSet(boxes=(BoxPrompt((0, 0, 3), (9, 9, 3)),)), Tool.BOX, "one slice deep"),
        (PromptSet(boxes=(BoxPrompt((0, 0, 3), (9, 9, 9)),)), Tool.BOX, ""),
        (PromptSet(clicks=(Click((0, 0, 0), False),)), Tool.CLICK, "where the object is"),
        (PromptSet(clicks=(Click((0, 0, 0)),)), Tool.CLICK, ""),
    ],
)
def test_automatic_runs_wait_until_the_prompts_say_enough(prompts, tool, word):
    text = waits_for(prompts, tool, GEOMETRY)
    assert (word in text) if word else not text


def test_answer_tells_size_time_and_doubt():
    from napari_openmedlab.geometry.boxes import Box
    from napari_openmedlab.models.contract import Prediction

    box = Box((0, 0, 0), (1, 1, 1))
    found = SimpleNamespace(id=1, name="liver", voxels=2_000_000)
    session = SimpleNamespace(get=lambda _: found, volume_ml=lambda _: 1500.0)
    sure = Prediction(box, np.ones(box.shape, bool), score=0.91, seconds=0.84)
    assert answer_text(session, 1, sure) == (
        "liver: 1500.0 ml in 0.8 s. Score 0.91 (sure).",
        "done",
    )
    doubt = Prediction(box, np.ones(box.shape, bool), score=0.3, notes=("Leaks at the top.",))
    text, severity = answer_text(session, 1, doubt)
    assert severity == "unsure"
    assert text.endswith("(unsure). Leaks at the top.")
    found.voxels = 0
    text, severity = answer_text(session, 1, sure)
    assert "nothing was found" in text
    assert severity == "unsure"
