"""The Segment panel while layers come and go, engines fail and viewers close."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from napari.utils.notifications import notification_manager
from panel_hands import Hand, add_volume, phantom, pump, wait_for

from napari_openmedlab.session import store
from napari_openmedlab.session.autosave import Autosave, find_recoverable
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.tools import Tool

pytestmark = pytest.mark.gui


def masked(panel):
    return panel.session is not None and bool(panel.session.labels.any())


def idle(panel):
    return not panel._life.worker.busy


def set_options(panel, **options):
    panel.session.choice = replace(panel.session.choice, options=options)


def runners():
    return [t for t in threading.enumerate() if t.name == "openmedlab-runner" and t.is_alive()]


# -- runs ----------------------------------------------------------------------------------


def test_cancel_stops_within_a_step_and_changes_nothing(scene, qtbot):
    _, image, panel, hand = scene
    set_options(panel, steps=500)
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: panel.run.cancel.isEnabled() and panel._life.worker.busy)
    panel.run.cancel.click()
    wait_for(qtbot, lambda: idle(panel), timeout=1000)
    assert not masked(panel)
    assert "Cancelled" in panel.run.status.text()
    assert not panel.run.cancel.isEnabled()
    assert len(panel.session.active.prompts.clicks) == 1


def test_long_run_shows_in_the_activity_dock_and_is_cancelled_there(scene, qtbot):
    from napari.utils.progress import progress

    _, image, panel, hand = scene
    set_options(panel, steps=500)
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: len(progress._all_instances) == 1)
    bar = next(iter(progress._all_instances))
    wait_for(qtbot, lambda: bar.n > 0)
    bar.cancel()
    wait_for(qtbot, lambda: idle(panel) and not progress._all_instances, timeout=1500)
    assert not masked(panel)


def test_newest_prompt_wins(scene, qtbot):
    _, image, panel, hand = scene
    set_options(panel, steps=20)
    panel.prompts.tools[Tool.CLICK].click()
    for x in (18, 24, 30):
        hand.click(image, (12, 30, x))
    wait_for(qtbot, lambda: masked(panel) and idle(panel))
    assert panel.session.labels[12, 30, [18, 24, 30]].all()
    engine_steps = [s for s in panel.session.history.past if s.kind.value == "engine"]
    assert len(engine_steps) == 1


@pytest.mark.parametrize(
    ("fail", "sentence"),
    [("sentence", "the ball burst; try a smaller one"), ("defect", "internal error in engine")],
)
def test_engine_error_is_a_sentence_and_the_viewer_lives(scene, qtbot, fail, sentence):
    _, image, panel, hand = scene
    set_options(panel, fail=fail)
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: panel.run.status.severity == "error")
    assert sentence in panel.run.status.text()
    assert "Traceback" not in panel.run.status.text()
    shown = notification_manager.records[-1]
    assert sentence in shown.message
    set_options(panel)
    panel.run.run.click()
    wait_for(qtbot, lambda: masked(panel))
    assert panel.run.status.severity == "done"


def test_low_score_is_said(scene, qtbot):
    _, image, panel, hand = scene
    set_options(panel, score=0.3)
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel))
    assert "Low confidence" in panel.run.status.text()
    assert panel.run.status.severity == "unsure"


def test_without_auto_run_prompts_wait_for_the_button(scene, qtbot):
    _, image, panel, hand = scene
    panel.run.auto.setChecked(False)
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    pump(150)
    assert not masked(panel)
    panel.run.run.click()
    wait_for(qtbot, lambda: masked(panel))


def test_options_of_the_engine_reach_the_engine(scene, qtbot):
    _, image, panel, hand = scene
    panel.engine.form.input_of("radius").setValue(3.0)
    pump()
    assert panel.session.choice.options == {"radius": 3.0}
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel))
    assert panel.session.labels[12, 30, 22] == 1
    assert panel.session.labels[12, 30, 26] == 0


# -- the end -------------------------------------------------------------------------------


def test_closing_the_viewer_in_the_middle_of_a_run_is_clean(scene, qtbot):
    viewer, image, panel, hand = scene
    set_options(panel, steps=500)
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: panel._life.worker.busy)
    life = panel._life
    viewer.close()
    pump(100)
    qtbot.waitUntil(lambda: not runners(), timeout=3000)
    assert life.sessions.sessions == ()


def test_closing_the_dock_takes_our_prompt_layers_and_leaves_the_masks(scene, qtbot):
    viewer, image, panel, hand = scene
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel))
    viewer.window.remove_dock_widget(panel)
    pump(100)
    assert [layer.name for layer in viewer.layers] == ["phantom", "phantom objects"]
    assert viewer.layers["phantom objects"].data.any()
    qtbot.waitUntil(lambda: not runners(), timeout=3000)
    hand.click(image, (12, 30, 35))
    viewer.layers["phantom objects"].name = "kept"


# -- layers come and go --------------------------------------------------------------------


def test_renamed_layers_make_no_difference(scene, qtbot):
    viewer, image, panel, hand = scene
    panel.prompts.tools[Tool.CLICK].click()
    for number, layer in enumerate(viewer.layers):
        layer.name = f"renamed {number}"
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel))
    assert panel.image.choice.currentText() == "renamed 0"
    assert len(viewer.layers) == 3


def test_deleted_prompt_and_label_layers_come_back(scene, qtbot):
    viewer, image, panel, hand = scene
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel) and idle(panel))
    viewer.layers.remove(panel.controller.layers.points)
    pump()
    assert panel.controller.tool is None
    viewer.layers.remove(panel.sessions.labels_of(panel.session))
    panel.prompts.tools[Tool.CLICK].click()
    pump()
    assert len(panel.controller.layers.points.data) == 1
    hand.click(image, (12, 30, 34))
    wait_for(qtbot, lambda: panel.session.labels[12, 30, 34] == 1)
    assert panel.sessions.labels_of(panel.session) in viewer.layers
    np.testing.assert_array_equal(
        panel.sessions.labels_of(panel.session).data, panel.session.labels
    )


def test_image_replaced_in_the_middle_of_a_run_gets_a_fresh_session(scene, qtbot):
    _, image, panel, hand = scene
    set_options(panel, steps=100)
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: panel._life.worker.busy)
    before = panel.session
    image.data = np.ones((10, 20, 30))
    pump(200)
    assert panel.session is not before
    assert panel.session.volume.geometry.shape == (10, 20, 30)
    assert not before.labels.any()
    wait_for(qtbot, lambda: idle(panel))


def test_image_deleted_in_the_middle_of_a_run(scene, qtbot):
    viewer, image, panel, hand = scene
    set_options(panel, steps=100)
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: panel._life.worker.busy)
    viewer.layers.remove(image)
    pump(200)
    assert panel.session is None
    assert not panel.prompts.isEnabled()
    wait_for(qtbot, lambda: idle(panel), timeout=1000)


def test_two_images_have_their_own_objects_and_prompts(scene, qtbot):
    viewer, image, panel, hand = scene
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel))
    other = add_volume(viewer, phantom((8, 30, 30), name="other"))
    panel._chooser.choose(other)
    pump()
    assert panel.objects.table.rowCount() == 0
    assert panel.controller.layers.points is None
    panel._chooser.choose(image)
    pump()
    assert panel.objects.table.rowCount() == 1
    assert len(panel.controller.layers.points.data) == 1


def test_users_layers_are_never_changed(scene, qtbot):
    viewer, image, panel, hand = scene
    own = viewer.add_points(np.zeros((1, 3)), units=image.units, name="mine")
    before = (image.data.copy(), image.scale, image.affine.affine_matrix, dict(image.metadata))
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel))
    np.testing.assert_array_equal(image.data, before[0])
    np.testing.assert_array_equal(image.scale, before[1])
    np.testing.assert_array_equal(image.affine.affine_matrix, before[2])
    assert dict(image.metadata) == before[3]
    assert len(own.data) == 1
    assert not own.mouse_drag_callbacks or panel.controller._input.layer is not own


def test_two_viewers_do_not_meet(make_napari_viewer, make_panel, qtbot):
    viewers = [make_napari_viewer(), make_napari_viewer()]
    images = [add_volume(v, phantom()) for v in viewers]
    panels = [make_panel(v) for v in viewers]
    panels[0].prompts.tools[Tool.CLICK].click()
    Hand(viewers[0]).click(images[0], (12, 30, 22))
    wait_for(qtbot, lambda: masked(panels[0]))
    Hand(viewers[1]).click(images[1], (12, 30, 22))
    pump(100)
    assert panels[1].session.active is None
    assert len(viewers[1].layers) == 2


# -- files ---------------------------------------------------------------------------------


def test_session_saved_and_opened_again(scene, qtbot, tmp_path, monkeypatch):
    _, image, panel, hand = scene
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel) and idle(panel))
    kept = panel.session.labels.copy()
    path = tmp_path / "work.omlsession"
    ask = "napari_openmedlab.widgets.session_files.QFileDialog"
    monkeypatch.setattr(f"{ask}.getSaveFileName", lambda *a, **k: (str(path), ""))
    monkeypatch.setattr(f"{ask}.getOpenFileName", lambda *a, **k: (str(path), ""))
    panel.files.save.click()
    assert path.exists()
    panel.objects.delete.click()
    panel.files.open.click()
    pump()
    np.testing.assert_array_equal(panel.session.labels, kept)
    assert len(panel.controller.layers.points.data) == 1
    assert panel.session.can_undo


def test_damaged_session_is_a_sentence_and_the_work_goes_on(scene, tmp_path):
    _, _, panel, _ = scene
    path = tmp_path / "bad.omlsession"
    path.write_bytes(b"PK\x03\x04 not a session")
    before = panel.session
    assert not panel._replace_session(path)
    assert panel.session is before
    assert panel.run.status.severity == "error"
    assert "bad.omlsession" in panel.run.status.text()


def test_prompts_from_a_file_segment_all_objects(scene, qtbot, tmp_path):
    _, _, panel, _ = scene
    geometry = panel.session.volume.geometry
    points = geometry.to_world([(12, 20, 15), (12, 40, 35)])
    path = tmp_path / "p.json"
    rows = [
        {"name": name, "clicks": [{"point": list(map(float, p)), "positive": True}]}
        for name, p in zip(("spleen", "liver"), points, strict=True)
    ]
    import json

    path.write_text(json.dumps({"coordinate_system": "LPS", "objects": rows}), encoding="utf-8")
    panel.load_prompts(path)
    wait_for(qtbot, lambda: all(o.voxels for o in panel.session.objects) and idle(panel))
    assert [o.name for o in panel.session.objects] == ["spleen", "liver"]
    assert panel.session.labels[12, 20, 15] == 1
    assert panel.session.labels[12, 40, 35] == 2
    path.write_text("{", encoding="utf-8")
    panel.load_prompts(path)
    assert panel.run.status.severity == "error"
    assert len(panel.session.objects) == 2


def crash_with(volume, folder):
    """Leave an autosave behind as a crash would: written, but its writer gone."""
    lost = Session(volume)
    autosave = Autosave(lost, folder, delay=0.01)
    autosave.start()
    lost.add_object("lost spleen")
    labels = lost.labels
    labels[3:6, 10:20, 10:20] = 1
    from napari_openmedlab.geometry.boxes import Box
    from napari_openmedlab.geometry.labels import LabelPatch

    box = Box((3, 10, 10), (6, 20, 20))
    patch = LabelPatch(box, np.zeros(box.shape, np.uint16), np.ones(box.shape, np.uint16))
    lost.apply_edit(patch)
    autosave.stop()
    return lost


@pytest.mark.parametrize("answer", ["restore", "discard", "later"])
def test_unfinished_work_is_offered_on_the_same_image(viewer, make_panel, tmp_path, answer, qtbot):
    folder = tmp_path / "autosave"
    volume = phantom()
    lost = crash_with(volume, folder)
    crash_with(phantom((9, 30, 30), name="another"), folder)
    add_volume(viewer, phantom())
    panel = make_panel(viewer)
    assert not panel.recovery.isHidden()
    assert "1 object" in panel.recovery.label.text()
    getattr(panel.recovery, answer).click()
    pump()
    assert panel.recovery.isHidden()
    left = [entry for entry in find_recoverable(folder) if entry.image_name == "phantom"]
    assert len(left) == (1 if answer == "later" else 0)
    if answer == "restore":
        np.testing.assert_array_equal(panel.session.labels, lost.labels)
        assert panel.session.objects[0].name == "lost spleen"
        assert [x.name for x in viewer.layers] == ["phantom", "phantom objects"]
    else:
        assert not masked(panel)


def test_work_is_autosaved_and_found_after_the_viewer_closed(scene, qtbot, tmp_path):
    viewer, image, panel, hand = scene
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel) and idle(panel))
    kept = panel.session.labels.copy()
    viewer.window.remove_dock_widget(panel)
    pump(100)
    entry = find_recoverable(tmp_path / "autosave")[0]
    np.testing.assert_array_equal(store.load(entry.path, phantom()).labels, kept)


def test_saved_work_is_not_offered_as_unfinished(scene, qtbot, tmp_path, monkeypatch):
    viewer, image, panel, hand = scene
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (12, 30, 22))
    wait_for(qtbot, lambda: masked(panel) and idle(panel))
    ask = "napari_openmedlab.widgets.session_files.QFileDialog.getSaveFileName"
    monkeypatch.setattr(ask, lambda *a, **k: (str(tmp_path / "work.omlsession"), ""))
    panel.files.save.click()
    assert panel.run.status.severity == "done"
    viewer.window.remove_dock_widget(panel)
    pump(100)
    assert not find_recoverable(tmp_path / "autosave")


def test_closed_panel_keeps_no_session_alive(viewer, make_panel, qtbot):
    import gc
    import weakref

    image = add_volume(viewer, phantom())
    panel = make_panel(viewer)
    session = weakref.ref(panel.session)
    viewer.window.remove_dock_widget(panel)
    panel.deleteLater()
    del panel
    pump(100)
    viewer.layers.clear()
    del image
    pump(50)
    gc.collect()
    assert session() is None
