"""Hints ahead of a click, options that follow the view, many objects in one run."""

from __future__ import annotations

import ball_engine
import numpy as np
import pytest
from napari.layers import Points
from panel_hands import pump, use_engine, wait_for
from qtpy.QtWidgets import QMenu

from napari_openmedlab.bridge.view import show_3d, show_plane
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.widgets.hints import REST_MS, slice_normal
from napari_openmedlab.widgets.tools import Tool

pytestmark = pytest.mark.gui

AFTER_REST = REST_MS + 120


def masked(panel):
    return bool(panel.session.labels.any())


def idle(panel):
    return not panel._life.worker.busy


def use(panel, tool):
    panel.prompts.tools[tool].click()
    pump()


# -- hints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_hint_is_the_very_point_that_a_click_there_gives(scene, qtbot, plane):
    viewer, image, panel, hand = scene
    use_engine(panel, "point", radius=4.0)
    show_plane(viewer, plane)
    use(panel, Tool.CLICK)
    hand.hover(image, (7, 41, 33))
    pump(AFTER_REST)
    assert len(ball_engine.HINTS) == 1
    hint = ball_engine.HINTS[0]
    assert hint.normal is None
    assert hint.options["radius"] == 4.0
    hand.click(image, (7, 41, 33))
    wait_for(qtbot, lambda: masked(panel))
    assert panel.session.active.prompts.clicks[0].point == hint.point


def test_hint_follows_the_slice_under_a_resting_cursor(scene, qtbot):
    viewer, image, panel, hand = scene
    use_engine(panel, "point")
    use(panel, Tool.CLICK)
    hand.hover(image, (7, 41, 33))
    pump(AFTER_REST)
    viewer.dims.set_current_step(0, 15)
    pump(AFTER_REST)
    found = panel.session.volume.geometry.to_index([hint.point for hint in ball_engine.HINTS])
    np.testing.assert_allclose(found[:, 0], [7, 15])
    np.testing.assert_allclose(found[0, 1:], found[1, 1:])
    hand.click(image, (15, 41, 33))
    wait_for(qtbot, lambda: masked(panel))
    assert panel.session.active.prompts.clicks[0].point == ball_engine.HINTS[-1].point


def test_moving_cursor_gives_one_hint_when_it_rests(scene):
    _, image, panel, hand = scene
    use_engine(panel, "point")
    use(panel, Tool.CLICK)
    for x in range(10, 40, 3):
        hand.hover(image, (7, 30, x))
        pump(10)
    pump(AFTER_REST)
    assert len(ball_engine.HINTS) == 1


def test_no_hint_where_no_first_click_can_be(scene, qtbot):
    viewer, image, panel, hand = scene
    use_engine(panel, "point")
    for tool in (Tool.EXTREME, Tool.BOX, Tool.SCRIBBLE):
        use(panel, tool)
        hand.hover(image, (7, 41, 30))
        hand.hover(image, (7, 41, 33))
        pump(AFTER_REST)
    use(panel, Tool.CLICK)
    hand.hover(image, (7, -9, 33))
    pump(AFTER_REST)
    panel.prompts.outside.click()
    hand.hover(image, (7, 40, 33))
    pump(AFTER_REST)
    show_3d(viewer)
    pump(AFTER_REST)
    assert not ball_engine.HINTS
    show_plane(viewer, "axial")
    panel.prompts.inside.click()
    hand.click(image, (7, 41, 33))
    wait_for(qtbot, lambda: masked(panel) and idle(panel))
    ball_engine.HINTS.clear()
    hand.hover(image, (7, 30, 20))
    pump(AFTER_REST)
    assert not ball_engine.HINTS, "corrections find their work done"
    panel.objects.accept.click()
    pump(AFTER_REST)
    hand.hover(image, (7, 30, 24))
    pump(AFTER_REST)
    assert len(ball_engine.HINTS) == 1


def test_engine_by_slice_hears_of_the_slice(scene):
    viewer, _, panel, _ = scene
    use_engine(panel, "slices")
    viewer.dims.set_current_step(0, 9)
    use(panel, Tool.BOX)
    pump(AFTER_REST)
    show_plane(viewer, "sagittal")
    viewer.dims.set_current_step(2, 20)
    pump(AFTER_REST)
    first, last = ball_engine.HINTS[0], ball_engine.HINTS[-1]
    geometry = panel.session.volume.geometry
    np.testing.assert_allclose(geometry.to_index(first.point)[0], 9)
    np.testing.assert_allclose(geometry.to_index(last.point)[2], 20)
    np.testing.assert_allclose(np.abs(first.normal), (0, 0, 1))
    np.testing.assert_allclose(np.abs(last.normal), (1, 0, 0))
    assert (first.options["axis"], last.options["axis"]) == (0, 2)
    assert first.reach < geometry.spacing[0] / 2


def test_engine_that_cannot_work_ahead_costs_nothing(scene):
    _, image, panel, hand = scene
    use_engine(panel, "point")
    use(panel, Tool.CLICK)
    points = panel.controller.layers.points
    listeners = len(points.mouse_move_callbacks)
    assert listeners
    use_engine(panel, "ball")
    assert len(points.mouse_move_callbacks) == listeners - 1
    assert not len(panel.controller.layers.view_changed)
    hand.hover(image, (7, 41, 33))
    pump(AFTER_REST)
    assert not panel.controller._hints._rest.isActive()
    assert not ball_engine.HINTS
    assert panel._life.worker._runner._thread is None


def test_tool_off_and_panel_closed_end_the_hints(scene):
    viewer, _, panel, _ = scene
    use_engine(panel, "slices")
    use(panel, Tool.CLICK)
    controller = panel.controller
    points = controller.layers.points
    controller.choose_tool(None)
    assert controller._input._on_move not in points.mouse_move_callbacks
    use(panel, Tool.CLICK)
    viewer.window.remove_dock_widget(panel)
    pump(AFTER_REST)
    assert not controller._hints._rest.isActive()


def test_normal_of_sheared_slices_is_across_them():
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, 1], [0, 1, 0], [2.0, 0.6, 0]]
    geometry = Geometry((5, 5, 5), affine)
    for axis in range(3):
        normal, gap = slice_normal(geometry, axis)
        columns = geometry.affine[:3, :3]
        others = [columns[:, a] for a in range(3) if a != axis]
        np.testing.assert_allclose([np.dot(normal, c) for c in others], 0, atol=1e-9)
        np.testing.assert_allclose(abs(np.dot(normal, columns[:, axis])), gap)


# -- options that follow the view ----------------------------------------------------------


def test_axis_is_that_of_the_gesture_and_contrast_that_of_the_layer(scene, qtbot):
    viewer, image, panel, hand = scene
    use_engine(panel, "slices", window="shown")
    assert "axis" not in panel.engine.form._inputs
    assert "low" not in panel.engine.form._inputs
    image.contrast_limits = (10, 80)
    show_plane(viewer, "coronal")
    use(panel, Tool.CLICK)
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel) and idle(panel))
    asked = ball_engine.OPTIONS_SEEN[-1]
    assert (asked["axis"], asked["plane"]) == (1, "y")
    assert (asked["low"], asked["high"], asked["window"]) == (10.0, 80.0, "10 80")
    show_plane(viewer, "axial")
    panel.run.run.click()
    wait_for(qtbot, lambda: len(ball_engine.OPTIONS_SEEN) == 2 and idle(panel))
    assert ball_engine.OPTIONS_SEEN[-1]["axis"] == 1, "the object's own plane"
    hand.click(image, (12, 34, 22))
    wait_for(qtbot, lambda: len(ball_engine.OPTIONS_SEEN) == 3 and idle(panel))
    assert ball_engine.OPTIONS_SEEN[-1]["axis"] == 0
    run = next(s.run for s in panel.session.history.past if s.run is not None)
    assert (run.options["axis"], run.options["low"]) == (1, 10.0)


def test_flat_box_is_enough_for_an_engine_by_slice(scene, qtbot):
    _, image, panel, hand = scene
    use_engine(panel, "slices")
    use(panel, Tool.BOX)
    hand.drag(image, (8, 12, 10), (8, 44, 38))
    wait_for(qtbot, lambda: masked(panel))


def test_propagate_has_its_button_and_asks_once(scene, qtbot):
    _, image, panel, hand = scene
    assert panel.run.propagate.isHidden()
    use_engine(panel, "slices")
    assert not panel.run.propagate.isHidden()
    use(panel, Tool.CLICK)
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel) and idle(panel))
    panel.run.propagate.click()
    wait_for(qtbot, lambda: len(ball_engine.OPTIONS_SEEN) == 2 and idle(panel))
    hand.click(image, (12, 34, 22))
    wait_for(qtbot, lambda: len(ball_engine.OPTIONS_SEEN) == 3 and idle(panel))
    assert [asked["propagate"] for asked in ball_engine.OPTIONS_SEEN] == [False, True, False]
    assert not panel.session.choice.options.get("propagate")


# -- many at once --------------------------------------------------------------------------


@pytest.fixture
def pick(monkeypatch):
    """Choose the first entry of the menu that a button opens; return what it offered."""
    offered = []

    def exec_(menu, *_):
        offered.extend(action.text() for action in menu.actions())
        return menu.actions()[0]

    monkeypatch.setattr(QMenu, "exec", exec_)
    return offered


def markers(viewer, image, rows, **kwargs):
    return viewer.add_points(
        np.array(rows, dtype=float),
        scale=image.scale,
        translate=image.translate,
        units=image.units,
        axis_labels=image.axis_labels,
        name="lesions",
        **kwargs,
    )


ROWS = [(6, 15, 12), (12, 30, 25), (18, 45, 38)]


def test_points_of_a_layer_become_objects_in_one_run(scene, qtbot, pick):
    viewer, image, panel, _ = scene
    markers(viewer, image, ROWS, features={"name": ["one", "two", "three"]})
    panel.prompts.from_layer.click()
    wait_for(qtbot, lambda: len(panel.session.objects) == 3 and idle(panel))
    wait_for(qtbot, lambda: panel.run.status.text() == "3 of 3 objects segmented.")
    assert pick == ["lesions: 3 points"]
    assert [o.name for o in panel.session.objects] == ["one", "two", "three"]
    for value, row in enumerate(ROWS, start=1):
        assert panel.session.labels[row] == value
    assert not panel.run.bar.isVisible()
    assert len(viewer.layers["lesions"].data) == 3
    while panel.session.can_undo:
        panel.run.undo.click()
    assert not panel.session.objects
    assert not masked(panel)


def test_rectangles_of_a_layer_become_boxes(scene, qtbot, pick):
    viewer, image, panel, _ = scene
    flat = np.array([[10, 12, 10], [10, 12, 30], [10, 40, 30], [10, 40, 10]])
    viewer.add_shapes(
        [flat, flat + np.array((6, 4, 4))],
        shape_type="rectangle",
        scale=image.scale,
        translate=image.translate,
        units=image.units,
        axis_labels=image.axis_labels,
        features={"name": ["liver", "liver"]},
    )
    panel.prompts.from_layer.click()
    wait_for(qtbot, lambda: masked(panel) and idle(panel))
    assert [o.name for o in panel.session.objects] == ["liver"]
    box = panel.session.active.prompts.boxes[0].to_box(panel.session.volume.geometry)
    assert (box.start[0], box.stop[0]) == (10, 17)


def test_own_prompt_layers_are_not_offered(scene, pick):
    _, _, panel, _ = scene
    use(panel, Tool.CLICK)
    assert isinstance(panel.controller.layers.points, Points)
    panel.prompts.from_layer.click()
    assert not pick
    assert "no layer of yours" in panel.run.status.text()


def test_cancel_stops_the_rest_and_keeps_what_is_done(scene, qtbot, pick):
    viewer, image, panel, _ = scene
    use_engine(panel, "ball", steps=30)
    markers(viewer, image, ROWS)
    panel.prompts.from_layer.click()
    wait_for(qtbot, lambda: panel.session.objects[0].voxels > 0, timeout=4000)
    assert "2 of 3" in panel.run.status.text()
    assert panel.run.bar.maximum() == 300
    qtbot.waitUntil(lambda: 100 < panel.run.bar.value() < 200, timeout=2000)
    panel.run.cancel.click()
    pump(900)
    assert "Cancelled after 1 of 3 objects" in panel.run.status.text()
    assert [o.voxels > 0 for o in panel.session.objects] == [True, False, False]
    assert all(o.prompts.clicks for o in panel.session.objects)


def test_one_failure_does_not_end_the_run(scene, qtbot, pick):
    viewer, image, panel, _ = scene
    use_engine(panel, "ball", steps=10)
    markers(viewer, image, ROWS)
    panel.prompts.from_layer.click()
    second = panel.session.objects[1]
    panel.session.update_object(second.id, locked=True)
    wait_for(qtbot, lambda: idle(panel) and "2 of 3" in panel.run.status.text(), timeout=4000)
    qtbot.waitUntil(lambda: "segmented" in panel.run.status.text(), timeout=3000)
    assert f"{second.name} is locked" in panel.run.status.text()
    assert [o.voxels > 0 for o in panel.session.objects] == [True, False, True]


def test_click_and_delete_in_the_middle_of_many(scene, qtbot, pick):
    viewer, image, panel, hand = scene
    use_engine(panel, "ball", steps=15)
    markers(viewer, image, ROWS)
    panel.prompts.from_layer.click()
    panel.session.set_active(1)
    use(panel, Tool.CLICK)
    hand.click(image, (6, 22, 12))  # overtakes the request that runs
    panel.session.set_active(2)
    panel.objects.delete.click()
    qtbot.waitUntil(lambda: "2 of 2 objects segmented" in panel.run.status.text(), timeout=5000)
    assert panel.session.labels[6, 22, 12] == 1
    assert panel.session.labels[6, 15, 12] == 1
    assert panel.session.labels[18, 45, 38] == 3
    assert [o.id for o in panel.session.objects] == [1, 3]
