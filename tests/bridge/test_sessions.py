"""Sessions, their labels layers, and what users do to layers."""

from __future__ import annotations

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Layer

from napari_openmedlab.bridge.layers import volume_to_layer_data
from napari_openmedlab.bridge.preferences import Preferences
from napari_openmedlab.bridge.sessions import ViewerSessions
from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import LabelPatch


@pytest.fixture
def viewer():
    return ViewerModel()


@pytest.fixture
def sessions(viewer):
    made = ViewerSessions(viewer, Preferences(autosave=False))
    yield made
    made.close()


@pytest.fixture
def image(viewer, marked_volume):
    return viewer.add_layer(Layer.create(*volume_to_layer_data(marked_volume)))


@pytest.fixture
def session(sessions, image):
    opened = sessions.open(image)
    opened.add_object("liver")
    return opened


def paint(session, box, value):
    before = session.labels[box.slices].copy()
    session.labels[box.slices] = value
    session.apply_edit(LabelPatch(box, before, session.labels[box.slices].copy()))


BLOCK = Box((4, 8, 8), (8, 14, 16))


def test_the_labels_layer_shares_the_sessions_array(sessions, session):
    layer = sessions.labels_of(session)
    assert layer.data is session.labels
    paint(session, BLOCK, 1)
    assert int(layer.data.sum()) == BLOCK.size


def test_adding_the_labels_layer_keeps_the_users_selection(viewer, sessions, image):
    other = viewer.add_layer(Image(np.zeros((3, 3, 3))))
    sessions.open(image)
    assert viewer.layers.selection.active is other


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_brush_stroke_is_one_step_and_undo_restores_it(viewer, sessions, ndim):
    image = viewer.add_layer(Image(np.zeros((6, 30, 40)[-ndim:])))
    session = sessions.open(image)
    session.add_object()
    layer = sessions.labels_of(session)
    steps = len(session.history.past)
    with layer.block_history():
        for x in range(10, 20):
            layer.paint((2, 15, x)[-ndim:], 1)
    painted = session.labels.copy()
    assert painted.any()
    assert len(session.history.past) == steps + 1
    assert session.objects[0].voxels == np.count_nonzero(painted)
    session.undo()
    assert not session.labels.any()
    assert not layer.data.any()
    session.redo()
    np.testing.assert_array_equal(session.labels, painted)


def test_fill_and_single_voxels_are_steps_too_though_announced_before_they_are_written(
    sessions, session
):
    layer = sessions.labels_of(session)
    paint(session, BLOCK, 1)
    steps = len(session.history.past)
    layer.fill((5, 9, 9), 7)
    assert len(session.history.past) == steps + 1
    assert session.get(7).voxels == BLOCK.size // BLOCK.shape[0]
    layer.data_setitem((np.array([0]), np.array([1]), np.array([2])), 1)
    assert len(session.history.past) == steps + 2
    session.undo()
    assert session.labels[0, 1, 2] == 0


def test_naparis_own_undo_cannot_write_old_values_back(sessions, session):
    layer = sessions.labels_of(session)
    layer.paint((5, 10, 10), 1)
    painted = session.labels.copy()
    layer.undo()
    np.testing.assert_array_equal(session.labels, painted)


@pytest.mark.parametrize("how", ["paint", "fill"])
def test_locked_objects_are_not_painted_over_and_the_user_is_told(sessions, session, how):
    said = []
    sessions.notice.connect(said.append)
    layer = sessions.labels_of(session)
    paint(session, BLOCK, 1)
    session.update_object(1, locked=True)
    session.add_object("other")
    if how == "paint":
        layer.paint((5, 10, 10), 2)
    else:
        layer.fill((5, 10, 10), 2)
    assert np.count_nonzero(session.labels == 1) == BLOCK.size
    assert "Locked" in said[0]


def test_an_array_assigned_to_the_layer_becomes_a_step(sessions, session):
    layer = sessions.labels_of(session)
    given = np.zeros(session.labels.shape, dtype=np.int64)
    given[2:5, 3:6, 4:7] = 1
    layer.data = given
    assert layer.data is session.labels
    assert session.get(1).voxels == 27
    session.undo()
    assert not session.labels.any()


@pytest.mark.parametrize(
    ("given", "words"),
    [(np.zeros((2, 3, 4), int), "shape"), (np.full((22, 34, 46), -3), "0 and 65535")],
)
def test_an_array_that_can_not_be_its_labels_is_refused(sessions, session, given, words):
    said = []
    sessions.notice.connect(said.append)
    paint(session, BLOCK, 1)
    layer = sessions.labels_of(session)
    layer.data = given
    assert layer.data is session.labels
    assert session.get(1).voxels == BLOCK.size
    assert words in said[0]


def test_recolouring_and_hiding_reach_the_layer(sessions, session):
    layer = sessions.labels_of(session)
    session.update_object(1, colour=(0, 0, 1))
    np.testing.assert_allclose(layer.get_color(1), (0, 0, 1, 1), atol=1e-6)
    session.update_object(1, visible=False)
    assert layer.get_color(1)[3] == 0
    session.update_object(1, name="spleen")
    assert list(layer.features["name"]) == ["background", "spleen"]


def test_the_label_picked_in_napari_becomes_the_active_object_and_back(sessions, session):
    layer = sessions.labels_of(session)
    session.add_object("second")
    assert layer.selected_label == 2
    layer.selected_label = 1
    assert session.active_id == 1


def test_a_renamed_layer_stays_bound(sessions, session, image):
    sessions.labels_of(session).name = "mine"
    image.name = "patient 1"
    paint(session, BLOCK, 1)
    assert sessions.session_of(image) is session
    assert sessions.labels_of(session).name == "mine"


def test_a_deleted_labels_layer_loses_nothing_and_comes_back(viewer, sessions, session):
    paint(session, BLOCK, 1)
    gone = sessions.labels_of(session)
    viewer.layers.remove(gone)
    assert session.get(1).voxels == BLOCK.size
    again = sessions.labels_of(session)
    assert again is not gone
    assert again in viewer.layers
    assert again.data is session.labels


def test_a_change_of_the_labels_brings_a_deleted_layer_back(viewer, sessions, session):
    paint(session, BLOCK, 1)
    viewer.layers.remove(sessions.labels_of(session))
    session.undo()
    assert [layer.name for layer in viewer.layers] == ["phantom", "phantom objects"]


def test_a_deleted_image_keeps_session_and_labels(viewer, sessions, session, image):
    told = []
    sessions.image_removed.connect(told.append)
    paint(session, BLOCK, 1)
    viewer.layers.remove(image)
    assert told == [session]
    assert sessions.labels_of(session) in viewer.layers
    viewer.add_layer(image)
    assert sessions.open(image) is session


def test_an_image_replaced_mid_session_is_noticed_and_the_objects_go_on(
    viewer, sessions, session, image
):
    told = []
    sessions.image_changed.connect(told.append)
    paint(session, BLOCK, 1)
    session.update_object(1, colour=(0, 1, 0), locked=True)
    image.data = image.data + 1
    assert told == [session]
    assert sessions.session_of(image) is None
    successor = sessions.open(image)
    assert successor is not session
    assert successor.volume.array is image.data
    assert successor.get(1).name == "liver"
    assert successor.get(1).locked
    assert successor.get(1).voxels == BLOCK.size
    assert len([layer for layer in viewer.layers if "objects" in layer.name]) == 1


def test_a_new_voxel_size_starts_a_session_on_the_new_grid(sessions, session, image):
    paint(session, BLOCK, 1)
    image.scale = (1, 1, 1)
    successor = sessions.open(image)
    assert successor.volume.geometry.spacing == (1, 1, 1)
    assert successor.get(1).voxels == BLOCK.size
    np.testing.assert_array_equal(sessions.labels_of(successor).scale, (1, 1, 1))


def test_an_image_of_another_shape_keeps_the_old_labels_in_view(viewer, sessions, session, image):
    paint(session, BLOCK, 1)
    old = sessions.labels_of(session)
    image.data = np.zeros((5, 6, 7))
    successor = sessions.open(image)
    assert not successor.objects
    assert old in viewer.layers
    assert int(old.data.sum()) == BLOCK.size


def test_two_images_have_two_sessions(viewer, sessions, session):
    other = viewer.add_layer(Image(np.zeros((4, 5, 6))))
    second = sessions.open(other)
    assert second is not session
    second.add_object("axon")
    assert [o.name for o in session.objects] == ["liver"]
    assert sessions.session_of(sessions.labels_of(second)) is second


def test_two_viewers_share_nothing(sessions, session, marked_volume):
    other = ViewerModel()
    layer = other.add_layer(Layer.create(*volume_to_layer_data(marked_volume)))
    theirs = ViewerSessions(other, Preferences(autosave=False))
    second = theirs.open(layer)
    paint(session, BLOCK, 1)
    assert second.labels is not session.labels
    assert not second.labels.any()
    theirs.close()


def test_a_session_of_another_grid_is_not_adopted(viewer, sessions, session):
    other = viewer.add_layer(Image(np.zeros((4, 5, 6))))
    with pytest.raises(GeometryError, match="differs from 'Image' in shape"):
        sessions.adopt(other, session)


def test_the_users_image_is_never_changed(sessions, session, image, marked_volume):
    before = (image.data.copy(), image.scale.copy(), image.translate.copy(), dict(image.metadata))
    paint(session, BLOCK, 1)
    session.undo()
    np.testing.assert_array_equal(image.data, before[0])
    np.testing.assert_array_equal(image.scale, before[1])
    np.testing.assert_array_equal(image.translate, before[2])
    assert image.metadata == before[3]
    assert image.data is marked_volume.array


def test_preferences_reach_a_new_session(viewer, image):
    wanted = Preferences(autosave=False, overlap="overwrite", auto_run=False, undo_megabytes=32)
    own = ViewerSessions(viewer, wanted)
    session = own.open(image)
    assert session.overlap.value == "overwrite"
    assert not session.choice.auto_run
    assert session.history.budget == 32 * 2**20
    own.close()


def test_an_unknown_engine_in_the_preferences_is_said_and_replaced(viewer, image):
    own = ViewerSessions(viewer, Preferences(autosave=False, engine="nonsense"))
    said = []
    own.notice.connect(said.append)
    assert own.open(image).choice.engine == "built-in"
    assert "nonsense" in said[0]
    own.close()


def test_autosave_leaves_a_file_only_if_there_is_work(viewer, image, tmp_path, monkeypatch):
    monkeypatch.setattr("napari_openmedlab.session.autosave.default_folder", lambda: tmp_path)
    own = ViewerSessions(viewer, Preferences(autosave_delay=0.05))
    own.open(image)
    own.close()
    assert not list(tmp_path.iterdir())
    own = ViewerSessions(viewer, Preferences(autosave_delay=0.05))
    own.open(image).add_object("liver")
    own.close()
    assert [p.suffix for p in tmp_path.iterdir()] == [".omlsession"]
