"""A cohort from folder to masks and table: stop, go on, redo what changed, list what is bad."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from small_torsos import save, torso

from napari_openmedlab.cohort.library import Library
from napari_openmedlab.cohort.records import Review
from napari_openmedlab.cohort.results import Results
from napari_openmedlab.cohort.run import run_cohort
from napari_openmedlab.cohort.settings import Settings
from napari_openmedlab.errors import (
    Cancelled,
    EngineError,
    ReadError,
    SettingsError,
    WriteError,
)
from napari_openmedlab.evaluation.metrics import dice
from napari_openmedlab.io import atomic
from napari_openmedlab.io.api import read, read_labels
from napari_openmedlab.models.contract import Monitor


def rows_of(out):
    with (out / "cohort.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def masks_by_name(out, case, scan):
    labels, objects = read_labels(out / "cases" / case / "masks.nii.gz", like=scan)
    return {info.name: np.asarray(labels.array) == value for value, info in objects.items()}


def test_every_scan_gets_masks_on_its_own_grid_and_the_broken_one_its_reason(plan):
    told = []
    summary = run_cohort(plan, on_case=lambda case, record: told.append(case.id))

    assert summary.cases == 4
    assert summary.done == 3
    assert list(summary.failed) == ["broken"]
    assert sorted(told) == ["broken", "dicom__series", "patient11__ct", "patient12__ct"]
    for case, path, seed, size in (
        ("patient11__ct", plan.folder / "patient11" / "ct.nii.gz", 11, 1.0),
        ("patient12__ct", plan.folder / "patient12" / "ct.nii.gz", 12, 0.9),
        ("dicom__series", plan.folder / "dicom" / "series", 13, 1.0),
    ):
        scan, truth = read(path), torso(seed, size)[1]
        masks = masks_by_name(plan.out, case, scan)
        assert dice(masks["liver"], truth == 1) > 0.85
        assert dice(masks["kidney"], truth == 2) > 0.85
    rows = rows_of(plan.out)
    assert len(rows) == 7
    bad = next(row for row in rows if row["case"] == "broken")
    assert bad["status"] == "failed"
    assert "damaged" in bad["reason"]
    liver = next(r for r in rows if r["case"] == "patient11__ct" and r["structure"] == "liver")
    truth_ml = np.count_nonzero(torso(11)[1] == 1) * 36 / 1000
    assert float(liver["volume_ml"]) == pytest.approx(truth_ml, rel=0.2)
    assert (liver["engine"], liver["localizer"]) == ("built-in", "proportional")
    assert liver["status"] == "segmented"
    assert liver["file"] == "masks.nii.gz"
    assert 0 < float(liver["confidence"]) <= 1


def test_boxes_travel_in_voxels_and_millimetres(plan):
    run_cohort(plan)
    boxes = json.loads((plan.out / "boxes.json").read_text())
    case = next(c for c in boxes["cases"] if c["case"] == "patient11__ct")
    liver = next(s for s in case["structures"] if s["name"] == "liver")
    scan = read(plan.folder / "patient11" / "ct.nii.gz")
    faces = scan.geometry.to_world(np.array([liver["box"]["start"], liver["box"]["stop"]]) - 0.5)
    assert np.allclose(faces, liver["corners_mm"], atol=1e-3)
    truth = np.argwhere(torso(11)[1] == 1)
    assert np.abs(truth.min(axis=0) - liver["box"]["start"]).max() <= 2
    assert np.abs(truth.max(axis=0) + 1 - liver["box"]["stop"]).max() <= 2
    assert len(liver["extreme_points_mm"]) == 6


def test_finished_cases_are_skipped_and_engines_loaded_once(plan, localizer):
    run_cohort(plan)
    assert localizer.loaded == 1
    again = run_cohort(plan)
    assert (again.done, again.skipped, len(again.failed)) == (0, 3, 1)
    assert localizer.loaded == 1  # the second run did not even load it


def test_a_cancelled_run_goes_on_where_it_stopped(plan):
    monitor, told = Monitor(), []

    def after_the_first(case, record):
        told.append(case.id)
        if record.status == "done":
            monitor.cancel()

    with pytest.raises(Cancelled):
        run_cohort(plan, monitor, after_the_first)
    done = [c for c in told if c != "broken"]
    assert len(done) == 1
    statuses = {row["case"]: row["status"] for row in rows_of(plan.out)}
    assert sum(status == "pending" for status in statuses.values()) == 2
    rest = run_cohort(plan)
    assert (rest.done, rest.skipped) == (2, 1)


def test_a_cancel_acts_inside_a_case_and_leaves_no_half_of_it(plan):
    slow = replace(plan.settings, localizer_options={"steps": 1000, "pause": 0.01})
    monitor = Monitor(lambda p: monitor.cancel() if "finding" in p.text else None, interval=0)
    with pytest.raises(Cancelled):
        run_cohort(replace(plan, settings=slow), monitor)
    assert [p.name for p in (plan.out / "cases").glob("*/case.json")] == ["case.json"]  # broken
    assert not list(plan.out.rglob("masks*"))


def test_another_setting_template_or_scan_means_to_do_it_again(plan, library_folder, tmp_path):
    run_cohort(plan)
    wider = replace(plan, settings=replace(plan.settings, margin_mm=9.0))
    assert run_cohort(wider).done == 3

    copy = tmp_path / "other"
    shutil.copytree(library_folder, copy)
    library = Library.open(copy)
    library.remove(library.entries[0].id)
    fewer = replace(wider, templates=library.templates(), library=copy)
    assert run_cohort(fewer).done == 3

    save(plan.folder / "patient11" / "ct.nii.gz", torso(14)[0])
    changed = run_cohort(fewer)
    assert (changed.done, changed.skipped) == (1, 2)


def test_a_file_copied_anew_without_a_change_is_not_done_again(plan, monkeypatch):
    run_cohort(plan)
    path = plan.folder / "patient11" / "ct.nii.gz"
    os.utime(path, (1_000_000_000, 1_000_000_000))
    again = run_cohort(plan)
    assert (again.done, again.skipped) == (0, 3)


def test_a_lost_mask_is_made_again(plan):
    run_cohort(plan)
    (plan.out / "cases" / "patient11__ct" / "masks.nii.gz").unlink()
    again = run_cohort(plan)
    assert (again.done, again.skipped) == (1, 2)


def test_a_full_disk_stops_with_a_sentence_and_loses_nothing(plan, monkeypatch):
    real, calls = atomic._sync, []

    def full_after_a_while(path):
        calls.append(path)
        masks = [p for p in calls if p.name == "masks.nii.gz"]  # each is synced twice
        if path.name == "masks.nii.gz" and len(masks) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path)

    monkeypatch.setattr(atomic, "_sync", full_after_a_while)
    text = r"disk is full.*finished stays \(1 in this run\): run it again"
    with pytest.raises(WriteError, match=text):
        run_cohort(plan)
    assert len(list(plan.out.rglob("masks.nii.gz"))) == 1
    monkeypatch.setattr(atomic, "_sync", real)
    rest = run_cohort(plan)
    assert (rest.done, rest.skipped) == (2, 1)
    assert not list(plan.out.rglob("*.tmp"))


def test_leftovers_of_a_killed_run_are_removed(plan):
    run_cohort(plan)
    left = plan.out / "cases" / "patient11__ct" / ".openmedlab-x1.tmp"
    left.mkdir()
    (left / "masks.nii.gz").write_bytes(b"half")
    run_cohort(plan)
    assert not left.exists()


def test_accepted_cases_are_left_alone(plan):
    run_cohort(plan)
    results = Results(plan.out)
    results.keep_review("patient11__ct", Review("accepted"))
    before = (plan.out / "cases" / "patient11__ct" / "masks.nii.gz").read_bytes()
    wider = replace(plan, settings=replace(plan.settings, margin_mm=9.0))
    summary = run_cohort(wider)
    assert (summary.done, summary.kept) == (2, 1)
    assert (plan.out / "cases" / "patient11__ct" / "masks.nii.gz").read_bytes() == before
    reviews = {row["case"]: row["review"] for row in rows_of(plan.out)}
    assert reviews["patient11__ct"] == "accepted"


def test_walls_set_by_hand_hold_against_a_new_search(plan):
    run_cohort(plan)
    results = Results(plan.out)
    results.keep_review("patient11__ct", Review("pending", {"liver": {"superior": 2, "left": 30}}))
    summary = run_cohort(plan)
    assert (summary.done, summary.skipped) == (1, 2)
    box = results.record("patient11__ct").structure("liver").box
    assert (box.start[0], box.stop[2]) == (2, 30)
    assert run_cohort(plan).skipped == 3


def test_a_defect_of_the_localizer_is_listed_for_each_case(plan):
    defect = replace(plan.settings, localizer_options={"fail": "defect"})
    summary = run_cohort(replace(plan, settings=defect))
    assert len(summary.failed) == 4
    reason = Results(plan.out).record("patient11__ct").reason
    assert "internal error in engine 'proportional'" in reason
    assert "half a scan" in reason


def test_a_structure_that_fails_stops_neither_its_case_nor_the_others(plan):
    brittle = replace(plan.settings, engine="brittle", engine_options={"largest": 2000})
    assert run_cohort(replace(plan, settings=brittle)).done == 3
    rows = [r for r in rows_of(plan.out) if r["case"] == "patient11__ct"]
    statuses = {r["structure"]: r["status"] for r in rows}
    assert statuses == {"kidney": "segmented", "liver": "failed"}
    reason = next(r["reason"] for r in rows if r["structure"] == "liver")
    assert "not enough memory" in reason
    again = run_cohort(replace(plan, settings=brittle))  # what failed is tried again
    assert (again.done, again.skipped) == (3, 0)


def test_a_scan_that_goes_bad_keeps_the_masks_of_the_earlier_run(plan):
    run_cohort(plan)
    (plan.folder / "patient11" / "ct.nii.gz").write_bytes(b"gone")
    summary = run_cohort(plan)
    assert "patient11__ct" in summary.failed
    assert (plan.out / "cases" / "patient11__ct" / "masks.nii.gz").exists()


def test_boxes_alone(plan):
    settings = replace(plan.settings, engine="")
    assert run_cohort(replace(plan, settings=settings)).done == 3
    assert {r["status"] for r in rows_of(plan.out)} == {"boxed", "failed"}
    assert not list(plan.out.rglob("masks*"))


def test_one_file_per_structure_and_back_leaves_no_stale_file(plan):
    each = replace(plan.settings, one_file_per_structure=True, structures=("liver", "kidney"))
    run_cohort(replace(plan, settings=each))
    case = plan.out / "cases" / "patient11__ct"
    assert sorted(p.name for p in case.glob("*.nii.gz")) == [
        "masks_kidney.nii.gz", "masks_liver.nii.gz",
    ]  # fmt: skip
    files = {row["structure"]: row["file"] for row in rows_of(plan.out) if row["structure"]}
    assert files == {"liver": "masks_liver.nii.gz", "kidney": "masks_kidney.nii.gz"}
    run_cohort(plan)
    assert [p.name for p in case.glob("*.nii.gz")] == ["masks.nii.gz"]


def test_a_structure_outside_the_scan_is_not_found(plan):
    image, _ = torso(15)
    save(plan.folder / "upper.nii.gz", np.where(np.indices(image.shape)[2] < 22, -1000, image))
    run_cohort(plan)
    rows = [r for r in rows_of(plan.out) if r["case"] == "upper"]
    assert {r["structure"]: r["status"] for r in rows}  # the row is there whatever was found
    assert all(r["status"] in ("segmented", "not found", "empty") for r in rows)


def test_the_same_structure_has_the_same_value_in_every_case(plan):
    run_cohort(plan)
    values = {(r["structure"], r["label"]) for r in rows_of(plan.out) if r["structure"]}
    assert values == {("kidney", "1"), ("liver", "2")}


def test_two_runs_in_one_folder_are_refused(plan):
    results = Results(plan.out)
    results.make()
    with results.locked(), pytest.raises(WriteError, match="another run is writing"):
        run_cohort(plan)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"localizer": "built-in"}, EngineError, "is promptable, not localizer"),
        ({"engine": "proportional"}, EngineError, "is localizer, not promptable"),
        ({"engine": "nothing"}, EngineError, "there is no engine 'nothing'"),
        ({"structures": ("spleen",)}, SettingsError, "no template has spleen.*kidney, liver"),
        ({"engine_options": {"tolerance": "a"}}, EngineError, "takes a float"),
        ({"localizer_options": {"colour": 1}}, EngineError, "has no option colour"),
    ],
)
def test_wrong_settings_end_before_any_scan_is_read(plan, change, error, text):
    with pytest.raises(error, match=text):
        run_cohort(replace(plan, settings=replace(plan.settings, **change)))
    assert not (plan.out / "cases").exists()


def test_settings_that_make_no_sense():
    with pytest.raises(SettingsError, match="margin lies between"):
        Settings("proportional", margin_mm=-1)
    with pytest.raises(SettingsError, match="prompts are one of"):
        Settings("proportional", prompts="mask")


def test_templates_without_structures_are_refused(plan):
    with pytest.raises(SettingsError, match="has no marked structure"):
        run_cohort(replace(plan, templates=()))


def test_a_foreign_cohort_json_is_not_overwritten(plan):
    plan.out.mkdir()
    (plan.out / "cohort.json").write_text('{"mine": 1}')
    with pytest.raises(ReadError, match="holds no results of a cohort"):
        run_cohort(plan)
    assert (plan.out / "cohort.json").read_text() == '{"mine": 1}'


def test_results_of_a_newer_version_are_refused(plan):
    run_cohort(plan)
    path = plan.out / "cohort.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2', 1))
    with pytest.raises(ReadError, match="newer version"):
        run_cohort(plan)


def test_a_damaged_record_is_done_again_a_damaged_review_is_not_taken_for_accepted(plan):
    run_cohort(plan)
    (plan.out / "cases" / "patient11__ct" / "case.json").write_text("{")
    (plan.out / "cases" / "patient12__ct" / "review.json").write_text('{"state": "great"}')
    summary = run_cohort(plan)
    assert (summary.done, summary.skipped) == (1, 2)
    with pytest.raises(ReadError, match="damaged"):
        Results(plan.out).review("patient12__ct")
