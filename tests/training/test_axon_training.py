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
from napari_openmedlab.training.axon_plan import (
    AXONS,
    AxonTraining,
    begin_axons,
    patch_of,
    read_plan,
)
from napari_openmedlab.training.axon_samples import (
    AxonCubes,
    TrainingCube,
    cut_mix,
    fitting_patch,
    match_histogram,
    read_cubes,
)
from napari_openmedlab.training.axon_training import resume_axons, train_axons


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


@pytest.fixture(scope="module")
def small(cubes):
    """The cubes cut to the size of one patch: one window to be measured."""
    cut = (slice(4, 36), slice(8, 40), slice(4, 68))
    return tuple(TrainingCube(c.name, c.image[cut], c.label[cut]) for c in cubes)


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


def test_cubes_of_one_name_are_told_apart():
    from napari_openmedlab.training.axon_held_out import split_cubes

    kept, out = split_cubes(_named(["cube"] * 10, [1] * 10), None, seed=1)
    assert (len(kept), len(out)) == (8, 2)


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

    class Store:
        def get(self, name):
            if name == "organs":
                return Record("organs", "stu-net")
            return Record(name, "axon-seg", {"patch_size": 64})

    with pytest.raises(SettingsError, match="stu-net, which finds no axons"):
        patch_of(AxonTraining(init="organs"), Store())
    with pytest.raises(SettingsError, match="64 x 64 x 64"):
        patch_of(AxonTraining(init="small", patch=(128, 128, 128)), Store())
    assert patch_of(AxonTraining(init="small"), Store()) == (64, 64, 64)


def test_the_patch_is_as_large_as_the_cubes_allow(cubes):
    assert fitting_patch(cubes) == (32, 32, 64)
    large = TrainingCube("large", np.zeros((200, 150, 128), np.float32), np.zeros(1, np.uint8))
    assert fitting_patch([large]) == (128, 128, 128)
    flat = TrainingCube("flat", np.zeros((20, 150, 128), np.float32), np.zeros(1, np.uint8))
    with pytest.raises(SettingsError, match="20 x 150 x 128"):
        fitting_patch([flat, large])


def _learnt(out, iterations=1):
    """Leave a state as a training would."""
    torch = pytest.importorskip("torch")
    from napari_openmedlab.training.state import write_state

    write_state(out / "state.safetensors", {"w": torch.zeros(1)}, {"iteration": iterations})


def test_a_training_is_gone_on_with_only_as_it_was_begun(cubes, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    folder, out = _folder(cubes, tmp_path / "cubes"), tmp_path / "run"
    begin_axons(folder, out, AxonTraining(iterations=3, seed=4))
    begin_axons(folder, out, AxonTraining(iterations=3))  # nothing was learnt yet
    plan = json.loads((out / AXONS).read_text())
    assert plan["settings"]["patch"] == [32, 32, 64]
    _learnt(out)
    free = AxonTraining("other", iterations=9, learning_rate=1e-5, accumulation=2, device="cpu")
    begin_axons(folder, out, free)
    assert json.loads((out / AXONS).read_text())["settings"]["iterations"] == 9
    begin_axons(folder, out, AxonTraining(iterations=3))
    with pytest.raises(WriteError, match=r"another training .seed: 4 instead of 1"):
        begin_axons(folder, out, AxonTraining(iterations=3, seed=4))
    assert json.loads((out / AXONS).read_text()) == plan
    with pytest.raises(CheckpointError, match="no model 'nowhere'"):
        begin_axons(folder, tmp_path / "other", AxonTraining(init="nowhere"))
    assert not (tmp_path / "other").exists()
    (out / AXONS).write_text('{"format": 1}')
    with pytest.raises(ReadError, match="another version"):
        resume_axons(out)


def test_changed_cubes_are_noticed_moved_ones_are_not(cubes, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    folder, out = _folder(cubes, tmp_path / "cubes"), tmp_path / "run"
    begin_axons(folder, out, AxonTraining(iterations=3))
    _learnt(out)
    moved = folder.rename(tmp_path / "elsewhere")
    begin_axons(moved, out, AxonTraining(iterations=3))
    assert read_plan(out).folder == moved
    corrected = cubes[0].label.copy()
    corrected[0, 0, :5] = 1
    other = (TrainingCube("a", cubes[0].image, corrected), *cubes[1:])
    again = _folder(other, tmp_path / "corrected")
    with pytest.raises(WriteError, match=r"another training .changed: axon-0001"):
        begin_axons(again, out, AxonTraining(iterations=3))
    for path in (moved / "labels").iterdir():
        path.write_bytes((again / "labels" / path.name).read_bytes())
    with pytest.raises(SettingsError, match=r"after the training was begun: changed: axon-0001\."):
        resume_axons(out)


def test_a_run_under_way_is_left_alone(cubes, tmp_path, monkeypatch):
    from napari_openmedlab.models.checkpoints.locks import locked
    from napari_openmedlab.training.run_folder import LOCK

    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    folder, out = _folder(cubes, tmp_path / "cubes"), tmp_path / "run"
    begin_axons(folder, out)
    with locked(out / LOCK, ""), pytest.raises(WriteError, match="under way"):
        train_axons(folder, out, AxonTraining(iterations=7))
    assert read_plan(out).settings.iterations == AxonTraining.iterations


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0},
        {"iterations": 0},
        {"held_out": -1},
        {"cl_dice": float("nan")},
        {"learning_rate": float("inf")},
        {"mixing": 1.5},
        {"accumulation": 3},
    ],
)
def test_settings_that_can_not_run_are_refused_at_once(wrong):
    with pytest.raises(SettingsError):
        AxonTraining(**wrong)


def test_cubes_of_one_running_number_keep_their_names(cubes, tmp_path):
    folder = _folder(cubes, tmp_path / "cubes")
    for part in ("images", "labels"):
        for number, path in enumerate(sorted((folder / part).iterdir())):
            path.rename(path.with_name(f"cube_{number:04d}.nii.gz"))
    assert [cube.name for cube in read_cubes(folder)] == ["cube_0000", "cube_0001", "cube_0002"]


@pytest.mark.slow
def test_a_training_in_parts_is_that_in_one_go(small, tmp_path, monkeypatch):
    """Two iterations; or a cancel after one of more, and the rest under another name."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    from napari_openmedlab.errors import Cancelled
    from napari_openmedlab.training.events import Note, Step

    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    folder = _folder(small, tmp_path / "cubes")
    settings = AxonTraining("whole", iterations=2, batch=1, held_out=1, device="cpu")
    whole = train_axons(folder, tmp_path / "whole", settings)

    monitor, seen = Monitor(), []

    def hear(event):
        seen.append(event)
        if isinstance(event, Step) and event.iteration == 1:
            monitor.cancel()

    settings = replace(settings, name="parts", iterations=9)
    with pytest.raises(Cancelled, match="after iteration 1 of 9"):
        train_axons(folder, tmp_path / "parts", settings, monitor=monitor, on_event=hear)
    assert any(isinstance(e, Note) and "of the memory" in e.text for e in seen)
    settings = replace(settings, name="whole", iterations=2)
    parts = train_axons(folder, tmp_path / "parts", settings)
    assert parts.record.name == "whole-2"  # the other one has the name
    one, other = load_file(whole.weights), load_file(parts.weights)
    assert all(torch.equal(one[key], other[key]) for key in one)
    lines = [(tmp_path / n / "history.jsonl").read_text() for n in ("whole", "parts")]
    assert lines[0] == lines[1]
    with pytest.raises(CheckpointError, match="already is a model 'whole'"):
        begin_axons(folder, tmp_path / "parts", settings)
