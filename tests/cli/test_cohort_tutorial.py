"""The commands of the cohort tutorial run as they stand, and do what the page says."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorial_cohort.md"


def commands():
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.slow
def test_a_cohort_in_ten_minutes(tmp_path, monkeypatch, openmedlab):
    monkeypatch.chdir(tmp_path)
    said = {}
    for line in commands():
        program, *arguments = shlex.split(line)
        assert program == "openmedlab"
        done = openmedlab(*arguments)
        assert done.code == 0, f"{line}\n{done.out}{done.err}"
        said[arguments[0]] = done.out
    assert list(said) == ["demo", "templates", "localize", "cohort", "evaluate"]
    boxes = json.loads(Path("cohort/boxes.json").read_text())
    assert {s["name"] for s in boxes["structures"] if s["found"]} == {
        "liver", "spleen", "kidney right", "kidney left",
    }  # fmt: skip
    assert "3 done now, 1 failed" in said["cohort"]
    with Path("cohort/results/cohort.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(row["status"] == "segmented" for row in rows) == 12
    dice = [float(v) for v in re.findall(r"\b0\.\d{3}\b", said["evaluate"])]
    assert max(dice) > 0.85
