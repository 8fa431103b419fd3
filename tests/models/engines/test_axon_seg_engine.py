"""The axon engines keep the block contract; Axon-Seg equals its networks and their stitching."""

import json

import numpy as np
import pytest
from golden_networks import load_filled

from napari_openmedlab.axons.plan import Settings, _trial, _units, make_plan
from napari_openmedlab.axons.run import execute
from napari_openmedlab.axons.source import source_of_array
from napari_openmedlab.errors import Cancelled, CheckpointError, EngineError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.blocks import BlockContext, BlockLayout, Intensity
from napari_openmedlab.models.catalogue import engines, get_spec, load_engine
from napari_openmedlab.models.contract import Monitor

torch = pytest.importorskip("torch")


@pytest.fixture
def small(stand_ins):
    """Name of a model whose network takes windows of 64 voxels."""
    return stand_ins.add("axon-seg", patch_size=64).name


@pytest.fixture
def volume():
    return np.random.default_rng(8).normal(1200, 200, (70, 66, 64)).astype(np.uint16)


def options_for(name, **changes):
    return get_spec("axon-seg").check_options({"checkpoint": name, "device": "cpu", **changes})


@pytest.mark.parametrize("engine_id", [each.id for each in engines("blocks")])
def test_every_block_engine_keeps_its_contract(engine_id, small):
    spec, engine = get_spec(engine_id), load_engine(engine_id)
    changes = {"checkpoint": small, "device": "cpu"} if spec.networks else {"block": 32}
    options = spec.check_options(changes)
    layout = engine.layout(options)
    assert isinstance(layout, BlockLayout)
    for core, chunk, step in zip(
        layout.core, layout.chunk or layout.core, layout.step, strict=True
    ):
        assert core % chunk == 0
        assert core % step == 0
    json.dumps(dict(engine.provenance(options)), allow_nan=False)
    shape = tuple(s + 2 * h if s > 1 else 40 for s, h in zip(layout.step, layout.halo, strict=True))
    block = np.random.default_rng(1).integers(100, 900, shape).astype(np.uint16)
    block.setflags(write=False)
    context = BlockContext(Intensity(centre=500.0, spread=230.0, dark=100.0))
    score = engine.score(block, context, options, Monitor())
    assert score.shape == shape
    assert score.dtype == np.float32
    assert 0 <= score.min() <= score.max() <= 1
    np.testing.assert_array_equal(score, engine.score(block, context, options, Monitor()))
    stopped = Monitor()
    stopped.cancel()
    with pytest.raises(Cancelled):
        engine.score(block, context, options, stopped)
    engine.unload()


def test_a_window_is_the_network_and_nothing_else(small, volume):
    from napari_openmedlab.models import networks

    engine, options = load_engine("axon-seg"), options_for(small)
    assert engine.layout(options).step == (24, 24, 24)
    window = volume[:64, :64, :64]
    context = BlockContext(Intensity(centre=1200.0, spread=200.0))
    score = engine.score(window, context, options, Monitor())
    network = load_filled(networks.build("axon-seg", device="meta", patch_size=64))
    patch = torch.from_numpy(((window.astype(np.float32) - 1200) / 200)[None, None])
    with torch.inference_mode():
        wanted = torch.softmax(network(patch), 1)[0, 1].numpy()
    np.testing.assert_allclose(score, wanted, atol=2e-4)
    engine.unload()


def test_layouts_follow_the_options(small, stand_ins):
    engine = load_engine("axon-seg")
    cores = engine.layout(options_for(small))
    assert (cores.core, cores.halo, cores.chunk) == ((48,) * 3, (20,) * 3, (24,) * 3)
    assert engine.layout(options_for(small, stitching="gaussian")).anchored
    assert engine.layout(options_for(small, stitching="upstream", halo=10)).core == (44,) * 3
    with pytest.raises(EngineError, match="a halo of 31 leaves 2 of the network's 64 voxels"):
        engine.layout(options_for(small, halo=31))
    plain = stand_ins.add("axon-seg-plain").name
    assert engine.layout(options_for(plain)).core == (176,) * 3


def test_without_weights_it_says_where_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path))
    with pytest.raises(CheckpointError, match="has no weights here yet"):
        load_engine("axon-seg").layout(options_for(""))


@pytest.mark.slow
def test_upstreams_whole_procedure_with_the_real_network(small, full_golden, tmp_path):
    with np.load(full_golden / "axon_seg" / "stitch_net64.npz") as stored:
        wanted = {key: stored[key] for key in stored.files}
    source = source_of_array(wanted["volume"], name="golden")
    settings = Settings(
        "axon-seg",
        options_for(small, stitching="upstream", halo=int(wanted["overlap"])),
        normalisation="plane",
    )
    engine = load_engine("axon-seg")
    plan = make_plan(source, settings, engine, Monitor(), timed=False)
    results = execute(plan, tmp_path / "out", engine, Monitor())
    difference = np.abs(results.probability[:].astype(int) - wanted["prob_u8"])
    assert difference.max() <= 2  # stated beside the reference
    engine.unload()


@pytest.mark.parametrize("spacing", [None, (5.0, 2.0, 2.0)])
def test_the_filter_in_blocks_is_the_filter_in_one_piece(tmp_path, spacing):
    from napari_openmedlab.models.engines.axon_filter.filtering import (
        HALO,
        FilterSettings,
        relative_sizes,
        score_block,
    )

    random = np.random.default_rng(6)
    array = random.normal(500, 30, (24, 48, 100))
    array[10:12, :, 40:42] += 700
    array[:, 20:22, 70:72] += 500
    array = array.astype(np.uint16)
    source = source_of_array(array, name="tubes", spacing=spacing)
    settings = Settings("axon-filter", {"block": 40}, Box((0, 3, 1), (24, 48, 100)))
    engine = load_engine("axon-filter")
    plan = make_plan(source, settings, engine, Monitor(), timed=False)
    assert len(plan.blocks) == 6
    results = execute(plan, tmp_path / "out", engine, Monitor())
    whole = source.read(plan.region.grow(HALO))
    sizes = FilterSettings(sizes=relative_sizes(spacing or (1.0, 1.0, 1.0)))
    wanted = score_block(whole, sizes)[tuple(slice(HALO, HALO + n) for n in plan.region.shape)]
    np.testing.assert_array_equal(results.probability[:], np.rint(wanted * 255).astype(np.uint8))
    assert results.labels[10:12, :, 39:41].mean() > 0.5


def test_short_of_memory_a_run_keeps_device_and_precision(small, monkeypatch):
    from napari_openmedlab.models.device import Choice, Device
    from napari_openmedlab.models.engines import weights

    card = Device("meta", "a card", 0, 0, halves=("bfloat16",))
    monkeypatch.setattr(weights, "choose", lambda _: Choice(card, ""))
    engine, tried = load_engine("axon-seg"), []

    def forward(loaded, windows):
        tried.append((loaded.placement.device, loaded.placement.precision, len(windows)))
        raise MemoryError

    monkeypatch.setattr(engine, "_forward", forward)
    options = options_for(small, precision="float32")
    block = np.zeros((88, 88, 88), np.uint16)  # eight windows
    with pytest.raises(EngineError, match=r"device=cpu.* its device and precision"):
        engine.score(block, BlockContext(Intensity()), options, Monitor())
    assert {each[:2] for each in tried} == {("meta", "float32")}
    assert [each[2] for each in tried] == [4, 2, 1]


def test_a_run_names_the_model_it_begins_with(small, volume):
    """Else one that is imported meanwhile would do the rest."""
    engine, source = load_engine("axon-seg"), source_of_array(volume, name="cube")
    plan = make_plan(source, Settings("axon-seg", options_for("")), engine, Monitor(), timed=False)
    assert plan.settings.options["checkpoint"] == plan.provenance["model"] != ""


@pytest.mark.parametrize("stitching", ["cores", "gaussian", "upstream"])
def test_the_time_of_every_stitching_is_estimated(stitching, small, volume, monkeypatch):
    """Windows the network is given in the run, times what one of them takes."""
    engine, seen = load_engine("axon-seg"), []

    def forward(loaded, windows):
        seen.append(len(windows))
        return [np.zeros(w.shape, np.float32) for w in windows]

    monkeypatch.setattr(engine, "_forward", forward)
    source = source_of_array(np.tile(volume, (2, 1, 1)), name="cube")
    settings = Settings("axon-seg", options_for(small, stitching=stitching), skip_background=False)
    plan = make_plan(source, settings, engine, Monitor())
    assert plan.seconds > 0
    trial = sum(seen) // 2  # it is scored twice
    counted = sum(_units(b, plan.layout) for b in plan.blocks) * trial
    counted /= _units(_trial(plan.blocks[0], plan.layout), plan.layout)
    seen.clear()
    for block in plan.blocks:
        voxels = source.read(block.read, "zero" if plan.layout.slabs else "edge")
        engine.score(voxels, plan.context, plan.settings.options, Monitor())
    assert counted == sum(seen)
