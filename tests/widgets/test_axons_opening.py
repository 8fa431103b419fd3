"""Opening and converting volumes in the Axons panel, with the questions that go with it."""

import threading

import numpy as np
import pytest
import tifffile
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication, QMessageBox

from napari_openmedlab.axons.source import open_source
from napari_openmedlab.bridge.axon_layers import source_of_layer
from napari_openmedlab.bridge.choosing import ChoiceDialog


@pytest.fixture
def panel(viewer):
    return viewer.window.add_plugin_dock_widget("napari-openmedlab", "Axons")[1]


@pytest.fixture
def picked(monkeypatch):
    """Answer file dialogs with this path."""

    def pick(path):
        dialogs = "napari_openmedlab.widgets.axon_opening.QFileDialog"
        monkeypatch.setattr(f"{dialogs}.getExistingDirectory", lambda *_: str(path))
        monkeypatch.setattr(f"{dialogs}.getOpenFileName", lambda *_: (str(path), ""))

    return pick


@pytest.fixture
def answer(qtbot):
    """Answer the next dialog with a function of it; returns a list that gets its words."""
    timers = []

    def answered(how):
        seen = []
        timer = QTimer()

        def look():
            dialog = QApplication.activeModalWidget()
            if isinstance(dialog, QMessageBox | ChoiceDialog):
                timer.stop()
                seen.append(words(dialog))
                how(dialog)

        timer.timeout.connect(look)
        timer.start(20)
        timers.append(timer)
        return seen

    yield answered
    for timer in timers:
        timer.stop()


def words(dialog):
    if isinstance(dialog, QMessageBox):
        return dialog.text()
    return [dialog.list.item(row).text() for row in range(dialog.list.count())]


def press(text):
    """Return what presses a message's button."""

    def how(box):
        next(b for b in box.buttons() if b.text().replace("&", "") == text).click()

    return how


def wait(qtbot, panel):
    qtbot.waitUntil(lambda: not panel.desk.busy, timeout=60_000)


def slices(folder, numbers, name="s{:03}.tif"):
    folder.mkdir(exist_ok=True)
    for z in numbers:
        tifffile.imwrite(folder / name.format(z), np.full((20, 30), 10 * z, np.uint16))
    return folder


def test_one_of_several_channels_is_asked_for(viewer, panel, qtbot, tmp_path, picked, answer):
    voxels = np.zeros((5, 2, 20, 30), np.uint16)
    voxels[:, 1] = 7
    tifffile.imwrite(tmp_path / "two.tif", voxels, imagej=True, metadata={"axes": "ZCYX"})
    picked(tmp_path / "two.tif")

    def second(dialog):
        dialog.list.setCurrentRow(1)
        dialog.accept()

    seen = answer(second)
    panel.volume.open_file.click()
    qtbot.waitUntil(lambda: panel.image is not None, timeout=10_000)
    wait(qtbot, panel)
    assert ["channel 0" in seen[0][0], "channel 1" in seen[0][1]] == [True, True]
    assert np.asarray(panel.image.data).min() == 7
    assert source_of_layer(panel.image).address.index == 1
    assert len(viewer.layers) == 1


def test_both_channels_of_a_folder_open_and_a_cancel_opens_none(
    viewer, panel, qtbot, tmp_path, picked, answer
):
    folder = slices(tmp_path / "two", range(4), "z{:03}_C00.tif")
    slices(folder, range(4, 8), "z{:03}_C01.tif")
    for z in range(4):
        (folder / f"z{z + 4:03}_C01.tif").rename(folder / f"z{z:03}_C01.tif")
    picked(folder)
    seen = answer(lambda dialog: dialog.reject())
    panel.volume.open_folder.click()
    qtbot.waitUntil(lambda: panel.go.status.text() == "two was not opened.", timeout=10_000)
    assert len(seen[0]) == 2
    assert panel.image is None

    def both(dialog):
        dialog.list.selectAll()
        dialog.accept()

    answer(both)
    panel.volume.open_folder.click()
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=10_000)
    wait(qtbot, panel)
    assert sorted(int(np.asarray(layer.data).max()) for layer in viewer.layers) == [30, 70]


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_gap_is_filled_or_not_opened(viewer, panel, qtbot, tmp_path, picked, answer, damage):
    folder = slices(tmp_path / "brain", range(6))
    if damage == "missing":
        (folder / "s002.tif").unlink()
    else:
        (folder / "s002.tif").write_bytes(b"II*\0")
    picked(folder)
    seen = answer(press("Stop"))
    panel.volume.open_folder.click()
    qtbot.waitUntil(lambda: panel.go.status.text() == "brain was not opened.", timeout=10_000)
    assert "s00" in seen[0]
    assert not viewer.layers

    answer(press("Fill with neighbours"))
    panel.volume.open_folder.click()
    qtbot.waitUntil(lambda: panel.image is not None, timeout=10_000)
    wait(qtbot, panel)
    assert np.asarray(panel.image.data)[:, 0, 0].tolist() == [0, 10, 10, 30, 40, 50]
    assert "illed with the slice before" in panel.go.status.text()
    assert source_of_layer(panel.image).address.gaps == "fill"


def test_channels_with_a_damaged_slice_ask_for_both(viewer, panel, qtbot, tmp_path, picked, answer):
    folder = slices(tmp_path / "two", range(5), "z{:03}_C00.tif")
    for z in range(5):
        tifffile.imwrite(folder / f"z{z:03}_C01.tif", np.full((20, 30), 7, np.uint16))
    (folder / "z003_C01.tif").write_bytes(b"II*\0")
    picked(folder)

    def second(dialog):
        answer(press("Fill with neighbours"))
        dialog.list.setCurrentRow(1)
        dialog.accept()

    answer(second)
    panel.volume.open_folder.click()
    qtbot.waitUntil(lambda: panel.image is not None, timeout=10_000)
    wait(qtbot, panel)
    assert (np.asarray(panel.image.data) == 7).all()


def test_what_no_answer_helps_is_said(panel, qtbot, tmp_path, picked):
    folder = slices(tmp_path / "brain", range(4))
    tifffile.imwrite(folder / "s004.tif", np.zeros((9, 9), np.uint16))
    picked(folder)
    panel.volume.open_folder.click()
    wait(qtbot, panel)
    assert "differ" in panel.go.status.text()
    assert panel.go.status.severity == "error"


def test_a_folder_is_converted_stopped_gone_on_with_and_opened(
    viewer, panel, qtbot, tmp_path, picked, answer, monkeypatch
):
    monkeypatch.setattr("napari_openmedlab.axons.convert._CHUNK", 16)
    folder = slices(tmp_path / "brain", range(70))
    picked(folder)
    panel.volume.open_folder.click()
    wait(qtbot, panel)
    original = panel.image
    picked(tmp_path)
    panel.volume.convert.click()
    assert "The voxel size is not known" in panel.go.status.text()
    panel.volume.size.setText("4, 2, 2")

    seen = answer(press("Cancel"))
    panel.volume.convert.click()
    assert "voxel size 4 x 2 x 2 um" in seen[0]
    assert "At most 96 kB on the disk (" in seen[0]
    assert "5 slabs" in seen[0]
    assert not (tmp_path / "brain.zarr").exists()

    # Cancelled after the first slab: the gate keeps the second waiting until then.
    gate, slabs = threading.Event(), []
    whole = type(source_of_layer(original)).read

    def read(self, box, *rest):
        slabs.append(box.start[0])
        assert len(slabs) < 2 or gate.wait(20)
        return whole(self, box, *rest)

    monkeypatch.setattr("napari_openmedlab.axons.source.Source.read", read)
    answer(press("OK"))
    panel.volume.convert.click()
    qtbot.waitUntil(lambda: len(slabs) == 2, timeout=20_000)
    qtbot.waitUntil(lambda: panel.go.bar.maximum() == 5, timeout=5_000)
    panel.go.cancel.click()
    gate.set()
    wait(qtbot, panel)
    assert "Cancelled. What is written is kept" in panel.go.status.text()
    assert slabs == [0, 16]

    seen = answer(press("OK"))
    panel.volume.convert.click()
    wait(qtbot, panel)
    assert "it goes on" in seen[0]
    assert slabs == [0, 16, 32, 48, 64]
    assert panel.go.status.text() == f"Written: {tmp_path / 'brain.zarr'}"
    assert panel.image is not original
    assert panel.volume.size.text() == "4, 2, 2"
    np.testing.assert_array_equal(panel.image.data, original.data)
    assert open_source(tmp_path / "brain.zarr").spacing == (4.0, 2.0, 2.0)

    # What is there is left alone.
    panel._chooser.choose(original)
    panel.volume.size.setText("4, 2, 2")
    answer(press("OK"))
    panel.volume.convert.click()
    wait(qtbot, panel)
    assert "is not the beginning of this conversion" in panel.go.status.text()
