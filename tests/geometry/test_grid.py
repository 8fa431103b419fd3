from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import affines, boxes_in, geometries

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.frames import Reorientation
from napari_openmedlab.geometry.grid import GridPlan
from napari_openmedlab.geometry.volume import Geometry, Volume


def ramp(geometry: Geometry) -> Volume:
    """An image whose value is a linear function of the place: linear sampling must be exact."""
    index = np.moveaxis(np.indices(geometry.shape), 0, -1)
    world = geometry.to_world(index)
    return Volume((world @ [1.0, 0.5, -0.25]).astype(np.float64), geometry)


@settings(deadline=None)
@given(st.data())
def test_samples_of_a_linear_image_are_its_values_at_the_target_voxels(data):
    source = data.draw(geometries(low=3))
    box = data.draw(boxes_in(source.shape))
    plan = GridPlan.crop_to_spacing(source, box, tuple(np.array(source.spacing) * 1.3))
    sampled = plan.apply(ramp(source))
    index = np.moveaxis(np.indices(plan.target.shape), 0, -1)
    world = plan.target.to_world(index)
    at = source.to_index(world)
    inner = ((at >= 0) & (at <= np.array(source.shape) - 1)).all(-1)
    expected = world @ [1.0, 0.5, -0.25]
    scale = max(1.0, np.abs(expected).max())
    assert np.allclose(sampled[inner], expected[inner], atol=1e-4 * scale)


@given(st.data())
def test_the_target_covers_exactly_the_box(data):
    source = data.draw(geometries())
    box = data.draw(boxes_in(source.shape))
    spacing = data.draw(st.tuples(*(st.floats(0.3, 9),) * 3))
    target = GridPlan.crop_to_spacing(source, box, spacing).target
    outer = np.array([(-0.5,) * 3, np.array(target.shape) - 0.5])
    expected = source.to_world([np.array(box.start) - 0.5, np.array(box.stop) - 0.5])
    assert np.allclose(target.to_world(outer), expected, atol=1e-6)


@settings(deadline=None)
@given(st.data())
def test_restore_inverts_apply_for_a_permuted_grid(data):
    source = data.draw(geometries(low=2))
    order = data.draw(st.permutations(range(3)))
    flips = data.draw(st.tuples(*(st.booleans(),) * 3))
    plan = GridPlan(source, source.reorient(Reorientation(tuple(order), flips)))
    values = np.random.default_rng(0).normal(size=source.shape)
    box, back = plan.restore(plan.apply(Volume(values, source)))
    assert box == Box.whole(source.shape)
    assert np.allclose(back, values, atol=1e-4)


@settings(deadline=None)
@given(affines(degrees=25), st.integers(0, 10**6))
def test_a_mask_sampled_finer_and_restored_is_the_mask(affine, seed):
    source = Geometry((6, 7, 8), affine)
    mask = np.random.default_rng(seed).random(source.shape) > 0.5
    box = Box((1, 1, 1), (6, 7, 8))
    third = GridPlan.crop_to_spacing(source, box, tuple(np.array(source.spacing) / 3))
    fine = third.apply(Volume(mask, source), order=0)
    covered, back = third.restore(fine, order=0)
    assert covered == box
    assert np.array_equal(back > 0.5, mask[box.slices])


def test_beyond_the_image_comes_the_fill_value_and_the_edge_reaches_half_a_voxel():
    source = Geometry((1, 1, 4), np.diag([1.0, 1, 1, 1]))
    volume = Volume(np.array([[[10.0, 20, 30, 40]]]), source)
    wide = np.eye(4)
    wide[2, 3] = -1.25  # world z is array axis 2 here: this affine maps (z, y, x) to themselves
    target = Geometry((1, 1, 13), wide @ np.diag([1, 1, 0.5, 1]))
    row = GridPlan(source, target).apply(volume, fill=-7)[0, 0]
    expected = [-7, -7, 10, 12.5, 17.5, 22.5, 27.5, 32.5, 37.5, 40, -7, -7, -7]
    assert row == pytest.approx(expected)


def test_a_crop_reads_only_what_it_needs():
    source = Geometry((100, 100, 100), np.eye(4))

    class Watched:
        shape = source.shape
        largest = 0

        def __getitem__(self, key):
            size = np.prod([s.stop - s.start for s in key])
            self.largest = max(self.largest, int(size))
            return np.zeros([s.stop - s.start for s in key], np.float32)

    watched = Watched()
    plan = GridPlan.crop_to_spacing(source, Box((40,) * 3, (50,) * 3), (2.0, 2.0, 2.0))
    plan.apply(Volume(watched, source))
    assert 0 < watched.largest <= 15**3


def test_grids_of_different_units_and_shapes_are_refused():
    source = Geometry((4, 4, 4), np.eye(4))
    with pytest.raises(GeometryError, match="different units: mm and um"):
        GridPlan(source, Geometry((4, 4, 4), np.eye(4), unit="um"))
    plan = GridPlan(source, source)
    with pytest.raises(GeometryError, match="grid of another shape"):
        plan.apply(Volume(np.zeros((4, 4, 5)), Geometry((4, 4, 5), np.eye(4))))
    with pytest.raises(GeometryError, match=r"\(3, 4, 4\)"):
        plan.restore(np.zeros((3, 4, 4)))
