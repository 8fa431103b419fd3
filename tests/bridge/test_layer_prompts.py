"""Points and rectangles of the user's own layers become prompts of many objects."""

from __future__ import annotations

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Points, Shapes

from napari_openmedlab.bridge.layer_prompts import prompts_of_layer
from napari_openmedlab.bridge.layers import volume_to_layer_data
from napari_openmedlab.errors import PromptError


@pytest.fixture
def viewer(marked_volume):
    made = ViewerModel()
    data, keywords, _ = volume_to_layer_data(marked_volume)
    made.add_layer(Image(data, **keywords))
    return made


def transforms(viewer):
    image = viewer.layers[0]
    return {
        "scale": image.scale,
        "translate": image.translate,
        "units": image.units,
        "axis_labels": image.axis_labels,
    }


def taken(viewer, layer, volume):
    viewer.add_layer(layer)
    return prompts_of_layer(viewer, layer, viewer.layers[0], volume.geometry)


def test_each_point_is_an_object_with_a_click_at_its_voxel(viewer, marked_volume):
    index = [[4, 17, 23], [11, 6, 23]]
    named = taken(viewer, Points(index, **transforms(viewer)), marked_volume)
    assert [each.name for each in named] == ["Point 1", "Point 2"]
    found = [marked_volume.geometry.to_index(each.prompts.clicks[0].point) for each in named]
    np.testing.assert_allclose(found, index, atol=1e-6)


def test_points_of_one_name_are_clicks_of_one_object(viewer, marked_volume):
    layer = Points(
        [[4, 17, 23], [11, 6, 23], [4, 18, 22], [12, 16, 38]],
        features={"name": ["top", "front", "top", None]},
        **transforms(viewer),
    )
    named = taken(viewer, layer, marked_volume)
    assert [(each.name, len(each.prompts.clicks)) for each in named] == [
        ("top", 2),
        ("front", 1),
        ("Point 4", 1),
    ]


def test_a_layer_of_another_scale_and_unit_lands_on_the_same_voxel(viewer, marked_volume):
    image = viewer.layers[0]
    world = np.array(image.data_to_world([4, 17, 23]))
    named = taken(
        viewer,
        Points(
            [world * 1000 / 7], scale=[7, 7, 7], units=("um",) * 3, axis_labels=image.axis_labels
        ),
        marked_volume,
    )
    index = marked_volume.geometry.to_index(named[0].prompts.clicks[0].point)
    np.testing.assert_allclose(index, [4, 17, 23], atol=1e-6)


def test_rectangles_of_one_name_span_a_box(viewer, marked_volume):
    shapes = [
        [[3, 13, 19], [3, 13, 26], [3, 20, 26], [3, 20, 19]],
        [[5, 13, 19], [5, 13, 26], [5, 20, 26], [5, 20, 19]],
        [[11, 4, 19], [11, 4, 26], [11, 7, 26], [11, 7, 19]],
    ]
    layer = Shapes(
        shapes,
        shape_type="rectangle",
        features={"name": ["top", "top", "front"]},
        **transforms(viewer),
    )
    named = taken(viewer, layer, marked_volume)
    boxes = {e.name: e.prompts.boxes[0].to_box(marked_volume.geometry) for e in named}
    assert (boxes["top"].start, boxes["top"].stop) == ((3, 13, 19), (6, 21, 27))
    assert (boxes["front"].start, boxes["front"].stop) == ((11, 4, 19), (12, 8, 27))


def test_a_2d_layer_is_taken_on_the_slice_shown(viewer, marked_volume):
    image = viewer.layers[0]
    viewer.dims.set_point(0, image.data_to_world([4, 0, 0])[0])
    flat = {key: value[1:] for key, value in transforms(viewer).items()}
    named = taken(viewer, Points([[17, 23]], **flat), marked_volume)
    index = marked_volume.geometry.to_index(named[0].prompts.clicks[0].point)
    np.testing.assert_allclose(index, [4, 17, 23], atol=1e-6)


def test_what_is_wrong_is_said_with_layer_and_object(viewer, marked_volume):
    with pytest.raises(PromptError, match="'Marks' is empty"):
        taken(viewer, Points(name="Marks", ndim=3), marked_volume)
    with pytest.raises(PromptError, match="neither points nor shapes"):
        taken(viewer, Image(np.zeros((3, 3, 3)), name="picture"), marked_volume)
    layer = Points([[400, 17, 23]], name="Far", **transforms(viewer))
    with pytest.raises(PromptError, match=r"layer 'Far', Point 1: .*outside the volume"):
        taken(viewer, layer, marked_volume)
