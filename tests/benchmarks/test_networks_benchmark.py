"""The benchmark of the networks runs, fails loudly, and prints what was measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from napari_openmedlab.models import networks

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="benchmarks are not part of an installed package"
)

FACT = {
    "name": "medlam",
    "parameters": 15_067_878,
    "build_meta": 0.02,
    "build_cpu": 0.3,
    "convert": 0.4,
    "load": 0.1,
    "shape": [1, 1, 64, 64, 64],
    "precision": "float32",
    "first": 4.2,
    "forward": 0.0421,
    "cpu": 0.05,
    "peak": 598 * 2**20,
    "estimate": 458 * 2**20,
}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "networks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)


def test_every_network_has_a_case():
    from benchmarks._network_cases import CASES
    from benchmarks.networks import LARGE

    assert set(CASES) == set(networks.names())
    assert set(LARGE) < set(CASES)


@pytest.mark.parametrize("case", ["shape", "small"])
def test_inputs_are_the_same_every_time_and_not_flat(case):
    from benchmarks._network_cases import CASES, image

    shape = getattr(CASES["axon-seg"], case)
    assert torch.equal(image(shape), image(shape))
    assert image(shape).std() > 0.3


def test_the_table_has_a_column_for_every_figure():
    from benchmarks.networks import table

    head, _, row, broken = table([FACT, {"name": "pct-net", "failed": "out of memory"}]).split("\n")
    assert head.count("|") == row.count("|") == broken.count("|")
    for text in ("15.1 M", "0.02 / 0.30 s", "1 x 1 x 64 x 64 x 64", "42.1 ms", "598 MiB"):
        assert text in row
    assert "out of memory" in broken


def test_agreement_counts_classes_masks_and_numbers():
    from benchmarks._network_cases import agreement

    wanted = torch.tensor([[[2.0, 2.0, -1.0, 1.0]], [[1.0, 3.0, 0.0, 0.0]]]).transpose(0, 1)
    found = wanted.clone()
    found[0, 0, 1] = 3.5
    assert "max diff 1.5" in agreement("values", found, wanted)
    assert agreement("classes", found, wanted).endswith("same class 75.00 %")
    masks, reference = torch.tensor([1.0, 1.0, -1.0]), torch.tensor([1.0, -1.0, -1.0])
    assert agreement("masks", masks, reference).endswith(f"Dice {2 / 3:.4f}")


def test_an_unknown_network_is_refused():
    done = run("stu-net-xxl")
    assert done.returncode == 2
    assert "no network stu-net-xxl" in done.stderr


def test_a_failed_network_is_told_and_counts():
    done = run("axon-seg-plain", "--quick", "--device", "cuda:77")
    assert done.returncode == 1
    assert "no device 'cuda:77'" in done.stdout


@pytest.mark.slow
def test_a_small_network_is_measured_in_two_precisions():
    done = run("axon-seg-plain", "--quick", "--runs", "1", "--precision", "float32", "bfloat16")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| axon-seg-plain")]
    assert len(rows) == 2
    assert "same class" in rows[1]
    assert "1 x 1 x 64 x 64 x 64" in rows[0]
    assert "CPU threads" in done.stdout
