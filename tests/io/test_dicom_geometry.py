"""Properties of the slice layout: every slice stays where its file says it lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.frames import display_reorientation
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.io.dicom_files import Slice
from napari_openmedlab.io.dicom_geometry import even_runs, lay_out

ANGLE = st.floats(-180, 180)


def plane(position, orientation=(1.0, 0, 0, 0, 1.0, 0), spacing=(0.8, 0.7), name="a", **other):
    values = {
        "sop_class": "", "sop_uid": name, "study_uid": "", "series_uid": "1",
        "frame_of_reference": "", "modality": "CT", "description": "", "series_number": "1",
        "instance": 0, "rows": 8, "columns": 10, "bits": 12, "signed": False,
        "photometric": "MONOCHROME2", "thickness": 3.0, "slope": 1.0, "intercept": 0.0,
        "padding": None,
    }  # fmt: skip
    return Slice(
        path=Path(name),
        frame=None,
        position=tuple(float(v) for v in position),
        orientation=tuple(orientation),
        spacing=spacing,
        **(values | other),
    )


def rotation(a, b, c):
    a, b, c = np.radians((a, b, c))
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return x @ y @ z


@settings(max_examples=150, deadline=None)
@given(
    angles=st.tuples(ANGLE, ANGLE, ANGLE),
    step=st.floats(0.3, 12),
    tilt=st.floats(-0.5, 0.5),
    origin=st.tuples(*[st.floats(-900, 900)] * 3),
    spacing=st.tuples(st.floats(0.2, 3), st.floats(0.2, 3)),
    order=st.permutations(range(9)),
)
def test_every_slice_stays_at_its_own_position(angles, step, tilt, origin, spacing, order):
    turn = rotation(*angles)
    row, column, normal = turn.T
    vector = step * (normal + tilt * column)
    positions = {k: np.array(origin) + k * vector for k in range(9)}
    layout = lay_out([plane(positions[k], (*row, *column), spacing, str(k)) for k in order])
    source = Geometry((9, 8, 10), layout.affine)
    move = display_reorientation(layout.affine)
    shown = source.reorient(move)
    for k in range(9):
        held = layout.planes[k]
        assert held is not None
        np.testing.assert_allclose(source.to_world((k, 0, 0)), held.position, atol=1e-6)
        assert held.path.name == str(k)
        # PS3.3 equation C.7.6.2.1-1, written out: row 3, column 5 of slice k.
        expected = positions[k] + 5 * spacing[1] * row + 3 * spacing[0] * column
        np.testing.assert_allclose(source.to_world((k, 3, 5)), expected, atol=1e-6)
        back = shown.to_index(expected)
        np.testing.assert_allclose(back, np.rint(back), atol=1e-4)
    assert layout.tilt == pytest.approx(np.degrees(np.arctan(abs(tilt))), abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(gone=st.sets(st.integers(1, 18), max_size=3), step=st.floats(0.3, 12))
def test_missing_slices_are_found_wherever_they_are(gone, step):
    kept = [k for k in range(20) if k not in gone]
    layout = lay_out([plane((0, 0, k * step), name=str(k)) for k in kept])
    assert set(layout.missing) == gone
    assert [p.path.name for p in layout.planes if p] == [str(k) for k in kept]


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.floats(0.5, 10), min_size=3, max_size=12))
def test_no_layout_ever_moves_a_slice_by_more_than_its_tolerance(steps):
    heights = np.concatenate([[0], np.cumsum(steps)])
    try:
        layout = lay_out([plane((0, 0, h), name=str(i)) for i, h in enumerate(heights)])
    except GeometryError:
        return
    for k, held in enumerate(layout.planes):
        if held is not None:
            off = abs(layout.affine[2, 3] + k * layout.affine[2, 0] - held.position[2])
            assert off <= 0.1 * max(steps)
            if off > max(0.02 * max(steps), 0.01):
                assert any("stray" in note for note in layout.notes)


def test_even_runs_share_the_slice_between_them():
    heights = [0, 5, 10, 15, 25, 35, 45]
    runs = even_runs([plane((0, 0, h)) for h in heights])
    assert [[s.position[2] for s in run] for run in runs] == [[0, 5, 10, 15], [15, 25, 35, 45]]


def test_even_runs_gives_up_on_erratic_spacing():
    assert even_runs([plane((0, 0, h)) for h in [0, 1, 2.4, 3.1, 5, 5.3]]) == []
