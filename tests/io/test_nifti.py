from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import napari_openmedlab as oml
from napari_openmedlab.errors import ReadError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.io import nifti

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 3, 0, -40], [0, 0, 4, 50], [0, 0, 0, 1]])


def scan(shape=(4, 5, 6), dtype=np.int16):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def save(path, values, affine=AFFINE, *, sform=1, qform=1, unit=2, **fields):
    image = nib.Nifti1Image(values, None)
    image.header.set_qform(affine, qform)
    image.header.set_sform(affine, sform)
    image.header["xyzt_units"] = unit
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def patch_header(path, **fields):
    """Set header fields that nibabel itself would not write."""
    data = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.binaryblock
    path.write_bytes(data)
    return path


def test_axes_come_in_display_order_without_a_copy(tmp_path):
    values = scan()
    volume = oml.read(save(tmp_path / "a.nii.gz", values))
    assert volume.array.shape == (6, 5, 4)
    assert volume.geometry.codes == "IPL"
    # RAS file: i runs right to left here (-2), j to anterior, k to superior
    assert np.array_equal(volume.array, values.transpose(2, 1, 0)[::-1, ::-1, ::1])
    assert volume.array.base is not None
    assert volume.geometry.spacing == (4, 3, 2)
    assert np.allclose(volume.geometry.to_world((5, 4, 0)), (-30, 40, 50))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, ">i2"])
def test_stored_integers_stay_integers(tmp_path, dtype):
    values = scan(dtype=dtype)
    image = nib.Nifti1Image(
        values, AFFINE, nib.Nifti1Header(endianness=">" if dtype == ">i2" else "<")
    )
    image.set_data_dtype(dtype)
    nib.save(image, tmp_path / "a.nii")
    array = oml.read(tmp_path / "a.nii").array
    assert array.dtype == np.dtype(dtype).newbyteorder("=")
    assert array.dtype.isnative
    assert sorted(array.ravel()) == sorted(values.ravel())


def test_a_scaled_file_gives_its_real_values_as_float32(tmp_path):
    path = patch_header(save(tmp_path / "a.nii", scan()), scl_slope=0.5, scl_inter=-100)
    volume = oml.read(path)
    assert volume.array.dtype == np.float32
    assert np.allclose(
        volume.source.move.undo(volume.array), np.asarray(nib.load(path).dataobj), atol=1e-4
    )


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_a_slope_of_zero_or_no_number_means_no_scaling(tmp_path, slope):
    path = patch_header(save(tmp_path / "a.nii", scan()), scl_slope=slope, scl_inter=np.nan)
    assert oml.read(path).array.dtype == np.int16


def test_the_sform_wins_and_a_qform_elsewhere_is_said(tmp_path):
    image = nib.Nifti1Image(scan(), None)
    moved = AFFINE.copy()
    moved[0, 3] += 25
    image.header.set_sform(AFFINE, 1)
    image.header.set_qform(moved, 1)
    nib.save(image, tmp_path / "a.nii")
    volume = oml.read(tmp_path / "a.nii")
    assert np.allclose(volume.source.geometry.to_world((0, 0, 0)), (-30, 40, 50))
    assert "up to 25 apart" in volume.notes[0]


def test_the_qform_counts_without_an_sform(tmp_path):
    volume = oml.read(save(tmp_path / "a.nii", scan(), sform=0, qform=2))
    assert np.allclose(volume.source.geometry.to_world((0, 0, 0)), (-30, 40, 50))
    assert volume.notes == ()


def test_a_qfac_of_zero_means_one_as_the_standard_says(tmp_path):
    path = save(tmp_path / "a.nii", scan(), np.diag([2.0, 3, 4, 1]), sform=0)
    before = oml.read(path).geometry
    data = bytearray(path.read_bytes())
    data[76:80] = bytes(4)  # pixdim[0]
    path.write_bytes(data)
    assert oml.read(path).geometry.same_grid(before)
    assert oml.read(path).geometry.frame == "patient"


def test_a_file_that_does_not_place_the_patient_claims_no_left_and_right(tmp_path):
    volume = oml.read(save(tmp_path / "a.nii", scan(), sform=0, qform=0))
    assert volume.geometry.frame == "image"
    assert volume.geometry.codes == "zyx"
    assert np.array_equal(volume.array, scan().T)
    assert "left and right are not known" in volume.notes[0]


def test_an_sform_without_inverse_is_passed_over_and_said(tmp_path):
    path = patch_header(save(tmp_path / "a.nii", scan()), srow_z=[0, 0, 0, 0])
    volume = oml.read(path)
    assert volume.geometry.codes == "IPL"
    assert "sform can't be inverted" in volume.notes[0]


@pytest.mark.parametrize(
    ("code", "unit", "spacing"),
    [(2, "mm", 4.0), (1, "mm", 4000.0), (3, "um", 4.0), (0, "mm", 4.0)],
)
def test_length_units_are_followed(tmp_path, code, unit, spacing):
    geometry = oml.read(save(tmp_path / "a.nii", scan(), unit=code)).geometry
    assert (geometry.unit, geometry.spacing[0]) == (unit, spacing)


def test_a_2d_image_and_a_scan_of_one_slice_are_volumes_of_one_slice(tmp_path):
    assert oml.read(save(tmp_path / "a.nii", scan((4, 5)))).array.shape == (1, 5, 4)
    assert oml.read(save(tmp_path / "b.nii", scan((4, 5, 1)))).array.shape == (1, 5, 4)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_a_4d_file_asks_which_volume_and_reads_that(tmp_path, suffix):
    values = scan((3, 4, 5, 6))
    path = save(tmp_path / f"a.{suffix}", values)
    with pytest.raises(ReadError, match=r"6 volumes.*choose one: index 0 to 5"):
        oml.read(path)
    assert [c.key for c in nifti.list_images(path)] == list("012345")
    volume = oml.read(path, index=4)
    assert np.array_equal(volume.source.move.undo(volume.array), values[..., 4])
    assert volume.notes[-1] == "volume 5 of 6 of a 4D file"
    assert np.array_equal(oml.read(path, series="4").array, volume.array)
    with pytest.raises(ReadError, match="volumes 0 to 5, not 6"):
        oml.read(path, index=6)
    with pytest.raises(ReadError, match="no image called 'T1'"):
        oml.read(path, series="T1")


def test_a_mask_of_one_volume_of_a_4d_file_has_three_axes(tmp_path):
    path = save(tmp_path / "a.nii", scan((3, 4, 5, 6)))
    volume = oml.read(path, index=1)
    oml.write(tmp_path / "m.nii", np.ones(volume.geometry.shape, int), volume)
    mask = nib.load(tmp_path / "m.nii")
    assert mask.shape == (3, 4, 5)
    assert np.array_equal(mask.affine, nib.load(path).affine)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6, 1)])
def test_a_mask_has_as_many_axes_as_its_scan(tmp_path, shape):
    volume = oml.read(save(tmp_path / "a.nii", scan(shape)))
    oml.write(tmp_path / "m.nii", np.ones(volume.geometry.shape, int), volume)
    assert nib.load(tmp_path / "m.nii").shape == shape


def test_nan_is_kept_and_said(tmp_path):
    values = scan(dtype=np.float32)
    values[1, 2, 3] = np.nan
    values[0, 0, 0] = np.inf
    volume = oml.read(save(tmp_path / "a.nii", values))
    assert np.isnan(volume.array).sum() == 1
    assert "2 of 120 voxels hold no number" in volume.notes[-1]


def test_a_pair_and_a_second_version_file_open_too(tmp_path):
    nib.save(nib.Nifti1Pair(scan(), AFFINE), tmp_path / "pair.img")
    nib.save(nib.Nifti2Image(scan(), AFFINE), tmp_path / "two.nii.gz")
    one = oml.read(tmp_path / "pair.hdr")
    two = oml.read(tmp_path / "two.nii.gz")
    assert np.array_equal(one.array, two.array)
    for volume, kind in ((one, nib.Nifti1Image), (two, nib.Nifti2Image)):
        oml.write(tmp_path / "m.nii", np.ones(volume.geometry.shape, int), volume)
        assert type(nib.load(tmp_path / "m.nii")) is kind
        assert np.array_equal(nib.load(tmp_path / "m.nii").affine, AFFINE)
    (tmp_path / "pair.img").unlink()
    with pytest.raises(ReadError, match=r"half of a .hdr/.img pair and pair.img"):
        oml.read(tmp_path / "pair.hdr")


def test_content_counts_and_not_whether_the_name_says_gz(tmp_path):
    packed = save(tmp_path / "a.nii.gz", scan())
    plain = tmp_path / "plain.nii.gz"
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    bare = tmp_path / "scan"
    bare.write_bytes(packed.read_bytes())
    for path in (plain, bare):
        assert np.array_equal(oml.read(path).array, oml.read(packed).array)


def test_a_big_endian_scan_gets_a_mask_both_libraries_read(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    image = nib.Nifti1Image(scan(), AFFINE, header)
    nib.save(image, tmp_path / "a.nii")
    volume = oml.read(tmp_path / "a.nii")
    labels = np.zeros(volume.geometry.shape, int)
    labels[1, 2, 3] = 300
    oml.write(tmp_path / "m.nii", labels, volume)
    (index,) = np.argwhere(np.asarray(nib.load(tmp_path / "m.nii").dataobj) == 300)
    ((z, y, x),) = np.argwhere(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "m.nii")) == 300)
    assert tuple(index) == (x, y, z)


def test_the_patient_leaves_no_trace_in_a_mask(tmp_path):
    name = b"MUSTER^ERIKA"
    image = nib.Nifti1Image(scan(), AFFINE)
    image.header["descrip"] = image.header["aux_file"] = name
    image.header["db_name"] = image.header["intent_name"] = name
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", name))
    image.header["cal_max"] = 400
    nib.save(image, tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes().count(name) == 5
    volume = oml.read(tmp_path / "a.nii")
    oml.write(tmp_path / "m.nii", np.ones(volume.geometry.shape, int), volume)
    assert name not in (tmp_path / "m.nii").read_bytes()
    assert name not in (tmp_path / "m.json").read_bytes()
    header = nib.load(tmp_path / "m.nii").header
    assert (header["cal_max"], header["scl_slope"], header["scl_inter"]) == (0, 1, 0) or np.isnan(
        header["scl_slope"]
    )


def test_a_scaled_scan_gets_an_unscaled_mask(tmp_path):
    path = patch_header(save(tmp_path / "a.nii", scan()), scl_slope=0.25, scl_inter=9)
    volume = oml.read(path)
    labels = np.full(volume.geometry.shape, 3)
    oml.write(tmp_path / "m.nii", labels, volume)
    assert (np.asarray(nib.load(tmp_path / "m.nii").dataobj) == 3).all()


@pytest.mark.parametrize(
    ("largest", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (70000, np.uint32)]
)
def test_a_mask_takes_the_smallest_fitting_type(tmp_path, largest, dtype):
    volume = oml.read(save(tmp_path / "a.nii", scan()))
    labels = np.zeros(volume.geometry.shape, np.int64)
    labels[0, 0, 0] = largest
    oml.write(tmp_path / "m.nii.gz", labels, volume)
    image = nib.load(tmp_path / "m.nii.gz")
    assert image.get_data_dtype() == dtype
    assert np.asarray(image.dataobj).max() == largest


def test_a_volume_without_a_patient_is_written_without_one(tmp_path):
    geometry = oml.Geometry.from_spacing((3, 4, 5), (2.0, 0.5, 0.5), unit="um")
    volume = Volume(np.zeros(geometry.shape), geometry)
    labels = np.arange(60).reshape(3, 4, 5)
    oml.write(tmp_path / "m.nii", labels, volume)
    header = nib.load(tmp_path / "m.nii").header
    assert int(header["sform_code"]) == int(header["qform_code"]) == 0
    assert header.get_xyzt_units()[0] == "micron"
    again, _ = oml.read_labels(tmp_path / "m.nii", like=volume)
    assert np.array_equal(again.array, labels)


# --- bad input -----------------------------------------------------------------------------


def truncated(path, share=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def noise(shape=(20, 20, 20)):
    return np.random.default_rng(0).integers(0, 4000, shape).astype(np.int16)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("share", [0.004, 0.1, 0.6, 0.999])
def test_a_file_cut_short_is_said_to_be(tmp_path, suffix, share):
    path = truncated(save(tmp_path / f"a.{suffix}", noise()), share)
    with pytest.raises(ReadError, match=rf"a\.{suffix}.*(cut short|isn't one|damaged)"):
        oml.read(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Log in</html>", "is a web page"),
        (b"hello world " * 100, "isn't one"),
        (b"\x1f\x8b\x08\x00 not really", "cut short or damaged"),
        (b"\x5c\x01\x00\x00" + bytes(344), "Analyze 7.5"),
    ],
)
def test_what_is_no_nifti_is_said_in_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "a.nii"
    path.write_bytes(content)
    with pytest.raises(ReadError, match=sentence) as caught:
        oml.read(path)
    assert caught.value.path == path


def test_a_colour_image_is_explained(tmp_path):
    rgb = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, AFFINE), tmp_path / "a.nii")
    with pytest.raises(ReadError, match=r"colour image \(RGB\)"):
        oml.read(tmp_path / "a.nii")


def test_a_vector_field_is_explained(tmp_path):
    path = save(tmp_path / "a.nii", scan((3, 4, 5, 1, 3)))
    with pytest.raises(ReadError, match=r"5 axes \(3, 4, 5, 1, 3\): a vector"):
        oml.read(path)


def test_complex_values_are_explained(tmp_path):
    nib.save(nib.Nifti1Image(scan(dtype=np.complex64), AFFINE), tmp_path / "a.nii")
    with pytest.raises(ReadError, match="complex64"):
        oml.read(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"dim": [3, 0, 5, 6, 1, 1, 1, 1]}, "no image size"),
        ({"dim": [9, 4, 5, 6, 1, 1, 1, 1]}, "no image size"),
        ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "cut short or damaged"),
        ({"scl_slope": 2, "scl_inter": np.inf}, "scaling that is no number"),
        ({"datatype": 77}, "a.nii"),
    ],
)
def test_a_damaged_header_is_a_sentence_and_no_crash(tmp_path, fields, sentence):
    path = patch_header(save(tmp_path / "a.nii", scan()), **fields)
    with pytest.raises(ReadError, match=sentence):
        oml.read(path)


def test_any_damaged_byte_of_the_header_is_read_or_refused_in_a_sentence(tmp_path):
    original = save(tmp_path / "a.nii", scan()).read_bytes()
    rng = np.random.default_rng(1)
    path = tmp_path / "b.nii"
    for _ in range(300):
        data = bytearray(original)
        for place in rng.integers(0, 348, 3):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            oml.read(path, index=0)
        except ReadError as error:
            assert "b.nii" in str(error)  # noqa: PT017
