"""The results in a run's folder: probability, and labels that are made of it at any threshold."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.axons.density_grid import Patient
from napari_openmedlab.axons.journal import add_line, disk_errors_said, lines_since, read_lines
from napari_openmedlab.errors import ReadError, WriteError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.io.atomic import staging
from napari_openmedlab.io.ome_zarr_levels import BROKEN, reason
from napari_openmedlab.io.ome_zarr_write import ImagePlace, build_levels
from napari_openmedlab.models.checkpoints.locks import locked
from napari_openmedlab.models.contract import Monitor

__all__ = [
    "FORMAT",
    "IMAGE",
    "LABELS",
    "LOCK",
    "RUN",
    "Results",
    "finish",
    "label_level",
    "quantised",
    "read_run",
    "relabel",
    "run_hash",
    "settle",
    "write_run",
]

FORMAT = 1
LABELS = "axons"
RUN, IMAGE, LOCK = "run.json", "axons.zarr", ".lock"


def quantised(score: NDArray[np.float32], *, truncate: bool = False) -> NDArray[np.uint8]:
    """Return probabilities as uint8, 255 for 1; rounded, or truncated as upstream does."""
    scaled = score * np.float32(255)
    return (scaled if truncate else np.rint(scaled)).astype(np.uint8)


def label_level(threshold: float) -> int:
    """Return the least stored value (1 to 255) that is axon at a threshold above 0."""
    return max(1, math.ceil(threshold * 255 - 1e-9))


@dataclass(frozen=True, eq=False)
class Results:
    """The results in a run's folder, finished or not.

    Attributes
    ----------
    folder : Path
    run : dict
        Content of ``run.json``.
    probability, labels : zarr.Array
        (z, y, x) uint8 of the region; probability 255 stands for 1, labels are 0 and 1.
    """

    folder: Path
    run: dict[str, Any]
    probability: Any
    labels: Any

    @classmethod
    def open(cls, folder: str | Path, mode: str = "r") -> Results:
        """Open the results of a folder.

        Raises
        ------
        ReadError
            If the folder holds no run, or a damaged one.
        """
        import zarr

        folder = Path(folder)
        run = read_run(folder)
        try:
            group = zarr.open_group(str(folder / IMAGE), mode=mode)
            return cls(folder, run, group["0"], group[f"labels/{LABELS}/0"])
        except BROKEN as error:
            raise ReadError(
                f"the images of the run in {folder} can't be opened ({reason(error)})", folder
            ) from error

    @property
    def image(self) -> Path:
        """The OME-Zarr of the probability."""
        return self.folder / IMAGE

    @property
    def label_image(self) -> Path:
        """The OME-Zarr of the labels."""
        return self.image / "labels" / LABELS

    @property
    def region(self) -> Box:
        """Voxels of the source that are stored."""
        start, stop = self.run["region"]
        return Box(tuple(start), tuple(stop))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) in um, 1 where it is not known."""
        z, y, x = self.run["spacing"] or (1.0, 1.0, 1.0)
        return float(z), float(y), float(x)

    @property
    def knows_spacing(self) -> bool:
        """Whether the voxel size is known."""
        return self.run["spacing"] is not None

    @property
    def origin(self) -> tuple[float, float, float]:
        """Centre of the first stored voxel (z, y, x) in um of the source."""
        z, y, x = (float(v) for v in self.run["origin"])
        return z, y, x

    @property
    def patient(self) -> Patient | None:
        """The patient's axes that the source states, if it does."""
        stored = self.run.get("patient")
        return Patient.from_json(stored) if stored else None

    @property
    def threshold(self) -> float:
        """Of the labels."""
        return float(self.run["threshold"])

    @property
    def place(self) -> ImagePlace:
        """Where the results lie in space."""
        return ImagePlace(self.spacing if self.knows_spacing else None, self.origin)

    def blocks(self) -> Iterator[Box]:
        """Yield every core as a box of the result (slabs of upstream's stitching included)."""
        shape = tuple(int(n) for n in self.probability.shape)
        core = [min(c, n) for c, n in zip(self.run["core"], shape, strict=True)]
        for low in product(*(range(0, n, c) for n, c in zip(shape, core, strict=True))):
            high = tuple(min(a + c, n) for a, c, n in zip(low, core, shape, strict=True))
            yield Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))

    def done(self) -> dict[int, dict[str, Any]]:
        """Return the journal: facts on every finished block by its number."""
        return {e["block"]: e for e in read_lines(self.folder) if "block" in e}

    @property
    def complete(self) -> bool:
        """Whether all blocks, their labels and the coarser levels are there."""
        levels = _levels(lines_since("relabel", read_lines(self.folder)))
        return bool(levels) and levels[-1] == self.threshold

    @property
    def relabelling(self) -> float | None:
        """The threshold of a relabel that is under way or was cut short; ``None``: there is none.

        Until it is made again some labels are of this threshold, some of the one before.
        """
        lines = read_lines(self.folder)
        since = lines_since("relabel", lines)
        if len(since) < len(lines):
            ended = any("relabelled" in line for line in since)
            return None if ended else float(lines[-1 - len(since)]["relabel"])
        # Journals of earlier versions tell only by the threshold of the last coarser levels.
        levels = _levels(lines)
        return self.threshold if levels and levels[-1] != self.threshold else None


def relabel(folder: str | Path, threshold: float, monitor: Monitor) -> Results:
    """Make the labels of a run anew at another threshold; no engine runs.

    Cut short, it is made again by the next call, or by the run going on.

    Parameters
    ----------
    folder : path
        Of the run. If it is not finished, it goes on with the new threshold.
    threshold : float
        Above 0, at most 1.
    monitor : Monitor

    Raises
    ------
    ReadError
        If there is no run.
    WriteError
        If the labels can't be written, or the threshold makes no sense.
    """
    if not 0 < threshold <= 1:
        raise WriteError(f"a threshold lies above 0 and at most at 1, got {threshold}")
    folder = Path(folder)
    read_run(folder)  # a folder that is no run's gets no lock
    with locked(folder / LOCK, f"another program is working on {folder}"):
        run = read_run(folder)
        # Noted before anything changes, so that nobody takes labels of two thresholds for whole.
        add_line(folder, {"relabel": threshold})
        write_run(folder, {**run, "threshold": threshold})
        results = Results.open(folder, "r+")
        _make_labels(results, monitor)
        if len(results.done()) == run["blocks"]:
            finish(results, monitor)
    return results


def finish(results: Results, monitor: Monitor) -> None:
    """Make what is missing once all blocks are done: labels of one threshold, coarser levels."""
    if results.relabelling is not None:
        add_line(results.folder, {"relabel": results.threshold})
        _make_labels(results, monitor)
    if not results.complete:
        _make_levels(results, monitor)


def _make_labels(results: Results, monitor: Monitor) -> None:
    level, boxes = label_level(results.threshold), list(results.blocks())
    with disk_errors_said(results.folder):
        for number, box in enumerate(boxes):
            monitor.step(number, len(boxes), "labels at the new threshold")
            score = np.asarray(results.probability[box.slices])
            results.labels[box.slices] = (score >= level).view(np.uint8)
            settle(results.label_image / "0", box, results.labels.chunks)
    add_line(results.folder, {"relabelled": results.threshold})


def _make_levels(results: Results, monitor: Monitor) -> None:
    """Make coarser levels; the brightest voxel stands for all. Those of probability only once."""

    def step(done: int, total: int) -> None:
        monitor.step(done, total, "making coarser levels")

    if not _levels(read_lines(results.folder)):
        build_levels(results.image, results.place, "probability", "max", step)
    build_levels(results.label_image, results.place, LABELS, "max", step)
    add_line(results.folder, {"levels": results.threshold})


def _levels(lines: list[dict[str, Any]]) -> list[float]:
    """Return the thresholds at which the coarser levels were made, in turn."""
    return [float(line["levels"]) for line in lines if "levels" in line]


def settle(where: Path, core: Box, chunks: tuple[int, ...]) -> None:
    """Have the chunks of a core on the disk: the journal must not run ahead of them."""
    spans = [
        range(a // c, -(-b // c)) for a, b, c in zip(core.start, core.stop, chunks, strict=True)
    ]
    for z, y, x in product(*spans):
        path = where / str(z) / str(y) / str(x)
        if path.exists():  # chunks of zeros have no file
            with path.open("r+b") as file:
                os.fsync(file.fileno())


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Write what a run is, in place of what was written before."""
    with staging(folder) as stage:
        (stage / RUN).write_text(json.dumps(run, indent=1), encoding="utf-8")


def run_hash(folder: Path) -> str:
    """Return the hash of what a run is, as it stands on the disk; empty if there is none."""
    try:
        return hashlib.sha256((folder / RUN).read_bytes()).hexdigest()
    except OSError:
        return ""


def read_run(folder: Path) -> dict[str, Any]:
    """Return what a run is.

    Raises
    ------
    ReadError
        If the folder holds no run, or one of another version.
    """
    path = folder / RUN
    if not path.is_file():
        raise ReadError(f"{folder} holds no run of axons ({RUN} is missing)", folder)
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReadError(f"{path} can't be read: {error}; start a new folder", path) from error
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        raise ReadError(f"{path} was written by another version; start a new folder", path)
    return run
