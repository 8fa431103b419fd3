"""Grids are changed as nnU-Net does it, without its copies: golden files and skimage itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from napari_openmedlab.models.tiling import resampling
from napari_openmedlab.models.tiling.interpolated import InterpolateLabels
from napari_openmedlab.models.tiling.resampling import (
    AxisMap,
    cubic,
    new_shape,
    resize_labels,
    separate_axis,
)
from napari_openmedlab.models.tiling.sums import Brick, Piece

TARGET = (1.5, 1.5, 1.5)


@pytest.fixture(params=["iso", "sepz"])
def case(request, golden):
    with np.load(golden / "stu_net" / f"prepost_{request.param}.npz") as found:
        stored = dict(found)
    crop = tuple(slice(int(a), int(b)) for a, b in stored["crop_bbox"])
    stored["crop"], stored["cut"] = stored["image"][crop], crop
    stored["separate"] = separate_axis(tuple(stored["spacing_zyx"]), TARGET)
    stored["working"] = stored["data"].shape[1:]
    return stored


def maps_of(case, linear=True):
    found = []
    for axis, (source, target) in enumerate(zip(case["working"], case["crop"].shape, strict=True)):
        make = AxisMap.linear if linear and axis != case["separate"] else AxisMap.nearest
        found.append(make(source, target))
    return tuple(found)


def pasted(case, labels):
    out = np.zeros(case["image"].shape, dtype=np.uint8)
    out[case["cut"]] = labels
    return out


def test_cubic_resampling_equals_upstreams(case):
    spacing = tuple(case["spacing_zyx"])
    shape = new_shape(case["crop"].shape, spacing, TARGET)
    assert shape == case["working"]
    found = cubic(case["crop"], shape, case["separate"])
    assert found.dtype == np.float32
    normal = (found - found.mean(dtype=float)) / (found.std(dtype=float) + 1e-8)
    assert np.abs(normal - case["data"][0]).max() < 1e-5  # measured: 1.0e-6


def test_blocks_change_nothing(case, monkeypatch):
    whole = cubic(case["crop"], case["working"], case["separate"])
    monkeypatch.setattr(resampling, "_BLOCK", 20_000)
    np.testing.assert_allclose(
        cubic(case["crop"], case["working"], case["separate"]), whole, atol=1e-3
    )


@pytest.mark.parametrize("order", ["linear", "nearest"])
def test_label_maps_are_resized_as_upstream_does(case, order):
    labels = case["probs"].argmax(0).astype(np.uint8)
    linear = order == "linear"
    found = resize_labels(labels, maps_of(case, linear), linear=linear)
    wanted = case["seg_fast" if linear else "seg_fastest"]
    np.testing.assert_array_equal(pasted(case, found), wanted)


def bricks(case, rows, lines, values=None):
    probabilities = case["probs"] if values is None else values
    means = torch.from_numpy(probabilities.astype(np.float32)).movedim(0, -1).contiguous()
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(lines):
            yield Brick.of((top, left), means[top:bottom, left:right])


CUTS = {"whole": (), "many": (1, 7, 8, 20), "single rows": tuple(range(1, 28))}


@pytest.mark.parametrize("cuts", sorted(CUTS))
def test_probabilities_are_interpolated_as_upstream_does(case, cuts):
    depth, height, _ = case["working"]
    sink = InterpolateLabels(maps_of(case), case["working"], 4)
    for brick in bricks(case, (0, *CUTS[cuts], depth), (0, *CUTS[cuts], height)):
        sink.add(brick)
    np.testing.assert_array_equal(pasted(case, sink.labels), case["seg_normal"])


def test_smooth_probabilities_are_mostly_copied_and_still_right(case):
    """Large regions of one class: the short cut is taken, and every voxel is interpolated's."""
    from scipy import ndimage

    smooth = np.stack([ndimage.gaussian_filter(p.astype(float), 4) for p in case["probs"]])
    smooth /= smooth.sum(0)
    maps = maps_of(case)
    sink = InterpolateLabels(maps, case["working"], 4)
    depth, height, _ = case["working"]
    for brick in bricks(case, (0, 9, depth), (0, 14, height), smooth):
        sink.add(brick)
    dense = smooth
    for axis, each in enumerate(maps, start=1):
        weight = each.weight.reshape([-1 if a == axis else 1 for a in range(4)])
        dense = (1 - weight) * dense.take(each.first, axis) + weight * dense.take(each.second, axis)
    ranked = np.sort(dense, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-6
    np.testing.assert_array_equal(sink.labels[clear], dense.argmax(0)[clear])


def test_a_brick_without_windows_is_background():
    maps = tuple(AxisMap.linear(n, 2 * n) for n in (6, 6, 6))
    sink = InterpolateLabels(maps, (6, 6, 6), 3)
    sink.add(Brick((0, 0), (3, 6, 6), ((Piece(3, 6, None),),)))
    values = torch.zeros(3, 6, 6, 3)
    values[..., 2] = 1.0
    sink.add(Brick.of((3, 0), values))
    assert (sink.labels[:6] == 0).all()
    assert (sink.labels[6:] == 2).all()


FAULTS = {
    "corners aligned": lambda source, target: np.linspace(0, source - 1, target),
    "half a voxel off": lambda source, target: np.arange(target) * (source / target),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_the_golden_files_notice_another_grid(case, monkeypatch, fault):
    monkeypatch.setattr(resampling, "_places", FAULTS[fault])
    found = cubic(case["crop"], case["working"], case["separate"])
    normal = (found - found.mean()) / found.std()
    assert np.abs(normal - case["data"][0]).max() > 0.1
    labels = case["probs"].argmax(0).astype(np.uint8)
    wrong = pasted(case, resize_labels(labels, maps_of(case), linear=True)) != case["seg_fast"]
    assert wrong.mean() > 1e-3


def test_the_golden_files_notice_a_missing_separate_axis(golden):
    with np.load(golden / "stu_net" / "prepost_sepz.npz") as stored:
        crop = stored["image"][tuple(slice(int(a), int(b)) for a, b in stored["crop_bbox"])]
        found = cubic(crop, stored["data"].shape[1:], None)
        normal = (found - found.mean()) / found.std()
        assert np.abs(normal - stored["data"][0]).max() > 0.1


@pytest.mark.parametrize("shape", [(9, 31, 20), (40, 12, 33), (17, 20, 20)])
def test_cubic_equals_skimage(shape):
    from skimage.transform import resize

    volume = np.random.default_rng(3).integers(-1000, 1500, (17, 20, 24)).astype(np.int16)
    wanted = resize(volume.astype(float), shape, order=3, mode="edge", anti_aliasing=False)
    assert np.abs(cubic(volume, shape) - wanted).max() < 5e-3  # of 2500


def test_nan_and_infinity_count_as_zero():
    volume = np.full((8, 8, 8), 5.0)
    volume[4, 4, 4], volume[0, 0, 0] = np.nan, np.inf
    assert np.isfinite(cubic(volume, (6, 6, 6))).all()


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [
        ((5, 0.9, 0.9), 0),
        ((0.8, 4, 0.8), 1),
        ((0.24, 1.25, 1.25), None),
        ((2, 1, 1), None),
        ((1, 1, 1), None),
    ],
)
def test_thick_slices_are_told_apart(spacing, axis):
    assert separate_axis(spacing, TARGET) == axis


def test_shapes_round_half_to_even_and_never_to_nothing():
    assert new_shape((5, 7, 1), (0.3, 1.5, 0.1), (1.0, 1.0, 1.0)) == (2, 10, 1)
