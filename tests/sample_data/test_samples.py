"""The samples are what they claim: anatomy on the right side, labels that fit, stable bytes."""

from __future__ import annotations

import numpy as np
import pytest

from napari_openmedlab import sample_data
from napari_openmedlab.errors import PromptError, ReadError
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.session.prompt_files import read_prompts

LIMIT_BYTES = 4_200_000


@pytest.fixture(scope="module", params=sample_data.names())
def sample(request):
    return request.param, *sample_data.load(request.param)


def test_every_named_label_occurs_and_no_other(sample):
    _, volume, labels, names = sample
    assert labels.shape == volume.geometry.shape
    assert set(np.unique(labels)) == {0, *names}


def test_voxels_are_anisotropic(sample):
    spacing = sample[1].geometry.spacing
    assert max(spacing) > 1.5 * min(spacing)


def test_samples_carry_unit_and_modality(sample):
    name, volume, _, _ = sample
    expected = {
        "ct_torso": ("mm", "CT", "IPL"),
        "mr_abdomen": ("mm", "MR", "IPL"),
        "light_sheet_axons": ("um", "LSFM", "zyx"),
    }[name]
    assert (volume.geometry.unit, volume.modality, volume.geometry.codes) == expected


@pytest.mark.parametrize("name", ["ct_torso", "mr_abdomen"])
def test_the_liver_is_right_the_spleen_left_and_the_spine_behind(name):
    volume, labels, names = sample_data.load(name)
    values = {text: value for value, text in names.items()}

    def centre(organ):
        index = np.argwhere(labels == values[organ]).mean(axis=0)
        return volume.geometry.to_world(index)

    # LPS: x grows to the patient's left, y to the back, z to the head.
    assert centre("liver")[0] < -30 < 30 < centre("spleen")[0]
    assert centre("kidney right")[0] < centre("vertebrae")[0] < centre("kidney left")[0]
    assert centre("vertebrae")[1] > centre("aorta")[1] > centre("liver")[1]
    assert centre("heart")[2] > centre("liver")[2] > centre("kidney right")[2]


def test_ct_organs_differ_in_hounsfield_units_as_organs_do():
    volume, labels, names = sample_data.load("ct_torso")
    medians = {text: np.median(volume.array[labels == value]) for value, text in names.items()}
    assert medians["lung left"] < -700
    assert -10 < medians["gallbladder"] < 30
    assert 90 < medians["liver"] < medians["spleen"] < medians["kidney left"] < 220
    assert medians["liver lesion"] < medians["liver"] - 30
    assert medians["vertebrae"] > 150


def test_the_bias_field_of_the_mr_makes_one_kidney_brighter_than_the_other():
    volume, labels, names = sample_data.load("mr_abdomen")
    values = {text: value for value, text in names.items()}
    left, right = (
        np.median(volume.array[labels == values[f"kidney {side}"]]) for side in ("left", "right")
    )
    assert left > 1.1 * right


def test_axons_are_brighter_than_what_surrounds_them_but_not_the_brightest():
    volume, labels, _ = sample_data.load("light_sheet_axons")
    image = np.asarray(volume.array)
    assert image[labels == 1].mean() > 1.5 * image[labels == 0].mean()
    assert image[labels == 0].max() > np.percentile(image[labels == 1], 99)


def test_the_stored_clicks_lie_near_the_true_extremes():
    volume, labels, names = sample_data.load("ct_torso")
    values = {text: value for value, text in names.items()}
    named = read_prompts(sample_data.prompts_path("ct_torso"), volume)
    assert len(named) == 5
    for each in named:
        exact = sample_data.extreme_points(labels, values[each.name], volume.geometry)
        low, high = (f(np.array(each.prompts.extreme_points), axis=0) for f in (np.min, np.max))
        true_low, true_high = (f(np.array(exact), axis=0) for f in (np.min, np.max))
        assert np.abs(low - true_low).max() < 2.5
        assert np.abs(high - true_high).max() < 2.5


def test_extreme_points_are_the_ends_in_display_order():
    grid = Geometry.from_spacing((6, 8, 9), (4.0, 2.0, 1.0))
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[1:5, 2:7, 3:6] = 3
    points = np.array(sample_data.extreme_points(labels, 3, grid))
    # (x, y, z): first and last along z, y, x.
    assert points[0, 2] == 4.0
    assert points[1, 2] == 16.0
    assert points[2, 1] == 4.0
    assert points[3, 1] == 12.0
    assert points[4, 0] == 3.0
    assert points[5, 0] == 5.0


def test_extreme_points_of_a_label_that_is_not_there_are_refused():
    grid = Geometry.from_spacing((3, 3, 3), (1.0, 1.0, 1.0))
    with pytest.raises(PromptError, match="value 7"):
        sample_data.extreme_points(np.zeros(grid.shape, dtype=np.uint8), 7, grid)


def test_an_unknown_sample_is_refused_with_those_there_are():
    with pytest.raises(ReadError, match=r"no sample 'brain'.*ct_torso"):
        sample_data.load("brain")
    with pytest.raises(ReadError, match="no prompts file"):
        sample_data.prompts_path("mr_abdomen")


def test_all_samples_together_stay_small():
    folder = sample_data.image_path("ct_torso").parent
    files = [p for p in folder.iterdir() if p.suffix in {".gz", ".tif", ".json"}]
    assert sum(p.stat().st_size for p in files) < LIMIT_BYTES


@pytest.mark.parametrize("name", sample_data.names())
def test_napari_gets_the_image_and_its_hidden_reference(name):
    (image, look, kind), (labels, labels_look, labels_kind) = getattr(sample_data, name)()
    assert (kind, labels_kind) == ("image", "labels")
    assert image.shape == labels.shape
    assert labels_look["visible"] is False
    for key in ("scale", "translate", "units", "axis_labels"):
        assert np.array_equal(look[key], labels_look[key]), key
    assert min(look["scale"]) > 0
