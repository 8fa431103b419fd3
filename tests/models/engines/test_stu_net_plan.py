"""What a model's classes are called, and how it wants its input."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from napari_openmedlab.errors import EngineError
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.engines.stu_net.plan import names_from_json, plan_of
from napari_openmedlab.models.organs import ABDOMEN_ATLAS, CT_ORG, TOTAL_SEGMENTATOR

RECORD = Record("mine", "stu-net-s", {"in_channels": 1, "out_channels": 4})


def published(checkpoint, classes):
    return replace(RECORD, checkpoint=checkpoint, variant={"out_channels": classes})


def test_the_published_weights_have_104_names_and_a_grid_of_1_5_mm():
    plan = plan_of(published("stu-net-b", 105))
    assert plan.names == TOTAL_SEGMENTATOR
    assert plan.spacing == (1.5, 1.5, 1.5)
    assert plan.patch == (128, 128, 128)
    assert (plan.form, plan.intensity, plan.notes) == ("v1", None, ())


@pytest.mark.parametrize(
    ("checkpoint", "names"), [("stu-net-s-abdomen", ABDOMEN_ATLAS), ("stu-net-b-ct-org", CT_ORG)]
)
def test_published_fine_tuned_weights_have_their_own_names(checkpoint, names):
    plan = plan_of(published(checkpoint, len(names)))
    assert plan.names == names
    assert any("1.5 mm is assumed" in note for note in plan.notes)


def test_unknown_classes_are_numbered_and_the_user_is_told():
    plan = plan_of(RECORD)
    assert plan.names == ("background", "class_1", "class_2", "class_3")
    assert any("JSON of names" in note for note in plan.notes)


FORMS = {
    "a list": ["spleen", "liver", "aorta"],
    "a list with the background": ["none", "spleen", "liver", "aorta"],
    "v2": {"background": 0, "liver": 2, "spleen": 1, "aorta": 3},
    "v1": {"0": "background", "1": "spleen", "2": "liver", "3": "aorta"},
    "dataset.json": {"name": "x", "labels": {"background": 0, "spleen": 1, "liver": 2, "aorta": 3}},
}


@pytest.mark.parametrize("form", sorted(FORMS))
def test_names_come_from_json_of_any_usual_form(form, tmp_path):
    wanted = ("background", "spleen", "liver", "aorta")
    text = json.dumps(FORMS[form])
    assert names_from_json(text, 4) == wanted
    file = tmp_path / "names.json"
    file.write_text(text)
    assert plan_of(RECORD, str(file)).names == plan_of(RECORD, text).names == wanted


WRONG = {
    "liver": "no JSON",
    "3": "neither a list",
    '["liver"]': "no name for",
    '{"liver": 1, "spleen": 2, "aorta": 3, "lung": 4}': "a name for 4",
    '["liver", "liver", "aorta"]': "two classes are called 'liver'",
    '{"lungs": [1, 2], "liver": 3}': "no single number",
}


@pytest.mark.parametrize("text", WRONG)
def test_names_that_do_not_fit_are_refused(text):
    with pytest.raises(EngineError, match=WRONG[text]):
        names_from_json(text, 4)


def test_a_missing_file_of_names_is_named(tmp_path):
    with pytest.raises(EngineError, match=r"none\.json can't be read"):
        plan_of(RECORD, str(tmp_path / "none.json"))


def test_several_images_at_once_are_refused():
    with pytest.raises(EngineError, match="4 images"):
        plan_of(replace(RECORD, variant={"in_channels": 4, "out_channels": 5}))


def test_the_patch_fits_the_strides():
    strides = [[1, 2, 2], *[[2, 2, 2]] * 5]
    assert plan_of(replace(RECORD, variant={"out_channels": 4, "strides": strides})).patch == (
        128,
        128,
        128,
    )
    odd = [[3, 3, 3], *[[2, 2, 2]] * 4]
    patch = plan_of(replace(RECORD, variant={"out_channels": 4, "strides": odd})).patch
    assert patch == (144, 144, 144)
