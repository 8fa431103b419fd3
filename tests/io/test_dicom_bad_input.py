"""Gaps, tilt, damage and objects that aren't images: a sentence, never a wrong volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from damage import refusals
from dicom_factory import AXIAL, ct_slice, oblique, phantom, save, write_enhanced, write_series
from pydicom.uid import JPEG2000Lossless

from napari_openmedlab.errors import ReadError
from napari_openmedlab.io import dicom
from napari_openmedlab.io.dicom_files import find_dicom, scan

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"


def test_missing_slices_become_blank_planes_and_are_named(tmp_path):
    pixels = phantom((10, 8, 10)) + np.uint16(5)
    kept = [0, 1, 2, 4, 5, 6, 7, 8, 9]  # slice 3 is missing
    write_series(tmp_path, pixels[kept], steps=kept)
    volume = dicom.read(tmp_path)
    expected = pixels.astype(int) - 1024
    expected[3] = expected[kept].min()
    np.testing.assert_array_equal(volume.array[::-1], expected)
    np.testing.assert_allclose(volume.geometry.spacing[0], 2.5)
    assert any("1 of 10 slices is missing" in n and "slice 6" in n for n in volume.notes)
    assert volume.info["missing_slices"] == (6,)
    assert volume.source.header.instances[3] is None


def test_positions_stay_true_around_missing_slices(tmp_path):
    kept = [0, 1, 2, 3, 4, 5, 7, 8, 9, 10]
    write_series(tmp_path, phantom((10, 8, 10)), steps=kept, orientation=oblique())
    volume = dicom.read(tmp_path)
    for plane in scan(find_dicom(tmp_path)).slices:
        index = volume.geometry.to_index(plane.position)
        np.testing.assert_allclose(index, np.rint(index), atol=1e-4)


def test_uneven_spacing_in_two_blocks_gives_two_exact_volumes(tmp_path):
    steps = [0, 1, 2, 3, 4, 6, 8, 10, 12]
    pixels = phantom((9, 8, 10))
    write_series(tmp_path, pixels, steps=steps)
    with pytest.raises(ReadError, match=r"(?s)2 volumes.*part 1.*part 2"):
        dicom.read(tmp_path)
    spacings = sorted(dicom.read(tmp_path, index=i).geometry.spacing[0] for i in (0, 1))
    assert spacings == pytest.approx([2.5, 5.0])


def test_erratic_spacing_is_refused_with_the_places(tmp_path):
    write_series(tmp_path, phantom((6, 8, 10)), steps=[0, 1, 2.4, 3.1, 5, 5.3])
    with pytest.raises(ReadError, match=r"not evenly spaced: mostly .* mm apart, but .* from"):
        dicom.read(tmp_path)


def test_two_stations_far_apart_are_two_volumes(tmp_path):
    steps = [*range(5), *range(40, 46)]
    write_series(tmp_path, phantom((11, 8, 10)), steps=steps)
    assert sorted(c.shape[0] for c in dicom.list_images(tmp_path)) == [5, 6]


def test_slice_off_to_the_side_is_refused(tmp_path):
    paths = write_series(tmp_path, phantom())
    ds = pydicom.dcmread(paths[3])
    ds.ImagePositionPatient[0] += 30
    ds.save_as(paths[3])
    with pytest.raises(ReadError, match="don't lie on one line: one is 30 mm off"):
        dicom.read(tmp_path)


def test_rounded_positions_are_accepted_and_small_errors_said(tmp_path):
    write_series(tmp_path / "a", phantom(), steps=[0, 1.005, *range(2, 7)])
    assert dicom.read(tmp_path / "a").notes == ()
    write_series(tmp_path / "b", phantom(), steps=[0, 1.06, *range(2, 7)])
    assert "stray from an even spacing by up to 0.15 mm" in dicom.read(tmp_path / "b").notes[0]


def test_gantry_tilt_gives_the_true_sheared_affine(tmp_path):
    tilt = np.radians(12.0)
    pixels = phantom()
    # A tilted gantry: slices at an angle, the table moving straight along z.
    orientation = (1.0, 0.0, 0.0, 0.0, np.cos(tilt), np.sin(tilt))
    normal = np.cross(orientation[:3], orientation[3:])
    table = np.array([0.0, 0.0, 3.0])
    write_series(
        tmp_path, pixels, orientation=orientation, step=0.0001, shear=table - 0.0001 * normal
    )
    volume = dicom.read(tmp_path)
    assert volume.geometry.is_sheared
    assert any("gantry tilt of 12.0 degrees" in note for note in volume.notes)
    files = {tuple(s.position): s.path for s in scan(find_dicom(tmp_path)).slices}
    for position, path in files.items():
        index = np.rint(volume.geometry.to_index(position)).astype(int)
        np.testing.assert_allclose(volume.geometry.to_world(index), position, atol=1e-6)
        assert volume.array[tuple(index)] == pydicom.dcmread(path).pixel_array[0, 0] - 1024.0


def test_repeated_slice_with_the_same_pixels_is_left_out_and_said(tmp_path):
    pixels = phantom()
    write_series(tmp_path, pixels)
    save(ct_slice(pixels[2], (-40, -30, 105.0), AXIAL), tmp_path / "again")
    volume = dicom.read(tmp_path)
    np.testing.assert_array_equal(volume.array[::-1], pixels.astype(int) - 1024)
    assert any("1 slice repeated another" in note for note in volume.notes)


def test_two_different_images_at_one_place_are_refused(tmp_path):
    write_series(tmp_path, phantom())
    save(ct_slice(phantom(seed=9)[2], (-40, -30, 105.0), AXIAL), tmp_path / "other")
    with pytest.raises(ReadError, match=r"two different images lie at the same place: .*other"):
        dicom.read(tmp_path)


def test_folder_without_dicom_says_so(tmp_path):
    (tmp_path / "notes.txt").write_text("no scan here", encoding="utf-8")
    assert not dicom.claims(tmp_path)
    with pytest.raises(ReadError, match="holds no DICOM file"):
        dicom.read(tmp_path)
    with pytest.raises(ReadError, match="does not exist"):
        dicom.read(tmp_path / "nowhere")


def test_text_file_called_dcm_says_so(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_text("not a scan", encoding="utf-8")
    assert dicom.claims(path)
    with pytest.raises(ReadError, match=r"a\.dcm is not a DICOM file"):
        dicom.read(path)


@pytest.mark.parametrize("keep", [0.3, 0.9])
@pytest.mark.parametrize("syntax", [None, JPEG2000Lossless])
def test_slice_cut_short_is_named_and_no_half_volume_opens(tmp_path, keep, syntax):
    paths = write_series(tmp_path, phantom((4, 64, 64)), syntax=syntax)
    data = paths[1].read_bytes()
    start = data.index(b"\xe0\x7f\x10\x00")  # the pixel data element
    paths[1].write_bytes(data[: start + int(keep * (len(data) - start))])
    with pytest.raises(ReadError, match=rf"{paths[1].name}.*damaged or cut short"):
        dicom.read(tmp_path)


@pytest.mark.parametrize("size", [0, 200, 350, 700, 1000])
def test_slice_cut_within_its_header_is_named(tmp_path, size):
    paths = write_series(tmp_path, phantom())
    paths[1].write_bytes(paths[1].read_bytes()[:size])
    with pytest.raises(ReadError, match=rf"{paths[1].name}.*damaged or cut short"):
        dicom.read(tmp_path)


def test_slice_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    paths = write_series(tmp_path, phantom())
    opened = Path.open

    def guarded(self, *args, **kwargs):
        if self == paths[2]:
            raise PermissionError(13, "no permission", str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", guarded)
    with pytest.raises(ReadError, match=rf"{paths[2].name} .*no permission"):
        dicom.read(tmp_path)


def test_scrambled_pixel_data_is_named(tmp_path):
    paths = write_series(tmp_path, phantom((4, 64, 64)), syntax=JPEG2000Lossless)
    data = bytearray(paths[2].read_bytes())
    start = data.index(b"\xff\x4f\xff\x51")
    data[start : start + 60] = bytes(60)
    paths[2].write_bytes(data)
    with pytest.raises(ReadError, match=rf"{paths[2].name} is damaged"):
        dicom.read(tmp_path)


def test_only_objects_without_a_grey_image_says_what_they_are(tmp_path):
    save(
        ct_slice(phantom()[0], None, Modality="RTSTRUCT", SOPClassUID=RTSTRUCT, Rows=None),
        tmp_path / "s",
    )
    save(ct_slice(phantom()[0], None, Modality="SR", SOPClassUID=REPORT, Rows=None), tmp_path / "r")
    save(ct_slice(phantom()[0], None, SamplesPerPixel=3), tmp_path / "c")
    with pytest.raises(
        ReadError, match=r"only 1 x colour image, 1 x report .SR., 1 x structure set"
    ):
        dicom.read(tmp_path)


def test_other_objects_beside_a_series_are_passed_over_and_counted(tmp_path):
    write_series(tmp_path, phantom())
    save(
        ct_slice(phantom()[0], None, Modality="RTSTRUCT", SOPClassUID=RTSTRUCT, Rows=None),
        tmp_path / "s",
    )
    volume = dicom.read(tmp_path)
    assert volume.array.shape == (7, 8, 10)
    assert any("1 x structure set" in note for note in volume.notes)


def test_unknown_compression_says_what_to_install(tmp_path):
    paths = write_series(tmp_path, phantom())
    ds = pydicom.dcmread(paths[0])
    data = bytearray(paths[0].read_bytes())
    old, new = b"1.2.840.10008.1.2.1\x00", b"1.2.840.10008.1.2.9\x00"
    assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    start = data.index(old)
    data[start : start + len(old)] = new
    paths[0].write_bytes(data)
    with pytest.raises(ReadError, match=r"no decoder is installed|damaged"):
        dicom.read(tmp_path)


def test_broken_orientation_is_refused(tmp_path):
    write_series(tmp_path, phantom(), ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
    with pytest.raises(ReadError, match="not two perpendicular directions"):
        dicom.read(tmp_path)


@pytest.mark.parametrize("kind", ["plain", "jpeg2000", "enhanced"])
@pytest.mark.filterwarnings("ignore")
def test_random_damage_is_a_sentence_or_harmless(tmp_path, kind):
    if kind == "enhanced":
        files = [write_enhanced(tmp_path / "m", phantom((3, 8, 10)), [(0, 0, z) for z in range(3)])]
    else:
        syntax = JPEG2000Lossless if kind == "jpeg2000" else None
        files = write_series(tmp_path, phantom((3, 64, 64)), syntax=syntax)
    assert refusals(files, lambda: dicom.read(tmp_path), 120) > 20
