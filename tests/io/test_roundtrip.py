"""Where a marked voxel lies after read -> mark -> write, by two libraries that aren't ours.

nibabel and SimpleITK read what we wrote; each tells the place of the marked voxel in its own
way. Both must agree with ``Geometry.to_world`` of the displayed voxel. NIfTI keeps float32:
places agree to 1e-3 mm at coordinates up to 500 mm. Where ITK prefers the qform, its float32
quaternion (the fourth part is the root of a small difference near half a turn) may turn the grid
by up to 1e-3 radians in ITK's eyes, scan and mask alike: there ITK's grids of both files must be
equal to the bit, and the place is allowed that angle times the distance. ITK's NIfTI reader
refuses sheared sforms, so there SimpleITK looks at a NRRD of the same labels, which holds shear.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_factory import AXIAL, CORONAL, SAGITTAL, ct_slice, oblique, phantom, save
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import ORIENTATIONS, affines, geometries, oblique_affines, shapes

import napari_openmedlab as oml
from napari_openmedlab.geometry.frames import ras_lps
from napari_openmedlab.geometry.volume import Geometry, Volume

TOLERANCE_MM = 1e-3
QUATERNION_RADIANS = 1e-3
lps = np.array([-1.0, -1.0, 1.0])


def save_scan(path: Path, affine_lps, shape, sform=1, qform=1, dtype=np.int16):
    """Write a scan with nibabel, its values all different."""
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    image = nib.Nifti1Image(values, None)
    affine = ras_lps(affine_lps)
    image.header.set_xyzt_units("mm")
    image.header.set_qform(affine, qform, strip_shears=True)
    image.header.set_sform(affine, sform)
    nib.save(image, path)
    return values


def place_by_nibabel(path: Path, value: int) -> np.ndarray:
    image = nib.load(path)
    (index,) = np.argwhere(np.asarray(image.dataobj) == value)
    return lps * nib.affines.apply_affine(image.affine, index[:3])


def place_by_sitk(path: Path, value: int) -> np.ndarray:
    image = sitk.ReadImage(str(path))
    ((z, y, x),) = np.argwhere(sitk.GetArrayFromImage(image) == value)
    return np.array(image.TransformIndexToPhysicalPoint((int(x), int(y), int(z))))


def marked(volume: Volume, index) -> np.ndarray:
    labels = np.zeros(volume.geometry.shape, np.int32)
    labels[tuple(index)] = 7
    return labels


def draw_index(data, shape):
    return tuple(data.draw(st.integers(0, n - 1)) for n in shape)


@settings(deadline=None, max_examples=60)
@given(
    st.data(),
    oblique_affines(),
    shapes(),
    st.sampled_from([(1, 0), (0, 1), (2, 1), (3, 3), (1, 4)]),
)
def test_both_libraries_find_the_marked_voxel_where_it_was_shown(data, affine, shape, codes):
    with tempfile.TemporaryDirectory() as folder:
        scan, mask = Path(folder, "scan.nii.gz"), Path(folder, "mask.nii.gz")
        values = save_scan(scan, affine, shape, *codes)
        volume = oml.read(scan)
        index = draw_index(data, volume.geometry.shape)
        oml.write(mask, marked(volume, index), volume)
        place = volume.geometry.to_world(index)
        assert np.allclose(place_by_nibabel(mask, 7), place, atol=TOLERANCE_MM)
        reach = np.linalg.norm(place - volume.source.geometry.to_world((0, 0, 0)))
        slack = TOLERANCE_MM + QUATERNION_RADIANS * reach
        assert np.linalg.norm(place_by_sitk(mask, 7) - place) <= slack
        ours, theirs = sitk.ReadImage(str(mask)), sitk.ReadImage(str(scan))
        assert ours.GetDirection() == theirs.GetDirection()
        assert (ours.GetOrigin(), ours.GetSpacing()) == (theirs.GetOrigin(), theirs.GetSpacing())
        # the mark sits on the very voxel of the file that was shown there
        found = np.asarray(nib.load(mask).dataobj) == 7
        assert values[found] == volume.array[index]
        assert_same_grid_to_the_bit(scan, mask)


def assert_same_grid_to_the_bit(scan: Path, mask: Path):
    ours, theirs = nib.load(mask), nib.load(scan)
    assert ours.shape == theirs.shape
    assert ours.affine.tobytes() == theirs.affine.tobytes()
    for field in (
        *("sform_code", "qform_code", "pixdim", "xyzt_units", "srow_x", "srow_y", "srow_z"),
        *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    ):
        assert ours.header[field].tobytes() == theirs.header[field].tobytes(), field


@settings(deadline=None, max_examples=30)
@given(st.data(), affines(), shapes(low=2))
def test_a_sheared_scan_is_masked_in_place(data, affine, shape):
    with tempfile.TemporaryDirectory() as folder:
        scan, mask = Path(folder, "scan.nii"), Path(folder, "mask.nii")
        save_scan(scan, affine, shape, 1, 0)
        volume = oml.read(scan)
        index = draw_index(data, volume.geometry.shape)
        place = volume.geometry.to_world(index)
        labels = marked(volume, index)
        oml.write(mask, labels, volume)
        assert np.allclose(place_by_nibabel(mask, 7), place, atol=TOLERANCE_MM)
        assert_same_grid_to_the_bit(scan, mask)
        other = mask.with_suffix(".nrrd")
        oml.write(other, labels, volume)
        assert np.allclose(place_by_sitk(other, 7), place, atol=TOLERANCE_MM)


@pytest.mark.parametrize("linear", ORIENTATIONS)
def test_every_orientation_is_shown_alike_and_written_back(tmp_path, linear):
    affine = np.eye(4)
    affine[:3, :3] = linear * (1.0, 2.0, 3.0)
    affine[:3, 3] = (-20, 30, 40)
    values = save_scan(tmp_path / "scan.nii", affine, (3, 4, 5))
    volume = oml.read(tmp_path / "scan.nii")
    assert volume.geometry.codes == "IPL"
    assert np.shares_memory(volume.array, volume.source.move.undo(volume.array))
    oml.write(tmp_path / "copy.nii", volume.array, volume)
    assert np.array_equal(np.asarray(nib.load(tmp_path / "copy.nii").dataobj), values)
    assert np.array_equal(oml.read(tmp_path / "copy.nii").array, volume.array)


@settings(deadline=None, max_examples=30)
@given(st.data(), geometries(oblique_affines()), st.sampled_from(["nii.gz", "nrrd", "mha", "mhd"]))
def test_labels_of_a_volume_without_a_file_lie_where_its_geometry_says(data, geometry, suffix):
    volume = Volume(np.zeros(geometry.shape), geometry)
    index = draw_index(data, geometry.shape)
    with tempfile.TemporaryDirectory() as folder:
        mask = Path(folder, f"mask.{suffix}")
        oml.write(mask, marked(volume, index), volume)
        place = geometry.to_world(index)
        assert np.allclose(place_by_sitk(mask, 7), place, atol=TOLERANCE_MM)
        if suffix == "nii.gz":
            assert np.allclose(place_by_nibabel(mask, 7), place, atol=TOLERANCE_MM)
        again, _ = oml.read_labels(mask, like=volume)
        assert np.array_equal(again.array, marked(volume, index))
        assert again.geometry is geometry


@settings(deadline=None, max_examples=20)
@given(st.data(), geometries(), st.sampled_from(["nrrd", "mha"]))
def test_an_itk_scan_is_masked_on_its_own_grid(data, geometry, suffix):
    with tempfile.TemporaryDirectory() as folder:
        scan, mask = Path(folder, f"scan.{suffix}"), Path(folder, f"mask.{suffix}")
        image = sitk.GetImageFromArray(np.zeros(geometry.shape, np.int16))
        linear, lengths = geometry.affine[:3, 2::-1], np.array(geometry.spacing[::-1])
        image.SetOrigin(geometry.affine[:3, 3])
        image.SetSpacing(lengths)
        image.SetDirection((linear / lengths).ravel())
        sitk.WriteImage(image, str(scan))
        volume = oml.read(scan)
        index = draw_index(data, volume.geometry.shape)
        oml.write(mask, marked(volume, index), volume)
        assert np.allclose(
            place_by_sitk(mask, 7), volume.geometry.to_world(index), atol=TOLERANCE_MM
        )
        ours, theirs = sitk.ReadImage(str(mask)), sitk.ReadImage(str(scan))
        assert ours.GetSize() == theirs.GetSize()
        assert np.allclose(ours.GetOrigin(), theirs.GetOrigin(), atol=1e-9)
        assert np.allclose(ours.GetSpacing(), theirs.GetSpacing(), atol=1e-9)
        assert np.allclose(ours.GetDirection(), theirs.GetDirection(), atol=1e-9)


def place_and_value(image, point):
    index = image.TransformPhysicalPointToIndex([float(v) for v in point])
    return image.GetPixel(index)


def check_dicom(folder, tmp_path, index):
    """Compare a mask of a DICOM series with SimpleITK's own reading of that series."""
    volume = oml.read(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    theirs = reader.Execute()
    place = volume.geometry.to_world(index)
    assert place_and_value(theirs, place) == volume.array[index]
    for suffix in ("nii.gz", "nrrd", "mha"):
        mask = tmp_path / f"mask.{suffix}"
        oml.write(mask, marked(volume, index), volume)
        ours = sitk.ReadImage(str(mask))
        assert place_and_value(ours, place) == 7
        assert np.allclose(place_by_sitk(mask, 7), place, atol=TOLERANCE_MM)
        assert sorted(ours.GetSize()) == sorted(theirs.GetSize())
    assert np.allclose(place_by_nibabel(tmp_path / "mask.nii.gz", 7), place, atol=TOLERANCE_MM)


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, oblique(20.0)])
def test_a_dicom_series_is_masked_where_another_library_sees_it(tmp_path, orientation):
    folder = tmp_path / "series"
    voxels = phantom((5, 6, 7))
    across = np.cross(orientation[:3], orientation[3:])
    for n, plane in enumerate(voxels):
        position = np.array([-30.0, 20.0, 100.0]) + 3.0 * n * across
        save(ct_slice(plane, position, orientation), folder / f"{9 - n}.dcm")
    shape = oml.read(folder).geometry.shape
    check_dicom(folder, tmp_path, tuple(n // 3 for n in shape))


@pytest.mark.data
def test_a_real_compressed_dicom_series_is_masked_in_place(real_data, tmp_path):
    check_dicom(real_data / "ct_dicom_jpeg2000", tmp_path, (3, 200, 260))


@pytest.mark.data
@pytest.mark.parametrize("name", ["ct_torso_3mm/ct.nii.gz", "oblique/ct_pitch.nii.gz"])
def test_a_real_scan_is_masked_in_place(real_data, tmp_path, name):
    scan, mask = real_data / name, tmp_path / "mask.nii.gz"
    volume = oml.read(scan)
    index = tuple(n // 3 for n in volume.geometry.shape)
    oml.write(mask, marked(volume, index), volume)
    assert_same_grid_to_the_bit(scan, mask)
    place = volume.geometry.to_world(index)
    assert np.allclose(place_by_nibabel(mask, 7), place, atol=TOLERANCE_MM)
    assert np.allclose(place_by_sitk(mask, 7), place, atol=TOLERANCE_MM)


def test_spacings_of_a_flat_scan_survive(tmp_path):
    geometry = Geometry((1, 6, 7), np.diag([5.0, 0.5, 0.7, 1])[[2, 1, 0, 3]])
    volume = Volume(np.zeros(geometry.shape), geometry)
    oml.write(tmp_path / "flat.nii.gz", marked(volume, (0, 3, 2)), volume)
    again, _ = oml.read_labels(tmp_path / "flat.nii.gz", like=volume)
    assert again.array[0, 3, 2] == 7
