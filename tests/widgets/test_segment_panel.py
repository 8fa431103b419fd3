"""The Segment panel, driven by real clicks and keys on the real canvas."""

from __future__ import annotations

import numpy as np
import pytest
from panel_hands import add_volume, phantom, pump, wait_for
from qtpy.QtCore import Qt

from napari_openmedlab.bridge.view import show_3d, show_plane
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.widgets.canvas_input import NO_DEPTH
from napari_openmedlab.widgets.tools import Tool

pytestmark = pytest.mark.gui

SHIFT = Qt.KeyboardModifier.ShiftModifier
CONTROL = Qt.KeyboardModifier.ControlModifier

EXTREMES = [(4, 30, 25), (20, 30, 25), (12, 12, 25), (12, 48, 25), (12, 30, 10), (12, 30, 42)]


def masked(panel):
    return panel.session is not None and bool(panel.session.labels.any())


def idle(panel):
    return not panel._life.worker.busy


def indices(panel, points):
    return panel.session.volume.geometry.to_index(points)


def prompts(panel):
    return panel.session.active.prompts


def use(panel, tool):
    panel.prompts.tools[tool].click()
    pump()


# -- clicks land where the mouse is --------------------------------------------------------


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_click_in_every_plane_lands_on_the_voxel_under_the_mouse(scene, qtbot, plane):
    viewer, image, panel, hand = scene
    show_plane(viewer, plane)
    use(panel, Tool.CLICK)
    target = (7, 41, 33)
    hand.click(image, target)
    wait_for(qtbot, lambda: masked(panel))
    found = indices(panel, prompts(panel).clicks[0].point)
    np.testing.assert_allclose(found, target, atol=0.3)
    assert panel.session.labels[target] == panel.session.active_id


def test_click_lands_right_with_rolled_axes_and_a_finer_foreign_layer(scene, qtbot):
    viewer, image, panel, hand = scene
    viewer.add_image(
        np.zeros((90, 30, 30)),
        scale=(0.7, 2.0, 2.0),
        translate=image.translate,
        units=image.units,
        axis_labels=image.axis_labels,
        visible=False,
    )
    viewer.dims.order = (1, 2, 0)
    panel.image.choice.setCurrentIndex(0)
    panel._chooser.choose(image)
    pump()
    use(panel, Tool.CLICK)
    hand.click(image, (9, 22, 31))
    wait_for(qtbot, lambda: masked(panel))
    found = indices(panel, prompts(panel).clicks[0].point)
    np.testing.assert_allclose(found, (9, 22, 31), atol=0.5)


def test_click_lands_right_beside_a_layer_in_micrometres(scene, qtbot):
    viewer, image, panel, hand = scene
    viewer.add_image(
        np.zeros((9, 9, 9)),
        scale=(8000.0,) * 3,
        translate=(-40000.0, -30000.0, -20000.0),
        units=("um",) * 3,
        name="micro",
        visible=False,
    )
    panel._chooser.choose(image)
    viewer.reset_view()
    pump()
    assert [str(u) for u in viewer.dims.units] == ["micrometer"] * 3
    use(panel, Tool.CLICK)
    hand.click(image, (9, 22, 31))
    wait_for(qtbot, lambda: masked(panel))
    found = indices(panel, prompts(panel).clicks[0].point)
    np.testing.assert_allclose(found, (9, 22, 31), atol=0.5)
    viewer.dims.set_point(0, 0)
    panel.objects.jump.click()
    assert panel.controller.layers.visible_slice(0) == 9


def test_click_in_3d_display_sets_nothing_and_says_why(scene):
    viewer, _, panel, hand = scene
    use(panel, Tool.CLICK)
    show_3d(viewer)
    pump()
    from qtpy.QtCore import QPoint
    from qtpy.QtTest import QTest

    middle = QPoint(hand.native.width() // 2, hand.native.height() // 2)
    QTest.mouseClick(hand.native, Qt.MouseButton.LeftButton, pos=middle)
    pump()
    assert panel.session.active is None
    assert panel.run.status.text() == NO_DEPTH


def test_click_beside_the_image_sets_nothing_and_says_so(scene):
    _, image, panel, hand = scene
    use(panel, Tool.CLICK)
    hand.click(image, (7, -6, 20))
    pump()
    assert panel.session.active is None or prompts(panel).is_empty
    assert "outside the volume" in panel.run.status.text()


def test_dragging_with_the_click_tool_pans_and_sets_nothing(scene):
    _, image, panel, hand = scene
    use(panel, Tool.CLICK)
    before = hand.centre()
    hand.drag(image, (7, 20, 20), (7, 40, 35))
    pump()
    assert panel.session.active is None
    assert np.abs(hand.centre() - before).max() > 1


def test_2d_image_is_segmented_too(viewer, make_panel, qtbot):
    from panel_hands import Hand

    image = viewer.add_image(np.zeros((60, 50)), scale=(0.5, 0.5), units=("mm", "mm"))
    panel = make_panel(viewer)
    use(panel, Tool.CLICK)
    Hand(viewer).click(image, (30, 20))
    wait_for(qtbot, lambda: masked(panel))
    assert panel.session.labels[0, 30, 20] == 1
    assert panel.sessions.labels_of(panel.session).ndim == 2


# -- tools ---------------------------------------------------------------------------------


def test_six_extreme_points_make_a_mask_and_the_guidance_leads(scene, qtbot):
    _, image, panel, hand = scene
    use(panel, Tool.EXTREME)
    for number, index in enumerate(EXTREMES):
        assert f"point {number + 1} of 6" in panel.prompts.guide.text()
        assert not masked(panel)
        hand.click(image, index)
        pump()
    wait_for(qtbot, lambda: masked(panel))
    assert "All six" in panel.prompts.guide.text()
    assert list(panel.controller.layers.points.features["label"]) == list("SIAPRL")
    hand.click(image, (12, 20, 20))
    pump()
    assert len(prompts(panel).extreme_points) == 6
    assert "All six extreme points are set" in panel.run.status.text()


def test_fewer_extreme_points_run_on_enter(scene, qtbot):
    _, image, panel, hand = scene
    use(panel, Tool.EXTREME)
    for index in EXTREMES[:4]:
        hand.click(image, index)
    pump()
    assert not masked(panel)
    hand.key(Qt.Key.Key_Return)
    wait_for(qtbot, lambda: masked(panel))


def test_shift_and_the_sign_key_make_negative_clicks(scene, qtbot):
    _, image, panel, hand = scene
    use(panel, Tool.CLICK)
    hand.click(image, (12, 30, 25))
    wait_for(qtbot, lambda: masked(panel))
    hand.click(image, (12, 30, 30), SHIFT)
    wait_for(qtbot, lambda: panel.session.labels[12, 30, 30] == 0)
    hand.key(Qt.Key.Key_X)
    pump()
    assert panel.prompts.outside.isChecked()
    hand.click(image, (12, 36, 25))
    wait_for(qtbot, lambda: panel.session.labels[12, 36, 25] == 0)
    assert [c.positive for c in prompts(panel).clicks] == [True, False, False]
    assert panel.session.labels[12, 27, 21] == 1


def test_box_by_two_corners_on_two_slices(scene, qtbot):
    _, image, panel, hand = scene
    use(panel, Tool.BOX)
    hand.click(image, (5, 12, 10))
    pump()
    assert "opposite corner" in panel.prompts.guide.text()
    hand.click(image, (18, 44, 38))
    wait_for(qtbot, lambda: masked(panel))
    box = prompts(panel).boxes[0].to_box(panel.session.volume.geometry)
    np.testing.assert_allclose(box.start, (5, 12, 10), atol=1)
    np.testing.assert_allclose(box.stop, (19, 45, 39), atol=1)


def test_box_by_dragging_waits_for_its_depth(scene, qtbot):
    _, image, panel, hand = scene
    use(panel, Tool.BOX)
    hand.drag(image, (8, 12, 10), (8, 44, 38))
    pump()
    assert "one slice deep" in panel.run.status.text()
    assert not masked(panel)
    hand.click(image, (15, 30, 20))
    wait_for(qtbot, lambda: masked(panel))
    box = prompts(panel).boxes[0].to_box(panel.session.volume.geometry)
    assert (box.start[0], box.stop[0]) == (8, 16)
    assert box.shape[1] > 28


def test_escape_gives_up_the_first_corner_then_the_tool(scene):
    _, image, panel, hand = scene
    use(panel, Tool.BOX)
    hand.click(image, (5, 12, 10))
    hand.key(Qt.Key.Key_Escape)
    pump()
    assert panel.controller.state.corner is None
    assert panel.controller.tool is Tool.BOX
    hand.key(Qt.Key.Key_Escape)
    pump()
    assert panel.controller.tool is None
    assert not any(made.isChecked() for made in panel.prompts.tools.values())


def test_scribble_is_painted_along_the_mouse(scene, qtbot):
    _, image, panel, hand = scene
    use(panel, Tool.SCRIBBLE)
    centre = hand.centre()
    hand.drag(image, (10, 20, 12), (10, 20, 36))
    wait_for(qtbot, lambda: masked(panel))
    voxels = np.rint(indices(panel, prompts(panel).scribbles[0].points)).astype(int)
    assert set(voxels[:, 0]) == {10}
    for x in range(13, 36):
        assert [10, 20, x] in voxels.tolist()
    np.testing.assert_allclose(hand.centre(), centre)


def test_mask_of_a_labels_layer_is_a_prompt(scene, qtbot):
    viewer, image, panel, _ = scene
    labels = np.zeros(image.data.shape, dtype=int)
    labels[6:12, 10:30, 10:25] = 7
    other = viewer.add_labels(
        labels, scale=image.scale, translate=image.translate, units=image.units
    )
    other.selected_label = 7
    panel.prompts.mask.click()
    wait_for(qtbot, lambda: masked(panel))
    assert prompts(panel).mask.patch == MaskPatch.of(labels == 7)
    other.selected_label = 3
    panel.prompts.mask.click()
    assert "no voxel" in panel.run.status.text()


def test_engine_decides_which_tools_are_offered(scene):
    _, _, panel, _ = scene
    panel.engine.choice.setCurrentIndex(1)
    panel.engine.choice.activated.emit(1)
    pump()
    assert panel.session.choice.engine == "clicks"
    offered = {tool for tool, made in panel.prompts.tools.items() if made.isEnabled()}
    assert offered == {Tool.CLICK}
    assert not panel.prompts.mask.isEnabled()


# -- keys ----------------------------------------------------------------------------------


def test_keys_switch_tools_and_are_gone_when_the_tool_is_off(scene):
    viewer, image, panel, hand = scene
    before = set(viewer.keymap)
    use(panel, Tool.CLICK)
    points = panel.controller.layers.points
    hand.key(Qt.Key.Key_E)
    pump()
    assert panel.controller.tool is Tool.EXTREME
    hand.key(Qt.Key.Key_B)
    pump()
    assert panel.prompts.tools[Tool.BOX].isChecked()
    panel.controller.choose_tool(None)
    assert not points.keymap
    assert not points.mouse_drag_callbacks
    assert set(viewer.keymap) == before
    assert not image.keymap
    hand.key(Qt.Key.Key_E)
    assert panel.controller.tool is None


def test_choosing_another_layer_switches_the_tool_off(scene):
    viewer, image, panel, hand = scene
    use(panel, Tool.CLICK)
    viewer.layers.selection.active = image
    pump()
    assert panel.controller.tool is None
    hand.click(image, (7, 30, 25))
    pump()
    assert panel.session.active is None


def test_napari_tool_on_our_layer_switches_ours_off(scene):
    _, _, panel, _ = scene
    use(panel, Tool.CLICK)
    panel.controller.layers.points.mode = "select"
    pump()
    assert panel.controller.tool is None


def test_undo_and_redo_bring_prompts_and_mask_back_together(scene, qtbot):
    _, image, panel, hand = scene
    use(panel, Tool.CLICK)
    hand.click(image, (12, 30, 25))
    wait_for(qtbot, lambda: masked(panel) and idle(panel))
    one = panel.session.labels.copy()
    hand.click(image, (12, 30, 36))
    wait_for(qtbot, lambda: (panel.session.labels != one).any())
    two = panel.session.labels.copy()
    hand.key(Qt.Key.Key_Z, CONTROL)
    pump()
    np.testing.assert_array_equal(panel.session.labels, one)
    assert len(prompts(panel).clicks) == 1
    assert len(panel.controller.layers.points.data) == 1
    hand.key(Qt.Key.Key_Z, CONTROL | SHIFT)
    pump()
    np.testing.assert_array_equal(panel.session.labels, two)
    assert len(panel.controller.layers.points.data) == 2


# -- objects -------------------------------------------------------------------------------


def test_accept_locks_and_the_next_object_takes_nothing_of_it(scene, qtbot):
    _, image, panel, hand = scene
    use(panel, Tool.CLICK)
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel))
    first = panel.session.labels == 1
    hand.key(Qt.Key.Key_N)
    pump()
    assert panel.session.objects[0].locked
    assert panel.session.active_id == 2
    panel.engine.overlap.setCurrentIndex(1)
    panel.engine.overlap.activated.emit(1)
    hand.click(image, (12, 30, 27))
    wait_for(qtbot, lambda: (panel.session.labels == 2).any())
    np.testing.assert_array_equal(panel.session.labels == 1, first)


def test_table_shows_renames_locks_and_activates(scene, qtbot):
    _, image, panel, hand = scene
    use(panel, Tool.CLICK)
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel))
    panel.objects.new.click()
    pump()
    table = panel.objects.table
    assert table.rowCount() == 2
    assert float(table.item(0, 2).text()) == pytest.approx(panel.session.volume_ml(1), rel=0.01)
    table.item(0, 1).setText("spleen")
    table.item(0, 5).setCheckState(Qt.CheckState.Checked)
    table.item(0, 4).setCheckState(Qt.CheckState.Unchecked)
    pump()
    found = panel.session.get(1)
    assert (found.name, found.locked, found.visible) == ("spleen", True, False)
    table.selectRow(0)
    pump()
    assert panel.session.active_id == 1
    assert len(panel.controller.layers.points.data) == 1
    hand.click(image, (12, 30, 22))
    pump()
    assert "spleen is locked" in panel.run.status.text()
    table.item(0, 1).setText(" ")
    pump()
    assert table.item(0, 1).text() == "spleen"


def test_delete_is_undone(scene, qtbot):
    _, image, panel, hand = scene
    use(panel, Tool.CLICK)
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel))
    kept = panel.session.labels.copy()
    panel.objects.delete.click()
    pump()
    assert not panel.session.labels.any()
    panel.run.undo.click()
    pump()
    np.testing.assert_array_equal(panel.session.labels, kept)


def test_go_to_shows_the_middle_of_the_object(scene, qtbot):
    viewer, image, panel, hand = scene
    use(panel, Tool.CLICK)
    hand.click(image, (17, 30, 22))
    wait_for(qtbot, lambda: masked(panel))
    viewer.dims.set_current_step(0, 2)
    panel.objects.jump.click()
    pump()
    assert viewer.dims.current_step[0] == 17


# -- napari's own tools on our layers ------------------------------------------------------


def test_point_moved_and_deleted_in_its_layer_is_one_step_each(scene, qtbot):
    _, image, panel, hand = scene
    use(panel, Tool.CLICK)
    hand.click(image, (12, 30, 22))
    hand.click(image, (12, 30, 30))
    wait_for(qtbot, lambda: masked(panel) and idle(panel))
    steps = len(panel.session.history.past)
    layer = panel.controller.layers.points
    moved = layer.data.copy()
    moved[1] += (0, 4, 0)
    layer.data = moved
    wait_for(qtbot, lambda: idle(panel))
    assert len(panel.session.history.past) == steps + 1
    np.testing.assert_allclose(indices(panel, prompts(panel).clicks[1].point), moved[1], atol=1e-6)
    layer.selected_data = {0}
    layer.remove_selected()
    wait_for(qtbot, lambda: idle(panel))
    assert len(panel.session.history.past) == steps + 2
    assert len(prompts(panel).clicks) == 1
    panel.run.undo.click()
    pump()
    assert len(layer.data) == 2


def test_point_moved_off_the_image_is_put_back(scene, qtbot):
    _, image, panel, hand = scene
    use(panel, Tool.CLICK)
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel))
    layer = panel.controller.layers.points
    before = layer.data.copy()
    layer.data = before + np.array((0, 500, 0))
    pump()
    np.testing.assert_array_equal(layer.data, before)
    assert "outside the volume" in panel.run.status.text()


def test_box_outline_follows_the_slice_and_the_plane(scene, qtbot):
    viewer, image, panel, hand = scene
    use(panel, Tool.BOX)
    hand.click(image, (5, 12, 10))
    hand.click(image, (18, 44, 38))
    wait_for(qtbot, lambda: masked(panel))
    shapes = panel.controller.layers.shapes
    viewer.dims.set_current_step(0, 9)
    assert len(shapes.data) == 1
    np.testing.assert_allclose(shapes.data[0][:, 0], 9)
    viewer.dims.set_current_step(0, 2)
    assert not len(shapes.data)
    show_plane(viewer, "sagittal")
    viewer.dims.set_current_step(2, 20)
    np.testing.assert_allclose(shapes.data[0][:, 2], 20)
    show_3d(viewer)
    assert len(shapes.data) == 12


# -- notes ---------------------------------------------------------------------------------


def test_tilted_and_2d_images_are_said_to_be_so(viewer, make_panel):
    from dataclasses import replace

    from napari_openmedlab.geometry.volume import Geometry

    volume = phantom()
    turn = np.eye(4)
    angle = np.deg2rad(12)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    geometry = Geometry(volume.geometry.shape, turn @ volume.geometry.affine)
    add_volume(viewer, replace(volume, geometry=geometry, notes=("Two slices are missing.",)))
    panel = make_panel(viewer)
    assert "tilted by 12°" in panel.image.note.text()
    assert "Two slices are missing." in panel.image.note.text()


@pytest.mark.parametrize(
    ("shape", "rgb", "word"), [((4, 8, 9, 3), True, "RGB"), ((2, 5, 8, 9), False, "4 axes")]
)
def test_image_that_cannot_be_used_gives_a_sentence(viewer, make_panel, shape, rgb, word):
    viewer.add_image(np.zeros(shape, dtype=np.uint8), rgb=rgb)
    panel = make_panel(viewer)
    assert word in panel.run.status.text()
    assert not panel.prompts.isEnabled()


def test_every_input_and_button_explains_itself(scene):
    from qtpy.QtWidgets import QAbstractButton, QAbstractSpinBox, QComboBox

    _, _, panel, _ = scene
    for kind in (QAbstractButton, QComboBox, QAbstractSpinBox):
        for made in panel.findChildren(kind):
            if made.objectName().startswith("qt_") or not made.parent().isEnabled():
                continue
            named = type(made).__name__ not in ("QTableCornerButton", "QAbstractButton")
            assert made.toolTip() or not named or made.parent().toolTip(), made.objectName()
