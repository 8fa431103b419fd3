from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

import napari_openmedlab as oml
from napari_openmedlab.errors import GeometryError, ReadError, WriteError
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.io import nifti_labels
from napari_openmedlab.io.sidecar import LabelInfo

SHAPE = (4, 5, 6)
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def scan(shape=SHAPE, spacing=(3.0, 2.0, 1.0), origin=(5.0, 6.0, 7.0), dtype=np.int16, values=None):
    """A patient volume in display order (I, P, L)."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = -spacing[0], spacing[1], spacing[2]
    affine[:, 3] = (*origin, 1)
    array = np.zeros(shape, dtype) if values is None else values
    return Volume(array, Geometry(shape, affine), name="abdomen")


def two_objects():
    labels = np.zeros(SHAPE, np.uint16)
    labels[0, 0, :3] = 1
    labels[2, 2, :] = 300
    return labels


# --- what is written -----------------------------------------------------------------------


def test_names_and_colours_come_back_with_the_labels(tmp_path):
    objects = {1: LabelInfo("Milz (größe?)", RED), 300: LabelInfo("肝臓", BLUE)}
    written = oml.write(tmp_path / "m.nii.gz", two_objects(), scan(), objects=objects)
    assert [p.name for p in written] == ["m.nii.gz", "m.json"]
    volume, found = oml.read_labels(tmp_path / "m.nii.gz", like=scan())
    assert found == objects
    assert np.array_equal(volume.array, two_objects())


def test_values_without_a_name_are_listed_too(tmp_path):
    oml.write(tmp_path / "m.nii", two_objects(), scan(), objects={1: LabelInfo("liver", RED)})
    _, found = oml.read_labels(tmp_path / "m.nii")
    assert found[300].name == "label 300"


def test_one_file_per_object_holds_zeros_and_ones(tmp_path):
    objects = {1: LabelInfo("left kidney", RED), 300: LabelInfo("liver", BLUE)}
    written = oml.write(
        tmp_path / "case7.nii.gz", two_objects(), scan(), objects=objects, one_file_per_object=True
    )
    assert {p.name for p in written} == {
        *("case7_left_kidney.nii.gz", "case7_left_kidney.json"),
        *("case7_liver.nii.gz", "case7_liver.json"),
    }
    volume, found = oml.read_labels(tmp_path / "case7_liver.nii.gz", like=scan())
    assert volume.array.dtype == np.uint8
    assert np.array_equal(volume.array, two_objects() == 300)
    assert found == {1: LabelInfo("liver", BLUE)}


def test_objects_of_one_name_and_of_names_windows_keeps_get_files_of_their_own(tmp_path):
    names = ["Cyst", "cyst", "a/b", "a\\b", "..", "CON", "x" * 300]
    labels = np.arange(120).reshape(SHAPE) % (len(names) + 1)
    objects = {i + 1: LabelInfo(name, RED) for i, name in enumerate(names)}
    written = oml.write(
        tmp_path / "m.nii", labels, scan(), objects=objects, one_file_per_object=True
    )
    masks = [p for p in written if p.suffix == ".nii"]
    assert len({p.name.casefold() for p in masks}) == len(names)
    assert all(p.parent == tmp_path and len(p.name) < 100 for p in masks)
    for value, mask in enumerate(masks, start=1):
        assert np.array_equal(oml.read_labels(mask, like=scan())[0].array, labels == value)


def test_an_object_without_voxels_gives_an_empty_file_and_none_at_all_is_refused(tmp_path):
    empty = np.zeros(SHAPE, np.uint8)
    oml.write(
        tmp_path / "m.nii", empty, scan(), objects={4: LabelInfo("gone", RED)},
        one_file_per_object=True,
    )  # fmt: skip
    assert not oml.read_labels(tmp_path / "m_gone.nii")[0].array.any()
    with pytest.raises(WriteError, match="no object to write"):
        oml.write(tmp_path / "n.nii", empty, scan(), one_file_per_object=True)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.uint32])
@pytest.mark.parametrize("suffix", ["nii", "nrrd", "mha", "mhd", "nhdr"])
def test_labels_of_any_integer_type_survive_every_format(tmp_path, dtype, suffix):
    labels = (np.random.default_rng(0).random(SHAPE) > 0.5).astype(dtype)
    oml.write(tmp_path / f"m.{suffix}", labels, scan())
    volume, _ = oml.read_labels(tmp_path / f"m.{suffix}", like=scan())
    assert np.array_equal(volume.array, labels)
    assert volume.array.dtype == np.uint8


@pytest.mark.parametrize("suffix", ["tif", "tiff", "ome.tif"])
@pytest.mark.parametrize("largest", [7, 300, 70_000])
def test_microscopy_labels_go_to_tiff_with_their_voxel_size(tmp_path, suffix, largest):
    geometry = Geometry.from_spacing(SHAPE, (2.0, 0.65, 0.65), unit="um")
    volume = Volume(np.zeros(SHAPE), geometry)
    labels = np.zeros(SHAPE, np.int64)
    labels[1, 2, 3] = largest
    path = tmp_path / f"m.{suffix}"
    oml.write(path, labels, volume)
    assert np.array_equal(tifffile.imread(path), labels)
    again, _ = oml.read_labels(path, like=volume)
    assert np.array_equal(again.array, labels)
    assert oml.read(path).geometry.same_grid(geometry)


@pytest.mark.parametrize("unit", ["um", "pixel"])
def test_a_format_of_millimetres_is_refused_for_other_units(tmp_path, unit):
    volume = Volume(np.zeros(SHAPE), Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.0), unit=unit))
    with pytest.raises(WriteError, match=f"millimetres only and the image is in {unit}"):
        oml.write(tmp_path / "m.nrrd", two_objects(), volume)
    assert list(tmp_path.iterdir()) == []


def test_a_tiff_is_refused_for_a_patient(tmp_path):
    with pytest.raises(WriteError, match="can't say where the patient's left is"):
        oml.write(tmp_path / "m.tif", two_objects(), scan())
    assert list(tmp_path.iterdir()) == []


def test_memory_layout_of_the_labels_does_not_matter(tmp_path):
    labels = np.asfortranarray(two_objects())[:, ::-1][:, ::-1]
    oml.write(tmp_path / "m.nii.gz", labels, scan())
    assert np.array_equal(oml.read_labels(tmp_path / "m.nii.gz", like=scan())[0].array, labels)


# --- what is refused, and leaves everything as it was ---------------------------------------


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.zeros((4, 5, 7), int), r"shape \(4, 5, 7\) don't lie on the grid of 'abdomen'"),
        (np.zeros(SHAPE), "whole numbers, these are float64"),
        (np.full(SHAPE, -2), "go down to -2"),
        (np.full(SHAPE, 2**33), "4294967295"),
    ],
)
def test_what_is_no_label_map_of_this_scan_is_refused(tmp_path, labels, sentence):
    with pytest.raises(GeometryError, match=sentence):
        oml.write(tmp_path / "m.nii", labels, scan())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("m.docx", r"can't be written as '.docx'; end the name in one of .nii.gz"),
        ("m", "a file without suffix"),
        ("missing/m.nii", "folder .*missing does not exist"),
        ("folder.nii", "is a folder; add a file name"),
    ],
)
def test_a_target_that_can_not_be_is_refused(tmp_path, name, sentence):
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(WriteError, match=sentence):
        oml.write(tmp_path / name, two_objects(), scan())
    assert [p.name for p in tmp_path.iterdir()] == ["folder.nii"]


def test_the_scan_itself_is_never_overwritten(tmp_path):
    oml.write(tmp_path / "scan.nii.gz", two_objects(), scan())
    before = (tmp_path / "scan.nii.gz").read_bytes()
    volume = oml.read(tmp_path / "scan.nii.gz")
    with pytest.raises(WriteError, match="is the scan itself"):
        oml.write(tmp_path / "scan.nii.gz", np.zeros(SHAPE, int), volume)
    oml.write(tmp_path / "scan.mhd", two_objects(), scan())
    with pytest.raises(WriteError, match="is the scan itself"):
        oml.write(tmp_path / "scan.mhd", np.zeros(SHAPE, int), oml.read(tmp_path / "scan.mhd"))
    assert (tmp_path / "scan.nii.gz").read_bytes() == before


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WriteError, match="no permission to write"):
        oml.write(tmp_path / "m.nii", two_objects(), scan())
    tmp_path.chmod(0o700)


def spoil_nifti_voxels(monkeypatch):
    put = nifti_labels._put
    monkeypatch.setattr(nifti_labels, "_put", lambda f, start, data: put(f, start, data ^ 1))


def spoil_nifti_place(monkeypatch):
    put = nifti_labels._put

    def moved(file, start, data):
        header = nib.Nifti1Header(start[:348])
        header["srow_x"][3] += 1e-4
        put(file, header.binaryblock + start[348:], data)

    monkeypatch.setattr(nifti_labels, "_put", moved)


def spoil_itk_voxels(monkeypatch):
    save = sitk.WriteImage
    monkeypatch.setattr(sitk, "WriteImage", lambda im, *a, **k: save(im + 1, *a, **k))


def cut_short(monkeypatch):
    put = nifti_labels._put

    def half(file, start, data):
        put(file, start, data[: len(data) // 2])

    monkeypatch.setattr(nifti_labels, "_put", half)


def fill_the_disk(monkeypatch):
    def full(file, start, data):
        file.write(start)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nifti_labels, "_put", full)


def itk_fails(monkeypatch):
    def fail(image, name, **k):
        Path(name).write_bytes(b"half")
        raise RuntimeError("itk::ERROR: write failed")

    monkeypatch.setattr(sitk, "WriteImage", fail)


@pytest.mark.parametrize(
    ("suffix", "spoil", "sentence"),
    [
        ("nii", spoil_nifti_voxels, "reads back different"),
        ("nii.gz", spoil_nifti_voxels, "reads back different"),
        ("nii", spoil_nifti_place, "position reads back different"),
        ("nii", cut_short, "could not be read back"),
        ("nii.gz", cut_short, "could not be read back"),
        ("nii.gz", fill_the_disk, "disk is full"),
        ("nrrd", spoil_itk_voxels, "reads back different"),
        ("mha", spoil_itk_voxels, "reads back different"),
        ("mhd", itk_fails, "is the disk full"),
    ],
)
def test_a_mask_that_went_wrong_never_takes_the_old_ones_place(
    tmp_path, suffix, spoil, sentence, monkeypatch
):
    path = tmp_path / f"m.{suffix}"
    oml.write(path, two_objects(), scan())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    spoil(monkeypatch)
    with pytest.raises(WriteError, match=sentence):
        oml.write(path, np.zeros(SHAPE, int), scan())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_sidecar_that_can_not_be_json_stops_the_mask_too(tmp_path):
    with pytest.raises(WriteError, match=r"provenance of m.nii can't be written as JSON"):
        oml.write(tmp_path / "m.nii", two_objects(), scan(), provenance={"when": object()})
    assert list(tmp_path.iterdir()) == []


# --- reading labels ------------------------------------------------------------------------


def labels_file(tmp_path: Path, values, **kw) -> Path:
    """Write any image, floats too, as a file somebody else made."""
    volume = scan(values.shape, **kw)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(volume.geometry.spacing[::-1])
    image.SetOrigin(volume.geometry.affine[:3, 3])
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
    sitk.WriteImage(image, str(tmp_path / "l.nrrd"))
    return tmp_path / "l.nrrd"


def test_whole_numbers_stored_as_floats_are_labels(tmp_path):
    path = labels_file(tmp_path, two_objects().astype(np.float32))
    volume, _ = oml.read_labels(path, like=scan())
    assert volume.array.dtype == np.uint16
    assert np.array_equal(volume.array, two_objects())


@pytest.mark.parametrize(
    ("value", "sentence"),
    [(0.25, "the value 0.25; label values are whole"), (np.nan, "the value nan"), (-3, "value -3")],
)
def test_values_that_are_no_labels_are_named(tmp_path, value, sentence):
    values = np.zeros(SHAPE, np.float32)
    values[1, 1, 1] = value
    with pytest.raises(ReadError, match=sentence):
        oml.read_labels(labels_file(tmp_path, values))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"shape": (4, 5, 7)}, r"shape \(4, 5, 6\) against \(4, 5, 7\)"),
        ({"spacing": (3.0, 2.0, 1.5)}, "spacing"),
        ({"origin": (5.0, 6.0, 9.0)}, "first voxels 2 mm apart"),
    ],
)
def test_labels_on_another_grid_are_refused_with_the_difference(tmp_path, other, sentence):
    values = np.zeros(other.get("shape", SHAPE), np.uint8)
    path = labels_file(tmp_path, values, **{k: v for k, v in other.items() if k != "shape"})
    with pytest.raises(GeometryError, match=f"another grid than 'abdomen'.*{sentence}"):
        oml.read_labels(path, like=scan())


def test_labels_on_another_grid_are_resampled_when_asked_for(tmp_path):
    coarse = np.arange(1, 9, dtype=np.uint8).reshape(2, 2, 2)
    path = labels_file(tmp_path, coarse, spacing=(2.0, 2.0, 2.0), origin=(0.5, 0.5, -0.5))
    like = scan((5, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    volume, _ = oml.read_labels(path, like=like, resample=True)
    expected = np.zeros((5, 4, 4), np.uint8)  # one plane reaches beyond the labels
    expected[:4] = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert np.array_equal(volume.array, expected)
    assert "resampled (nearest voxel)" in volume.notes[-1]


def test_labels_stored_in_another_axis_order_match_their_scan(tmp_path):
    volume = scan()
    turned = Volume(
        two_objects().transpose(1, 2, 0)[::-1],
        Geometry(
            (5, 6, 4),
            volume.geometry.affine @ [[0, 0, 1, 0], [-1, 0, 0, 4], [0, 1, 0, 0], [0, 0, 0, 1]],
        ),
    )
    oml.write(tmp_path / "m.nii", turned.array, turned)
    assert np.array_equal(oml.read_labels(tmp_path / "m.nii", like=volume)[0].array, two_objects())


def test_the_sidecar_says_where_and_how_much(tmp_path):
    oml.write(
        tmp_path / "m.nii", two_objects(), scan(), objects={1: LabelInfo("liver", RED)},
        provenance={"engine": "built-in", "prompts": [[1.0, 2.0, 3.0]]},
    )  # fmt: skip
    content = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    liver = content["objects"][0]
    assert (liver["voxels"], liver["volume"], liver["volume_unit"]) == (3, 18.0, "mm^3")
    assert content["provenance"]["engine"] == "built-in"
    assert content["geometry"]["world"] == "LPS"
    assert content["software"]["napari-openmedlab"] == oml.__version__
