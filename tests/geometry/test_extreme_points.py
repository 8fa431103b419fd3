from itertools import permutations, product

import numpy as np
import pytest

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.extreme_points import (
    ROLES,
    assign_walls,
    box_of_walls,
    check_walls,
    slabs_of_mask,
    wall_directions,
    walls_of_mask,
)
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.models.localisation import WALLS

UPRIGHT = np.array([[0, 0, 3, 0], [0, -3, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1.0]])  # to S, A, L
CODES = [
    tuple(zip(order, signs, strict=True))
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]


def blob():
    """A lopsided organ on an upright grid, 3 mm."""
    z, y, x = np.indices((14, 16, 18))
    mask = ((z - 6) / 4) ** 2 + ((y - 7) / 5) ** 2 + ((x - 10) / 6) ** 2 <= 1
    mask[9:12, 7:9, 11:13] = True
    return mask, Geometry(mask.shape, UPRIGHT)


def stored(mask, geometry, code):
    """The same voxels in another axis order."""
    order, flips = [a for a, _ in code], [s < 0 for _, s in code]
    affine = np.eye(4)
    affine[:3, :3] = 0
    start = np.zeros(3)
    for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
        affine[:3, new] = geometry.affine[:3, old] * (-1 if flip else 1)
        start[old] = mask.shape[old] - 1 if flip else 0
    affine[:3, 3] = geometry.to_world(start)
    cut = tuple(slice(None, None, -1 if f else 1) for f in flips)
    array = mask.transpose(order)[cut]
    return array, Geometry(array.shape, affine)


def test_the_order_is_that_of_the_contract():
    assert ROLES == WALLS


@pytest.mark.parametrize("template", [0, 1])
def test_points_of_a_mask_are_upstreams(golden, template):
    kept = np.load(golden / "medlam" / "preprocess.npz")
    shape = tuple(kept[f"template{template}_label_shape"])
    bits = np.unpackbits(kept[f"template{template}_label_pre"], count=int(np.prod(shape)))
    mask, grid = bits.reshape(shape).astype(bool), Geometry(shape, UPRIGHT)
    found = grid.to_index(walls_of_mask(mask, grid))
    np.testing.assert_array_equal(np.rint(found), kept[f"template{template}_extreme_c1"])
    for count in (1, 2, 3, 6):
        slabs = grid.to_index(slabs_of_mask(mask, grid, count)).reshape(-1, 3)
        expected = kept[f"template{template}_split{count}_c1"]
        np.testing.assert_array_equal(np.rint(slabs), expected)


@pytest.mark.parametrize("code", CODES)
def test_any_axis_order_gives_the_same_points_and_the_masks_own_box(code):
    mask, geometry = blob()
    expected = walls_of_mask(mask, geometry)
    array, grid = stored(mask, geometry, code)
    np.testing.assert_allclose(walls_of_mask(array, grid), expected, atol=1e-9)
    np.testing.assert_allclose(
        slabs_of_mask(array, grid, 3), slabs_of_mask(mask, geometry, 3), atol=1e-9
    )
    assert box_of_walls(expected, grid) == MaskPatch.of(array).box
    check_walls(expected, grid)


def test_every_point_of_a_mask_lies_on_it():
    mask, geometry = blob()
    index = np.rint(geometry.to_index(walls_of_mask(mask, geometry))).astype(int)
    assert mask[tuple(index.T)].all()


def test_points_find_their_walls_in_any_order():
    mask, geometry = blob()
    walls = walls_of_mask(mask, geometry)
    for order in list(permutations(range(6)))[::37]:
        np.testing.assert_array_equal(assign_walls(walls[list(order)], geometry), walls)


def test_an_oblique_scan_is_marked_along_its_own_axes():
    mask, geometry = blob()
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
    tilted = Geometry(mask.shape, turn @ geometry.affine)
    walls = walls_of_mask(mask, tilted)
    assert box_of_walls(walls, tilted) == MaskPatch.of(mask).box
    np.testing.assert_allclose(assign_walls(walls[::-1], tilted), walls)
    check_walls(walls, tilted)
    np.testing.assert_allclose(wall_directions(tilted)[2], [1, 0, 0], atol=1e-12)


def test_walls_beyond_the_scan_are_clipped():
    mask, geometry = blob()
    walls = walls_of_mask(mask, geometry)
    far = walls + np.array([0, 0, 200.0])
    assert box_of_walls(far, geometry).is_empty
    low = walls - np.array([0, 0, 12.0])
    assert geometry.crop(box_of_walls(low, geometry)).shape[0] < np.ptp(np.nonzero(mask)[0]) + 1


@pytest.mark.parametrize("count", [0, 1, 5, 7])
def test_any_other_number_of_points_is_refused(count):
    with pytest.raises(PromptError, match=f"there are {count}: (place|remove)"):
        assign_walls(np.zeros((count, 3)))


def test_what_cannot_be_meant_is_refused_with_the_points_name():
    mask, geometry = blob()
    walls = walls_of_mask(mask, geometry)
    with pytest.raises(PromptError, match="finite"):
        assign_walls(np.full((6, 3), np.nan))
    crossed = walls.copy()
    crossed[[0, 3]] = walls[[3, 0]]
    with pytest.raises(PromptError, match=r"'liver': the inferior point .* superior side"):
        check_walls(crossed, geometry, "liver")
    inner = walls.copy()
    inner[3, 2] = walls[:, 2].mean()
    inner[5, 2] = walls[3, 2]
    with pytest.raises(PromptError, match=r"the left point lies .* mm more superior than"):
        check_walls(inner, geometry, "liver")
    outside = walls.copy()
    outside[4, 1] -= 500
    with pytest.raises(PromptError, match="the anterior point lies outside the scan"):
        check_walls(outside, geometry, "liver")
    with pytest.raises(PromptError, match="the mask is empty"):
        walls_of_mask(np.zeros(mask.shape, bool), geometry)
    with pytest.raises(PromptError, match="slice"):
        slabs_of_mask(MaskPatch(Box((2, 2, 2), (3, 4, 5)), np.ones((1, 2, 3), bool)), geometry, 2)


def test_thin_structures_and_those_at_the_edge_are_told():
    _, geometry = blob()
    mask = np.zeros(geometry.shape, bool)
    mask[-1, 4:12, 4:12] = True
    notes = check_walls(walls_of_mask(mask, geometry), geometry, "dome")
    assert any("reaches the superior edge" in note for note in notes)
    assert any("from inferior to superior: thinner" in note for note in notes)
