"""``openmedlab label``: scans in, labels with the names of a model of one's own out."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from trained_models import ByBrightness, answer_with, put

from napari_openmedlab.io.api import read, read_labels
from napari_openmedlab.models.checkpoints.store import ModelStore

pytest.importorskip("torch", reason="models need the extra 'models'")


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    return ModelStore()


@pytest.fixture
def model(store, tmp_path, monkeypatch):
    put(store, tmp_path, "blobs")
    answer_with(monkeypatch, ByBrightness())


def scan(path, seed=0):
    array = np.zeros((40, 44, 12), np.int16)
    array[4:12, 8 + seed : 20, 2:6] = 100
    array[20:34, 22:40, 5:11] = 200
    nibabel.Nifti1Image(array, np.diag([-1.0, -1.5, 2.5, 1])).to_filename(path)
    return array


def test_labels_lie_on_the_scans_grid_with_names_and_colours(model, tmp_path, openmedlab):
    image, out = tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz"
    array = scan(image)
    done = openmedlab("label", image, "-o", out, "--device", "cpu")
    assert done.code == 0, done.err
    assert "7 dim:" in done.out
    assert "ml" in done.out
    _, infos = read_labels(out, read(image))
    assert {value: info.name for value, info in infos.items()} == {7: "dim", 3: "bright"}
    assert infos[7].colour == pytest.approx((10 / 255, 200 / 255, 30 / 255), abs=1e-5)
    stored = np.asarray(nibabel.load(out).dataobj)
    np.testing.assert_array_equal(stored, np.select([array == 100, array == 200], [7, 3]))


def test_many_scans_go_into_a_folder_and_a_bad_one_is_left_out(model, tmp_path, openmedlab):
    out = tmp_path / "out"
    out.mkdir()
    images = [tmp_path / f"s{n}.nii.gz" for n in range(2)]
    for n, image in enumerate(images):
        scan(image, n)
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no")
    done = openmedlab("label", bad, *images, "-o", out, "--model", "blobs")
    assert done.code == 1
    assert "bad.nii.gz" in done.err
    assert "1 of 3 scans" in done.err
    assert (out / "s0.nii.gz").exists()
    assert (out / "s1.nii.gz").exists()
    assert not (out / "bad.nii.gz").exists()


def test_wrong_use_is_told_before_anything_is_computed(store, tmp_path, openmedlab):
    image = tmp_path / "scan.nii.gz"
    scan(image)
    none = openmedlab("label", image, "-o", tmp_path / "l.nii.gz")
    assert none.code == 2
    assert "no weights here yet" in none.err
    put(store, tmp_path, "blobs")
    for arguments, why in (
        ((image, image, "-o", tmp_path / "x.nii.gz"), "several scans need an existing one"),
        ((image, "-o", tmp_path), "would be overwritten"),
        ((image, "-o", tmp_path / "x.png"), "ends in one of"),
        ((image, "-o", tmp_path / "x.nii.gz", "--step", 3), "lies between"),
    ):
        done = openmedlab("label", *arguments)
        assert done.code == 2
        assert why in " ".join(done.err.replace("│", " ").split())
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "b").mkdir()
    scan(tmp_path / "b" / "scan.nii.gz")
    done = openmedlab("label", image, tmp_path / "b" / "scan.nii.gz", "-o", folder)
    assert "one by one" in done.err


def test_weights_that_are_only_a_start_are_named_as_such(stand_ins):
    from napari_openmedlab.cli.weights import readiness
    from napari_openmedlab.models.catalogue import get_spec

    record = stand_ins.add("fmunet", channels=[2, 2, 4, 4, 4])
    assert readiness(get_spec("mis-fm"), [record]) == (
        f"{record.name} must be trained first (openmedlab finetune)"
    )
