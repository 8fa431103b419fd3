"""Metrics against hand cases and a plain brute-force reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.evaluation import metrics
from napari_openmedlab.geometry.volume import Geometry

GRID = Geometry.from_spacing((4, 5, 6), (4.0, 1.0, 0.5))
SHEARED = Geometry(
    (4, 5, 6), [[0.2, 0.1, 0.9, 5], [0.4, 1.1, 0, -3], [-3, 0.3, 0.1, 7], [0, 0, 0, 1]]
)


def brute_force(mask, reference, geometry, tolerance):
    """Loop over all pairs of surface voxels; no array tricks."""

    def surface(m):
        found = []
        for z, y, x in np.argwhere(m):
            for dz, dy, dx in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)):
                n = (z + dz, y + dy, x + dx)
                if min(n) < 0 or any(a >= b for a, b in zip(n, m.shape, strict=True)) or not m[n]:
                    found.append((geometry.affine @ [z, y, x, 1])[:3])
                    break
        return found

    def directed(a, b):
        return [min(np.sqrt(((p - q) ** 2).sum()) for q in b) for p in a]

    a, b = surface(mask), surface(reference)
    there, back = directed(a, b), directed(b, a)
    close = sum(d <= tolerance for d in there + back) / len(there + back)
    return max(np.percentile(there, 95), np.percentile(back, 95)), close


masks = arrays(bool, GRID.shape, elements=st.booleans())


@settings(max_examples=40, deadline=None)
@given(mask=masks, reference=masks, sheared=st.booleans())
def test_distances_equal_brute_force_on_any_grid(mask, reference, sheared):
    mask[1, 2, 3] = reference[2, 2, 2] = True
    grid = SHEARED if sheared else GRID
    found = metrics.compare_masks(mask, reference, grid, tolerance=1.1)
    hd95, close = brute_force(mask, reference, grid, 1.1)
    assert found.hd95 == pytest.approx(hd95, abs=1e-9)
    assert found.surface_dice == pytest.approx(close)
    both, total = (mask & reference).sum(), mask.sum() + reference.sum()
    assert found.dice == pytest.approx(2 * both / total)
    assert (found.voxels, found.reference_voxels) == (mask.sum(), reference.sum())


def test_hd95_of_a_shift_is_the_shift_in_millimetres_along_each_axis():
    grid = Geometry.from_spacing((20, 20, 20), (5.0, 2.0, 1.0))
    mask = np.zeros(grid.shape, dtype=bool)
    mask[5:9, 5:9, 5:9] = True
    for axis, spacing in enumerate(grid.spacing):
        moved = np.roll(mask, 6, axis=axis)
        found = metrics.compare_masks(mask, moved, grid)
        # The far face (more than 5 % of the surface) lies the whole shift away.
        assert found.hd95 == pytest.approx(6 * spacing)
        assert found.dice == 0.0


def test_surface_dice_counts_what_lies_within_the_tolerance():
    grid = Geometry.from_spacing((1, 1, 10), (1.0, 1.0, 1.0))
    mask, reference = np.zeros((2, 1, 1, 10), dtype=bool)
    mask[0, 0, 0:4] = True
    reference[0, 0, 2:6] = True
    # Distances there: 2 1 0 0, back: 0 0 1 2.
    assert metrics.compare_masks(mask, reference, grid, tolerance=0.0).surface_dice == 0.5
    assert metrics.compare_masks(mask, reference, grid, tolerance=1.0).surface_dice == 0.75
    assert metrics.compare_masks(mask, reference, grid, tolerance=2.0).surface_dice == 1.0


def test_equal_masks_agree_wholly():
    mask = np.zeros(GRID.shape, dtype=bool)
    mask[1:3, 1:4, 2:5] = True
    found = metrics.compare_masks(mask, mask.copy(), GRID)
    assert (found.dice, found.surface_dice, found.hd95) == (1.0, 1.0, 0.0)


def test_two_empty_masks_agree_and_one_empty_mask_does_not():
    empty = np.zeros(GRID.shape, dtype=bool)
    full = ~empty
    assert metrics.compare_masks(empty, empty, GRID) == metrics.Agreement(1.0, 1.0, 0.0, 0, 0)
    for pair in ((empty, full), (full, empty)):
        found = metrics.compare_masks(*pair, GRID)
        assert (found.dice, found.surface_dice, found.hd95) == (0.0, 0.0, float("inf"))


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(GeometryError, match=r"reference has shape \(4, 5, 5\)"):
        metrics.compare_masks(
            np.zeros(GRID.shape, dtype=bool), np.zeros((4, 5, 5), dtype=bool), GRID
        )


@pytest.mark.parametrize("largest", [7, 70_000, 3_000_000_000])
def test_label_maps_are_compared_value_by_value_whatever_the_largest(largest):
    rng = np.random.default_rng(0)
    kinds = np.array([0, 1, 3, largest])
    a, b = kinds[rng.integers(0, 4, (2, *GRID.shape))].astype(np.uint32)
    found = dict(metrics.compare_labels(a, b, GRID))
    assert list(found) == [1, 3, largest]
    for value, agreement in found.items():
        assert agreement == metrics.compare_masks(a == value, b == value, GRID)


def test_asked_for_labels_are_reported_even_when_absent():
    a = np.zeros(GRID.shape, dtype=np.uint8)
    b = a.copy()
    b[0, 0, 0] = 2
    found = dict(metrics.compare_labels(a, b, GRID, values=[2, 9]))
    assert found[2].dice == 0.0
    assert found[2].reference_voxels == 1
    assert found[9] == metrics.Agreement(1.0, 1.0, 0.0, 0, 0)


@pytest.mark.parametrize(
    ("unit", "expected"), [("mm", (0.08, "ml")), ("um", (80.0, "um3")), ("pixel", (40.0, "voxels"))]
)
def test_volumes_carry_the_unit_of_the_grid(unit, expected):
    grid = Geometry.from_spacing((4, 5, 6), (4.0, 1.0, 0.5), unit=unit)
    value, name = metrics.volume_of(40, grid)
    assert value == pytest.approx(expected[0])
    assert name == expected[1]
