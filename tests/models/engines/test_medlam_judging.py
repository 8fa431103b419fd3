"""How MedLAM's confidence follows from its checks: constructed numbers, no network."""

import numpy as np
import pytest

from napari_openmedlab.models.engines.medlam.judging import (
    LEAST_CONFIDENCE,
    LIMITS,
    checks_of,
    judge,
    walls_of,
)
from napari_openmedlab.models.engines.medlam.jumps import Jump, jump
from napari_openmedlab.models.engines.medlam.search import Located
from napari_openmedlab.models.engines.medlam.similarity import Peak

SHAPE = (60, 70, 80)
SIZE_MM = np.array([[60.0, 45.0, 30.0]])
GOOD = {
    "inside": 1.0,
    "beyond_mm": 0.0,
    "outside_mm": 0.0,
    "air": 0.0,
    "starts_mm": 8.0,
    "templates_mm": 6.0,
    "stages_mm": 12.0,
    "shifts_mm": 5.0,
    "edge": 0.0,
    "similarity": 0.8,
    "margin": 0.1,
    "crossed": 0.0,
    "size_ratio": 1.1,
}
BAD = {
    "inside": 0.3,
    "beyond_mm": 140.0,
    "outside_mm": 50.0,
    "air": 0.9,
    "starts_mm": 110.0,
    "templates_mm": 110.0,
    "stages_mm": 105.0,
    "shifts_mm": 70.0,
    "edge": 0.9,
    "similarity": 0.15,
    "margin": 0.0,
    "crossed": 2.0,
    "size_ratio": 3.9,
}


def six(middle=(30, 35, 40), size=(20, 15, 10)):
    """Extreme points of a box in working voxels."""
    points = np.tile(np.array(middle, float), (6, 1))
    for axis in range(3):
        points[axis, axis] -= size[axis] / 2
        points[axis + 3, axis] += size[axis] / 2
    return points


def located(coarse=None, found=None, starts_mm=5.0, peaks=None, templates_mm=None):
    coarse = six() if coarse is None else coarse
    found = np.rint(coarse if found is None else found).astype(int)
    voxel = np.rint(coarse).astype(int) + 32
    clamped = np.clip(voxel, 32, np.array(SHAPE) + 31)
    place = (3.0 * (coarse + 32)).astype(np.float32)
    made = Jump(place, place, voxel, clamped, starts_mm, templates_mm)
    if peaks is None:
        shifts = found - (clamped - 32)
        peaks = tuple(Peak(tuple(map(int, s)), 0.8, 0.1, False) for s in shifts)
    return Located(made, peaks, found, 0.0)


def test_all_good_is_certain_and_says_nothing():
    verdict = judge(GOOD)
    assert verdict.confidence == 1.0
    assert verdict.found
    assert verdict.notes == ()


@pytest.mark.parametrize("check", sorted(LIMITS))
def test_each_check_alone_costs_confidence_and_says_why(check):
    verdict = judge({**GOOD, check: BAD[check]})
    assert verdict.confidence <= 0.5
    assert len(verdict.notes) == (1 if LIMITS[check].least < 0.5 else 0)
    assert judge({**GOOD, check: np.nan}).confidence == LIMITS[check].least


@pytest.mark.parametrize("check", sorted(LIMITS))
def test_worse_is_never_more_certain(check):
    limit = LIMITS[check]
    values = np.linspace(limit.good, limit.bad, 9)
    factors = [limit.factor(float(value)) for value in values]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == 1.0
    assert factors[-1] == pytest.approx(limit.least)


@pytest.mark.parametrize("check", ["inside", "air", "similarity", "crossed", "size_ratio"])
def test_some_checks_alone_mean_not_found(check):
    verdict = judge({**GOOD, check: LIMITS[check].bad})
    assert not verdict.found
    assert verdict.confidence == 0.0


def test_many_doubts_together_mean_not_found():
    doubts = ("beyond_mm", "outside_mm", "stages_mm", "edge")
    verdict = judge({**GOOD, **{name: BAD[name] for name in doubts}})
    assert not verdict.found
    assert len(verdict.notes) == 4
    assert 0 < LEAST_CONFIDENCE < 0.2


def test_a_structure_in_the_scan_has_good_checks():
    checks = checks_of(located(), SIZE_MM, SHAPE)
    assert checks["inside"] == 1.0
    assert checks["beyond_mm"] == checks["outside_mm"] == checks["stages_mm"] == 0.0
    assert checks["crossed"] == 0.0
    assert checks["size_ratio"] == 1.0
    assert "templates_mm" not in checks
    assert judge(checks).confidence == 1.0


def test_the_share_inside_follows_the_coarse_middle_and_the_templates_size():
    shares = []
    for z in (30, 50, 59.5, 64.5, 69.5, 200):
        checks = checks_of(located(six((z, 35, 40))), SIZE_MM, SHAPE)
        shares.append(round(checks["inside"], 6))
    assert shares == [1.0, 0.975, 0.5, 0.25, 0.0, 0.0]
    assert not judge(checks_of(located(six((64.5, 35, 40))), SIZE_MM, SHAPE)).found


def test_a_jump_out_of_the_scan_is_measured_before_it_is_clamped():
    checks = checks_of(located(six((30, 35, 120)), found=six((30, 35, 70))), SIZE_MM, SHAPE)
    assert checks["beyond_mm"] == pytest.approx(3 * (125 - 79))
    assert checks["inside"] == 0.0
    assert not judge(checks).found


def test_refined_walls_beyond_the_scan_are_measured():
    checks = checks_of(located(six((50, 35, 40)), found=six((60, 35, 40))), SIZE_MM, SHAPE)
    assert checks["outside_mm"] == pytest.approx(3 * (70 - 59))


def test_crossed_walls_are_counted_and_sizes_compared():
    turned = six()[[3, 1, 2, 0, 4, 5]]
    checks = checks_of(located(found=turned), SIZE_MM, SHAPE)
    assert checks["crossed"] == 1.0
    wide = checks_of(located(found=six(size=(20, 60, 10))), SIZE_MM, SHAPE)
    assert wide["size_ratio"] == pytest.approx((180 - 6) / 45)
    small = checks_of(located(found=six(size=(2, 15, 10))), SIZE_MM, SHAPE)
    assert small["size_ratio"] == pytest.approx((60 - 6) / 6)
    near = checks_of(located(found=six(size=(22, 15, 10))), SIZE_MM, SHAPE)
    assert near["size_ratio"] == 1.0


def test_shifts_that_go_together_are_told_from_those_that_do_not():
    together = checks_of(located(found=six((34, 35, 40))), SIZE_MM, SHAPE)
    assert together["stages_mm"] == pytest.approx(12.0)
    assert together["shifts_mm"] == pytest.approx(0.0)
    apart = six()
    apart[::2] += (5, 0, 0)
    assert checks_of(located(found=apart), SIZE_MM, SHAPE)["shifts_mm"] > 6.0


def test_walls_come_each_from_its_own_point():
    low, high = walls_of(np.arange(18).reshape(6, 3))
    assert low.tolist() == [0, 4, 8]
    assert high.tolist() == [9, 13, 17]


def test_starts_and_templates_that_agree_or_do_not():
    """Two starts 30 mm apart that both know where they are; then one that errs."""
    starts = np.array([[50, 60, 60], [60, 60, 60]])
    here = np.arctanh(3.0 * starts / (1500.0, 600.0, 600.0)).astype(np.float32)
    target = np.arctanh([[[0.2, 0.2, 0.2]]]).astype(np.float32) * np.ones((2, 6, 1), np.float32)
    # Embeddings add up only about right (tanh of a difference), hence the slack.
    sure = jump(target, here, starts, (128, 128, 128))
    assert sure.starts_mm < 4.0
    assert sure.templates_mm == 0.0
    here[1, 1] += 0.2
    target[1, :, 2] += 0.1
    doubt = jump(target, here, starts, (128, 128, 128))
    assert doubt.starts_mm > 50.0
    assert doubt.templates_mm == pytest.approx(30.0, rel=0.1)
    assert jump(target[:1], here, starts, (128, 128, 128)).templates_mm is None
