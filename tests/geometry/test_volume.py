from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import boxes_in, geometries

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry import frames
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Geometry, Volume


@given(geometries(), st.lists(st.tuples(*(st.floats(-50, 50),) * 3), min_size=1))
def test_index_to_world_and_back_is_the_identity(geometry, points):
    assert np.allclose(geometry.to_index(geometry.to_world(points)), points, atol=1e-6)


@given(geometries())
def test_world_of_a_voxel_is_the_affine_times_its_index(geometry):
    last = np.array(geometry.shape) - 1
    expected = (geometry.affine @ [*last, 1])[:3]
    assert np.allclose(geometry.to_world(last), expected)
    assert geometry.to_world(last).shape == (3,)


@given(st.data())
def test_a_crop_keeps_every_voxel_in_place(data):
    geometry = data.draw(geometries())
    box = data.draw(boxes_in(geometry.shape))
    crop = geometry.crop(box)
    assert crop.shape == box.shape
    ends = np.array([(0, 0, 0), np.array(box.shape) - 1])
    assert np.allclose(crop.to_world(ends), geometry.to_world(ends + box.start))


@given(geometries())
def test_reordering_keeps_every_voxel_in_place(geometry):
    move = frames.display_reorientation(geometry.affine)
    shown = geometry.reorient(move)
    index = np.moveaxis(np.indices(geometry.shape), 0, -1)
    places = geometry.to_world(index)
    moved = np.stack([move.apply(places[..., i]) for i in range(3)], -1)
    assert np.allclose(shown.to_world(np.moveaxis(np.indices(shown.shape), 0, -1)), moved)
    assert shown.voxel_volume == pytest.approx(geometry.voxel_volume)


@given(geometries())
def test_a_grid_equals_itself_and_not_its_neighbour(geometry):
    affine = geometry.affine.copy()
    affine[:3, 3] += 0.02 * np.array(geometry.spacing).min()
    moved = Geometry(geometry.shape, affine)
    assert geometry.same_grid(Geometry(geometry.shape, geometry.affine + 1e-9 * np.eye(4, k=3)))
    assert not geometry.same_grid(moved)
    assert geometry.difference(geometry) == ""
    assert "position or orientation" in geometry.difference(moved)


def test_differences_are_said_in_the_order_a_user_checks_them():
    one = Geometry.from_spacing((4, 5, 6), (2.0, 1.0, 1.0))
    assert "shape (4, 5, 6) against (4, 5, 7)" in one.difference(
        Geometry.from_spacing((4, 5, 7), (2.0, 1.0, 1.0))
    )
    assert "unit mm against um" in one.difference(
        Geometry.from_spacing((4, 5, 6), (2.0, 1.0, 1.0), unit="um")
    )
    assert "spacing (z, y, x) 2 x 1 x 1 against 3 x 1 x 1 mm" in one.difference(
        Geometry.from_spacing((4, 5, 6), (3.0, 1.0, 1.0))
    )


def test_the_affine_of_a_geometry_can_not_be_changed():
    geometry = Geometry.from_spacing((2, 2, 2), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 0] = 3


def test_sheared_voxels_have_the_volume_of_the_straight_ones():
    affine = np.diag([5.0, 2.0, 1.0, 1.0])
    affine[1, 0] = 1.3
    assert Geometry((2, 2, 2), affine).voxel_volume == pytest.approx(10)


@pytest.mark.parametrize("shape", [(0, 2, 2), (2, 2), (2, 2, 2, 2)])
def test_an_impossible_shape_is_refused(shape):
    with pytest.raises(GeometryError, match="three axes of at least one voxel"):
        Geometry(shape, np.eye(4))


def test_an_array_that_does_not_fit_its_geometry_is_refused():
    with pytest.raises(GeometryError, match=r"\(2, 2, 2\).*\(2, 2, 3\)"):
        Volume(np.zeros((2, 2, 2)), Geometry((2, 2, 3), np.eye(4)))


def test_contains_index_counts_half_a_voxel_around_each_centre():
    geometry = Geometry((3, 3, 3), np.eye(4))
    points = [(0, 0, 0), (-0.4, 0, 2.4), (-0.6, 0, 0), (0, 0, 2.6)]
    assert geometry.contains_index(points).tolist() == [True, True, False, False]


def test_cropping_a_volume_reads_only_that_part():
    class Lazy:
        shape = (100, 100, 100)
        asked = None

        def __getitem__(self, key):
            self.asked = key
            return np.ones(tuple(s.stop - s.start for s in key))

    lazy = Lazy()
    box = Box((1, 2, 3), (4, 6, 8))
    part = Volume(lazy, Geometry((100, 100, 100), np.eye(4))).crop(box)
    assert part.shape == box.shape
    assert lazy.asked == box.slices
