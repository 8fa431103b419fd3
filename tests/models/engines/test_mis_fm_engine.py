"""Models of one's own as an engine: the card rules, PyMIC's numbers, regions, refusals."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from trained_models import CARD, VARIANT, ByBrightness, answer_with, options, put, with_input

from napari_openmedlab.errors import Cancelled, CheckpointError, EngineError, GeometryError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.catalogue import load_engine
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.mis_fm.working import work_on
from napari_openmedlab.models.finetuned import Intensity
from napari_openmedlab.models.tiling.placement import Windows, gaussian_line
from napari_openmedlab.models.tiling.run import PlainScores, Tiling, run
from napari_openmedlab.models.tiling.sinks import KeepMeans

CASES = {"ragged": (16, 8), "thin": (16, 8), "odd": ((9, 11, 11), (4, 6, 6))}


def scan(shape=(12, 40, 48), spacing=(3.0, 1.0, 1.0), unit="mm"):
    """A dim box and a bright one on dark ground; values 0, 100 and 200."""
    array = np.zeros(shape, dtype=np.int16)
    z, y, x = shape
    array[z // 4 : -z // 4, y // 4 : y // 2, x // 8 : x // 2] = 100
    array[z // 3 :, y // 2 : -y // 4, x // 2 :] = 200
    affine = np.array([[0, 0, 1, 5], [0, 1, 0, 6], [-1, 0, 0, 7], [0, 0, 0, 1.0]])
    affine[:3, :3] *= spacing
    return Volume(array, Geometry(shape, affine, unit=unit), name="box")


def wanted(volume):
    return np.select([volume.array == 100, volume.array == 200], [7, 3]).astype(np.uint8)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    return ModelStore()


@pytest.fixture
def engine():
    made = load_engine("mis-fm")
    yield made
    made.unload()


@pytest.fixture
def use(store, tmp_path, monkeypatch):
    """Put a model with this card into the store; it answers by brightness."""

    def put_in(card=CARD, lean=0.0):
        put(store, tmp_path, "mine", card)
        network = ByBrightness(lean=lean)
        answer_with(monkeypatch, network)
        return network

    return put_in


def label(engine, volume, region=None, monitor=None, **given):
    region = region or Box.whole(volume.geometry.shape)
    return engine.segment(volume, region, options(**given), monitor or Monitor())


# -- PyMIC's numbers ---------------------------------------------------------------------------


def tiny(stored):
    """The golden files' network, which knows where in the window it is."""

    def network(x):
        found = functional.conv3d(
            x,
            torch.from_numpy(stored["w:a.weight"]),
            torch.from_numpy(stored["w:a.bias"]),
            padding=1,
        )
        found = functional.conv3d(
            torch.tanh(found),
            torch.from_numpy(stored["w:b.weight"]),
            torch.from_numpy(stored["w:b.bias"]),
            padding=1,
        )
        z, y, x = (torch.linspace(-1, 1, n) for n in found.shape[2:])
        place = 0.3 * (z[:, None, None] + y[:, None] + x)
        return found + place * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1)

    return network


def pymic(volume, network, windows):
    """PyMIC's own scheme: every window as often as it is listed, none left out."""
    weight = np.ones((), dtype=np.float64)
    for axis, edge in enumerate(windows.patch):
        weight = weight * gaussian_line(edge).reshape([-1 if a == axis else 1 for a in range(3)])
    total, count, runs = 0.0, 0.0, 0
    starts = [
        [s for s, n in zip(axis.starts, axis.counts, strict=True) for _ in range(n)]
        for axis in windows.axes
    ]
    for place in itertools.product(*starts):
        cut = tuple(slice(a, a + w) for a, w in zip(place, windows.patch, strict=True))
        logits = network(torch.from_numpy(volume[(slice(None), slice(None), *cut)]))[0].numpy()
        part, share = np.zeros((2, *volume.shape[2:])), np.zeros(volume.shape[2:])
        part[(slice(None), *cut)], share[cut] = weight * logits, weight
        total, count, runs = total + part, count + share, runs + 1
    return total / count, runs


@pytest.mark.parametrize("name", sorted(CASES))
def test_each_window_once_gives_what_pymic_gets_running_them_again_and_again(golden, name):
    stored = dict(np.load(golden / "mis_fm" / "sliding_window.npz"))
    patch, stride = (v if isinstance(v, tuple) else (v,) * 3 for v in CASES[name])
    volume, network = stored[f"x:{name}"], tiny(stored)
    windows = Windows.pymic(volume.shape[2:], patch, stride)
    sink = KeepMeans(volume.shape[2:], 2)
    tiling = Tiling(windows, "logits", batch=2)
    run(volume[0], tiling, lambda x: PlainScores(network(x)), sink, Monitor())
    assert np.abs(sink.means - stored[f"y:{name}"][0]).max() < 2e-5
    reference, runs = pymic(volume, network, windows)
    assert np.abs(reference - stored[f"y:{name}"][0]).max() < 2e-5
    assert len(windows) < runs


# -- what comes out ----------------------------------------------------------------------------


def test_labels_have_the_values_and_names_of_the_card(engine, use):
    network = use()
    volume = scan()
    found = label(engine, volume)
    np.testing.assert_array_equal(found.labels, wanted(volume))
    assert found.labels.dtype == np.uint8
    assert found.names == {7: "dim", 3: "bright"}
    assert {shape[2:] for shape in network.windows} == {(8, 32, 32)}
    assert len(network.windows) == 2 * 2 * 2
    assert found.provenance["model"] == "mine"
    assert found.provenance["windows"] == 8
    assert "Dice 0.85 on 1 held-out case" in found.notes[0]


def test_real_weights_give_the_networks_own_answer(engine, store, tmp_path):
    put(store, tmp_path, "mine")
    rng = np.random.default_rng(0)
    volume = Volume(rng.uniform(0, 200, (8, 32, 32)).astype(np.float32), scan((8, 32, 32)).geometry)
    found = label(engine, volume)
    network = store.load("mine")
    with torch.inference_mode():
        logits = network(torch.from_numpy(volume.array / 100 - 1)[None, None])
    expected = np.array([0, 7, 3])[logits[0].argmax(0).numpy()]
    assert (found.labels != expected).mean() < 1e-3  # ties of rounding


def test_a_region_is_labelled_as_in_the_whole(engine, use):
    use()
    volume = scan((20, 80, 90))
    region = Box((3, 17, 30), (11, 55, 61))
    found = label(engine, volume, region)
    assert found.box == region
    np.testing.assert_array_equal(found.labels, wanted(volume)[region.slices])


@pytest.mark.parametrize("spacing", [(3.0, 1.0, 1.0), (1.5, 2.0, 2.0), (6.0, 0.7, 1.3)])
def test_the_cards_grid_is_gone_to_and_come_back_from(engine, use, spacing):
    network = use(with_input(spacing=spacing))
    volume = scan((24, 80, 88))
    found = label(engine, volume)
    truth = wanted(volume)
    for value in (7, 3):
        a, b = found.labels == value, truth == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.8
    if spacing == (3.0, 1.0, 1.0):
        np.testing.assert_array_equal(found.labels, truth)
    else:
        part = label(engine, volume, Box((5, 20, 20), (19, 60, 70)))
        assert (part.labels != found.labels[5:19, 20:60, 20:70]).mean() < 0.05
    assert {shape[2:] for shape in network.windows} == {(8, 32, 32)}


@pytest.mark.parametrize("shape", [(3, 40, 48), (1, 20, 30), (5, 9, 7)])
def test_a_scan_thinner_than_a_window_is_mirrored_up_to_it(engine, use, shape):
    use()
    volume = (
        scan(shape)
        if min(shape) > 1
        else Volume(scan((3, *shape[1:])).array[1:2], scan(shape).geometry)
    )
    found = label(engine, volume)
    np.testing.assert_array_equal(found.labels, wanted(volume))
    assert any("mirrored" in note for note in found.notes)
    working = work_on(volume, Box.whole(shape), CARD.preprocessing, Monitor())
    assert working.data.shape[1] >= 8
    assert set(np.unique(working.data)) <= set(np.unique(volume.array / 100 - 1).astype(np.float32))


def test_z_scores_are_those_of_the_whole_scan(use, engine):
    card = with_input(intensity=Intensity("z-score"))
    use(card)
    volume = scan((20, 80, 90))
    region = Box((10, 40, 45), (14, 50, 60))
    working = work_on(volume, region, card.preprocessing, Monitor())
    values = (volume.array - volume.array.mean()) / (volume.array.std() + 1e-5)
    np.testing.assert_allclose(working.data[0], values[working.seen.slices], atol=1e-5)


def test_steps_mirrors_and_largest_pieces(engine, use):
    network = use()
    volume = scan()
    volume.array[0, 0, 0] = 100
    found = label(engine, volume, largest_piece=True)
    assert wanted(volume)[0, 0, 0] == 7
    assert found.labels[0, 0, 0] == 0
    assert (found.labels == 7).sum() == (volume.array == 100).sum() - 1
    network.windows.clear()
    label(engine, volume, step=1.0)
    assert len(network.windows) == 2 * 2 * 2  # 12 x 40 x 48 in windows of 8 x 32 x 32
    network.windows.clear()
    label(engine, volume, mirror=True)
    assert len(network.windows) == 4 * 8


def test_a_cancel_acts_at_the_next_window(engine, use):
    network = use()
    seen = []

    def report(progress):
        seen.append(progress)
        if len(network.windows) == 2:
            monitor.cancel()

    monitor = Monitor(report, interval=0.0)
    with pytest.raises(Cancelled):
        label(engine, scan(), monitor=monitor)
    assert len(network.windows) == 3  # the one announced with the cancel is run
    assert any("window 2 of 8" in progress.text for progress in seen)


# -- what is refused ---------------------------------------------------------------------------


def test_published_weights_are_a_start_for_training_and_segment_nothing(engine, stand_ins):
    record = stand_ins.add("fmunet", channels=[2, 2, 4, 4, 4])
    with pytest.raises(EngineError, match=r"pre-trained only.*segments nothing.*Train"):
        label(engine, scan(), checkpoint=record.name)


def test_weights_of_unknown_classes_are_refused_in_words(engine, stand_ins):
    record = stand_ins.add("fmunet", channels=[2, 2, 4, 4, 4], out_channels=3)
    with pytest.raises(EngineError, match="does not say what its classes are"):
        label(engine, scan(), checkpoint=record.name)


def test_without_a_model_of_ones_own_the_way_to_one_is_told(engine, store, tmp_path):
    with pytest.raises(CheckpointError, match=r"no model of your own here yet\. Train one"):
        label(engine, scan())
    pretext = replace(CARD, kind="pretext", classes=(), title="Start")
    put(store, tmp_path, "start", pretext)
    with pytest.raises(CheckpointError, match=r"here yet \(start: pre-trained only\)"):
        label(engine, scan())
    with pytest.raises(EngineError, match="pre-trained only"):
        label(engine, scan(), checkpoint="start")
    put(store, tmp_path, "mine")
    assert label(engine, scan()).provenance["model"] == "mine"


def test_a_model_of_several_images_is_refused(engine, store, tmp_path):
    put(store, tmp_path, "two", replace(CARD, variant={**VARIANT, "in_channels": 2}))
    with pytest.raises(EngineError, match="wants 2 images"):
        label(engine, scan())


def test_scans_that_cant_be_worked_on(engine, use):
    use(with_input(spacing=(3.0, 1.0, 1.0)))
    with pytest.raises(GeometryError, match="voxel size"):
        label(engine, scan(unit="pixel"))
    with pytest.raises(GeometryError, match="does not lie in"):
        label(engine, scan(), Box((0, 0, 0), (99, 1, 1)))
    with pytest.raises(GeometryError, match="does not lie in"):
        label(engine, scan(), Box((1, 1, 1), (1, 1, 1)))


def test_a_constant_scan_has_nothing_to_segment_by(engine, use):
    use(with_input(intensity=Intensity("z-score")))
    volume = Volume(np.full((12, 40, 40), 7, np.int16), scan((12, 40, 40)).geometry)
    with pytest.raises(EngineError, match="same value"):
        label(engine, volume)


def test_values_that_are_none_count_as_ground(engine, use):
    use()
    volume = scan()
    array = volume.array.astype(np.float32)
    array[0] = np.nan
    found = label(engine, Volume(array, volume.geometry))
    np.testing.assert_array_equal(found.labels[1:], wanted(volume)[1:])
