"""The benchmarks run; what they measure is nobody's test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="benchmarks are not part of an installed package"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)


def test_without_a_name_all_are_listed():
    done = run()
    assert done.returncode == 0
    assert "session" in done.stdout
    assert "512 x 512 x 300" in done.stdout


def test_an_unknown_name_is_refused():
    done = run("nonsense")
    assert done.returncode == 2
    assert "no benchmark 'nonsense'" in done.stderr


def test_the_session_benchmark_prints_every_figure():
    done = run("session", "--shape", "24", "64", "64", "--repeat", "1")
    assert done.returncode == 0, done.stderr
    for task in ("read .nii.gz", "click to labels", "undo", "redo", "export", "peak memory"):
        assert task in done.stdout


def test_its_scan_has_the_objects_its_prompts_mark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import session

    scan = session.make_scan((60, 100, 110))
    for number, value in ((0, 110), (1, 170)):
        centre, _, _ = session._objects(scan.geometry)[number]
        assert abs(float(scan.array[tuple(np.rint(centre).astype(int))]) - value) < 20
        ends = np.rint(scan.geometry.to_index(session.extreme_points(scan.geometry, number)))
        inside = scan.array[tuple(ends.astype(int).T)]
        assert (np.abs(inside - value) < 20).all()
