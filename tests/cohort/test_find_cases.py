"""Which scans a folder holds, under which names, and what is passed over."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from small_torsos import save, save_dicom, torso

from napari_openmedlab.cohort.cases import find_cases, read_case, stamp_of
from napari_openmedlab.errors import ReadError
from napari_openmedlab.io.api import read, write
from napari_openmedlab.io.sidecar import LabelInfo


def ids(folder, exclude=()):
    return [case.id for case in find_cases(folder, exclude)]


def test_files_and_series_in_natural_order(scans):
    for number in (10, 2):
        shutil.copy(scans / "patient11" / "ct.nii.gz", scans / f"scan{number}.nii.gz")
    assert ids(scans) == [
        "broken", "dicom__series", "patient11__ct", "patient12__ct", "scan2", "scan10",
    ]  # fmt: skip
    for case in find_cases(scans):
        if case.id != "broken":
            assert read_case(case).geometry.codes == "IPL"


def test_our_own_masks_results_and_hidden_files_are_no_scans(scans):
    scan = read(scans / "patient11" / "ct.nii.gz")
    labels = np.zeros(scan.geometry.shape, np.uint8)
    labels[3:5, 9:12, 9:12] = 1
    objects = {1: LabelInfo("liver", (1.0, 0.0, 0.0))}
    write(scans / "patient11" / "mask.nii.gz", labels, scan, objects=objects)
    results = scans / "results"
    save(results / "cases" / "x.nii.gz", labels)
    (results / "cohort.json").write_text("{}")
    shutil.copy(scans / "patient11" / "ct.nii.gz", scans / ".hidden.nii.gz")
    shutil.copy(scans / "patient11" / "ct.nii.gz", scans / "aside.nii.gz")
    assert ids(scans, [scans / "aside.nii.gz"]) == [
        "broken", "dicom__series", "patient11__ct", "patient12__ct",
    ]  # fmt: skip


def test_two_series_in_one_folder_and_a_scout(tmp_path):
    image = torso(3)[0]
    save_dicom(tmp_path / "study", image, uid="1.2.826.0.1.3680043.8.498.1")
    second = save_dicom(tmp_path / "second", image + 5, uid="1.2.826.0.1.3680043.8.498.2")
    scout = save_dicom(tmp_path / "scout", image[:1], uid="1.2.826.0.1.3680043.8.498.3")
    for folder in (second, scout):
        for path in folder.iterdir():
            path.rename(tmp_path / "study" / f"{folder.name}-{path.name}")
        folder.rmdir()
    cases = find_cases(tmp_path)
    assert len({case.id for case in cases}) == 3
    scans = [case for case in cases if not case.problem]
    values = sorted(float(np.mean(read_case(case).array)) for case in scans)
    assert values[1] - values[0] == pytest.approx(5.0)
    (left_out,) = (case for case in cases if case.problem)
    assert "1 slice only: a scout" in left_out.problem
    with pytest.raises(ReadError, match="a scout"):
        read_case(left_out)


def test_a_series_in_two_folders_is_one_scan(tmp_path):
    folder = save_dicom(tmp_path / "all" / "a", torso(3)[0])
    other = tmp_path / "all" / "b"
    other.mkdir()
    for path in sorted(folder.iterdir())[10:]:
        path.rename(other / path.name)
    (case,) = find_cases(tmp_path)
    assert case.id == "all"
    assert read_case(case).geometry.shape == torso(3)[0].shape


def test_names_that_would_collide_differ(tmp_path):
    image = torso(3)[0]
    save(tmp_path / "a" / "ct.nii.gz", image)
    save(tmp_path / "a" / "ct.nii", image)
    save(tmp_path / "a__ct.nii.gz", image)
    save(tmp_path / ("long " * 20) / "ct.nii.gz", image)
    found = ids(tmp_path)
    assert len({name.casefold() for name in found}) == 4
    assert max(map(len, found)) < 70
    assert found == ids(tmp_path)


def test_damaged_dicom_is_listed(scans):
    for path in (scans / "dicom" / "series").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    case = next(c for c in find_cases(scans) if c.title.startswith("dicom"))
    assert "damaged or cut short" in case.problem


def test_the_stamp_follows_the_files(scans):
    case = next(c for c in find_cases(scans) if c.id == "dicom__series")
    before = stamp_of(case)
    assert before == stamp_of(case)
    os.utime(scans / "dicom" / "series" / "IM0007", (1, 1))
    assert stamp_of(case) != before


def test_one_file_is_a_cohort_of_one(scans):
    (case,) = find_cases(scans / "patient11" / "ct.nii.gz")
    assert case.id == "ct"


def test_no_folder_no_scan(tmp_path):
    with pytest.raises(ReadError, match="does not exist"):
        find_cases(tmp_path / "nowhere")
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(ReadError, match="holds no scan"):
        find_cases(tmp_path)
