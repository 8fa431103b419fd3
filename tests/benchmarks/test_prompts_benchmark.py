"""The benchmark of the prompt engines runs, and what it compares with is upstream's pipeline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the engines need the extra 'models'")

from sam_med3d_upstream_order import UpstreamOrder, pasted, prepare  # noqa: E402

from napari_openmedlab.geometry.prompts import PromptSet  # noqa: E402
from napari_openmedlab.geometry.volume import Geometry, Volume  # noqa: E402
from napari_openmedlab.io.api import read  # noqa: E402
from napari_openmedlab.models.contract import Monitor, Request  # noqa: E402
from napari_openmedlab.session.workbench import Workbench  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="benchmarks are not part of an installed package"
)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "prompts", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)


# -- the measure -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ct_psr", "mr_lpi"])
def test_the_comparison_prepares_and_pastes_as_upstream(golden, full_golden, name):
    folder = (golden if name == "ct_psr" else full_golden) / "sam_med3d"
    stored = np.load(folder / f"prep_{name}.npz")
    volume = read(folder / f"{name}_image.nii.gz")
    point = (stored["affine"] @ np.append(stored["click_voxel"], 1))[:3] * [-1, -1, 1]
    ready = prepare(volume, point, ct=False)
    assert ready.canonical.shape == tuple(stored["canonical_shape"])
    np.testing.assert_allclose(ready.affine, stored["B_roi_affine"], atol=1e-4)
    assert np.count_nonzero(ready.raw > 0) == stored["B_norm_count_mean_std"][0]
    wanted = stored["B_roi_image_sub"]
    np.testing.assert_allclose(ready.pixels[::3, ::3, ::3], wanted, atol=0.01)
    i, j, k = np.meshgrid(*[np.arange(128)] * 3, indexing="ij")
    mask = ((i - 60) / 30.0) ** 2 + ((j - 70) / 22.0) ** 2 + ((k - 58) / 26.0) ** 2 < 1
    mask |= (np.abs(i - 64) < 6) & (j > 64) & (j < 100) & (np.abs(k - 40) < 5)
    mask[:3, :3, :3] = True
    found = pasted(mask, ready.affine, volume.geometry)
    assert np.count_nonzero(found) == stored["B_back_count"]


@pytest.mark.parametrize("flip", [False, True])
def test_the_engine_gives_the_comparisons_mask(stand_ins, flip):
    record = stand_ins.add("sam-med3d")
    rng = np.random.default_rng(8)
    array = rng.integers(-300, 900, (9, 20, 18)).repeat(8, 0).repeat(9, 1).repeat(9, 2)
    array = (array + rng.integers(-30, 30, array.shape)).astype(np.int16)
    affine = np.array([[0, 0, 0.93, -80], [0, 0.93, 0, -70], [-2.1, 0, 0, 90], [0, 0, 0, 1.0]])
    if flip:  # array axes along R, S and P instead of I, P and L
        affine = affine[[2, 1, 0, 3]] * np.array([[-1], [1], [-1], [1]])
    volume = Volume(array, Geometry(array.shape, affine), modality="CT")
    point = tuple(volume.geometry.to_world((30, 100, 70)))
    options = {"checkpoint": record.name, "device": "cpu", "smooth": False}
    bench = Workbench()
    request = Request(PromptSet().with_click(point), options=options)
    found = bench.predict("sam-med3d", volume, request, Monitor())
    bench.release()
    network = stand_ins.store.load(record.name)
    wanted, stages = UpstreamOrder(network, reference=False).first(volume, point)
    different = np.count_nonzero(found.patch.to_full(array.shape) != wanted)
    assert wanted.any()
    assert different <= 0.002 * np.count_nonzero(wanted)
    assert set(stages.seconds) >= {"resample the scan", "encoder", "paste back"}
    # The measure can fail: the next working voxel is another crop, and another mask.
    beside, _ = UpstreamOrder(network, reference=False).first(volume, (point[0] + 1.5, *point[1:]))
    assert np.count_nonzero(beside != wanted) > 0.002 * np.count_nonzero(wanted)


# -- the program -----------------------------------------------------------------------------


def test_rows_print_medians_extremes_and_remarks():
    from benchmarks._prompt_run import Rows, Took

    rows = Rows(3)
    took = rows.add("task", [Took(0.5, 0.1), Took(2.0, 0.3), Took(0.1, 0.2)], "a remark")
    assert took == Took(0.5, 0.2)
    head, _, row = rows.table().split("\n")
    assert head.count("|") == row.count("|")
    cells = "| task | 500 ms | 100 ms | 2.00 s | 200 ms | 3 | a remark |"
    assert row == cells


def test_no_two_places_open_the_same_crop():
    from benchmarks._prompt_run import places

    found = [tuple(spot) for spot, _ in zip(places((300, 512, 512)), range(20), strict=False)]
    assert len(set(found)) == len(found)
    assert all(0 <= v < n for spot in found for v, n in zip(spot, (300, 512, 512), strict=True))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["magic"], "no engine magic"), (["--runs", "0"], "--runs"), (["--threads", "-1"], "--runs")],
)
def test_wrong_usage_is_refused(arguments, words):
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.slow
def test_sam_med3d_is_measured_against_upstreams_order():
    done = run("sam-med3d", "--quick", "--runs", "1", "--threads", "1", "--shape", "40", "80", "90")
    assert done.returncode == 0, done.stderr
    for row in ("first answer", "next click", "crop sampled", "back to the scan", "upstream's"):
        assert f"| {row}" in done.stdout or f"| part: {row}" in done.stdout
    assert "times as long as the first answer" in done.stdout
    assert "stand-in weights" in done.stdout
