"""Files through napari's own doors: readers, writers, samples, manifest, preferences."""

from __future__ import annotations

import importlib
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from npe2 import PluginManager, PluginManifest

import napari_openmedlab
from napari_openmedlab.bridge.layers import labels_to_layer_data, tag_of
from napari_openmedlab.bridge.preferences import Preferences, read_preferences
from napari_openmedlab.bridge.readers import PATTERNS, get_reader, read_layers
from napari_openmedlab.bridge.writers import write_labels
from napari_openmedlab.errors import ReadError


@pytest.fixture(scope="module")
def manifest():
    return PluginManifest.from_distribution("napari-openmedlab")


@pytest.fixture
def oblique_nifti(tmp_path):
    """A NIfTI file on an oblique grid with voxel (3, 4, 5) of (i, j, k) marked."""
    angle = np.radians(12)
    affine = np.diag([2.0, 1.5, 3.0, 1.0])
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ affine
    affine[:3, 3] = (-10, 20, 30)
    data = np.zeros((9, 10, 11), dtype=np.int16)
    data[3, 4, 5] = 100
    path = tmp_path / "scan.nii.gz"
    image = nibabel.Nifti1Image(data, affine)
    image.set_sform(affine, code=1)
    image.to_filename(path)
    return path


def layer_from(path):
    return Layer.create(*read_layers(str(path))[0])


def test_npe2_finds_the_manifest_valid():
    command = [sys.executable, "-m", "npe2", "validate", "napari-openmedlab"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_command_of_the_manifest_exists(manifest):
    commands = manifest.contributions.commands
    assert len(commands) > 8
    for command in commands:
        module, _, name = command.python_name.partition(":")
        assert callable(getattr(importlib.import_module(module), name)), command.id


def test_reader_patterns_of_code_and_manifest_agree_and_leave_other_images_alone(manifest):
    (reader,) = manifest.contributions.readers
    assert set(reader.filename_patterns) == set(PATTERNS)
    assert reader.accepts_directories
    assert not {"*", "*.tif", "*.tiff", "*.png"} & set(reader.filename_patterns)


def test_defaults_of_the_preferences_are_the_same_in_code_and_manifest(manifest):
    found = {
        name: item.default
        for group in manifest.contributions.configurations.values()
        for name, item in group.properties.items()
    }
    assert found == vars(Preferences())


def test_preferences_follow_naparis_settings(monkeypatch):
    from types import SimpleNamespace

    stored = SimpleNamespace(
        session=SimpleNamespace(autosave=False, undo_megabytes=64),
        segment=SimpleNamespace(overlap="overwrite"),
        view=SimpleNamespace(letters=False),
    )
    monkeypatch.setattr("napari.settings.get_plugin_settings", lambda name: stored)
    wanted = Preferences(autosave=False, undo_megabytes=64, overlap="overwrite", letters=False)
    assert read_preferences() == wanted


def test_preferences_are_the_defaults_where_napari_knows_none(monkeypatch):
    def unknown(name):
        raise KeyError(name)

    monkeypatch.setattr("napari.settings.get_plugin_settings", unknown)
    assert read_preferences() == Preferences()


def test_a_scan_opens_as_an_image_and_its_mask_goes_back_on_the_very_grid(oblique_nifti, tmp_path):
    image = layer_from(oblique_nifti)
    assert isinstance(image, Image)
    volume = tag_of(image).volume
    mask = (np.asarray(volume.array) == 100).astype(np.uint8)
    layer = Layer.create(*labels_to_layer_data(mask, volume))
    target = tmp_path / "mask.nii.gz"
    data, meta, _ = layer.as_layer_data_tuple()
    assert str(target) in write_labels(str(target), data, meta)
    source, written = nibabel.load(oblique_nifti), nibabel.load(target)
    np.testing.assert_array_equal(written.affine, source.affine)
    assert np.argwhere(np.asarray(written.dataobj)).tolist() == [[3, 4, 5]]
    itk = SimpleITK.ReadImage(str(target))
    assert itk.GetPixel(3, 4, 5) == 1
    lps = np.array(itk.TransformIndexToPhysicalPoint((3, 4, 5)))
    np.testing.assert_allclose(lps * (-1, -1, 1), (source.affine @ (3, 4, 5, 1))[:3], atol=1e-4)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_every_suffix_of_the_writer_is_written(oblique_nifti, tmp_path, suffix):
    volume = tag_of(layer_from(oblique_nifti)).volume
    mask = (np.asarray(volume.array) == 100).astype(np.uint8)
    data, meta, _ = Layer.create(*labels_to_layer_data(mask, volume)).as_layer_data_tuple()
    target = tmp_path / f"mask{suffix}"
    write_labels(str(target), data, meta)
    assert int(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(target))).sum()) == 1


def test_a_foreign_labels_layer_is_written_on_its_own_grid(tmp_path):
    data = np.zeros((4, 5, 6), dtype=int)
    data[1, 2, 3] = 9
    layer = Labels(data, scale=(3, 2, 1), units=("mm",) * 3)
    target = tmp_path / "own.nii.gz"
    write_labels(str(target), *layer.as_layer_data_tuple()[:2])
    written = nibabel.load(target)
    np.testing.assert_allclose(written.header.get_zooms(), (1, 2, 3))
    assert np.asarray(written.dataobj).max() == 9
    assert np.asarray(written.dataobj).dtype == np.uint8


def test_a_mask_of_ours_comes_back_as_labels_with_names_and_colours(oblique_nifti, tmp_path):
    volume = napari_openmedlab.read(oblique_nifti)
    from napari_openmedlab.io.sidecar import LabelInfo

    mask = np.zeros(volume.array.shape, np.uint8)
    mask[2:4, 2:4, 2:4] = 1
    objects = {1: LabelInfo("liver", (0.0, 1.0, 0.0))}
    target = tmp_path / "liver.nii.gz"
    napari_openmedlab.write(target, mask, volume, objects=objects)
    layer = layer_from(target)
    assert isinstance(layer, Labels)
    np.testing.assert_array_equal(layer.data, mask)
    np.testing.assert_allclose(layer.get_color(1), (0, 1, 0, 1), atol=1e-6)
    assert list(layer.features["name"]) == ["background", "liver"]


def test_niftis_label_intent_makes_labels(tmp_path):
    image = nibabel.Nifti1Image(np.ones((3, 4, 5), np.uint8), np.diag([1.0, 1, 1, 1]))
    image.set_sform(image.affine, code=1)
    image.header["intent_code"] = 1002
    image.to_filename(tmp_path / "labels.nii")
    assert isinstance(layer_from(tmp_path / "labels.nii"), Labels)


@pytest.mark.parametrize("name", ["empty.nii.gz", "text.nrrd", "cut.nii.gz"])
def test_a_bad_file_ends_in_a_sentence_that_names_it(tmp_path, oblique_nifti, name):
    path = tmp_path / name
    whole = oblique_nifti.read_bytes()
    path.write_bytes({"e": b"", "t": b"hello", "c": whole[: len(whole) // 2]}[name[0]])
    with pytest.raises(ReadError, match=name):
        get_reader(str(path))(str(path))


def test_folders_without_images_and_loose_stacks_are_left_to_others(tmp_path):
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    assert get_reader(str(tmp_path)) is None
    assert get_reader([str(tmp_path / "a.png"), str(tmp_path / "b.png")]) is None


@pytest.fixture
def four_d(tmp_path):
    data = np.zeros((4, 5, 6, 3), np.int16)
    data[..., 2] = 7
    image = nibabel.Nifti1Image(data, np.eye(4))
    image.set_sform(image.affine, code=1)
    image.to_filename(tmp_path / "four.nii.gz")
    return tmp_path / "four.nii.gz"


def test_of_several_images_the_chosen_ones_open(four_d):
    layers = read_layers(str(four_d), choose=lambda file, found: found[1:])
    assert [layer[1]["name"] for layer in layers] == ["four [1]", "four [2]"]
    assert int(np.max(layers[1][0])) == 7


def test_a_cancelled_choice_opens_nothing_and_is_no_error(four_d):
    assert read_layers(str(four_d), choose=lambda file, found: ()) == [(None,)]


def test_without_a_window_the_largest_opens_and_the_others_are_named(four_d, monkeypatch):
    said = []
    monkeypatch.setattr("napari.utils.notifications.show_warning", said.append)
    monkeypatch.setattr("napari.current_viewer", lambda: None)
    assert len(read_layers(str(four_d))) == 1
    assert "four [1], four [2]" in said[0]


def test_the_dialog_lists_every_image_and_returns_those_picked(qtbot, four_d):
    from napari_openmedlab.bridge.choosing import ChoiceDialog
    from napari_openmedlab.io.api import list_images

    dialog = ChoiceDialog(four_d, list_images(four_d))
    qtbot.addWidget(dialog)
    assert dialog.list.count() == 3
    assert len(dialog.chosen()) == 1
    dialog.list.selectAll()
    assert [c.title for c in dialog.chosen()] == ["four [0]", "four [1]", "four [2]"]


def test_our_reader_is_preferred_only_once_the_user_asks(monkeypatch):
    from napari.settings import get_settings

    from napari_openmedlab.bridge.commands import prefer_our_reader

    plugins = get_settings().plugins
    before = dict(plugins.extension2reader)
    assert "napari-openmedlab" not in before.values()
    prefer_our_reader()
    assert plugins.extension2reader["*.nii.gz"] == "napari-openmedlab"
    assert {*PATTERNS, "*/"} <= set(plugins.extension2reader)
    plugins.extension2reader = before


def test_napari_reads_and_saves_through_the_plugin(oblique_nifti, tmp_path, manifest):
    PluginManager.instance().discover()
    viewer = ViewerModel()
    from npe2 import read, write

    (image,) = read([str(oblique_nifti)], stack=False, plugin_name="napari-openmedlab")
    layer = viewer.add_layer(Layer.create(*image))
    mask = np.zeros(layer.data.shape, np.uint8)
    mask[1, 1, 1] = 1
    labels = Layer.create(*labels_to_layer_data(mask, tag_of(layer).volume))
    target = str(tmp_path / "m.nii.gz")
    written = write(target, [labels.as_layer_data_tuple()], plugin_name="napari-openmedlab")
    assert target in written


@pytest.mark.gui
def test_files_and_folders_open_without_a_question_once_ours_is_preferred(
    make_napari_viewer, oblique_nifti, tmp_path
):
    import tifffile
    from napari.settings import get_settings

    from napari_openmedlab.bridge.commands import prefer_our_reader

    plugins = get_settings().plugins
    before = dict(plugins.extension2reader)
    folder = tmp_path / "stack"
    folder.mkdir()
    for z in range(3):
        tifffile.imwrite(folder / f"z{z}.tif", np.full((5, 6), z, np.uint8))
    viewer = make_napari_viewer()
    try:
        prefer_our_reader()
        scan, stack = viewer.open(oblique_nifti, plugin=None), viewer.open(folder, plugin=None)
    finally:
        plugins.extension2reader = before
    assert tag_of(scan[0]).volume.geometry.codes == "IPL"
    assert stack[0].data.shape == (3, 5, 6)


@pytest.mark.gui
def test_the_menu_commands_open_their_panels_in_this_viewer(make_napari_viewer):
    from napari_openmedlab.bridge.commands import open_export_panel, open_segment_panel

    viewer = make_napari_viewer()
    open_segment_panel(viewer)
    open_export_panel(viewer)
    open_segment_panel(viewer)
    titles = list(viewer.window.dock_widgets)
    assert len([t for t in titles if "Segment" in t]) == 1
    assert len([t for t in titles if "Export" in t]) == 1
