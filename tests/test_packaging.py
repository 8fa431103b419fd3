"""The wheel holds what a user needs: manifest, samples, entry points."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "napari_openmedlab", source / "napari_openmedlab", ignore=skip)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(source)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    with zipfile.ZipFile(next((source / "dist").glob("*.whl"))) as opened:
        yield opened


def test_the_wheel_holds_the_manifest_the_type_marker_and_every_sample(wheel):
    names = set(wheel.namelist())
    package = ROOT / "napari_openmedlab"
    wanted = [package / "napari.yaml", package / "py.typed"]
    wanted += [
        p for p in (package / "sample_data").iterdir() if p.suffix in {".gz", ".json", ".tif"}
    ]
    assert len(wanted) > 4
    assert {p.relative_to(ROOT).as_posix() for p in wanted} <= names


def test_the_wheel_announces_the_plugin_and_the_command(wheel):
    path = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(path).decode()
    assert "napari-openmedlab = napari_openmedlab:napari.yaml" in text
    assert "openmedlab = napari_openmedlab.cli.main:run" in text


def test_the_wheel_forces_no_qt_binding(wheel):
    path = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    needs = [
        line.lower()
        for line in wheel.read(path).decode().splitlines()
        if line.startswith("Requires-Dist") and "extra ==" not in line
    ]
    assert needs
    bindings = ("pyqt5", "pyqt6", "pyside", "[all]")
    assert not [line for line in needs if any(name in line for name in bindings)]
    assert not [line for line in needs if " torch" in line or "monai" in line]
