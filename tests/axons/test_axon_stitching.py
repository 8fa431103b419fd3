"""Upstream's stitching is reproduced as published; ours shows no step between blocks."""

from types import MappingProxyType

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from napari_openmedlab.axons.plan import Plan, Settings, blocks_of
from napari_openmedlab.axons.scoring import BlockWork
from napari_openmedlab.axons.source import source_of_array
from napari_openmedlab.axons.survey import survey
from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.blocks import BlockLayout, Intensity
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.axon_seg import stitching


def ramp_network(windows):
    """The references' stand-in: brightness, its mean of 27, and the place in the window."""
    for x in windows:
        n = len(x)
        z, y, q = np.indices(x.shape)
        mean = uniform_filter(x.astype(np.float64), 3, mode="nearest")
        logit = x + 0.5 * mean - 1 + 0.9 * z / n - 0.7 * y / n + 0.4 * q / n
        yield (1 / (1 + np.exp(-logit))).astype(np.float32)


class Slabs:
    """Upstream's order of operations with a network of one's own."""

    def __init__(self, window, overlap, network=ramp_network):
        self.window, self.overlap, self.network = window, overlap, network

    def layout(self, options):
        core = self.window - 2 * self.overlap
        return BlockLayout((core,) * 3, (self.overlap,) * 3, chunk=(core,) * 3, slabs=True)

    def score(self, block, context, options, monitor):
        values = context.intensity.apply(block)
        return stitching.by_slab(values, self.window, self.overlap, self.network)


class Cores(Slabs):
    """Our default with the same network."""

    def layout(self, options):
        core = self.window - 2 * self.overlap
        return BlockLayout((2 * core,) * 3, (self.overlap,) * 3, (core,) * 3, chunk=(core,) * 3)

    def score(self, block, context, options, monitor):
        values = context.intensity.apply(block)
        return stitching.by_cores(values, self.window, self.overlap, self.network)


class Gaussian(Slabs):
    """Overlapping windows."""

    def layout(self, options):
        half = self.window // 2
        return BlockLayout((2 * half,) * 3, (half,) * 3, (half,) * 3, anchored=True)

    def score(self, block, context, options, monitor):
        values = context.intensity.apply(block)
        return stitching.by_gaussian(values, self.window, self.network)


def stitched(array, region, engine, mode):
    source = source_of_array(array, name="golden")
    layout = engine.layout({})
    settings = Settings("axon-seg", MappingProxyType({}), region, normalisation=mode)
    found = survey(source, region, mode, Monitor())
    plan = Plan(source, settings, layout, found, {}, blocks_of(region, layout))
    work = BlockWork(plan, engine)
    out = np.zeros(region.shape, np.uint8)
    for block in plan.blocks:
        scores = work.score(block, work.read(block), Monitor())
        out[block.core.relative_to(region).slices] = work.stored(scores)
    return out, plan


@pytest.mark.parametrize("name", ["full", "sub", "exact"])
def test_upstreams_stitching_as_published(golden, name):
    with np.load(golden / "axon_seg" / f"stitch_{name}.npz") as stored:
        wanted = {key: stored[key] for key in stored.files}
    region = Box(tuple(wanted["start_xyz"][::-1]), tuple(wanted["end_xyz"][::-1]))
    engine = Slabs(int(wanted["input_dim"]), int(wanted["overlap"]))
    found, plan = stitched(wanted["volume"], region, engine, "plane")
    assert [b.core.start[0] for b in plan.blocks] == wanted["z_blocks"].tolist()
    difference = np.abs(found.astype(int) - wanted["prob_u8"])
    assert difference.max() <= 1  # stated beside the reference
    assert np.mean(difference > 0) < 1e-3


def test_a_region_too_small_for_upstreams_stitching_is_refused_not_left_empty():
    array = np.ones((40, 40, 40), np.uint16)
    with pytest.raises(GeometryError, match="needs a region of at least 24 voxels"):
        stitched(array, Box((0, 0, 0), (40, 20, 40)), Slabs(32, 4), "plane")


def brighter_downwards():
    """A volume whose brightness drifts, with an even texture: any step at a border is ours."""
    random = np.random.default_rng(11)
    noise = uniform_filter(random.normal(0, 60, (70, 70, 70)), 3)
    drift = np.linspace(0, 400, 70)[:, None, None]
    return (800 + drift + noise).astype(np.uint16)


def steps(found, borders):
    """Mean step across borders along z over the mean step at the five slices on either side."""
    rises = np.abs(np.diff(found.astype(float), axis=0)).mean(axis=(1, 2))
    around = [np.r_[rises[b - 6 : b - 1], rises[b : b + 5]].mean() for b in borders]
    return np.mean([rises[b - 1] for b in borders]) / np.mean(around)


def local_network(windows):
    """A network that sees nothing but grey values near a voxel, so seams are the stitching's."""
    for x in windows:
        mean = uniform_filter(x.astype(np.float64), 3, mode="nearest")
        yield (1 / (1 + np.exp(-mean))).astype(np.float32)


@pytest.mark.parametrize("form", [Cores, Gaussian])
def test_ours_shows_no_step_between_blocks_where_upstreams_does(form):
    array = brighter_downwards()
    region = Box((0, 0, 0), array.shape)
    theirs, plan = stitched(array, region, Slabs(32, 4, local_network), "plane")
    borders = [b.core.start[0] for b in plan.blocks[1:]]
    ours, our_plan = stitched(array, region, form(32, 4, local_network), "volume")
    our_borders = sorted({b.core.start[0] for b in our_plan.blocks} - {0})
    assert steps(theirs, borders) > 2
    assert steps(ours, our_borders) < 1.15


def test_overlapping_windows_do_not_depend_on_the_blocks():
    array = brighter_downwards()[:50, :40, :64]
    small, _ = stitched(array, Box((0, 0, 0), array.shape), Gaussian(16, 4), "volume")

    class Larger(Gaussian):
        def layout(self, options):
            return BlockLayout((64,) * 3, (8,) * 3, (8,) * 3, anchored=True)

    large, _ = stitched(array, Box((0, 0, 0), array.shape), Larger(16, 4), "volume")
    assert np.abs(small.astype(int) - large).max() <= 1


def test_blocks_of_another_size_are_refused():
    with pytest.raises(ValueError, match="don't fit"):
        stitching.by_cores(np.zeros((33, 32, 32), np.float32), 32, 4, ramp_network)
    with pytest.raises(ValueError, match="don't fit"):
        stitching.by_gaussian(np.zeros((33, 32, 32), np.float32), 32, ramp_network)
    with pytest.raises(ValueError, match="a slab has 32 slices"):
        stitching.by_slab(np.zeros((30, 32, 32), np.float32), 32, 4, ramp_network)


def test_intensities_travel_as_json_and_refuse_nonsense():
    from napari_openmedlab.errors import EngineError

    made = Intensity("block", 3.0, 2.0, 1.0, 0.5, 9.0)
    assert Intensity.from_json(made.to_json()) == made
    block = np.arange(27, dtype=np.uint16).reshape(3, 3, 3)
    assert abs(made.apply(block).mean()) < 1e-6
    np.testing.assert_allclose(Intensity("volume", 3.0, 2.0).apply(block)[0, 0, 1], -1.0)
    with pytest.raises(EngineError, match="the spread above 0"):
        Intensity("volume", 1.0, 0.0)
