"""Found boxes become prompts: margins, sub-patches, locked walls, and masks that end there."""

from __future__ import annotations

import numpy as np
import pytest

from napari_openmedlab.cohort.handing_over import (
    cut,
    handed_box,
    prompts_for,
    slabs,
    with_locked_walls,
)
from napari_openmedlab.cohort.settings import Settings
from napari_openmedlab.cohort.sub_patches import assembled, base_of, slabs_of
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.models.contract import Prediction
from napari_openmedlab.models.localisation import WALLS, Found, Landmarks, Template

GRID = Geometry.from_spacing((20, 30, 40), (4.0, 2.0, 2.0), unit="mm", frame="patient")
BOX = Box((5, 8, 10), (12, 20, 25))
SIX = tuple((float(n), 1.0, 2.0) for n in range(6))


def test_the_margin_is_in_millimetres_and_ends_at_the_scan():
    assert handed_box(BOX, GRID, 6.0) == Box((3, 5, 7), (14, 23, 28))  # 1.5 voxels round to 2
    assert handed_box(Box((0, 0, 0), (20, 30, 40)), GRID, 6.0) == Box.whole(GRID.shape)


def test_a_whole_box_is_one_prompt():
    prompts = prompts_for(Found("liver", BOX), GRID, Settings("x", margin_mm=4.0))
    (box,) = prompts.boxes
    assert box.to_box(GRID) == Box((4, 6, 8), (13, 22, 27))


def test_sub_patches_share_slices_by_their_union_and_keep_the_ends():
    parts = (Box((5, 8, 10), (8, 12, 20)), Box((7, 9, 15), (12, 20, 25)))
    found = Found("liver", BOX, parts=parts)
    boxes = [b.to_box(GRID) for b in prompts_for(found, GRID, Settings("x", margin_mm=4.0)).boxes]
    assert [(b.start[0], b.stop[0]) for b in boxes] == [(4, 7), (7, 8), (8, 13)]
    assert boxes[1].start[1:] == (6, 8)  # on the shared slice the rectangle that holds both
    assert boxes[1].stop[1:] == (22, 27)
    assert boxes[0].stop[1:] == (14, 22)


def test_slabs_leave_a_gap_where_no_part_is():
    assert slabs([Box((0, 0, 0), (2, 2, 2)), Box((4, 0, 0), (5, 3, 3))]) == [
        Box((0, 0, 0), (2, 2, 2)),
        Box((4, 0, 0), (5, 3, 3)),
    ]


def test_points_serve_only_if_all_lie_in_the_scan():
    inside = tuple(tuple(p) for p in GRID.to_world([(5 + n, 9, 11) for n in range(6)]))
    settings = Settings("x", prompts="extreme_points")
    assert prompts_for(Found("a", BOX, inside), GRID, settings).extreme_points == inside
    outside = (*inside[:5], (500.0, 0.0, 0.0))
    assert prompts_for(Found("a", BOX, outside), GRID, settings).boxes


def test_a_mask_ends_where_its_box_does():
    answer = Prediction(Box((0, 0, 0), (20, 30, 40)), np.ones((20, 30, 40), bool), 0.5)
    assert cut(answer, BOX).box == BOX
    assert cut(answer, BOX).mask.all()
    inside = Prediction(Box((6, 9, 11), (7, 10, 12)), np.ones((1, 1, 1), bool))
    assert cut(inside, BOX) is inside


@pytest.mark.parametrize(
    ("wall", "boundary", "start", "stop"),
    [
        ("superior", 2, (2, 8, 10), (12, 20, 25)),
        ("inferior", 15, (5, 8, 10), (15, 20, 25)),
        ("anterior", 9, (5, 9, 10), (12, 20, 25)),
        ("posterior", 21, (5, 8, 10), (12, 21, 25)),
        ("right", 3, (5, 8, 3), (12, 20, 25)),
        ("left", 99, (5, 8, 10), (12, 20, 40)),
    ],
)
def test_a_wall_set_by_hand_replaces_the_found_one(wall, boundary, start, stop):
    found = with_locked_walls(Found("a", BOX, SIX, 0.4), {wall: boundary}, GRID.shape)
    assert found.box == Box(start, stop)
    assert found.confidence == 0.4
    assert found.points == SIX
    assert f"set by hand: {wall}" in found.notes


def test_six_walls_by_hand_are_a_structure_that_was_not_found():
    walls = dict(zip(WALLS, (12, 20, 10, 5, 8, 25), strict=True))
    lost = Found("a", Box((0, 0, 0), (0, 0, 0)), found=False)
    assert with_locked_walls(lost, {"left": 25}, GRID.shape) is lost
    found = with_locked_walls(lost, walls, GRID.shape)
    assert found.found
    assert found.box == BOX
    assert found.confidence == 1.0


def test_slabs_by_name_become_parts():
    names = ("liver [2/2]", "liver", "liver [1/2]", "odd [1/1]")
    template = Template("t", "c", tuple(Landmarks(n, SIX) for n in names))
    assert slabs_of("liver", [template]) == ("liver [1/2]", "liver [2/2]")
    assert base_of("liver [1/2]", ["liver"]) == "liver"
    assert base_of("odd [1/1]", ["liver"]) == ""
    found = (
        Found("liver", BOX, SIX, 0.8),
        Found("liver [1/2]", Box((9, 8, 10), (13, 12, 20)), SIX, 0.6),
        Found("liver [2/2]", Box((5, 9, 15), (9, 20, 25)), SIX, 0.7),
    )
    (whole,) = assembled(found, ["liver"])
    assert whole.parts == (found[1].box, found[2].box)
    assert whole.box == Box((5, 8, 10), (13, 20, 25))
    assert whole.confidence == 0.6
    lost = (*found[:2], Found("liver [2/2]", Box((0, 0, 0), (0, 0, 0)), found=False))
    (alone,) = assembled(lost, ["liver"])
    assert alone.parts == ()
    assert "1 of 2 sub-patches were not found" in alone.notes[0]
