"""Volume Fusion is the published one: same seed, same draws, same numbers."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from golden_networks import read_json

from napari_openmedlab.errors import EngineError
from napari_openmedlab.training.volume_fusion import (
    Constant,
    Crop,
    Fusion,
    brightness_curve,
    contrast,
    crop_pair,
    fuse,
)

SIZE = (24, 40, 40)


@pytest.fixture
def stored(golden):
    return np.load(golden / "mis_fm" / "volume_fusion.npz")


@pytest.fixture
def traces(golden):
    return read_json(golden / "mis_fm" / "volume_fusion.json")


class Recorder:
    """Notes every draw, as the golden traces do."""

    def __init__(self, seed):
        self.chance, self.draws = Random(seed), []

    def _noted(self, name, found):
        self.draws.append([name, found])
        return found

    def random(self):
        return self._noted("random", self.chance.random())

    def randint(self, a, b):
        return self._noted("randint", self.chance.randint(a, b))

    def uniform(self, a, b):
        return self._noted("uniform", self.chance.uniform(a, b))


def fusion_of(trace):
    return Fusion(
        trace["cls_num"], trace["ratio"], tuple(trace["size_min"]), tuple(trace["size_max"])
    )


@pytest.mark.parametrize("case", [0, 1, 2])
def test_labels_are_the_published_ones_bit_by_bit(stored, traces, case):
    trace = traces["fusion"][case]
    empty = np.zeros(trace["shape"][1:], np.float32)
    _, labels = fuse(empty, empty, fusion_of(trace), Random(trace["seed"]))
    np.testing.assert_array_equal(labels, stored[f"label{case}"])
    assert labels.dtype == np.uint8
    counts = np.bincount(labels.ravel(), minlength=trace["cls_num"]).tolist()
    assert counts == trace["label_hist"]


def test_the_mixture_is_the_published_one_bit_by_bit(stored, traces):
    trace = traces["fusion"][2]
    fused, _ = fuse(
        stored["foreground2"], stored["background2"], fusion_of(trace), Random(trace["seed"])
    )
    np.testing.assert_array_equal(fused, stored["fused2"])
    assert fused.dtype == np.float64


@pytest.mark.parametrize("case", [0, 1])
def test_larger_mixtures_are_the_published_ones_bit_by_bit(full_golden, traces, case):
    trace = traces["fusion"][case]
    found = np.load(full_golden / "mis_fm" / f"vf_case{case}.npz")
    fused, _ = fuse(
        found["foreground"][0], found["background"][0], fusion_of(trace), Random(trace["seed"])
    )
    np.testing.assert_array_equal(fused, found["fused"][0])


def test_contrast_and_gamma_are_the_published_ones(stored):
    found = contrast(stored["image"], (1.3, 98.7))
    np.testing.assert_array_equal(found, stored["adaptive_contrast_1p3_98p7"])
    curved = brightness_curve(stored["adaptive_contrast_1p3_98p7"], 0.9)
    # Float32 powers differ between processors: one voxel in 1600 by one step of float32.
    assert np.abs(curved - stored["gamma_0p9_after"]).max() <= 2**-23
    assert (curved != stored["gamma_0p9_after"]).mean() < 2e-3


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_crops_draw_what_the_published_ones_draw(traces, mode):
    trace = next(each for each in traces["crop"] if each["mode"] == mode)
    chance = Recorder(trace["seed"])
    volume = np.random.default_rng(0).normal(size=(40, 72, 72)).astype(np.float32)
    pair = crop_pair(volume, Crop(SIZE, mode), chance)
    assert chance.draws == [[name, value] for name, _, value in trace["trace"]]
    assert [patch.shape for patch in pair] == [SIZE, SIZE]
    assert pair[0].dtype == np.float32


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_crops_are_the_published_ones(full_golden, traces, mode):
    trace = next(each for each in traces["crop"] if each["mode"] == mode)
    found = np.load(full_golden / "mis_fm" / f"crop4vf_mode{mode}.npz")
    pair = crop_pair(found["volume"][0], Crop(SIZE, mode), Random(trace["seed"]))
    for patch, name in zip(pair, ("patch1", "patch2"), strict=True):
        if mode in (0, 2):
            np.testing.assert_array_equal(patch, found[name][0])
        else:
            assert np.abs(patch - found[name][0]).max() <= 2**-23
            assert (patch != found[name][0]).mean() < 2e-3


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_a_scan_without_contrast_is_rejected(mode):
    with pytest.raises(Constant, match="no contrast"):
        crop_pair(np.full((40, 72, 72), 3.0, np.float32), Crop(SIZE, mode), Random(1))


def test_a_scan_smaller_than_the_patch_is_stretched():
    volume = np.random.default_rng(0).normal(size=(5, 30, 61)).astype(np.float32)
    for mode in range(4):
        for patch in crop_pair(volume, Crop(SIZE, mode), Random(mode)):
            assert patch.shape == SIZE
            assert np.isfinite(patch).all()


def test_values_lie_between_0_and_1_after_contrast():
    volume = np.random.default_rng(0).normal(size=(40, 72, 72)).astype(np.float32) * 500
    for seed in range(4):
        for patch in crop_pair(volume, Crop(SIZE), Random(seed)):
            assert patch.min() >= 0
            assert patch.max() <= 1


def test_blocks_larger_than_the_patch_are_refused():
    patch = np.zeros((16, 128, 128), np.float32)
    with pytest.raises(EngineError, match="don't fit patches"):
        fuse(patch, patch, Fusion(), Random(0))


def test_shares_of_foreground_and_classes_are_as_stated():
    patch = np.zeros((64, 64, 64), np.float32)
    fusion = Fusion(smallest=(8, 8, 8), largest=(8, 8, 8))
    labels = np.concatenate([fuse(patch, patch, fusion, Random(n))[1].ravel() for n in range(8)])
    assert (labels > 0).mean() == pytest.approx(int(512 * 0.7) / 512)
    counts = np.bincount(labels)[1:] / (labels > 0).sum()
    np.testing.assert_allclose(counts, 0.25, atol=0.03)


def test_the_golden_files_notice_another_order_of_draws(traces, stored):
    trace = traces["fusion"][0]
    empty = np.zeros(trace["shape"][1:], np.float32)

    class Swapped(Random):
        def shuffle(self, x):
            self.random()
            super().shuffle(x)

    _, labels = fuse(empty, empty, fusion_of(trace), Swapped(trace["seed"]))
    assert not np.array_equal(labels, stored["label0"])
