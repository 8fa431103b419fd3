"""The main job: from File > Open Sample through real clicks to a NIfTI that others read."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from napari.layers import Image
from panel_hands import Hand, pump, wait_for

from napari_openmedlab.bridge.preferences import Preferences
from napari_openmedlab.bridge.view import show_plane
from napari_openmedlab.sample_data import extreme_points, load
from napari_openmedlab.widgets.tools import Tool

pytestmark = pytest.mark.gui

LEAST_DICE = 0.8


def dice(one, other):
    return 2 * (one & other).sum() / max(1, one.sum() + other.sum())


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_sample_to_nifti_by_clicks(make_napari_viewer, qtbot, tmp_path, monkeypatch, plane):
    built_in = Preferences(autosave_delay=0.05)
    monkeypatch.setattr("napari_openmedlab.bridge.sessions.read_preferences", lambda: built_in)
    viewer = make_napari_viewer()
    viewer.window._qt_window.resize(1300, 900)
    opened = viewer.open_sample("napari-openmedlab", "ct_torso")
    image = next(layer for layer in opened if isinstance(layer, Image))
    _, panel = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Segment")
    volume, reference, names = load("ct_torso")
    target = next(value for value, name in names.items() if name == "spleen")
    hand = Hand(viewer)
    show_plane(viewer, plane)
    panel.prompts.tools[Tool.EXTREME].click()
    for point in extreme_points(reference, target, volume.geometry):
        hand.click(image, np.rint(volume.geometry.to_index(point)))
        pump()
    wait_for(qtbot, lambda: panel.session.labels.any(), timeout=30000)
    assert panel.run.status.severity in ("done", "unsure")
    panel.session.update_object(1, name="spleen")
    assert dice(panel.session.labels == 1, reference == target) > LEAST_DICE

    _, export = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Export")
    path = tmp_path / "spleen.nii.gz"
    export.path.setText(str(path))
    export.export.click()
    qtbot.waitUntil(lambda: path.exists() and export.export.isEnabled(), timeout=20000)
    _check_by_two_readers(path, reference == target, volume.geometry)
    rows = json.loads((tmp_path / "spleen.json").read_text(encoding="utf-8"))
    assert rows["objects"][0]["name"] == "spleen"
    assert len(rows["provenance"]["objects"][0]["prompts"]["extreme_points"]) == 6


def _check_by_two_readers(path, truth, geometry):
    """The mask overlaps the reference where nibabel and SimpleITK say its voxels lie."""
    image = nibabel.load(path)
    ijk = np.argwhere(np.asarray(image.dataobj) == 1)
    by_nibabel = nibabel.affines.apply_affine(image.affine, ijk) * (-1, -1, 1)
    other = sitk.ReadImage(str(path))
    zyx = np.argwhere(sitk.GetArrayFromImage(other) == 1)
    origin, spacing = np.array(other.GetOrigin()), np.array(other.GetSpacing())
    direction = np.array(other.GetDirection()).reshape(3, 3)
    by_itk = origin + (zyx[:, ::-1] * spacing) @ direction.T
    for world in (by_nibabel, by_itk):
        index = np.rint(geometry.to_index(world)).astype(int)
        mask = np.zeros_like(truth)
        mask[tuple(index.T)] = True
        assert mask.sum() == len(world)
        assert dice(mask, truth) > LEAST_DICE
