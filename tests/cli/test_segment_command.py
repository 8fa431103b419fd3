"""`openmedlab segment`: prompts in, masks on the scan's own grid out; bad input is refused."""

from __future__ import annotations

import json
import os

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from napari_openmedlab.cli import segment as command
from napari_openmedlab.errors import EngineError
from napari_openmedlab.session import workbench


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_the_masks_lie_where_nibabel_and_simpleitk_look_for_them(segmented):
    case, done = segmented
    reference = np.asarray(nibabel.load(case.reference).dataobj)
    mask = nibabel.load(case.folder / "mask.nii.gz")
    assert np.array_equal(mask.affine, nibabel.load(case.image).affine)
    assert mask.get_data_dtype() == np.uint8
    found = np.asarray(mask.dataobj)
    assert dice(found == 1, reference == 1) > 0.85
    assert dice(found == 2, reference == 2) > 0.85
    image, again = (sitk.ReadImage(str(case.folder / n)) for n in ("scan.nii.gz", "mask.nii.gz"))
    assert again.GetOrigin() == image.GetOrigin()
    assert again.GetDirection() == image.GetDirection()
    stats = sitk.LabelShapeStatisticsImageFilter()
    stats.Execute(again)
    # LPS x: the liver on the patient's right is negative of the spleen on the left.
    assert stats.GetCentroid(1)[0] < stats.GetCentroid(2)[0]
    assert "liver" in done.out
    assert f"Written: {case.folder / 'mask.nii.gz'}" in done.out


def test_the_sidecar_names_the_objects_and_how_they_were_made(segmented):
    case, _ = segmented
    sidecar = json.loads((case.folder / "mask.json").read_text())
    assert [row["name"] for row in sidecar["objects"]] == ["liver", "spleen"]
    made = sidecar["provenance"]["objects"]
    assert made[0]["engine"] == "built-in"
    assert len(made[0]["prompts"]["extreme_points"]) == 6


def test_volumes_are_printed_in_millilitres(segmented):
    case, done = segmented
    found = np.asarray(nibabel.load(case.folder / "mask.nii.gz").dataobj)
    assert f"{(found == 1).sum() * 1.5 * 1.5 * 3 / 1000:.2f}" in done.out
    assert "volume ml" in done.out


def test_nothing_is_said_on_stderr_where_nobody_watches(segmented):
    assert segmented[1].err == ""


def test_one_file_per_object(case, openmedlab):
    done = openmedlab(
        "segment", case.image, "-p", case.prompts, "-o", case.folder / "m.nii.gz",
        "--one-file-per-object",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert not (case.folder / "m.nii.gz").exists()
    for name in ("liver", "spleen"):
        values = np.unique(np.asarray(nibabel.load(case.folder / f"m_{name}.nii.gz").dataobj))
        assert values.tolist() == [0, 1]


def test_later_objects_take_voxels_only_when_told_to(case, openmedlab):
    text = json.loads(case.prompts.read_text())
    text["objects"] = [text["objects"][0], {**text["objects"][0], "name": "again"}]
    case.prompts.write_text(json.dumps(text))
    counts = {}
    for rule in ("keep", "overwrite"):
        out = case.folder / f"{rule}.nii.gz"
        done = openmedlab("segment", case.image, "-p", case.prompts, "-o", out, "--overlap", rule)
        assert done.code == 0, done.err
        counts[rule] = np.bincount(np.asarray(nibabel.load(out).dataobj).ravel(), minlength=3)
    assert counts["keep"][1] > counts["keep"][2]
    assert counts["overwrite"][2] > counts["overwrite"][1]


# -- bad input: a sentence, exit code 2, no half-written file ---------------------------------


def refused(done, folder, code, *words):
    assert done.code == code
    said = " ".join(done.err.split())
    for word in words:
        assert word in said
    assert "Traceback" not in done.err
    assert not list(folder.glob("mask*"))


def segment_with(openmedlab, case, *extra, image=None, prompts=None, out="mask.nii.gz"):
    return openmedlab(
        "segment", image or case.image, "-p", prompts or case.prompts, "-o", case.folder / out,
        *extra,
    )  # fmt: skip


def test_a_missing_scan_is_named(case, openmedlab):
    done = segment_with(openmedlab, case, image=case.folder / "none.nii.gz")
    refused(done, case.folder, 2, "none.nii.gz", "does not exist")


def test_a_file_that_is_no_scan_is_refused(case, openmedlab):
    text = case.folder / "notes.txt"
    text.write_text("remember the milk")
    refused(segment_with(openmedlab, case, image=text), case.folder, 2, "notes.txt")


def test_a_missing_prompts_file_is_named(case, openmedlab):
    done = segment_with(openmedlab, case, prompts=case.folder / "p.json")
    refused(done, case.folder, 2, "p.json")


def test_prompts_outside_the_scan_are_refused(case, openmedlab):
    text = json.loads(case.prompts.read_text())
    text["objects"][1]["extreme_points"][0] = [500.0, 0.0, 0.0]
    case.prompts.write_text(json.dumps(text))
    refused(segment_with(openmedlab, case), case.folder, 2, "spleen", "outside the volume")


def test_an_unknown_engine_is_refused_with_those_there_are(case, openmedlab):
    done = segment_with(openmedlab, case, "--engine", "magic")
    refused(done, case.folder, 2, "no engine 'magic'", "built-in")


def test_an_unknown_option_is_refused(case, openmedlab):
    refused(segment_with(openmedlab, case, "--option", "magic=1"), case.folder, 2, "magic")


def test_an_option_without_a_value_is_refused(case, openmedlab):
    refused(segment_with(openmedlab, case, "--option", "magic"), case.folder, 2, "NAME=VALUE")


def test_a_missing_folder_is_refused_before_computing(case, openmedlab, monkeypatch):
    monkeypatch.setattr(command, "run_objects", lambda *_: pytest.fail("computed in vain"))
    done = segment_with(openmedlab, case, out="no/where/mask.nii.gz")
    refused(done, case.folder, 2, "does not exist")


def test_a_read_only_folder_is_refused_before_computing(case, openmedlab, monkeypatch):
    monkeypatch.setattr(command, "run_objects", lambda *_: pytest.fail("computed in vain"))
    # Tests may run as root, whom no folder refuses; so the system's answer is set here.
    monkeypatch.setattr(os, "access", lambda path, _mode: str(path) != str(case.folder))
    refused(segment_with(openmedlab, case), case.folder, 2, "can't be written to")


def test_an_unknown_format_to_write_is_refused(case, openmedlab):
    done = segment_with(openmedlab, case, out="mask.docx")
    assert done.code != 0
    assert ".docx" in done.err
    assert not (case.folder / "mask.docx").exists()


def test_a_failing_engine_exits_with_1_and_a_sentence(case, openmedlab, monkeypatch):
    def fail(*_args, **_kwargs):
        raise EngineError("the engine broke")

    monkeypatch.setattr(workbench, "run_once", fail)
    done = segment_with(openmedlab, case)
    refused(done, case.folder, 1, "openmedlab: the engine broke")


def test_ctrl_c_stops_cleanly_with_130(case, openmedlab, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(workbench, "run_once", interrupt)
    refused(segment_with(openmedlab, case), case.folder, 130, "stopped while segmenting liver")


def test_debug_shows_the_traceback(case, openmedlab):
    with pytest.raises(OSError, match=r"none\.nii\.gz"):
        openmedlab("info", case.folder / "none.nii.gz", "--debug")
