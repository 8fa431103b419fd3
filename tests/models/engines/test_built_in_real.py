"""Floors on a real scan: what the benchmark measures must not get worse unseen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.built_in import LARGE_MM3, SMALL_MM3, load_scan, objects, play

pytestmark = [pytest.mark.data, pytest.mark.slow]


@pytest.fixture(scope="module")
def labelled(real_data):
    folder = real_data / "ct_torso_3mm"
    if not folder.is_dir():
        pytest.skip("the labelled CT is not among the real scans here")
    volume, labels = load_scan(folder)
    return volume, [mask for _, mask in objects(volume, labels, LARGE_MM3)], labels


@pytest.fixture(scope="module")
def exact(labelled):
    volume, masks, _ = labelled
    return [play(volume, mask, "points", clicks=3) for mask in masks]


@pytest.fixture(scope="module")
def boxed(labelled):
    volume, masks, _ = labelled
    return [play(volume, mask, "box") for mask in masks]


def mean_dice(runs, click=0):
    return np.mean([run.dice[click] for run in runs])


def test_exact_points(exact):
    assert mean_dice(exact) > 0.785


def test_three_clicks_help_and_rarely_harm(exact):
    assert mean_dice(exact, 3) > 0.825
    change = np.diff([run.dice for run in exact], axis=1)
    assert (change < -0.005).mean() < 0.16
    assert change.min() > -0.1


def test_points_off_by_two_millimetres(labelled):
    volume, masks, _ = labelled
    rng = np.random.default_rng(0)
    runs = [play(volume, m, "points", noise_mm=2.0, rng=rng) for m in masks]
    assert mean_dice(runs) > 0.725


def test_box_and_single_click(labelled, boxed):
    volume, masks, _ = labelled
    assert mean_dice(boxed) > 0.63
    clicked = [play(volume, mask, "click", clicks=3) for mask in masks]
    assert mean_dice(clicked) > 0.52
    assert mean_dice(clicked, 3) > 0.74


def test_small_objects(labelled):
    volume, _, labels = labelled
    small = [mask for _, mask in objects(volume, labels, SMALL_MM3, LARGE_MM3)]
    assert mean_dice([play(volume, mask, "points") for mask in small]) > 0.79


def test_the_score_tells_good_from_poor(exact, boxed):
    score, dice = np.array([(run.score, run.dice[0]) for run in [*exact, *boxed]]).T
    assert spearmanr(score, dice).statistic > 0.45
