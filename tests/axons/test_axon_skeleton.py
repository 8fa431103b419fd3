"""A skeleton made block by block is that of the whole volume, without small pieces."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import skeletonize

from benchmarks.axon_tubes import TubeScene, make_tubes
from napari_openmedlab.axons.radii import radii_at
from napari_openmedlab.axons.skeleton import SkeletonSettings, block_grid, skeletonise
from napari_openmedlab.errors import Cancelled, GeometryError, SettingsError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.contract import Monitor


@pytest.fixture(scope="module")
def mask():
    truth = make_tubes(TubeScene(shape=(60, 72, 80), axons=12, blobs=0, edge=False, seed=5))
    rng = np.random.default_rng(0)
    specks = rng.random(truth.mask.shape) < 0.0008
    return truth.mask | specks


def _expected(mask, smallest):
    parts, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return skeletonize((sizes >= smallest)[parts] & mask, method="lee") > 0, sizes[1:]


@pytest.mark.parametrize("core", [(60, 72, 80), (32, 32, 32), (23, 40, 17)])
def test_blocks_give_the_skeleton_of_the_whole(mask, core):
    skeleton = skeletonise(mask, settings=SkeletonSettings(core=core, halo=12))
    expected, sizes = _expected(mask, 10)
    np.testing.assert_array_equal(skeleton.points, np.argwhere(expected))
    assert skeleton.pieces == (sizes >= 10).sum()
    assert skeleton.dropped == (sizes < 10).sum()


def test_a_piece_counts_with_all_its_blocks():
    mask = np.zeros((8, 8, 32), dtype=np.uint8)
    mask[4, 4, 2:30] = 1  # 4 blocks with 7 voxels each at most
    mask[3, 3, 15] = mask[4, 3, 16] = 0
    mask[0, 0, 0:5] = 1
    skeleton = skeletonise(mask, settings=SkeletonSettings(core=(8, 8, 7), halo=3, smallest=20))
    assert skeleton.pieces == 1
    assert skeleton.dropped == 1
    assert (skeleton.points[:, 1] == 4).all()


def test_pieces_that_meet_over_an_edge_of_blocks_are_one():
    mask = np.zeros((8, 8, 8), dtype=bool)
    for i in range(8):
        mask[i, i, 7 - i] = True  # diagonal steps only, through the corner of all blocks
    skeleton = skeletonise(mask, settings=SkeletonSettings(core=(4, 4, 4), halo=2, smallest=8))
    assert skeleton.pieces == 1
    assert len(skeleton.points) == 8


def test_radii_are_those_of_the_distance_transform(mask):
    spacing = (2.0, 0.7, 1.0)
    skeleton = skeletonise(mask, spacing, SkeletonSettings(core=(32, 32, 32), halo=16))
    expected = ndimage.distance_transform_edt(mask, sampling=spacing)
    np.testing.assert_allclose(skeleton.radii, expected[tuple(skeleton.points.T)], rtol=1e-6)


def test_radii_of_thick_structures_and_without_any_outside():
    ball = np.zeros((41, 41, 41), dtype=bool)
    z, y, x = np.ogrid[-20:21, -20:21, -20:21]
    ball[z**2 + y**2 + x**2 <= 15**2] = True
    centre = np.array([[20, 20, 20]])
    expected = ndimage.distance_transform_edt(ball)[20, 20, 20]
    assert radii_at(ball, centre, (1, 1, 1), 20)[0] == pytest.approx(expected)
    assert radii_at(ball, centre, (1, 1, 1), 8)[0] == 8.0
    assert radii_at(np.ones((9, 9, 9), bool), np.array([[4, 4, 4]]), (1, 1, 1), 6)[0] == 6.0


def test_blocks_are_written_and_only_blocks_are_read(mask, tmp_path):
    import zarr

    class Watched:
        shape = mask.shape
        largest = 0

        def __getitem__(self, key):
            self.largest = max(self.largest, mask[key].size)
            return mask[key]

    out = zarr.create_array(
        str(tmp_path / "s.zarr"), shape=mask.shape, chunks=(16,) * 3, dtype="u1"
    )
    watched = Watched()
    skeleton = skeletonise(watched, settings=SkeletonSettings(core=(16,) * 3, halo=4), out=out)
    assert watched.largest <= 24**3
    np.testing.assert_array_equal(np.argwhere(out[:]), skeleton.points)
    box = Box((3, 5, 7), (50, 33, 70))
    np.testing.assert_array_equal(skeleton.fill(box), out[:][box.slices])


def test_an_empty_mask_has_no_skeleton():
    skeleton = skeletonise(np.zeros((5, 6, 7), np.uint8))
    assert skeleton.points.shape == (0, 3)
    assert (skeleton.pieces, skeleton.dropped) == (0, 0)


def test_bad_input_is_named():
    with pytest.raises(GeometryError, match="axes"):
        skeletonise(np.zeros((5, 5)))
    with pytest.raises(GeometryError, match="shape"):
        skeletonise(np.zeros((5, 5, 5)), out=np.zeros((5, 5, 4)))
    with pytest.raises(SettingsError, match="halo"):
        SkeletonSettings(halo=0)
    monitor = Monitor()
    monitor.cancel()
    with pytest.raises(Cancelled):
        skeletonise(np.ones((5, 5, 5)), monitor=monitor)


def test_the_grid_of_blocks_covers_everything_once():
    seen = np.zeros((5, 7, 9), dtype=int)
    for box in block_grid(seen.shape, (2, 3, 4)):
        seen[box.slices] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("width", [2, 3, 4, 6])
def test_a_straight_bar_of_even_width_does_not_vanish(width):
    mask = np.zeros((20, 20, 60), dtype=bool)
    mask[4 : 4 + width, 4 : 4 + width, 5:45] = True
    whole = skeletonise(mask)
    assert len(whole.points) >= 40 - width
    assert mask[tuple(whole.points.T)].all()
    blocks = skeletonise(mask, settings=SkeletonSettings(core=(20, 20, 16), halo=12))
    np.testing.assert_array_equal(blocks.points, whole.points)
