"""The benchmark of organs runs, and what it compares with gives the engine's labels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="STU-Net needs the extra 'models'")

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="benchmarks are not part of an installed package"
)
SMALL = ["--shape", "20", "40", "36", "--voxel", "3", "2", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "organs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)


def test_the_plain_order_gives_the_engines_labels(monkeypatch):
    """Else its time would be that of another task."""
    from benchmarks import _organs_run as benchmark
    from napari_openmedlab.geometry.boxes import Box
    from napari_openmedlab.models.contract import Monitor
    from napari_openmedlab.models.engines.stu_net import engine as engines
    from napari_openmedlab.models.engines.stu_net import plan as plans
    from napari_openmedlab.models.engines.stu_net.preparing import prepare
    from napari_openmedlab.models.organs import TOTAL_SEGMENTATOR

    patch = (16, 32, 32)
    monkeypatch.setattr(benchmark, "PATCH", patch)
    volume = benchmark.made_up_ct([30, 70, 60], [3.0, 2.0, 2.0])
    network = benchmark.network_for({"way": "ours-smooth"})
    image = volume.array[::-1, ::-1, ::-1].astype(np.float32)
    grid = np.round(np.array(volume.geometry.spacing) / 3.0 * image.shape).astype(int)
    data = benchmark._resized(image, grid, 3)
    data = (data - data.mean()) / (data.std() + 1e-8)
    with torch.inference_mode():
        means, count = benchmark._windows(data, network, 0.5)
    large = np.stack([benchmark._resized(each, image.shape, 1) for each in means])
    wanted = large.argmax(0)[::-1, ::-1, ::-1]
    plan = plans.Plan(TOTAL_SEGMENTATOR, patch=patch)
    whole = Box.whole(volume.geometry.shape)
    working = prepare(volume, whole, plan, spacing=3.0, orientation="RAS", monitor=Monitor())
    options = {"device": "cpu", "step": 0.5, "mirror": False, "skip_air": False, "export": "exact"}
    timed = benchmark._Timed(network, "cpu")
    with torch.inference_mode():
        found, report = engines._labels(working, plan, timed, options, Monitor())
    assert report.windows == count > 1
    assert len(np.unique(wanted)) > 5
    assert np.mean(working.placed(found) != wanted) < 1e-3  # level classes, rounded otherwise


def test_the_table_has_a_row_for_each_way_and_a_failure_shows():
    from benchmarks.organs import table

    fact = {"way": "ours", "shape": [3, 4, 5], "windows": "2 of 2", "prepare": 1.0, "run": 2.0,
            "back": 3.0, "peak": 2_000_000_000}  # fmt: skip
    head, _, row, bad = table([fact, {"way": "plain", "failed": "failed: MemoryError"}]).split("\n")
    assert head.count("|") == row.count("|") == bad.count("|")
    assert "| 6.0 s | 2.00 GB |" in row
    assert "MemoryError" in bad


def test_wrong_usage_is_refused():
    done = run("magic")
    assert done.returncode == 2
    assert "no way magic" in done.stderr


@pytest.mark.slow
def test_a_way_is_measured():
    done = run("ours-smooth", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "| ours-smooth | 20 x 40 x 36 | 1 of 1 |" in done.stdout
