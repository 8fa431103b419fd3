"""The prompt engines at work, timed from the request to the labels, as the viewer drives them."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.session import make_scan
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.prompts import BoxPrompt, PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models import networks
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Hint, Monitor
from napari_openmedlab.session.objects import EngineChoice
from napari_openmedlab.session.session import Session
from napari_openmedlab.session.workbench import Workbench

__all__ = ["Bench", "Rows", "measure_sam_med2d", "measure_sam_med3d", "measure_upstream", "scan"]

TESTS = Path(__file__).resolve().parents[1] / "tests"
SPACING = (1.25, 0.78, 0.78)
"""Of a usual CT, mm; no multiple of 1.5, so nothing is interpolated for free."""


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and those of processors (all threads together)."""

    wall: float
    cpu: float


def timed(task: Callable[[], object]) -> Took:
    """Run a task and return what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    task()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def median(runs: Sequence[Took]) -> Took:
    """Return the medians of several runs."""
    walls, cpus = [each.wall for each in runs], [each.cpu for each in runs]
    return Took(statistics.median(walls), statistics.median(cpus))


@dataclass
class Rows:
    """Measured figures: what, what each run took, and a remark."""

    runs: int
    rows: list[tuple[str, list[Took], str]] = field(default_factory=list)

    def measure(
        self, name: str, task: Callable[[], object], *, runs: int = 0, remark: str = ""
    ) -> Took:
        """Time a task; return the medians."""
        return self.add(name, [timed(task) for _ in range(runs or self.runs)], remark)

    def add(self, name: str, took: list[Took], remark: str = "") -> Took:
        """Take in runs timed elsewhere; return the medians."""
        self.rows.append((name, took, remark))
        return median(took)

    def table(self) -> str:
        """Return the figures as a Markdown table."""
        heads = ("what", "median", "fastest", "slowest", "CPU time", "runs", "")
        lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
        for name, took, remark in self.rows:
            walls = [each.wall for each in took]
            times = [median(took).wall, min(walls), max(walls), median(took).cpu]
            cells = [name, *map(_text, times), str(len(took)), remark]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def _text(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def scan(shape: tuple[int, int, int]) -> Volume:
    """Return a CT-like scan with objects as large as liver and kidney, int16, in memory."""
    made = make_scan(shape)
    affine = made.geometry.affine.copy()
    affine[:3, :3] *= np.array(SPACING) / made.geometry.spacing
    return replace(made, geometry=Geometry(shape, affine))


def stand_in(network: str, folder: Path) -> str:
    """Put a network with stand-in weights into the model store; return the model's name."""
    sys.path.insert(0, str(TESTS))
    from golden_networks import load_filled

    filled = load_filled(networks.build(network, device="meta"))
    source = folder / f"{network}.pth"
    torch.save(filled.state_dict(), source)
    try:
        return ModelStore().import_file(source, f"stand-in-{network}", as_=network).name
    finally:
        source.unlink()


class Bench:
    """A session on a scan, with an engine that answers in this thread."""

    def __init__(self, volume: Volume, engine: str, options: Mapping[str, Any]) -> None:
        self.session = Session(volume)
        known = {option.name for option in get_spec(engine).options}
        used = {name: value for name, value in options.items() if name in known}
        self.session.choice = EngineChoice(engine, used)
        self.work = Workbench()

    def at(self, index: Any) -> tuple[float, float, float]:
        """Return the world point of a voxel."""
        x, y, z = self.session.volume.geometry.to_world(index)
        return float(x), float(y), float(z)

    def new(self, prompts: PromptSet) -> None:
        """Answer the prompts of a new object: from the request to its voxels in the labels."""
        self.session.add_object()
        self.ask(prompts)

    def click(self, index: Any, positive: bool) -> None:
        """Answer one more click on the active object."""
        assert self.session.active is not None
        self.ask(self.session.active.prompts.with_click(self.at(index), positive))

    def ask(self, prompts: PromptSet) -> None:
        """Answer prompts of the active object."""
        session = self.session
        session.set_prompts(prompts)
        request = session.request()
        found = self.work.predict(session.choice.engine, session.volume, request, Monitor())
        session.apply(found, request)

    def look(self, hint: Hint) -> None:
        """Let the engine work ahead, as it does while the mouse moves."""
        session = self.session
        hint = replace(hint, options=session.request().options)
        self.work.anticipate(session.choice.engine, session.volume, hint, Monitor())

    def fresh(self) -> None:
        """Forget all objects."""
        self.session = _same(self.session)

    def release(self) -> None:
        """Let go of the engine and all it keeps."""
        self.work.release()


def _same(session: Session) -> Session:
    made = Session(session.volume)
    made.choice = session.choice
    return made


def places(shape: tuple[int, ...], seed: int = 3) -> Iterator[np.ndarray]:
    """Yield voxels around the middle of a scan, no two alike, so that no crop is met twice."""
    rng = np.random.default_rng(seed)
    middle, reach = np.array(shape) / 2, np.array(shape) / 8
    while True:
        yield np.rint(middle + rng.uniform(-1, 1, 3) * reach).astype(int)


def measure_sam_med3d(rows: Rows, volume: Volume, options: Mapping[str, Any]) -> None:
    """Measure SAM-Med3D from click to labels."""
    bench = Bench(volume, "sam-med3d", options)
    spots = places(volume.geometry.shape)

    def first() -> None:
        bench.fresh()
        bench.new(PromptSet().with_click(bench.at(next(spots))))

    def cold() -> None:
        bench.release()
        first()

    rows.measure("first answer, weights to be loaded", cold, runs=max(2, rows.runs // 2))
    rows.measure("first answer", first)
    took = []
    for spot in itertools.islice(spots, rows.runs):
        prompts = PromptSet().with_click(bench.at(spot))
        bench.fresh()
        bench.session.add_object()
        bench.look(Hint(bench.at(spot)))
        took.append(timed(lambda asked=prompts: bench.ask(asked)))
    rows.add("first answer, crop encoded ahead", took, "the mouse rested there before the click")
    _many_clicks(rows, bench, next(spots))
    bench.release()


def _many_clicks(rows: Rows, bench: Bench, middle: np.ndarray) -> None:
    """Measure corrections of one object, then all of them answered at once by a fresh engine."""
    rng = np.random.default_rng(7)
    reach = 60.0 / np.array(bench.session.volume.geometry.spacing)
    bench.fresh()
    bench.new(PromptSet().with_click(bench.at(middle)))
    took = []
    for number in range(max(4, 2 * rows.runs)):
        away = np.rint(middle + rng.uniform(-1, 1, 3) * reach).clip(0, None).astype(int)
        away = np.minimum(away, np.array(bench.session.volume.geometry.shape) - 1)
        took.append(timed(lambda n=number, at=away: bench.click(at, n % 2 == 0)))
    rows.add("next click, within 60 mm", took)
    assert bench.session.active is not None
    prompts = bench.session.active.prompts
    bench.release()
    bench.fresh()
    bench.new(PromptSet().with_click(bench.at(middle + 1)))
    name = f"{len(prompts.clicks)} clicks at once, on a new crop"
    rows.measure(name, lambda: (bench.fresh(), bench.new(prompts)), runs=1)


def measure_parts(rows: Rows, volume: Volume, model: str) -> None:
    """Measure the steps of an answer of SAM-Med3D by themselves, on the CPU."""
    from napari_openmedlab.models.engines.sam_med3d.crops import WorkingGrid
    from napari_openmedlab.models.engines.sam_med3d.intensity import CT_LIMITS, normalise
    from napari_openmedlab.models.networks.sam_med3d import upsample

    grid = WorkingGrid(volume.geometry)
    crop = grid.crop_around((np.array(grid.shape) // 2).tolist())
    network = ModelStore().load(model)
    raw = crop.sample(volume, CT_LIMITS)
    pixels, _ = normalise(raw)
    cube = torch.from_numpy(pixels)[None, None]
    points, label, empty = torch.full((1, 1, 3), 64.0), torch.ones(1, 1), network.empty_mask()
    with torch.inference_mode():
        embedding = network.encode(cube)
        logits, _ = network.decode(embedding, points, label, empty)
        rows.measure("part: crop sampled from the scan", lambda: crop.sample(volume, CT_LIMITS))
        rows.measure("part: normalised", lambda: normalise(raw, crop.inside()))
        rows.measure("part: encoder", lambda: network.encode(cube))
        rows.measure("part: decoder", lambda: network.decode(embedding, points, label, empty))
        rows.measure("part: logits to 128 voxels", lambda: upsample(logits))
    fine = upsample(logits)[0, 0].numpy()
    share = f"{np.mean(fine > 0):.0%} of the crop positive"
    rows.measure("part: back to the scan's grid", lambda: crop.paste(fine), remark=share)
    rows.measure("part: the same, nearest voxel", lambda: crop.paste(fine, smooth=False))


def measure_upstream(
    rows: Rows, volume: Volume, model: str, options: Mapping[str, Any], *, quick: bool
) -> str:
    """Measure upstream's order of operations; return how it compares, in words.

    Ours and theirs take turns, so that other programs slow both down alike.

    Raises
    ------
    SystemExit
        If the masks are not the same: then the times mean nothing.
    """
    sys.path.insert(0, str(TESTS))
    from sam_med3d_upstream_order import UpstreamOrder

    spot = next(places(volume.geometry.shape))
    bench = Bench(volume, "sam-med3d", {**options, "smooth": False, "device": "cpu"})
    bench.new(PromptSet().with_click(bench.at(spot)))
    found = bench.session.labels > 0
    point = bench.at(spot)
    bench.release()
    upstream = UpstreamOrder(ModelStore().load(model), reference=not quick)
    ours = Bench(volume, "sam-med3d", {**options, "device": "cpu"})
    ours.new(PromptSet().with_click(point))  # loaded
    spots = places(volume.geometry.shape, seed=5)
    runs: list[Any] = []
    took: list[tuple[Took, Took]] = []
    for _ in range(1 if quick else 3):
        ours.fresh()
        prompts = PromptSet().with_click(ours.at(next(spots)))
        mine = timed(lambda asked=prompts: ours.new(asked))
        took.append((mine, timed(lambda: runs.append(upstream.first(volume, point)))))
    ours.release()
    split = ", ".join(
        f"{name} {_text(statistics.median(each.seconds[name] for _, each in runs))}"
        for name in runs[0][1].seconds
    )
    rows.add("first answer, in turn with the next row", [mine for mine, _ in took])
    rows.add("upstream's order of operations, CPU", [theirs for _, theirs in took], split)
    wall = statistics.median(theirs.wall / mine.wall for mine, theirs in took)
    cpu = statistics.median(theirs.cpu / mine.cpu for mine, theirs in took)
    wanted = runs[0][0]
    different, size = np.count_nonzero(found != wanted), np.count_nonzero(wanted)
    if different > 0.005 * max(1, size):
        raise SystemExit(f"the masks differ in {different} of {size} voxels")
    form = "the package's encoder" if quick else "the encoder in its written-out form"
    return (
        f"Upstream's order of operations (with {form}) takes {wall:.1f} times as long as the first "
        f"answer ({cpu:.1f} times the CPU time); masks by nearest voxel differ in {different} of "
        f"{size} voxels."
    )


def measure_sam_med2d(
    rows: Rows, volume: Volume, options: Mapping[str, Any], *, slices: int = 12
) -> None:
    """Measure SAM-Med2D: a click on a new slice, the next one, a box through many slices."""
    bench = Bench(volume, "sam-med2d", {**options, "propagate": False})
    depth, height, width = volume.geometry.shape
    numbers = itertools.cycle(range(depth // 4, depth))

    def first() -> None:
        bench.fresh()
        spot = (next(numbers), height // 2, width // 3)
        bench.new(PromptSet().with_click(bench.at(spot)))

    rows.measure("first answer, weights to be loaded", lambda: (bench.release(), first()), runs=2)
    rows.measure("first answer on a new slice", first)
    spot = np.array([next(numbers), height // 2, width // 3])
    bench.fresh()
    bench.new(PromptSet().with_click(bench.at(spot)))
    steps = itertools.cycle([(0, 9, 5), (0, -12, 8), (0, 20, -9), (0, -6, -14)])
    signs = itertools.cycle([True, False])
    rows.measure(
        "next prompt on the slice",
        lambda: bench.click(spot + next(steps), next(signs)),
        runs=max(4, 2 * rows.runs),
    )
    middle, reach = np.array([depth // 4, height // 2, width // 2]), min(height, width) // 6
    low = middle - np.array([0, reach, reach])
    high = middle + np.array([slices - 1, reach, reach])
    box = BoxPrompt.from_box(Box(tuple(map(int, low)), tuple(map(int, high + 1))), volume.geometry)
    bench = Bench(volume, "sam-med2d", {**options, "propagate": True})
    bench.new(PromptSet().with_click(bench.at(spot)))  # loaded
    bench.fresh()
    took = timed(lambda: bench.new(PromptSet(boxes=(box,))))
    remark = f"{slices / took.wall:.1f} slices/s"
    rows.add(f"a box through {slices} slices, none encoded before", [took], remark)
    bench.release()
