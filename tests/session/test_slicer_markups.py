import json

import numpy as np
import pytest

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.prompts import Click
from napari_openmedlab.session.prompt_files import read_prompts


@pytest.fixture
def markups(tmp_path, volume):
    """Read markups as 3D Slicer writes them."""

    def read(*items):
        path = tmp_path / "m.mrk.json"
        path.write_text(json.dumps({"@schema": "markups-schema-v1.0.3.json", "markups": items}))
        return {n.name: n.prompts for n in read_prompts(path, volume)}

    return read


def points(name, positions, system="LPS", **extra):
    controls = [{"label": f"{name}-{i + 1}", "position": list(p)} for i, p in enumerate(positions)]
    return {
        "type": "Fiducial",
        "name": name,
        "coordinateSystem": system,
        "controlPoints": controls,
        **extra,
    }


SIX = ((1, 5, 5), (9, 5, 5), (5, 1, 5), (5, 9, 5), (5, 5, 1), (5, 5, 9))


def test_six_points_are_extreme_points(markups, at):
    where = [at(*i) for i in SIX]
    assert markups(points("liver", where))["liver"].extreme_points == tuple(where)


@pytest.mark.parametrize("system", ["RAS", 0, "0"])
def test_ras_points_are_turned(markups, at, system):
    where = [at(*i) for i in SIX]
    ras = [(-x, -y, z) for x, y, z in where]
    assert markups(points("liver", ras, system))["liver"].extreme_points == tuple(where)


def test_other_numbers_of_points_are_clicks_and_negative_by_name(markups, at):
    found = markups(
        points("liver", [at(1, 1, 1)]),
        points("liver negative", [at(2, 2, 2)]),
        points("spleen_bg", [at(3, 3, 3)]),
        points("renegade", [at(4, 4, 4)]),
    )
    assert found["liver"].clicks == (Click(at(1, 1, 1)), Click(at(2, 2, 2), False))
    assert found["spleen"].clicks == (Click(at(3, 3, 3), False),)
    assert found["renegade"].clicks == (Click(at(4, 4, 4)),)


def test_a_points_description_makes_it_negative(markups, at):
    item = points("liver", [at(*i) for i in SIX])
    item["controlPoints"][2]["description"] = "background"
    prompts = markups(item)["liver"]
    assert prompts.extreme_points == ()
    assert [c.positive for c in prompts.clicks] == [True, True, False, True, True, True]


def test_points_not_placed_are_passed_over(markups, at):
    item = points("liver", [at(1, 1, 1), (0.0, 0.0, 0.0)])
    item["controlPoints"][1]["positionStatus"] = "undefined"
    assert len(markups(item)["liver"].clicks) == 1


def test_units_are_brought_to_the_images(markups, at):
    where = np.array(at(1, 1, 1)) * 1000.0
    (click,) = markups(points("a", [where], coordinateUnits=["um", "UCUM", "um"]))["a"].clicks
    np.testing.assert_allclose(click.point, at(1, 1, 1))


def test_a_straight_roi_is_its_box(markups, volume):
    """The ROI follows the image's own turned axes, so the box must be exact."""
    geometry = volume.geometry
    low, high = geometry.to_world([(2, 3, 4), (6, 10, 12)])
    axes = geometry.affine[:3, :3] / np.array(geometry.spacing)
    size = np.abs(np.linalg.solve(axes, high - low))
    item = {
        "type": "ROI",
        "name": "liver ROI",
        "coordinateSystem": "LPS",
        "center": ((low + high) / 2).tolist(),
        "size": size.tolist(),
        "orientation": axes.ravel().tolist(),
    }
    (box,) = markups(item)["liver"].boxes
    found = box.to_box(geometry)
    assert (found.start, found.stop) == ((2, 3, 4), (7, 11, 13))


def test_an_roi_in_ras_is_the_same_box(markups, volume, at):
    item = {"type": "ROI", "name": "a", "center": list(at(5, 8, 8)), "size": [6.0, 6.0, 8.0]}
    (lps,) = markups({**item, "coordinateSystem": "LPS"})["a"].boxes
    x, y, z = at(5, 8, 8)
    (ras,) = markups({**item, "coordinateSystem": "RAS", "center": [-x, -y, z]})["a"].boxes
    assert ras.to_box(volume.geometry) == lps.to_box(volume.geometry)


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ({"name": "x"}, r"'markups\[0\]\.type' must be a text"),
        ({"type": "Line", "name": "x"}, "no point list and no ROI"),
        ({"type": "Fiducial", "coordinateSystem": "IJK"}, "coordinateSystem' must be"),
        ({"type": "Fiducial", "coordinateUnits": "inch"}, "coordinateUnits' must be"),
        ({"type": "Fiducial"}, "controlPoints' must be a list"),
        ({"type": "Fiducial", "controlPoints": [{}]}, r"controlPoints\[0\]\.position' must be"),
        ({"type": "ROI", "size": [1, 1, 1]}, "center' must be a list of 3 finite numbers"),
        ({"type": "ROI", "center": [0, 0, 0], "size": [1, -1, 1]}, "size' must be three lengths"),
        (
            {"type": "ROI", "center": [0, 0, 0], "size": [1, 1, 1], "orientation": [1, 0]},
            "orientation' must be a list of 9",
        ),
        ({"type": "Fiducial", "controlPoints": [{"position": [0, 0, 0]}]}, "outside the volume"),
    ],
)
def test_wrong_markups_name_file_and_key(markups, item, sentence):
    with pytest.raises(PromptError, match=sentence):
        markups(item)


def test_two_lists_of_six_for_one_object_are_refused(markups, at):
    where = [at(*i) for i in SIX]
    with pytest.raises(PromptError, match="two lists of six"):
        markups(points("liver", where), points("liver", where))
