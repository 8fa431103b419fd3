"""``openmedlab pretrain``: a folder of scans in, start weights in the store out."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from napari_openmedlab.models.checkpoints.store import ModelStore


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    scans = tmp_path / "scans"
    scans.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        array = rng.normal(size=(36, 34, 20)).astype(np.float32)
        nibabel.Nifti1Image(array, np.eye(4)).to_filename(scans / f"s{number}.nii")
    return scans


SMALL = ("--size", "small", "--patch", "16,32,32", "--mode", "1", "--batch", "1", "--device", "cpu")


def test_a_folder_of_scans_becomes_start_weights(folder, tmp_path, openmedlab):
    out = tmp_path / "run"
    done = openmedlab("pretrain", folder, "-o", out, "--iterations", 1, *SMALL)
    assert done.code == 0, done.err
    assert "2 scans to learn from" in done.out
    assert "openmedlab finetune --init my-start" in done.out
    assert ModelStore().get("my-start").model_card.kind == "pretext"
    again = openmedlab("pretrain", "--resume", out)
    assert again.code == 2
    assert "finished already" in again.err


def test_a_plan_is_told_and_nothing_done(folder, tmp_path, openmedlab):
    (folder / "odd.nii").write_bytes(b"no")
    done = openmedlab("pretrain", folder, "--plan", *SMALL)
    assert done.code == 0, done.err
    assert "80000 iterations" in done.out
    assert "Left out: odd" in done.out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "give a folder of scans"),
        (("nowhere",), "does not exist"),
        (("SCANS",), "give a new folder"),
        (("SCANS", "--patch", "3"), "three whole numbers"),
        (("SCANS", "--network", "unet"), "network is one of"),
        (("SCANS", "--init", "nothing"), "no model 'nothing'"),
    ],
)
def test_wrong_use_is_told(folder, openmedlab, arguments, why):
    given = [folder if a == "SCANS" else a for a in arguments]
    done = openmedlab("pretrain", *given)
    assert done.code == 2
    assert why in " ".join(done.err.replace("│", " ").split())
