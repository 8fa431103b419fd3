"""SAM-Med3D behind the panel, with stand-in weights: asked where the user clicked, and in time.

Stand-in weights make no sensible masks, so place is proved by what the network was given: the
voxels around the click and the click itself.
"""

from __future__ import annotations

import os
import shutil
import threading
import time

import numpy as np
import pytest
from panel_hands import Hand, add_volume, phantom, pump, use_engine, wait_for

from napari_openmedlab.bridge.view import show_plane
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.session import store
from napari_openmedlab.session.autosave import find_recoverable
from napari_openmedlab.session.replay import replay_steps
from napari_openmedlab.widgets.hints import REST_MS
from napari_openmedlab.widgets.tools import Tool

pytest.importorskip("torch", reason="SAM-Med3D needs the extra 'models'")

pytestmark = pytest.mark.gui

AFTER_REST = REST_MS + 120
SHAPE = (22, 70, 58)
MIDDLE = 64  # crop index of the click that opened the crop


def idle(panel):
    return not panel._life.worker.busy


def answered(panel):
    """Whether the active object's prompts have their answer (stand-in masks may be empty)."""
    active = panel.session.active
    return active is not None and active.answered == active.prompts and idle(panel)


def click_tool(panel):
    panel.prompts.tools[Tool.CLICK].click()
    pump()


def odd_volume(mark):
    """An asymmetric, oblique, anisotropic MR-like volume in an unusual axis order: bright mark."""
    angle = np.deg2rad(11)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    # Array axes run to Anterior, Left and Superior: none of the order readers make.
    columns = turn @ np.array([[0, 2.1, 0], [-3.6, 0, 0], [0, 0, 1.4]], dtype=float)
    affine = np.eye(4)
    affine[:3, :3] = columns
    affine[:3, 3] = (13.0, -71.0, 25.0)
    rng = np.random.RandomState(3)
    array = (40 + 8 * rng.standard_normal(SHAPE)).astype(np.int16)
    array[:8, 40:, :20] += 60  # nothing is symmetric
    z, y, x = mark
    array[z, y - 1 : y + 2, x - 1 : x + 2] = 900
    return Volume(array, Geometry(SHAPE, affine), name="odd", modality="MR")


class Seen:
    """What the network was asked: pixels of each crop encoded, and points of each decoder pass."""

    def __init__(self):
        self.crops = []
        self.points = []
        self.labels = []


@pytest.fixture
def seen(stand_ins, monkeypatch):
    """Record what reaches the network; the encoder itself is left out, it takes seconds."""
    stand_ins.add("sam-med3d")
    from napari_openmedlab.models.engines.sam_med3d.work import Work

    found = Seen()
    decode = Work.decode

    def encode(self, pixels):
        found.crops.append(pixels.copy())
        return np.zeros((384, 8, 8, 8), dtype=np.float32)

    def decoded(self, crop, points, labels, mask):
        found.points.append(points.copy())
        found.labels.append(labels.tolist())
        return decode(self, crop, points, labels, mask)

    monkeypatch.setattr(Work, "encode", encode)
    monkeypatch.setattr(Work, "decode", decoded)
    return found


@pytest.fixture
def med3d(stand_ins, scene):
    """The scene with SAM-Med3D chosen, encoder and all."""
    stand_ins.add("sam-med3d")
    use_engine(scene[2], "sam-med3d", device="cpu")
    return scene


# -- place ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order",
    [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1), (2, 1, 0)],
    ids=["axial", "coronal", "sagittal", "rolled", "transposed", "reversed"],
)
def test_network_sees_the_voxel_that_was_clicked(viewer, make_panel, qtbot, seen, order):
    mark = (15, 22, 41)
    image = add_volume(viewer, odd_volume(mark))
    panel = make_panel(viewer)
    use_engine(panel, "sam-med3d", device="cpu")
    viewer.dims.order = order
    viewer.reset_view()
    pump()
    click_tool(panel)
    Hand(viewer).click(image, mark)
    wait_for(qtbot, lambda: answered(panel), timeout=20000)
    assert len(seen.crops) == 1
    np.testing.assert_array_equal(seen.points, [[[MIDDLE] * 3]])
    bright = np.argwhere(seen.crops[0] > 0.5 * seen.crops[0].max()).mean(axis=0)
    # The mark is 3 x 3 voxels of 3.6 x 2.1 x 1.4 mm, a working voxel 1.5 mm.
    np.testing.assert_allclose(bright, MIDDLE, atol=1.5)


def test_second_click_asks_at_its_own_place_in_the_first_crop(viewer, make_panel, qtbot, seen):
    image = add_volume(viewer, odd_volume((15, 22, 41)))
    panel = make_panel(viewer)
    use_engine(panel, "sam-med3d", device="cpu")
    click_tool(panel)
    hand = Hand(viewer)
    hand.click(image, (15, 22, 41))
    wait_for(qtbot, lambda: answered(panel), timeout=20000)
    show_plane(viewer, "coronal")
    panel.prompts.outside.click()
    hand.click(image, (10, 30, 33))
    wait_for(qtbot, lambda: answered(panel), timeout=20000)
    assert len(seen.crops) == 1, "a correction costs no encoding"
    assert seen.labels[-1] == [0]
    # Axes to R, A, S: the array's second axis runs to the left, its first to the front.
    moved = np.array([(22 - 30) * 2.1, (10 - 15) * 3.6, (33 - 41) * 1.4]) / 1.5
    np.testing.assert_allclose(seen.points[-1][0] - MIDDLE, moved, atol=1.2)


# -- ahead of the click --------------------------------------------------------------------


def test_click_where_the_cursor_rested_finds_its_encoding(scene, qtbot, seen):
    _, image, panel, hand = scene
    use_engine(panel, "sam-med3d", device="cpu")
    click_tool(panel)
    hand.hover(image, (7, 41, 33))
    wait_for(qtbot, lambda: len(seen.crops) == 1, timeout=20000)
    assert not seen.points
    hand.click(image, (7, 41, 33))
    wait_for(qtbot, lambda: answered(panel), timeout=20000)
    assert len(seen.crops) == 1
    assert len(seen.points) == 1


# -- clicks while it runs ------------------------------------------------------------------


def test_clicks_during_the_first_run_all_count_and_queue_nothing(med3d, qtbot, monkeypatch):
    from napari_openmedlab.models.engines.sam_med3d.work import Work

    _, image, panel, hand = med3d
    encoded, encode = [], Work.encode
    monkeypatch.setattr(Work, "encode", lambda *a: encoded.append(1) or encode(*a))
    click_tool(panel)
    clicks = [(12, 30, 22), (12, 30, 27), (12, 34, 25), (11, 28, 20)]
    for index in clicks:
        hand.click(image, index)
        pump(150)
    assert not answered(panel)
    wait_for(qtbot, lambda: answered(panel), timeout=120000)
    assert len(panel.session.active.prompts.clicks) == len(clicks)
    runs = [step.run for step in panel.session.history.past if step.run is not None]
    assert runs[-1].prompts == panel.session.active.prompts
    assert len(runs) <= 2, "answers nobody waits for are not made"
    assert len(encoded) == 1, "a click does not throw away what it needs itself"
    started = time.perf_counter()
    hand.click(image, (12, 32, 22))
    wait_for(qtbot, lambda: answered(panel), timeout=20000)
    assert time.perf_counter() - started < 5, "a correction runs the decoder only"


def test_undo_and_cancel_forget_the_click_that_waited(med3d, qtbot):
    _, image, panel, hand = med3d
    click_tool(panel)
    hand.click(image, (12, 30, 22))
    pump(100)
    hand.click(image, (12, 30, 27))
    assert panel.controller._desk._held
    panel.run.undo.click()
    pump(100)
    assert not panel.controller._desk._held
    qtbot.waitUntil(lambda: idle(panel), timeout=20000)
    assert len(panel.session.active.prompts.clicks) == 1
    assert panel.session.active.answered is None
    panel.run.run.click()
    wait_for(qtbot, lambda: answered(panel), timeout=60000)


def test_cancel_and_close_in_the_middle_of_encoding(med3d, qtbot):
    viewer, image, panel, hand = med3d
    click_tool(panel)
    hand.click(image, (12, 30, 22))
    qtbot.waitUntil(lambda: panel._life.worker.busy, timeout=5000)
    pump(300)
    panel.run.cancel.click()
    qtbot.waitUntil(lambda: idle(panel), timeout=20000)
    assert "Cancelled" in panel.run.status.text()
    assert len(panel.session.active.prompts.clicks) == 1
    panel.run.run.click()
    pump(300)
    viewer.close()
    pump(100)
    qtbot.waitUntil(lambda: not _runners(), timeout=30000)


def _runners():
    return [t for t in threading.enumerate() if t.name == "openmedlab-runner" and t.is_alive()]


# -- engines side by side ------------------------------------------------------------------


def test_switching_the_engine_keeps_prompts_and_mask_and_every_way_back(med3d, qtbot, tmp_path):
    viewer, image, panel, hand = med3d
    use_engine(panel, "built-in")
    click_tool(panel)
    hand.click(image, (9, 22, 18))
    wait_for(qtbot, lambda: answered(panel), timeout=20000)
    assert panel.session.active.voxels
    first = panel.session.labels.copy()
    use_engine(panel, "sam-med3d", device="cpu")
    np.testing.assert_array_equal(panel.session.labels, first)
    assert len(panel.controller.layers.points.data) == 1
    hand.click(image, (9, 25, 20))
    wait_for(qtbot, lambda: answered(panel), timeout=60000)
    second = panel.session.labels.copy()
    assert panel.session.active.engine == "sam-med3d"
    run = panel.session.history.past[-1].run
    assert run.previous, "the built-in engine's mask is where it started"
    assert len(run.previous_prompts.clicks) == 1
    use_engine(panel, "built-in")
    hand.click(image, (9, 20, 16))
    wait_for(qtbot, lambda: answered(panel), timeout=20000)
    third = panel.session.labels.copy()
    for wanted in (second, first):
        panel.run.undo.click()
        pump()
        while panel.session.history.last.kind.value == "choice":
            panel.run.undo.click()
            pump()
        np.testing.assert_array_equal(panel.session.labels, wanted)
    while panel.session.can_redo:
        panel.run.redo.click()
    np.testing.assert_array_equal(panel.session.labels, third)
    saved = store.save(panel.session, tmp_path / "both.omlsession")
    again = replay_steps(saved, panel.session.volume)
    assert not again.differences
    assert again.computed == 3
    np.testing.assert_array_equal(again.session.labels, third)
    volume = panel.session.volume
    viewer.window.remove_dock_widget(panel)
    pump(100)
    entry = find_recoverable(tmp_path / "autosave")[0]
    np.testing.assert_array_equal(store.load(entry.path, volume).labels, third)


def test_accepted_neighbour_is_kept_and_can_be_avoided(med3d, qtbot):
    _, image, panel, hand = med3d
    use_engine(panel, "ball", radius=8.0)
    click_tool(panel)
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: answered(panel))
    panel.objects.accept.click()
    kept = panel.session.labels == 1
    use_engine(panel, "sam-med3d", device="cpu")
    panel.engine.avoid.click()
    hand.click(image, (12, 30, 30))
    wait_for(qtbot, lambda: answered(panel), timeout=60000)
    assert panel.session.history.past[-1].run.obstacles
    np.testing.assert_array_equal(panel.session.labels == 1, kept)


def test_options_come_back_with_their_engine(med3d):
    _, _, panel, _ = med3d
    panel.engine.form.input_of("voxel_size").setValue(2.0)
    use_engine(panel, "built-in")
    assert not panel.session.choice.options
    use_engine(panel, "sam-med3d")
    assert panel.session.choice.options == {"device": "cpu", "voxel_size": 2.0}


def test_devices_are_listed_once_the_worker_has_loaded_torch(scene, qtbot, seen):
    _, image, panel, hand = scene
    use_engine(panel, "sam-med3d")
    field = panel.engine.form.input_of("device")
    assert [field.itemData(row) for row in range(field.count())] == ["auto", "cpu"]
    click_tool(panel)
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: answered(panel), timeout=30000)
    ids = [field.itemData(row) for row in range(field.count())]
    assert ids[0] == "auto"
    assert ids[-1] == "cpu"
    assert field.currentText() == "auto"
    assert field.itemText(len(ids) - 1).startswith("cpu (")


# -- weights that are not there ------------------------------------------------------------


@pytest.fixture
def no_models(stand_ins, tmp_path, monkeypatch):
    """A model folder that does not exist yet."""
    folder = tmp_path / "models"
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(folder))
    return folder


def bring(stand_ins, folder):
    """Put the stand-in model into a folder, as an import by another program would."""
    record = stand_ins.add("sam-med3d")
    folder.mkdir(exist_ok=True)
    os.link(stand_ins.folder / record.file, folder / record.file)
    shutil.copy(stand_ins.folder / f"{record.name}.json", folder / "coming.tmp")
    os.replace(folder / "coming.tmp", folder / f"{record.name}.json")
    return record


def test_missing_model_leads_to_the_models_panel_and_the_run_goes_on(
    no_models, scene, qtbot, stand_ins
):
    viewer, image, panel, hand = scene
    use_engine(panel, "sam-med3d", device="cpu")
    assert panel.engine.choice.currentText().startswith("SAM-Med3D")
    assert "no model on this computer yet" in panel.run.status.text()
    assert panel.run.status.severity == "unsure"
    assert not panel.run.models.isHidden()
    choice = panel.engine.form.input_of("checkpoint").choice
    assert choice.currentText() == "None on this computer yet"
    click_tool(panel)
    hand.click(image, (12, 30, 22))
    hand.click(image, (12, 30, 26))
    pump(100)
    assert "no model on this computer yet" in panel.run.status.text()
    assert len(panel.session.active.prompts.clicks) == 2
    assert not panel._life.worker.busy
    panel.run.models.click()
    pump()
    dock, models = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Models")
    assert models.list.table.row.key == "sam-med3d-turbo"
    assert len(viewer.window._qt_window.tabifiedDockWidgets(dock)) == 1, "beside, not above"
    record = bring(stand_ins, no_models)
    wait_for(qtbot, lambda: answered(panel), timeout=60000)
    assert panel.session.active.engine == "sam-med3d"
    assert len(panel.session.active.prompts.clicks) == 2
    assert panel.run.models.isHidden()
    assert choice.currentText() == f"Newest ({record.name})"


def test_another_engine_answers_what_waited_for_a_model(no_models, scene, qtbot):
    _, image, panel, hand = scene
    use_engine(panel, "sam-med3d")
    click_tool(panel)
    hand.click(image, (12, 30, 22))
    pump()
    use_engine(panel, "ball")
    wait_for(qtbot, lambda: answered(panel))
    assert panel.session.labels[12, 30, 22] == 1
    assert panel.run.models.isHidden()


def test_cancel_ends_the_waiting(no_models, scene, stand_ins):
    _, image, panel, hand = scene
    use_engine(panel, "sam-med3d", device="cpu")
    click_tool(panel)
    hand.click(image, (12, 30, 22))
    pump()
    panel.controller.cancel()
    bring(stand_ins, no_models)
    panel._models.look()
    pump(200)
    assert idle(panel)
    assert not panel.session.active.voxels


def test_model_removed_while_loaded_waits_for_another(med3d, qtbot, stand_ins, tmp_path):
    _, image, panel, hand = med3d
    click_tool(panel)
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: answered(panel), timeout=60000)
    kept = panel.session.labels.copy()
    os.environ["OPENMEDLAB_MODELS"] = str(tmp_path / "empty")  # undone by the fixture
    panel._models.look()
    hand.click(image, (12, 30, 26))
    pump(100)
    assert "no model on this computer yet" in panel.run.status.text()
    assert panel.run.status.severity == "unsure"
    assert len(panel.session.active.prompts.clicks) == 2
    np.testing.assert_array_equal(panel.session.labels, kept)
    os.environ["OPENMEDLAB_MODELS"] = str(stand_ins.folder)
    panel._models.look()
    wait_for(qtbot, lambda: answered(panel), timeout=60000)


def test_chosen_model_that_is_gone_is_said_by_its_name(med3d, qtbot):
    _, image, panel, hand = med3d
    use_engine(panel, "sam-med3d", checkpoint="my-own")
    shown = panel.engine.form.input_of("checkpoint").choice.currentText()
    assert shown == "my-own (not on this computer)"
    click_tool(panel)
    hand.click(image, (12, 30, 22))
    pump()
    assert "'my-own' is not on this computer" in panel.run.status.text()
    panel.session.choice = type(panel.session.choice)("sam-med3d", {"device": "cpu"})
    wait_for(qtbot, lambda: answered(panel), timeout=60000)


def test_missing_package_is_said_with_what_to_install(scene):
    _, image, panel, hand = scene
    use_engine(panel, "lacks-package")
    assert "pip install 'napari-openmedlab[models]'" in panel.run.status.text()
    assert panel.run.models.isHidden(), "no model would help"
    click_tool(panel)
    hand.click(image, (12, 30, 22))
    pump(50)
    assert "pip install" in panel.run.status.text()
    assert panel.run.status.severity == "unsure"
    assert len(panel.session.active.prompts.clicks) == 1


# -- layers during a run -------------------------------------------------------------------


def test_layers_renamed_and_deleted_during_the_run(med3d, qtbot):
    viewer, image, panel, hand = med3d
    click_tool(panel)
    hand.click(image, (12, 30, 22))
    pump(100)
    image.name = "renamed"
    viewer.layers.remove(panel.controller.layers.points)
    viewer.layers.remove(panel.sessions.labels_of(panel.session))
    wait_for(qtbot, lambda: answered(panel), timeout=60000)
    shown = panel.sessions.labels_of(panel.session)
    assert shown in viewer.layers
    np.testing.assert_array_equal(shown.data, panel.session.labels)


# -- images that are hard to use -----------------------------------------------------------


def _ask(viewer, make_panel, qtbot, volume, index):
    image = add_volume(viewer, volume)
    panel = make_panel(viewer)
    use_engine(panel, "sam-med3d", device="cpu")
    click_tool(panel)
    Hand(viewer).click(image, index)
    done = ("done", "unsure", "error")
    wait_for(qtbot, lambda: panel.run.status.severity in done and idle(panel), timeout=60000)
    return panel


@pytest.mark.parametrize("kind", ["one slice", "NaN", "constant", "no voxel size"])
def test_hard_images_get_an_answer_or_a_sentence(viewer, make_panel, qtbot, seen, kind):
    volume = phantom((1, 60, 50) if kind == "one slice" else (24, 60, 50))
    array = volume.array.astype(np.float32)
    geometry = volume.geometry
    if kind == "NaN":
        array[::3] = np.nan
        array[1::5] = np.inf
    elif kind == "constant":
        array[:] = 7
    elif kind == "no voxel size":
        geometry = Geometry.from_spacing(geometry.shape, (1.0, 1.0, 1.0), unit="pixel")
    middle = (0, 30, 25) if kind == "one slice" else (12, 30, 25)
    panel = _ask(viewer, make_panel, qtbot, Volume(array, geometry, name=kind), middle)
    assert "internal error" not in panel.run.status.text()
    assert "Traceback" not in panel.run.status.text()
    assert len(panel.session.active.prompts.clicks) == 1


def test_2d_layer_is_asked_too(viewer, make_panel, qtbot, seen):
    image = viewer.add_image(np.random.RandomState(1).rand(60, 50), scale=(0.8, 0.8))
    panel = make_panel(viewer)
    use_engine(panel, "sam-med3d", device="cpu")
    click_tool(panel)
    Hand(viewer).click(image, (30, 20))
    wait_for(qtbot, lambda: answered(panel), timeout=20000)
    assert len(seen.points) == 1
