"""Score the built-in engine on a labelled scan, with prompts derived from the labels.

The folder holds ``ct.nii.gz`` (or ``image.nii.gz``) and ``labels.nii.gz`` on the same grid.
Printed for every way to start and every number of corrective clicks: mean and median Dice, the
share of clicks that lowered it, seconds, and how well the engine knew its own faults.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi
from scipy.stats import spearmanr

from napari_openmedlab.geometry.boxes import Box, box_of_mask
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import BoxPrompt, PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.contract import Monitor, Prediction, Request
from napari_openmedlab.models.engines.built_in import BuiltIn

__all__ = ["Run", "extreme_points", "load_scan", "main", "objects", "play"]

Bools = NDArray[np.bool_]
Start = Literal["points", "box", "click"]

#: Objects below this volume (mm3) are listed apart; below the second they are left out.
LARGE_MM3, SMALL_MM3 = 8100.0, 500.0
#: A click that lowers Dice by more than this did harm.
HARM = 0.005
#: Dice below which an answer needs a person.
POOR = 0.7


@dataclass
class Run:
    """One object: Dice after 0, 1, 2 ... clicks, seconds of each answer, the first score."""

    dice: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    score: float = float("nan")


def load_scan(folder: Path) -> tuple[Volume, NDArray[np.int32]]:
    """Return the scan and its labels in array order (z, y, x), head first."""
    image = next(p for p in (folder / "ct.nii.gz", folder / "image.nii.gz") if p.exists())
    arrays = []
    for path in (image, folder / "labels.nii.gz"):
        picture = nib.as_closest_canonical(nib.load(path))
        arrays.append(np.asarray(picture.dataobj).T[::-1, ::-1, ::-1])
        spacing = tuple(float(v) for v in picture.header.get_zooms()[:3][::-1])
    shape = arrays[0].shape
    grid = Geometry.from_spacing(shape, (spacing[0], spacing[1], spacing[2]))
    return Volume(arrays[0], grid, modality="CT"), arrays[1].astype(np.int32)


def objects(
    volume: Volume, labels: NDArray[np.int32], smallest: float, largest: float = np.inf
) -> Iterator[tuple[str, Bools]]:
    """Yield name and mask of every label with a volume (mm3) in a range."""
    for value in np.unique(labels[labels > 0]):
        mask = labels == value
        if smallest <= np.count_nonzero(mask) * volume.geometry.voxel_volume < largest:
            yield f"label {value}", mask


def extreme_points(mask: Bools) -> NDArray[np.intp]:
    """Return the six extreme voxels (z, y, x); in a flat face the one nearest to its middle."""
    index = np.argwhere(mask)
    points = []
    for axis in range(3):
        for end in (index[:, axis].min(), index[:, axis].max()):
            face = index[index[:, axis] == end]
            points.append(face[((face - face.mean(axis=0)) ** 2).sum(axis=1).argmin()])
    return np.array(points)


def play(
    volume: Volume,
    mask: Bools,
    start: Start,
    *,
    clicks: int = 0,
    noise_mm: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Run:
    """Segment one object and correct it by clicks in the middle of the largest fault."""
    engine, run = BuiltIn(), Run()
    prompts = _first_prompts(volume, mask, start, noise_mm, rng or np.random.default_rng(0))
    previous: MaskPatch | None = None
    before: PromptSet | None = None
    for step in range(clicks + 1):
        request = Request(prompts, previous=previous, previous_prompts=before)
        found = _timed(engine, volume, request, run)
        full = found.patch.to_full(mask.shape)
        run.dice.append(2 * np.count_nonzero(full & mask) / (full.sum() + mask.sum()))
        run.score = found.score if step == 0 else run.score
        click = _next_click(full, mask, np.array(volume.geometry.spacing))
        if click is None:
            run.dice += [1.0] * (clicks - step)
            break
        before, previous = prompts, found.patch
        prompts = prompts.with_click(volume.geometry.to_world(click[0]), click[1])
    return run


def _timed(engine: BuiltIn, volume: Volume, request: Request, run: Run) -> Prediction:
    began = time.perf_counter()
    found = engine.predict(volume, request, Monitor())
    run.seconds.append(time.perf_counter() - began)
    return found


def _first_prompts(
    volume: Volume, mask: Bools, start: Start, noise_mm: float, rng: np.random.Generator
) -> PromptSet:
    grid = volume.geometry
    if start == "click":
        deepest = _deepest(mask, np.array(grid.spacing))
        return PromptSet().with_click(grid.to_world(deepest))
    if start == "box":
        return PromptSet(boxes=(BoxPrompt.from_box(box_of_mask(mask), grid),))
    points = extreme_points(mask)
    moved = points + np.rint(rng.normal(0, noise_mm, points.shape) / grid.spacing).astype(int)
    inside = np.clip(moved, 0, np.array(mask.shape) - 1)
    return PromptSet(tuple(tuple(p) for p in grid.to_world(inside)))


def _deepest(mask: Bools, spacing: NDArray[np.float64]) -> NDArray[np.intp]:
    """Voxel of a mask farthest from its border."""
    box = box_of_mask(mask)
    depth = ndi.distance_transform_edt(np.pad(mask[box.slices], 1), sampling=spacing)
    place = np.unravel_index(int(depth.argmax()), depth.shape)
    return np.asarray(np.array(place) - 1 + np.array(box.start), dtype=np.intp)


def _next_click(
    found: Bools, mask: Bools, spacing: NDArray[np.float64]
) -> tuple[NDArray[np.intp], bool] | None:
    """Middle of the largest connected fault and whether it is missing; ``None`` if none is."""
    largest: tuple[int, bool, Bools] | None = None
    for positive, fault in ((True, mask & ~found), (False, found & ~mask)):
        parts, count = ndi.label(fault)
        if count:
            sizes = np.bincount(parts.ravel())[1:]
            size = int(sizes.max())
            if largest is None or size > largest[0]:
                largest = (size, positive, parts == 1 + sizes.argmax())
    return None if largest is None else (_deepest(largest[2], spacing), largest[1])


def _row(title: str, runs: Sequence[Run]) -> str:
    dice = np.array([run.dice for run in runs])
    first = np.array([run.seconds[0] for run in runs])
    text = f"{title:24s} n={len(runs):<3d} Dice {' '.join(f'{v:.3f}' for v in dice.mean(axis=0))}"
    text += f" | median {np.median(dice[:, 0]):.3f} | s median {np.median(first):.2f}"
    text += f" max {first.max():.2f}"
    if dice.shape[1] > 1:
        change = np.diff(dice, axis=1)
        text += f" | harmful clicks {(change < -HARM).mean():.0%}, worst {change.min():+.2f}"
    return text


def _confidence(runs: Sequence[Run]) -> str:
    dice = np.array([run.dice[0] for run in runs])
    score = np.array([run.score for run in runs])
    poor = dice < POOR
    area = np.mean(score[poor][:, None] < score[~poor]) if poor.any() and (~poor).any() else np.nan
    rank = spearmanr(score, dice).statistic
    return f"score against Dice: Spearman {rank:.2f}, AUC for Dice < {POOR}: {area:.2f}"


def _speed(emit: Callable[[str], object]) -> None:
    """Time and peak memory on noisy balls of growing size."""
    for side in (100, 144, 171):
        axes = np.ogrid[:side, :side, :side]
        middle = (side - 1) / 2
        reach = sum(((a - middle) / (0.42 * side)) ** 2 for a in axes)
        ball = np.asarray(reach <= 1, dtype=bool)
        noise = np.random.default_rng(0).normal(0, 20, ball.shape)
        scan = (100 * ball + noise).astype(np.int16)
        volume = Volume(scan, Geometry.from_spacing(scan.shape, (1.0, 1.0, 1.0)))
        run = play(volume, ball, "points", clicks=1)
        tracemalloc.start()
        play(volume, ball, "points")
        peak = tracemalloc.get_traced_memory()[1] - ball.size * 9  # the harness' own distances
        tracemalloc.stop()
        emit(
            f"{Box.whole(scan.shape).size / 1e6:.1f} M voxels: {run.seconds[0]:.2f} s, click "
            f"{run.seconds[-1]:.2f} s, Dice {run.dice[0]:.3f}, peak about {peak / 2**20:.0f} MiB\n"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Print every figure; return 0."""
    parser = argparse.ArgumentParser(prog="benchmarks built_in", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of a labelled scan")
    parser.add_argument("--clicks", type=int, default=5, help="corrective clicks per object")
    options = parser.parse_args(argv)
    emit = sys.stdout.write
    volume, labels = load_scan(options.data)
    large = list(objects(volume, labels, LARGE_MM3))
    small = list(objects(volume, labels, SMALL_MM3, LARGE_MM3))
    judged: list[Run] = []
    starts: tuple[Start, ...] = ("points", "box", "click")
    for start in starts:
        runs = [play(volume, m, start, clicks=options.clicks) for _, m in large]
        judged += runs
        emit(_row(f"{start}, exact", runs) + "\n")
        if start == "points":
            for (name, _), run in zip(large, runs, strict=True):
                emit(f"    {name:12s} {' '.join(f'{v:.3f}' for v in run.dice)}\n")
    for noise in (2.0, 4.0):
        rng = np.random.default_rng(0)
        runs = [
            play(volume, m, "points", noise_mm=noise, rng=rng) for _ in range(3) for _, m in large
        ]
        judged += runs
        emit(_row(f"points, {noise:g} mm noise", runs) + "\n")
    emit(_row("points, small objects", [play(volume, m, "points") for _, m in small]) + "\n")
    emit(_confidence(judged) + "\n")
    _speed(emit)
    return 0
