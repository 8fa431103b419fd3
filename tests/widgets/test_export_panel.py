"""The Export panel: files on the scan's grid, and sentences when they can't be written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from panel_hands import Hand, add_volume, phantom, pump, wait_for
from qtpy.QtCore import Qt

from napari_openmedlab.io.api import read
from napari_openmedlab.widgets.tools import Tool

pytestmark = pytest.mark.gui


@pytest.fixture
def scan(tmp_path):
    """A NIfTI file stored in another order than it is shown in: RAS, anisotropic, shifted."""
    affine = np.diag([1.1, 0.9, 2.5, 1.0])
    affine[:3, 3] = (-31.0, -22.5, 14.25)
    image = nibabel.Nifti1Image(np.zeros((50, 60, 24), dtype=np.int16), affine)
    image.header.set_xyzt_units("mm")
    path = tmp_path / "scan.nii.gz"
    nibabel.save(image, path)
    return path


@pytest.fixture
def exporting(viewer, make_panel, qtbot, scan):
    """A viewer with two objects made by clicks, and the Export panel: (panel, export)."""
    image = add_volume(viewer, read(scan))
    panel = make_panel(viewer)
    hand = Hand(viewer)
    panel.prompts.tools[Tool.CLICK].click()
    hand.click(image, (8, 20, 12))
    wait_for(qtbot, lambda: bool((panel.session.labels == 1).any()))
    panel.objects.accept.click()
    hand.click(image, (14, 40, 36))
    wait_for(qtbot, lambda: bool((panel.session.labels == 2).any()))
    panel.session.update_object(2, name="left kidney")
    _, export = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Export")
    pump()
    return panel, export


def finish(qtbot, export):
    qtbot.waitUntil(lambda: export.export.isEnabled() and export.status.severity != "busy")
    pump()


def world_of(path, value):
    """Return the mean world position (LPS) of a label by nibabel and by SimpleITK."""
    image = nibabel.load(path)
    index = np.argwhere(np.asarray(image.dataobj) == value).mean(axis=0)
    ras = nibabel.affines.apply_affine(image.affine, index)
    other = sitk.ReadImage(str(path))
    zyx = np.argwhere(sitk.GetArrayFromImage(other) == value).mean(axis=0)
    lps = other.TransformContinuousIndexToPhysicalPoint(zyx[::-1].tolist())
    return ras * (-1, -1, 1), np.array(lps)


def test_exported_mask_lies_where_it_was_clicked_by_two_readers(exporting, qtbot, scan):
    panel, export = exporting
    assert export.path.text() == str(scan.with_name("scan_mask.nii.gz"))
    export.export.click()
    finish(qtbot, export)
    assert export.status.severity == "done"
    path = scan.with_name("scan_mask.nii.gz")
    assert str(path) in export.status.text()
    np.testing.assert_array_equal(nibabel.load(path).affine, nibabel.load(scan).affine)
    geometry = panel.session.volume.geometry
    for value in (1, 2):
        mine = geometry.to_world(np.argwhere(panel.session.labels == value).mean(axis=0))
        for theirs in world_of(path, value):
            np.testing.assert_allclose(theirs, mine, atol=1e-3)
    rows = json.loads(path.with_name("scan_mask.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in rows["objects"]] == ["object 1", "left kidney"]
    how = rows["provenance"]["objects"][0]
    assert how["engine"] == "ball"
    assert len(how["prompts"]["clicks"]) == 1


def test_only_ticked_objects_are_written(exporting, qtbot, scan):
    panel, export = exporting
    export.objects.item(0).setCheckState(Qt.CheckState.Unchecked)
    export.export.click()
    finish(qtbot, export)
    written = np.asarray(nibabel.load(scan.with_name("scan_mask.nii.gz")).dataobj)
    assert set(np.unique(written)) == {0, 2}
    assert (panel.session.labels == 1).any()


def test_one_file_per_object(exporting, qtbot, scan):
    _, export = exporting
    export.separate.setChecked(True)
    export.export.click()
    finish(qtbot, export)
    assert "2 masks" in export.status.text()
    masks = sorted(p.name for p in scan.parent.glob("scan_mask*.nii.gz"))
    assert masks == ["scan_mask_left_kidney.nii.gz", "scan_mask_object_1.nii.gz"]


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_other_formats_lie_in_the_same_place(exporting, qtbot, scan, suffix):
    panel, export = exporting
    export.format.setCurrentIndex(export.format.findData(suffix))
    assert export.path.text().endswith(f"scan_mask{suffix}")
    export.export.click()
    finish(qtbot, export)
    image = sitk.ReadImage(str(scan.with_name(f"scan_mask{suffix}")))
    zyx = np.argwhere(sitk.GetArrayFromImage(image) == 2).mean(axis=0)
    place = image.TransformContinuousIndexToPhysicalPoint(zyx[::-1].tolist())
    mine = np.argwhere(panel.session.labels == 2).mean(axis=0)
    np.testing.assert_allclose(place, panel.session.volume.geometry.to_world(mine), atol=1e-3)


def test_existing_file_is_announced_and_kept_when_writing_fails(
    exporting, qtbot, scan, monkeypatch
):
    panel, export = exporting
    path = scan.with_name("scan_mask.nii.gz")
    export.export.click()
    finish(qtbot, export)
    assert export.warning.isHidden()
    export.path.textEdited.emit(export.path.text())
    assert "will be replaced" in export.warning.text()
    assert not export.warning.isHidden()
    before = path.read_bytes()
    labels = panel.session.labels.copy()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nibabel.save", full)
    monkeypatch.setattr("nibabel.Nifti1Image.to_filename", full)
    monkeypatch.setattr("nibabel.Nifti1Image.to_bytes", full)
    monkeypatch.setattr("os.replace", full)
    export.export.click()
    finish(qtbot, export)
    assert export.status.severity == "error"
    assert path.read_bytes() == before
    np.testing.assert_array_equal(panel.session.labels, labels)
    assert export.export.isEnabled()


def test_folder_that_is_no_folder_is_a_sentence(exporting, qtbot, scan):
    _, export = exporting
    export.path.setText(str(scan / "below_a_file" / "m.nii.gz"))
    export.export.click()
    finish(qtbot, export)
    assert export.status.severity == "error"
    assert "Traceback" not in export.status.text()
    assert "m.nii.gz" in export.status.text() or "below_a_file" in export.status.text()


def test_nothing_ticked_and_no_name_are_sentences(exporting, qtbot):
    _, export = exporting
    export.path.setText("  ")
    export.export.click()
    assert "file name" in export.status.text()
    for row in range(2):
        export.objects.item(row).setCheckState(Qt.CheckState.Unchecked)
    export.export.click()
    assert "no object to export" in export.status.text()


def test_plain_labels_layer_is_exported_too(viewer, qtbot, tmp_path):
    labels = np.zeros((5, 6, 7), dtype=int)
    labels[1:3, 2:4, 2:5] = 3
    viewer.add_labels(labels, scale=(2, 1, 1), units=("mm",) * 3, name="hand made")
    _, export = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Export")
    export.path.setText(str(tmp_path / "hand.nii.gz"))
    export.export.click()
    finish(qtbot, export)
    assert export.status.severity == "done", export.status.text()
    written = np.asarray(nibabel.load(tmp_path / "hand.nii.gz").dataobj)
    assert (written == 3).sum() == 12


def test_samples_are_not_exported_into_the_package(viewer):
    from napari_openmedlab.bridge.exporting import suggested_path
    from napari_openmedlab.io.source import SourceGrid
    from napari_openmedlab.sample_data import image_path

    volume = phantom()
    source = SourceGrid("nifti", image_path("ct_torso"), volume.geometry, None)
    assert suggested_path(replace(volume, source=source), ".nii.gz").parent == Path.home()


def test_export_closed_while_writing_is_clean(exporting, qtbot, scan, viewer):
    import threading

    _, export = exporting
    export.export.click()
    viewer.window.remove_dock_widget(export)
    export.deleteLater()
    del export
    pump(100)
    qtbot.waitUntil(
        lambda: not [t for t in threading.enumerate() if t.name == "openmedlab-export"],
        timeout=5000,
    )
    pump(100)
    assert scan.with_name("scan_mask.nii.gz").exists()


def test_export_panel_opened_first_turns_to_the_session(viewer, make_panel, qtbot):
    image = add_volume(viewer, phantom())
    viewer.add_labels(np.ones(phantom().geometry.shape, dtype=int), name="reference")
    _, export = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Export")
    assert export.source.currentText() == "reference"
    panel = make_panel(viewer)
    assert export.source.currentText() == "phantom objects"
    panel.prompts.tools[Tool.CLICK].click()
    Hand(viewer).click(image, (8, 20, 12))
    wait_for(qtbot, lambda: export.objects.count() == 1)
    export.source.setCurrentText("reference")
    export.source.activated.emit(export.source.currentIndex())
    panel.session.add_object()
    viewer.add_labels(np.zeros((2, 2, 2), dtype=int))
    assert export.source.currentText() == "reference"


@pytest.mark.data
@pytest.mark.parametrize("name", ["ct_dicom_jpeg2000", "oblique/ct_pitch.nii.gz"])
def test_real_scan_clicked_and_exported_in_place(
    viewer, make_panel, qtbot, tmp_path, real_data, name
):
    (image,) = viewer.open(str(real_data / name), plugin="napari-openmedlab")
    panel = make_panel(viewer)
    assert panel.session is not None, panel.run.status.text()
    target = tuple(n // 2 for n in image.data.shape)
    panel.prompts.tools[Tool.CLICK].click()
    Hand(viewer).click(image, target)
    wait_for(qtbot, lambda: bool(panel.session.labels.any()), timeout=20000)
    assert panel.session.labels[target] == 1
    _, export = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Export")
    path = tmp_path / "mask.nii.gz"
    export.path.setText(str(path))
    export.export.click()
    qtbot.waitUntil(lambda: export.export.isEnabled(), timeout=30000)
    assert export.status.severity == "done", export.status.text()
    mine = np.argwhere(panel.session.labels == 1).mean(axis=0)
    for theirs in world_of(path, 1):
        np.testing.assert_allclose(theirs, panel.session.volume.geometry.to_world(mine), atol=0.05)
