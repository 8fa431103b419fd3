"""MedLAM at work on scans made here, and upstream's order of operations beside it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from napari_openmedlab.geometry.extreme_points import wall_directions
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models import networks
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.device import Placement
from napari_openmedlab.models.engines.medlam import MedLam
from napari_openmedlab.models.engines.medlam.jumps import REACH_MM, start_voxels
from napari_openmedlab.models.engines.medlam.patches import KERNEL
from napari_openmedlab.models.engines.medlam.preparing import Prepared, prepare
from napari_openmedlab.models.engines.weights import Loaded
from napari_openmedlab.models.localisation import Found, Landmarks, Template

__all__ = ["measure"]

TESTS = Path(__file__).resolve().parents[1] / "tests"
SCALES = (0, 1, 2)


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and those of processors (all threads together)."""

    wall: float
    cpu: float

    def times(self, factor: float) -> Took:
        """Return it scaled."""
        return Took(self.wall * factor, self.cpu * factor)

    def plus(self, other: Took) -> Took:
        """Return the sum."""
        return Took(self.wall + other.wall, self.cpu + other.cpu)


def timed(task: Callable[[], Any]) -> tuple[Any, Took]:
    """Run a task; return what it gave and what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    given = task()
    return given, Took(time.perf_counter() - wall, time.process_time() - cpu)


def network_of(width: int) -> Loaded:
    """Return MedLAM with stand-in weights whose jumps stay in the scan."""
    sys.path.insert(0, str(TESTS))
    from golden_networks import load_filled

    network = load_filled(networks.build("medlam", device="meta", base_channels=width), "module.")
    with torch.no_grad():
        network.fc3.weight *= 0.05
        network.fc3.bias *= 0.05
    network = network.to(memory_format=network.memory_format)
    return Loaded(network, Record("stand-in", "medlam"), Placement("cpu", "float32", 1))


def scan(seed: int) -> Volume:
    """Return a CT-like torso, 160 x 240 x 240 voxels of 2.5 x 1.5 x 1.5 mm, int16."""
    shape, spacing = (160, 240, 240), (2.5, 1.5, 1.5)
    random = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    values = np.where((y / 0.75) ** 2 + (x / 0.9) ** 2 < 1, 40.0, -1000.0) + 0 * z
    for _ in range(40):
        middle, size = random.uniform(-0.6, 0.6, 3), random.uniform(0.08, 0.3, 3)
        away = [(a - m) / s for a, m, s in zip((z, y, x), middle, size, strict=True)]
        values[sum(a**2 for a in away) < 1] = random.choice([-800.0, 80.0, 150.0, 230.0, 600.0])
    values += random.normal(0, 15, shape)
    affine = np.diag([*spacing, 1.0])[[2, 1, 0, 3]]
    affine[2] *= -1  # head first
    return Volume(values.round().astype(np.int16), Geometry(shape, affine), None, "torso", "CT")


def marks(volume: Volume, name: str, seed: int) -> Landmarks:
    """Return six points around a place of the scan."""
    random = np.random.default_rng(seed)
    shape = np.array(volume.geometry.shape)
    middle = volume.geometry.to_world(random.uniform(0.35, 0.65, 3) * shape)
    half = random.uniform(15, 35, 3)[:, None] * wall_directions()
    points = np.concatenate([middle - half, middle + half])
    return Landmarks(name, tuple(tuple(float(v) for v in point) for point in points))


class Memory(dict[str, Mapping[str, Any]]):
    """Features in memory."""

    def put(self, key: str, arrays: Mapping[str, Any]) -> None:
        """Keep arrays."""
        self[key] = dict(arrays)


def templates_of(count: int, names: Sequence[str]) -> list[Template]:
    """Return templates with all structures."""
    made = []
    for number in range(count):
        volume = scan(number + 1)
        structures = tuple(marks(volume, name, 100 * number + n) for n, name in enumerate(names))
        made.append(
            Template(f"t{number}", f"made {number}", structures, lambda v=volume: v, Memory())
        )
    return made


class Ours:
    """The engine, on a network made here instead of one of the store."""

    def __init__(self, loaded: Loaded) -> None:
        self.engine = MedLam()
        self.engine._weights.run = lambda options, monitor, attempt: attempt(loaded)  # type: ignore[method-assign]

    def find(
        self,
        volume: Volume,
        templates: Sequence[Template],
        names: Sequence[str],
        mode: str = "full",
    ) -> tuple[Found, ...]:
        """Return what was found."""
        return self.engine.locate(volume, templates, {"mode": mode}, Monitor(), names).found


def copied(
    templates: Sequence[Template], loaded: Loaded, names: Sequence[str], learnt: int
) -> None:
    """Give structures that were not learnt what was learnt of others, a little elsewhere."""
    from napari_openmedlab.models.engines.medlam.templates import signature

    for template in templates:
        assert isinstance(template.features, Memory)
        for number in range(learnt, len(names)):
            source, target = template.structures[number % learnt], template.structures[number]
            arrays = dict(template.features[signature(loaded, template, source, SCALES)])
            random = np.random.default_rng(number)
            moved = random.normal(0, 0.06, (1, 3)).astype(np.float32)
            arrays["positions"] = arrays["positions"] + moved
            template.features.put(signature(loaded, template, target, SCALES), arrays)


# -- upstream's order --------------------------------------------------------------------------


class UpstreamOrder:
    """What upstream computes for a scan, in its order, on the processor in float32.

    Written from the method's description. Every start patch runs through the decoder too; each
    structure's six patches are correlated by a grouped convolution with the sum of the
    templates' kernels. Its preparation (SciPy) is included. Patches go one by one, not ten
    at a time, which was the faster way here.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.network = loaded.network

    def prepare(self, volume: Volume) -> Any:
        """Resample as upstream does."""
        from scipy import ndimage

        zoom = np.array(volume.geometry.spacing) / 3.0
        array = ndimage.zoom(np.asarray(volume.array[::-1, ::-1], dtype=np.float64), zoom, order=3)
        return np.interp(array, (-1000, -200, 200, 1500), (0.0, 0.2, 0.8, 1.0))

    @torch.inference_mode()
    def starts(self, prepared: Prepared, starts: Any) -> Any:
        """Return the mean embedding of the start patches, whole network."""
        patches = torch.from_numpy(prepared.patches(starts))
        return torch.cat([self.network(each[None]).position for each in patches]).mean(0).numpy()

    @torch.inference_mode()
    def structure(self, prepared: Prepared, voxels: Any, kernels: Sequence[Any]) -> Any:
        """Return the six points' shifts."""
        patches = torch.from_numpy(prepared.patches(voxels))
        outputs = [self.network(each[None]).features for each in patches]
        total = torch.ones((len(voxels), 64, 64, 64))
        for scale, kernel in zip(SCALES, kernels, strict=True):
            maps = torch.cat([functional.normalize(each[scale], dim=1) for each in outputs])
            k = KERNEL[scale]
            found = functional.conv3d(
                maps.flatten(0, 1)[None], torch.from_numpy(kernel), padding=k // 2, groups=len(maps)
            )
            found = functional.interpolate(found / k**3, size=(64,) * 3, mode="trilinear")
            total += found[0]
        best = total.flatten(1).argmax(dim=1).numpy()
        return np.stack(np.unravel_index(best, (64, 64, 64)), axis=1) - 31


def measure(structures: int, templates: int, learn: int, width: int) -> str:
    """Measure and return a Markdown table.

    Raises
    ------
    SystemExit
        If upstream's order finds other voxels: then the times mean nothing.
    """
    names = [f"structure {number}" for number in range(structures)]
    loaded, volume = network_of(width), scan(99)
    ours, given = Ours(loaded), templates_of(templates, names)
    _, learning = timed(lambda: ours.find(volume, given, names[:1]))
    if learn > 1:
        _, more = timed(lambda: ours.find(volume, given, names[1:learn]))
        learning = learning.plus(more)
    copied(given, loaded, names, learn)
    found, full = timed(lambda: ours.find(volume, given, names))
    _, quick = timed(lambda: ours.find(volume, given, names, "quick"))
    _, one = timed(lambda: ours.find(volume, given, names[:1]))
    upstream = _upstream(loaded, volume, given, found[0])
    whole = upstream["prepare"].plus(upstream["starts"])
    whole = whole.plus(upstream["structure"].times(structures))
    rows = [
        (f"ours, {structures} structures, templates learnt before", full, ""),
        ("ours, quick mode", quick, "two scales of three"),
        ("ours, one structure", one, ""),
        (
            f"ours, {learn} structure(s) with learning them",
            learning,
            f"{templates} templates, once",
        ),
        ("upstream's order: preparing the scan", upstream["prepare"], "SciPy, float64"),
        ("upstream's order: ten starts", upstream["starts"], "with the decoder"),
        ("upstream's order: one structure", upstream["structure"], "six patches, convolutions"),
        (f"upstream's order: {structures} structures", whole, "the three rows above, scaled"),
    ]
    lines = ["| what | clock | CPU time | |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {t.wall:.1f} s | {t.cpu:.1f} s | {about} |" for name, t, about in rows]
    lines.append(
        f"\nUpstream's order takes {whole.cpu / full.cpu:.1f} times the CPU time of ours "
        f"({whole.wall / full.wall:.1f} times by the clock), {whole.cpu / quick.cpu:.1f} times "
        "that of the quick mode. Both find the same voxels for the structure measured."
    )
    return "\n".join(lines)


def _upstream(
    loaded: Loaded, volume: Volume, templates: Sequence[Template], found: Found
) -> dict[str, Took]:
    """Measure upstream's steps for the first structure, and check that they find the same."""
    from napari_openmedlab.models.engines.medlam.templates import signature

    order, took = UpstreamOrder(loaded), {}
    _, took["prepare"] = timed(lambda: order.prepare(volume))
    prepared = prepare(volume, Monitor())
    starts = start_voxels(prepared, 2023)
    query, took["starts"] = timed(lambda: order.starts(prepared, starts))
    kept = []
    for template in templates:
        assert template.features is not None
        arrays = template.features.get(signature(loaded, template, template.structures[0], SCALES))
        assert arrays is not None
        kept.append(arrays)
    wanted = np.mean([each["positions"] for each in kept], axis=0)
    kernels = [np.sum([each[f"kernels{scale}"] for each in kept], axis=0) for scale in SCALES]
    place = REACH_MM * np.tanh(wanted - query) + 3.0 * starts.mean(axis=0)
    voxels = np.clip(np.rint(place / 3.0).astype(int), 32, np.array(prepared.padded.shape) - 33)
    shifts, took["structure"] = timed(lambda: order.structure(prepared, voxels, kernels))
    ours = prepared.grid.working(found.points)
    if np.abs(voxels + shifts - 32 - ours).max() > 0.01:
        raise SystemExit("upstream's order finds other voxels")
    return took
