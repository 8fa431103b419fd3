"""What `openmedlab evaluate` shows."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from napari_openmedlab.evaluation.metrics import Agreement
from napari_openmedlab.evaluation.report import Report
from napari_openmedlab.geometry.volume import Geometry

GRID = Geometry.from_spacing((4, 5, 6), (5.0, 1.0, 1.0))
ROWS = [
    (1, Agreement(0.9, 0.8, 3.0, 1000, 1100)),
    (4, Agreement(0.0, 0.0, float("inf"), 0, 200)),
]
REPORT = Report(ROWS, {1: "liver"}, GRID, 2.0)


def test_json_is_strict_and_has_no_infinity():
    text = json.dumps(REPORT.as_json(), allow_nan=False)
    back = json.loads(text)
    assert back["labels"][1]["hd95"] is None
    assert back["mean_hd95"] is None
    assert back["mean_dice"] == pytest.approx(0.45)
    assert back["labels"][0]["volume"] == pytest.approx(5.0)
    assert back["labels"][0]["volume_unit"] == "ml"
    assert back["labels"][0]["name"] == "liver"


def test_the_table_names_labels_units_and_the_mean():
    out = io.StringIO()
    Console(file=out, width=140).print(REPORT.as_table())
    text = out.getvalue()
    for wanted in ("liver", "HD95 mm", "volume ml", "0.900", "none", "mean", "0.450", "5.50"):
        assert wanted in text


def test_a_report_without_labels_has_no_mean():
    empty = Report([], {}, GRID, 2.0)
    assert empty.as_json()["mean_dice"] is None
    assert empty.as_json()["labels"] == []
