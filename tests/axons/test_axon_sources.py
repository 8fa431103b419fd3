"""Volumes on disk open lazily, with their voxel size, and say what is wrong with them."""

import shutil

import dask.array as da
import nibabel
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr

from napari_openmedlab.axons.convert import convert, plan_conversion
from napari_openmedlab.axons.source import open_source, source_of_array
from napari_openmedlab.axons.survey import survey
from napari_openmedlab.errors import Cancelled, GeometryError, ReadError, WriteError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.io.ome_zarr_write import ImagePlace, build_levels, create_image, level_shapes
from napari_openmedlab.models.contract import Monitor

CUBE = np.random.default_rng(0).integers(200, 900, (12, 40, 30)).astype(np.uint16)
BOX = Box((2, 3, 4), (9, 20, 25))


def slices(folder, cube=CUBE, skip=(), **options):
    folder.mkdir()
    for z, plane in enumerate(cube):
        if z not in skip:
            tifffile.imwrite(folder / f"brain_{z:04d}.tif", plane, **options)
    return folder


def ome_zarr(path, version=2, **options):
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    group.create_array("0", data=CUBE, chunks=(8, 16, 16), **options)
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    scale = [{"type": "scale", "scale": [4.0, 2.0, 2.0]}]
    sets = [{"path": "0", "coordinateTransformations": scale}]
    told = {"multiscales": [{"axes": axes, "datasets": sets}]}
    group.attrs.update(told if version == 2 else {"ome": {"version": "0.5", **told}})
    return path


def test_every_kind_opens_without_being_read(tmp_path):
    bigtiff, imagej = tmp_path / "big.tif", tmp_path / "imagej.tif"
    tifffile.imwrite(bigtiff, CUBE, bigtiff=True, photometric="minisblack", compression="zlib")
    tifffile.imwrite(
        imagej, CUBE, imagej=True, resolution=(0.5, 0.5),
        metadata={"axes": "ZYX", "spacing": 4.0, "unit": "um"},
    )  # fmt: skip
    known = {
        ome_zarr(tmp_path / "a.zarr", 2): True,
        ome_zarr(tmp_path / "b.zarr", 3): True,
        slices(tmp_path / "slices"): False,
        slices(tmp_path / "packed", compression="zlib"): False,
        bigtiff: False,
        imagej: True,
    }
    for path, sized in known.items():
        source = open_source(path)
        assert isinstance(source.volume.array, da.Array | np.memmap), path
        assert source.shape == CUBE.shape
        assert source.spacing == ((4.0, 2.0, 2.0) if sized else None)
        np.testing.assert_array_equal(source.read(BOX), CUBE[BOX.slices])
        assert source.fingerprint() == open_source(path).fingerprint()


def test_a_small_nifti_is_read_whole_in_um(tmp_path):
    path = tmp_path / "cube.nii.gz"
    image = nibabel.Nifti1Image(CUBE.transpose(2, 1, 0), np.diag([0.002, 0.002, 0.004, 1]))
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    source = open_source(path)
    np.testing.assert_allclose(source.spacing, (4.0, 2.0, 2.0), rtol=1e-6)
    assert source.shape == CUBE.shape


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([2, 2, 4, 1]), None], ids=str)
def test_a_nifti_that_names_no_unit_has_no_voxel_size(tmp_path, affine):
    path = tmp_path / "cube.nii"
    nibabel.Nifti1Image(CUBE.transpose(2, 1, 0), affine).to_filename(path)
    source = open_source(path)
    assert source.spacing is None
    assert source.volume.geometry.unit == "pixel"
    assert any("doesn't state its voxel size" in note for note in source.volume.notes)
    assert open_source(path, spacing=(4, 2, 2)).spacing == (4.0, 2.0, 2.0)


def test_the_users_voxel_size_goes_before_the_files(tmp_path):
    source = open_source(slices(tmp_path / "slices"), spacing=(5, 2, 2))
    assert source.spacing == (5.0, 2.0, 2.0)
    for wrong in ((1, 2), (0, 1, 1), (1, float("nan"), 1)):
        with pytest.raises(GeometryError, match="three lengths above 0 in um"):
            source.with_spacing(wrong)


def test_a_block_beyond_the_volume_repeats_its_edge_or_is_zero():
    source = source_of_array(CUBE, name="cube")
    box = Box((-2, -3, 25), (5, 50, 34))
    edge = np.pad(CUBE, ((2, 0), (3, 10), (0, 4)), mode="edge")[:7, :, 25:]
    np.testing.assert_array_equal(source.read(box), edge)
    zeros = edge.copy()
    zeros[:2] = 0
    np.testing.assert_array_equal(source.read(box, "zero"), zeros)
    beyond = Box((20, 0, 0), (22, 40, 30))
    assert not source.read(beyond, "zero").any()
    with pytest.raises(GeometryError, match="lies outside cube"):
        source.read(beyond)


@pytest.mark.parametrize("dtype", ["uint8", "int8", ">i2", "float32", "float64", "bool"])
def test_any_type_is_read_in_native_order_without_nan(dtype):
    array = (CUBE // 9).astype(dtype)
    if array.dtype.kind == "f":
        array[3, 4, 5] = np.nan
    block = source_of_array(array, name="cube").read(BOX)
    assert block.dtype.isnative
    assert block.dtype.kind != "b"
    assert np.isfinite(block).all()
    np.testing.assert_array_equal(block, np.nan_to_num(array[BOX.slices].astype(block.dtype)))
    found = survey(source_of_array(array, name="cube"), BOX, "volume", Monitor())
    assert np.isfinite([found.intensity.centre, found.intensity.spread]).all()


def test_missing_slices_are_named_or_filled(tmp_path):
    folder = slices(tmp_path / "slices", skip=(4, 5, 9))
    with pytest.raises(ReadError, match="slices 4 to 5 missing between brain_0003 and brain_0006"):
        open_source(folder)
    source = open_source(folder, gaps="fill")
    wanted = CUBE.copy()
    wanted[4:6], wanted[9] = CUBE[3], CUBE[8]
    np.testing.assert_array_equal(source.read(source.whole), wanted)
    assert any("filled with the slice before" in note for note in source.volume.notes)


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_a_damaged_slice_is_named_or_filled(tmp_path, damage):
    folder = slices(tmp_path / "slices")
    bad = folder / "brain_0006.tif"
    data = {"empty": b"", "text": b"no tiff", "cut": bad.read_bytes()[:-700]}[damage]
    bad.write_bytes(data)
    with pytest.raises(ReadError, match=r"brain_0006.tif can't be read"):
        open_source(folder)
    filled = open_source(folder, gaps="fill")
    np.testing.assert_array_equal(filled.read(Box((6, 0, 0), (7, 40, 30)))[0], CUBE[5])


def test_a_slice_that_breaks_later_is_named(tmp_path):
    folder = slices(tmp_path / "slices", compression="zlib")
    source = open_source(folder)
    (folder / "brain_0005.tif").unlink()
    with pytest.raises(ReadError, match=r"brain_0005.tif.*voxels z 2 to 8"):
        source.read(BOX)


@pytest.mark.parametrize("codec", [numcodecs.GZip(), numcodecs.Zlib(), numcodecs.LZMA()], ids=str)
def test_a_damaged_block_of_a_store_is_named_with_its_place(tmp_path, codec):
    path = ome_zarr(tmp_path / "a.zarr", compressors=codec)
    chunk = path / "0" / "0.0.1"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    source = open_source(path)
    with pytest.raises(
        ReadError, match=r"a\.zarr holds a damaged block.*voxels z 2 to 8, y 3 to 19"
    ):
        source.read(BOX)
    np.testing.assert_array_equal(source.read(Box((8, 0, 0), (9, 9, 9))), CUBE[8:9, :9, :9])


def test_an_array_that_breaks_is_a_sentence():
    class Broken:
        shape, dtype, ndim = CUBE.shape, CUBE.dtype, 3

        def __getitem__(self, key):
            raise EOFError

    with pytest.raises(ReadError, match=r"voxels z 2 to 8.*of cube can't be read: EOFError"):
        source_of_array(Broken(), name="cube").read(BOX)


def test_slices_that_differ_are_refused(tmp_path):
    folder = slices(tmp_path / "slices")
    tifffile.imwrite(folder / "brain_0007.tif", CUBE[7, :30])
    with pytest.raises(
        ReadError, match=r"brain_0000\.tif is 40 x 30 uint16, brain_0007\.tif is 30"
    ):
        open_source(folder)
    tifffile.imwrite(folder / "brain_0007.tif", CUBE[7].astype(np.float32))
    with pytest.raises(ReadError, match=r"differ.*float32"):
        open_source(folder)


def test_channels_and_time_points_are_asked_for(tmp_path):
    path = tmp_path / "two.ome.tif"
    tifffile.imwrite(path, np.stack([CUBE, CUBE + 1], axis=1), metadata={"axes": "ZCYX"})
    with pytest.raises(ReadError, match="holds 2 images; choose one by its index"):
        open_source(path)
    np.testing.assert_array_equal(open_source(path, index=1).read(BOX), CUBE[BOX.slices] + 1)
    with pytest.raises(GeometryError, match="has 4 axes; choose one"):
        source_of_array(np.zeros((2, 3, 4, 5)), name="series")


def test_a_store_without_image_metadata_says_so(tmp_path):
    group = zarr.open_group(str(tmp_path / "plain.zarr"), mode="w")
    group.create_array("a", data=CUBE)
    with pytest.raises(ReadError, match="without OME-Zarr image metadata"):
        open_source(tmp_path / "plain.zarr")
    with pytest.raises(ReadError, match="does not exist"):
        open_source(tmp_path / "gone.zarr")


def test_conversion_keeps_voxels_size_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("napari_openmedlab.axons.convert._CHUNK", 4)
    source = open_source(slices(tmp_path / "slices"), spacing=(4, 2, 2))
    planned = plan_conversion(source)
    assert len(planned.slabs) == 3
    assert planned.disk >= CUBE.nbytes

    class Second(Monitor):
        def step(self, done=0, total=0, text=""):
            if text.startswith("slab 3"):
                self.cancel()
            super().step(done, total, text)

    out = tmp_path / "brain.zarr"
    with pytest.raises(Cancelled):
        convert(source, out, Second())
    other = source_of_array(CUBE + 1, name="other")
    with pytest.raises(WriteError, match="is not the beginning of this conversion"):
        convert(other, out, Monitor())
    before = (out / "0" / "0" / "0" / "0").stat().st_mtime_ns
    convert(source, out, Monitor())
    assert (out / "0" / "0" / "0" / "0").stat().st_mtime_ns == before
    again = open_source(out)
    np.testing.assert_array_equal(again.read(again.whole), CUBE)
    assert again.spacing == (4.0, 2.0, 2.0)
    with pytest.raises(WriteError, match="exists"):
        convert(source, out, Monitor())


def test_conversion_says_when_the_disk_is_too_small(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(WriteError, match="100 bytes free and the conversion may take"):
        convert(source_of_array(CUBE, name="cube"), tmp_path / "a.zarr", Monitor())
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("reduction", ["mean", "max", "nearest"])
def test_levels_join_the_right_voxels_and_lie_over_each_other(tmp_path, reduction):
    shape = (20, 250, 203)
    values = np.random.default_rng(3).integers(0, 5000, shape).astype(np.uint16)
    place = ImagePlace((4.0, 1.0, 1.0), (8.0, 3.0, 2.0))
    create_image(tmp_path / "a.zarr", shape, np.uint16, (16, 64, 64), place, "a")[:] = values
    build_levels(tmp_path / "a.zarr", place, "a", reduction)
    assert level_shapes(shape, place.spacing) == [((20, 125, 102), (1, 2, 2))]
    source = open_source(tmp_path / "a.zarr")
    (level,) = source.levels
    pairs = np.pad(values, ((0, 0), (0, 0), (0, 1)), mode="edge").reshape(20, 125, 2, 102, 2)
    wanted = {
        "mean": np.rint(pairs.mean(axis=(2, 4), dtype=np.float32)),
        "max": pairs.max(axis=(2, 4)),
        "nearest": pairs[:, :, 0, :, 0],
    }[reduction]
    np.testing.assert_array_equal(np.asarray(level.array), wanted)
    np.testing.assert_allclose(
        level.geometry.to_world((0, 0, 0)),
        source.volume.geometry.to_world((0, 0.5, 0.5)),
    )


def test_a_survey_is_robust_and_sees_tissue_only():
    random = np.random.default_rng(5)
    array = random.normal(100, 3, (48, 96, 96))
    array[:, 30:] = random.normal(500, 50, (48, 66, 96))
    array[10, 40, 40] = 60000
    array = array.astype(np.uint16)
    source = source_of_array(array, name="half", coarser=[array[::4, ::4, ::4]])
    found = survey(source, source.whole, "volume", Monitor())
    assert abs(found.intensity.centre - 500) < 10
    assert abs(found.intensity.spread - 50) < 20
    assert abs(found.intensity.dark - 95) < 5
    assert 110 < found.empty_below < 250
