"""Measures of thin structures: known cases, and the published ones against reference values."""

import json

import numpy as np
import pytest

from napari_openmedlab.evaluation.axon_metrics import (
    centre_line_agreement,
    cl_dice,
    upstream_agreement,
    upstream_cl_scores,
    upstream_junk_ratio,
    upstream_pooled,
    upstream_skeleton,
)


@pytest.fixture(scope="module")
def sample(golden):
    folder = golden / "axon_seg"
    stored = np.load(folder / "loss_inputs.npz")
    label = stored["label"].astype(np.float32)
    probability = 1.0 / (1.0 + np.exp(-stored["logit"]))
    values = json.loads((folder / "loss_values.json").read_text())
    return label, probability, (probability > 0.5).astype(np.float32), values


def test_upstream_voxel_measures(sample):
    label, _, mask, values = sample
    found = upstream_agreement(mask, label)
    assert found.dice == pytest.approx(values["dice_error(bin,label)"], abs=1e-6)
    assert found.iou == pytest.approx(values["iou"], abs=1e-6)
    assert found.tolerant_iou == pytest.approx(values["t_iou"], abs=1e-6)


def test_upstream_junk_ratio(sample):
    label, _, mask, values = sample
    label = label.copy()
    label[1] = 0
    expected = values["junk_ratio(label batch1 emptied)"]
    assert upstream_junk_ratio(mask, label) == pytest.approx(expected, abs=1e-6)


def test_upstream_skeleton(sample, golden):
    label, probability, _, values = sample
    stored = np.load(golden / "axon_seg" / "softskel.npz")
    np.testing.assert_array_equal(upstream_skeleton(label), stored["label_skel"])
    np.testing.assert_allclose(upstream_skeleton(probability), stored["prob_skel"], atol=1e-6)
    assert upstream_skeleton(label).sum() == values["soft_skeletonize(label) sum, w=5"]


def test_upstream_cl_scores(sample):
    label, _, mask, values = sample
    expected = values["soft_cldice_f1(bin) recall,prec"]
    assert upstream_cl_scores(mask, label) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("stride", "name"), [(5, "k"), (1, "1")])
def test_upstream_pooling_flatters(sample, stride, name):
    label, _, mask, values = sample
    expected = values[f"pooled k=5 stride={name}: dice, iou, t_iou, clrec, clprec"]
    pair = upstream_pooled(mask, 5, stride), upstream_pooled(label, 5, stride)
    found = upstream_agreement(*pair)
    measured = [found.dice, found.iou, found.tolerant_iou, *upstream_cl_scores(*pair)]
    assert measured == pytest.approx(expected, abs=1e-6)


def test_centre_lines_within_the_tolerance_agree():
    line = np.stack([np.zeros(30), np.zeros(30), np.arange(30)], axis=1)
    near = line + np.array((0, 2.0, 0))
    assert centre_line_agreement(near, line, 2.0).f1 == 1.0
    assert centre_line_agreement(near, line, 1.9).f1 == 0.0
    half = centre_line_agreement(line[:15], line, 0.5)
    assert (half.precision, half.recall) == (1.0, 0.5)
    assert half.f1 == pytest.approx(2 / 3)
    in_um = centre_line_agreement(near, line, 2.0, spacing=(1.0, 0.5, 0.5))
    assert in_um.f1 == 1.0


def test_nothing_agrees_with_nothing_only():
    none, some = np.zeros((0, 3)), np.zeros((4, 3))
    assert centre_line_agreement(none, none).f1 == 1.0
    assert centre_line_agreement(some, none).f1 == 0.0
    empty, full = np.zeros((5, 5, 5), bool), np.ones((5, 5, 5), bool)
    assert cl_dice(empty, empty) == 1.0
    assert cl_dice(empty, full) == 0.0


def test_cl_dice_forgives_thickness_and_finds_gaps():
    thin, thick = np.zeros((9, 9, 40), bool), np.zeros((9, 9, 40), bool)
    thin[4, 4, 2:38] = True
    thick[3:6, 3:6, 1:39] = True
    assert cl_dice(thick, thin) > 0.98
    broken = thin.copy()
    broken[:, :, 20:] = False
    assert cl_dice(broken, thin) == pytest.approx(2 * 0.5 / 1.5, abs=0.02)
