"""The built-in engine on made-up scans: what it finds, what a click may do, what it survives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

from napari_openmedlab.errors import Cancelled, PromptError
from napari_openmedlab.geometry.boxes import Box, box_of_mask
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import BoxPrompt, PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.contract import Monitor, Request
from napari_openmedlab.models.engines.built_in import BuiltIn
from napari_openmedlab.models.engines.built_in.corrections import settle
from napari_openmedlab.models.engines.built_in.region import block_mean, cut_region
from napari_openmedlab.models.engines.built_in.seeds import link_points
from napari_openmedlab.models.engines.built_in.walker import edge_weights, solve_walker

SHAPE = (24, 44, 48)
SPACING = (3.0, 1.5, 1.5)


def organs():
    """Two touching organs of like intensity (labels 1, 2) and a vessel through the first (3)."""
    z, y, x = np.indices(SHAPE)
    labels = np.zeros(SHAPE, dtype=int)
    labels[((z - 12) / 8) ** 2 + ((y - 20) / 13) ** 2 + ((x - 17) / 12) ** 2 <= 1] = 1
    labels[((z - 11) / 7) ** 2 + ((y - 26) / 10) ** 2 + ((x - 36) / 9) ** 2 <= 1] = 2
    labels[(y - 20) ** 2 + (x - 14 - z / 4) ** 2 <= 6] = 3
    return labels


def scan(noise=15.0, levels=(0.0, 110.0, 70.0, 200.0), seed=0):
    rng = np.random.default_rng(seed)
    clean = np.asarray(levels)[organs()]
    return (ndi.gaussian_filter(clean, 0.5) + rng.normal(0, noise, SHAPE)).astype(np.float32)


def volume_of(array, spacing=SPACING):
    return Volume(array, Geometry.from_spacing(array.shape, spacing))


def extremes(mask):
    index = np.argwhere(mask)
    found = []
    for axis in range(3):
        for end in (index[:, axis].min(), index[:, axis].max()):
            face = index[index[:, axis] == end]
            found.append(face[((face - face.mean(axis=0)) ** 2).sum(axis=1).argmin()])
    return np.array(found)


def points_of(volume, index):
    return PromptSet(tuple(dict.fromkeys(tuple(p) for p in volume.geometry.to_world(index))))


def run(volume, prompts, **fields):
    return BuiltIn().predict(volume, Request(prompts, **fields), Monitor())


def full(found):
    return found.patch.to_full(SHAPE)


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / (one.sum() + other.sum())


@pytest.mark.parametrize(("label", "floor"), [(1, 0.88), (2, 0.88), (3, 0.75)])
def test_six_points_find_each_of_three_touching_organs(label, floor):
    volume, truth = volume_of(scan()), organs() == label
    assert dice(full(run(volume, points_of(volume, extremes(truth)))), truth) > floor


@pytest.mark.parametrize("levels", [(0, -110, -70, -200), (300, 190, 230, 100), (0, 1, 0.6, 2)])
def test_any_contrast_is_served(levels):
    noise = 0.14 * abs(levels[1] - levels[0])
    volume, truth = volume_of(scan(noise, levels)), organs() == 1
    assert dice(full(run(volume, points_of(volume, extremes(truth)))), truth) > 0.85


@pytest.mark.parametrize("label", [1, 2])
def test_a_tight_box_alone_finds_the_organ(label):
    volume, truth = volume_of(scan()), organs() == label
    box = BoxPrompt.from_box(box_of_mask(truth), volume.geometry)
    assert dice(full(run(volume, PromptSet(boxes=(box,)))), truth) > 0.8


def test_one_click_finds_a_bright_organ():
    array = np.where(organs() == 2, 150.0, 0.0) + np.random.default_rng(1).normal(0, 15, SHAPE)
    volume = volume_of(array)
    prompts = PromptSet().with_click(volume.geometry.to_world((11, 26, 36)))
    assert dice(full(run(volume, prompts)), organs() == 2) > 0.8


def test_points_two_voxels_off_still_find_the_organ():
    volume, truth = volume_of(scan()), organs() == 1
    moved = extremes(truth) + np.random.default_rng(4).integers(-1, 2, (6, 3))
    assert dice(full(run(volume, points_of(volume, moved))), truth) > 0.75


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_fewer_than_six_points_are_used_as_they_are(count):
    volume, truth = volume_of(scan()), organs() == 1
    index = extremes(truth)[[2, 5, 0, 3, 1][:count]]
    mask = full(run(volume, points_of(volume, index)))
    assert mask[tuple(index.T)].all()


@pytest.mark.parametrize(
    "index",
    [[(9, 9, 9)] * 6, [(9, 9, x) for x in range(10, 22, 2)], [(0, 0, 0), (23, 43, 47)]],
    ids=["one place", "one line", "two corners"],
)
def test_degenerate_points_give_a_mask(index):
    volume = volume_of(scan())
    assert full(run(volume, points_of(volume, np.array(index)))).any()


@pytest.mark.parametrize("shape", [(1, 40, 40), (3, 3, 3), (1, 1, 1), (2, 30, 1)])
def test_small_scans_are_served(shape):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(np.uint8)
    volume = volume_of(array)
    corners = np.array([(0, 0, 0), np.array(shape) - 1])
    found = run(volume, points_of(volume, corners))
    assert Box.whole(shape).contains(found.box)


def test_a_click_changes_only_its_surroundings():
    volume, truth = volume_of(scan()), organs() == 1
    prompts = points_of(volume, extremes(truth))
    damaged = full(run(volume, prompts))
    damaged[8:14, 12:19, 20:27] = False
    more = prompts.with_click(volume.geometry.to_world((11, 15, 23)))
    fields = {"previous": MaskPatch.of(damaged), "previous_prompts": prompts}
    fixed = full(run(volume, more, **fields))
    assert not (damaged & ~fixed).any()
    assert dice(fixed, truth) > dice(damaged, truth) + 0.01
    changed = np.argwhere(fixed != damaged) - (11, 15, 23)
    assert np.linalg.norm(changed * SPACING, axis=1).max() < 40


def test_a_negative_click_takes_away_a_leak_and_adds_nothing():
    volume, truth = volume_of(scan()), organs() == 1
    prompts = points_of(volume, extremes(organs() > 0))
    leaked = truth | (organs() == 2)
    more = prompts.with_click(volume.geometry.to_world((11, 27, 38)), positive=False)
    fields = {"previous": MaskPatch.of(leaked), "previous_prompts": prompts}
    fixed = full(run(volume, more, **fields))
    assert not (fixed & ~leaked).any()
    assert not fixed[11, 27, 38]
    assert dice(fixed, truth) > dice(leaked, truth)


def test_edits_by_hand_far_from_a_click_survive_it():
    volume, truth = volume_of(scan()), organs() == 1
    prompts = points_of(volume, extremes(truth))
    edited = full(run(volume, prompts))
    edited[0:2, 0:3, 0:3] = True
    more = prompts.with_click(volume.geometry.to_world((12, 20, 28)))
    found = run(volume, more, previous=MaskPatch.of(edited), previous_prompts=prompts)
    assert full(found)[0:2, 0:3, 0:3].all()


def test_a_scribble_is_obeyed():
    volume, truth = volume_of(scan()), organs() == 1
    prompts = points_of(volume, extremes(truth))
    first = run(volume, prompts)
    line = np.array([(12, y, 17) for y in range(15, 26)])
    more = prompts.with_scribble(volume.geometry.to_world(line), positive=False)
    found = run(volume, more, previous=first.patch, previous_prompts=prompts)
    assert not full(found)[tuple(line.T)].any()


def test_obstacles_stay_free():
    volume, labels = volume_of(scan()), organs()
    found = run(
        volume,
        points_of(volume, extremes(labels == 1)),
        obstacles=MaskPatch.of(labels == 3),
    )
    assert not (full(found) & (labels == 3)).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flipped_scan_gives_the_flipped_mask(axis):
    array, truth = scan(), organs() == 1
    index = extremes(truth)
    turned = index.copy()
    turned[:, axis] = SHAPE[axis] - 1 - index[:, axis]
    plain, flipped = volume_of(array), volume_of(np.flip(array, axis).copy())
    one = full(run(plain, points_of(plain, index)))
    other = full(run(flipped, points_of(flipped, turned)))
    assert dice(np.flip(other, axis), one) > 0.97


def test_turned_axes_give_the_turned_mask():
    array, truth = scan(), organs() == 1
    index = extremes(truth)
    plain = volume_of(array)
    turned = volume_of(array.transpose(2, 0, 1).copy(), (SPACING[2], SPACING[0], SPACING[1]))
    one = full(run(plain, points_of(plain, index)))
    found = run(turned, points_of(turned, index[:, [2, 0, 1]]))
    other = found.patch.to_full(turned.array.shape).transpose(1, 2, 0)
    assert dice(other, one) > 0.97


def test_infinite_voxels_and_a_read_only_array_are_served():
    array, truth = scan(), organs() == 1
    array[np.random.default_rng(2).random(SHAPE) < 0.01] = np.inf
    array.setflags(write=False)
    volume = volume_of(array)
    assert dice(full(run(volume, points_of(volume, extremes(truth)))), truth) > 0.7


def test_a_clear_organ_scores_higher_than_noise():
    truth = organs() == 1
    clear, noise = volume_of(scan()), volume_of(scan(levels=(0, 0, 0, 0)))
    good = run(clear, points_of(clear, extremes(truth)))
    bad = run(noise, points_of(noise, extremes(truth)))
    assert good.score > bad.score + 0.1
    assert any("Low confidence" in note for note in bad.notes)


def test_a_cancel_raises():
    volume = volume_of(scan())
    monitor = Monitor()
    monitor.cancel()
    with pytest.raises(Cancelled):
        BuiltIn().predict(volume, Request(points_of(volume, extremes(organs() == 1))), monitor)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (PromptSet(), "no prompt yet"),
        (PromptSet().with_click((5, 5, 5), positive=False), "only negative"),
        (PromptSet().with_click((5, 5, 5000)), "outside the volume"),
        (PromptSet().with_scribble([(5, 5, 5000)]), "inside the volume"),
    ],
)
def test_prompts_that_say_nothing_are_refused(prompts, message):
    with pytest.raises(PromptError, match=message):
        run(volume_of(scan()), prompts)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 18), st.integers(1, 18)),
    seed=st.integers(0, 2**16),
    clicks=st.lists(st.booleans(), min_size=0, max_size=3),
    spread=st.sampled_from([0.0, 1.0, 1e6]),
)
def test_any_prompts_on_any_image_give_an_obedient_mask(shape, seed, clicks, spread):
    rng = np.random.default_rng(seed)
    volume = volume_of(rng.normal(0, spread, shape), (5.0, 0.7, 0.7))
    places = rng.integers(0, shape, (6 + len(clicks), 3))
    prompts = points_of(volume, places[:6])
    first = run(volume, prompts)
    assert Box.whole(shape).contains(first.box)
    more = prompts
    for place, positive in zip(places[6:], clicks, strict=True):
        more = more.with_click(volume.geometry.to_world(place), positive)
    found = run(volume, more, previous=first.patch, previous_prompts=prompts)
    assert 0.0 <= found.score <= 1.0
    mask = found.patch.to_full(shape)
    positive_at = {tuple(p) for p, s in zip(places[6:], clicks, strict=True) if s}
    for place, positive in zip(places[6:], clicks, strict=True):
        assert mask[tuple(place)] == (positive or tuple(place) in positive_at)


def test_a_change_deeper_than_at_its_click_is_cut_off():
    before = np.zeros((1, 40, 40), dtype=bool)
    after = np.zeros_like(before)
    after[:, 18:23, 2:12] = True  # where the user clicked, five wide
    after[:, 5:36, 12:38] = True  # a big part the change ran into
    marked = np.zeros_like(before)
    marked[0, 20, 6] = True
    allowed = settle(before, after, marked, True, np.ones(3))
    assert allowed[0, 20, 6]
    assert not allowed[0, 20, 25]
    assert np.count_nonzero(allowed) < 80


def test_links_follow_the_cheap_valley():
    cost = np.full((1, 9, 9), 50.0)
    cost[0, 4, :] = 1.0
    path = link_points(cost, np.array([(0, 4, 0), (0, 4, 8), (0, 4, 4)]), np.ones(3))
    assert {tuple(p) for p in path} == {(0, 4, x) for x in range(9)}


def test_the_walker_solves_its_linear_system():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 4, 5)).astype(np.float32)
    weights = edge_weights(values, np.array([2.0, 1.0, 1.0]), 1.0, 1e-3)
    hold = rng.uniform(0.1, 1, values.shape).astype(np.float32)
    prior = rng.uniform(0, 1, values.shape).astype(np.float32)
    number = np.arange(values.size).reshape(values.shape)
    matrix = np.diag(hold.ravel().astype(float))
    for axis, weight in enumerate(weights):
        first = number.take(range(number.shape[axis] - 1), axis).ravel()
        second = number.take(range(1, number.shape[axis]), axis).ravel()
        for a, b, w in zip(first, second, weight.ravel(), strict=True):
            matrix[a, a] += w
            matrix[b, b] += w
            matrix[a, b] -= w
            matrix[b, a] -= w
    expected = np.linalg.solve(matrix, (hold * prior).ravel())
    found = solve_walker(weights, hold, prior, tolerance=1e-6)
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-4)


def test_blocks_are_averaged_to_the_last_incomplete_one():
    values = np.arange(7, dtype=np.float32).reshape(1, 1, 7)
    np.testing.assert_allclose(block_mean(values, (1, 1, 3)).ravel(), [1, 4, 6])


def test_a_large_region_is_coarsened_towards_cubes():
    region = cut_region(
        np.zeros((40, 200, 200)), (3.0, 1.0, 1.0), Box.whole((40, 200, 200)), 90_000
    )
    assert region.image.size <= 90_000
    assert max(region.spacing) / min(region.spacing) <= 2
    assert region.enlarge(region.image).shape == (40, 200, 200)
