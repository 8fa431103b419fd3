"""openmedlab localize and cohort, as a user calls them."""

from __future__ import annotations

import csv
import json

import numpy as np
import proportional_localizer
import pytest
from small_torsos import save, torso

from napari_openmedlab.cohort.library import Library
from napari_openmedlab.cohort.marks import marks_from_labels
from napari_openmedlab.evaluation.metrics import dice
from napari_openmedlab.io.api import read, read_labels
from napari_openmedlab.models import catalogue


@pytest.fixture
def cohort_files(tmp_path, monkeypatch):
    """Paths of a library with one template, and a folder with two scans and a broken file."""
    monkeypatch.setattr(catalogue, "entry_points", proportional_localizer.points)
    image, labels = torso(1)
    volume = read(save(tmp_path / "marked.nii.gz", image))
    library = Library.create(tmp_path / "templates")
    library.add(volume, marks_from_labels(labels, {1: "liver", 2: "kidney"}, volume.geometry))
    for seed in (2, 3):
        save(tmp_path / "scans" / f"scan{seed}.nii.gz", torso(seed)[0])
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no")
    return tmp_path


def localize(openmedlab, files, *more):
    return openmedlab(
        "localize", files / "scans" / "scan2.nii.gz", "--templates", files / "templates",
        "--engine", "proportional", "-o", files / "boxes.json", *more,
    )  # fmt: skip


def test_boxes_of_a_scan_and_prompts_in_one_file(cohort_files, openmedlab):
    done = localize(openmedlab, cohort_files)
    assert done.code == 0, done.err
    assert "liver" in done.out
    content = json.loads((cohort_files / "boxes.json").read_text())
    liver = next(s for s in content["structures"] if s["name"] == "liver")
    truth = np.argwhere(torso(2)[1] == 1)
    assert np.abs(truth.min(axis=0) - liver["box"]["start"]).max() <= 2
    assert np.abs(truth.max(axis=0) + 1 - liver["box"]["stop"]).max() <= 2
    assert 0 < liver["confidence"] <= 1
    assert content["provenance"]["engine"] == "proportional"

    scan = cohort_files / "scans" / "scan2.nii.gz"
    mask = cohort_files / "mask.nii.gz"
    done = openmedlab("segment", scan, "--prompts", cohort_files / "boxes.json", "-o", mask)
    assert done.code == 0, done.err
    labels, objects = read_labels(mask, like=read(scan))
    value = next(v for v, info in objects.items() if info.name == "liver")
    assert dice(np.asarray(labels.array) == value, torso(2)[1] == 1) > 0.8


def test_one_structure_only_and_sub_patches(cohort_files, openmedlab):
    done = localize(openmedlab, cohort_files, "--structures", "liver", "--sub-patches", 2)
    assert done.code == 0, done.err
    content = json.loads((cohort_files / "boxes.json").read_text())
    (liver,) = content["structures"]
    assert liver["name"] == "liver"
    assert len(liver["parts"]) >= 2
    starts = [part["start"][0] for part in liver["parts"]]
    assert starts == sorted(starts, reverse=True)  # from inferior up: axis 0 grows downwards


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--engine", "built-in"), "finds no structures; these do:"),
        (("--engine", "nothing"), "there is no engine 'nothing'"),
        (("--structures", "spleen"), "has spleen"),
        (("-o", "boxes.txt"), "ends in .json"),
        (("--option", "steps=x"), "takes a int"),
    ],
)
def test_localize_says_what_is_wrong(cohort_files, openmedlab, arguments, text):
    done = localize(openmedlab, cohort_files, *arguments)
    assert done.code == 2
    assert text in " ".join((done.out + done.err).replace("│", " ").split())
    assert not (cohort_files / "boxes.json").exists()


def cohort(openmedlab, files, *more):
    return openmedlab(
        "cohort", files / "scans", "--templates", files / "templates", "--localizer",
        "proportional", "-o", files / "out", *more,
    )  # fmt: skip


def test_a_cohort_and_again(cohort_files, openmedlab):
    done = cohort(openmedlab, cohort_files, "--engine", "built-in")
    assert done.code == 0, done.err
    assert "3 cases (proportional, then built-in): 2 done now, 1 failed." in done.out
    assert (cohort_files / "out" / "cases" / "broken" / "case.json").exists()
    with (cohort_files / "out" / "cohort.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len([r for r in rows if r["status"] == "segmented"]) == 4
    again = cohort(openmedlab, cohort_files, "--engine", "built-in")
    assert "2 finished before, 1 failed." in again.out
    other = cohort(openmedlab, cohort_files, "--engine", "none")
    assert "2 done now, 1 failed." in other.out
    assert not list((cohort_files / "out").rglob("masks*"))


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--engine", "proportional"), 2, "takes no prompts"),
        (("--localizer", "built-in"), 2, "finds no structures"),
        (("--engine", "none", "--option", "a=b"), 2, "there is no engine for --option"),
        (("--margin", "-2"), 2, "margin lies between"),
        (("--templates", "nowhere"), 2, "nowhere"),
    ],
)
def test_cohort_says_what_is_wrong(cohort_files, openmedlab, arguments, code, text):
    done = cohort(openmedlab, cohort_files, *arguments)
    assert done.code == code
    assert text in " ".join((done.out + done.err).replace("│", " ").split())
    assert not (cohort_files / "out" / "cases").exists()


def test_a_damaged_template_is_named_and_the_others_serve(cohort_files, openmedlab):
    library = Library.open(cohort_files / "templates")
    image, labels = torso(4)
    volume = read(save(cohort_files / "second.nii.gz", image))
    added = library.add(volume, marks_from_labels(labels, {1: "liver"}, volume.geometry))
    (cohort_files / "templates" / "templates" / added.entry.id / "template.json").write_text("{")
    done = cohort(openmedlab, cohort_files)
    assert done.code == 0, done.err
    assert "Note:" in done.err
    assert "2 done now" in done.out


def test_a_cohort_of_which_nothing_can_be_finished_fails(cohort_files, openmedlab):
    for seed in (2, 3):
        (cohort_files / "scans" / f"scan{seed}.nii.gz").write_bytes(b"no")
    done = cohort(openmedlab, cohort_files)
    assert done.code == 1
    assert "no case could be finished" in done.err
