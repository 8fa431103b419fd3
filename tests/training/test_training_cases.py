"""What can be learnt from, and what is left out and why."""

from __future__ import annotations

import json

import numpy as np
import pytest
from training_phantoms import NAMES, case, labelled_files, scan

from napari_openmedlab.errors import Cancelled, ReadError, SettingsError
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.training.cases import Case, check_cases
from napari_openmedlab.training.pairs import pair_folders, pairs_in_file

nibabel = pytest.importorskip("nibabel")


def reasons(found):
    return dict(found.left_out)


def test_open_layers_become_cases_with_their_classes_by_name():
    volume, labels = scan(1)
    # In the second one the same structures have other numbers.
    swapped = np.choose(labels, [0, 7, 5]).astype(np.uint16)
    named = {7: "Ball", 5: "block"}
    found = check_cases([case(0), Case("other", volume, swapped, named)])
    assert found.classes == NAMES
    assert not found.left_out
    assert dict(found.cases[1].mapping) == {5: 2, 7: 1}
    assert found.cases[1].voxels[1] == int((labels == 1).sum())


def test_unnamed_labels_are_classes_by_value():
    found = check_cases([case(0, names={}), case(1, names={1: "ball"})])
    assert found.classes == {1: "ball", 2: "label 2"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": np.ones((4, 5, 6), np.uint8)}, "4 x 5 x 6 voxels, its image 24 x 34 x 36"),
        ({"labels": np.zeros((24, 34, 36), np.uint8)}, "nothing is labelled"),
        ({"labels": np.full((24, 34, 36), 0.5)}, "no whole numbers"),
        ({"labels": np.full((24, 34, 36), -1)}, "no whole numbers"),
        ({"labels": np.full((24, 34, 36), 9, np.uint8)}, "hold 9, which the class list (1 ball"),
        ({"names": {1: "ball", 2: "spleen"}}, "2 (spleen)"),
        ({"image": None}, "2D image (1 x 34 x 36 voxels)"),
        ({"image": 7.0}, "one value everywhere"),
        ({"name": "case 1"}, "several cases have this name"),
    ],
)
def test_what_is_odd_is_left_out_with_a_reason(changes, words):
    volume, labels = scan(0)
    if "image" in changes and changes["image"] is None:
        flat = Geometry.from_spacing((1, 34, 36), (1, 1, 1))
        changes = {"image": Volume(volume.array[:1], flat), "labels": labels[8:9]}
    elif "image" in changes:
        even = np.full(volume.array.shape, changes["image"], np.float32)
        changes = {"image": Volume(even, volume.geometry)}
    odd = case(0, **changes)
    found = check_cases([odd, case(1), case(2)], NAMES)
    assert words in reasons(found)[odd.name]
    assert "case 2" in [checked.case.name for checked in found.cases]


def test_other_labels_count_as_background_when_asked():
    found = check_cases([case(0), case(1)], {2: "block"}, others_as_background=True)
    assert [dict(c.mapping) for c in found.cases] == [{2: 2}] * 2


def test_a_class_that_is_empty_everywhere_is_an_error_that_names_it():
    with pytest.raises(SettingsError, match="class 'spleen' is empty in all 2 volumes"):
        check_cases([case(0), case(1)], {**NAMES, 3: "spleen"})


def test_nothing_left_says_what_was_left_out():
    empty = np.zeros((24, 34, 36), np.uint8)
    with pytest.raises(SettingsError, match=r"no case to learn from\. Left out: a: nothing is"):
        check_cases([case(0, name="a", labels=empty)])


def test_class_lists_that_cannot_be_are_refused():
    for classes, words in (
        ({0: "air"}, "from 1 on"),
        ({1: "a", 2: "A "}, "one name"),
        ({1: " "}, "no name"),
        ({n: f"c{n}" for n in range(1, 300)}, "255 classes"),
    ):
        with pytest.raises(SettingsError, match=words):
            check_cases([case(0)], classes)


def test_looking_can_be_cancelled():
    monitor = Monitor()
    monitor.cancel()
    with pytest.raises(Cancelled):
        check_cases([case(0)], monitor=monitor)


# -- files -------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """Three scans with named labels."""
    return labelled_files(tmp_path, 3)


def test_folders_are_paired_by_name_and_sidecars_name_the_classes(folders):
    images, labels = folders
    cases, left_out = pair_folders(images, labels)
    assert [c.name for c in cases] == ["case_0", "case_1", "case_2"]
    assert not left_out
    assert check_cases(cases).classes == NAMES


def test_partners_that_are_missing_double_or_on_another_grid_are_left_out(folders):
    images, labels = folders
    (images / "extra.nii.gz").write_bytes((images / "case_0_0000.nii.gz").read_bytes())
    (labels / "lonely.nii.gz").write_bytes((labels / "case_0_seg.nii.gz").read_bytes())
    (labels / "case_1.nii.gz").write_bytes((labels / "case_1_seg.nii.gz").read_bytes())
    (images / "case_2_0001.nii.gz").write_bytes(b"second channel")
    (images / "notes.txt").write_text("not a scan")
    cases, left_out = pair_folders(images, labels)
    told = dict(left_out)
    assert [c.name for c in cases] == ["case_0"]
    assert told["extra"] == "there is no label file of that name"
    assert told["lonely"] == "there is no scan of that name"
    assert "several label files have this name" in told["case_1"]
    assert "several channels" in told["case_2"]
    moved = nibabel.load(labels / "case_0_seg.nii.gz")
    other = nibabel.Nifti1Image(np.asarray(moved.dataobj), moved.affine + np.eye(4) * 0.5)
    nibabel.save(other, labels / "case_0_seg.nii.gz")
    with pytest.raises(SettingsError, match=r"case_0: the labels in .* lie on another grid"):
        check_cases(cases, left_out=left_out)


def test_one_folder_for_both_and_damaged_files(folders):
    images, labels = folders
    for path in labels.iterdir():
        path.rename(images / path.name)
    cases, left_out = pair_folders(images, images)
    assert [c.name for c in cases] == ["case_0", "case_1", "case_2"]
    assert not left_out
    (images / "case_1_0000.nii.gz").write_bytes(b"half a file")
    found = check_cases(cases)
    assert list(reasons(found)) == ["case_1"]
    with pytest.raises(ReadError, match="no label file"):
        pair_folders(images, labels)
    with pytest.raises(ReadError, match="is no folder"):
        pair_folders(images / "nowhere", labels)


def test_lists_of_pairs(folders, tmp_path):
    row = {"image": "images/case_0_0000.nii.gz", "labels": "labels/case_0_seg.nii.gz"}
    listed = tmp_path / "pairs.json"
    listed.write_text(json.dumps({"cases": [row], "classes": {"1": "ball"}}))
    cases, classes = pairs_in_file(listed)
    assert (cases[0].name, classes) == ("case_0", {1: "ball"})
    assert cases[0].image == tmp_path / row["image"]
    table = tmp_path / "pairs.csv"
    table.write_text(f"image,labels,name\n{row['image']},{row['labels']},first\n")
    assert pairs_in_file(table)[0][0].name == "first"
    for text in ("{}", "[3]", "nonsense", '[{"image": "a.nii"}]', '[{"image": "", "labels": ""}]'):
        listed.write_text(text)
        with pytest.raises(ReadError):
            pairs_in_file(listed)
    with pytest.raises(ReadError):
        pairs_in_file(tmp_path / "gone.json")
