"""The axon filter finds drawn axons, ignores what is none, and doesn't depend on blocks."""

import numpy as np
import pytest
from scipy import ndimage

from benchmarks.axon_tubes import TubeScene, make_tubes
from napari_openmedlab.evaluation.axon_metrics import centre_line_agreement, cl_dice
from napari_openmedlab.models.engines.axon_filter.filtering import (
    BYTES_PER_VOXEL,
    HALO,
    FilterSettings,
    ratio_of,
    relative_sizes,
    score_block,
)


def _without_specks(mask, least=20):
    parts, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    return mask & (np.bincount(parts.ravel()) >= least)[parts]


def _found(score, truth):
    from skimage.morphology import skeletonize

    mask = _without_specks(score > 0.5)
    thin = skeletonize(mask) > 0
    lines = centre_line_agreement(np.argwhere(thin), truth.points, 2.0, truth.spacing)
    return lines, cl_dice(mask, truth.mask, thin)


@pytest.fixture(scope="module")
def scene():
    return make_tubes(TubeScene(shape=(72, 96, 96), axons=9, blobs=6, seed=3))


def test_drawn_axons_are_found_among_borders_and_blobs(scene):
    lines, overlap = _found(score_block(scene.image), scene)
    assert lines.precision > 0.97
    assert lines.recall > 0.8
    assert overlap > 0.85


def test_without_the_look_at_shapes_borders_count_as_axons(scene):
    lines, _ = _found(score_block(scene.image, FilterSettings(shape=False)), scene)
    assert lines.precision < 0.8


def test_voxels_longer_along_z_are_taken_for_what_they_are():
    coarse = make_tubes(TubeScene(shape=(96, 96, 96), axons=12, blobs=6, planes=3, seed=3))
    known = FilterSettings(sizes=relative_sizes(coarse.spacing))
    (asked, overlap), (unasked, without) = (
        _found(score_block(coarse.image, settings), coarse) for settings in (known, None)
    )
    assert asked.f1 > max(0.7, unasked.f1 + 0.2)
    assert overlap > max(0.7, without + 0.2)


def test_the_shortest_side_of_a_voxel_is_the_measure():
    assert relative_sizes((5.0, 2.0, 2.0)) == (2.5, 1.0, 1.0)
    assert relative_sizes((1.0, 50.0, 1.0)) == (1.0, 8.0, 1.0)
    image = make_tubes(TubeScene(shape=(24, 40, 48), axons=3, blobs=0)).image
    along_z = score_block(image, FilterSettings(sizes=(3.0, 1.0, 1.0)))
    along_x = score_block(np.swapaxes(image, 0, 2), FilterSettings(sizes=(1.0, 1.0, 3.0)))
    np.testing.assert_allclose(along_z, np.swapaxes(along_x, 0, 2), atol=1e-4)


@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (1.4, 1.0, 1.0), (2.5, 1.0, 1.0), (4.0, 8, 1)])
def test_blocks_with_their_halo_give_the_whole_volume_bit_for_bit(sizes):
    rng = np.random.default_rng(1)
    image = rng.integers(100, 3000, (96, 104, 112)).astype(np.uint16)
    settings = FilterSettings(sizes=sizes)
    whole = score_block(image, settings)
    assert whole.any()
    low, high = np.array((8, 16, 24)), np.array((88, 96, 104))
    block = score_block(image[8:88, 16:96, 24:104], settings)
    inner = tuple(slice(HALO, -HALO) for _ in range(3))
    core = tuple(slice(a + HALO, b - HALO) for a, b in zip(low, high, strict=True))
    np.testing.assert_array_equal(block[inner], whole[core])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_any_real_dtype_and_any_shape(dtype):
    image = (np.arange(7 * 9 * 5).reshape(7, 9, 5) % 100).astype(dtype)
    score = score_block(image)
    assert score.shape == image.shape
    assert score.dtype == np.float32
    assert (score >= 0).all()
    assert (score <= 1).all()
    assert score_block(image[:1, :1, :1]).shape == (1, 1, 1)


def test_what_is_not_a_number_does_no_harm():
    image = np.full((20, 20, 20), 300.0, dtype=np.float32)
    image[10, :, 10] = np.nan
    image[4, 4, 4] = np.inf
    assert np.isfinite(score_block(image)).all()


def test_half_stands_for_the_named_ratio():
    assert ratio_of(0.5) == pytest.approx(0.15)
    assert ratio_of(0.25) == pytest.approx(0.05)


@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (4.0, 4.0, 1.0)])
def test_the_stated_memory_holds(scene, sizes):
    import tracemalloc

    image = np.tile(scene.image, (2, 1, 1))
    tracemalloc.start()
    try:
        score_block(image, FilterSettings(sizes=sizes))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < BYTES_PER_VOXEL * image.size
