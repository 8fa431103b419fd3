"""`openmedlab organs`: a CT in, named labels and a table out; bad input is refused."""

from __future__ import annotations

import csv
import json

import nibabel
import numpy as np
import pytest
from organ_models import Stub, answer_with, register
from stand_in_models import StandIns

NAMES = ["liver", "spleen", "kidney_left", "kidney_right"]


@pytest.fixture(scope="module")
def own_store(tmp_path_factory):
    """A store of this file's own: without a name the newest model of the store is taken."""
    store = StandIns(tmp_path_factory.mktemp("organ-models"))
    store.add("stu-net-s", out_channels=5)
    return store.folder


@pytest.fixture
def model(monkeypatch, own_store):
    """A model of four structures that goes by brightness."""
    register(monkeypatch)
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(own_store))
    answer_with(monkeypatch, Stub([-0.5, 0.5, 1.5, 2.5, 3.5]))
    return "stu-net-s-out_channels5"


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(NAMES))
    return path


def test_labels_table_and_sidecar_are_written(case, openmedlab, model, names):
    out, table = case.folder / "organs.nii.gz", case.folder / "organs.csv"
    done = openmedlab(
        "organs", case.image, "-o", out, "--csv", table, "--names", names, "--device", "cpu",
        "--checkpoint", model,
    )  # fmt: skip
    assert done.code == 0, done.err
    labels = nibabel.load(out)
    assert np.array_equal(labels.affine, nibabel.load(case.image).affine)
    found = np.asarray(labels.dataobj)
    rows = {row["name"]: row for row in csv.DictReader(table.open())}
    assert list(rows) == NAMES
    for value, name in enumerate(NAMES, start=1):
        assert int(rows[name]["voxels"]) == (found == value).sum()
    sidecar = json.loads((case.folder / "organs.json").read_text())
    assert sidecar["provenance"]["engine"] == "stu-net"
    assert json.loads(sidecar["provenance"]["options"]["names"]) == NAMES
    assert {row["name"] for row in sidecar["objects"]} <= set(NAMES)
    assert "spleen" in done.out
    assert f"Written: {out}" in done.out
    assert done.err == ""


def test_a_region_and_some_organs(case, openmedlab, model, names):
    out = case.folder / "organs.nii.gz"
    done = openmedlab(
        "organs", case.image, "-o", out, "--names", names, "--organs", "liver,spleen",
        "--region", "2:9,5:30,4:38", "--device", "cpu", "--checkpoint", model, "--spacing", "3",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = np.asarray(nibabel.load(out).dataobj)
    assert set(np.unique(found)) <= {0, 1, 2}
    assert "preview" in done.out
    # Display order runs from head to feet; the file's k from feet to head.
    assert not found[:, :, :10].any()
    assert not found[:, :, 18:].any()


def test_the_structures_can_be_listed(openmedlab):
    done = openmedlab("organs", "--list")
    assert done.code == 0
    assert "vertebrae_L1" in done.out
    assert "lumbar" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--organs", "livr"), "did you mean liver"),
        (("--step", "7"), "between"),
        (("--region", "1:2"), "z0:z1"),
        (("--region", "0:99,0:5,0:5"), "does not lie in"),
        (("--orientation", "XYZ"), "one of RAS"),
        (("--checkpoint", "none-such"), "no model 'none-such'"),
    ],
)
def test_bad_choices_are_refused_with_a_sentence(case, openmedlab, model, names, arguments, words):
    out = case.folder / "organs.nii.gz"
    done = openmedlab(
        "organs", case.image, "-o", out, "--names", names, "--device", "cpu", *arguments
    )
    assert done.code in (1, 2)
    assert words in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert not out.exists()


def test_a_missing_folder_is_refused_before_computing(case, openmedlab, model, names):
    for arguments in (
        ("-o", case.folder / "no" / "m.nii.gz"),
        ("-o", case.folder / "m.nii.gz", "--csv", case.folder / "no" / "t.csv"),
    ):
        done = openmedlab("organs", case.image, "--names", names, *arguments)
        assert done.code == 2
        assert "does not exist" in " ".join(done.err.split())


def test_names_that_are_no_json_are_refused(case, openmedlab, model):
    wrong = case.folder / "names.txt"
    wrong.write_text("liver\nspleen")
    done = openmedlab(
        "organs", case.image, "-o", case.folder / "m.nii.gz", "--names", wrong, "--device", "cpu"
    )
    assert done.code == 1
    assert "can't be used" in done.err
