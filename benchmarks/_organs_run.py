"""One way of the benchmark ``organs`` in a process of its own; prints one line of JSON."""

from __future__ import annotations

import itertools
import json
import sys
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks._network_run import _fill, _peak, _start_of_peak
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models import networks
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.stu_net import engine as engines
from napari_openmedlab.models.engines.stu_net.plan import Plan
from napari_openmedlab.models.engines.stu_net.preparing import prepare
from napari_openmedlab.models.engines.stu_net.scoring import FeatureScores
from napari_openmedlab.models.organs import TOTAL_SEGMENTATOR
from napari_openmedlab.models.tiling.placement import Windows, gaussian_line
from napari_openmedlab.models.tiling.run import Tiling, run
from napari_openmedlab.models.tiling.sinks import KeepLabels

Facts = dict[str, Any]
CLASSES = len(TOTAL_SEGMENTATOR)
PATCH = (128, 128, 128)
LARGE_GRID = (400, 333, 333)


class Regions(nn.Module):
    """Stands for a trained network as far as time and memory after it go: classes are regions.

    A class is likeliest where brightness and place are nearest to its own; both vary slowly.
    """

    memory_format = torch.channels_last_3d

    def __init__(self) -> None:
        super().__init__()
        head = nn.Conv3d(4, CLASSES, 1)
        centres = torch.rand(CLASSES, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            head.weight[:] = (16 * centres).view(CLASSES, 4, 1, 1, 1)
            head.bias[:] = -8 * (centres**2).sum(1)
        self.seg_outputs = nn.ModuleList([head])

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        """Return smoothed brightness and three waves (B, 4, z, y, x)."""
        smooth = nn.functional.avg_pool3d(patches, 9, 1, 4)
        waves = [smooth]
        for axis in range(3):
            shape = [-1 if axis == other else 1 for other in range(3)]
            place = torch.arange(patches.shape[2 + axis]).float().reshape(1, 1, *shape) / 12
            waves.append(torch.sin(place).expand_as(smooth))
        return torch.cat(waves, 1).contiguous(memory_format=torch.channels_last_3d)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K, z, y, x)."""
        return self.seg_outputs[0](self.features(patches))


def made_up_ct(shape: list[int], voxel: list[float]) -> Volume:
    """Return a body with soft parts in air, int16, in display order; the same every time."""
    from scipy import ndimage

    rng = np.random.default_rng(0)
    small = ndimage.gaussian_filter(rng.normal(size=[-(-n // 8) for n in shape]), 1.5)
    small = (small / small.std() * 60).astype(np.float32)
    array = np.empty(shape, dtype=np.int16)
    y, x = (np.linspace(-1, 1, n) for n in shape[1:])
    body = (y[:, None] / 0.8) ** 2 + (x / 0.9) ** 2 < 1
    rows, columns = np.arange(shape[1]) // 8, np.arange(shape[2]) // 8
    for number in range(shape[0]):
        plane = small[number // 8][np.ix_(rows, columns)] + rng.normal(0, 15, shape[1:])
        array[number] = np.where(body, plane, -1000)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = -voxel[0], voxel[1], voxel[2], 1.0
    return Volume(array, Geometry(tuple(shape), affine), name="made up", modality="CT")


def network_for(wanted: Facts) -> nn.Module:
    """Return the network, with stand-in weights or without any."""
    if wanted["way"].endswith("smooth"):
        return Regions().eval()
    network = networks.build(f"stu-net-{wanted['size']}")
    _fill(network)
    return network.to(memory_format=network.memory_format)


def ours(wanted: Facts) -> Facts:
    """Run the engine's own steps; the peak does not count the scan and the weights' loading."""
    volume, network = made_up_ct(wanted["shape"], wanted["voxel"]), network_for(wanted)
    network = network.to(wanted["device"])
    options = {
        "device": wanted["device"], "step": wanted["step"], "mirror": False, "skip_air": True,
        "export": "exact",
    }  # fmt: skip
    plan = Plan(TOTAL_SEGMENTATOR)
    run_network = _Timed(network, wanted["device"])
    base = _start_of_peak("cpu")
    began = time.perf_counter()
    working = prepare(
        volume,
        Box.whole(volume.geometry.shape),
        plan,
        spacing=wanted["spacing"],
        orientation="RAS",
        monitor=Monitor(),
    )
    assert working is not None
    prepared = time.perf_counter()
    back = _time_sink(engines.InterpolateLabels)
    with torch.inference_mode():
        found, report = engines._labels(working, plan, run_network, options, Monitor())  # type: ignore[arg-type]
    working.placed(found)
    ended = time.perf_counter()
    return {
        "shape": wanted["shape"],
        "windows": f"{report.windows - report.skipped} of {report.windows}",
        "prepare": prepared - began,
        "run": ended - prepared - back[0],
        "back": back[0],
        "peak": _peak("cpu") - base,
        "remark": f"network {run_network.seconds:.1f} s; sums in {report.storage}",
    }


class _Timed:
    """The engine's network without its model store."""

    def __init__(self, network: Any, device: str) -> None:
        self.network, self.device, self.seconds = network, device, 0.0

    def __call__(self, patches: torch.Tensor) -> FeatureScores:
        began = time.perf_counter()
        found = list(self.network.features(patches.to(self.device)))
        self.seconds += time.perf_counter() - began
        return FeatureScores(found, self.network.seg_outputs[-1])


def _time_sink(kind: Any) -> list[float]:
    """Have a sink add the seconds it takes to the list that is returned."""
    seconds, add = [0.0], kind.add

    def timed(self: Any, brick: Any) -> None:
        began = time.perf_counter()
        add(self, brick)
        seconds[0] += time.perf_counter() - began

    kind.add = timed
    return seconds


def plain(wanted: Facts) -> Facts:
    """Run the published order of operations as it stands, on the same input."""
    volume, network = made_up_ct(wanted["shape"], wanted["voxel"]), network_for(wanted)
    base = _start_of_peak("cpu")
    began = time.perf_counter()
    image = volume.array[::-1, ::-1, ::-1].astype(np.float32)
    spacing = np.array(volume.geometry.spacing)
    grid = np.round(spacing / wanted["spacing"] * image.shape).astype(int)
    data = _resized(image, grid, 3)
    data = (data - data.mean()) / (data.std() + 1e-8)
    prepared = time.perf_counter()
    with torch.inference_mode():
        means, count = _windows(data, network, wanted["step"])
    blended = time.perf_counter()
    channels = wanted["channels"] or CLASSES
    large = np.vstack([_resized(means[k], image.shape, 1)[None] for k in range(channels)])
    scale = CLASSES / channels
    large.argmax(0).astype(np.uint8)
    ended = time.perf_counter()
    remark = "" if channels == CLASSES else f"back from {channels} of {CLASSES} classes, scaled up"
    peak = _peak("cpu") - base
    if channels < CLASSES:  # nnU-Net holds the list and what it is stacked to
        peak += int(2 * 4 * image.size * (CLASSES - channels))
    return {
        "shape": wanted["shape"],
        "windows": str(count),
        "prepare": prepared - began,
        "run": blended - prepared,
        "back": (ended - blended) * scale,
        "peak": peak,
        "remark": remark,
    }


def _resized(array: NDArray[np.float32], shape: Any, order: int) -> NDArray[np.float32]:
    from skimage.transform import resize

    found = resize(array.astype(float), shape, order, mode="edge", anti_aliasing=False)
    return found.astype(np.float32)


def _windows(
    data: NDArray[np.float32], network: nn.Module, step: float
) -> tuple[NDArray[np.float32], int]:
    """Return class means of the whole volume, and the number of windows."""
    low = [max(p - n, 0) // 2 for n, p in zip(data.shape, PATCH, strict=True)]
    high = [max(p - n, 0) - b for n, p, b in zip(data.shape, PATCH, low, strict=True)]
    padded = np.pad(data, list(zip(low, high, strict=True)))
    windows = Windows.nnunet(padded.shape, PATCH, step)
    z, y, x = (gaussian_line(n) for n in PATCH)
    weight = torch.from_numpy((z[:, None, None] * y[:, None] * x).astype(np.float32))
    total = torch.zeros((CLASSES, *padded.shape))
    count = torch.zeros((CLASSES, *padded.shape))
    for window in windows:
        cut = tuple(slice(s, s + n) for s, n in zip(window.start, PATCH, strict=True))
        found = network(torch.from_numpy(padded[cut])[None, None])[0].softmax(0)
        total[(slice(None), *cut)] += found * weight
        count[(slice(None), *cut)] += weight
    total /= count
    inside = tuple(slice(b, b + n) for b, n in zip(low, data.shape, strict=True))
    return total[(slice(None), *inside)].numpy(), len(windows)


def memory(_wanted: Facts) -> Facts:
    """Run 105 classes over a grid of 400 x 333 x 333 with a network of next to nothing."""
    waves = (np.sin(np.arange(n, dtype=np.float32) / 9) for n in LARGE_GRID)
    z, y, x = waves
    data = (z[:, None, None] + y[:, None] + x)[None]
    network = _Timed(Regions().eval(), "cpu")
    sink = KeepLabels(LARGE_GRID, CLASSES)
    base = _start_of_peak("cpu")
    began = time.perf_counter()
    with torch.inference_mode():
        report = run(data, Tiling(Windows.nnunet(LARGE_GRID, PATCH)), network, sink, Monitor())
    return {
        "shape": list(LARGE_GRID),
        "windows": str(report.windows),
        "prepare": 0.0,
        "run": time.perf_counter() - began,
        "back": 0.0,
        "peak": _peak("cpu") - base,
        "remark": f"with program and scan {_peak('cpu') / 1e9:.2f} GB; sums "
        f"{report.sums_bytes / 1e9:.2f} GB in {report.storage}; "
        f"all classes at once would be {4 * CLASSES * data.size / 1e9:.1f} GB",
    }


def main(argument: str) -> None:
    """Run what the argument asks for; print facts as JSON."""
    wanted = json.loads(argument)
    way = wanted["way"].partition("-")[0]
    print(json.dumps({"ours": ours, "plain": plain, "memory": memory}[way](wanted)))


if __name__ == "__main__":
    main(*itertools.islice(sys.argv, 1, 2))
