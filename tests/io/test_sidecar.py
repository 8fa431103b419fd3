from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.io import sidecar
from napari_openmedlab.io.sidecar import LabelInfo, ObjectRow
from napari_openmedlab.io.suffixes import safe_name, stem_of, suffix_of

GRID = Geometry.from_spacing((2, 3, 4), (1.0, 1.0, 1.0), unit="mm")
ROWS = (ObjectRow(3, LabelInfo("spleen", (0.25, 0.5, 1.0)), 9),)


def save(mask: Path) -> Path:
    path = sidecar.sidecar_path(mask)
    path.write_text(sidecar.text(mask, GRID, ROWS, {"engine": "x"}), encoding="utf-8")
    return path


def test_names_are_found_beside_the_mask(tmp_path):
    assert save(tmp_path / "m.nii.gz").name == "m.json"
    assert sidecar.read_objects(tmp_path / "m.nii.gz") == {3: ROWS[0].info}


def test_somebody_elses_json_is_neither_overwritten_nor_taken_for_ours(tmp_path):
    (tmp_path / "m.json").write_text('{"EchoTime": 0.03}', encoding="utf-8")
    assert sidecar.read_objects(tmp_path / "m.nii.gz") == {}
    assert save(tmp_path / "m.nii.gz").name == "m.labels.json"
    assert sidecar.read_objects(tmp_path / "m.nii.gz") == {3: ROWS[0].info}


def test_our_own_sidecar_is_replaced(tmp_path):
    save(tmp_path / "m.nii.gz")
    assert sidecar.sidecar_path(tmp_path / "m.nii.gz").name == "m.json"


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "\udcff", '{"format": 3}'])
def test_a_damaged_sidecar_costs_the_names_and_not_the_mask(tmp_path, content):
    (tmp_path / "m.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    assert sidecar.read_objects(tmp_path / "m.nii") == {}


def test_rows_that_make_no_sense_are_passed_over(tmp_path):
    path = save(tmp_path / "m.nii")
    content = json.loads(path.read_text(encoding="utf-8"))
    content["objects"] += [{"value": "x"}, 7, {"value": 4, "name": "a", "colour": [1, 2]}]
    content["objects"] += [{"value": 5, "name": "b", "colour": [9, -1, 0.5]}]
    path.write_text(json.dumps(content), encoding="utf-8")
    found = sidecar.read_objects(tmp_path / "m.nii")
    assert found == {3: ROWS[0].info, 5: LabelInfo("b", (1.0, 0.0, 0.5))}


@pytest.mark.parametrize(
    ("name", "stem", "suffix"),
    [
        ("a.nii.gz", "a", ".nii.gz"),
        ("a.b.NII.GZ", "a.b", ".nii.gz"),
        ("scan.v2.nrrd", "scan.v2", ".nrrd"),
        ("x.ome.tif", "x", ".ome.tif"),
        ("plain", "plain", ""),
    ],
)
def test_double_suffixes_are_one(name, stem, suffix):
    assert (stem_of(Path(name)), suffix_of(Path(name))) == (stem, suffix)


@given(st.text(max_size=200))
def test_any_object_name_becomes_a_legal_file_name(name):
    safe = safe_name(name)
    assert safe
    assert not set(safe) & set('<>:"/\\|?*\0')
    assert not any(ord(c) < 32 for c in safe)
    assert safe[-1] not in ". "
    assert len(safe) <= 61


@pytest.mark.parametrize(
    ("name", "safe"),
    [("CON", "CON_"), ("lpt1.x", "lpt1.x_"), ("left kidney", "left_kidney"), ("肝臓", "肝臓")],
)
def test_names_are_kept_readable(name, safe):
    assert safe_name(name) == safe
