"""`openmedlab axons annotate`: cubes with labels by threshold, ready for training."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import tifffile

from napari_openmedlab.axons.annotate import (
    Cube,
    export_cubes,
    fine_label,
    high_pass,
    rough_label,
)
from napari_openmedlab.geometry.boxes import Box

BOX = Box((0, 0, 0), (32, 32, 64))


@pytest.fixture
def stack(tmp_path):
    cube = np.random.default_rng(3).normal(300, 5, (20, 36, 40)).astype(np.uint16)
    cube[10, 18, 2:38] += 400
    path = tmp_path / "brain.tif"
    tifffile.imwrite(path, cube, photometric="minisblack", metadata={"axes": "ZYX"})
    return path, cube


def test_cubes_with_axons_and_with_artefacts(openmedlab, stack, tmp_path):
    path, cube = stack
    out = tmp_path / "cubes"
    points = tmp_path / "points.csv"
    points.write_text("X,Y,Slice\n20,18,11\n")
    command = ("axons", "annotate", path, out, "--size", "16", "--voxel-size", "4,2,2")
    done = openmedlab(*command, "--points", points, "--threshold", "100")
    assert done.code == 0, done.err
    assert openmedlab(*command, "--at", "10,5,20", "--artefact").code == 0
    listed = json.loads((out / "cubes.json").read_text())
    assert sorted(listed) == ["artefact-0002", "axon-0001"]
    assert listed["axon-0001"]["start (z, y, x)"] == [2, 10, 12]
    image = cube[2:18, 10:26, 12:28]
    stored = np.asarray(nib.load(out / "images" / "axon-0001.nii.gz").dataobj).T
    np.testing.assert_array_equal(stored, image)
    label = np.asarray(nib.load(out / "labels" / "axon-0001.nii.gz").dataobj).T
    np.testing.assert_array_equal(label > 0, fine_label(rough_label(high_pass(image), 100)))
    assert label.any()


def test_wrong_use_is_said_and_writes_nothing(openmedlab, stack, tmp_path):
    path, _ = stack
    command = ("axons", "annotate", path, tmp_path / "cubes", "--size", "16")
    command += ("--voxel-size", "4,2,2")
    both = openmedlab(*command, "--at", "10,5,20", "--artefact", "--threshold", "3")
    assert both.code == 2
    nowhere = openmedlab(*command, "--threshold", "3")
    assert nowhere.code == 2
    assert "--at" in nowhere.err
    outside = openmedlab(*command, "--at", "99,5,20", "--artefact")
    assert outside.code == 2
    assert "outside the volume" in outside.err
    too_high = openmedlab(*command, "--at", "10,18,20", "--threshold", "5000")
    assert too_high.code != 0
    assert "nothing was written" in too_high.err.replace("\n", " ")
    assert not (tmp_path / "cubes").exists()


def test_a_folder_without_cubes_is_named_by_train(openmedlab, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    done = openmedlab("axons", "train", tmp_path, tmp_path / "run")
    assert done.code == 2
    assert "there is no scan" in done.err
    assert not (tmp_path / "run").exists()


def cut_cubes(folder):
    """Three cubes of the size of a patch: axons along x, y, and none."""
    images = np.random.default_rng(4).normal(300, 20, (3, 32, 32, 64))
    labels = np.zeros(images.shape, bool)
    labels[0, 14:17, 10:13] = labels[1, 8:10, :, 30:33] = True
    images += 400 * labels
    cubes = [
        Cube(grey.astype(np.uint16), label, "axon" if label.any() else "artefact", BOX)
        for grey, label in zip(images, labels, strict=True)
    ]
    export_cubes(folder, cubes, (2.0, 1.0, 1.0))


@pytest.mark.slow
def test_a_model_is_trained_stored_known_to_the_engine_and_trained_further(
    openmedlab, tmp_path, monkeypatch
):
    pytest.importorskip("torch")
    from napari_openmedlab.models.checkpoints.store import ModelStore

    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    cut_cubes(tmp_path / "cubes")
    command = ("axons", "train", tmp_path / "cubes")
    few = ("--iterations", "1", "--batch", "1", "--device", "cpu")
    done = openmedlab(*command, tmp_path / "run", "--name", "My axons", "--held-out", "1", *few)
    assert done.code == 0, done.err
    said = done.out + done.err
    assert "of the memory" in said
    assert "The model 'my-axons' is ready. Held-out cubes, weights of iteration 1" in said
    assert "--option checkpoint=my-axons" in said
    told = json.loads((tmp_path / "run" / "held_out.json").read_text())
    assert {"strict Dice", "clDice", "centre-line F1 (2 voxels)"} < told.keys()
    assert len(told["cubes"]) == 1

    further = (*command, tmp_path / "further", "--name", "better", "--init", "my-axons", *few)
    done = openmedlab(*further, "--patch", "32,32,64", "--learning-rate", "1e-12")
    assert done.code == 0, done.err
    assert "Nothing was held out" in done.out + done.err
    store = ModelStore()
    assert store.get("better").network == "axon-seg-plain"
    first, second = (store.load(name).state_dict() for name in ("my-axons", "better"))
    for key, value in first.items():
        np.testing.assert_allclose(second[key], value, atol=1e-6, err_msg=key)
    done = openmedlab(*further, "--patch", "64,64,64")
    assert done.code == 2
    assert "already is a model 'better'" in done.err.replace("\n", " ")
