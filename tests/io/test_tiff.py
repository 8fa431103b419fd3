"""TIFF reading: axes, voxel size, choices, folders, laziness, damage."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from damage import refusals

from napari_openmedlab.errors import ReadError
from napari_openmedlab.io import tiff, tiff_pages

CUBE = np.random.default_rng(0).integers(0, 60000, (6, 32, 40)).astype(np.uint16)


def spacing(path, **how):
    geometry = tiff.read(path, **how).geometry
    return geometry.unit, tuple(round(v, 6) for v in geometry.spacing)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"compression": "zlib"},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"tile": (16, 16)},
        {"metadata": None},
        {"ome": True, "metadata": {"axes": "ZYX"}},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
    ],
    ids=lambda how: "-".join(how) or "plain",
)
def test_every_voxel_keeps_its_place_and_value(tmp_path, how):
    tifffile.imwrite(tmp_path / "a.tif", CUBE, **how)
    volume = tiff.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(volume.array, CUBE)
    assert volume.array.dtype == np.uint16
    assert volume.geometry.frame == "image"
    assert volume.source.kind == "tiff"
    np.testing.assert_array_equal(volume.source.to_source(volume.array), CUBE)
    assert volume.name == "a"


def test_unknown_voxel_size_is_said_and_not_invented(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, CUBE, resolution=(72, 72), resolutionunit="INCH")
    assert spacing(path) == ("pixel", (1, 1, 1))
    assert "doesn't state its voxel size" in tiff.read(path).notes[0]


@pytest.mark.parametrize(
    ("unit", "factor"), [("um", 1), ("micron", 1), ("\\u00B5m", 1), ("mm", 1e3), ("inch", 25400)]
)
def test_imagej_calibration_becomes_um(tmp_path, unit, factor):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        CUBE,
        imagej=True,
        resolution=(4.0, 2.0),
        metadata={"axes": "ZYX", "spacing": 3.0, "unit": unit},
    )
    assert spacing(path) == ("um", (3 * factor, 0.5 * factor, 0.25 * factor))
    assert tiff.read(path).notes == ()


def test_imagej_without_slice_distance_asks_for_it(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, CUBE, imagej=True, resolution=(4.0, 4.0), metadata={"axes": "ZYX", "unit": "um"}
    )
    assert spacing(path) == ("pixel", (1, 1, 1))
    assert "0.25 x 0.25 um but not the distance" in tiff.read(path).notes[0]


def test_ome_sizes_and_units_become_um(tmp_path):
    path = tmp_path / "a.ome.tif"
    meta = {
        "axes": "ZYX",
        "PhysicalSizeX": 325.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.325,
        "PhysicalSizeZ": 0.002,
        "PhysicalSizeZUnit": "mm",
    }
    tifffile.imwrite(path, CUBE, ome=True, metadata=meta)
    assert spacing(path) == ("um", (2.0, 0.325, 0.325))
    assert tiff.read(path).name == "a"


def test_2d_image_is_one_slice(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", CUBE[0])
    assert tiff.read(tmp_path / "a.tif").array.shape == (1, 32, 40)


def test_channels_and_times_are_listed_and_chosen_by_index(tmp_path):
    data = np.random.default_rng(1).integers(0, 999, (2, 6, 3, 32, 40)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, metadata={"axes": "TZCYX"})
    with pytest.raises(ReadError, match=r"(?s)6 images.*4: a, time 1, channel 1, 6 x 32 x 40"):
        tiff.read(tmp_path / "a.tif")
    volume = tiff.read(tmp_path / "a.tif", index=4)
    np.testing.assert_array_equal(volume.array, data[1, :, 1])
    assert volume.name == "a, time 1, channel 1"
    assert [c.key for c in tiff.list_images(tmp_path / "a.tif")][4] == "1/1"
    with pytest.raises(ReadError, match=r"images 0 to 5"):
        tiff.read(tmp_path / "a.tif", index=6)


def test_colours_are_channels(tmp_path):
    data = np.random.default_rng(1).integers(0, 255, (5, 30, 32, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb")
    assert [c.title for c in tiff.list_images(tmp_path / "a.tif")] == [
        "a, red", "a, green", "a, blue",
    ]  # fmt: skip
    np.testing.assert_array_equal(tiff.read(tmp_path / "a.tif", index=1).array, data[..., 1])


def test_several_images_in_a_file_are_chosen_by_series(tmp_path):
    path = tmp_path / "m.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(CUBE, metadata={"axes": "ZYX", "Name": "brain", "PhysicalSizeX": 2.0})
        writer.write(CUBE[:2] + 1, metadata={"axes": "CYX", "Name": "label"})
    with pytest.raises(ReadError, match=r"(?s)3 images.*m brain.*m label, channel 1"):
        tiff.read(path)
    np.testing.assert_array_equal(tiff.read(path, series="0").array, CUBE)
    np.testing.assert_array_equal(tiff.read(path, series="1", index=1).array, CUBE[1:2] + 1)
    with pytest.raises(ReadError, match="no image 'x'"):
        tiff.read(path, series="x")


def test_folder_of_slices_is_sorted_by_number(tmp_path):
    for n in range(12):
        tifffile.imwrite(tmp_path / f"slice{n}.tif", CUBE[n % 6] + n)
    (tmp_path / "readme.txt").write_text("x", encoding="utf-8")
    assert tiff.claims(tmp_path)
    volume = tiff.read(tmp_path)
    np.testing.assert_array_equal(volume.array, [CUBE[n % 6] + n for n in range(12)])
    assert volume.info["files"] == 12
    assert not any("missing" in note for note in volume.notes)


def test_missing_file_in_a_numbered_folder_is_said(tmp_path):
    for n in (0, 1, 2, 4, 5):
        tifffile.imwrite(tmp_path / f"s{n:03d}.tif", CUBE[n])
    assert any("between s002 and s004" in note for note in tiff.read(tmp_path).notes)


def test_slices_of_different_size_name_the_odd_one(tmp_path):
    tifffile.imwrite(tmp_path / "s0.tif", CUBE[0])
    tifffile.imwrite(tmp_path / "s1.tif", CUBE[1, :16])
    with pytest.raises(ReadError, match=r"s0\.tif is 32 x 40 uint16, s1\.tif is 16 x 40"):
        tiff.read(tmp_path)


def test_folder_of_stacks_lists_the_files(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", CUBE)
    tifffile.imwrite(tmp_path / "b.tif", CUBE + 1)
    with pytest.raises(ReadError, match=r"(?s)2 images.*a, 6 x 32 x 40"):
        tiff.read(tmp_path)
    np.testing.assert_array_equal(tiff.read(tmp_path, series="b.tif").array, CUBE + 1)


def test_dicom_folder_with_a_picture_in_it_is_not_a_tiff_stack(tmp_path):
    tifffile.imwrite(tmp_path / "picture.tif", CUBE[0])
    (tmp_path / "IM001").write_bytes(bytes(128) + b"DICM" + bytes(50))
    assert not tiff.claims(tmp_path)


def test_folder_without_tiff_says_so(tmp_path):
    assert not tiff.claims(tmp_path)
    with pytest.raises(ReadError, match="holds no TIFF file"):
        tiff.read(tmp_path)
    with pytest.raises(ReadError, match="does not exist"):
        tiff.read(tmp_path / "nowhere.tif")


@pytest.mark.parametrize(
    "how", [{}, {"compression": "zlib"}, {"tile": (16, 16)}], ids=["mapped", "packed", "tiled"]
)
def test_large_images_stay_on_disk(tmp_path, monkeypatch, how):
    monkeypatch.setattr(tiff_pages, "LAZY_BYTES", 1000)
    data = np.random.default_rng(1).integers(0, 999, (6, 2, 32, 40)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", data, metadata={"axes": "ZCYX"}, **how)
    volume = tiff.read(tmp_path / "a.tif", index=1)
    assert volume.info["lazy"]
    assert isinstance(volume.array, np.memmap) or hasattr(volume.array, "dask")
    np.testing.assert_array_equal(np.asarray(volume.array), data[:, 1])
    np.testing.assert_array_equal(np.asarray(volume.array[2:4, 5:9, 7]), data[2:4, 1, 5:9, 7])


def test_large_folder_is_lazy_and_a_slice_that_vanished_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff_pages, "LAZY_BYTES", 1000)
    for n in range(6):
        tifffile.imwrite(tmp_path / f"{n}.tif", CUBE[n])
    volume = tiff.read(tmp_path)
    np.testing.assert_array_equal(np.asarray(volume.array[3:5]), CUBE[3:5])
    (tmp_path / "1.tif").write_bytes(b"II*\0")
    with pytest.raises(ReadError, match=r"1\.tif"):
        np.asarray(volume.array[1])


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.95])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"compression": "zlib"},
        {"metadata": None},
        {"imagej": True},
        {"ome": True},
        {"bigtiff": True, "compression": "zlib"},
    ],
    ids=["plain", "packed", "bare", "imagej", "ome", "big"],
)
def test_file_cut_short_is_named_and_no_part_of_it_opens(tmp_path, how, keep):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, CUBE, **how)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ReadError, match=r"a\.tif"):
        tiff.read(path)


def test_other_file_called_tif_says_so(tmp_path):
    path = tmp_path / "a.tif"
    path.write_text("not an image at all", encoding="utf-8")
    with pytest.raises(ReadError, match=r"a\.tif is not a TIFF file"):
        tiff.read(path)


def test_complex_pixels_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", CUBE.astype(np.complex64))
    with pytest.raises(ReadError, match="complex64 pixels"):
        tiff.read(tmp_path / "a.tif")


@pytest.mark.parametrize("method", ["lzw", "zstd", "jpeg2000", "packbits"])
def test_common_compressions_open(tmp_path, method):
    tifffile.imwrite(tmp_path / "a.tif", CUBE, compression=method, metadata=None)
    assert np.array_equal(tiff.read(tmp_path / "a.tif").array, CUBE)


def test_unsupported_compression_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, CUBE, compression="zlib", metadata=None)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        offsets = [page.tags["Compression"].valueoffset for page in file.pages]
    for offset in offsets:
        data[offset : offset + 2] = (32809).to_bytes(2, "little")  # ThunderScan, of 1990
    path.write_bytes(data)
    with pytest.raises(ReadError, match="compressed in a way"):
        tiff.read(path)


@pytest.mark.parametrize("how", [{}, {"compression": "zlib"}, {"imagej": True}, {"ome": True}])
def test_random_damage_is_a_sentence_or_harmless(tmp_path, how):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, CUBE, **how)
    assert refusals([path], lambda: tiff.read(path), 120) > 20


@pytest.mark.data
def test_real_light_sheet_stack_reads_the_same_as_file_and_folder(real_data):
    stack = tiff.read(real_data / "lsfm_axons" / "stack")
    cube = tiff.read(real_data / "lsfm_axons" / "raw1001.tiff")
    assert cube.array.shape == (33, 150, 150)
    assert cube.geometry.unit == stack.geometry.unit == "pixel"
    expected = tifffile.imread(real_data / "lsfm_axons" / "raw1001.tiff")
    np.testing.assert_array_equal(cube.array, expected)
    assert (
        stack.array.shape[1:]
        == tifffile.imread(real_data / "lsfm_axons" / "stack" / "0000.tiff").shape
    )
