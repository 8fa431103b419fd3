"""DICOM reading: geometry against SimpleITK's GDCM reader, values, transfer syntaxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_factory import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    ct_slice,
    oblique,
    phantom,
    save,
    write_enhanced,
    write_series,
)
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000Lossless, RLELossless

from napari_openmedlab.errors import ReadError
from napari_openmedlab.io import dicom
from napari_openmedlab.io.dicom_files import find_dicom, scan
from napari_openmedlab.io.dicom_geometry import lay_out
from napari_openmedlab.io.dicom_pixels import fill


def itk_voxels(folder):
    """Read with SimpleITK; return its array (z, y, x) and its index -> LPS function."""
    reader = sitk.ImageSeriesReader()
    uids = reader.GetGDCMSeriesIDs(str(folder))
    assert len(uids) == 1
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), uids[0]))
    image = reader.Execute()
    return sitk.GetArrayFromImage(image), image


def assert_agrees_with_itk(volume, folder):
    array, image = itk_voxels(folder)
    rng = np.random.default_rng(0)
    for index in rng.integers(0, array.shape, (40, 3)):
        point = image.TransformIndexToPhysicalPoint([int(v) for v in index[::-1]])
        ours = np.rint(volume.geometry.to_index(point)).astype(int)
        np.testing.assert_allclose(volume.geometry.to_world(ours), point, atol=1e-3)
        assert volume.array[tuple(ours)] == array[tuple(index)]


@pytest.mark.parametrize(
    "orientation", [AXIAL, SAGITTAL, CORONAL, oblique()], ids=["ax", "sag", "cor", "oblique"]
)
def test_every_voxel_lies_where_simpleitk_puts_it(tmp_path, orientation):
    write_series(tmp_path, phantom(), orientation=orientation)
    volume = dicom.read(tmp_path)
    assert_agrees_with_itk(volume, tmp_path)
    assert volume.geometry.codes == "IPL"
    assert volume.array.dtype == np.int16
    assert volume.array.flags.c_contiguous


def test_slices_sort_by_position_whatever_the_files_are_called(tmp_path):
    pixels = phantom()
    write_series(tmp_path, pixels, shuffle=True)
    volume = dicom.read(tmp_path)
    expected = (pixels.astype(np.int16) - 1024)[::-1]  # inferior last
    np.testing.assert_array_equal(volume.array, expected)
    np.testing.assert_allclose(volume.geometry.spacing, (2.5, 0.8, 0.7))


def test_source_grid_keeps_file_order_and_instance_uids(tmp_path):
    write_series(tmp_path, phantom())
    volume = dicom.read(tmp_path)
    source = volume.source
    assert source.kind == "dicom"
    np.testing.assert_allclose(source.geometry.affine[:3, 3], (-40, -30, 100))
    back = source.to_source(volume.array)
    for k, (uid, frame) in enumerate(source.header.instances):
        [path] = [p for p in tmp_path.iterdir() if pydicom.dcmread(p).SOPInstanceUID == uid]
        assert frame == 0
        np.testing.assert_array_equal(back[k], pydicom.dcmread(path).pixel_array - 1024.0)
    assert source.header.frame_of_reference_uid == "1.2.3.4.6"
    np.testing.assert_allclose(source.display_geometry.affine, volume.geometry.affine)


def test_no_patient_data_in_what_is_shown(tmp_path):
    write_series(tmp_path, phantom(), SeriesDescription="MUSTER abdomen")
    volume = dicom.read(tmp_path)
    shown = f"{volume.name} {volume.notes} {dict(volume.info)}".casefold()
    for secret in ("muster", "erika", "998877", "1999"):
        assert secret not in shown
    assert volume.name == "CT series 4"


def test_series_description_names_the_volume(tmp_path):
    write_series(tmp_path, phantom())
    volume = dicom.read(tmp_path)
    assert (volume.name, volume.modality) == ("Abdomen 3.0", "CT")
    assert volume.notes == ()


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_lossless_compression_gives_the_same_voxels(tmp_path, syntax):
    pixels = phantom((3, 64, 70))
    write_series(tmp_path / "plain", pixels)
    write_series(tmp_path / "packed", pixels, syntax=syntax)
    np.testing.assert_array_equal(
        dicom.read(tmp_path / "packed").array, dicom.read(tmp_path / "plain").array
    )


def test_lossless_jpeg_written_by_itk_is_decoded(tmp_path):
    pixels = phantom((1, 16, 20)).astype(np.int16)
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.SetUseCompression(True)
    writer.SetCompressor("JPEG")
    writer.Execute(sitk.GetImageFromArray(pixels))
    syntax = pydicom.dcmread(tmp_path / "a.dcm").file_meta.TransferSyntaxUID
    assert syntax.name.startswith("JPEG Lossless")
    np.testing.assert_array_equal(dicom.read(tmp_path / "a.dcm").array, pixels)


@pytest.mark.parametrize(
    ("name", "plain", "tolerance"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", 0),
        ("MR_small_RLE.dcm", "MR_small.dcm", 0),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm", 0),
        ("MR_small_bigendian.dcm", "MR_small.dcm", 0),
        ("MR_small_implicit.dcm", "MR_small.dcm", 0),
    ],
)
def test_other_encodings_of_one_image_agree(tmp_path, name, plain, tolerance):
    arrays = []
    for n, source in enumerate((name, plain)):
        file = Path(get_testdata_file(source, download=False))
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "a").write_bytes(file.read_bytes())
        arrays.append(dicom.read(folder).array.astype(int))
    assert np.abs(arrays[0] - arrays[1]).max() <= tolerance


def test_twelve_bit_lossy_jpeg_says_which_decoder_reads_it(tmp_path):
    file = Path(get_testdata_file("JPGExtended.dcm", download=False))
    (tmp_path / "a").write_bytes(file.read_bytes())
    with pytest.raises(ReadError, match=r"no decoder is installed.*pylibjpeg-libjpeg"):
        dicom.read(tmp_path)


@pytest.mark.parametrize("name", ["JPEGLSNearLossless_16.dcm", "JPEG2000.dcm"])
def test_lossy_syntaxes_are_decoded(tmp_path, name):
    (tmp_path / name).write_bytes(Path(get_testdata_file(name, download=False)).read_bytes())
    volume = dicom.read(tmp_path)
    assert np.ptp(volume.array) > 100


def test_deflated_file_is_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(Path(get_testdata_file("image_dfl.dcm", download=False)).read_bytes())
    assert dicom.read(path).array.shape == (1, 512, 512)


@pytest.mark.parametrize("implicit", [True, False])
def test_file_without_preamble_is_recognised_and_read(tmp_path, implicit):
    ds = ct_slice(phantom()[0], (0, 0, 0))
    path = tmp_path / "a"
    del ds.file_meta
    pydicom.dcmwrite(path, ds, implicit_vr=implicit, little_endian=True)
    assert path.read_bytes()[128:132] != b"DICM"
    assert dicom.claims(path)
    np.testing.assert_array_equal(dicom.read(path).array[0], phantom()[0] - 1024.0)


def test_whole_number_rescale_stays_int16(tmp_path):
    pixels = phantom()
    write_series(tmp_path, pixels, RescaleSlope=2, RescaleIntercept=-1000)
    volume = dicom.read(tmp_path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array[::-1], pixels.astype(int) * 2 - 1000)


def test_rescale_that_differs_between_slices_is_applied_to_each(tmp_path):
    pixels = phantom()
    write_series(
        tmp_path, pixels, RescaleSlope=lambda k: 0.5 + k, RescaleIntercept=0, Modality="PT"
    )
    volume = dicom.read(tmp_path)
    assert volume.array.dtype == np.float32
    slopes = (0.5 + np.arange(7))[:, None, None]
    np.testing.assert_allclose(volume.array[::-1], pixels * slopes, rtol=1e-6)


def test_signed_and_full_range_pixels_keep_their_values(tmp_path):
    signed = phantom().astype(np.int16) - 2000
    write_series(tmp_path / "s", signed, RescaleIntercept=0)
    np.testing.assert_array_equal(dicom.read(tmp_path / "s").array[::-1], signed)
    wide = phantom() * np.uint16(16)
    write_series(tmp_path / "u", wide, BitsStored=16, HighBit=15, RescaleIntercept=0)
    volume = dicom.read(tmp_path / "u")
    assert volume.array.dtype == np.uint16
    np.testing.assert_array_equal(volume.array[::-1], wide)


def test_ct_with_16_signed_bits_stays_int16(tmp_path):
    pixels = phantom().astype(np.int16)
    write_series(tmp_path, pixels, RescaleIntercept=-1024)
    volume = dicom.read(tmp_path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array[::-1], pixels - 1024)


def test_values_that_need_32_bits_get_them(tmp_path):
    pixels = phantom() * np.uint16(16)
    write_series(tmp_path, pixels, BitsStored=16, HighBit=15, RescaleIntercept=-1024)
    volume = dicom.read(tmp_path)
    assert volume.array.dtype == np.int32
    assert volume.array.flags.c_contiguous
    np.testing.assert_array_equal(volume.array[::-1], pixels.astype(int) - 1024)


def test_values_beyond_bits_stored_are_not_wrapped(tmp_path):
    pixels = phantom() * np.uint16(16)
    write_series(tmp_path, pixels, BitsStored=16, HighBit=15, RescaleIntercept=0)
    layout = lay_out(scan(find_dicom(tmp_path)).slices)
    out, _ = fill(layout, np.zeros(pixels.shape, np.int16))
    np.testing.assert_array_equal(out, pixels)


def test_padding_becomes_the_lowest_measured_value(tmp_path):
    pixels = phantom().astype(np.int16) + 100
    pixels[:, 0, 0] = -2000
    for path in write_series(tmp_path, pixels):
        ds = pydicom.dcmread(path)
        ds.add_new("PixelPaddingValue", "US", 63536)  # -2000 with the wrong sign, as many do
        ds.save_as(path)
    volume = dicom.read(tmp_path)
    assert volume.array.min() == pixels[pixels > -2000].min() - 1024
    assert (volume.array[:, 0, 0] == volume.array.min()).all()
    assert any("padding" in note for note in volume.notes)


def test_padding_next_to_the_lowest_value_is_left_alone(tmp_path):
    pixels = phantom() + np.uint16(1)
    pixels[:, 0, 0] = 0
    write_series(tmp_path, pixels, PixelPaddingValue=0, RescaleIntercept=0, Modality="MR")
    volume = dicom.read(tmp_path)
    np.testing.assert_array_equal(volume.array[::-1], pixels)
    assert volume.notes == ()


def test_monochrome1_keeps_its_values_and_says_so(tmp_path):
    write_series(tmp_path, phantom(), PhotometricInterpretation="MONOCHROME1")
    volume = dicom.read(tmp_path)
    np.testing.assert_array_equal(volume.array[::-1], phantom().astype(int) - 1024)
    assert any("MONOCHROME1" in note for note in volume.notes)


def test_single_slice_uses_its_thickness(tmp_path):
    write_series(tmp_path, phantom((1, 8, 10)))
    volume = dicom.read(tmp_path)
    assert volume.array.shape == (1, 8, 10)
    assert volume.geometry.spacing[0] == pytest.approx(3.0)
    assert any("single slice" in note for note in volume.notes)


def test_image_without_a_position_opens_in_its_own_frame(tmp_path):
    save(ct_slice(phantom()[0], None, Modality="CR"), tmp_path / "x.dcm")
    volume = dicom.read(tmp_path)
    assert volume.geometry.frame == "image"
    assert volume.geometry.unit == "pixel"
    assert any("left and right" in note for note in volume.notes)


def test_enhanced_multiframe_is_sorted_and_rescaled_by_frame(tmp_path):
    pixels = phantom((5, 8, 10))
    heights = [4.0, 0.0, 8.0, 2.0, 6.0]
    write_enhanced(
        tmp_path / "mf",
        pixels,
        [(-10, -20, z) for z in heights],
        slopes=[1.5, 2.5, 3.5, 4.5, 5.5],
    )
    volume = dicom.read(tmp_path / "mf")
    order = np.argsort(heights)[::-1]
    slopes = np.array([1.5, 2.5, 3.5, 4.5, 5.5])[order][:, None, None]
    np.testing.assert_allclose(volume.array, pixels[order] * slopes, rtol=1e-6)
    np.testing.assert_allclose(volume.geometry.spacing, (2, 0.8, 0.7))
    assert [frame for _, frame in volume.source.header.instances] == [2, 4, 1, 5, 3]


def test_enhanced_stacks_and_echoes_are_separate_volumes(tmp_path):
    pixels = phantom((8, 8, 10))
    positions = [(-10, -20, 2.0 * (n % 4)) for n in range(8)]
    write_enhanced(tmp_path / "mf", pixels, positions, echoes=[5.0] * 4 + [10.0] * 4)
    with pytest.raises(ReadError, match=r"(?s)2 volumes.*echo 5\.0.*echo 10\.0"):
        dicom.read(tmp_path)
    second = dicom.read(tmp_path, index=1)
    np.testing.assert_array_equal(second.array[::-1], pixels[4:])


def test_a_file_stands_for_its_series_in_its_folder(tmp_path):
    paths = write_series(tmp_path, phantom())
    write_series(tmp_path, phantom(seed=1), SeriesInstanceUID="1.2.9", prefix="B")
    volume = dicom.read(paths[2])
    np.testing.assert_array_equal(volume.array[::-1], phantom().astype(int) - 1024)
    assert len(dicom.list_images(paths[2])) == 1
    assert len(dicom.list_images(tmp_path)) == 2


def test_folder_is_searched_below_and_other_files_are_ignored(tmp_path):
    write_series(tmp_path / "a" / "b", phantom())
    (tmp_path / "a" / "readme.txt").write_text("hello", encoding="utf-8")
    (tmp_path / "a" / "b" / "empty.log").write_bytes(b"")
    (tmp_path / "a" / "b" / "Thumbs").write_bytes(b"\x01" * 300)
    assert dicom.claims(tmp_path)
    assert dicom.read(tmp_path).array.shape == (7, 8, 10)


@pytest.mark.data
def test_real_jpeg2000_series_agrees_with_simpleitk(real_data):
    folder = real_data / "ct_dicom_jpeg2000"
    volume = dicom.read(folder)
    assert_agrees_with_itk(volume, folder)
    array, _ = itk_voxels(folder)
    np.testing.assert_array_equal(volume.source.to_source(volume.array), array)
    assert volume.geometry.codes == "IPL"
