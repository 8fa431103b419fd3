"""The Train panel in a real window: labelled layers in, a model out, used at once."""

from __future__ import annotations

import numpy as np
import pytest
from panel_hands import pump, wait_for
from qtpy.QtCore import Qt
from threaded_run import InAThread
from training_phantoms import NAMES, scan, tiny

from napari_openmedlab.bridge.layers import labels_to_layer_data, volume_to_layer_data
from napari_openmedlab.bridge.training_data import layer_cases
from napari_openmedlab.io.sidecar import LabelInfo
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.training.process import stopped_runs
from napari_openmedlab.widgets import run_follower
from napari_openmedlab.widgets.workplace import Workplace

pytest.importorskip("torch", reason="training needs the extra 'models'")
pytest.importorskip("pyqtgraph", reason="the plot needs pyqtgraph")

pytestmark = pytest.mark.gui

LONG = 90_000  # ms; a training program loads torch first
INFOS = {value: LabelInfo(name, (0.9, 0.3, 0.2)) for value, name in NAMES.items()}


def add_case(viewer, number, labelled=True):
    """Open a scan, with its labels on top."""
    volume, labels = scan(number)
    data, kwargs, _ = volume_to_layer_data(volume)
    image = viewer.add_image(data, **kwargs)
    if not labelled:
        return image, None
    data, kwargs, _ = labels_to_layer_data(labels, volume, INFOS, f"labels {number}")
    return image, viewer.add_labels(data, **kwargs)


def open_panel(viewer):
    _, panel = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Train")
    pump()
    return panel


@pytest.fixture
def panel(viewer):
    return open_panel(viewer)


def shorten(panel, monkeypatch, **changes):
    """Train a tiny network, whatever else the form says."""
    given = {"patch": (16, 32, 32), "resolution_mode": 1, "batch": 1, "iterations": 4}
    settings = tiny(**given | {"validate_every": 2, "name": "Balls", "spacing": "keep"} | changes)
    monkeypatch.setattr(panel, "settings", lambda: settings)


def press(button):
    assert button.isEnabled()
    button.click()
    pump()


def shown(table):
    return [
        [table.item(row, column).text() for column in range(table.columnCount())]
        for row in range(table.rowCount())
    ]


# -- what is learnt from -----------------------------------------------------------------------


def test_labelled_layers_are_cases_and_the_rest_is_left_out_with_a_reason(viewer, panel, qtbot):
    for number in range(2):
        add_case(viewer, number)
    add_case(viewer, 2, labelled=False)
    press(panel.source.look)
    wait_for(qtbot, lambda: panel.found is not None)
    rows = shown(panel.cases.cases)
    assert [row[0] for row in rows] == ["scan 0", "scan 1", "scan 2"]
    assert rows[0][1] == " x ".join(map(str, scan(0)[1].shape))
    assert "no" in rows[2][1]
    assert [row[:3] for row in shown(panel.cases.classes)] == [
        ["ball", "1", "2"],
        ["block", "2", "2"],
    ]
    assert "no honest figure" in panel.cases.note.text()
    assert "2 cases to learn from, 1 left out" in panel.run.status.text()
    panel.cases.classes.item(1, 0).setCheckState(Qt.CheckState.Unchecked)
    assert panel.cases.classes.chosen() == {1: "ball"}
    panel.cases.cases.tick("scan 1")
    panel.cases.held_out.setCurrentIndex(2)
    assert panel.settings().held_out == ("scan 1",)


def test_objects_of_the_session_go_before_other_labels(viewer, panel, make_panel):
    image, layer = add_case(viewer, 0)
    make_panel(viewer)
    sessions = Workplace.of(viewer).sessions
    session = sessions.open(image)
    own = sessions.labels_of(session)
    cases, left_out = layer_cases(viewer, sessions)
    assert not left_out
    np.testing.assert_array_equal(cases[0].labels, layer.data)  # the session is empty so far
    made = session.add_object("tumour")
    own.data[4:9, 4:9, 4:9] = made if isinstance(made, int) else made.id
    cases, _ = layer_cases(viewer, sessions)
    assert list(cases[0].names.values()) == ["tumour"]
    assert (cases[0].labels > 0).sum() == 125


def test_two_labels_layers_on_one_scan_are_asked_about(viewer, panel):
    _, labels = scan(0)
    _, layer = add_case(viewer, 0)
    data, kwargs, _ = labels_to_layer_data(labels.copy(), layer.metadata["openmedlab"].volume)
    other = viewer.add_labels(data, **kwargs | {"name": "others"})
    cases, left_out = layer_cases(viewer, panel.workplace.sessions)
    assert not cases
    assert "several labels layers" in left_out[0][1]
    other.visible = False
    cases, left_out = layer_cases(viewer, panel.workplace.sessions)
    assert len(cases) == 1
    assert not left_out


def test_without_labels_or_folders_the_panel_says_what_to_do(viewer, panel, qtbot):
    press(panel.run.start)
    wait_for(qtbot, lambda: not panel.desk.busy)
    assert "no labelled scan" in panel.run.status.text()
    panel.source.choice.setCurrentIndex(1)
    press(panel.source.look)
    assert "Choose a folder" in panel.run.status.text()
    panel.source.images.line.setText("/nowhere")
    press(panel.source.look)
    wait_for(qtbot, lambda: not panel.desk.busy)
    assert "/nowhere" in panel.run.status.text()


def test_the_form_says_what_is_trained(viewer, panel):
    panel.model.name.setText("  Liver  ")
    panel.model.network.setCurrentIndex(1)
    panel.model.time.setCurrentIndex(panel.model.time.count() - 1)
    panel.model.iterations.setValue(777)
    panel.model.device.set_value("cpu")
    panel.cases.held_out.setCurrentIndex(1)
    settings = panel.settings()
    assert (settings.name, settings.network, settings.iterations) == ("Liver", "pct-net", 777)
    assert (settings.held_out, settings.device, settings.init) == (0, "cpu", "")
    panel.model.name.setText(" ")
    press(panel.run.start)
    assert "needs a name" in panel.run.status.text()


# -- a run -------------------------------------------------------------------------------------


def test_a_model_is_trained_and_used_on_the_image_at_once(viewer, panel, qtbot, monkeypatch):
    for number in range(3):
        image, layer = add_case(viewer, number)
    viewer.layers.selection.active = image
    shorten(panel, monkeypatch)
    press(panel.run.start)
    wait_for(qtbot, lambda: panel.desk.busy == "training", LONG)
    assert panel.run.pause.isEnabled()
    wait_for(qtbot, lambda: not panel.desk.busy, LONG)
    assert "The model 'balls' is ready: held-out Dice" in panel.run.status.text()
    plot = panel.run.plot
    assert [iteration for iteration, _ in plot.losses][-1] == 4
    assert [iteration for iteration, _ in plot.dice] == [2, 4]
    assert "Held out: scan" in panel.run.notes.text()
    card = ModelStore().get("balls").model_card
    assert card.names == NAMES
    assert (card.provenance.cases, card.provenance.held_out) == (2, 1)
    assert not stopped_runs()
    layer.visible = False
    press(panel.run.use)
    organs = next(
        dock for name, dock in viewer.window.dock_widgets.items() if name.startswith("Organs")
    )
    assert organs.models.record.name == "balls"
    assert organs.session.volume.name == image.name
    wait_for(qtbot, lambda: not organs.desk.busy, LONG)
    assert organs.go.status.severity in ("done", "unsure")
    assert "of 2 structures" in organs.go.status.text()


def test_a_run_pauses_survives_a_closed_panel_and_goes_on(viewer, panel, qtbot, monkeypatch):
    add_case(viewer, 0)
    shorten(panel, monkeypatch, iterations=50_000, validate_every=50_000)
    press(panel.run.start)
    wait_for(qtbot, lambda: len(panel.run.plot.losses) > 2, LONG)
    assert "left" in panel.run.numbers.text()
    press(panel.run.pause)
    wait_for(qtbot, lambda: "Paused" in panel.run.status.text(), LONG)
    assert panel.run.pause.text() == "Go on"
    press(panel.run.pause)
    wait_for(qtbot, lambda: panel.run.pause.text() == "Pause", LONG)
    process = panel.desk.process
    viewer.window.remove_dock_widget(panel.parent())
    wait_for(qtbot, lambda: not process.running, LONG)
    (stopped,) = stopped_runs()
    assert stopped.state.iteration > 2
    again = open_panel(viewer)
    assert f"{stopped.state.iteration} of 50000" in again.run.stopped.currentText()
    press(again.run.resume)
    before = stopped.state.iteration
    assert again.run.plot.losses[-1][0] <= before
    wait_for(qtbot, lambda: again.run.plot.losses[-1][0] > before, LONG)
    press(again.run.end)
    wait_for(qtbot, lambda: not again.desk.busy, LONG)
    assert "The model 'balls' is ready" in again.run.status.text()
    assert ModelStore().get("balls").model_card.provenance.iterations > before


def test_a_stopped_run_can_be_deleted(viewer, monkeypatch):
    from qtpy.QtWidgets import QMessageBox
    from training_phantoms import cases

    from napari_openmedlab.training.process import runs_folder
    from napari_openmedlab.training.run import begin

    begin(cases(1), tiny(patch=(16, 32, 32), resolution_mode=1), runs_folder() / "old")
    panel = open_panel(viewer)
    answers = iter((QMessageBox.StandardButton.No, QMessageBox.StandardButton.Yes))
    monkeypatch.setattr(QMessageBox, "question", lambda *_: next(answers))
    press(panel.run.forget)
    assert len(stopped_runs()) == 1
    press(panel.run.forget)
    assert not stopped_runs()
    assert not panel.run.resume.isVisibleTo(panel)
    assert "deleted" in panel.run.status.text()


def test_scans_without_labels_become_start_weights(viewer, panel, qtbot, monkeypatch, tmp_path):
    import nibabel

    for number in range(2):
        array = scan(number)[0].array.transpose(2, 1, 0)
        nibabel.Nifti1Image(array, np.eye(4)).to_filename(tmp_path / f"s{number}.nii")
    panel.source.choice.setCurrentIndex(2)
    panel.source.images.line.setText(str(tmp_path))
    assert not panel.source.labels.isVisibleTo(panel)
    press(panel.source.look)
    wait_for(qtbot, lambda: panel.found is not None)
    assert "2 cases to learn from" in panel.run.status.text()
    assert panel.cases.classes.rowCount() == 0
    assert not panel.cases.note.text()
    shorten(panel, monkeypatch, name="Night", iterations=2)
    monkeypatch.setattr(run_follower, "TrainingProcess", InAThread)
    press(panel.run.start)
    wait_for(qtbot, lambda: bool(panel.run.plot.losses), LONG)
    wait_for(qtbot, lambda: not panel.desk.busy, LONG)
    assert "'night' is ready: start a training on labels from it" in panel.run.status.text()
    assert ModelStore().get("night").model_card.kind == "pretext"
    assert not panel.run.use.isVisibleTo(panel)
    assert not stopped_runs()
    starts = [panel.model.start.itemText(n) for n in range(panel.model.start.count())]
    assert "night (pre-trained)" in starts


def test_a_window_closed_during_a_run_ends_it_cleanly(viewer, panel, qtbot, monkeypatch):
    add_case(viewer, 0)
    shorten(panel, monkeypatch, iterations=50_000, validate_every=50_000)
    monkeypatch.setattr(run_follower, "TrainingProcess", InAThread)
    press(panel.run.start)
    wait_for(qtbot, lambda: bool(panel.run.plot.losses), LONG)
    viewer.close()
    pump()
    (stopped,) = stopped_runs()
    assert stopped.state.iteration > 0
