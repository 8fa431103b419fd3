"""Windows lie and count as nnU-Net's and PyMIC's do; sums are exact and leave memory early."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from golden_networks import read_json
from tiling_networks import ByValue, probe, tiny

from napari_openmedlab.errors import Cancelled
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.tiling import placement
from napari_openmedlab.models.tiling import run as run_module
from napari_openmedlab.models.tiling.placement import (
    Windows,
    gaussian_line,
    nnunet_starts,
    pymic_starts,
)
from napari_openmedlab.models.tiling.run import PlainScores, Tiling, run
from napari_openmedlab.models.tiling.sinks import KeepLabels, KeepMeans
from napari_openmedlab.models.tiling.sums import Sums, bytes_needed

CASES = {"sw_tiny_pad": (32, 32, 64), "sw_tiny_p32x32x64": (32, 32, 64)}
ALL_CASES = CASES | {
    "sw_probe_90x100x110": (64, 64, 64),
    "sw_probe_aniso": (33, 48, 65),
    "sw_tiny_single": (32, 32, 64),
    "sw_tiny_aligned": (32, 32, 64),
}
ANSWERS = {"probabilities": ("v1_probs", "v1_argmax"), "logits": ("v2fp32_logits", "v2fp32_argmax")}


def means(volume, tiling, network, classes):
    sink = KeepMeans(volume.shape[1:], classes)
    run(volume, tiling, network, sink, Monitor())
    return sink.means


def check(folder, name, tag, average, storage="float32"):
    """Return largest difference of means and share of labels that differ from a golden file."""
    with np.load(folder / f"{name}.npz") as found:
        stored = dict(found)
    volume = stored["input"]
    network = probe if "probe" in name else tiny()
    mirror = (0, 1, 2) if tag == "mirror" else ()
    tiling = Tiling(Windows.nnunet(volume.shape[1:], ALL_CASES[name]), average, mirror, storage, 2)
    values, labels = (stored.get(f"{key}_{tag}{end}") for key, end in zip(
        ANSWERS[average], ("_sub", ""), strict=True))  # fmt: skip
    classes = 4 if "probe" in name else 5
    got = means(volume, tiling, network, classes)
    sink = KeepLabels(volume.shape[1:], classes)
    run(volume, tiling, network, sink, Monitor())
    off = np.mean(sink.labels[::2, ::2, ::2] != labels)
    if values is None:
        return 0.0, off
    return np.abs(got[:, 1::5, 2::5, 3::5] - values).max(), off


def test_starts_are_nnunets(golden):
    for case in read_json(golden / "stu_net" / "sw_starts.json"):
        found = [
            list(nnunet_starts(max(size, patch), patch, case["step"]))
            for size, patch in zip(case["image"], case["patch"], strict=True)
        ]
        assert found == case["starts"]


def test_the_gaussian_is_nnunets(golden):
    lines = np.load(golden / "stu_net" / "gaussian.npz")
    for key in lines.files:
        sizes, axis = key.split("_")[0].split("x"), int(key[-1])
        np.testing.assert_allclose(gaussian_line(int(sizes[axis])), lines[key], atol=1e-7)
    assert gaussian_line(128)[0] == pytest.approx(np.exp(-8), rel=1e-6)


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("tag", ["nomirror", "mirror"])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_blended_windows_equal_upstreams(golden, name, tag, average):
    largest, off = check(golden / "stu_net", name, tag, average)
    assert largest < 1e-4  # measured: 1.6e-5
    assert off == 0


@pytest.mark.parametrize("name", sorted(set(ALL_CASES) - set(CASES)))
@pytest.mark.parametrize("tag", ["nomirror", "mirror"])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_more_blended_windows_equal_upstreams(full_golden, name, tag, average):
    largest, off = check(full_golden / "stu_net", name, tag, average)
    assert largest < 1e-4
    assert off == 0


@pytest.mark.parametrize("tag", ["nomirror", "mirror"])
def test_sums_in_16_bits_are_close(golden, tag):
    largest, off = check(golden / "stu_net", "sw_tiny_pad", tag, "probabilities", "int16")
    assert largest < 3e-4  # measured: 2.0e-5, with eight mirrored passes 6.2e-5
    assert off < 5e-4  # random weights decide many voxels by less than that


def monai_starts(size, patch, step=0.5):
    stride = int(patch * step)
    return tuple(min(n, size - patch) for n in range(0, size - patch + stride, stride))


FAULTS = {
    "windows of MONAI": ("nnunet_starts", lambda size, patch, step=0.5: monai_starts(size, patch)),
    "a Gaussian between voxels": (
        "gaussian_line",
        lambda n: np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2),
    ),
    "a Gaussian with a floor": (
        "gaussian_line",
        lambda n: np.maximum(np.exp(-0.5 * ((np.arange(n) - n // 2) / (n / 8)) ** 2), 0.1),
    ),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_the_golden_files_notice_other_placement_and_weights(golden, monkeypatch, fault):
    monkeypatch.setattr(placement, *FAULTS[fault])
    largest, _ = check(golden / "stu_net", "sw_tiny_pad", "nomirror", "logits")
    assert largest > 1e-2


def test_the_golden_files_tell_probabilities_from_logits(golden):
    stored = np.load(golden / "stu_net" / "sw_tiny_p32x32x64.npz")
    differ = stored["v1_argmax_nomirror"] != stored["v2fp32_argmax_nomirror"]
    assert differ.mean() > 1e-4


def pymic_reference(volume, network, window, stride):
    """PyMIC restated: every window as often as it is listed, float64."""
    total = count = 0.0
    shape = volume.shape[1:]
    starts = [pymic_starts(n, w, s) for n, w, s in zip(shape, window, stride, strict=True)]
    z, y, x = (gaussian_line(w) for w in window)
    weight = z[:, None, None] * y[:, None] * x
    for place in itertools.product(*starts):
        cut = tuple(slice(a, a + w) for a, w in zip(place, window, strict=True))
        logits = network(torch.from_numpy(volume[(slice(None), *cut)])[None]).logits[0].numpy()
        part, share = np.zeros((4, *shape)), np.zeros(shape)
        part[(slice(None), *cut)], share[cut] = weight * logits, weight
        total, count = total + part, count + share
    return total / count


def test_pymic_windows_count_as_often_as_pymic_runs_them():
    volume = np.random.default_rng(0).normal(size=(1, 24, 32, 32)).astype(np.float32)
    windows = Windows.pymic((24, 32, 32), (16, 16, 16), (8, 8, 8))
    assert len(windows) == 18  # of 48 runs
    found = means(volume, Tiling(windows, "logits"), probe, 4)
    wanted = pymic_reference(volume, probe, (16, 16, 16), (8, 8, 8))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_pymic_window_shrinks_to_a_thin_volume():
    windows = Windows.pymic((10, 32, 20), (16, 16, 64), (8, 8, 64))
    assert windows.patch == (10, 16, 20)
    assert len(windows) == 3


@pytest.mark.parametrize("shape", [(90, 70, 50), (20, 90, 40), (33, 32, 100)])
def test_shares_of_all_windows_add_up_to_one(shape):
    windows = Windows.nnunet(shape, (32, 32, 48), 0.5)
    for axis in windows.axes:
        total = np.zeros(axis.padded)
        for start, share in zip(axis.starts, axis.shares(), strict=True):
            total[start : start + axis.patch] += share
        np.testing.assert_allclose(total, 1.0)


@pytest.mark.parametrize("shape", [(90, 70, 50), (20, 90, 40), (33, 32, 100)])
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_every_voxel_comes_out_once_whatever_the_batch(shape, batch):
    volume = np.random.default_rng(1).uniform(0, 4, size=(1, *shape)).astype(np.float32)
    tiling = Tiling(Windows.nnunet(shape, (32, 32, 48), 0.5), batch=batch)
    network, seen = ByValue(5), np.zeros(shape, dtype=int)

    class Count(KeepLabels):
        def add(self, brick):
            z, y = brick.start
            seen[z : z + brick.shape[0], y : y + brick.shape[1]] += 1
            super().add(brick)

    sink = Count(shape, 5)
    report = run(volume, tiling, network, sink, Monitor())
    assert (seen == 1).all()
    np.testing.assert_array_equal(sink.labels, np.rint(volume[0]))
    assert sum(network.batches) == report.windows == len(tiling.windows)
    assert max(network.batches) <= batch


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("storage", ["float32", "int16"])
def test_windows_skipped_as_background_change_no_label(average, storage):
    """A network that calls air background, on a body in air: nothing differs, less is run."""
    if (average, storage) == ("logits", "int16"):
        pytest.skip("logits are kept in float32")
    volume = np.zeros((1, 96, 96, 96), dtype=np.float32)
    volume[0, 30:60, 40:64, 4:30] = np.random.default_rng(2).integers(1, 5, size=(30, 24, 26))
    tiling = Tiling(Windows.nnunet((96, 96, 96), (32, 32, 32), 0.5), average, (), storage)
    network = ByValue(5)
    every, some = KeepLabels((96, 96, 96), 5), KeepLabels((96, 96, 96), 5)
    run(volume, tiling, network, every, Monitor())

    def empty(window):
        return not tiling.windows.cut(volume, window).any()

    report = run(volume, tiling, network, some, Monitor(), empty)
    assert 0 < report.skipped < report.windows
    np.testing.assert_array_equal(every.labels, some.labels)


def test_a_volume_of_nothing_but_skipped_windows_is_background():
    volume = np.ones((1, 40, 40, 40), dtype=np.float32)
    sink, network = KeepLabels((40, 40, 40), 5), ByValue(5)
    report = run(
        volume, Tiling(Windows.nnunet((40, 40, 40), (32, 32, 32))), network, sink, Monitor(),
        lambda _window: True,
    )  # fmt: skip
    assert report.skipped == report.windows == 8
    assert not network.batches
    assert not sink.labels.any()


def test_progress_names_each_window_and_a_cancel_acts_at_the_next():
    told = []
    monitor = Monitor(told.append, interval=0.0)
    network = ByValue(3)
    volume = np.zeros((1, 64, 64, 64), dtype=np.float32)
    tiling = Tiling(Windows.nnunet((64, 64, 64), (32, 32, 32)))

    def stop_later(patches):
        if len(network.batches) == 4:
            monitor.cancel()
        return network(patches)

    with pytest.raises(Cancelled):
        run(volume, tiling, stop_later, KeepLabels((64, 64, 64), 3), monitor)
    assert len(network.batches) == 5
    assert [each.done for each in told] == [0, 1, 2, 3, 4]
    assert told[0].text == "window 1 of 27"


def test_sums_of_105_classes_on_a_large_grid_stay_below_two_gib():
    windows = Windows.nnunet((400, 333, 333), (128, 128, 128), 0.5)
    assert len(windows) == 150
    whole = 105 * 400 * 333 * 333 * 4
    assert whole > 17 * 2**30
    assert bytes_needed(windows, 105, "int16") < 2.3e9  # all in all: python -m benchmarks organs
    assert bytes_needed(windows, 105, "float32") == 2 * bytes_needed(windows, 105, "int16")


def test_what_is_said_to_be_needed_is_what_is_allocated(monkeypatch):
    volume = np.zeros((1, 90, 70, 50), dtype=np.float32)
    tiling = Tiling(Windows.nnunet((90, 70, 50), (32, 32, 48), 0.5))
    most, made = 0, []

    class Watched(Sums):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

        def finish(self, i, j):
            nonlocal most
            most = max(most, self.nbytes)
            return super().finish(i, j)

    monkeypatch.setattr(run_module, "Sums", Watched)
    report = run(volume, tiling, ByValue(5), KeepLabels((90, 70, 50), 5), Monitor())
    assert most == report.sums_bytes
    assert made[0].nbytes == 0


def test_logits_are_never_kept_in_16_bits():
    volume = np.zeros((1, 32, 32, 48), dtype=np.float32)
    tiling = Tiling(Windows.nnunet((32, 32, 48), (32, 32, 48)), "logits", storage="int16")
    report = run(volume, tiling, ByValue(3), KeepLabels((32, 32, 48), 3), Monitor())
    assert report.storage == "float32"


def test_impossible_windows_are_refused():
    for size, patch, step in ((10, 16, 0.5), (20, 16, 0.0), (20, 16, 1.5)):
        with pytest.raises(ValueError, match=r"window|step"):
            nnunet_starts(size, patch, step)
    with pytest.raises(ValueError, match="don't fit"):
        pymic_starts(20, 16, 17)


def test_plain_scores_put_classes_last():
    logits = torch.arange(2 * 3 * 4 * 5 * 6, dtype=torch.float32).view(2, 3, 4, 5, 6)
    rows = PlainScores(logits).rows(1, 2, 4)
    assert rows.shape == (2, 5, 6, 3)
    assert torch.equal(rows[0, 1, 2], logits[1, :, 2, 1, 2])
