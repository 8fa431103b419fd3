"""SAM-Med3D's grid, crops and way back: upstream's numbers, any orientation, bounded memory."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.io.api import read
from napari_openmedlab.models.engines.sam_med3d.crops import CROP, Crop, WorkingGrid


def golden_mask() -> np.ndarray:
    """The crop-sized mask that the golden paste-backs start from."""
    i, j, k = np.meshgrid(*[np.arange(CROP)] * 3, indexing="ij")
    mask = ((i - 60) / 30.0) ** 2 + ((j - 70) / 22.0) ** 2 + ((k - 58) / 26.0) ** 2 < 1
    mask |= (np.abs(i - 64) < 6) & (j > 64) & (j < 100) & (np.abs(k - 40) < 5)
    mask[:3, :3, :3] = True
    return mask


@pytest.fixture(params=["ct_psr", "mr_lpi"])
def case(request, golden, full_golden):
    folder = (golden if request.param == "ct_psr" else full_golden) / "sam_med3d"
    stored = np.load(folder / f"prep_{request.param}.npz")
    volume = read(folder / f"{request.param}_image.nii.gz")
    return volume, dict(stored)


def click_of(stored) -> np.ndarray:
    """The golden click in LPS mm."""
    ras = stored["affine"] @ np.append(stored["click_voxel"], 1)
    return ras[:3] * [-1, -1, 1]


def test_the_grid_and_the_click_are_upstreams(case):
    volume, stored = case
    grid = WorkingGrid(volume.geometry)
    assert grid.shape == tuple(stored["canonical_shape"])
    found = grid.to_grid(click_of(stored))
    np.testing.assert_allclose(found, stored["B_click_canonical_continuous"], atol=1e-4)
    assert grid.nearest(click_of(stored)) == tuple(stored["B_click_canonical_voxel"])
    crop = grid.crop_around(grid.nearest(click_of(stored)))
    assert crop.start == tuple(stored["B_crop"][::2] - stored["B_pad"][::2])
    np.testing.assert_allclose(np.floor(crop.to_crop(click_of(stored)) + 0.5), 64)


@pytest.mark.parametrize(("tag", "limits"), [("B", None), ("C", (-1000.0, 1000.0))])
def test_a_crop_has_the_numbers_of_resample_then_crop(case, tag, limits):
    volume, stored = case
    if f"{tag}_roi_image_sub" not in stored:
        pytest.skip("this golden case has no CT clamp")
    grid = WorkingGrid(volume.geometry)
    raw = grid.crop_around(grid.nearest(click_of(stored))).sample(volume, limits)
    positive = raw[raw > 0].astype(float)
    count, mean, std = stored[f"{tag}_norm_count_mean_std"]
    assert positive.size == count
    assert positive.mean() == pytest.approx(mean, rel=1e-4)
    assert positive.std(ddof=1) == pytest.approx(std, rel=1e-4)
    found = (raw - positive.mean()) / positive.std(ddof=1)
    # A whole grey value where float32 and float64 truncate to different integers.
    tolerance = 0.01 if np.issubdtype(volume.array.dtype, np.integer) else 2e-4
    np.testing.assert_allclose(found[::3, ::3, ::3], stored[f"{tag}_roi_image_sub"], atol=tolerance)


def test_paste_back_by_nearest_voxel_is_upstreams(case):
    volume, stored = case
    grid = WorkingGrid(volume.geometry)
    crop = grid.crop_around(grid.nearest(click_of(stored)))
    logits = np.where(golden_mask(), 1, -1).astype(np.float32)
    found = crop.paste(logits, smooth=False)
    wanted = np.unpackbits(stored["B_back_bits"])[: np.prod(stored["shape"])]
    affine_lps = np.diag([-1, -1, 1, 1]) @ stored["affine"]
    voxels = np.argwhere(wanted.reshape(stored["shape"])) @ affine_lps[:3, :3].T
    index = np.rint(volume.geometry.to_index(voxels + affine_lps[:3, 3])).astype(int)
    expected = np.zeros(volume.geometry.shape, bool)
    expected[tuple(index.T)] = True
    different = np.count_nonzero(expected != found.to_full(volume.geometry.shape))
    assert different <= 0.002 * stored["B_back_count"]


@settings(max_examples=40, deadline=None)
@given(
    order=st.sampled_from(list(itertools.permutations(range(3)))),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    spacing=st.tuples(*[st.floats(0.5, 5.0)] * 3),
    shape=st.tuples(*[st.integers(1, 60)] * 3),
    seed=st.integers(0, 9),
)
def test_a_mark_comes_back_where_it_was_in_any_orientation(order, signs, spacing, shape, seed):
    affine = np.zeros((4, 4))
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * spacing[axis]
    affine[:3, 3] = np.random.RandomState(seed).uniform(-200, 200, 3)
    affine[3, 3] = 1
    geometry = Geometry(shape, affine)
    grid = WorkingGrid(geometry)
    place = np.random.RandomState(seed).randint(0, shape)
    world = geometry.to_world(place)
    crop = grid.crop_around(grid.nearest(world))
    index = np.floor(crop.to_crop(world) + 0.5).astype(int)
    assert (abs(index - 64) <= 4).all()  # nearest voxel, clipped at the border of the grid
    logits = np.full((CROP,) * 3, -1.0, np.float32)
    reach = [int(np.ceil(s / grid.spacing)) + 1 for s in np.array(spacing)[list(grid.order)]]
    logits[tuple(slice(max(0, i - r), i + r + 1) for i, r in zip(index, reach, strict=True))] = 1
    for smooth in (True, False):
        found = crop.paste(logits, smooth=smooth)
        assert found.to_full(shape)[tuple(place)]
        centre = np.argwhere(found.to_full(shape)).mean(axis=0)
        limit = (np.array(reach)[np.argsort(grid.order)] + 2) * grid.spacing / np.array(spacing)
        assert (abs(centre - place) <= limit + 1).all()


def test_axes_run_right_anterior_superior(marked_volume):
    grid = WorkingGrid(marked_volume.geometry)
    crop = Crop(grid, (0, 0, 0))
    raw = crop.sample(marked_volume)
    middle = {value: np.argwhere(raw == value).mean(axis=0) for value in (100, 80, 90)}
    body = np.argwhere(raw > 0).mean(axis=0)
    assert middle[100][2] > body[2] + 5  # superior
    assert middle[80][1] > body[1] + 5  # anterior
    assert middle[90][0] < body[0] - 5  # left: against R


def test_beyond_the_scan_is_raw_zero_and_no_face_is_open_there(marked_volume):
    grid = WorkingGrid(marked_volume.geometry)
    crop = Crop(grid, (-50, -50, -50))
    raw = crop.sample(marked_volume)
    assert not raw[:50].any()
    assert raw.any()
    assert crop.open_faces() == ((False, False),) * 3
    assert not Crop(grid, (500, 0, 0)).sample(marked_volume).any()


def test_inside_keeps_off_the_open_faces_only():
    volume = Volume(
        np.zeros((300, 300, 300), np.int8), Geometry.from_spacing((300,) * 3, (1.5,) * 3)
    )
    grid = WorkingGrid(volume.geometry)
    crop = Crop(grid, (0, 50, 50))
    assert crop.contains(volume.geometry.to_world((60, 60, 2)), margin=8)  # x: the scan's border
    assert not crop.contains(volume.geometry.to_world((60, 54, 60)), margin=8)
    assert crop.contains(volume.geometry.to_world((60, 54, 60)))
    assert not crop.contains(volume.geometry.to_world((20, 60, 60)))


def test_a_mask_is_taken_onto_the_crop_and_back():
    geometry = Geometry.from_spacing((80, 90, 100), (2.0, 1.0, 1.2))
    z, y, x = np.ogrid[:80, :90, :100]
    mask = ((z - 40) / 15) ** 2 + ((y - 50) / 25) ** 2 + ((x - 45) / 20) ** 2 < 1
    patch = MaskPatch.of(mask)
    crop = WorkingGrid(geometry).crop_around((40, 30, 50))
    taken = crop.take(patch)
    back = crop.paste(taken - 0.5).to_full(geometry.shape)
    dice = 2 * (back & mask).sum() / (back.sum() + mask.sum())
    assert dice > 0.98


def test_memory_follows_from_the_crop_not_from_the_scan():
    peaks = []
    for shape in ((128, 256, 256), (600, 1024, 1024)):
        array = np.lib.stride_tricks.as_strided(
            np.zeros(1, np.int16), shape, (0, 0, 0), writeable=False
        )
        volume = Volume(array, Geometry.from_spacing(shape, (0.8, 0.4, 0.4)))
        grid = WorkingGrid(volume.geometry)
        tracemalloc.start()
        crop = grid.crop_around(np.array(grid.shape) // 2)
        crop.paste(crop.sample(volume) + np.float32(1))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 300e6  # the bool region alone: 240 x 480 x 480 = 55 MB
