"""The benchmark of axons runs and prints its figures; what they are is nobody's test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="benchmarks are not part of an installed package"
)


def test_a_made_up_brain_is_streamed_and_kept(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "axons", "filter", "--folder", str(tmp_path)]
    done = subprocess.run(
        [*command, "--shape", "64", "80", "96"],
        capture_output=True, text=True, cwd=ROOT, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "64 x 80 x 96" in done.stdout
    assert "% axon" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["brain_64x80x96.zarr"]
