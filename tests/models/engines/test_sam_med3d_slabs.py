"""Interpolation in slabs: the numbers of SciPy's, whatever the array's kind, in little memory."""

from __future__ import annotations

import tracemalloc

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.engines.sam_med3d import slabs
from napari_openmedlab.models.engines.sam_med3d.slabs import Taps, expand, shrink


def volume_of(array):
    return Volume(array, Geometry.from_spacing(tuple(array.shape), (1.0, 1.0, 1.0)))


def by_scipy(array, positions, order=1):
    grid = np.meshgrid(*positions, indexing="ij")
    return map_coordinates(array.astype(float), grid, order=order, mode="nearest")


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    steps=st.tuples(*[st.floats(0.1, 6.0)] * 3),
    flips=st.tuples(*[st.booleans()] * 3),
    slab=st.sampled_from([1, 4000, 2**23]),
)
def test_both_ways_give_scipys_numbers(shape, steps, flips, slab):
    array = np.random.default_rng(1).normal(0, 100, shape).astype(np.float32)
    positions = [
        np.arange(-0.7, n, step)[:: -1 if flip else 1]
        for n, step, flip in zip(shape, steps, flips, strict=True)
    ]
    taps = [Taps.at(p, n) for p, n in zip(positions, shape, strict=True)]
    wanted = by_scipy(array, positions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slabs, "_SLAB_BYTES", slab)
        np.testing.assert_allclose(shrink(volume_of(array), taps), wanted, atol=2e-3)
        clear = np.abs(wanted) > 2e-3
        np.testing.assert_array_equal(expand(array, taps)[clear], wanted[clear] > 0)


def test_nearest_takes_the_nearest_and_the_upper_of_two_equally_near():
    block = np.array([-1.0, 1.0, -1.0], np.float32).reshape(3, 1, 1)
    one = Taps.at(np.zeros(1), 1)
    found = expand(block, [Taps.at(np.array([0.0, 0.4, 0.5, 1.4, 1.5]), 3), one, one], nearest=True)
    assert found.ravel().tolist() == [False, False, True, True, False]


@pytest.mark.parametrize("step", [0.5, 1.3, 4.7])
@pytest.mark.parametrize("kind", ["dask", "zarr", "bare", "memmap", "big-endian"])
def test_every_kind_of_array_gives_the_same(kind, step, tmp_path):
    array = np.random.default_rng(2).integers(-900, 900, (37, 33, 29)).astype(np.int16)
    if kind == "dask":
        other = da.from_array(array, chunks=((10, 20, 7), 11, 29))
    elif kind == "zarr":
        other = zarr.open(str(tmp_path / "a.zarr"), mode="w", shape=array.shape, chunks=(8, 9, 9))
        other[:] = array
    elif kind == "bare":
        other = Bare(array)
    elif kind == "memmap":
        other = np.memmap(tmp_path / "a.raw", np.int16, "w+", shape=array.shape)
        other[:] = array
    else:
        other = array.astype(">i2")
    taps = [Taps.at(np.arange(2.2, n - 3, step), n) for n in array.shape]
    wanted = shrink(volume_of(array), taps, (-500, 500))
    np.testing.assert_array_equal(shrink(volume_of(other), taps, (-500, 500)), wanted)
    assert wanted.max() < 500.1


class Bare:
    """An array that says nothing of how it is stored, and notes what is read of it."""

    def __init__(self, array):
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, 3
        self._array, self.read = array, []

    def __getitem__(self, key):
        self.read.append(tuple(part.stop - part.start for part in key))
        return self._array[key]


def test_only_what_is_needed_is_read_and_each_chunk_once():
    bare = Bare(np.zeros((64, 50, 50), np.int16))
    bare.chunks = (16, 25, 25)
    taps = [Taps.at(np.arange(3.0, 40.0, 1.5), 64), *[Taps.at(np.arange(5.0, 20.0), 50)] * 2]
    shrink(volume_of(bare), taps)
    assert [depth for depth, _, _ in bare.read] == [13, 16, 9]
    assert {size[1:] for size in bare.read} == {(16, 16)}


def test_memory_is_that_of_the_result_even_where_a_crop_spans_the_scan():
    shape = (600, 1024, 1024)
    array = np.broadcast_to(np.int16(7), shape)
    taps = [Taps.at(np.linspace(0, n - 1, 128), n) for n in shape]
    tracemalloc.start()
    found = shrink(volume_of(array), taps, (-1000, 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found == 7).all()
    assert peak < 80e6  # the result is 8 MB, the scan 1.3 GB


@pytest.mark.filterwarnings("error")
def test_infinities_stay_where_they_are():
    array = np.ones((20, 20, 20), np.float32)
    array[10, 10, 10] = np.inf
    taps = [Taps.at(np.arange(0.5, 19.0, 1.0), 20)] * 3
    found = shrink(volume_of(array), taps)
    assert np.count_nonzero(~np.isfinite(found)) == 8
