"""Axon cubes become patches as described, and the training loop learns from them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.axon_tubes import TubeScene, make_tubes
from napari_openmedlab.axons.annotate import Cube, export_cubes
from napari_openmedlab.errors import CheckpointError, ReadError, SettingsError, WriteError
from napari_openmedlab.evaluation.axon_metrics import cl_dice
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.training.axon_samples import (
    AxonCubes,
    TrainingCube,
    cut_mix,
    fitting_patch,
    match_histogram,
    read_cubes,
)
from napari_openmedlab.training.axon_training import (
    AXONS,
    AxonTraining,
    begin_axons,
    resume_axons,
    train_axons,
)


@pytest.fixture(scope="module")
def cubes():
    truth = make_tubes(TubeScene(shape=(40, 48, 72), axons=8, blobs=2, edge=False, seed=1))
    other = make_tubes(TubeScene(shape=(40, 48, 72), axons=1, blobs=4, seed=2)).image
    image, label = truth.image.astype(np.float32), truth.mask.astype(np.uint8)
    return (
        TrainingCube("a", image, label),
        TrainingCube("b", image[::-1] * 2 + 50, label[::-1]),
        TrainingCube("junk", other.astype(np.float32), np.zeros_like(label)),
    )


def test_cut_mix_overwrites_a_corner_and_clears_its_label():
    image, label = np.ones((4, 5, 6), np.float32), np.ones((4, 5, 6), np.uint8)
    mixed, left = cut_mix(image, label, np.full((4, 5, 6), 7, np.float32), (2, 3, 4))
    assert (mixed[:2, :3, :4] == 7).all()
    assert (mixed == 7).sum() == 24
    np.testing.assert_array_equal(left == 0, mixed == 7)
    assert (image == 1).all()
    assert (label == 1).all()


def test_histograms_are_matched_as_scikit_image_does(cubes):
    from skimage.exposure import match_histograms

    own, model = cubes[0].image, cubes[1].image
    mine, theirs = match_histogram(own, own, model), match_histograms(own, model)
    assert np.abs(mine - theirs).mean() < 0.005 * model.std()


def test_patches_are_reproducible_normalised_and_of_both_kinds(cubes):
    samples = AxonCubes(cubes, (32, 32, 64))
    seen = [samples.draw(np.random.default_rng((1, n))) for n in range(12)]
    for image, label in seen:
        assert image.shape == (1, 32, 32, 64)
        assert image.dtype == np.float32
        assert label.shape == (32, 32, 64)
        assert label.dtype == np.uint8
        assert abs(float(image.mean())) < 1e-3
        assert float(image.std()) == pytest.approx(1, abs=1e-3)
    again = samples.draw(np.random.default_rng((1, 5)))
    np.testing.assert_array_equal(again[0], seen[5][0])
    filled = sum(bool(label.any()) for _, label in seen)
    assert 0 < filled < len(seen)


def test_cubes_that_do_not_suit_are_named(cubes):
    with pytest.raises(SettingsError, match="no cube holds an axon"):
        AxonCubes(cubes[2:], (32, 32, 64))
    with pytest.raises(SettingsError, match="cube 'a'"):
        AxonCubes(cubes, (64, 32, 64))


def _folder(cubes, path):
    box = Box((0, 0, 0), cubes[0].image.shape)
    made = [
        Cube(c.image.astype(np.uint16), c.label > 0, "artefact" if c.is_artefact else "axon", box)
        for c in cubes
    ]
    export_cubes(path, made, (2.0, 1.0, 1.0))
    return path


def test_exported_cubes_are_read_back(cubes, tmp_path):
    folder = _folder(cubes, tmp_path / "cubes")
    read = {cube.name: cube for cube in read_cubes(folder)}
    assert [cube.is_artefact for cube in read.values()] == [n[:2] == "ar" for n in read]
    np.testing.assert_array_equal(read["axon-0001"].image, cubes[0].image)
    np.testing.assert_array_equal(read["axon-0001"].label, cubes[0].label)
    (folder / "labels" / "axon-0001.nii.gz").unlink()
    with pytest.raises(ReadError, match="axon-0001"):
        read_cubes(folder)


def test_the_loop_learns_with_the_loss_for_axons(cubes, tmp_path):
    torch = pytest.importorskip("torch")
    from napari_openmedlab.training.axon_training import axon_task
    from napari_openmedlab.training.events import Step
    from napari_openmedlab.training.loop import run_loop

    settings = AxonTraining(
        patch=(32, 32, 64), iterations=14, cl_dice=0.2, learning_rate=0.02, device="cpu"
    )
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.LeakyReLU(), torch.nn.Conv3d(4, 2, 1)
    )
    network.deep_supervision = False
    losses = []

    def hear(event):
        if isinstance(event, Step):
            losses.append(event.loss)

    result = run_loop(axon_task(network, cubes, settings), settings.loop, tmp_path, on_event=hear)
    assert result.iteration == 14
    assert np.mean(losses[-4:]) < np.mean(losses[:3]) - 0.1


def _named(names, filled):
    image, empty = np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.uint8)
    return [TrainingCube(n, image, empty + f) for n, f in zip(names, filled, strict=True)]


def test_a_fifth_of_the_cubes_is_held_out_whatever_their_order():
    from napari_openmedlab.training.axon_held_out import split_cubes

    cubes = _named("abcdefghijklmno", [1] * 10 + [0] * 5)
    kept, out = split_cubes(cubes, None, seed=1)
    assert [cube.is_artefact for cube in out] == [False, False, True]
    assert sorted(c.name for c in (*kept, *out)) == sorted(c.name for c in cubes)
    again = split_cubes(cubes[::-1], None, seed=1)
    assert [c.name for c in again[1]] == [c.name for c in out]
    others = {tuple(c.name for c in split_cubes(cubes, None, seed=n)[1]) for n in range(8)}
    assert len(others) > 1


def test_few_cubes_are_all_trained_on_and_one_always_stays():
    from napari_openmedlab.training.axon_held_out import split_cubes

    cubes = _named("abcdef", [1, 1, 1, 1, 0, 0])
    assert split_cubes(cubes, None, seed=1)[1] == ()
    assert split_cubes(cubes, 0, seed=1)[1] == ()
    assert [c.is_artefact for c in split_cubes(cubes, 2, seed=1)[1]].count(True) == 1
    with pytest.raises(SettingsError, match="4 of 4"):
        split_cubes(cubes, 4, seed=1)


def test_held_out_cubes_are_measured_as_named(cubes):
    torch = pytest.importorskip("torch")
    from napari_openmedlab.models.device import Placement
    from napari_openmedlab.training.axon_held_out import HeldOutCubes
    from napari_openmedlab.training.axon_samples import standardised

    class Bright(torch.nn.Module):
        """Calls axon what lies above 1."""

        def forward(self, patch):
            return torch.cat([torch.ones_like(patch), patch], dim=1)

    bright = (standardised(cubes[0].image) > 1).astype(np.uint8)
    half = bright.copy()
    half[:, :, half.shape[2] // 2 :] = 0
    place, monitor = Placement("cpu", "float32", 1), Monitor()
    right = HeldOutCubes((TrainingCube("a", cubes[0].image, bright),), (32, 32, 64))
    assert right(Bright(), place, monitor) == {"axons": 1.0}
    assert set(right.measures(Bright(), place, monitor).values()) == {1.0}
    others = (TrainingCube("a", cubes[0].image, half), cubes[2])
    wrong = standardised(cubes[2].image) > 1
    some = HeldOutCubes(others, (32, 32, 64))
    dice = 2 * half.sum() / (half.sum() + bright.sum() + wrong.sum())
    assert some(Bright(), place, monitor)["axons"] == pytest.approx(dice)
    found = some.measures(Bright(), place, monitor)
    assert found["artefact voxels taken for axon"] == pytest.approx(wrong.mean())
    assert found["clDice"] == cl_dice(bright > 0, half > 0) < 0.9
    assert found["centre-line F1 (2 voxels)"] < 0.9


def test_a_start_from_what_does_not_fit_is_refused_before_anything_is_built():
    from napari_openmedlab.models.checkpoints.records import Record
    from napari_openmedlab.training.axon_training import AxonTraining, _patch_of

    class Store:
        def get(self, name):
            if name == "organs":
                return Record("organs", "stu-net")
            return Record(name, "axon-seg", {"patch_size": 64})

    with pytest.raises(SettingsError, match="stu-net, which finds no axons"):
        _patch_of(AxonTraining(init="organs"), Store())
    with pytest.raises(SettingsError, match="64 x 64 x 64"):
        _patch_of(AxonTraining(init="small", patch=(128, 128, 128)), Store())
    assert _patch_of(AxonTraining(init="small"), Store()) == (64, 64, 64)


def test_the_patch_is_as_large_as_the_cubes_allow(cubes):
    assert fitting_patch(cubes) == (32, 32, 64)
    large = TrainingCube("large", np.zeros((200, 150, 128), np.float32), np.zeros(1, np.uint8))
    assert fitting_patch([large]) == (128, 128, 128)
    flat = TrainingCube("flat", np.zeros((20, 150, 128), np.float32), np.zeros(1, np.uint8))
    with pytest.raises(SettingsError, match="20 x 150 x 128"):
        fitting_patch([flat, large])


def test_a_training_is_gone_on_with_only_as_it_was_begun(cubes, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    folder, out = _folder(cubes, tmp_path / "cubes"), tmp_path / "run"
    begin_axons(folder, out, AxonTraining(iterations=3))
    plan = json.loads((out / AXONS).read_text())
    assert plan["settings"]["patch"] == [32, 32, 64]
    begin_axons(folder, out, AxonTraining(iterations=9, device="cpu"))
    assert json.loads((out / AXONS).read_text())["settings"]["iterations"] == 9
    begin_axons(folder, out, AxonTraining(iterations=3))
    with pytest.raises(WriteError, match="another training"):
        begin_axons(folder, out, AxonTraining(iterations=3, seed=4))
    assert json.loads((out / AXONS).read_text()) == plan
    with pytest.raises(CheckpointError, match="no model 'nowhere'"):
        begin_axons(folder, tmp_path / "other", AxonTraining(init="nowhere"))
    assert not (tmp_path / "other").exists()
    (out / AXONS).write_text('{"format": 2}')
    with pytest.raises(ReadError, match="newer version"):
        resume_axons(out)


@pytest.mark.slow
def test_a_network_is_trained_stored_known_to_the_engine_and_trained_further(
    cubes, tmp_path, monkeypatch
):
    pytest.importorskip("torch")
    from napari_openmedlab.models.checkpoints.store import ModelStore

    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    folder = _folder(cubes, tmp_path / "cubes")
    settings = AxonTraining(
        "My axons", patch=(32, 32, 64), iterations=1, batch=1, held_out=1, device="cpu"
    )
    trained = train_axons(folder, tmp_path / "run", settings)
    assert trained.record.network == "axon-seg-plain"
    assert trained.record.name == "my-axons"
    assert trained.result.iteration == 1
    told = json.loads((tmp_path / "run" / "held_out.json").read_text())
    assert told["strict Dice"] == trained.result.dice["axons"]
    assert told["clDice"] == trained.measures["clDice"]
    assert len(told["cubes"]) == 1

    settings = replace(settings, name="better", init="my-axons", learning_rate=1e-12, held_out=0)
    further = train_axons(folder, tmp_path / "further", settings)
    assert further.measures == {}
    store = ModelStore()
    first, second = (store.load(name).state_dict() for name in ("my-axons", "better"))
    for key, value in first.items():
        np.testing.assert_allclose(second[key], value, atol=1e-6, err_msg=key)
