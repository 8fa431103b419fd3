"""The Axons panel in a real viewer: preview, threshold, run, cancel, go on, export."""

import threading

import block_engines
import nibabel as nib
import numpy as np
import pytest
import tifffile
from block_engines import Smooth
from napari.layers import Image, Labels
from panel_hands import Hand
from threaded_run import InAThread

from napari_openmedlab.axons.annotate import Cube, cubes_in, export_cubes
from napari_openmedlab.axons.store import Results, relabel
from napari_openmedlab.axons.survey import survey
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models import catalogue
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.training.events import Step
from napari_openmedlab.training.run_folder import last_iteration
from napari_openmedlab.widgets import axon_desk, run_follower

SAMPLE = "light_sheet_axons"


@pytest.fixture(autouse=True)
def _engines(monkeypatch):
    """The test engine besides ours; one block at a time, so that a cancel finds some left."""
    monkeypatch.setattr("napari_openmedlab.axons.plan._workers", lambda *_: 1)
    Smooth.calls = 0
    specs = (*catalogue.OWN_ENGINES, block_engines.SPEC)
    monkeypatch.setattr(catalogue, "OWN_ENGINES", specs)


@pytest.fixture
def panel(viewer, qtbot):
    """A viewer with the sample and the panel, opened as napari's menus do."""
    viewer.open_sample("napari-openmedlab", SAMPLE)
    _, made = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Axons")
    qtbot.waitUntil(lambda: made.image is not None)
    return made


def wait(qtbot, panel):
    qtbot.waitUntil(lambda: not panel.desk.busy, timeout=60_000)


def choose(panel, engine_id):
    row = panel.method.engine.findData(engine_id)
    panel.method.engine.setCurrentIndex(row)
    panel.method.engine.activated.emit(row)


def layer(viewer, name):
    return next((each for each in viewer.layers if each.name == name), None)


def test_from_preview_to_swc(viewer, panel, qtbot, tmp_path, monkeypatch):
    out = tmp_path / "run"
    # A preview in the middle of the view, in place.
    panel.find.middle.click()
    wait(qtbot, panel)
    assert "Preview of" in panel.go.status.text(), panel.go.status.text()
    probability, labels = layer(viewer, "preview: probability"), layer(viewer, "preview: axons")
    image = panel.image
    box = panel.previews.found.box
    np.testing.assert_allclose(
        labels.translate, np.add(image.translate, np.multiply(image.scale, box.start))
    )
    assert labels.units == image.units
    assert panel.image is image  # a preview is never taken for the volume

    # The threshold moves the labels without another run.
    before = int(labels.data.sum())
    panel.find.threshold.setValue(25)
    np.testing.assert_array_equal(labels.data, probability.data >= 64)
    assert labels.data.sum() > before > 0
    assert not panel.desk.busy
    panel.find.threshold.setValue(50)

    # What it takes, then a run that is cancelled and goes on.
    panel.method.form.input_of("block").setValue(64)
    panel.go.estimate.click()
    wait(qtbot, panel)
    assert "9 blocks" in panel.go.takes.text()
    panel.go.folder.setText(str(out))
    panel.go.run.click()
    qtbot.waitUntil(lambda: (out / "journal.jsonl").exists(), timeout=60_000)
    panel.go.cancel.click()
    wait(qtbot, panel)
    assert "Cancelled. Finished blocks are kept" in panel.go.status.text()
    kept = Results.open(out).done()
    assert 1 <= len(kept) < 9
    panel.go.run.click()
    wait(qtbot, panel)
    assert panel.go.status.text().startswith("Done:")
    done = Results.open(out).done()
    assert len(done) == 9
    assert {number: done[number] for number in kept} == kept
    found = layer(viewer, "axons")
    assert isinstance(found, Labels)
    np.testing.assert_allclose(found.scale, image.scale)
    assert np.asarray(found.data).any()
    assert isinstance(layer(viewer, "axons: probability"), Image)

    # Another threshold for the results: no engine runs.
    panel.find.threshold.setValue(40)
    panel.find.apply.click()
    wait(qtbot, panel)
    assert Results.open(out).threshold == 0.4
    np.testing.assert_array_equal(layer(viewer, "axons").data, panel.results.probability[:] >= 102)

    # Files.
    swc, table = tmp_path / "axons.swc", tmp_path / "branches.csv"
    for target, button in ((swc, panel.files.swc), (table, panel.files.branches)):
        monkeypatch.setattr(
            "napari_openmedlab.widgets.axon_exports.QFileDialog.getSaveFileName",
            lambda *_, target=target: (str(target), ""),
        )
        button.click()
        wait(qtbot, panel)
        assert f"Written: {target}" in panel.go.status.text()
    rows = np.loadtxt(swc)
    inside = np.array(image.data.shape) * image.scale
    assert (rows[:, 2:5] >= 0).all()
    assert (rows[:, 2:5] <= inside[::-1]).all()
    assert len(table.read_text().splitlines()) > 5
    panel.exports.write_density(tmp_path / "density.nii.gz", 40.0)
    wait(qtbot, panel)
    assert (tmp_path / "density.nii.gz").exists()
    density = layer(viewer, "axons: um of centre-line per mm3")
    assert density.data.max() > 0
    np.testing.assert_allclose(density.scale, 40.0)


def test_a_click_previews_the_block_there(viewer, panel, qtbot):

    choose(panel, "smooth")
    hand = Hand(viewer)
    panel.find.pick.click()
    hand.click(panel.image, (28, 40, 120))
    wait(qtbot, panel)
    assert panel.previews.found is not None, panel.go.status.text()
    assert panel.previews.found.box.contains_index((28, 40, 120))
    panel.find.pick.click()
    first = panel.previews.found
    hand.click(panel.image, (28, 140, 20))
    wait(qtbot, panel)
    assert panel.previews.found is first


def test_a_drawn_box_is_previewed_and_run(viewer, panel, qtbot, tmp_path):
    choose(panel, "smooth")
    panel.find.box.click()
    assert "Shapes layer" in panel.go.status.text()
    image = panel.image
    corners = np.array([[28, 20, 30], [28, 20, 70], [28, 60, 70], [28, 60, 30]], float)
    viewer.add_shapes([corners], shape_type="rectangle", scale=image.scale, units=image.units)
    panel.find.box.click()
    wait(qtbot, panel)
    assert panel.previews.found.box.start[1:] == (20, 30)
    assert panel.previews.found.box.stop[1:] == (61, 71)
    panel.volume.region.setCurrentIndex(2)
    panel.go.folder.setText(str(tmp_path / "run"))
    panel.go.run.click()
    wait(qtbot, panel)
    assert Results.open(tmp_path / "run").region == panel.previews.found.box


def test_what_is_missing_is_said(viewer, panel, qtbot, tmp_path):
    panel.go.run.click()
    assert panel.go.status.text() == "Choose a folder for the results first."
    (tmp_path / "mine.txt").write_text("mine")
    choose(panel, "smooth")
    panel.go.folder.setText(str(tmp_path))
    panel.go.run.click()
    wait(qtbot, panel)
    assert "is not empty and holds no run" in panel.go.status.text()
    panel.volume.size.setText("1, 2")
    panel.find.middle.click()
    assert "A voxel size reads" in panel.go.status.text()
    choose(panel, "axon-seg")
    panel.volume.size.setText("4, 2, 2")
    panel.go.run.click()
    assert "has no model on this computer yet" in panel.go.status.text()
    viewer.add_image(np.zeros((8, 9, 10), np.uint8), name="bare")
    panel._chooser.choose(layer(viewer, "bare"))
    panel._on_image(panel.image)
    assert panel.volume.size.text() == ""
    choose(panel, "smooth")
    panel.go.estimate.click()
    assert "The voxel size is not known" in panel.go.status.text()


def test_a_folder_of_slices_opens_without_being_read(viewer, panel, qtbot, tmp_path, monkeypatch):
    for z in range(5):
        tifffile.imwrite(tmp_path / f"s{z}.tif", np.full((20, 30), z, np.uint16))
    monkeypatch.setattr(
        "napari_openmedlab.widgets.axons.QFileDialog.getExistingDirectory",
        lambda *_: str(tmp_path),
    )
    panel.volume.open_folder.click()
    wait(qtbot, panel)
    assert panel.image.data.shape == (5, 20, 30)
    assert not isinstance(panel.image.data, np.ndarray)
    assert panel.volume.note.text() == "The voxel size is not known: type it in."


def test_the_panel_ends_with_its_work(viewer, panel, qtbot, tmp_path):
    panel.method.form.input_of("block").setValue(32)
    panel.go.folder.setText(str(tmp_path / "run"))
    panel.go.run.click()
    qtbot.waitUntil(lambda: (tmp_path / "run" / "journal.jsonl").exists(), timeout=60_000)
    viewer.window.remove_dock_widget(panel)
    qtbot.wait(50)  # the look-out for threads in conftest does the rest


def test_a_previewed_block_becomes_a_training_cube(viewer, panel, qtbot, tmp_path):
    panel.cubes.sketch.click()
    assert panel.go.status.text() == "Preview a block first: it becomes the cube."
    choose(panel, "smooth")
    panel.preview_at((28, 88, 88))
    wait(qtbot, panel)
    panel.cubes.sketch.click()
    wait(qtbot, panel)
    rough = layer(viewer, "training: rough label")
    np.testing.assert_allclose(rough.translate, layer(viewer, "preview: axons").translate)
    before = int(rough.data.sum())
    panel.cubes.threshold.setValue(panel.cubes.threshold.value() * 1.5)
    assert 0 < rough.data.sum() < before
    rough.data[2:5, 2:5, :] = 1  # painted by hand
    panel.cubes.save(tmp_path / "training")
    wait(qtbot, panel)
    panel.cubes.artefacts.setChecked(True)
    panel.cubes.save(tmp_path / "training")
    wait(qtbot, panel)
    assert "(0 voxels of axon)" in panel.go.status.text()
    names = sorted(p.name for p in (tmp_path / "training" / "images").iterdir())
    assert names == ["artefact-0002.nii.gz", "axon-0001.nii.gz"]


def test_the_end_of_a_run_is_told_last_though_events_overtake_each_other(
    panel, qtbot, tmp_path, monkeypatch
):
    def report(progress):  # napari's progress bar handles waiting events, the run's end among them
        if progress.total and progress.done == progress.total:
            wait(qtbot, panel)

    monkeypatch.setattr(panel.desk.activity, "report", report)
    panel.go.folder.setText(str(tmp_path / "run"))
    panel.go.run.click()
    wait(qtbot, panel)
    qtbot.wait(50)
    assert panel.go.status.text().startswith("Done"), panel.go.status.text()


@pytest.fixture
def cubes(tmp_path, monkeypatch):
    """A folder of six cubes, and a store of the test's own."""
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    rng = np.random.default_rng(1)
    made = []
    for number in range(6):
        image = rng.normal(300, 20, (32, 32, 64))
        label = np.zeros(image.shape, dtype=bool)
        label[8 + number : 11 + number, 10:13] = True
        image[label] += 500
        box = Box((0, 0, 0), image.shape)
        made.append(Cube(image.astype(np.uint16), label, "axon", box))
    export_cubes(tmp_path / "cubes", made, (2.0, 2.0, 2.0))
    return tmp_path / "cubes"


@pytest.mark.slow
def test_cubes_are_trained_on_stopped_and_gone_on_with(cubes, panel, qtbot, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(run_follower, "TrainingProcess", InAThread)
    box, heard = panel.training, []
    box.follower.heard.connect(heard.append)
    box.name.setText("Mine")
    box.iterations.setValue(10_000)  # never reached
    box.begin(cubes)
    assert not box.train.isEnabled()
    assert "cubes" in box.status.text()
    qtbot.waitUntil(lambda: box.status.text().startswith("Iteration"), timeout=90_000)
    assert "of the memory" in box.status.toolTip()
    assert panel.find.middle.isEnabled()  # the rest of the panel is free
    box.stop.click()
    qtbot.waitUntil(lambda: "go on" in box.status.text(), timeout=60_000)
    assert box.status.severity == "unsure"
    done = last_iteration(cubes / "training-mine")
    assert done == [event.iteration for event in heard if isinstance(event, Step)][-1]
    heard.clear()
    box.iterations.setValue(done + 1)
    box.begin(cubes)
    qtbot.waitUntil(lambda: "'mine' is ready" in box.status.text(), timeout=120_000)
    assert [event.iteration for event in heard if isinstance(event, Step)] == [done + 1]
    assert "strict Dice" in box.status.text()
    assert box.train.isEnabled()
    qtbot.waitUntil(lambda: box.start.findData("mine") >= 0)
    box.begin(cubes)  # nothing is left to learn, and the name is taken
    qtbot.waitUntil(lambda: "already is a model" in box.status.text())


@pytest.mark.slow
def test_a_window_closed_during_a_training_ends_it_cleanly(
    viewer, cubes, panel, qtbot, monkeypatch
):
    pytest.importorskip("torch")
    monkeypatch.setattr(run_follower, "TrainingProcess", InAThread)
    panel.training.begin(cubes)
    qtbot.waitUntil(lambda: panel.training.status.text().startswith("Iteration"), timeout=90_000)
    viewer.close()
    qtbot.wait(50)  # the look-out for threads in conftest does the rest
    assert last_iteration(cubes / "training-my-axons") >= 1


def test_a_training_waits_for_no_run_and_is_one_at_a_time(cubes, panel, qtbot, monkeypatch):
    followed, free = [], threading.Event()
    monkeypatch.setattr(panel.training.follower, "follow", followed.append)
    panel.desk.export("holding the desk", lambda _: (free.wait(30), "Free."))
    panel.training.begin(cubes)
    panel.training.name.setText("other")
    panel.training.begin(cubes)
    qtbot.waitUntil(lambda: bool(followed), timeout=30_000)
    assert panel.desk.busy
    free.set()
    wait(qtbot, panel)
    assert followed == [cubes / "training-my-axons"]
    assert [path.name for path in cubes.glob("training-*")] == ["training-my-axons"]


def test_what_keeps_a_training_from_beginning_is_told(cubes, panel, qtbot, tmp_path, monkeypatch):
    status = panel.training.status
    panel.training.begin(tmp_path / "nowhere")
    qtbot.waitUntil(lambda: status.severity == "error")
    assert "nowhere" in status.text()
    assert panel.training.train.isEnabled()
    monkeypatch.setattr(panel.training, "_lacks", lambda: "Axon-Seg needs torch")
    panel.training.begin(cubes)
    assert status.text() == "Axon-Seg needs torch"
    assert not list(cubes.glob("training-*"))


def cut_at(text):
    """Return :func:`relabel`, but cancelled at its second step with a text."""

    class Stop(Monitor):
        def step(self, done=0, total=0, said=""):
            if said.startswith(text) and done:
                self.cancel()
            super().step(done, total, said)

    return lambda folder, threshold, _: relabel(folder, threshold, Stop())


@pytest.mark.parametrize(
    ("where", "said"),
    [("labels at", "The labels are of two thresholds; Apply"),
     ("making coarser", "coarser levels are missing; Apply")],
)  # fmt: skip
def test_labels_that_were_cut_short_are_made_with_apply(
    where, said, viewer, panel, qtbot, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    choose(panel, "smooth")
    noise = np.random.default_rng(0).normal(300, 40, (16, 32, 300)).astype(np.uint16)
    panel._chooser.choose(viewer.add_image(noise, name="long", scale=(4, 2, 2), units="um"))
    panel.go.folder.setText(str(out))
    panel.go.run.click()
    wait(qtbot, panel)
    before = layer(viewer, "axons")
    assert not panel.find.apply.isEnabled()
    with monkeypatch.context() as patch:
        patch.setattr(axon_desk, "relabel", cut_at(where))
        panel.find.threshold.setValue(80)
        panel.find.apply.click()
        wait(qtbot, panel)
    status = panel.go.status
    assert status.text().startswith("Cancelled.")
    assert said in status.text()
    assert status.severity == "unsure"
    assert layer(viewer, "axons") is not before  # which would read what is gone
    assert panel.find.apply.isEnabled()
    panel.desk.show(out, [])
    wait(qtbot, panel)
    assert status.text().startswith("38 of 38 blocks are done.")
    assert said in status.text()
    assert panel.find.threshold.value() == 80
    assert panel.find.apply.isEnabled()
    panel.find.threshold.setValue(50)  # back to what it was
    assert panel.find.apply.isEnabled()
    panel.find.threshold.setValue(80)
    panel.find.apply.click()
    wait(qtbot, panel)
    assert Results.open(out).complete
    assert not panel.find.apply.isEnabled()


def test_a_previewed_block_stays_with_its_image(viewer, panel, qtbot):
    first = panel.image
    panel.find.middle.click()
    second = viewer.add_image(np.zeros((8, 9, 10), np.uint16), name="another")
    panel._chooser.choose(second)
    wait(qtbot, panel)
    assert panel.image is second
    shown = layer(viewer, "preview: probability")
    np.testing.assert_array_equal(shown.scale, first.scale)
    panel.cubes.begin()
    wait(qtbot, panel)
    block = panel.previews.found.box
    np.testing.assert_array_equal(panel.cubes._sketch.image, first.data[block.slices])
    viewer.layers.remove(first)
    panel.cubes.begin()
    assert "Preview a block first" in panel.go.status.text()


def test_a_preview_of_an_image_deleted_meanwhile_leaves_the_last_one(viewer, panel, qtbot):
    choose(panel, "smooth")
    panel.find.middle.click()
    wait(qtbot, panel)
    found, labels = panel.previews.found, layer(viewer, "preview: axons")
    second = viewer.add_image(np.zeros((8, 9, 10), np.uint16), name="another")
    panel._chooser.choose(second)
    panel.find.middle.click()
    viewer.layers.remove(second)
    wait(qtbot, panel)
    assert panel.previews.found is found
    panel.find.threshold.setValue(30)
    np.testing.assert_array_equal(labels.data, found.labels(0.3))


def test_a_cube_keeps_the_volume_it_was_cut_from(viewer, panel, qtbot, tmp_path):
    choose(panel, "smooth")
    panel.preview_at((28, 88, 88))
    wait(qtbot, panel)
    panel.volume.size.setText("5, 3, 3")  # said only now
    panel.cubes.begin()
    wait(qtbot, panel)
    second = viewer.add_image(np.zeros((16, 16, 16), np.uint16), name="another")
    panel._chooser.choose(second)
    panel.preview_at((8, 8, 8))
    wait(qtbot, panel)
    panel.cubes.begin()
    panel.cubes.save(tmp_path / "training")  # of the first, the second is not there yet
    wait(qtbot, panel)
    cube = nib.load(tmp_path / "training" / "images" / "axon-0001.nii.gz")
    np.testing.assert_allclose(sorted(cube.header.get_zooms()), [3.0, 3.0, 5.0])
    (facts,) = cubes_in(tmp_path / "training").values()
    assert facts["source"] == SAMPLE


def test_a_volume_is_surveyed_once_in_turn(viewer, panel, qtbot, monkeypatch):
    surveyed = []

    def count(source, *rest):
        surveyed.append(source.name)
        return survey(source, *rest)

    monkeypatch.setattr("napari_openmedlab.axons.preview.survey", count)
    choose(panel, "smooth")
    for at in ((28, 88, 88), (28, 40, 40)):
        panel.preview_at(at)
        wait(qtbot, panel)
    first = panel.image
    assert surveyed == [first.name]
    # An array that lies where the first one did is another volume all the same.
    panel._chooser.choose(viewer.add_image(np.zeros((16, 16, 16), np.uint16), name="another"))
    panel.preview_at((8, 8, 8))
    wait(qtbot, panel)
    assert surveyed == [first.name, "another"]
