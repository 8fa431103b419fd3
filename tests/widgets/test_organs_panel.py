"""The Organs panel in a real viewer: a small network that goes by brightness stands for a model."""

from __future__ import annotations

import csv
import json
import shutil
import threading

import numpy as np
import pytest
from organ_models import Stub, answer_with
from panel_hands import Hand, add_volume, phantom, pump, use_engine, wait_for
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog

from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.session import store
from napari_openmedlab.widgets.organ_results import NAME, VOLUME
from napari_openmedlab.widgets.tools import Tool

pytest.importorskip("torch", reason="STU-Net needs the extra 'models'")

from napari_openmedlab.models.engines.stu_net import plan as plan_module

pytestmark = pytest.mark.gui

NAMES = ["liver", "kidney_left", "kidney_right", "spleen"]
HU = {"liver": 100, "kidney_left": 220, "kidney_right": 340, "spleen": 460}
SHAPE = (20, 40, 44)
# In display order axis 2 runs to the patient's left.
BLOCKS = {
    "liver": (slice(4, 12), slice(8, 24), slice(4, 20)),
    "kidney_left": (slice(12, 18), slice(24, 34), slice(32, 40)),
    "kidney_right": (slice(12, 18), slice(24, 34), slice(4, 12)),
    "spleen": (slice(0, 8), slice(22, 34), slice(30, 42)),
}


def torso(blocks=BLOCKS, name="torso", modality="CT"):
    """A CT-like volume of 3 mm voxels: four blocks of their own brightness in soft tissue."""
    affine = np.zeros((4, 4))
    affine[0, 2], affine[1, 1], affine[2, 0], affine[3, 3] = 3, 3, -3, 1
    array = np.full(SHAPE, -20, dtype=np.int16)
    array[0, 0, :] = -1000
    for organ, where in blocks.items():
        array[where] = HU[organ]
    return Volume(array, Geometry(SHAPE, affine, frame="patient"), name=name, modality=modality)


@pytest.fixture
def network(stand_ins, monkeypatch):
    """A model of four structures in the store; each is where its brightness is."""
    stand_ins.add("stu-net-s", out_channels=5)
    monkeypatch.setattr(plan_module, "_PATCH", (16, 32, 32))
    values = torso().array.astype(float)
    centres = (np.array([-20, *HU.values()]) - values.mean()) / values.std()
    made = Stub(centres.tolist(), sharp=200.0)
    answer_with(monkeypatch, made)
    return made


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(NAMES))
    return path


def open_panel(viewer, names=None):
    _, panel = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Organs")
    pump()
    panel.models.choose("stu-net-s-out_channels5")
    if names is not None:
        panel.models.use_names(names)
    panel.model.grid.setCurrentIndex(1)  # 3 mm, as the phantom
    pump()
    return panel


@pytest.fixture
def scene(viewer, network, names):
    """A viewer with the torso and the Organs panel: (viewer, image layer, panel)."""
    image = add_volume(viewer, torso())
    return viewer, image, open_panel(viewer, names)


def finish(panel, qtbot):
    wait_for(qtbot, lambda: not panel.desk.busy and not panel._life.worker.busy, timeout=20000)


def measured(panel, qtbot, count):
    table = panel.results.table
    wait_for(qtbot, lambda: table.rowCount() == count, timeout=20000)
    return {table.item(row, NAME).toolTip(): row for row in range(count)}


def named(panel, qtbot):
    panel.go.run.click()
    finish(panel, qtbot)
    return {o.name: o for o in panel.session.objects}


def step_by_step(monkeypatch, gate):
    """Have every window wait until the gate is open."""
    features = Stub.features

    def waits(self, patches):
        gate.wait(10)
        return features(self, patches)

    monkeypatch.setattr(Stub, "features", waits)


# -- a run -----------------------------------------------------------------------------------


def test_structures_become_objects_with_names_colours_and_a_table(scene, qtbot):
    from napari_openmedlab.models.organs import colour_of

    viewer, _, panel = scene
    objects = named(panel, qtbot)
    assert set(objects) == set(NAMES)
    for name, where in BLOCKS.items():
        mask = panel.session.labels == objects[name].id
        assert mask[where].mean() > 0.95
        assert mask.sum() < 1.05 * mask[where].size
        assert objects[name].colour == colour_of(name)
        assert objects[name].engine == "stu-net"
    layer = panel.workplace.sessions.labels_of(panel.session)
    assert layer in viewer.layers
    assert layer.data is panel.session.labels
    rows = measured(panel, qtbot, 4)
    table = panel.results.table
    volume = float(table.item(rows["liver"], VOLUME).text())
    assert volume == pytest.approx(panel.session.volume_ml(objects["liver"].id), abs=0.6)
    assert table.item(rows["spleen"], 4).text() == "S"
    assert "superior" in table.item(rows["spleen"], 4).toolTip()
    assert table.columnViewportPosition(5) + table.columnWidth(5) <= table.viewport().width()
    assert "4 of 4" in panel.go.status.text()


def test_the_table_sorts_by_number_and_a_row_leads_to_its_object(scene, qtbot):
    viewer, image, panel = scene
    named(panel, qtbot)
    measured(panel, qtbot, 4)
    table = panel.results.table
    table.sortByColumn(VOLUME, Qt.SortOrder.DescendingOrder)
    volumes = [float(table.item(row, VOLUME).text()) for row in range(4)]
    assert volumes == sorted(volumes, reverse=True)
    row = next(r for r in range(4) if table.item(r, NAME).toolTip() == "kidney_left")
    table.selectRow(row)
    pump()
    assert panel.session.active.name == "kidney_left"
    index = image.world_to_data(viewer.dims.point)
    where = BLOCKS["kidney_left"][0]
    assert where.start <= index[0] < where.stop
    assert table.id_at(table.currentRow()) == panel.session.active_id


def test_left_and_right_in_the_wrong_place_are_flagged(viewer, network, names, qtbot):
    swapped = {**BLOCKS, "kidney_left": BLOCKS["kidney_right"]}
    swapped["kidney_right"] = BLOCKS["kidney_left"]
    add_volume(viewer, torso(swapped))
    panel = open_panel(viewer, names)
    named(panel, qtbot)
    rows = measured(panel, qtbot, 4)
    table = panel.results.table
    assert table.item(rows["kidney_left"], 5).text() == "check"
    assert table.item(rows["liver"], 5).text() == ""


def test_only_ticked_structures_in_the_part_that_the_view_shows(scene, qtbot):
    viewer, image, panel = scene
    tree = panel.structures.tree
    panel.structures.search.setText("kidney")
    assert set(tree.found()) == {"kidney_left", "kidney_right"}
    tree.choose(())
    panel.structures.all.click()
    panel.structures.search.setText("")
    assert tree.chosen() == ("kidney_left", "kidney_right")
    panel.scan.region.setCurrentIndex(1)
    viewer.scene.camera.zoom *= 6
    viewer.scene.camera.center = (0, *image.data_to_world((15, 29, 8))[1:])
    viewer.window._qt_viewer.canvas.on_draw(None)  # a hidden window is never drawn
    assert set(named(panel, qtbot)) == {"kidney_right"}


def test_a_group_ticks_its_members(scene):
    tree = scene[2].structures.tree
    urinary = next(
        item
        for item in tree.findItems(
            "Kidneys", Qt.MatchFlag.MatchContains | Qt.MatchFlag.MatchRecursive
        )
    )
    urinary.setCheckState(0, Qt.CheckState.Unchecked)
    assert tree.chosen() == ("liver", "spleen")
    pump()
    assert "2 of 4" in scene[2].structures.count.text()


# -- the session -----------------------------------------------------------------------------


def test_a_run_is_one_step_of_undo(scene, qtbot):
    _, _, panel = scene
    named(panel, qtbot)
    after = panel.session.labels.copy()
    panel.go.undo.click()
    assert not panel.session.labels.any()
    assert panel.session.objects == ()
    assert panel.session.redo()
    np.testing.assert_array_equal(panel.session.labels, after)
    assert len(panel.session.objects) == 4


def test_a_prompt_in_the_segment_panel_refines_an_organ(scene, qtbot):
    viewer, image, panel = scene
    liver = named(panel, qtbot)["liver"]
    _, segment = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Segment")
    pump()
    assert segment.session is panel.session
    use_engine(segment, "ball")
    panel.show_object(liver.id)
    segment.prompts.tools[Tool.CLICK].click()
    Hand(viewer).click(image, (6, 12, 24))
    wait_for(qtbot, lambda: panel.session.get(liver.id).engine == "ball")
    finish(panel, qtbot)
    refined = panel.session.get(liver.id)
    assert refined.voxels != liver.voxels
    table = panel.results.table
    wanted = panel.session.volume_ml(liver.id)

    def shown():  # the table fills anew when a measurement arrives
        for row in range(table.rowCount()):
            if (item := table.item(row, NAME)) is not None and item.toolTip() == "liver":
                return float(table.item(row, VOLUME).text())
        return None

    wait_for(qtbot, lambda: shown() == pytest.approx(wanted, abs=0.6))


def test_work_of_the_user_is_never_overwritten(scene, qtbot):
    _, _, panel = scene
    session = panel.session
    mine = session.add_object("mine")
    session.labels[5, 10, 6:10] = 0
    before = session.labels.copy()
    block = (slice(4, 6), slice(8, 12), slice(4, 8))
    session.labels[block] = mine.id
    from napari_openmedlab.bridge.painting import difference_patch

    painted = session.labels.copy()
    session.labels[...] = before
    patch = difference_patch(session.labels, painted)
    session.labels[patch.box.slices] = patch.after
    session.apply_edit(patch)
    session.update_object(mine.id, locked=True)
    objects = named(panel, qtbot)
    assert (session.labels[block] == mine.id).all()
    locked = objects["spleen"]
    session.update_object(locked.id, locked=True)
    held = session.labels == locked.id
    named(panel, qtbot)
    np.testing.assert_array_equal(session.labels == locked.id, held)
    assert "Left as you made them: spleen" in panel.go.status.text()
    assert len([o for o in session.objects if o.name == "liver"]) == 1


def test_organs_are_autosaved_and_come_back(scene, qtbot):
    _, _, panel = scene
    named(panel, qtbot)
    autosave = panel.workplace.sessions.autosave_of(panel.session)
    autosave.flush()
    back = store.load(autosave.path, panel.session.volume)
    np.testing.assert_array_equal(back.labels, panel.session.labels)
    assert [o.name for o in back.objects] == [o.name for o in panel.session.objects]


def test_the_table_is_saved_as_csv(scene, qtbot, tmp_path, monkeypatch):
    _, _, panel = scene
    named(panel, qtbot)
    measured(panel, qtbot, 4)
    target = tmp_path / "organs.csv"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(target), ""))
    panel.results.save.click()
    rows = {row["name"]: row for row in csv.DictReader(target.open())}
    assert set(rows) == set(NAMES)
    assert float(rows["liver"]["mean"]) == pytest.approx(100, abs=8)


def test_a_closed_segment_panel_leaves_the_session_to_the_organs_panel(scene, qtbot):
    viewer, _, panel = scene
    dock, _ = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Segment")
    pump()
    viewer.window.remove_dock_widget(dock)
    pump()
    assert set(named(panel, qtbot)) == set(NAMES)


# -- what goes wrong -------------------------------------------------------------------------


def test_cancel_stops_at_the_next_window_and_changes_nothing(scene, qtbot, monkeypatch):
    _, _, panel = scene
    gate = threading.Event()
    step_by_step(monkeypatch, gate)
    panel.go.run.click()
    wait_for(qtbot, lambda: panel.go.cancel.isEnabled())
    panel.go.cancel.click()
    gate.set()
    finish(panel, qtbot)
    assert not panel.session.labels.any()
    assert "Cancelled" in panel.go.status.text()
    assert panel.session.history.last is None


def test_the_window_answers_while_structures_are_named(scene, qtbot, monkeypatch):
    _, _, panel = scene
    gate = threading.Event()
    step_by_step(monkeypatch, gate)
    panel.go.run.click()
    wait_for(qtbot, lambda: panel.desk.busy)
    panel.structures.tree.choose(["liver"])  # for the next run
    pump(50)
    assert panel.desk.busy
    gate.set()
    finish(panel, qtbot)
    assert len(panel.session.objects) == 4


def test_a_viewer_closed_during_a_run_ends_cleanly(make_napari_viewer, network, names, qtbot):
    gate = threading.Event()
    made = make_napari_viewer()
    add_volume(made, torso())
    panel = open_panel(made, names)
    features = network.features
    network.features = lambda patches: (gate.wait(10), features(patches))[1]
    panel.go.run.click()
    wait_for(qtbot, lambda: panel.desk.busy)
    made.close()
    gate.set()  # conftest checks that the worker's thread ends
    pump(50)


def test_a_labels_layer_deleted_during_a_run_comes_back(scene, qtbot, monkeypatch):
    viewer, _, panel = scene
    gate = threading.Event()
    step_by_step(monkeypatch, gate)
    panel.go.run.click()
    wait_for(qtbot, lambda: panel.desk.busy)
    viewer.layers.remove(panel.workplace.sessions.labels_of(panel.session))
    gate.set()
    finish(panel, qtbot)
    assert panel.workplace.sessions.labels_of(panel.session) in viewer.layers
    assert panel.session.labels.any()


def test_an_image_deleted_during_a_run_stops_it(scene, qtbot, monkeypatch):
    viewer, image, panel = scene
    gate = threading.Event()
    step_by_step(monkeypatch, gate)
    session = panel.session
    panel.go.run.click()
    wait_for(qtbot, lambda: panel.desk.busy)
    viewer.layers.remove(image)
    gate.set()
    finish(panel, qtbot)
    assert not session.labels.any()


def test_without_weights_the_way_leads_to_the_models_panel(viewer, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "none"))
    add_volume(viewer, torso())
    _, panel = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Organs")
    pump()
    panel.go.run.click()
    pump()
    assert "no model" in panel.go.status.text()
    assert len(panel.structures.tree.names) == 104
    panel.model.get.click()
    pump()
    models = viewer.window.dock_widgets["Models (napari-openmedlab)"]
    assert models.list.table.row.spec.network.startswith("stu-net")


def test_a_run_that_waited_for_a_model_goes_on_when_it_is_there(
    viewer, network, stand_ins, tmp_path, monkeypatch, qtbot
):
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(folder))
    add_volume(viewer, torso())
    _, panel = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Organs")
    panel.go.run.click()
    pump()
    assert not panel.desk.busy
    for path in stand_ins.folder.glob("stu-net-s-out_channels5*"):
        shutil.copy(path, folder)
    wait_for(qtbot, lambda: bool(panel.session.objects), timeout=20000)
    assert panel.models.record.name == "stu-net-s-out_channels5"


def test_a_model_removed_meanwhile_is_missed_in_words(scene, qtbot, monkeypatch, tmp_path):
    _, _, panel = scene
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "gone"))
    panel.go.run.click()
    pump()
    assert not panel.desk.busy
    assert "not on this computer" in panel.go.status.text()


BAD = {
    "MR": lambda: torso(modality="MR"),
    "thin": lambda: phantom((3, 40, 44), (3.0, 3.0, 3.0), name="thin"),
    "small": lambda: phantom((4, 5, 6), (3.0, 3.0, 3.0), name="small"),
    "empty": lambda: Volume(np.zeros(SHAPE, np.int16), torso().geometry, name="empty"),
}


@pytest.mark.parametrize("kind", sorted(BAD))
def test_odd_scans_end_in_words(viewer, network, names, qtbot, kind):
    add_volume(viewer, BAD[kind]())
    panel = open_panel(viewer, names)
    panel.go.run.click()
    finish(panel, qtbot)
    said = f"{panel.go.status.text()} {panel.go.notes.text()}"
    wanted = {"MR": "does not look like a CT", "thin": "very thin", "empty": "every voxel is 0"}
    assert wanted.get(kind, "structures in") in said


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_image_without_voxel_size_is_refused_in_words(viewer, network, names, qtbot, ndim):
    viewer.add_image(torso().array if ndim == 3 else torso().array[6], name="plain")
    panel = open_panel(viewer, names)
    panel.go.run.click()
    finish(panel, qtbot)
    assert "voxel size" in panel.go.status.text()
    assert not panel.session.labels.any()


def test_names_that_do_not_fit_the_model_are_refused(scene, tmp_path):
    panel = scene[2]
    path = tmp_path / "two.json"
    path.write_text('["liver", "spleen"]')
    panel.models.use_names(path)
    assert "no name for 2" in panel.go.status.text()
    assert panel.structures.tree.names == tuple(NAMES)
