"""Scans as the network sees them, and the patches drawn from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_phantoms import case, scan

from napari_openmedlab.errors import CheckpointError, EngineError, WriteError
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.finetuned import Intensity, LabelClass, Preprocessing
from napari_openmedlab.models.preparation import scaling_of
from napari_openmedlab.training.batches import Batches, generator
from napari_openmedlab.training.cases import check_cases
from napari_openmedlab.training.prepared import FOLDER, Prepared, open_cases, prepare_cases
from napari_openmedlab.training.sampling import Patches, changed

CLASSES = (LabelClass("ball", 1), LabelClass("block", 2))

PLAIN = Preprocessing((16, 32, 32), (8, 16, 16))


def prepared(found, folder, preprocessing=PLAIN, classes=CLASSES):
    prepare_cases(found.cases, preprocessing, classes, folder, Monitor())
    return open_cases(folder)


def test_z_scores_are_the_published_ones(golden):
    with np.load(golden / "mis_fm" / "znorm.npz") as file:
        image, wanted = file["znorm_input"][0], file["znorm"][0]
    volume = Volume(image, Geometry.from_spacing(image.shape, (1, 1, 1)))
    np.testing.assert_allclose(scaling_of(volume, Intensity()).apply(image), wanted, atol=1e-6)


def test_a_window_goes_to_minus_one_and_one_and_values_that_are_none_to_zero():
    scaling = scaling_of(scan(0)[0], Intensity("clip", -1000, 1000))
    values = np.array([-2000, -1000, 0, 500, 1000, 3000, np.nan], np.float32)
    np.testing.assert_allclose(scaling.apply(values), [-1, -1, 0, 0.5, 1, 1, 0])


def test_cases_keep_their_voxels_where_nothing_is_resampled(tmp_path):
    found = check_cases([case(0)])
    (one,) = prepared(found, tmp_path)
    volume, labels = scan(0)
    assert np.array_equal(one.labels, labels)
    assert np.allclose(one.image.mean(), 0, atol=1e-4)
    assert np.allclose(one.image.std(), 1, atol=1e-4)
    assert np.corrcoef(one.image.ravel(), volume.array.ravel())[0, 1] > 0.9999
    for value in (1, 2):
        assert (one.labels.ravel()[one.places[value]] == value).all()


def test_thin_scans_are_mirrored_to_a_patch_with_their_labels(tmp_path):
    volume, labels = scan(0)
    thin = Volume(volume.array[:5], Geometry.from_spacing((5, 34, 36), (1.5, 1, 1)))
    marked = labels[:5].copy()
    marked[2:4, 5:9, 5:9] = 1
    found = check_cases(
        [case(0, image=thin, labels=marked)], {1: "ball"}, others_as_background=True
    )
    (one,) = prepared(found, tmp_path, Preprocessing((32, 32, 32), (16, 16, 16)), CLASSES[:1])
    assert one.image.shape == (32, 34, 36)
    assert np.array_equal(one.labels[one.inside], np.where(marked == 1, 1, 0))
    first = one.inside[0].start
    assert np.array_equal(one.image[first - 1], one.image[first + 1])
    assert np.array_equal(one.labels[first - 1], one.labels[first + 1])


def test_scans_are_brought_to_the_spacing(tmp_path):
    found = check_cases([case(0)])
    asked = Preprocessing((8, 16, 16), (8, 8, 8), spacing=(3.0, 2.0, 2.0))
    (one,) = prepared(found, tmp_path, asked)
    assert one.image.shape == (12, 17, 18)
    volume, labels = scan(0)
    for value in (1, 2):
        assert (one.labels == value).sum() * 8 == pytest.approx((labels == value).sum(), rel=0.25)
    assert volume.geometry.spacing == (1.5, 1.0, 1.0)


def test_a_case_that_vanished_is_named_and_damaged_ones_are_refused(tmp_path):
    found = check_cases([case(0)])
    gone = tmp_path / "gone.nii.gz"
    object.__setattr__(found.cases[0].case, "image", gone)
    with pytest.raises(EngineError, match=r"case 0 can't be prepared: .*gone"):
        prepare_cases(found.cases, PLAIN, CLASSES, tmp_path, Monitor())
    with pytest.raises(CheckpointError, match="start the run anew"):
        open_cases(tmp_path)
    prepared(check_cases([case(1)]), tmp_path)
    (tmp_path / FOLDER / "0000_image.npy").write_bytes(b"no array")
    with pytest.raises(CheckpointError):
        open_cases(tmp_path)


def test_a_full_disk_is_told_before_a_case_is_written(tmp_path, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9, 0))
    with pytest.raises(WriteError, match="preparing case 0 needs"):
        prepare_cases(check_cases([case(0)]).cases, PLAIN, CLASSES, tmp_path, Monitor())


# -- patches -----------------------------------------------------------------------------------


def in_memory(shape, voxels):
    """Return a case whose image tells each voxel's own number."""
    labels = np.zeros(shape, np.uint8)
    for value, places in voxels.items():
        labels[tuple(np.transpose(places))] = value
    image = np.arange(labels.size, dtype=np.float32).reshape(shape)
    places = {v: np.flatnonzero(labels == v) for v in voxels}
    return Prepared("made", image, labels, tuple(slice(0, n) for n in shape), places)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(8, 30)] * 3),
    st.tuples(*[st.floats(0, 0.999)] * 3),
    st.integers(0, 10**6),
    st.sampled_from(["", "zyx", "yx", "z"]),
)
def test_patches_stay_inside_and_image_and_labels_stay_together(shape, where, seed, flips):
    voxel = tuple(int(part * n) for part, n in zip(where, shape, strict=True))
    one = in_memory(shape, {1: [voxel]})
    for foreground in (0.0, 1.0):
        samples = Patches([one], (8, 8, 8), foreground, flips)
        image, labels = samples.draw(generator(seed, 0, 0))
        assert image.shape == (1, 8, 8, 8)
        assert labels.shape == (8, 8, 8)
        numbers = image[0].astype(int)
        assert np.array_equal(labels, one.labels.ravel()[numbers])
        if foreground:
            assert labels.any()
        grown = [int(np.sign(np.diff(numbers, axis=axis).mean())) for axis in range(3)]
        for axis, letter in enumerate("zyx"):
            assert grown[axis] == 1 or letter in flips


def test_rare_classes_are_seen_as_often_as_large_ones():
    block = [(z, y, x) for z in range(8) for y in range(8) for x in range(8)]
    one = in_memory((40, 40, 40), {1: block, 2: [(30, 30, 30)]})
    samples = Patches([one, one], (8, 8, 8), 1.0)
    seen = [samples.draw(generator(1, n, 0))[1] for n in range(300)]
    rare = sum(bool((labels == 2).any()) for labels in seen)
    assert 110 < rare < 190
    # Its place in the patch tells nothing: it is everywhere.
    spots = np.array([np.argwhere(labels == 2)[0] for labels in seen if (labels == 2).any()])
    assert np.ptp(spots, axis=0).tolist() == [7, 7, 7]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 0.5))
def test_changes_are_mild_and_keep_the_order_of_values(seed, strength):
    image = np.linspace(-2, 3, 1000, dtype=np.float32).reshape(10, 10, 10)
    new = changed(image, strength, np.random.default_rng(seed))
    assert (np.diff(new.ravel()) >= -1e-6).all()
    assert np.abs(new - image).max() <= 5 * strength + 1e-5
    assert np.array_equal(changed(image, 0.0, np.random.default_rng(seed)), image)


def test_batches_are_the_same_from_any_iteration_on():
    samples = Patches([in_memory((20, 20, 20), {1: [(5, 5, 5)]})], (8, 8, 8), 0.5, "yx", 0.1)
    with Batches(samples, 3, 2, 0, 6) as batches:
        whole = list(batches)
    with Batches(samples, 3, 2, 4, 6) as batches:
        rest = list(batches)
    assert len(whole) == 6
    assert len(rest) == 2
    for (image, labels), (again, same) in zip(whole[4:], rest, strict=True):
        assert np.array_equal(image, again)
        assert np.array_equal(labels, same)
    assert not np.array_equal(whole[0][0][0], whole[0][0][1])


def test_an_error_in_drawing_comes_out():
    class Broken:
        def draw(self, rng):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"), Batches(Broken(), 1, 2, 0, 3) as batches:
        next(iter(batches))
