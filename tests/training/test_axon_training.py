"""Axon cubes become patches as described, and the training loop learns from them."""

import numpy as np
import pytest

from benchmarks.axon_tubes import TubeScene, make_tubes
from napari_openmedlab.axons.annotate import Cube, export_cubes
from napari_openmedlab.errors import ReadError, SettingsError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.training.axon_samples import (
    AxonCubes,
    TrainingCube,
    cut_mix,
    match_histogram,
    read_cubes,
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
    from napari_openmedlab.training.axon_training import AxonTraining, axon_task
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


@pytest.mark.slow
def test_the_plain_network_is_trained_stored_and_known_to_the_engine(cubes, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from napari_openmedlab.training.axon_training import AxonTraining, train_axons

    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    settings = AxonTraining("My axons", (32, 32, 64), iterations=1, batch=1, device="cpu")
    trained = train_axons(_folder(cubes, tmp_path / "cubes"), tmp_path / "run", settings)
    assert trained.record.network == "axon-seg-plain"
    assert trained.record.name == "my-axons"
    assert trained.result.iteration == 1
