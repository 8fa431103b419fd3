"""STU-Net's engine: upstream's numbers, the scan's own order, regions, choices, bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from organ_models import Stub, answer_with, options, register

from napari_openmedlab.errors import Cancelled, CheckpointError, EngineError, GeometryError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.frames import Reorientation
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.io.api import read
from napari_openmedlab.models import organs
from napari_openmedlab.models.catalogue import load_engine
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.stu_net import engine as engine_module
from napari_openmedlab.models.engines.stu_net import plan as plan_module
from napari_openmedlab.models.engines.stu_net.plan import Intensity, Plan
from napari_openmedlab.models.engines.stu_net.preparing import prepare

NETWORK_ORDER = np.array([[0, 0, -1, 50], [0, -1, 0, 60], [1, 0, 0, -70], [0, 0, 0, 1.0]])
SMALL = (32, 32, 32)


def grid(shape, spacing, affine=NETWORK_ORDER):
    matrix = affine.copy()
    matrix[:3, :3] *= spacing
    return Geometry(tuple(shape), matrix)


def scan(shape=(40, 48, 56), spacing=(1.5, 1.5, 1.5), seed=0):
    """Blobs of different brightness in air, all different left and right; network's order."""
    from scipy import ndimage

    noise = np.random.default_rng(seed).normal(size=shape)
    body = ndimage.gaussian_filter(noise, 4)
    body = body / np.abs(body).max() * 600
    z, y, x = np.indices(shape)
    centre = [n / 2 for n in shape]
    inside = sum(((a - c) / (0.42 * n)) ** 2 for a, c, n in zip((z, y, x), centre, shape)) < 1  # noqa: B905
    return Volume(
        np.where(inside, body + 100, -1000).astype(np.int16), grid(shape, spacing), modality="CT"
    )


@pytest.fixture
def engine(monkeypatch):
    register(monkeypatch)
    made = load_engine("stu-net")
    yield made
    made.unload()


@pytest.fixture
def stub(monkeypatch, stand_ins):
    """A model of five classes that go by brightness, in the store as the only one."""

    def use(lean=0.0, like=None):
        record = stand_ins.add("stu-net-s", out_channels=5)
        centres = np.linspace(-1.2, 1.6, 5)
        if like is not None:
            values = like.array.astype(float)
            centres = (np.array([-1000, -200, 0, 150, 400]) - values.mean()) / values.std()
        network = Stub(centres, lean)
        answer_with(monkeypatch, network)
        monkeypatch.setattr(engine_module, "choose_record", lambda *_: record)
        return network

    return use


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(plan_module, "_PATCH", SMALL)


def whole(volume):
    return Box.whole(volume.geometry.shape)


def label(engine, volume, region=None, monitor=None, **given):
    region = region or whole(volume)
    return engine.segment(volume, region, options(**given), monitor or Monitor())


# -- upstream's numbers ------------------------------------------------------------------------


@pytest.fixture(params=["iso", "sepz"])
def stored(request, golden):
    with np.load(golden / "stu_net" / f"prepost_{request.param}.npz") as found:
        return dict(found)


def prepared(stored, plan=None, region=None, **given):
    volume = Volume(stored["image"], grid(stored["image"].shape, stored["spacing_zyx"]))
    given = {"spacing": 0.0, "orientation": "RAS", "monitor": Monitor()} | given
    return prepare(volume, region or whole(volume), plan or Plan(("a", "b", "c", "d")), **given)


def test_the_networks_input_equals_upstreams(stored):
    working = prepared(stored)
    assert working.data.shape == stored["data"].shape
    assert np.abs(working.data - stored["data"]).max() < 1e-5  # measured: 1.0e-6
    ends = np.transpose([working.crop.start, working.crop.stop])
    np.testing.assert_array_equal(ends, stored["crop_bbox"])


@pytest.mark.parametrize("export", ["normal", "fast", "fastest"])
def test_the_exports_equal_upstreams(stored, export):
    import torch

    from napari_openmedlab.models.tiling.interpolated import InterpolateLabels
    from napari_openmedlab.models.tiling.resampling import resize_labels
    from napari_openmedlab.models.tiling.sums import Brick

    working = prepared(stored)
    linear = export != "fastest"
    if export == "normal":
        sink = InterpolateLabels(working.maps(linear=True), working.grid, 4)
        values = torch.from_numpy(stored["probs"].astype(np.float32)).movedim(0, -1)
        sink.add(Brick.of((0, 0), values))
        labels = sink.labels
    else:
        small = stored["probs"].argmax(0).astype(np.uint8)
        labels = resize_labels(small, working.maps(linear=linear), linear=linear)
    np.testing.assert_array_equal(working.placed(labels), stored[f"seg_{export}"])


def test_the_golden_files_notice_an_intensity_window(stored):
    """A CT window as nnU-Net has it elsewhere: not what these weights were trained with."""
    stored["image"] = np.clip(stored["image"], -160, 240)
    assert np.abs(prepared(stored).data - stored["data"]).max() > 0.1


def test_the_golden_files_notice_normalising_first(stored):
    """Order of v2 on data of v1."""
    working = prepared(stored, Plan(("a", "b"), form="v2"))
    assert 1e-3 < np.abs(working.data - stored["data"]).max() < 1.0


def test_v2_normalises_before_it_resamples(stored):
    from napari_openmedlab.models.tiling.resampling import cubic, separate_axis

    working = prepared(stored, Plan(("a", "b"), form="v2"))
    crop = stored["image"][working.crop.slices].astype(np.float64)
    normal = (crop - crop.mean()) / crop.std()
    separate = separate_axis(tuple(stored["spacing_zyx"]), (1.5, 1.5, 1.5))
    wanted = cubic(normal.astype(np.float32), working.grid, separate)
    assert np.abs(working.data[0] - wanted).max() < 1e-5


def test_v2_uses_the_limits_of_its_plan(stored):
    plan = Plan(("a", "b"), form="v2", intensity=Intensity(-100.0, 200.0, 50.0, 80.0))
    data = prepared(stored, plan).data
    assert data.min() == pytest.approx(-150 / 80)
    assert data.max() == pytest.approx(150 / 80)


def test_a_region_is_cut_from_the_whole_scans_input(stored):
    region = Box((2, 5, 6), (6, 20, 19))
    part = prepared(stored, Plan(("a", "b"), patch=(16, 16, 16)), region)
    every = prepared(stored)
    cut = tuple(slice(b, b + n) for b, n in zip(part.begin, part.data.shape[1:], strict=True))
    np.testing.assert_array_equal(part.data[0], every.data[(0, *cut)])


# -- the scan's own order ----------------------------------------------------------------------

TURNS = {
    "display order": Reorientation((0, 1, 2), (True, True, True)),
    "sagittal": Reorientation((2, 0, 1), (False, True, False)),
    "ITK's own": Reorientation((0, 1, 2), (False, True, True)),
}


@pytest.mark.parametrize("turn", sorted(TURNS))
def test_the_storage_order_of_a_scan_changes_nothing(engine, stub, turn):
    stub(lean=0.005)
    volume, move = scan(spacing=(3.0, 1.2, 1.5)), TURNS[turn]
    turned = Volume(
        np.ascontiguousarray(move.apply(volume.array)),
        volume.geometry.reorient(move),
        modality="CT",
    )
    wanted, found = label(engine, volume).labels, label(engine, turned).labels
    assert len(np.unique(wanted)) > 3
    np.testing.assert_array_equal(found, move.apply(wanted))
    mirrored = Reorientation((0, 1, 2), (False, False, True)).apply(wanted)
    assert (mirrored != wanted).mean() > 0.02  # the network does tell left from right


@pytest.mark.parametrize(("orientation", "axes"), [("LAS", (2,)), ("LPS", (1, 2)), ("RPS", (1,))])
def test_other_training_orders_can_be_chosen(engine, stub, orientation, axes):
    stub(lean=0.02)
    volume = scan()
    found = label(engine, volume, orientation=orientation).labels
    flipped = Volume(np.flip(volume.array, axes), volume.geometry, modality="CT")
    np.testing.assert_array_equal(found, np.flip(label(engine, flipped).labels, axes))


# -- regions, choices, speed -------------------------------------------------------------------


def test_a_region_gets_the_labels_of_the_whole_scan(engine, stub, small_windows):
    stub()
    volume = scan(spacing=(2.0, 1.2, 1.5))
    region = Box((9, 11, 13), (22, 40, 31))
    part = label(engine, volume, region)
    assert part.labels.shape == region.shape
    np.testing.assert_array_equal(part.labels, label(engine, volume).labels[region.slices])


@pytest.mark.parametrize("export", ["exact", "smooth", "nearest"])
def test_labels_follow_the_brightness_in_every_export(engine, stub, small_windows, export):
    network = stub()
    volume = scan(spacing=(1.5, 1.5, 1.5))
    found = label(engine, volume, export=export)
    values = volume.array.astype(float)
    normal = (values - values.mean()) / values.std()
    away = np.abs(normal[..., None] - np.linspace(-1.2, 1.6, 5))
    np.testing.assert_array_equal(found.labels, away.argmin(-1))
    assert found.labels.dtype == np.uint8
    assert len(network.batches) == found.provenance["windows"] == 2 * 2 * 3


def test_classes_keep_their_numbers_when_some_are_chosen(engine, stub, small_windows):
    stub()
    volume = scan()
    names = json.dumps({"liver": 1, "spleen": 2, "kidney_left": 3, "kidney_right": 4})
    every = label(engine, volume, names=names)
    some = label(engine, volume, names=names, classes="spleen, Kidney-Right")
    assert every.names == {1: "liver", 2: "spleen", 3: "kidney_left", 4: "kidney_right"}
    assert some.names == {2: "spleen", 4: "kidney_right"}
    np.testing.assert_array_equal(
        some.labels, np.where(np.isin(every.labels, [2, 4]), every.labels, 0)
    )
    group = label(engine, volume, names=names, classes="urinary")
    assert set(group.names) == {3, 4}
    with pytest.raises(EngineError, match=r"no structure or group 'splen'.*spleen"):
        label(engine, volume, names=names, classes="splen")


def test_a_coarser_grid_is_a_preview_and_says_so(engine, stub):
    stub()
    found = label(engine, scan(), spacing=3.0)
    assert any("preview" in note for note in found.notes)
    assert found.labels.shape == (40, 48, 56)


def test_mirroring_runs_each_window_eight_times(engine, stub):
    network = stub()
    plain = label(engine, scan())
    count = len(network.batches)
    mirrored = label(engine, scan(), mirror=True)
    assert len(network.batches) == 9 * count
    np.testing.assert_array_equal(plain.labels, mirrored.labels)
    assert any("left and right" in note for note in mirrored.notes)


def test_windows_of_air_are_left_out_and_nothing_changes(engine, stub, small_windows):
    volume = scan((64, 96, 96))
    array = np.full((64, 160, 160), -1000, dtype=np.int16)
    array[:, 30:126, 50:146] = volume.array
    volume = Volume(array, grid(array.shape, (1.5, 1.5, 1.5)), modality="CT")
    stub(like=volume)
    every, some = label(engine, volume, skip_air=False), label(engine, volume)
    assert some.provenance["windows_skipped"] > 20
    assert every.provenance["windows_skipped"] == 0
    np.testing.assert_array_equal(some.labels, every.labels)
    assert any("only air" in note for note in some.notes)


@pytest.mark.data
def test_skipping_air_changes_no_label_on_a_real_scan(engine, stub, small_windows, real_data):
    volume = read(real_data / "ct_torso_3mm" / "ct.nii.gz")
    stub(like=volume)
    every, some = label(engine, volume, skip_air=False), label(engine, volume)
    assert some.provenance["windows_skipped"] > 0
    assert len(np.unique(every.labels)) == 5
    np.testing.assert_array_equal(some.labels, every.labels)


def test_nothing_is_taken_for_air_in_other_modalities(engine, stub, small_windows):
    stub()
    volume = scan()
    mr = Volume(volume.array, volume.geometry, modality="MR")
    found = label(engine, mr)
    assert found.provenance["windows_skipped"] == 0
    assert any("CT" in note for note in found.notes)


# -- running -----------------------------------------------------------------------------------


def test_a_cancel_acts_at_the_next_window(engine, stub, small_windows):
    network = stub()
    told = []

    def listen(progress):
        told.append(progress)
        if progress.text.startswith("window 4 "):
            monitor.cancel()

    monitor = Monitor(listen, interval=0.0)
    with pytest.raises(Cancelled):
        label(engine, scan(), monitor=monitor)
    assert len(network.batches) == 4
    assert told[-1].total == 12
    label(engine, scan())  # and the engine is none the worse


def test_full_memory_costs_one_batch_not_the_run(engine, stub, small_windows):
    network = stub()
    wanted = label(engine, scan())
    network.batches.clear()
    network.fail = [None, None, RuntimeError("DefaultCPUAllocator: not enough memory")]
    found = label(engine, scan())
    np.testing.assert_array_equal(found.labels, wanted.labels)
    assert len(network.batches) == found.provenance["windows"] + 1
    assert any("memory of cpu is full" in note.lower() for note in found.notes)


def test_other_errors_of_the_network_pass_through(engine, stub, small_windows):
    network = stub()
    network.fail = [ValueError("nonsense")]
    with pytest.raises(ValueError, match="nonsense"):
        label(engine, scan())


def test_what_is_recorded_is_plain_json(engine, stub):
    stub()
    found = label(engine, scan())
    assert json.loads(json.dumps(dict(found.provenance))) == found.provenance
    assert found.provenance["options"]["step"] == 0.5
    assert found.seconds > 0


def test_the_same_request_gives_the_same_labels(engine, stand_ins):
    """With stand-in weights of the real network, in a new engine as well."""
    stand_ins.add("stu-net-s")
    volume = scan((32, 32, 64))
    first = label(engine, volume, checkpoint="stu-net-s")
    engine.unload()
    again = label(engine, volume, checkpoint="stu-net-s")
    np.testing.assert_array_equal(again.labels, first.labels)
    assert first.names == {n: name for n, name in enumerate(organs.TOTAL_SEGMENTATOR) if n}
    assert len(np.unique(first.labels)) > 10


# -- input that can't be served, or hardly -----------------------------------------------------


def test_an_image_without_voxel_size_is_refused(engine, stub):
    stub()
    geometry = Geometry((20, 20, 20), NETWORK_ORDER, unit="pixel", frame="image")
    with pytest.raises(EngineError, match="voxel size"):
        label(engine, Volume(np.ones((20, 20, 20)), geometry))


def test_an_empty_scan_is_refused_and_an_empty_region_is_empty(engine, stub):
    stub()
    zeros = Volume(np.zeros((20, 20, 20), np.int16), grid((20, 20, 20), (1.5, 1.5, 1.5)))
    with pytest.raises(EngineError, match="is empty"):
        label(engine, zeros)
    array = zeros.array.copy()
    array[12:] = 50
    found = label(engine, Volume(array, zeros.geometry), Box((0, 0, 0), (5, 5, 5)))
    assert not found.labels.any()
    assert any("empty" in note for note in found.notes)


def test_a_region_outside_the_scan_is_refused(engine, stub):
    stub()
    with pytest.raises(GeometryError, match="does not lie in"):
        label(engine, scan(), Box((0, 0, 0), (5, 5, 500)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_served(engine, stub, axis):
    stub()
    volume = scan()
    region = [slice(None)] * 3
    region[axis] = slice(20, 21)
    array = volume.array[tuple(region)]
    found = label(engine, Volume(array, grid(array.shape, (1.5, 1.5, 1.5)), modality="CT"))
    assert found.labels.shape == array.shape
    assert found.labels.any()
    assert any("thin" in note for note in found.notes)


@pytest.mark.parametrize("dtype", [">i2", "float64", "float32", "int32"])
def test_number_types_change_nothing(engine, stub, dtype):
    stub()
    volume = scan()
    other = Volume(volume.array.astype(dtype), volume.geometry, modality="CT")
    np.testing.assert_array_equal(label(engine, other).labels, label(engine, volume).labels)


def test_nan_counts_as_zero(engine, stub):
    stub()
    array = scan().array.astype(np.float32)
    array[3:5, 20:30, 20:30] = np.nan
    found = label(engine, Volume(array, scan().geometry, modality="CT"))
    assert found.labels.any()
    nothing = Volume(np.full((20, 20, 20), np.nan, np.float32), grid((20,) * 3, (1.5,) * 3))
    assert label(engine, nothing).labels.shape == (20, 20, 20)


def test_a_lazy_array_is_served(engine, stub):
    import dask.array as da

    stub()
    volume = scan()
    lazy = Volume(da.from_array(volume.array, chunks=16), volume.geometry, modality="CT")
    np.testing.assert_array_equal(label(engine, lazy).labels, label(engine, volume).labels)


def test_a_grid_without_end_is_refused(engine, stub):
    stub()
    volume = Volume(scan().array, grid((40, 48, 56), (900.0, 900.0, 900.0)))
    with pytest.raises(EngineError, match="too many"):
        label(engine, volume)


def test_inputs_are_never_written_to(engine, stub):
    stub()
    volume = scan()
    volume.array.setflags(write=False)
    before = volume.array.copy()
    label(engine, volume)
    np.testing.assert_array_equal(volume.array, before)


def test_without_a_model_it_is_told_where_to_get_one(engine, stand_ins, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path))
    with pytest.raises(CheckpointError, match="no weights here yet"):
        label(engine, scan())
