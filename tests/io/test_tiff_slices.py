"""Folders of TIFF slices: which number of a name is z, channels, gaps, damage in the voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_openmedlab.errors import ReadError
from napari_openmedlab.io import tiff
from napari_openmedlab.io.slice_names import stacks_of
from napari_openmedlab.io.tiff_slices import read_slices

CUBE = np.random.default_rng(0).integers(0, 900, (12, 24, 30)).astype(np.uint16)


def folder_of(folder, names, **how):
    """Write one slice for each name, in this order."""
    folder.mkdir()
    for plane, name in zip(CUBE, names, strict=False):
        tifffile.imwrite(folder / f"{name}.tif", plane, **how)
    return folder


def stacks(*names):
    """Return names of files by the pattern of their stack."""
    found = stacks_of([Path(f"{name}.tif") for name in names])
    return {stack.pattern: [file.stem for file in stack.files] for stack in found}


@pytest.mark.parametrize(
    "names",
    [
        ["brain_0002_488nm", "brain_0003_488nm", "brain_0010_488nm"],
        ["Z0001_C01", "Z0002_C01", "Z0003_C01"],
        ["UltraII[00 x 00]_C00_xyz-Table Z0008.ome", "UltraII[00 x 00]_C00_xyz-Table Z0009.ome"],
        ["z001_0000um", "z002_0004um", "z003_0008um"],
        ["img_001_12-00-58", "img_002_12-01-01", "img_003_12-01-04", "img_004_12-02-01"],
        ["z1_0001", "z1_0002", "z2_0003", "z2_0004"],
        ["front", "middle", "rear"],
        ["a_001", "b_002", "a_003"],
        ["7"],
    ],
    ids=lambda names: names[0],
)
def test_one_stack_is_in_the_order_of_its_slices(names):
    assert list(stacks(*names).values()) == [names]


@pytest.mark.parametrize(
    "patterns",
    [
        {"Z#_C00": ["Z0000_C00", "Z0001_C00"], "Z#_C01": ["Z0000_C01", "Z0001_C01"]},
        {"C0_Z#": ["C0_Z1", "C0_Z2", "C0_Z3"], "C1_Z#": ["C1_Z1", "C1_Z2", "C1_Z3"]},
        {"brain_#_488nm": ["brain_1_488nm", "brain_2_488nm", "brain_3_488nm"],
         "brain_#_561nm": ["brain_1_561nm", "brain_2_561nm", "brain_3_561nm"]},
        {f"img_x{x}_y{y}_z#": [f"img_x{x}_y{y}_z{z:04d}" for z in range(2)]
         for x in range(3) for y in range(4)},
        {"dapi_z#": ["dapi_z01", "dapi_z02"], "gfp_z#": ["gfp_z01", "gfp_z02"]},
        {"Cy5_#": ["Cy5_01", "Cy5_02"], "gfp_#": ["gfp_01", "gfp_02"]},
        {"Z#_C0_#": ["Z0_C0_00", "Z1_C0_02", "Z2_C0_04"],
         "Z#_C1_#": ["Z0_C1_01", "Z1_C1_03", "Z2_C1_05"]},
        {"Z#_#um_C0": ["Z0_0um_C0", "Z1_4um_C0"], "Z#_#um_C1": ["Z0_0um_C1", "Z1_4um_C1"]},
        {"brain_#": ["brain_1", "brain_2", "brain_3"], "overview": ["overview"]},
    ],
    ids=lambda patterns: next(iter(patterns)),
)  # fmt: skip
def test_channels_and_tiles_are_stacks_of_their_own(patterns):
    names = sorted(name for stack in patterns.values() for name in stack)
    assert stacks(*names) == patterns


def test_channels_are_asked_for_and_chosen(tmp_path):
    names = [f"Z{z:04d}_C{c:02d}" for z in range(6) for c in range(2)]
    folder = folder_of(tmp_path / "brain", names)
    for read in (read_slices, tiff.read):
        with pytest.raises(ReadError, match=r"(?s)2 images; choose.*0: brain, Z#_C00, 6 x.*Z#_C01"):
            read(folder)
        for which in ({"index": 1}, {"series": "Z#_C01"}):
            volume = read(folder, **which)
            np.testing.assert_array_equal(np.asarray(volume.array), CUBE[1::2])
            assert volume.name == "brain, Z#_C01"
        with pytest.raises(ReadError, match="no image 'Z#_C02'"):
            read(folder, series="Z#_C02")


@pytest.mark.parametrize("name", ["Z{:04d}_C01", "brain_{:04d}_488nm", "s{}"])
def test_a_gap_is_found_whichever_number_counts_the_slices(tmp_path, name):
    folder = folder_of(tmp_path / "brain", [name.format(z) for z in (1, 2, 4, 5)])
    with pytest.raises(ReadError, match="slice 3 missing between"):
        read_slices(folder)
    there = CUBE[[0, 1, 1, 2, 3]]
    np.testing.assert_array_equal(np.asarray(read_slices(folder, "fill").array), there)
    shown = tiff.read(folder)
    np.testing.assert_array_equal(shown.array, there)
    assert any("slice 3 missing" in n and "slice before is shown" in n for n in shown.notes)


def test_a_gap_of_one_channel_is_its_own(tmp_path):
    names = [f"Z{z}_C{c}" for z in range(5) for c in range(2) if (z, c) != (2, 1)]
    folder = folder_of(tmp_path / "brain", names)
    assert read_slices(folder, index=0).array.shape[0] == 5
    with pytest.raises(ReadError, match="slice 2 missing between Z1_C1 and Z3_C1"):
        read_slices(folder, index=1)


def test_numbers_far_apart_do_not_fill_the_memory(tmp_path):
    folder = folder_of(tmp_path / "brain", ["s1", "s2", "s3", "s1690000000000"])
    with pytest.raises(ReadError, match="slices 4 to 1689999999999 missing"):
        read_slices(folder)
    with pytest.raises(ReadError, match="More slices are missing than there are"):
        read_slices(folder, "fill")
    shown = tiff.read(folder)
    assert shown.array.shape[0] == 4
    assert any("its length along z is not true" in note for note in shown.notes)


def test_two_files_of_one_number_are_refused(tmp_path):
    folder = folder_of(tmp_path / "brain", ["s1", "s2", "s02", "s3"])
    with pytest.raises(ReadError, match=r"s0?2\.tif and s0?2\.tif have the same number"):
        read_slices(folder)


def break_voxels(path):
    """Leave the header sound and make the voxels undecodable."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        start, count = page.dataoffsets[0], page.databytecounts[0]
    data = bytearray(path.read_bytes())
    data[start : start + count] = bytes(byte ^ 0x5A for byte in data[start : start + count])
    path.write_bytes(data)


PACKED = ["lzw", "zlib", "zstd", "lzma", "packbits"]


@pytest.mark.parametrize("method", PACKED)
def test_voxels_that_cannot_be_decoded_name_the_file_and_a_way_on(tmp_path, method):
    folder = folder_of(tmp_path / "brain", range(6), compression=method)
    break_voxels(folder / "3.tif")
    array = read_slices(folder).array
    np.testing.assert_array_equal(np.asarray(array[:3]), CUBE[:3])
    with pytest.raises(ReadError, match=r"3\.tif can't be read.*or choose to fill"):
        np.asarray(array[2:5, 3:9])


@pytest.mark.parametrize("method", PACKED)
def test_voxels_that_cannot_be_decoded_are_filled_in_any_order(tmp_path, method, caplog):
    folder = folder_of(tmp_path / "brain", range(8), compression=method)
    for z in (0, 3, 4, 7):
        break_voxels(folder / f"{z}.tif")
    wanted = CUBE[[1, 1, 2, 2, 2, 5, 6, 6]]
    for order in (range(8), reversed(range(8)), (4, 3, 0, 7)):
        array = read_slices(folder, "fill").array
        for z in order:
            np.testing.assert_array_equal(np.asarray(array[z, 5:9]), wanted[z, 5:9])
        np.testing.assert_array_equal(np.asarray(array), wanted)
    assert "4.tif can't be read" in caplog.text
    assert "filled with 2.tif" in caplog.text


def test_no_slice_that_can_be_decoded_is_said(tmp_path):
    folder = folder_of(tmp_path / "brain", range(3), compression="zlib")
    for path in folder.iterdir():
        break_voxels(path)
    with pytest.raises(ReadError, match=r"1\.tif is not a TIFF file, damaged"):
        np.asarray(read_slices(folder, "fill").array[1])


def test_a_file_that_went_away_is_not_filled(tmp_path):
    folder = folder_of(tmp_path / "brain", range(4), compression="zlib")
    array = read_slices(folder, "fill").array
    (folder / "2.tif").unlink()
    with pytest.raises(ReadError, match=r"2\.tif"):
        np.asarray(array[2])
