"""From slice to slice on phantoms: followed as long as the object goes on, and no further."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage as ndi

from napari_openmedlab.models.engines.sam_slices.boxes import grown
from napari_openmedlab.models.engines.sam_slices.planes import Outline, Plane
from napari_openmedlab.models.engines.sam_slices.propagation import Guess, Rules, fill, walk

SHAPE = (60, 90, 100)


class Oracle:
    """Answers with the truth in the box; where there is none, with something all the same.

    That is what these networks do: they have no answer for "nothing here".
    """

    def __init__(self, truth, image=None, score_beyond=0.3):
        self.truth, self.image, self.score_beyond = truth, image, score_beyond
        self.looked = []

    def inside(self, plane):
        return 0 <= plane.number < self.truth.shape[plane.axis]

    def coming(self, plane, step):
        assert self.inside(plane)

    def reads(self, plane, outline):
        return Guess(outline, 1.0, self.tone(plane, outline))

    def tone(self, plane, outline):
        if self.image is None or not outline.area:
            return 0.0, np.inf
        values = self.image.take(plane.number, plane.axis)[outline.on(self._shape(plane))]
        middle = np.median(values)
        return float(middle), max(1e-6, 1.4826 * float(np.median(np.abs(values - middle))))

    def look(self, shapes):
        return {plane: self.answer(plane, outline) for plane, outline in shapes.items()}

    def answer(self, plane, outline):
        self.looked.append(plane)
        shape = self._shape(plane)
        r0, c0, r1, c1 = (int(v) for v in grown(outline.rectangle, (3, 3), shape))
        true = self.truth.take(plane.number, plane.axis)
        found = np.zeros(shape, dtype=bool)
        found[r0:r1, c0:c1] = true[r0:r1, c0:c1]
        score = 0.9
        if not found.any():
            found, score = outline.on(shape), self.score_beyond
        now = Outline.of(found)
        return Guess(now, score, self.tone(plane, now))

    def _shape(self, plane):
        return tuple(n for a, n in enumerate(self.truth.shape) if a != plane.axis)


def ellipsoid(centre=(30, 45, 50), radius=(20, 25, 30)):
    grid = np.indices(SHAPE)
    parts = (((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius, strict=True))
    return sum(parts) <= 1


def snake():
    """A tube that wanders 40 pixels on its way through the slices."""
    truth = np.zeros(SHAPE, dtype=bool)
    for z in range(5, 55):
        rows, columns = np.indices(SHAPE[1:])
        middle = 45 + 20 * np.sin(z / 12), 50 + 20 * np.cos(z / 9)
        truth[z] = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 <= 49
    return truth


def follow(oracle, axis, start, rules=None, may=lambda plane: True):
    outline = Outline.of(oracle.truth.take(start, axis))
    found = {Plane(axis, start): outline}
    endings = []
    for step in (1, -1):
        spread = walk(Plane(axis, start), outline, step, oracle, rules or Rules(), may)
        found |= spread.outlines
        endings += spread.endings
    return found, endings


def dice(found, truth):
    mask = np.zeros(truth.shape, dtype=bool)
    for plane, outline in found.items():
        where = [slice(None)] * 3
        where[plane.axis] = plane.number
        shape = tuple(n for a, n in enumerate(truth.shape) if a != plane.axis)
        mask[tuple(where)] = outline.on(shape)
    return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("make", [ellipsoid, snake])
def test_an_object_is_followed_to_its_ends(make, axis):
    truth = make()
    start = int(truth.sum(axis=tuple(a for a in range(3) if a != axis)).argmax())
    if make is snake and axis:
        return  # cut lengthwise it comes in pieces that no box of the neighbour holds
    found, endings = follow(Oracle(truth), axis, start)
    assert dice(found, truth) > 0.97
    true = np.flatnonzero(truth.any(axis=tuple(a for a in range(3) if a != axis)))
    numbers = sorted(plane.number for plane in found)
    assert abs(numbers[0] - true[0]) <= 2
    assert abs(numbers[-1] - true[-1]) <= 2
    assert all(ending.why for ending in endings)


def test_where_only_the_brightness_tells_the_end_it_is_found():
    truth = np.zeros(SHAPE, dtype=bool)
    truth[15:46] = ellipsoid()[30]
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    oracle = Oracle(truth, truth * 80 + noise, score_beyond=0.9)
    found, endings = follow(oracle, 0, 30)
    assert dice(found, truth) == 1.0
    assert {ending.why for ending in endings} == {"the brightness inside the outline changed"}
    blind, endings = follow(oracle, 0, 30, Rules(tone=0.0))
    assert len(blind) == SHAPE[0]
    assert [ending.why for ending in endings] == ["", ""]


def test_noise_alone_does_not_end_it():
    truth = ellipsoid()
    for seed in range(5):
        noise = np.random.default_rng(seed).normal(0, 60, SHAPE)
        found, _ = follow(Oracle(truth, truth * 80 + noise), 0, 30)
        assert dice(found, truth) > 0.97


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((np.zeros((40, 40), bool), 0.9), "nothing"),
        ((np.pad(np.ones((2, 3), bool), 15), 0.9), "shrank to 6 %"),
        ((np.ones((40, 40), bool), 0.9), "grew to 16.0 times"),
        ((np.pad(np.ones((10, 10), bool), ((0, 30), (30, 0))), 0.9), "left"),
        ((np.pad(np.ones((10, 10), bool), 15), 0.42), "0.42"),
        ((np.pad(np.ones((11, 9), bool), 15), 0.9), ""),
    ],
)
def test_each_rule_names_itself(answer, why):
    before = Guess(Outline.of(np.pad(np.ones((10, 10), bool), 15)), 0.9, (10.0, 3.0))
    now = Guess(Outline.of(answer[0]), answer[1], (12.0, 3.0))
    said = Rules().broken(before, now)
    assert why in said
    assert bool(said) == bool(why)


def test_slices_that_may_not_be_entered_end_it():
    oracle = Oracle(ellipsoid())
    found, endings = follow(oracle, 0, 30, may=lambda plane: abs(plane.number - 30) <= 4)
    assert sorted(plane.number for plane in found) == list(range(26, 35))
    assert [ending.why for ending in endings] == ["", ""]


def test_the_end_of_the_scan_ends_it():
    truth = np.zeros(SHAPE, dtype=bool)
    truth[:, 30:50, 30:50] = True
    found, endings = follow(Oracle(truth), 0, 10)
    assert len(found) == SHAPE[0]
    assert sorted(ending.plane.number for ending in endings) == [-1, SHAPE[0]]


def test_between_two_slices_the_network_follows_the_interpolated_shape():
    truth = snake()
    ends = [(Plane(0, n), Outline.of(truth[n])) for n in (14, 8)]
    found = fill(ends[0], ends[1], Oracle(truth), Rules(), SHAPE[1:])
    assert sorted(plane.number for plane in found.outlines) == [9, 10, 11, 12, 13]
    assert not found.interpolated
    assert not found.endings
    assert dice(found.outlines, truth * (np.abs(np.arange(60) - 11) < 3)[:, None, None]) > 0.95


def test_between_two_slices_a_poor_answer_gives_way_to_the_shape():
    truth = ellipsoid()
    gap = truth.copy()
    gap[25:28] = False  # where the network sees nothing
    ends = [(Plane(0, n), Outline.of(truth[n])) for n in (20, 35)]
    found = fill(ends[0], ends[1], Oracle(gap), Rules(), SHAPE[1:])
    assert [plane.number for plane in found.interpolated] == [25, 26, 27]
    part = truth.copy()
    part[:21], part[35:] = False, False
    assert dice(found.outlines, part) > 0.97


def test_neighbours_and_empty_gaps_need_nothing_between():
    truth = ellipsoid()
    oracle = Oracle(truth)
    ends = [(Plane(0, n), Outline.of(truth[n])) for n in (20, 21)]
    assert not fill(ends[0], ends[1], oracle, Rules(), SHAPE[1:]).outlines
    assert not oracle.looked


@pytest.mark.slow
def test_real_anatomy_is_followed(real_data):
    nibabel = pytest.importorskip("nibabel")
    folder = real_data / "ct_torso_3mm"
    image = np.asarray(nibabel.load(folder / "ct.nii.gz").dataobj).astype(float)
    labels = np.asarray(nibabel.load(folder / "labels.nii.gz").dataobj).astype(int)
    scores = {True: [], False: []}
    for value in np.unique(labels)[1:]:
        pieces, _ = ndi.label(labels == value)
        truth = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
        areas = truth.sum(axis=(0, 1))
        if np.count_nonzero(truth) < 200 or np.count_nonzero(areas) < 4:
            continue
        for with_tone in (True, False):
            oracle = Oracle(truth, image if with_tone else None, score_beyond=0.8)
            found, _ = follow(oracle, 2, int(areas.argmax()))
            scores[with_tone].append(dice(found, truth))
    assert np.mean(scores[True]) > 0.96
    assert np.mean(scores[True]) > np.mean(scores[False]) + 0.02
