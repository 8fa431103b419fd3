"""How well the built-in axon filter finds drawn axons, against the rule without a look at shapes.

Drawn axons are also looked at with planes 2, 3 and 4 voxels apart, with and without the filter
knowing of it (``--planes``).

Real cubes have machine-made labels only, so figures on them are agreement, not accuracy; they are
printed if ``--real FOLDER`` names a folder with ``raw1001.tiff`` and ``fine1001.tiff``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.axon_tubes import TubeScene, make_tubes
from napari_openmedlab.axons.annotate import without_small
from napari_openmedlab.evaluation.axon_metrics import (
    centre_line_agreement,
    cl_dice,
    dice,
    upstream_agreement,
)
from napari_openmedlab.models.engines.axon_filter.filtering import (
    FilterSettings,
    relative_sizes,
    score_block,
)

_SMALLEST = 20  # voxels, of the size they have where all axes are alike
_RULE, _BLIND, _FILTER = "DoG / background > 0.2", "filter, voxels taken for cubes", "filter"
_CUBES = (1.0, 1.0, 1.0)


def main(arguments: Sequence[str]) -> int:
    """Print one row per scene and rule: medians over the seeds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks axon_quality")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--planes", type=int, nargs="*", default=[1, 2, 3, 4], help="drawn planes averaged into one"
    )
    parser.add_argument("--real", type=Path)
    chosen = parser.parse_args(arguments)
    print("scene, rule: centre-line F1 (precision, recall; 2 of the finest voxels), clDice, Dice, ")
    print("tolerant IoU as upstream, Mvoxel per CPU second")
    for title, plain in (("drawn axons", True), ("drawn axons, border, blobs", False)):
        for planes in chosen.planes:
            looks = [
                make_tubes(
                    TubeScene(seed=n, edge=not plain, blobs=0 if plain else 10, planes=planes)
                )
                for n in range(chosen.seeds)
            ]
            where = title if planes == 1 else f"{title}, planes {planes} apart"
            for rule in (_RULE, _FILTER) if planes == 1 else (_RULE, _BLIND, _FILTER):
                rows = [_row(rule, s.image, s.mask, s.points, s.spacing) for s in looks]
                _print(where, rule, rows)
    if chosen.real is not None:
        _real(chosen.real)
    return 0


def _real(folder: Path) -> None:
    import tifffile
    from skimage.morphology import skeletonize

    raw = tifffile.imread(folder / "raw1001.tiff")
    fine = tifffile.imread(folder / "fine1001.tiff") > 0
    points = np.argwhere(skeletonize(fine))
    for rule in (_RULE, _FILTER):
        _print("real cube, machine-made label", rule, [_row(rule, raw, fine, points, _CUBES)])


def _row(
    rule: str,
    image: NDArray[Any],
    truth: NDArray[np.bool_],
    points: NDArray[Any],
    spacing: tuple[float, float, float],
) -> tuple[float, ...]:
    from skimage.morphology import skeletonize

    sizes = _CUBES if rule == _BLIND else relative_sizes(spacing)
    settings = FilterSettings(shape=rule != _RULE, sizes=sizes)
    threshold = 0.2 / 0.35 if rule == _RULE else 0.5
    begin = time.process_time()
    score = score_block(image, settings)
    seconds = time.process_time() - begin
    mask = without_small(score > threshold, max(1, round(_SMALLEST / np.prod(spacing))))
    thin = skeletonize(mask) > 0
    lines = centre_line_agreement(np.argwhere(thin), points, 2.0, spacing)
    return (
        lines.f1, lines.precision, lines.recall, cl_dice(mask, truth, thin), dice(mask, truth),
        upstream_agreement(mask, truth).tolerant_iou, image.size / seconds / 1e6,
    )  # fmt: skip


def _print(title: str, rule: str, rows: list[tuple[float, ...]]) -> None:
    f1, precision, recall, overlap, voxels, tolerant, speed = map(
        statistics.median, zip(*rows, strict=True)
    )
    print(
        f"{title}, {rule}: F1 {f1:.3f} ({precision:.3f}, {recall:.3f}), clDice {overlap:.3f}, "
        f"Dice {voxels:.3f}, tolerant IoU {tolerant:.3f}, {speed:.1f}"
    )
