"""Reviewing: the order, words that stay, walls that hold, masks corrected, cases put to use."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from small_torsos import torso

from napari_openmedlab.cohort.as_session import as_session
from napari_openmedlab.cohort.library import Library
from napari_openmedlab.cohort.review import Corrected, Reviewer
from napari_openmedlab.cohort.run import run_cohort
from napari_openmedlab.cohort.training_pairs import add_pair
from napari_openmedlab.errors import ReadError, SessionError
from napari_openmedlab.evaluation.metrics import dice
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.io.api import read, read_labels
from napari_openmedlab.session.workbench import run_once
from napari_openmedlab.training.pairs import pair_folders


@pytest.fixture
def reviewer(plan):
    run_cohort(plan)
    return Reviewer(plan.out)


def session_of(reviewer, case):
    """The session a panel makes of a case."""
    volume, labels, _ = reviewer.open(case)
    record = reviewer.results.record(case)
    return volume, as_session(volume, labels, record, reviewer.job.settings)


def test_the_least_certain_case_comes_first_and_words_take_cases_off_the_list(reviewer):
    queue = reviewer.queue()
    certainty = [reviewer.row(case).certainty for case in queue]
    assert len(queue) == 3
    assert certainty == sorted(certainty)
    reviewer.say(queue[0], "accepted")
    reviewer.say(queue[1], "skipped")
    assert reviewer.queue() == [queue[2], queue[1]]
    assert reviewer.following(queue[2]) == queue[1]
    reviewer.say(queue[2], "rejected")
    again = Reviewer(reviewer.results.folder)
    assert again.queue() == [queue[1]]
    states = {row.case.id: row.status for row in again.rows()}
    assert states == {
        queue[0]: "accepted", queue[1]: "skipped", queue[2]: "rejected", "broken": "failed",
    }  # fmt: skip
    assert "damaged" in again.row("broken").reason or "cut short" in again.row("broken").reason


def test_a_case_opens_with_its_masks_by_name(reviewer):
    volume, labels, objects = reviewer.open("patient11__ct")
    names = {info.name: value for value, info in objects.items()}
    assert dice(labels == names["liver"], torso(11)[1] == 1) > 0.85
    assert volume.geometry.shape == labels.shape
    with pytest.raises(ReadError):
        reviewer.open("broken")
    with pytest.raises(SessionError, match="no case 'x'"):
        reviewer.open("x")


def test_one_file_per_structure_opens_alike(plan):
    each = replace(plan, settings=replace(plan.settings, one_file_per_structure=True))
    run_cohort(each)
    _, labels, objects = Reviewer(plan.out).open("patient11__ct")
    names = {info.name: value for value, info in objects.items()}
    assert dice(labels == names["kidney"], torso(11)[1] == 2) > 0.85


def test_a_scan_replaced_by_another_is_not_opened(reviewer, plan):
    path = plan.folder / "patient11" / "ct.nii.gz"
    nibabel.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4)).to_filename(path)
    with pytest.raises(ReadError, match="no longer the scan"):
        reviewer.open("patient11__ct")


def test_a_moved_wall_is_kept_at_once_and_held(reviewer, plan):
    before = reviewer.results.record("patient11__ct").structure("liver").box
    row = reviewer.set_box("patient11__ct", "liver", {"superior": 3})
    row = reviewer.set_box("patient11__ct", "liver", {"left": 25})
    assert row.box == Box((3, *before.start[1:]), (*before.stop[:2], 25))
    again = Reviewer(plan.out)
    assert again.results.review("patient11__ct").walls == {"liver": {"superior": 3, "left": 25}}
    assert again.results.record("patient11__ct").structure("liver").box == row.box
    assert run_cohort(plan).done == 1  # segmented anew in the box set by hand
    held = again.results.record("patient11__ct").structure("liver").box
    assert (held.start[0], held.stop[2]) == (3, 25)
    with pytest.raises(SessionError, match="no structure 'spleen'"):
        reviewer.set_box("patient11__ct", "spleen", {"left": 2})


def test_a_click_corrects_a_mask_that_a_run_has_made(reviewer):
    volume, session = session_of(reviewer, "patient11__ct")
    assert not session.can_undo
    row = reviewer.results.record("patient11__ct").structure("kidney")
    kidney = session.get(row.value)
    assert (kidney.name, kidney.engine) == ("kidney", "built-in")
    assert kidney.prompts == kidney.answered != PromptSet()
    before = session.labels.copy()
    centre = np.rint(np.argwhere(before == row.value).mean(axis=0))
    outside = kidney.prompts.with_click(volume.geometry.to_world(centre), positive=False)
    session.set_prompts(outside, row.value)
    request = session.request(row.value)
    session.apply(run_once("built-in", volume, request), request, row.value)
    assert session.labels[tuple(centre.astype(int))] != row.value
    liver = reviewer.results.record("patient11__ct").structure("liver").value
    assert np.array_equal(session.labels == liver, before == liver)
    session.undo()
    assert np.array_equal(session.labels, before)
    assert not session.can_undo


def test_a_structure_without_a_mask_is_an_object_too(plan):
    run_cohort(replace(plan, settings=replace(plan.settings, engine="")))
    _, session = session_of(Reviewer(plan.out), "patient11__ct")
    assert [(o.id, o.name, o.voxels) for o in session.objects] == [
        (1, "kidney", 0), (2, "liver", 0),
    ]  # fmt: skip
    assert all(o.prompts.boxes and o.answered is None for o in session.objects)


def test_corrected_masks_take_the_place_of_the_old_ones(reviewer, plan):
    volume, session = session_of(reviewer, "patient11__ct")
    record = reviewer.results.record("patient11__ct")
    value = record.structure("kidney").value
    truth = torso(11)[1] == 2
    labels = session.labels.copy()
    labels[labels == value] = 0
    labels[truth] = value
    objects = tuple(
        replace(o, voxels=int(np.count_nonzero(labels == o.id))) for o in session.objects
    )
    reviewer.keep_masks("patient11__ct", volume, Corrected(labels, objects, ("kidney",)))
    _, again, _ = reviewer.open("patient11__ct")
    assert np.array_equal(again == value, truth)
    row = reviewer.results.record("patient11__ct").structure("kidney")
    assert row.voxels == np.count_nonzero(truth)
    assert run_cohort(plan).kept == 1  # corrected by hand: no run touches it


def test_export_writes_the_table_with_the_reviewers_words(reviewer):
    reviewer.say("patient11__ct", "accepted")
    reviewer.set_box("patient12__ct", "liver", {"left": 25})
    table, boxes = reviewer.export()
    with table.open() as file:
        words = {row["case"]: row["review"] for row in csv.DictReader(file)}
    assert words["patient11__ct"] == "accepted"
    content = json.loads(boxes.read_text())
    case = next(c for c in content["cases"] if c["case"] == "patient12__ct")
    assert next(s for s in case["structures"] if s["name"] == "liver")["set_by_hand"] == ["left"]


def test_an_accepted_case_becomes_a_template(reviewer, tmp_path):
    library = Library.create(tmp_path / "own")
    added = reviewer.to_template("patient11__ct", library)
    assert {s.name for s in added.entry.structures} == {"liver", "kidney"}
    truth = np.argwhere(torso(11)[1] == 1)
    box = added.entry.structure("liver").landmarks.points
    grid = reviewer.open("patient11__ct")[0].geometry
    index = grid.to_index(box)
    assert np.abs(index.min(axis=0) - truth.min(axis=0)).max() <= 2


def test_accepted_cases_become_training_data_that_finetune_takes(reviewer, tmp_path):
    folder = tmp_path / "training"
    for case in ("patient11__ct", "dicom__series"):
        volume, labels, objects = reviewer.open(case)
        add_pair(folder, case, volume, labels, objects)
    cases, left_out = pair_folders(folder / "images", folder / "labels")
    assert [c.name for c in cases] == ["dicom__series", "patient11__ct"]
    assert left_out == []
    volume, labels, names = cases[1].read()
    original, wanted, objects = reviewer.open("patient11__ct")
    assert np.array_equal(volume.array, original.array)
    assert volume.geometry.same_grid(original.geometry)
    for value, info in objects.items():
        mine = next(v for v, name in names.items() if name == info.name)
        assert np.array_equal(labels == mine, wanted == value)
    header = nibabel.load(folder / "images" / "dicom__series.nii.gz").header
    assert "Nobody" not in str(header)


def test_training_pairs_keep_one_value_for_a_name(reviewer, tmp_path):
    volume, labels, objects = reviewer.open("patient11__ct")
    kidney = next(v for v, i in objects.items() if i.name == "kidney")
    liver = next(v for v, i in objects.items() if i.name == "liver")
    only = np.where(labels == liver, liver, 0)
    add_pair(tmp_path, "a", volume, only, objects)
    swapped = {kidney: objects[liver], liver: objects[kidney]}
    add_pair(tmp_path, "b", volume, labels, swapped)
    assert json.loads((tmp_path / "classes.json").read_text()) == {"1": "liver", "2": "kidney"}
    second, _ = read_labels(
        tmp_path / "labels" / "b.nii.gz", like=read(tmp_path / "images/b.nii.gz")
    )
    assert np.array_equal(np.asarray(second.array) == 1, labels == kidney)
    with pytest.raises(SessionError, match="no mask to learn from"):
        add_pair(tmp_path, "c", volume, np.zeros_like(labels), objects)
    (tmp_path / "classes.json").write_text("[]")
    with pytest.raises(ReadError, match="no list of classes"):
        add_pair(tmp_path, "d", volume, labels, objects)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ReadError, match="holds no results of a cohort"):
        Reviewer(tmp_path)
