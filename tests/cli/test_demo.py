"""`openmedlab demo`: everything a first user sees, with and without a display."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from napari_openmedlab import sample_data
from napari_openmedlab.cli import demo
from napari_openmedlab.session.store import load


@pytest.fixture(scope="module")
def headless(tmp_path_factory):
    """Run the demo in a process of its own that has no display, and list what it imported."""
    folder = tmp_path_factory.mktemp("demo")
    code = (
        "import sys, json\n"
        "from napari_openmedlab.cli.main import run\n"
        f"code = run(['demo', '-o', {str(folder)!r}])\n"
        "print('\\n' + json.dumps([code, sorted({n.split('.')[0] for n in sys.modules})]))\n"
    )
    hidden = {"DISPLAY", "WAYLAND_DISPLAY"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | {"COLUMNS": "160"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr
    exit_code, modules = json.loads(done.stdout.splitlines()[-1])
    return folder, done, exit_code, set(modules)


def test_it_ends_well_and_loads_no_window_system(headless):
    _, done, code, modules = headless
    assert code == 0, done.stderr
    assert not modules & {"napari", "qtpy", "PyQt6", "PySide6", "matplotlib", "torch"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems always have a display")
def test_without_a_display_it_says_so(headless):
    assert "napari is not opened" in headless[1].stdout


def test_the_mask_agrees_with_the_reference_where_simpleitk_and_nibabel_find_it(headless):
    folder, done, _, _ = headless
    scan = nibabel.load(sample_data.image_path("ct_torso"))
    mask = nibabel.load(folder / "ct_torso_mask.nii.gz")
    assert np.array_equal(mask.affine, scan.affine)
    truth = np.asarray(nibabel.load(sample_data.labels_path("ct_torso")).dataobj) == 1
    found = np.asarray(mask.dataobj) == 1
    score = 2 * (truth & found).sum() / (truth.sum() + found.sum())
    assert score > 0.85
    assert f"{score:.3f}" in done.stdout
    stats = sitk.LabelShapeStatisticsImageFilter()
    stats.Execute(sitk.ReadImage(str(folder / "ct_torso_mask.nii.gz")))
    assert stats.GetCentroid(1)[0] < -30  # LPS: the liver on the patient's right


def test_the_session_opens_and_the_picture_is_one(headless):
    folder = headless[0]
    session = load(folder / "ct_torso.omlsession")
    assert [o.name for o in session.objects][:2] == ["liver", "spleen"]
    picture = Image.open(folder / "ct_torso.png")
    assert picture.width > 1000
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 200


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, False),
        ("linux", {"DISPLAY": ""}, False),
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("darwin", {}, True),
        ("win32", {}, True),
    ],
)
def test_a_display_is_recognised(monkeypatch, platform, variables, expected):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert demo.has_display() is expected


@pytest.mark.parametrize("exit_code", [0, -6])
def test_the_viewer_runs_apart_and_its_failure_is_only_told(
    monkeypatch, tmp_path, capsys, exit_code
):
    started = []

    def start(command, **_options):
        started.append(command)
        return subprocess.CompletedProcess(command, exit_code)

    monkeypatch.setattr(subprocess, "run", start)
    demo._open_viewer(tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz")
    assert started[0][:3] == [sys.executable, "-m", "napari"]
    assert str(tmp_path / "mask.nii.gz") in started[0]
    assert ("could not be opened" in capsys.readouterr().err) is bool(exit_code)


def test_a_folder_that_cant_be_made_is_a_sentence(openmedlab, tmp_path):
    (tmp_path / "file").write_text("")
    done = openmedlab("demo", "-o", tmp_path / "file" / "out", "--no-view")
    assert done.code == 1
    assert "can't be made" in done.err
