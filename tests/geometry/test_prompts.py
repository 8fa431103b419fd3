from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import boxes_in, geometries, straight_affines

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.grid import GridPlan
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import BoxPrompt, Click, MaskPrompt, PromptSet, Scribble
from napari_openmedlab.geometry.volume import Geometry

GRID = Geometry((10, 20, 30), np.diag([4.0, 2.0, 1.0, 1.0]))


@given(st.data())
def test_a_voxel_box_survives_patient_coordinates_on_any_grid(data):
    geometry = data.draw(geometries())
    box = data.draw(boxes_in(geometry.shape))
    assert BoxPrompt.from_box(box, geometry).to_box(geometry) == box


@given(st.data())
def test_the_order_of_a_boxs_corners_does_not_matter(data):
    geometry = data.draw(geometries(straight_affines()))
    box = data.draw(boxes_in(geometry.shape))
    prompt = BoxPrompt.from_box(box, geometry)
    low, high = prompt.corner, prompt.opposite
    swapped = BoxPrompt((high[0], low[1], high[2]), (low[0], high[1], low[2]))
    assert swapped.to_box(geometry) == box


def test_a_box_thinner_than_a_voxel_keeps_the_nearest_layer():
    prompt = BoxPrompt((5.2, 4.0, 3.0), (6.6, 8.0, 9.0))  # x, y, z = axes 0, 1, 2 of this grid
    assert prompt.to_box(GRID).shape[0] == 1


def test_a_box_outside_the_volume_is_refused_and_one_that_reaches_out_is_clipped():
    with pytest.raises(PromptError, match="lies outside the volume"):
        BoxPrompt((-90, -90, -90), (-50, -50, -50)).to_box(GRID)
    assert BoxPrompt((-90, -90, -90), (4, 2, 1)).to_box(GRID) == Box((0, 0, 0), (2, 2, 2))


@given(st.data())
def test_a_mask_prompt_comes_back_on_its_own_grid_and_on_a_finer_one(data):
    geometry = data.draw(geometries(low=2))
    mask = np.random.default_rng(data.draw(st.integers(0, 999))).random(geometry.shape) > 0.6
    prompt = MaskPrompt(MaskPatch.of(mask), geometry)
    assert np.array_equal(prompt.on_grid(geometry).to_full(geometry.shape), mask)
    half = tuple(np.array(geometry.spacing) / 2)
    fine = GridPlan.crop_to_spacing(geometry, Box.whole(geometry.shape), half).target
    doubled = mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert np.array_equal(prompt.on_grid(fine).to_full(fine.shape), doubled)


@pytest.mark.parametrize("point", [(1, 2), (1, 2, np.nan), (1, 2, np.inf), "abc"])
def test_a_point_that_is_none_is_refused(point):
    with pytest.raises((PromptError, ValueError)):
        Click(point)


def test_seven_extreme_points_are_one_too_many():
    with pytest.raises(PromptError, match=r"six extreme points.*got 7"):
        PromptSet(extreme_points=[(i, 0, 0) for i in range(7)])


def test_edits_make_new_prompt_sets_and_leave_the_old_one_alone():
    empty = PromptSet()
    full = (
        empty.with_extreme_point((1, 2, 3))
        .with_click((4, 5, 6), positive=False)
        .with_scribble([(1, 1, 1), (2, 2, 2)])
        .with_box(BoxPrompt((0, 0, 0), (9, 9, 9)))
    )
    assert empty.is_empty
    assert full.kinds() == {"extreme_points", "box", "click", "scribble"}
    assert full.world_points().shape == (6, 3)
    assert full == PromptSet(full.extreme_points, full.boxes, full.clicks, full.scribbles)
    assert len({full, full.with_click((0, 0, 0)), empty}) == 3


def test_only_negative_prompts_do_not_say_where_the_object_is():
    negative = PromptSet().with_click((1, 1, 1), positive=False).with_scribble([(0, 0, 0)], False)
    assert not negative.has_positive
    assert negative.with_click((1, 1, 1)).has_positive


def test_a_prompt_off_the_grid_is_named():
    prompts = PromptSet().with_click((1, 1, 1)).with_click((400, 0, 0))
    with pytest.raises(PromptError, match=r"click 2 at \(400.0, 0.0, 0.0\).*\(10, 20, 30\)"):
        prompts.check_inside(GRID)


def test_an_empty_scribble_is_refused():
    with pytest.raises(PromptError, match="at least one point"):
        Scribble(np.zeros((0, 3)))
