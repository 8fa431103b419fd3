"""The benchmark of training runs; what it measures is nobody's test."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="benchmarks are not part of an installed package"
)


@pytest.fixture
def finetune(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import finetune

    return finetune


def test_without_the_scan_it_says_what_it_wants(finetune, tmp_path, capsys):
    assert finetune.main(["--data", str(tmp_path)]) == 2
    assert "OPENMEDLAB_DATA" in capsys.readouterr().out


@pytest.mark.data
def test_both_structures_are_learnt_from_and_measured(finetune, real_data):
    found = finetune.slabs(real_data / "ct_torso_3mm", ("liver", "spleen"))
    assert [checked.case.name for checked in found.cases] == list(finetune.SLABS)
    assert found.classes == {1: "spleen", 5: "liver"}
    assert all(min(checked.voxels.values()) > 50 for checked in found.cases)
