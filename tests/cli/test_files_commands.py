"""`openmedlab info`, `convert`, `evaluate`, `replay` and `engines`."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk


def test_info_tells_shape_spacing_and_orientation(case, openmedlab):
    done = openmedlab("info", case.image)
    assert done.code == 0
    for words in ("20 x 40 x 44", "3 x 1.5 x 1.5 mm", "IPL", "NIfTI", "0.00 degrees"):
        assert words in done.out


def test_info_lists_the_volumes_of_a_4d_file_and_shows_the_one_asked_for(case, openmedlab):
    many = np.zeros((4, 5, 6, 3), dtype=np.int16)
    nibabel.Nifti1Image(many, np.eye(4)).to_filename(case.folder / "four.nii.gz")
    listed = openmedlab("info", case.folder / "four.nii.gz")
    assert listed.code == 0
    assert "3 images" in listed.out
    shown = openmedlab("info", case.folder / "four.nii.gz", "--index", 2)
    assert "6 x 5 x 4" in shown.out
    refused = openmedlab("info", case.folder / "four.nii.gz", "--index", 7)
    assert refused.code == 2


def test_info_of_a_mask_names_its_objects(segmented, openmedlab):
    case, _ = segmented
    done = openmedlab("info", case.folder / "mask.nii.gz")
    assert "liver" in done.out
    assert "spleen" in done.out


def test_info_of_a_session_lists_its_objects(segmented, openmedlab):
    case, _ = segmented
    done = openmedlab("info", case.folder / "work.omlsession")
    assert done.code == 0
    for words in ("scan.nii.gz", "liver", "spleen", "built-in", "extreme_points"):
        assert words in done.out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a zip"])
def test_info_of_a_damaged_session_is_a_sentence(case, openmedlab, content):
    broken = case.folder / "broken.omlsession"
    broken.write_bytes(content)
    done = openmedlab("info", broken)
    assert done.code == 2
    assert "broken.omlsession" in done.err


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_convert_keeps_values_names_and_the_place_of_every_voxel(segmented, openmedlab, suffix):
    case, _ = segmented
    target = case.folder / f"other{suffix}"
    done = openmedlab("convert", case.folder / "mask.nii.gz", target)
    assert done.code == 0, done.err
    before = sitk.ReadImage(str(case.folder / "mask.nii.gz"))
    after = sitk.ReadImage(str(target))
    stats = []
    for image in (before, after):
        shape = sitk.LabelShapeStatisticsImageFilter()
        shape.Execute(sitk.Cast(image, sitk.sitkUInt16))
        stats.append({v: (shape.GetNumberOfPixels(v), shape.GetCentroid(v)) for v in (1, 2)})
    for value in (1, 2):
        assert stats[0][value][0] == stats[1][value][0]
        assert stats[0][value][1] == pytest.approx(stats[1][value][1], abs=1e-3)
    names = json.loads((case.folder / "other.json").read_text())["objects"]
    assert [row["name"] for row in names] == ["liver", "spleen"]


def test_convert_of_a_session_gives_its_mask(segmented, openmedlab):
    case, _ = segmented
    done = openmedlab("convert", case.folder / "work.omlsession", case.folder / "again.nii.gz")
    assert done.code == 0, done.err
    one, two = (nibabel.load(case.folder / n) for n in ("mask.nii.gz", "again.nii.gz"))
    assert np.array_equal(one.dataobj, two.dataobj)
    assert np.array_equal(one.affine, two.affine)


def test_convert_refuses_a_scan(case, openmedlab):
    done = openmedlab("convert", case.image, case.folder / "copy.nrrd")
    assert done.code == 2
    assert "scan.nii.gz" in done.err
    assert not (case.folder / "copy.nrrd").exists()


def test_replay_gives_the_same_mask_bit_for_bit(segmented, openmedlab):
    case, _ = segmented
    done = openmedlab("replay", case.folder / "work.omlsession", "-o", case.folder / "r.nii.gz")
    assert done.code == 0, done.err
    assert "identical" in done.out
    one, two = (nibabel.load(case.folder / n) for n in ("mask.nii.gz", "r.nii.gz"))
    assert np.array_equal(one.dataobj, two.dataobj)
    assert one.header.binaryblock == two.header.binaryblock


def test_replay_finds_a_moved_scan_only_when_told(segmented, openmedlab):
    case, _ = segmented
    moved = case.image.rename(case.folder / "moved.nii.gz")
    arguments = ("replay", case.folder / "work.omlsession", "-o", case.folder / "r.nii.gz")
    lost = openmedlab(*arguments)
    assert lost.code == 2
    assert "no longer at" in lost.err
    assert openmedlab(*arguments, "--image", moved).code == 0


# -- evaluate -----------------------------------------------------------------------------


def test_evaluate_prints_each_label_and_the_mean(segmented, openmedlab):
    case, _ = segmented
    done = openmedlab("evaluate", case.folder / "mask.nii.gz", case.reference)
    assert done.code == 0, done.err
    for words in ("liver", "spleen", "Dice", "HD95 mm", "reference ml", "mean"):
        assert words in done.out


def test_evaluate_json_is_clean_and_right(segmented, openmedlab):
    case, _ = segmented
    done = openmedlab("evaluate", case.folder / "mask.nii.gz", case.reference, "--json")
    report = json.loads(done.out)
    found = np.asarray(nibabel.load(case.folder / "mask.nii.gz").dataobj) == 1
    expected = np.asarray(nibabel.load(case.reference).dataobj) == 1
    wanted = 2 * (found & expected).sum() / (found.sum() + expected.sum())
    assert report["labels"][0]["dice"] == pytest.approx(wanted)
    assert report["labels"][0]["reference_volume"] == pytest.approx(expected.sum() * 6.75e-3)
    assert done.err == ""


def test_evaluate_of_one_label_leaves_the_others_out(segmented, openmedlab):
    case, _ = segmented
    done = openmedlab(
        "evaluate", case.folder / "mask.nii.gz", case.reference, "--label", 2, "--json"
    )
    assert [row["label"] for row in json.loads(done.out)["labels"]] == [2]


def test_evaluate_pairs_by_name_when_asked(segmented, openmedlab):
    case, _ = segmented
    swapped = np.asarray(nibabel.load(case.reference).dataobj).copy()
    swapped = np.choose(swapped, [0, 7, 3]).astype(np.uint8)
    image = nibabel.load(case.reference)
    nibabel.Nifti1Image(swapped, image.affine).to_filename(case.folder / "ref2.nii.gz")
    rows = [
        {"value": 7, "name": "liver", "colour": [1, 0, 0]},
        {"value": 3, "name": "spleen", "colour": [0, 1, 0]},
    ]
    sidecar = {"format": "napari-openmedlab labels", "file": "ref2.nii.gz", "objects": rows}
    (case.folder / "ref2.json").write_text(json.dumps(sidecar))
    arguments = ("evaluate", case.folder / "mask.nii.gz", case.folder / "ref2.nii.gz", "--json")
    by_value = json.loads(openmedlab(*arguments).out)
    assert by_value["mean_dice"] == 0.0
    by_name = json.loads(openmedlab(*arguments, "--by-name").out)
    assert by_name["mean_dice"] > 0.85
    assert {row["name"] for row in by_name["labels"]} == {"liver", "spleen"}


def test_evaluate_by_name_needs_names(segmented, openmedlab):
    case, _ = segmented
    done = openmedlab("evaluate", case.folder / "mask.nii.gz", case.reference, "--by-name")
    assert done.code == 2
    assert "no sidecar" in done.err


def test_evaluate_refuses_masks_on_different_grids(segmented, openmedlab):
    case, _ = segmented
    image = nibabel.load(case.reference)
    affine = image.affine.copy()
    affine[0, 3] += 2.0
    nibabel.Nifti1Image(np.asarray(image.dataobj), affine).to_filename(case.folder / "off.nii.gz")
    done = openmedlab("evaluate", case.folder / "mask.nii.gz", case.folder / "off.nii.gz")
    assert done.code == 2
    assert "does not lie on the grid" in done.err
    assert "2 mm apart" in done.err
    assert done.out == ""


def test_engines_lists_the_built_in_one(openmedlab):
    done = openmedlab("engines")
    assert done.code == 0
    assert "built-in" in done.out
    assert "extreme_points" in done.out
