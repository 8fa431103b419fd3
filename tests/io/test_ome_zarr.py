"""OME-Zarr reading: axes, scales, levels, choices, laziness, broken stores."""

from __future__ import annotations

import json
import shutil

import numcodecs
import numpy as np
import pytest
import zarr
from damage import refusals
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.writer import write_image
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from napari_openmedlab.errors import ReadError
from napari_openmedlab.io import ome_zarr

CUBE = np.random.default_rng(0).integers(0, 60000, (6, 32, 40)).astype(np.uint16)
PLAIN = CUBE % 300  # can be compressed, so that codecs don't store it as it is
SPACE = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]


def write(path, array, *, axes=SPACE, steps=((4.0, 2.0, 2.0),), version="0.4", **more):
    """Write a store by hand, so each test states the metadata it is about."""
    stored = {key: more.pop(key) for key in ("compressors", "shards") if key in more}
    group = zarr.open_group(str(path), mode="w", zarr_format=3 if version == "0.5" else 2)
    datasets = []
    for n, scale in enumerate(steps):
        data = array[(..., *(slice(None, None, 2**n),) * 2)]
        group.create_array(
            str(n), data=data, chunks=tuple(min(s, 16) for s in data.shape), **stored
        )
        entry = {"path": str(n)}
        if scale is not None:
            entry["coordinateTransformations"] = [{"type": "scale", "scale": list(scale)}]
        datasets.append(entry)
    multiscale = {"axes": axes, "datasets": datasets, "version": version}
    multiscale |= more.pop("multiscale", {})
    attributes = {"multiscales": [multiscale], **more}
    group.attrs.update({"ome": attributes} if version == "0.5" else attributes)
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_voxels_and_voxel_size_of_both_versions(tmp_path, version):
    path = write(tmp_path / "brain.ome.zarr", CUBE, version=version)
    assert ome_zarr.claims(path)
    volume = ome_zarr.read(path)
    np.testing.assert_array_equal(volume.array, CUBE)
    assert isinstance(volume.array, np.ndarray)
    assert volume.geometry.spacing == (4.0, 2.0, 2.0)
    assert (volume.geometry.unit, volume.geometry.frame) == ("um", "image")
    assert (volume.name, volume.notes) == ("brain", ())
    assert volume.source.kind == "ome-zarr"


@pytest.mark.parametrize("version", [FormatV04(), FormatV05()], ids=lambda f: f.version)
def test_stores_of_the_reference_writer_open(tmp_path, version):
    path = tmp_path / "a.zarr"
    write_image(CUBE[None], str(path), axes="czyx", fmt=version)
    volume = ome_zarr.read(path)
    np.testing.assert_array_equal(volume.array, CUBE)
    assert len(volume.info["levels"]) >= 1


@pytest.mark.parametrize(
    ("unit", "factor"), [("nanometer", 1e-3), ("millimeter", 1e3), ("micrometer", 1.0)]
)
def test_units_become_um(tmp_path, unit, factor):
    axes = [{"name": a, "type": "space", "unit": unit} for a in "zyx"]
    volume = ome_zarr.read(write(tmp_path / "a.zarr", CUBE, axes=axes))
    np.testing.assert_allclose(volume.geometry.spacing, np.array([4.0, 2.0, 2.0]) * factor)
    assert volume.geometry.unit == "um"


def test_scale_of_the_image_applies_after_those_of_the_levels(tmp_path):
    extra = {
        "coordinateTransformations": [
            {"type": "scale", "scale": [0.5, 0.5, 0.5]},
            {"type": "translation", "translation": [10.0, 20.0, 30.0]},
        ]
    }
    path = write(tmp_path / "a.zarr", CUBE, multiscale=extra)
    geometry = ome_zarr.read(path).geometry
    np.testing.assert_allclose(geometry.to_world((0, 0, 0)), (30, 20, 10))
    np.testing.assert_allclose(geometry.to_world((1, 2, 3)), (33, 22, 12))


def test_levels_are_lazy_and_lie_where_the_image_lies(tmp_path):
    path = write(tmp_path / "a.zarr", CUBE, steps=((4, 2, 2), (4, 4, 4)))
    [level] = ome_zarr.read(path).info["levels"]
    assert hasattr(level.array, "dask")
    assert level.geometry.spacing == (4.0, 4.0, 4.0)
    np.testing.assert_array_equal(np.asarray(level.array), CUBE[:, ::2, ::2])


def test_large_images_are_lazy(tmp_path, monkeypatch):
    monkeypatch.setattr(ome_zarr, "LAZY_BYTES", 1000)
    volume = ome_zarr.read(write(tmp_path / "a.zarr", CUBE))
    assert hasattr(volume.array, "dask")
    np.testing.assert_array_equal(np.asarray(volume.array[2:4, 5:9]), CUBE[2:4, 5:9])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_channel_and_time_are_listed_and_chosen_by_index(tmp_path, version):
    data = np.random.default_rng(1).integers(0, 99, (2, 3, 6, 32, 40)).astype(np.uint16)
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}, *SPACE]
    path = write(
        tmp_path / "a.zarr",
        data,
        axes=axes,
        steps=((1, 1, 4, 2, 2),),
        version=version,
        omero={"channels": [{"label": "DAPI"}, {"label": "axons"}, {}]},
    )
    with pytest.raises(ReadError, match=r"(?s)6 images.*4: a, time 1, axons, 6 x 32 x 40"):
        ome_zarr.read(path)
    np.testing.assert_array_equal(ome_zarr.read(path, index=4).array, data[1, 1])
    np.testing.assert_array_equal(ome_zarr.read(path, series="1/2").array, data[1, 2])
    with pytest.raises(ReadError, match="images 0 to 5"):
        ome_zarr.read(path, index=6)
    with pytest.raises(ReadError, match="no image '7'"):
        ome_zarr.read(path, series="7")


def test_image_without_z_is_one_slice(tmp_path):
    path = write(tmp_path / "a.zarr", CUBE[0], axes=SPACE[1:], steps=((2.0, 2.0),))
    volume = ome_zarr.read(path)
    assert volume.array.shape == (1, 32, 40)
    assert volume.geometry.unit == "um"


@pytest.mark.parametrize("scale", [None, (4.0, 2.0, 2.0)])
def test_unknown_voxel_size_or_unit_is_said(tmp_path, scale):
    axes = [{"name": a, "type": "space"} for a in "zyx"]
    volume = ome_zarr.read(write(tmp_path / "a.zarr", CUBE, axes=axes, steps=(scale,)))
    assert volume.geometry.unit == "pixel"
    assert volume.geometry.spacing == (scale or (1, 1, 1))
    assert "doesn't state the" in volume.notes[0]


def test_several_images_in_one_store_are_chosen_by_series(tmp_path):
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    write(tmp_path / "a.zarr" / "0", CUBE)
    write(tmp_path / "a.zarr" / "1", CUBE + 1)
    with pytest.raises(ReadError, match=r"(?s)2 images.*0: a 0.*1: a 1"):
        ome_zarr.read(tmp_path / "a.zarr")
    np.testing.assert_array_equal(ome_zarr.read(tmp_path / "a.zarr", series="1").array, CUBE + 1)


def test_plate_says_to_open_one_field(tmp_path):
    root = zarr.open_group(str(tmp_path / "p.zarr"), mode="w", zarr_format=2)
    root.attrs["plate"] = {}
    with pytest.raises(ReadError, match=r"a plate of many images.*p\.zarr/A/1/0"):
        ome_zarr.read(tmp_path / "p.zarr")


def break_json(path):
    (path / ".zattrs").write_text("{", encoding="utf-8")


def drop_metadata(path):
    (path / ".zattrs").unlink()


def drop_level(path):
    shutil.rmtree(path / "0")


def edit(path, change):
    attributes = json.loads((path / ".zattrs").read_text(encoding="utf-8"))
    change(attributes["multiscales"][0])
    (path / ".zattrs").write_text(json.dumps(attributes), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (break_json, "can't be read as OME-Zarr|without OME-Zarr"),
        (drop_metadata, "without OME-Zarr image metadata"),
        (drop_level, "array '0' named by its metadata is missing"),
        (lambda p: edit(p, lambda m: m.update(datasets=[])), "lists no datasets"),
        (lambda p: edit(p, lambda m: m.update(datasets=[{}])), "can't be read|missing or broken"),
        (lambda p: edit(p, lambda m: m["axes"].pop()), "axes with y and x are needed"),
        (
            lambda p: edit(
                p,
                lambda m: m["datasets"][0].update(
                    coordinateTransformations=[{"type": "scale", "scale": [1, 2]}]
                ),
            ),
            "not a scale or translation of 3 numbers",
        ),
        (
            lambda p: edit(
                p,
                lambda m: m["datasets"][0].update(
                    coordinateTransformations=[{"type": "scale", "scale": [1, 0, 2]}]
                ),
            ),
            "voxel size of 0 makes no sense",
        ),
        (lambda p: edit(p, lambda m: m.update(axes=[3, 4, 5])), "can't be read as OME-Zarr"),
    ],
    ids=["json", "none", "level", "datasets", "path", "axes", "short", "zero", "types"],
)
def test_broken_metadata_is_said(tmp_path, damage, sentence):
    path = write(tmp_path / "a.zarr", CUBE)
    damage(path)
    with pytest.raises(ReadError, match=sentence):
        ome_zarr.read(path)


CODECS = {
    2: [
        numcodecs.GZip(), numcodecs.Zlib(), numcodecs.BZ2(), numcodecs.LZMA(), numcodecs.Zstd(),
        numcodecs.LZ4(), numcodecs.Blosc(), None,
    ],
    3: [GzipCodec(), ZstdCodec(), BloscCodec(), Crc32cCodec(), None],
}  # fmt: skip


def cut(data):
    return data[: len(data) // 2]


def garbled(data):
    return data[:20] + bytes(byte ^ 0x5A for byte in data[20:])


def damages():
    """Yield every damage to every codec that can notice it: without one, any byte is a voxel."""
    for form, codecs in CODECS.items():
        for codec in codecs:
            for damage in (cut, garbled) if codec is not None else (cut,):
                name = f"zarr{form}-{type(codec).__name__}-{damage.__name__}"
                yield pytest.param(form, codec, damage, id=name)


@pytest.mark.parametrize("lazy", [False, True], ids=["whole", "lazy"])
@pytest.mark.parametrize(("form", "codec", "damage"), list(damages()))
def test_damaged_block_is_said(tmp_path, monkeypatch, form, codec, damage, lazy):
    if lazy:
        monkeypatch.setattr(ome_zarr, "LAZY_BYTES", 1000)
    version = "0.5" if form == 3 else "0.4"
    path = write(tmp_path / "a.zarr", PLAIN, version=version, compressors=codec)
    block = next(p for p in sorted((path / "0").rglob("*")) if p.is_file() and "z" not in p.name)
    block.write_bytes(damage(block.read_bytes()))
    with pytest.raises(ReadError, match=r"a\.zarr holds a damaged block of voxels"):
        np.asarray(ome_zarr.read(path).array)


@pytest.mark.parametrize("damage", [cut, garbled])
def test_damaged_shard_is_said(tmp_path, damage):
    path = write(
        tmp_path / "a.zarr", PLAIN, version="0.5", compressors=GzipCodec(), shards=(6, 32, 48)
    )
    [shard] = [p for p in (path / "0").rglob("*") if p.is_file() and "z" not in p.name]
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(ReadError, match=r"a\.zarr holds a damaged block of voxels"):
        np.asarray(ome_zarr.read(path).array)


def test_folder_that_is_no_store_says_so(tmp_path):
    assert not ome_zarr.claims(tmp_path)
    (tmp_path / "e.zarr").mkdir()
    with pytest.raises(ReadError, match="can't be read as OME-Zarr"):
        ome_zarr.read(tmp_path / "e.zarr")
    with pytest.raises(ReadError, match="does not exist"):
        ome_zarr.read(tmp_path / "nowhere.zarr")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_random_damage_is_a_sentence_or_harmless(tmp_path, version):
    path = write(tmp_path / "a.zarr", CUBE, version=version)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    assert refusals(files, lambda: ome_zarr.read(path), 60) > 10
