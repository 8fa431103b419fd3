from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from strategies import ORIENTATIONS, affines, shapes, straight_affines

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry import frames


def affine_of(linear, spacing=(3.0, 2.0, 1.0)):
    affine = np.eye(4)
    affine[:3, :3] = linear * np.array(spacing)
    return affine


@given(affines())
def test_ras_and_lps_are_each_others_inverse_to_the_bit(affine):
    assert np.array_equal(frames.ras_lps(frames.ras_lps(affine)), affine)
    assert np.array_equal(frames.ras_lps(affine)[2:], affine[2:])


@pytest.mark.parametrize("linear", ORIENTATIONS)
def test_axis_codes_agree_with_nibabel_for_all_48_orientations(linear):
    affine = affine_of(linear)
    expected = "".join(nib.aff2axcodes(frames.ras_lps(affine)))
    assert frames.axis_codes(affine) == expected


@pytest.mark.parametrize("linear", ORIENTATIONS)
def test_every_orientation_is_brought_to_inferior_posterior_left(linear):
    affine = affine_of(linear)
    move = frames.display_reorientation(affine)
    shown = affine @ move.index_map((4, 5, 6))
    assert frames.axis_codes(shown) == "IPL"
    assert frames.display_reorientation(shown).is_identity


@given(affines(), shapes())
def test_undo_inverts_apply_and_moves_no_voxel_in_space(affine, shape):
    move = frames.display_reorientation(affine)
    array = np.arange(np.prod(shape)).reshape(shape)
    shown = move.apply(array)
    assert shown.shape == move.apply_shape(shape)
    assert np.array_equal(move.undo(shown), array)
    assert np.shares_memory(shown, array)
    index_map = move.index_map(shape)
    for index in np.ndindex(shown.shape):
        source = tuple(np.rint(index_map[:3, :3] @ index + index_map[:3, 3]).astype(int))
        assert shown[index] == array[source]


@given(affines(degrees=20.0, shear=0.0), shapes())
def test_a_tilted_grid_is_shown_nearest_to_inferior_posterior_left(affine, shape):
    move = frames.display_reorientation(affine)
    shown = (affine @ move.index_map(shape))[:3, :3]
    shown = shown / np.linalg.norm(shown, axis=0)
    assert (np.diag(frames.DISPLAY_AXES @ shown) > 0.5).all()


def test_leading_axes_stay_where_they_are():
    move = frames.Reorientation((2, 0, 1), (True, False, True))
    stack = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for whole, part in zip(move.apply(stack), stack, strict=True):
        assert np.array_equal(whole, move.apply(part))
    assert np.array_equal(move.undo(move.apply(stack)), stack)


@given(straight_affines())
def test_a_straight_grid_has_no_obliquity_and_no_shear(affine):
    assert frames.obliquity(affine) == pytest.approx(0, abs=1e-4)
    assert not frames.is_sheared(affine)


def test_obliquity_and_shear_are_told_apart():
    tilt = np.radians(12)
    turned = np.eye(4)
    turned[1:3, 1:3] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    gantry = np.eye(4)
    gantry[1, 2] = np.tan(tilt)
    assert frames.obliquity(turned) == pytest.approx(12)
    assert not frames.is_sheared(turned)
    assert frames.obliquity(gantry) == pytest.approx(12)
    assert frames.is_sheared(gantry)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m[:3], "is a 4x4 matrix"),
        (lambda m: np.where(m == 1, np.nan, m), "not finite"),
        (lambda m: m + np.eye(4)[::-1], "last row"),
        (lambda m: m @ np.diag([1, 0, 1, 1]), "can't be inverted"),
        (lambda m: m[:, [0, 0, 2, 3]] @ np.diag([1, 1, 1, 1.0]), "can't be inverted"),
    ],
)
def test_an_impossible_affine_is_refused_with_its_reason(change, sentence):
    with pytest.raises(GeometryError, match=sentence):
        frames.as_affine(change(np.eye(4)))


def test_tiny_voxels_are_no_reason_to_refuse_an_affine():
    assert frames.spacing_of(frames.as_affine(np.diag([1e-4, 2e-4, 1e-4, 1]))) == (1e-4, 2e-4, 1e-4)
