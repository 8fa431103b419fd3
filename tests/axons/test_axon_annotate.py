"""Rough and fine labels are the published ones to the voxel; cubes are what training takes."""

import json

import numpy as np
import pytest

from napari_openmedlab.axons.annotate import (
    Cube,
    cube_box,
    cubes_in,
    export_cubes,
    fine_label,
    high_pass,
    read_centres,
    rough_label,
    without_small,
)
from napari_openmedlab.errors import GeometryError, ReadError, SettingsError, WriteError
from napari_openmedlab.geometry.boxes import Box


def test_the_published_steps_to_the_voxel(full_golden):
    stored = np.load(full_golden / "axon_seg" / "annot.npz")
    passed = high_pass(stored["raw"])
    np.testing.assert_array_equal(passed, stored["highpass_gauss"])
    assert passed.dtype == np.uint16
    rough = rough_label(passed, float(stored["threshold"]))
    np.testing.assert_array_equal(rough, stored["rough"] > 0)
    np.testing.assert_array_equal(without_small(rough), stored["rough_no_small"] > 0)
    np.testing.assert_array_equal(fine_label(rough, growths=0), stored["skeleton"] > 0)
    np.testing.assert_array_equal(fine_label(rough), stored["fine"] > 0)


def test_the_published_fine_label_of_a_real_cube(real_data):
    import tifffile

    folder = real_data / "lsfm_axons"
    rough = tifffile.imread(folder / "rough1001.tiff") > 0
    fine = tifffile.imread(folder / "fine1001.tiff") > 0
    # The files are the upper part of a taller cube: below, its fine label knew what is cut off.
    assert np.count_nonzero((fine_label(rough) != fine)[:28]) == 0
    assert np.count_nonzero(fine[:28]) > 3000


def test_high_pass_blurs_over_z_and_y_and_mirrors_borders():
    image = np.zeros((5, 5, 5), dtype=np.uint16)
    image[2, 2, 2] = 9000
    passed = high_pass(image)
    assert passed[2, 2, 2] == int(9000 * (1 - 0.33444537**2))
    assert np.count_nonzero(passed) == 1
    ramp = np.broadcast_to(np.arange(6.0) * 10, (6, 6, 6)).transpose(2, 0, 1)
    brighter = high_pass(ramp.astype(np.float32))
    assert brighter.dtype == np.float32
    assert brighter[-1, 3, 3] == pytest.approx(2 * 0.33277732 * 10, rel=1e-5)
    assert brighter[2, 3, 3] == pytest.approx(0, abs=1e-4)


def test_cubes_stay_inside_the_volume():
    assert cube_box((2, 50, 98), (40, 100, 100), 20) == Box((0, 40, 80), (20, 60, 100))
    with pytest.raises(GeometryError, match="does not fit"):
        cube_box((2, 50, 98), (40, 100, 100), 41)
    with pytest.raises(GeometryError, match="outside"):
        cube_box((40, 50, 98), (40, 100, 100), 20)


def test_centres_from_imagej(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(" ,Area,Mean,Min,Max,X,Y,Slice\n1,0,1,1,1,120.5,33,7\n2,0,1,1,1,4,5,1\n")
    assert read_centres(path) == [(6, 33, 120), (0, 5, 4)]
    path.write_text("X,Y\n1,2\n")
    with pytest.raises(ReadError, match="line 2"):
        read_centres(path)
    path.write_text("X,Y,Slice\n")
    with pytest.raises(ReadError, match="no centre"):
        read_centres(path)


def _cube(kind="axon", edge=12, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 4000, (edge,) * 3).astype(np.uint16)
    label = image > 3900 if kind == "axon" else np.zeros(image.shape, bool)
    return Cube(image, label, kind, Box((5, 6, 7), (5 + edge, 6 + edge, 7 + edge)))


def test_exported_cubes_are_training_cases(tmp_path):
    import nibabel as nib

    from napari_openmedlab.training.pairs import pair_folders

    folder = tmp_path / "train"
    first, second = _cube(), _cube("artefact", seed=1)
    export_cubes(folder, [first, second], (2.0, 0.65, 0.65), {"threshold": 480})
    export_cubes(folder, [_cube(seed=2)], (2.0, 0.65, 0.65))
    names = ["artefact-0002", "axon-0001", "axon-0003"]
    cases, left_out = pair_folders(folder / "images", folder / "labels")
    assert sorted(c.name for c in cases) == names
    assert not left_out
    read = nib.load(folder / "images" / "axon-0001.nii.gz")
    np.testing.assert_array_equal(np.asarray(read.dataobj).T, first.image)
    assert read.header.get_zooms() == pytest.approx((0.65, 0.65, 2.0))
    assert read.header.get_xyzt_units()[0] == "micron"
    label = np.asarray(nib.load(folder / "labels" / "axon-0001.nii.gz").dataobj).T
    np.testing.assert_array_equal(label, first.label)
    listed = cubes_in(folder)
    assert listed["axon-0001"]["threshold"] == 480
    assert listed["axon-0001"]["start (z, y, x)"] == [5, 6, 7]
    assert listed["artefact-0002"]["axon voxels"] == 0


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64", "int64", ">u2"])
def test_any_grey_values_can_be_exported(tmp_path, dtype):
    image = np.arange(64).reshape(4, 4, 4).astype(dtype)
    cube = Cube(image, np.zeros(image.shape, bool), "artefact", Box((0, 0, 0), (4, 4, 4)))
    (path,) = export_cubes(tmp_path / "t", [cube])
    import nibabel as nib

    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj).T, image)


def test_other_folders_and_wrong_labels_are_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(WriteError, match="not empty"):
        export_cubes(tmp_path, [_cube()])
    (tmp_path / "cubes.json").write_text(json.dumps([1]))
    with pytest.raises(WriteError, match="damaged"):
        export_cubes(tmp_path, [_cube()])
    cube = _cube()
    with pytest.raises(SettingsError, match="artefact cube"):
        Cube(cube.image, cube.label, "artefact", cube.box)
