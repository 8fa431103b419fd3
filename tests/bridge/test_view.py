"""Orientation on screen, letters and clicks."""

from __future__ import annotations

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Layer

from napari_openmedlab.bridge.layers import volume_to_layer_data
from napari_openmedlab.bridge.positions import jump_to, point_at
from napari_openmedlab.bridge.view import (
    AnatomicalLetters,
    direction_letters,
    show_3d,
    show_plane,
)
from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.volume import Geometry, Volume

LETTERS = {
    "axial": {"left": "R", "right": "L", "top": "A", "bottom": "P"},
    "coronal": {"left": "R", "right": "L", "top": "S", "bottom": "I"},
    "sagittal": {"left": "A", "right": "P", "top": "S", "bottom": "I"},
}

MARKED = (11, 17, 23)  # the slices through this voxel cut all the markers they should


def add(viewer, volume):
    return viewer.add_layer(Layer.create(*volume_to_layer_data(volume)))


@pytest.fixture
def model(marked_volume):
    viewer = ViewerModel()
    add(viewer, marked_volume)
    return viewer


@pytest.mark.parametrize("plane", LETTERS)
def test_letters_are_right_in_each_plane(model, plane):
    letters = AnatomicalLetters(model)
    show_plane(model, plane)
    assert letters.letters == LETTERS[plane]
    shown = {e: model.canvas.overlays[f"openmedlab_{e}"].text for e in LETTERS[plane]}
    assert shown == LETTERS[plane]


def test_letters_follow_a_turned_camera_and_naparis_transposed_view(model):
    letters = AnatomicalLetters(model)
    model.scene.camera.orientation2d = ("up", "left")
    assert letters.letters == {"left": "L", "right": "R", "top": "P", "bottom": "A"}
    model.scene.camera.orientation2d = ("down", "right")
    model.dims.order = (1, 2, 0)
    assert letters.letters == {"left": "S", "right": "I", "top": "R", "bottom": "L"}


def test_letters_follow_the_camera_in_3d(model):
    letters = AnatomicalLetters(model)
    show_3d(model)
    assert letters.letters == LETTERS["coronal"]
    model.scene.camera.set_view_direction((0, -1, 0), (-1, 0, 0))  # from behind
    assert letters.letters == {"left": "L", "right": "R", "top": "S", "bottom": "I"}
    model.scene.camera.set_view_direction((0, 0, 1), (-1, 0, 0))  # from the patient's right
    assert letters.letters == {"left": "P", "right": "A", "top": "S", "bottom": "I"}


def test_only_a_visible_patient_image_has_letters(model):
    letters = AnatomicalLetters(model)
    model.layers[0].visible = False
    assert letters.letters == {}
    assert not model.canvas.overlays["openmedlab_left"].visible
    model.add_layer(Image(np.zeros((3, 4, 5))))
    assert letters.letters == {}
    model.layers[0].visible = True
    assert letters.letters == LETTERS["axial"]
    model.layers[0].rotate = (0, 0, 90)
    assert letters.letters == {}


def test_closed_letters_leave_nothing_behind(model):
    letters = AnatomicalLetters(model)
    letters.close()
    assert not [key for key in model.canvas.overlays if key.startswith("openmedlab")]
    model.dims.order = (1, 0, 2)
    assert letters.letters == {}


@pytest.mark.parametrize(
    ("direction", "text"),
    [((1, 0, 0), "L"), ((0, -1, 0.4), "A"), ((0, -1, 0.7), "AS"), ((-0.6, 0, -1), "IR")],
)
def test_oblique_directions_take_the_nearest_axis_and_name_a_second_from_30_degrees(
    direction, text
):
    assert direction_letters(direction) == text


def test_a_2d_image_says_that_it_has_one_view():
    viewer = ViewerModel()
    viewer.add_layer(Image(np.zeros((4, 5))))
    for command in (lambda: show_plane(viewer, "coronal"), lambda: show_3d(viewer)):
        with pytest.raises(GeometryError, match="open a 3D scan"):
            command()


@pytest.mark.parametrize("plane", LETTERS)
def test_jumping_brings_the_slice_and_the_middle_of_the_view(model, marked_volume, plane):
    show_plane(model, plane)
    layer = model.layers[0]
    jump_to(model, layer, (5, 9, 30))
    np.testing.assert_allclose(layer.world_to_data(model.dims.point), (5, 9, 30), atol=0.51)
    shown = list(model.dims.displayed)
    wanted = np.array(layer.data_to_world((5, 9, 30)))[shown]
    np.testing.assert_allclose(np.array(model.scene.camera.center)[-2:], wanted)


# -- on a real canvas --------------------------------------------------------------------------


@pytest.fixture
def window(make_napari_viewer, marked_volume):
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(900, 700)
    add(viewer, marked_volume)
    return viewer


def centre_of(picture, low, high):
    """Return (row, column) of the middle of the pixels between two grey values."""
    grey = picture[..., 0].astype(float)
    rows, columns = np.nonzero((grey >= low) & (grey <= high))
    assert rows.size > 30
    return rows.mean(), columns.mean()


@pytest.mark.gui
@pytest.mark.parametrize("plane", [*LETTERS, "3d"])
def test_markers_lie_where_a_radiologist_expects_them(window, qtbot, plane):
    layer = window.layers[0]
    layer.contrast_limits = (0, 102)
    layer.interpolation3d = "nearest"
    if plane == "3d":
        show_3d(window)
    else:
        show_plane(window, plane)
        jump_to(window, layer, MARKED)
        window.reset_view()
    qtbot.wait(100)
    picture = window.screenshot(canvas_only=True, flash=False)
    body = centre_of(picture, 65, 90)  # 30 of 102
    if plane != "sagittal":
        left = centre_of(picture, 215, 232)  # 90 of 102
        assert left[1] > body[1] + 20, "the patient's left is on the right of the screen"
    if plane != "axial":
        superior = centre_of(picture, 245, 252)  # 100 of 102
        assert superior[0] < body[0] - 20, "the head is up"
    if plane == "axial":
        anterior = centre_of(picture, 195, 205)  # 80 of 102
        assert anterior[0] < body[0] - 20, "anterior is up"
    if plane == "sagittal":
        anterior = centre_of(picture, 195, 205)
        assert anterior[1] < body[1] - 20, "anterior is on the left"


@pytest.mark.gui
def test_letters_show_on_the_canvas_and_in_screenshots(window, qtbot):
    window.layers[0].opacity = 0
    qtbot.wait(50)
    before = window.screenshot(canvas_only=True, flash=False).astype(int)
    letters = AnatomicalLetters(window)
    qtbot.wait(100)
    after = window.screenshot(canvas_only=True, flash=False).astype(int)
    changed = np.abs(after - before).sum(axis=-1) > 30
    height, width = changed.shape
    assert changed[:, : width // 6].any()
    assert changed[:, -width // 6 :].any()
    assert changed[: height // 6].any()
    assert changed[-height // 6 :].any()
    letters.close()


@pytest.mark.gui
@pytest.mark.parametrize("plane", LETTERS)
def test_a_click_names_its_lps_point_to_half_a_screen_pixel(window, qtbot, marked_volume, plane):
    from qtpy.QtCore import QPoint, Qt
    from qtpy.QtTest import QTest

    layer, geometry = window.layers[0], marked_volume.geometry
    show_plane(window, plane)
    index = np.array((9.0, 14.0, 31.0))
    jump_to(window, layer, index)
    window.reset_view()
    qtbot.wait(100)
    clicked = []
    layer.mouse_drag_callbacks.append(lambda _layer, event: clicked.append(event.position))
    camera, size = window.scene.camera, np.array(window.canvas.size)
    shown = list(window.dims.displayed)
    world = np.array(layer.data_to_world(index))
    offset = (world[shown] - np.array(camera.center)[-2:]) * camera.zoom + size / 2
    native = window.window._qt_viewer.canvas.native
    where = QPoint(round(offset[1]), round(offset[0]))
    QTest.mouseMove(native, where)
    qtbot.wait(20)
    QTest.mouseClick(native, Qt.MouseButton.LeftButton, pos=where)
    point = point_at(layer, geometry, clicked[0])
    gap = np.abs(point - geometry.to_world(index))
    assert gap.max() <= 0.5 / camera.zoom + 1e-3
    del native


@pytest.mark.gui
def test_a_refresh_after_an_engines_answer_is_quick_on_a_large_scan(make_napari_viewer):
    import time

    from napari_openmedlab.bridge.preferences import Preferences
    from napari_openmedlab.bridge.sessions import ViewerSessions
    from napari_openmedlab.geometry.boxes import Box

    viewer = make_napari_viewer()
    geometry = Geometry(
        (300, 512, 512), [[0, 0, 0.8, 0], [0, 0.8, 0, 0], [-1.5, 0, 0, 0], [0, 0, 0, 1]]
    )
    array = np.zeros(geometry.shape, dtype=np.uint8)
    sessions = ViewerSessions(viewer, Preferences(autosave=False))
    session = sessions.open(add(viewer, Volume(array, geometry)))
    session.add_object()
    box = Box((100, 100, 100), (200, 300, 300))
    times = []
    for value in (1, 0, 1):
        session.labels[box.slices] = value
        start = time.perf_counter()
        session.labels_changed.emit(box)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05
    sessions.close()
