from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from strategies import boxes_in

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import (
    LabelPatch,
    MaskPatch,
    count_labels,
    smallest_label_dtype,
)

SHAPE = (4, 5, 6)
masks = arrays(bool, SHAPE)


@given(masks, boxes_in(SHAPE))
def test_a_patch_is_its_mask_whatever_box_it_is_seen_through(mask, box):
    patch = MaskPatch.of(mask)
    assert np.array_equal(patch.to_full(SHAPE), mask)
    assert np.array_equal(patch.inside(box), mask[box.slices])
    assert patch.count == mask.sum()
    assert patch.is_empty == (not mask.any())


@given(masks)
def test_equal_masks_are_equal_patches_in_any_box(mask):
    whole = MaskPatch(Box.whole(SHAPE), mask)
    assert whole == whole.trimmed() == MaskPatch.of(mask)
    assert hash(whole) == hash(whole.trimmed())
    flipped = mask.copy()
    flipped[0, 0, 0] ^= True
    assert whole != MaskPatch.of(flipped)


def test_clipping_drops_what_lies_beyond():
    patch = MaskPatch(Box((-1, 0, 0), (2, 5, 6)), np.ones((3, 5, 6), bool))
    assert patch.clip(SHAPE).box == Box((0, 0, 0), (2, 5, 6))


def test_patches_can_not_be_written_through():
    patch = MaskPatch(Box((0, 0, 0), (1, 1, 1)), np.ones((1, 1, 1), bool))
    with pytest.raises(ValueError, match="read-only"):
        patch.mask[0, 0, 0] = False


def test_arrays_that_do_not_fit_their_box_are_refused():
    box = Box((0, 0, 0), (1, 1, 2))
    with pytest.raises(GeometryError, match="mask of shape"):
        MaskPatch(box, np.ones((1, 1, 1), bool))
    with pytest.raises(GeometryError, match="'after'"):
        LabelPatch(box, np.zeros((1, 1, 2)), np.zeros((1, 1, 1)))


@given(st.integers(0, 2**32 - 1))
def test_the_smallest_type_that_fits_is_taken(largest):
    dtype = smallest_label_dtype(largest)
    assert np.iinfo(dtype).max >= largest
    assert dtype == np.uint8 or np.iinfo(f"u{dtype.itemsize // 2}").max < largest


@pytest.mark.parametrize("value", [-1, 2**32])
def test_labels_out_of_range_are_refused(value):
    with pytest.raises(GeometryError, match="0 to 4294967295"):
        smallest_label_dtype(value)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_counts_agree_with_a_plain_histogram(dtype):
    labels = np.random.default_rng(1).integers(0, 5, (3, 40, 50)).astype(dtype)
    values, counts = np.unique(labels, return_counts=True)
    expected = dict(zip(values.tolist(), counts.tolist(), strict=True))
    del expected[0]
    assert count_labels(labels) == expected
    assert count_labels(np.zeros((2, 2, 2), dtype)) == {}
