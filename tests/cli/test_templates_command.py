import json

import nibabel
import numpy as np
import pytest

from napari_openmedlab.cli.main import run

POINTS = "cyst=-18,-30,60;-24,-20,60;-18,-16,60;-10,-24,60;-18,-24,50;-18,-24,70"


@pytest.fixture
def scan(tmp_path):
    rng = np.random.default_rng(0)
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    array = rng.integers(-900, 200, (20, 24, 30)).astype(np.int16)
    nibabel.Nifti1Image(array, affine).to_filename(tmp_path / "scan.nii.gz")
    labels = np.zeros(array.shape, np.uint8)
    labels[4:12, 5:15, 8:20] = 1
    nibabel.Nifti1Image(labels, affine).to_filename(tmp_path / "labels.nii.gz")
    return tmp_path


def listed(library, capsys):
    capsys.readouterr()
    assert run(["templates", "list", str(library), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["templates"]


def test_a_library_from_the_command_line(scan, capsys):
    library, other = scan / "library", scan / "other"
    add = ["templates", "add", str(library), str(scan / "scan.nii.gz")]
    assert run([*add, "--labels", str(scan / "labels.nii.gz"), "-s", "1=liver"]) == 0
    assert run([*add, "--points", POINTS, "--title", "first"]) == 0
    found = listed(library, capsys)
    assert [t["title"] for t in found] == ["first"]
    assert found[0]["structures"] == ["liver", "cyst"]
    assert run(["templates", "rename", str(library), "-s", "cyst", "lesion"]) == 0
    assert run(["templates", "remove", str(library), "first", "-s", "liver"]) == 0
    assert run(["templates", "pack", str(library), "-o", str(scan / "shared")]) == 0
    assert run(["templates", "unpack", str(scan / "shared.omltemplates"), str(other)]) == 0
    assert run(["templates", "merge", str(scan / "all"), str(library), str(other)]) == 0
    assert listed(scan / "all", capsys)[0]["structures"] == ["lesion"]
    assert run(["templates", "list", str(library)]) == 0
    assert "lesion" in capsys.readouterr().out
    assert run(["templates", "remove", str(library), "first"]) == 0
    assert listed(library, capsys) == []


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], "say what to mark"),
        (["--points", "x=1,2;3"], "is not NAME=x,y,z"),
        (["--points", "x=1,2,3"], "there are 1: place the others"),
        (["--labels", "LABELS"], "has no sidecar that names its labels"),
        (["--labels", "LABELS", "-s", "liver"], "has no label called 'liver'"),
        (["--labels", "LABELS", "-s", "9=liver"], "holds none of the values 9"),
        (["--points", POINTS, "--keep", "all"], "--keep is one of"),
    ],
)
def test_what_cannot_be_meant_is_refused(scan, more, sentence, capsys):
    more = [str(scan / "labels.nii.gz") if m == "LABELS" else m for m in more]
    assert run(["templates", "add", str(scan / "library"), str(scan / "scan.nii.gz"), *more]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (scan / "library").exists()
