from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

import napari_openmedlab as oml
from napari_openmedlab.errors import ReadError
from napari_openmedlab.io import itk

VALUES = np.arange(60, dtype=np.int16).reshape(3, 4, 5)  # (z, y, x)


def save(path, values=VALUES, *, direction=None, vector=False):
    image = sitk.GetImageFromArray(values, isVector=vector)
    if values.ndim == 3 or vector:
        image.SetSpacing((0.5, 0.75, 3.0))
        image.SetOrigin((10, 20, 30))
        image.SetDirection(direction or (1, 0, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path))
    return path


def nrrd_text(path, space, directions, *, sizes="5 4 3", values=VALUES, more=""):
    """Write a NRRD by hand, header as other programs write it."""
    header = f"NRRD0004\ntype: int16\ndimension: 3\n{space}sizes: {sizes}\n{directions}"
    header += f"endian: little\nencoding: raw\n{more}\n"
    path.write_bytes(header.encode() + values.astype("<i2").tobytes())
    return path


@pytest.mark.parametrize("suffix", ["nrrd", "nhdr", "mha", "mhd"])
def test_axes_come_in_display_order(tmp_path, suffix):
    volume = oml.read(save(tmp_path / f"a.{suffix}"))
    assert volume.geometry.codes == "IPL"
    assert np.array_equal(volume.array, VALUES[::-1])
    assert volume.geometry.spacing == (3.0, 0.75, 0.5)
    assert np.allclose(volume.geometry.to_world((2, 0, 0)), (10, 20, 30))
    assert volume.notes == ()


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (1, 1, 1)),
        ("right-anterior-superior", (-1, -1, 1)),
        ("left-anterior-superior", (1, -1, 1)),
        ("RAS", (-1, -1, 1)),
    ],
)
def test_every_space_of_a_nrrd_becomes_lps(tmp_path, space, signs):
    path = nrrd_text(
        tmp_path / "a.nrrd",
        f"space: {space}\n",
        "space directions: (0.5,0,0) (0,0.75,0) (0,0,3)\nspace origin: (10,20,30)\n",
    )
    grid = oml.read(path).source.geometry
    assert np.allclose(grid.to_world((0, 0, 0)), np.multiply(signs, (10, 20, 30)))
    assert np.allclose(grid.to_world((1, 1, 1)), np.multiply(signs, (10.5, 20.75, 33)))


def test_a_sheared_nrrd_keeps_its_shear(tmp_path):
    path = nrrd_text(
        tmp_path / "a.nrrd",
        "space: left-posterior-superior\n",
        "space directions: (1,0,0) (0,1,0) (0,0.3,2)\nspace origin: (0,0,0)\n",
    )
    grid = oml.read(path).source.geometry
    assert grid.is_sheared
    assert np.allclose(grid.to_world((2, 1, 1)), (1, 1.6, 4))


def test_a_nrrd_without_a_space_claims_no_left_and_right(tmp_path):
    path = nrrd_text(tmp_path / "a.nrrd", "", "spacings: 0.5 0.75 3\n")
    volume = oml.read(path)
    assert volume.geometry.frame == "image"
    assert np.array_equal(volume.array, VALUES)
    assert volume.geometry.spacing == (3.0, 0.75, 0.5)
    assert "left and right are not known" in volume.notes[0]


@pytest.mark.parametrize("suffix", ["nrrd", "nii.gz", "tif"])
def test_labels_of_a_nrrd_without_a_space_come_back(tmp_path, suffix):
    volume = oml.read(nrrd_text(tmp_path / "a.nrrd", "", "spacings: 0.5 0.75 3\n"))
    oml.write(tmp_path / f"m.{suffix}", VALUES, volume)
    labels, _ = oml.read_labels(tmp_path / f"m.{suffix}", like=volume)
    assert np.array_equal(labels.array, VALUES)


def test_a_2d_image_is_a_volume_of_one_slice(tmp_path):
    assert oml.read(save(tmp_path / "a.mha", VALUES[0])).array.shape == (1, 4, 5)


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_a_4d_file_asks_which_volume_and_reads_that(tmp_path, suffix):
    values = np.arange(120, dtype=np.int16).reshape(2, 3, 4, 5)
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=False), str(path))
    with pytest.raises(ReadError, match=r"2 volumes.*index 0 to 1"):
        oml.read(path)
    assert [c.shape for c in itk.list_images(path)] == [(3, 4, 5)] * 2
    volume = oml.read(path, index=1)
    assert np.array_equal(volume.source.move.undo(volume.array), values[1])
    with pytest.raises(ReadError, match="volumes 0 to 1, not 2"):
        oml.read(path, index=2)


def test_one_component_of_a_vector_image_can_be_chosen(tmp_path):
    values = np.stack([VALUES, VALUES + 100], -1)
    path = save(tmp_path / "a.nrrd", values, vector=True)
    with pytest.raises(ReadError, match="4D, vector or colour image"):
        oml.read(path)
    volume = oml.read(path, series="1")
    assert np.array_equal(volume.source.move.undo(volume.array), VALUES + 100)


def test_nan_is_kept_and_said(tmp_path):
    values = VALUES.astype(np.float32)
    values[0, 0, 0] = np.nan
    volume = oml.read(save(tmp_path / "a.nrrd", values))
    assert np.isnan(volume.array).sum() == 1
    assert "1 of 60 voxels hold no number" in volume.notes[-1]


@pytest.mark.parametrize("suffix", ["nrrd", "mha", "mhd"])
@pytest.mark.parametrize("keep", [0, 20, 300])
def test_a_file_cut_short_is_a_sentence(tmp_path, suffix, keep):
    path = save(tmp_path / f"a.{suffix}", np.random.default_rng(0).random((20, 20, 20)))
    part = path if suffix != "mhd" or keep < 300 else path.with_suffix(".raw")
    part.write_bytes(part.read_bytes()[:keep])
    with pytest.raises(ReadError, match=rf"a\.{suffix}"):
        oml.read(path)


def test_a_header_without_its_data_file_is_explained(tmp_path):
    path = save(tmp_path / "a.mhd")
    path.with_suffix(".raw").unlink()
    with pytest.raises(ReadError, match="header whose data file is missing"):
        oml.read(path)


def test_directions_without_inverse_are_explained(tmp_path):
    path = nrrd_text(
        tmp_path / "a.nrrd",
        "space: left-posterior-superior\n",
        "space directions: (1,0,0) (1,0,0) (0,0,2)\nspace origin: (0,0,0)\n",
    )
    with pytest.raises(ReadError, match=r"a\.nrrd"):
        oml.read(path)
