"""`openmedlab axons`: a volume in, OME-Zarr out; it goes on, and refuses what can't be right."""

from __future__ import annotations

import json

import block_engines
import numpy as np
import pytest
import tifffile
import zarr


@pytest.fixture(autouse=True)
def smooth(monkeypatch):
    block_engines.register(monkeypatch)


@pytest.fixture
def stack(tmp_path):
    cube = np.random.default_rng(3).normal(300, 50, (20, 36, 40)).astype(np.uint16)
    path = tmp_path / "brain.tif"
    tifffile.imwrite(path, cube, photometric="minisblack", metadata={"axes": "ZYX"})
    return path


def test_a_run_its_repetition_and_another_threshold(openmedlab, stack, tmp_path):
    out = tmp_path / "out"
    command = ("axons", stack, out, "--engine", "smooth", "--voxel-size", "4,2,2")
    done = openmedlab(*command, "--region", "2:19,0:35,3:39")
    assert done.code == 0, done.err
    assert "brain: 20 x 36 x 40 uint16, 4 x 2 x 2 um" in done.out
    assert f"Written: {out / 'axons.zarr'}" in done.out
    labels = zarr.open_group(str(out / "axons.zarr"), mode="r")["labels/axons/0"]
    assert labels.shape == (18, 36, 37)
    calls = block_engines.Smooth.calls
    assert openmedlab(*command, "--region", "2:19,0:35,3:39").code == 0
    assert block_engines.Smooth.calls == calls + 2  # only the block that is timed
    moved = openmedlab("axons", "threshold", out, "0.7")
    assert moved.code == 0
    assert "Labels at 0.7" in moved.out
    assert json.loads((out / "run.json").read_text())["threshold"] == 0.7
    other = openmedlab(*command)
    assert other.code == 1
    assert "holds another run" in other.err


def test_the_voxel_size_is_asked_for(openmedlab, stack, tmp_path):
    asked = openmedlab("axons", stack, tmp_path / "out", "--engine", "smooth")
    assert asked.code == 2
    assert "does not state its voxel size" in asked.err
    assert not (tmp_path / "out").exists()
    done = openmedlab(
        "axons", stack, tmp_path / "out", "--engine", "smooth", "--voxel-size", "unknown"
    )
    assert done.code == 0
    assert "voxel size unknown" in done.out
    assert json.loads((tmp_path / "out" / "run.json").read_text())["spacing"] is None


def test_the_plan_alone_writes_nothing(openmedlab, stack, tmp_path):
    done = openmedlab(
        "axons", stack, tmp_path / "out", "-e", "smooth", "--voxel-size", "4,2,2", "--plan"
    )
    assert done.code == 0
    assert "of memory, at most" in done.out
    assert "About" in done.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--region", "1:2,3"), "a region reads"),
        (("--region", "5:2,0:3,0:3"), "a region reads"),
        (("--region", "0:90,0:3,0:3"), "does not lie in brain"),
        (("--voxel-size", "1,2"), "--voxel-size"),
        (("--engine", "built-in"), "finds no axons; take one of axon-filter"),
        (("--engine", "gone"), "there is no engine 'gone'"),
        (("--option", "size=3"), "has no option size"),
        (("--threshold", "0"), "--threshold"),
    ],
)
def test_what_can_not_be_right_is_refused(openmedlab, stack, tmp_path, arguments, sentence):
    given = {"--engine": "smooth", "--voxel-size": "4,2,2"}
    given.update(dict([arguments]))
    words = [word for pair in given.items() for word in pair]
    done = openmedlab("axons", stack, tmp_path / "out", *words)
    assert done.code == 2
    assert sentence in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()


def test_a_stack_becomes_ome_zarr(openmedlab, stack, tmp_path):
    out = tmp_path / "brain.zarr"
    command = ("axons", "convert", stack, out, "--voxel-size", "4,2,2")
    planned = openmedlab(*command, "--plan")
    assert "on the disk" in planned.out
    assert not out.exists()
    done = openmedlab(*command)
    assert done.code == 0, done.err
    array = zarr.open_group(str(out), mode="r")["0"]
    np.testing.assert_array_equal(array[:], tifffile.imread(stack))
    again = openmedlab(*command)
    assert again.code == 1
    assert "nothing was changed" in again.err


def test_a_skeleton_comes_from_a_finished_run_only(openmedlab, tmp_path):
    cube = np.random.default_rng(3).normal(300, 20, (24, 40, 60)).astype(np.uint16)
    cube[11:14, 19:22, 4:56] += 800
    path = tmp_path / "tube.tif"
    tifffile.imwrite(path, cube, photometric="minisblack", metadata={"axes": "ZYX"})
    out = tmp_path / "out"
    missing = openmedlab("axons", "skeleton", out)
    assert missing.code == 2
    assert "holds no run of axons" in missing.err
    assert openmedlab("axons", path, out, "--voxel-size", "4,2,2").code == 0
    done = openmedlab("axons", "skeleton", out)
    assert done.code == 0, done.err
    rows = np.loadtxt(out / "skeleton.swc")
    assert 60 < np.ptp(rows[:, 2]) < 120  # 52 voxels of 2 um, less the ends that thinning takes
    np.testing.assert_allclose(np.median(rows[:, 3:5], axis=0), [40, 48], atol=3)
    assert len((out / "branches.csv").read_text().splitlines()) >= 2
    counted = openmedlab("axons", "density", out, "--edge", "20", "--of", "voxels")
    assert counted.code == 0, counted.err
    labels = zarr.open_group(str(out / "axons.zarr"), mode="r")["labels/axons/0"][:]
    assert f"total {labels.sum()}." in counted.out
    assert (out / "density.nii.gz").exists()
    fine = openmedlab("axons", "density", out, "--edge", "1")
    assert "smaller than the voxels" in fine.err
    journal = out / "journal.jsonl"
    journal.write_text("")
    unfinished = openmedlab("axons", "skeleton", out)
    assert unfinished.code == 2
    assert "is not finished: 0 of 1 blocks" in unfinished.err
