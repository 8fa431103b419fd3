"""Volumes as layers and layers as volumes."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer, Points

from napari_openmedlab.bridge.display import contrast_limits
from napari_openmedlab.bridge.layers import (
    labels_to_layer_data,
    layer_spatial,
    spatial,
    tag_of,
    volume_of_layer,
    volume_to_layer_data,
)
from napari_openmedlab.bridge.positions import data_points, index_at, point_at, position_of
from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.frames import Reorientation, display_reorientation
from napari_openmedlab.geometry.volume import Geometry, Volume


def as_layer(volume):
    return Layer.create(*volume_to_layer_data(volume))


def stored(volume, order, flips):
    """Return the volume as another scanner would have stored it: axes permuted and flipped."""
    move = Reorientation(order, flips)
    return Volume(move.apply(volume.array), volume.geometry.reorient(move), name="stored")


def to_display(volume):
    move = display_reorientation(volume.geometry.affine)
    return Volume(move.apply(volume.array), volume.geometry.reorient(move), name="phantom")


def test_all_48_stored_orientations_give_the_same_layer(marked_volume):
    reference = as_layer(marked_volume)
    seen = 0
    for order, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        layer = as_layer(to_display(stored(marked_volume, order, flips)))
        np.testing.assert_array_equal(layer.data, reference.data)
        np.testing.assert_allclose(layer.scale, reference.scale, atol=1e-12)
        np.testing.assert_allclose(layer.translate, reference.translate, atol=1e-9)
        assert layer.units == reference.units
        assert layer.axis_labels == ("z", "y", "x")
        seen += 1
    assert seen == 48


def test_napari_world_is_minus_z_y_x_of_lps_for_an_aligned_scan(marked_volume):
    layer = as_layer(marked_volume)
    for index in ((0, 0, 0), (21, 33, 45), (4, 7, 9)):
        x, y, z = marked_volume.geometry.to_world(index)
        np.testing.assert_allclose(layer.data_to_world(index), (-z, y, x), atol=1e-9)


def test_an_oblique_scan_is_straight_on_screen_with_its_centre_in_place():
    angle = np.radians(20)
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, 1.0], [0, 2.0, 0], [-3.0, 0, 0]])
    affine[:3, 3] = (5, 6, 7)
    volume = Volume(np.zeros((9, 11, 13)), Geometry((9, 11, 13), affine))
    layer = as_layer(volume)
    assert (np.array(layer.scale) > 0).all()
    np.testing.assert_array_equal(layer.rotate, np.eye(3))
    x, y, z = volume.geometry.to_world((4, 5, 6))
    np.testing.assert_allclose(layer.data_to_world((4, 5, 6)), (-z, y, x), atol=1e-9)
    corner = layer.data_to_world((8, 0, 0))
    np.testing.assert_allclose(
        point_at(layer, volume.geometry, corner), volume.geometry.to_world((8, 0, 0)), atol=1e-9
    )


def test_our_layer_gives_back_its_very_volume_whatever_its_name(marked_volume):
    layer = as_layer(marked_volume)
    layer.name = "something else"
    assert volume_of_layer(layer) is marked_volume


def test_new_data_of_the_same_shape_keep_grid_and_source(marked_volume):
    layer = as_layer(marked_volume)
    layer.data = layer.data * 2
    now = volume_of_layer(layer)
    assert now.array is layer.data
    assert now.geometry is marked_volume.geometry


def test_a_layer_given_another_voxel_size_is_taken_as_it_is_now(marked_volume):
    layer = as_layer(marked_volume)
    layer.scale = (1, 1, 1)
    now = volume_of_layer(layer)
    assert now.geometry.spacing == (1, 1, 1)
    assert now.source is None
    assert "no longer from the file" in now.notes[-1]


@pytest.mark.parametrize("unit", ["mm", "um"])
def test_a_foreign_layer_is_used_by_its_own_transforms_and_not_changed(unit):
    data = np.random.default_rng(0).random((4, 5, 6))
    layer = Image(data, scale=(3, 2, -1), translate=(7, 8, 9), rotate=(0, 0, 30), units=(unit,) * 3)
    before = layer.data_to_world((1, 2, 3))
    volume = volume_of_layer(layer)
    assert volume.array is data
    assert (volume.geometry.unit, volume.geometry.frame) == (unit, "image")
    np.testing.assert_allclose(volume.geometry.to_world((1, 2, 3))[::-1], before)
    assert layer.data_to_world((1, 2, 3)) == before
    assert "openmedlab" not in layer.metadata


def test_units_that_differ_between_axes_come_to_one():
    layer = Image(np.zeros((3, 4, 5)), scale=(2, 500, 500), units=("mm", "um", "um"))
    geometry = volume_of_layer(layer).geometry
    assert geometry.unit == "mm"
    np.testing.assert_allclose(geometry.spacing, (2, 0.5, 0.5))


def test_a_2d_image_is_one_slice():
    layer = Image(np.arange(12.0).reshape(3, 4), scale=(2, 0.5))
    volume = volume_of_layer(layer)
    assert volume.array.shape == (1, 3, 4)
    np.testing.assert_allclose(volume.geometry.spacing[1:], (2, 0.5))
    assert index_at(layer, layer.data_to_world((1, 2))).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: Image(np.zeros((4, 5, 3), np.uint8), rgb=True), "Split RGB"),
        (lambda: Image(np.zeros((2, 3, 4, 5))), "4 axes.*Split Stack"),
        (lambda: Points(np.zeros((1, 3))), "points layer; choose an image"),
    ],
)
def test_what_is_no_volume_is_refused_with_what_to_do(layer, words):
    with pytest.raises(GeometryError, match=words):
        volume_of_layer(layer())


def test_a_pyramid_gives_its_finest_level_and_stays_lazy():
    import dask.array as da

    fine = da.zeros((8, 64, 64), chunks=16)
    layer = Image([fine, fine[::2, ::2, ::2]], multiscale=True)
    volume = volume_of_layer(layer)
    assert volume.array is fine
    assert "finest" in volume.notes[0]


def test_labels_must_lie_on_the_grid_of_their_image(marked_volume):
    with pytest.raises(GeometryError, match=r"\(2, 2, 2\).*grid of their image"):
        labels_to_layer_data(np.zeros((2, 2, 2), int), marked_volume)


def test_every_layer_of_ours_carries_all_four_so_that_units_stay(marked_volume, recwarn):
    viewer = ViewerModel()
    image = viewer.add_layer(as_layer(marked_volume))
    labels = np.zeros(marked_volume.array.shape, np.uint8)
    viewer.add_layer(Layer.create(*labels_to_layer_data(labels, marked_volume)))
    viewer.add_layer(Points(np.zeros((1, 3)), **layer_spatial(image)))
    viewer.add_layer(Points(np.zeros((1, 3)), **spatial(marked_volume.geometry)))
    assert {layer.units for layer in viewer.layers} == {image.units}
    assert not [w for w in recwarn if "nits" in str(w.message)]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_a_position_becomes_lps_and_back_in_every_order(marked_volume, order):
    viewer = ViewerModel()
    layer = viewer.add_layer(as_layer(marked_volume))
    viewer.dims.order = order
    point = marked_volume.geometry.to_world((7.25, 11.5, 30))
    position = position_of(layer, marked_volume.geometry, point)
    np.testing.assert_allclose(point_at(layer, marked_volume.geometry, position), point)
    np.testing.assert_allclose(
        data_points(layer, marked_volume.geometry, [point]), [(7.25, 11.5, 30)]
    )


def test_surplus_axes_of_the_viewer_are_left_out(marked_volume):
    layer = as_layer(marked_volume)
    position = layer.data_to_world((1, 2, 3))
    np.testing.assert_allclose(index_at(layer, (99, *position)), (1, 2, 3))


def test_a_ct_gets_the_soft_tissue_window_and_nan_does_no_harm(marked_volume):
    air = np.full((4, 40, 40), -1000.0)
    air[1:3, 10:30, 10:30] = 50
    geometry = Geometry(air.shape, marked_volume.geometry.affine)
    assert contrast_limits(Volume(air, geometry, modality="CT")) == (-160, 240)
    assert contrast_limits(Volume(air, geometry)) == (-160, 240), "a NIfTI CT names no modality"
    air[0] = np.nan
    low, high = contrast_limits(Volume(air, geometry, modality="MR"))
    assert -1000 <= low < high <= 50
    assert contrast_limits(Volume(np.full(air.shape, np.nan), geometry)) == (0, 1)
    assert contrast_limits(Volume(np.full(air.shape, 7), geometry)) == (7, 8)


def test_contrast_of_a_lazy_image_reads_three_slices_only():
    import dask.array as da

    read = []

    def slab(block_info=None):
        read.append(block_info[None]["chunk-location"])
        return np.ones((1, 64, 64))

    array = da.map_blocks(slab, chunks=((1,) * 50, (64,), (64,)), dtype=float)
    geometry = Geometry.from_spacing((50, 64, 64), (1, 1, 1))
    contrast_limits(Volume(array, geometry))
    assert len(set(read)) == 3


def test_tags_differ_between_layers(marked_volume):
    one, two = as_layer(marked_volume), as_layer(marked_volume)
    assert tag_of(one).uuid != tag_of(two).uuid
    assert tag_of(Labels(np.zeros((2, 2), int))) is None
