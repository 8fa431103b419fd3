"""One way of the benchmark ``axons`` in a process of its own; prints one line of JSON."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.axons.plan import Plan, Settings, blocks_of, make_plan
from napari_openmedlab.axons.preview import box_around, preview
from napari_openmedlab.axons.run import execute
from napari_openmedlab.axons.scoring import BlockWork
from napari_openmedlab.axons.source import Source, open_source, source_of_array
from napari_openmedlab.axons.survey import survey
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.io.ome_zarr_write import ImagePlace, build_levels, create_image
from napari_openmedlab.models.blocks import BlockContext, BlockLayout
from napari_openmedlab.models.catalogue import get_spec, load_engine
from napari_openmedlab.models.contract import Monitor

Facts = dict[str, Any]
CHUNK = 128
PUBLISHED = (2160, 2560, 2078)  # voxels; 53 minutes on an RTX 4090 by its README
SPACING = (2.0, 2.0, 2.0)


def brain(shape: Sequence[int], low: Sequence[int], size: Sequence[int]) -> NDArray[np.uint16]:
    """Return a block of a made-up brain: an ellipsoid of noisy tissue with straight axons."""
    rng = np.random.default_rng(sum(v * p for v, p in zip(low, (1, 7919, 104729), strict=True)))
    grids = np.ogrid[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))]
    inside = sum(((g - n / 2) / (0.46 * n)) ** 2 for g, n in zip(grids, shape, strict=True)) < 1
    noise = rng.standard_normal(size, dtype=np.float32)
    values = np.where(inside, 600 + 40 * noise, 110 + 4 * noise)
    for period, offset in ((37, 5), (61, 20), (83, 50)):  # axons along x, y and z, 2 to 3 thick
        for along in range(3):
            across = [axis for axis in range(3) if axis != along]
            place = [(grids[axis] + offset * (along + 1)) % period < 2 for axis in across]
            values = np.where(inside & place[0] & place[1], values + 600, values)
    return np.clip(values, 0, 65535).astype(np.uint16)


def volume_path(wanted: Facts) -> Path:
    """Return where the made-up brain of a shape lies."""
    return Path(wanted["folder"]) / f"brain_{'x'.join(map(str, wanted['shape']))}.zarr"


def make(wanted: Facts) -> Facts:
    """Write the made-up brain, chunk by chunk, if it is not there."""
    path = volume_path(wanted)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        shape = tuple(wanted["shape"])
        place = ImagePlace(SPACING)
        array = create_image(part, shape, np.uint16, (CHUNK,) * 3, place, "brain")
        for low in np.ndindex(*(-(-n // CHUNK) for n in shape)):
            start = [i * CHUNK for i in low]
            size = [min(CHUNK, n - a) for a, n in zip(start, shape, strict=True)]
            box = Box(tuple(start), tuple(np.add(start, size)))
            array[box.slices] = brain(shape, start, size)
        build_levels(part, place, "brain", "mean")
        part.rename(path)
    return {}


def streamed(wanted: Facts) -> Facts:
    """Run the whole volume through the filter."""
    source = open_source(volume_path(wanted))
    engine = load_engine("axon-filter")
    settings = Settings("axon-filter", workers=wanted["workers"])
    with tempfile.TemporaryDirectory(dir=wanted["folder"]) as folder:
        began, busy = time.perf_counter(), time.process_time()
        plan = make_plan(source, settings, engine, Monitor(), timed=False)
        results = execute(plan, Path(folder) / "out", engine, Monitor())
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
        found = sum(int(facts["voxels"]) for facts in results.done().values())
    size = prod(wanted["shape"])
    done = len(plan.blocks) - len(plan.skipped)
    return {
        "shape": wanted["shape"],
        "seconds": seconds,
        "rate": size / 1e6 / seconds,
        "peak": peak(),
        "remark": f"{done} of {len(plan.blocks)} blocks, the rest background; {plan.workers} at "
        f"once; processor {busy / size * 1e6:.3f} s/Mvoxel; {found / size:.2%} axon",
    }


def previewed(wanted: Facts) -> Facts:
    """Score one block as the panel does: the first with the survey, then others."""
    array = brain((256,) * 3, (0, 0, 0), (256,) * 3)
    source = source_of_array(array, name="brain", spacing=SPACING, coarser=[array[::4, ::4, ::4]])
    engine, settings = load_engine("axon-filter"), Settings("axon-filter")
    began = time.perf_counter()
    box = box_around(source, settings, engine, (128, 128, 128))
    first = preview(source, settings, engine, box, Monitor())
    whole = time.perf_counter() - began
    seconds = [
        preview(source, settings, engine, box, Monitor(), first.survey).seconds for _ in range(5)
    ]
    return {
        "shape": box.shape,
        "seconds": median(seconds),
        "rate": box.size / 1e6 / median(seconds),
        "peak": peak(),
        "remark": f"median of 5; the first with its survey {whole:.2f} s",
    }


class Windows:
    """Axon-Seg's windows on a network that needs no model store."""

    def __init__(self, network: Any, device: str, half: bool) -> None:
        self.network, self.device, self.half = network, device, half
        self.count = 0

    def __call__(self, windows: Sequence[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """Yield scores, as the engine does."""
        import torch

        size = 4 if self.device != "cpu" else 1
        for first in range(0, len(windows), size):
            part = [windows[n] for n in range(first, min(first + size, len(windows)))]
            self.count += len(part)
            kind = self.device.partition(":")[0]
            with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=self.half):
                patches = torch.from_numpy(np.stack(part)[:, None]).to(self.device)
                scores = torch.softmax(self.network(patches).float(), 1)[:, 1]
                yield from scores.cpu().numpy()


def stand_in(wanted: Facts, window: int) -> Windows:
    """Return the network with stand-in weights on the device asked for."""
    from benchmarks._network_run import _fill
    from napari_openmedlab.models import networks
    from napari_openmedlab.models.device import choose

    device = choose(wanted["device"]).device
    network = networks.build("axon-seg", patch_size=window)
    _fill(network)
    network = network.to(device.id, memory_format=network.memory_format)
    return Windows(network, device.id, device.prefers_half)


def network(wanted: Facts) -> Facts:
    """Score one block of 2 x 2 x 2 windows (one window on the CPU) and extrapolate."""
    from napari_openmedlab.models.engines.axon_seg import stitching

    window, halo = wanted["window"], 20
    score = stand_in(wanted, window)
    core = window - 2 * halo
    along = 1 if score.device == "cpu" else 4
    size = along * core + 2 * halo
    block = np.random.default_rng(0).standard_normal((size,) * 3, dtype=np.float32)
    stitching.by_cores(block[:window, :window, :window].copy(), window, halo, score)
    began = time.perf_counter()
    stitching.by_cores(block, window, halo, score)
    seconds = time.perf_counter() - began
    voxels = (along * core) ** 3
    hours = seconds / voxels * prod(PUBLISHED) / 3600
    where = f"{score.device}, {'bfloat16' if score.half else 'float32'}"
    return {
        "shape": (along * core,) * 3,
        "seconds": seconds,
        "rate": voxels / 1e6 / seconds,
        "peak": peak(),
        "remark": f"{where}; D-LMBmap's brain would take {hours:.2f} h without skipping",
    }


class Slabs:
    """Upstream's order of operations: every window of a slab in memory, one network pass each."""

    def __init__(self, score: Windows, window: int, overlap: int) -> None:
        self.score_windows, self.window, self.overlap = score, window, overlap

    def layout(self, options: Any) -> BlockLayout:
        """Return slabs."""
        core = self.window - 2 * self.overlap
        return BlockLayout((core,) * 3, (self.overlap,) * 3, chunk=(core,) * 3, slabs=True)

    def score(
        self, block: NDArray[Any], context: BlockContext, options: Any, monitor: Any
    ) -> NDArray[np.float32]:
        """Cut all windows out, keep them, score them, paste."""
        from napari_openmedlab.models.engines.axon_seg import stitching

        def all_at_once(windows: Sequence[Any]) -> Iterator[Any]:
            kept = [np.array(windows[n]) for n in range(len(windows))]
            return iter(list(self.score_windows(kept)))

        values = context.intensity.apply(block)
        return stitching.by_slab(values, self.window, self.overlap, all_at_once)


class Cores(Slabs):
    """Ours."""

    def layout(self, options: Any) -> BlockLayout:
        """Return two windows along each edge."""
        core = self.window - 2 * self.overlap
        return BlockLayout((2 * core,) * 3, (self.overlap,) * 3, (core,) * 3, 0, (core,) * 3)

    def score(
        self, block: NDArray[Any], context: BlockContext, options: Any, monitor: Any
    ) -> NDArray[np.float32]:
        """Score windows as they are cut out."""
        from napari_openmedlab.models.engines.axon_seg import stitching

        values = context.intensity.apply(block)
        return stitching.by_cores(values, self.window, self.overlap, self.score_windows)


def upstream(wanted: Facts) -> Facts:
    """Compare both orders on one region with a network of windows of 64 voxels."""
    window, overlap = 64, 20
    score = stand_in({**wanted, "device": "cpu"}, window)
    shape = (90, 84, 84)
    # A whole small brain: as in a real one, slices hold more or less of it, and so do slabs.
    source = source_of_array(brain(shape, (0, 0, 0), shape), name="brain")
    facts = {}
    for name, kind, mode in (("theirs", Slabs, "plane"), ("ours", Cores, "volume")):
        score.count = 0
        began = time.process_time()
        found, plan = _stitched(source, kind(score, window, overlap), mode)
        borders = sorted({b.core.start[0] for b in plan.blocks} - {0})
        inner = found[:, 26:-26, 26:-26]  # tissue only
        facts[name] = (time.process_time() - began, score.count, _step(inner, borders))
    (theirs, their_windows, their_step), (ours, our_windows, our_step) = facts.values()
    return {
        "shape": shape,
        "seconds": ours,
        "rate": prod(shape) / 1e6 / ours,
        "peak": peak(),
        "remark": f"upstream's order {theirs / ours:.2f} times as long in processor time, "
        f"{their_windows} windows against {our_windows}; largest step at a z border over those "
        f"beside it {their_step:.2f} against {our_step:.2f}",
    }


def _stitched(source: Source, engine: Slabs, mode: Any) -> tuple[NDArray[np.uint8], Plan]:
    options = get_spec("axon-seg").check_options({})
    settings = Settings("axon-seg", options, source.whole, normalisation=mode)
    layout = engine.layout(options)
    found = survey(source, source.whole, mode, Monitor())
    plan = Plan(source, settings, layout, found, {}, blocks_of(source.whole, layout))
    work = BlockWork(plan, engine)  # type: ignore[arg-type]
    out = np.zeros(source.shape, np.uint8)
    for block in plan.blocks:
        voxels = work.read(block)
        if voxels is not None:
            out[block.core.slices] = work.stored(work.score(block, voxels, Monitor()))
    return out, plan


def _step(found: NDArray[np.uint8], borders: Sequence[int]) -> float:
    """Return the largest step across a border along z over the mean one within five slices."""
    rises = np.abs(np.diff(found.astype(float), axis=0)).mean(axis=(1, 2))
    around = [np.r_[rises[b - 6 : b - 1], rises[b : b + 5]].mean() for b in borders]
    return float(max(rises[b - 1] / a for b, a in zip(borders, around, strict=True)))


def peak() -> int:
    """Return the most memory this process ever held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Do what the one argument, JSON, asks for."""
    wanted = json.loads(sys.argv[1])
    ways = {
        "make": make, "filter": streamed, "preview": previewed, "network": network,
        "upstream": upstream,
    }  # fmt: skip
    print(json.dumps(ways[wanted["way"]](wanted)))


if __name__ == "__main__":
    main()
