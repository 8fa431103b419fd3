"""Interactions, crops and logits without a network: which crop is asked what."""

from __future__ import annotations

import numpy as np
import pytest

from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import BoxPrompt, PromptSet
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.models.engines.sam_med3d.chain import (
    LOW,
    Chain,
    advance,
    start_from_mask,
    with_mask,
)
from napari_openmedlab.models.engines.sam_med3d.crops import WorkingGrid
from napari_openmedlab.models.engines.sam_med3d.steps import (
    Step,
    new_steps,
    steps_of,
    working_spacing,
)

GEOMETRY = Geometry.from_spacing((300, 300, 300), (1.5, 1.5, 1.5))
GRID = WorkingGrid(GEOMETRY)


class Network:
    """Writes down what it is asked and answers with the newest point's place as logits."""

    def __init__(self):
        self.asked = []

    def __call__(self, crop, points, labels, mask):
        self.asked.append((crop.start, points.tolist(), labels.tolist(), mask.copy()))
        logits = mask - 1
        place = tuple((points[-1] // 4).astype(int))
        logits[place] = 5 if labels[-1] else -9
        return logits.astype(np.float32)


def click(x, y, z, positive=True):
    """A step at a working voxel (the world of this grid is x, y, z times 1.5)."""
    return Step(((1.5 * x, 1.5 * y, 1.5 * z),), (positive,))


def run(steps, network=None, **options):
    network = network or Network()
    chain = Chain()
    for step in steps:
        chain = advance(chain, step, GRID, network, **options)
    return chain, network


def test_the_first_click_sits_at_index_64_and_is_asked_with_a_zero_mask():
    chain, network = run([click(150, 140, 130)])
    start, points, labels, mask = network.asked[0]
    assert start == (86, 76, 66)
    assert (points, labels) == ([[64, 64, 64]], [1])
    assert not mask.any()
    assert len(chain.states) == 1


def test_only_the_newest_click_is_asked_with_the_last_logits():
    chain, network = run([click(150, 140, 130), click(160, 140, 130, positive=False)])
    _, points, labels, mask = network.asked[1]
    assert (points, labels) == ([[74, 64, 64]], [0])
    assert mask[16, 16, 16] == 5
    assert len(chain.states) == 1


def test_all_clicks_are_asked_if_wanted():
    _, network = run([click(150, 140, 130), click(160, 140, 130, positive=False)], history=True)
    assert network.asked[1][1:3] == ([[64, 64, 64], [74, 64, 64]], [1, 0])


def test_a_positive_click_outside_opens_a_crop_that_takes_over_what_it_shares():
    chain, network = run([click(150, 150, 150), click(205, 150, 150), click(240, 150, 150)])
    assert [asked[0] for asked in network.asked] == [(86, 86, 86), (86, 86, 86), (174, 86, 86)]
    seeded = network.asked[2][3]
    first = chain.states[0].logits
    np.testing.assert_array_equal(seeded[: LOW - 22], first[22:])
    assert not seeded[LOW - 22 :].any()


def test_a_click_that_several_crops_hold_goes_to_all_of_them():
    steps = [click(150, 150, 150), click(240, 150, 150), click(196, 150, 150, positive=False)]
    chain, network = run(steps)
    assert len(chain.states) == 2
    assert [asked[2] for asked in network.asked] == [[1], [1], [0], [0]]


def test_a_negative_click_far_away_changes_nothing_and_is_counted():
    chain, network = run([click(150, 150, 150), click(20, 20, 20, positive=False)])
    assert chain.missed == 1
    assert len(network.asked) == 1


def test_a_negative_click_near_an_open_face_still_goes_to_its_crop():
    _, network = run([click(150, 150, 150), click(211, 150, 150, positive=False)])
    assert network.asked[1][1] == [[125, 64, 64]]


def test_a_mask_starts_a_crop_around_it_as_certain_logits():
    mask = np.zeros(GEOMETRY.shape, bool)
    mask[100:140, 150:190, 60:100] = True
    chain = start_from_mask(GRID, MaskPatch.of(mask), None)
    (state,) = chain.states
    assert state.crop.start == (80 - 64, 170 - 64, 120 - 64)
    assert state.logits.max() == 8
    assert state.logits.min() == -8
    assert (state.logits > 0).sum() == 10**3


def test_a_mask_larger_than_a_crop_is_looked_at_where_the_click_is():
    mask = np.ones(GEOMETRY.shape, bool)
    near = start_from_mask(GRID, MaskPatch.of(mask), click(20, 30, 40))
    assert near.states[0].crop.start == (-44, -34, -24)
    middle = start_from_mask(GRID, MaskPatch.of(mask), None)
    assert middle.states[0].crop.start == (86, 86, 86)


def test_an_edited_mask_overrules_the_logits_only_where_they_disagree():
    chain, _ = run([click(150, 150, 150)])
    (state,) = chain.states
    own = state.crop.paste(np.kron(state.logits, np.ones((4, 4, 4), np.float32)))
    same = with_mask(chain, own, GRID, None)
    np.testing.assert_array_equal(same.states[0].logits, state.logits)
    mask = np.zeros(GEOMETRY.shape, bool)
    mask[150:170, 150:170, 150:170] = True
    edited = with_mask(chain, MaskPatch.of(mask), GRID, None).states[0]
    assert edited.crop == state.crop
    assert (edited.logits > 0).sum() == 5**3
    untouched = ~(edited.logits > 0) & ~(state.logits > 0)
    np.testing.assert_array_equal(edited.logits[untouched], state.logits[untouched])


def test_an_edited_mask_far_from_the_crops_is_looked_at_where_the_next_click_is():
    chain, _ = run([click(70, 70, 70)])
    mask = np.zeros(GEOMETRY.shape, bool)
    mask[220:240, 220:240, 220:240] = True
    edited = with_mask(chain, MaskPatch.of(mask), GRID, click(230, 230, 230))
    assert len(edited.states) == 2
    assert edited.states[1].crop.start == (166, 166, 166)
    assert edited.states[1].logits[15, 15, 15] == 8
    assert (edited.states[1].logits > 0).sum() == 4**3  # cells half filled stay undecided


def test_steps_box_first_then_strokes_then_clicks_and_a_positive_one_leads():
    prompts = (
        PromptSet(boxes=(BoxPrompt((0, 0, 0), (30, 60, 90)),))
        .with_click((1, 2, 3), False)
        .with_scribble([(float(n), 0, 0) for n in range(9)])
    )
    steps = steps_of(prompts)
    assert steps[0] == Step(((15, 30, 45),), (True,))
    assert [x for x, _, _ in steps[1].points] == [0, 2, 4, 6, 8]
    assert steps[2] == Step(((1, 2, 3),), (False,))
    later = PromptSet().with_click((1, 1, 1), False).with_click((2, 2, 2))
    assert [step.positive for step in steps_of(later)] == [(True,), (False,)]


def test_new_steps_are_those_added_and_none_if_some_went_away():
    one = PromptSet().with_click((1, 1, 1))
    two = one.with_click((2, 2, 2), False)
    assert new_steps(two, one) == (Step(((2, 2, 2),), (False,)),)
    assert new_steps(two, two) == ()
    assert new_steps(one, two) is None
    twice = two.with_click((2, 2, 2), False)
    assert len(new_steps(twice, two)) == 1


@pytest.mark.parametrize(
    ("unit", "spacing", "reach", "wanted"),
    [
        ("mm", 1.0, 100.0, 1.5),
        ("mm", 1.0, 168.0, 1.5),
        ("mm", 1.0, 336.0, 3.0),
        ("um", 2.0, 640.0, 10.0),
        ("um", 2.0, 0.0, 2.0),
        ("pixel", 1.0, 64.0, 1.0),
    ],
)
def test_the_working_voxel_follows_unit_and_extent(unit, spacing, reach, wanted):
    geometry = Geometry.from_spacing((999, 999, 999), (spacing,) * 3, unit=unit)
    box = BoxPrompt((10, 10, 10), (10 + reach, 10 + reach / 2, 10))
    prompts = PromptSet(boxes=(box,)) if reach else PromptSet().with_click((10, 10, 10))
    assert working_spacing(WorkingGrid(geometry), prompts) == pytest.approx(wanted)
