"""The 104 structures: names, groups, sides, colours."""

from __future__ import annotations

import itertools

import pytest

from napari_openmedlab.errors import EngineError
from napari_openmedlab.models import organs
from napari_openmedlab.models.organs import TOTAL_SEGMENTATOR, choose, colour_of, partner, side_of


def test_names_and_their_order_are_those_of_the_published_weights(full_golden):
    from golden_networks import read_json

    stored = read_json(full_golden / "stu_net" / "labels_104.json")
    assert [row["name"] for row in stored] == list(TOTAL_SEGMENTATOR)


def test_there_are_104_and_rib_10_comes_right_after_rib_1():
    assert len(TOTAL_SEGMENTATOR) == len(set(TOTAL_SEGMENTATOR)) == 105
    assert TOTAL_SEGMENTATOR[49:53] == ("rib_left_1", "rib_left_10", "rib_left_11", "rib_left_12")
    assert TOTAL_SEGMENTATOR[40] == "liver"
    assert TOTAL_SEGMENTATOR[104] == "vertebrae_T9"


def test_every_structure_stands_in_one_group():
    names = [name for group in organs.GROUPS for name in group.names()]
    assert sorted(names) == sorted(TOTAL_SEGMENTATOR[1:])
    ids = [group.id for group in organs.groups()]
    assert len(ids) == len(set(ids))
    assert organs.group_of("vertebrae_L3") == "lumbar"
    assert organs.group_of("class_7") == ""


def test_names_groups_and_patterns_choose_structures():
    assert choose("", TOTAL_SEGMENTATOR) == TOTAL_SEGMENTATOR[1:]
    assert choose("spleen, Liver", TOTAL_SEGMENTATOR) == ("liver", "spleen")
    assert choose("kidney left", TOTAL_SEGMENTATOR) == ("kidney_left",)
    assert choose("vertebrae_l*", TOTAL_SEGMENTATOR) == choose("lumbar", TOTAL_SEGMENTATOR)
    assert len(choose("spine", TOTAL_SEGMENTATOR)) == 25
    assert len(choose("ribs", TOTAL_SEGMENTATOR)) == 24
    assert choose("abdomen", organs.ABDOMEN_ATLAS) == (
        "gallbladder", "kidney_left", "liver", "pancreas", "kidney_right", "spleen", "stomach",
    )  # fmt: skip


def test_a_word_that_is_none_is_answered_with_those_near_it():
    with pytest.raises(EngineError, match=r"'kidny'; did you mean .*kidney_left"):
        choose("liver, kidny", TOTAL_SEGMENTATOR)
    with pytest.raises(EngineError, match="'ribs'"):
        choose("ribs", organs.ABDOMEN_ATLAS)  # the model has no ribs


def test_left_and_right_belong_together():
    for name in TOTAL_SEGMENTATOR:
        other = partner(name, TOTAL_SEGMENTATOR)
        if other:
            assert partner(other, TOTAL_SEGMENTATOR) == name
            assert {side_of(name), side_of(other)} == {"left", "right"}
    assert partner("rib_left_7", TOTAL_SEGMENTATOR) == "rib_right_7"
    assert side_of("lung_middle_lobe_right") == "right"
    assert partner("lung_middle_lobe_right", TOTAL_SEGMENTATOR) == ""
    assert side_of("heart_atrium_right") == ""  # a chamber, not a side of the body
    assert sum(bool(partner(n, TOTAL_SEGMENTATOR)) for n in TOTAL_SEGMENTATOR) == 56


def test_colours_are_stable_and_tell_structures_apart():
    colours = {name: colour_of(name) for name in TOTAL_SEGMENTATOR[1:]}
    assert colours == {name: colour_of(name) for name in TOTAL_SEGMENTATOR[1:]}
    assert all(0 <= part <= 1 for colour in colours.values() for part in colour)
    for group in organs.groups():
        for one, two in itertools.combinations(group.members, 2):
            apart = sum(abs(a - b) for a, b in zip(colours[one], colours[two], strict=True))
            assert apart > 0.04, (one, two)
    assert colour_of("tumour") == colour_of("tumour") != colour_of("cyst")


def test_titles_are_for_people():
    assert organs.title_of("kidney_left") == "kidney, left"
    assert organs.title_of("rib_right_4") == "rib 4, right"
    assert organs.title_of("heart_atrium_left") == "heart atrium left"
    assert organs.title_of("portal_vein_and_splenic_vein") == "portal vein and splenic vein"
