"""Whole runs: equal to the volume scored in one piece, stopped and gone on with, never confused."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace

import block_engines
import numpy as np
import pytest
import zarr
from block_engines import Smooth, smooth_score

from napari_openmedlab.axons.plan import IN_FLIGHT, Settings, blocks_of, make_plan
from napari_openmedlab.axons.run import execute
from napari_openmedlab.axons.source import open_source, source_of_array
from napari_openmedlab.axons.store import Results, quantised, relabel
from napari_openmedlab.errors import (
    Cancelled,
    EngineError,
    GeometryError,
    ReadError,
    WriteError,
)
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.io.ome_zarr_write import ImagePlace, build_levels, create_image
from napari_openmedlab.models.blocks import BlockLayout
from napari_openmedlab.models.catalogue import load_engine
from napari_openmedlab.models.contract import Monitor

SHAPE = (37, 50, 44)
SPACING = (2.0, 0.5, 0.5)


@pytest.fixture(autouse=True)
def smooth(monkeypatch):
    block_engines.register(monkeypatch)


@pytest.fixture
def volume():
    noise = np.random.default_rng(4).normal(300.0, 40.0, SHAPE)
    noise[20:24, 10:40, 8:36] += 200
    return noise.astype(np.uint16)


@pytest.fixture
def source(volume):
    return source_of_array(volume, name="brain", spacing=SPACING)


def planned(source, **changes):
    settings = Settings("smooth", skip_background=False, **changes)
    return make_plan(source, settings, load_engine("smooth"), Monitor(), timed=False)


def ran(source, folder, monitor=None, **changes):
    plan = planned(source, **changes)
    return plan, execute(plan, folder, load_engine("smooth"), monitor or Monitor())


def digest(folder):
    """Hash of every chunk and of the metadata of the images, by path."""
    files = sorted(p for p in (folder / "axons.zarr").rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


class StopAt(Monitor):
    """Cancels when a number of blocks is done."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks

    def step(self, done=0, total=0, text=""):
        if text.startswith("block") and done >= self.blocks:
            self.cancel()
        super().step(done, total, text)


@pytest.mark.parametrize(
    "region", [None, Box((3, 5, 7), (30, 45, 40)), Box((36, 0, 43), (37, 5, 44))]
)
def test_the_result_is_that_of_the_whole_volume_in_one_piece(source, volume, tmp_path, region):
    plan, results = ran(source, tmp_path / "out", region=region)
    whole = smooth_score(plan.survey.intensity.apply(volume))
    box = region or source.whole
    np.testing.assert_array_equal(results.probability[:], quantised(whole)[box.slices])
    np.testing.assert_array_equal(results.labels[:], quantised(whole)[box.slices] >= 128)
    assert 0 < np.mean(quantised(whole) >= 128) < 1
    assert results.complete


def test_results_open_as_ome_zarr_where_the_region_lies(source, tmp_path):
    region = Box((3, 5, 7), (30, 45, 40))
    _, results = ran(source, tmp_path / "out", region=region)
    for path in (results.image, results.label_image):
        opened = open_source(path)
        assert opened.spacing == SPACING
        np.testing.assert_allclose(
            opened.volume.geometry.to_world((0, 0, 0)), [7 * 0.5, 5 * 0.5, 3 * 2.0]
        )
    assert results.origin == (6.0, 2.5, 3.5)
    assert [b.shape for b in results.blocks()][-1] == (11, 8, 1)


@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize("anchored", [False, True])
def test_blocks_cover_every_voxel_once_and_reach_as_far_as_they_must(step, anchored):
    region = Box((2, 3, 5), (39, 33, 30))
    layout = BlockLayout((16, 16, 16), (3, 4, 5), (step,) * 3, anchored=anchored)
    count = np.zeros((40, 40, 40), int)
    for number, block in enumerate(blocks_of(region, layout)):
        assert block.number == number
        count[block.core.slices] += 1
        assert block.read.contains(block.core.grow((3, 4, 5)))
        assert all(
            (n - 2 * h) % step == 0 for n, h in zip(block.read.shape, (3, 4, 5), strict=True)
        )
        assert not anchored or block.read.start == block.core.grow((3, 4, 5)).start
    assert (count[region.slices] == 1).all()
    assert count.sum() == region.size


def test_a_cancelled_run_keeps_its_blocks_and_goes_on_bit_for_bit(source, tmp_path):
    ran(source, tmp_path / "one go")
    Smooth.calls = 0
    with pytest.raises(Cancelled):
        ran(source, tmp_path / "out", StopAt(5))
    kept = Results.open(tmp_path / "out").done()
    assert 5 <= len(kept) <= 5 + IN_FLIGHT
    assert not Results.open(tmp_path / "out").complete
    assert Smooth.calls == len(kept)
    plan, results = ran(source, tmp_path / "out")
    assert Smooth.calls == len(plan.blocks)
    assert digest(tmp_path / "out") == digest(tmp_path / "one go")
    assert results.complete
    ran(source, tmp_path / "out")
    assert Smooth.calls == len(plan.blocks)


def test_an_engine_that_breaks_leaves_a_run_that_goes_on(source, tmp_path):
    ran(source, tmp_path / "one go")
    Smooth.calls = 0
    plan = planned(source)
    broken = load_engine("smooth")
    inner = broken.score

    def score(*arguments):
        if Smooth.calls == 7:
            raise OSError("broke")
        return inner(*arguments)

    broken.score = score
    with pytest.raises(OSError, match="broke"):
        execute(plan, tmp_path / "out", broken, Monitor())
    assert len(Results.open(tmp_path / "out").done()) == 7
    execute(plan, tmp_path / "out", load_engine("smooth"), Monitor())
    assert digest(tmp_path / "out") == digest(tmp_path / "one go")


def test_a_journal_cut_off_in_a_line_and_a_half_written_chunk_are_mended(source, tmp_path):
    _, results = ran(source, tmp_path / "out")
    whole = digest(tmp_path / "out")
    journal = tmp_path / "out" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:6]) + lines[6][:9])
    last = [p for p in (results.image / "0").rglob("*") if p.is_file() and p.name[0] != "."][-1]
    last.write_bytes(last.read_bytes()[:10])
    ran(source, tmp_path / "out")
    assert digest(tmp_path / "out") == whole


def test_at_most_a_few_blocks_are_held_whatever_the_volume(source, tmp_path, monkeypatch):
    alive, most = [], []
    plan = planned(source_of_array(np.tile(source.volume.array, (1, 1, 2)), name="long"))
    read = type(source).read

    class Kept(np.ndarray):
        pass

    def watched(self, *arguments):
        block = read(self, *arguments).copy().view(Kept)
        alive.append(weakref.ref(block))
        most.append(sum(each() is not None for each in alive))
        return block

    monkeypatch.setattr(type(source), "read", watched)
    execute(plan, tmp_path / "out", load_engine("smooth"), Monitor())
    assert len(most) == len(plan.blocks) > 60
    assert max(most) <= IN_FLIGHT + 3


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">u2", "float32"])
def test_any_type_of_voxel_runs(volume, tmp_path, dtype):
    array = (volume // 4).astype(dtype)
    if array.dtype.kind == "f":
        array[5, 6, 7] = np.nan
    _, results = ran(source_of_array(array, name="brain"), tmp_path / "out")
    assert results.complete
    assert 0 < np.mean(results.labels[:]) < 1


def test_blocks_side_by_side_give_the_same(source, tmp_path):
    ran(source, tmp_path / "one go")
    plan = replace(planned(source), workers=3)
    with pytest.raises(Cancelled):
        execute(plan, tmp_path / "out", load_engine("smooth"), StopAt(5))
    assert 5 <= len(Results.open(tmp_path / "out").done()) < len(plan.blocks)
    execute(plan, tmp_path / "out", load_engine("smooth"), Monitor())
    assert digest(tmp_path / "out") == digest(tmp_path / "one go")


def test_background_is_not_scored(tmp_path):
    array = np.full((48, 48, 48), 100, np.uint16)
    array[:, :, 30:] = np.random.default_rng(1).normal(600, 80, (48, 48, 18))
    source = source_of_array(array, name="half", coarser=[array[::4, ::4, ::4]])
    settings = Settings("smooth")
    plan = make_plan(source, settings, load_engine("smooth"), Monitor(), timed=False)
    assert len(plan.blocks) == 27
    assert len(plan.skipped) == 9
    results = execute(plan, tmp_path / "a", load_engine("smooth"), Monitor())
    assert not results.probability[:, :, :16].any()
    assert results.probability[:, :, 32:].any()
    bare = replace(plan, source=replace(source, levels=()), skipped=frozenset())
    bare = replace(bare, survey=replace(plan.survey, coarse=-1))
    again = execute(bare, tmp_path / "b", load_engine("smooth"), Monitor())
    assert sum(bool(f.get("skipped")) for f in again.done().values()) == 9
    np.testing.assert_array_equal(again.probability[:], results.probability[:])


def test_the_threshold_moves_without_the_engine(source, tmp_path):
    _, results = ran(source, tmp_path / "out")
    Smooth.calls = 0
    moved = relabel(tmp_path / "out", 0.8, Monitor())
    assert Smooth.calls == 0
    np.testing.assert_array_equal(moved.labels[:], results.probability[:] >= 204)
    assert moved.complete
    coarse = zarr.open_group(str(moved.label_image), mode="r")
    assert len(coarse.attrs["multiscales"][0]["datasets"]) == 1
    with pytest.raises(WriteError, match=r"has the threshold 0.8, not 0.5"):
        ran(source, tmp_path / "out")
    ran(source, tmp_path / "out", threshold=0.8)
    assert Smooth.calls == 0
    with pytest.raises(WriteError, match="above 0 and at most at 1"):
        relabel(tmp_path / "out", 1.5, Monitor())


def test_another_runs_folder_is_refused_and_left_alone(source, tmp_path):
    ran(source, tmp_path / "out")
    before = digest(tmp_path / "out")
    with pytest.raises(WriteError, match="holds another run: it differs in region"):
        ran(source, tmp_path / "out", region=Box((0, 0, 0), (20, 20, 20)))
    brighter = source_of_array(source.volume.array + 1, name="brain", spacing=SPACING)
    with pytest.raises(WriteError, match=r"differs in source \("):
        ran(brighter, tmp_path / "out")
    with pytest.raises(WriteError, match=r"differs in options \(fail_at: 99 instead of 0\)"):
        ran(source, tmp_path / "out", options={"fail_at": 99})
    assert digest(tmp_path / "out") == before
    other = tmp_path / "photos"
    other.mkdir()
    (other / "a.txt").write_text("mine")
    with pytest.raises(WriteError, match="is not empty and holds no run"):
        ran(source, other)
    assert [p.name for p in other.iterdir()] == ["a.txt"]
    with pytest.raises(WriteError, match="is a file"):
        ran(source, other / "a.txt")
    with pytest.raises(ReadError, match="holds no run of axons"):
        Results.open(other)


@pytest.mark.parametrize(
    "region",
    [Box((0, 0, 0), (40, 10, 10)), Box((30, 45, 40), (60, 90, 80)), Box((5,) * 3, (5,) * 3)],
)
def test_a_region_past_the_end_says_what_there_is(source, region):
    with pytest.raises(GeometryError, match="does not lie in brain: z 0 to 36, y 0 to 49"):
        planned(source, region=region)


def test_a_read_only_folder_is_a_sentence(source, tmp_path):
    if os.geteuid() == 0:
        target = "/proc/axons"  # where even root can't write
    else:
        tmp_path.chmod(0o500)
        target = tmp_path / "out"
    with pytest.raises(WriteError, match=r"no permission|failed"):
        ran(source, target)


def test_a_full_disk_stops_the_run_and_keeps_what_is_done(source, tmp_path, monkeypatch):
    ran(source, tmp_path / "one go")
    put, count = zarr.Array.__setitem__, []

    def full(self, key, value):
        count.append(1)
        if len(count) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "__setitem__", full)
        with pytest.raises(WriteError, match=r"disk is full.*finished blocks are kept"):
            ran(source, tmp_path / "out")
    assert len(Results.open(tmp_path / "out").done()) == 6
    ran(source, tmp_path / "out")
    assert digest(tmp_path / "out") == digest(tmp_path / "one go")


def test_too_little_disk_is_said_before_the_start(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(WriteError, match=r"has 1000 bytes free|has 1 kB free"):
        ran(source, tmp_path / "out")


def test_a_folder_in_use_is_refused(source, tmp_path):
    from napari_openmedlab.axons.run_folder import RunFolder

    plan = planned(source)
    with RunFolder.of(tmp_path / "out", plan), pytest.raises(WriteError, match="another program"):
        ran(source, tmp_path / "out")


def test_an_engine_that_makes_no_numbers_is_stopped(source, tmp_path):
    engine = load_engine("smooth")
    engine.score = lambda block, *rest: np.full(block.shape, np.nan, np.float32)
    with pytest.raises(EngineError, match="values that are no numbers in block 0"):
        execute(planned(source), tmp_path / "out", engine, Monitor())


def stored(path, shape=(32, 64, 96)):
    """A small OME-Zarr on disk with bright lines."""
    array = create_image(path, shape, np.uint16, (32,) * 3, ImagePlace((2.0, 1.0, 1.0)), path.stem)
    values = np.random.default_rng(2).normal(500, 30, shape)
    for y in range(6, shape[1], 12):
        values[15:17, y : y + 2] += 900
    array[:] = values.astype(np.uint16)
    build_levels(path, ImagePlace((2.0, 1.0, 1.0)), path.stem, "mean")
    return path


def test_a_corrupt_chunk_is_named_and_the_other_blocks_stay(tmp_path):
    path = stored(tmp_path / "brain.zarr", (32, 160, 160))
    source = open_source(path)
    plan = planned(source, region=Box((0, 0, 0), (20, 50, 50)))
    chunk = path / "0" / "0" / "1" / "1"
    good = chunk.read_bytes()
    chunk.write_bytes(good[:200])
    with pytest.raises(ReadError, match=r"damaged block of voxels.*voxels z 0 to"):
        execute(plan, tmp_path / "out", load_engine("smooth"), Monitor())
    assert Results.open(tmp_path / "out").done()
    chunk.write_bytes(good)
    execute(plan, tmp_path / "out", load_engine("smooth"), Monitor())
    execute(plan, tmp_path / "one go", load_engine("smooth"), Monitor())
    assert digest(tmp_path / "out") == digest(tmp_path / "one go")


def test_killed_in_the_middle_it_goes_on_bit_for_bit(tmp_path):
    image, out, whole = stored(tmp_path / "brain.zarr"), tmp_path / "out", tmp_path / "one go"
    command = [sys.executable, "-m", "napari_openmedlab.cli.main", "axons", str(image)]
    options = ["--option", "block=32", "--workers", "1"]
    process = subprocess.Popen([*command, str(out), *options], stdout=subprocess.DEVNULL)
    journal = out / "journal.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = Results.open(out).done()
    assert 2 <= len(before) < 6
    settings = Settings("axon-filter", {"block": 32})
    engine = load_engine("axon-filter")
    plan = make_plan(open_source(image), settings, engine, Monitor(), timed=False)
    results = execute(plan, out, engine, Monitor())
    execute(plan, whole, engine, Monitor())
    assert digest(out) == digest(whole)
    after = results.done()
    assert {n: after[n] for n in before} == before  # finished blocks were not done again
    assert len(journal.read_text().splitlines()) == len(plan.blocks) + 1
    assert results.labels[:].any()


def test_a_preview_shows_what_a_run_of_any_region_finds(source, tmp_path):
    from napari_openmedlab.axons.preview import box_around, preview

    region = Box((8, 8, 8), (37, 50, 44))
    _, results = ran(source, tmp_path / "out", region=region)
    engine, settings = load_engine("smooth"), Settings("smooth", region=region)
    box = box_around(source, settings, engine, (20, 30, 30))
    assert box.contains_index((20, 30, 30))
    found = preview(source, settings, engine, box, Monitor())
    shared = box.intersection(region)
    np.testing.assert_array_equal(
        found.probability[shared.relative_to(box).slices],
        results.probability[shared.relative_to(region).slices],
    )
    again = preview(source, settings, engine, box, Monitor(), found.survey)
    np.testing.assert_array_equal(again.probability, found.probability)
    np.testing.assert_array_equal(found.labels(0.5), found.probability >= 128)
    with pytest.raises(GeometryError, match="the cursor is outside brain"):
        box_around(source, settings, engine, (20, 30, 99))
    with pytest.raises(GeometryError, match="lies outside"):
        preview(source, settings, engine, Box((90,) * 3, (95,) * 3), Monitor())
