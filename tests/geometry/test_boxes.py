from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import boxes_in

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box, box_of_mask, box_of_points

SHAPE = (7, 8, 9)
small = boxes_in(SHAPE)


def voxels(box: Box) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[box.clip(SHAPE).slices] = True
    return mask


@given(small, small)
def test_intersection_and_union_agree_with_masks(a, b):
    assert np.array_equal(voxels(a.intersection(b)), voxels(a) & voxels(b))
    assert a.union(b) == box_of_mask(voxels(a) | voxels(b))
    assert a.contains(b) == (not (voxels(b) & ~voxels(a)).any())


@given(small)
def test_box_of_its_own_voxels_is_the_box(box):
    assert box_of_mask(voxels(box)) == box
    assert box.size == voxels(box).sum()
    assert box_of_points(np.argwhere(voxels(box))) == box


@given(small, st.integers(0, 3))
def test_growing_and_shrinking_meet_again(box, margin):
    assert box.grow(margin).grow(-margin) == box
    assert box.grow((margin, 0, 0)).shape[1:] == box.shape[1:]


@given(small, small)
def test_relative_boxes_cut_the_same_voxels(outer, inner):
    shared = outer.intersection(inner)
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    cut = array[outer.slices][shared.relative_to(outer).slices]
    assert np.array_equal(cut, array[shared.slices])


def test_an_empty_mask_has_an_empty_box_and_adds_nothing():
    empty = box_of_mask(np.zeros(SHAPE, bool))
    box = Box((1, 1, 1), (2, 3, 4))
    assert empty.is_empty
    assert box.union(empty) == empty.union(box) == box
    assert box.contains(empty)


def test_a_point_belongs_to_the_nearest_voxel():
    assert box_of_points([(4.4, 0, 0), (4.6, 2, 1)]) == Box((4, 0, 0), (6, 3, 2))
    box = Box((0, 0, 0), (2, 2, 2))
    assert box.contains_index((1.4, -0.4, 0))
    assert not box.contains_index((1.6, 0, 0))


def test_a_box_that_stops_before_it_starts_is_refused():
    with pytest.raises(GeometryError, match="can't stop before it starts"):
        Box((0, 0, 5), (1, 1, 4))
    with pytest.raises(GeometryError, match="three axes"):
        Box((0, 0), (1, 1))
    with pytest.raises(GeometryError, match="at least one point"):
        box_of_points(np.zeros((0, 3)))
