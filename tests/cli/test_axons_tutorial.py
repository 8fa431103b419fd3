"""The commands of docs/tutorial_axons.md run, in order, on the sample volume."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import tifffile

from napari_openmedlab import sample_data

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial_axons.md"


def commands():
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("openmedlab ")]


def test_every_command_of_the_tutorial_runs(openmedlab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(sample_data.image_path("light_sheet_axons"), "stack.tif")
    found = commands()
    assert len(found) == 7
    for words in found:
        done = openmedlab(*words)
        assert done.code == 0, f"{words}: {done.err}"
    rows = np.loadtxt("brain_axons/skeleton.swc")
    assert len(rows) > 50
    assert (rows[:, 2:5].max(axis=0) <= [352, 352, 224]).all()
    assert Path("brain_axons/density.nii.gz").exists()
    assert tifffile.imread("voxels.ome.tif").max() > 0
