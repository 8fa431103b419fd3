"""The folder of a run: settings, journal, OME-Zarr of probability and labels."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab import __version__
from napari_openmedlab.axons.journal import NAME as JOURNAL
from napari_openmedlab.axons.journal import add_line, disk_errors_said, read_lines
from napari_openmedlab.axons.plan import Plan
from napari_openmedlab.errors import ReadError, WriteError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.io.atomic import sentence, staging
from napari_openmedlab.io.ome_zarr_levels import BROKEN, reason
from napari_openmedlab.io.ome_zarr_write import ImagePlace, add_labels, build_levels, create_image
from napari_openmedlab.models.checkpoints.locks import locked
from napari_openmedlab.models.contract import Monitor

__all__ = ["LABELS", "Results", "RunFolder", "label_level", "quantised"]

FORMAT = 1
LABELS = "axons"
_RUN, _IMAGE, _LOCK = "run.json", "axons.zarr", ".lock"
# Where a run differs in one of these it is another run.
_IDENTITY = (
    "format", "version", "source", "region", "spacing", "engine", "options", "provenance",
    "intensity", "skip_background", "core", "halo", "step", "chunk", "slabs",
)  # fmt: skip


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
        run = _read_run(folder)
        try:
            group = zarr.open_group(str(folder / _IMAGE), mode=mode)
            return cls(folder, run, group["0"], group[f"labels/{LABELS}/0"])
        except BROKEN as error:
            raise ReadError(
                f"the images of the run in {folder} can't be opened ({reason(error)})", folder
            ) from error

    @property
    def image(self) -> Path:
        """The OME-Zarr of the probability."""
        return self.folder / _IMAGE

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
        """Whether all blocks and the coarser levels are there."""
        return any(e.get("levels") == self.run["threshold"] for e in read_lines(self.folder))


class RunFolder:
    """Creates a run's folder or goes on with it; writes blocks and keeps the journal."""

    def __init__(self, results: Results, plan: Plan) -> None:
        self.results = results
        self._plan = plan
        self._level = label_level(results.threshold)

    @classmethod
    @contextmanager
    def of(cls, folder: str | Path, plan: Plan) -> Iterator[RunFolder]:
        """Give the folder of a plan, new or with what is done, while no other program has it.

        Raises
        ------
        WriteError
            If the folder belongs to another run or is no run's, is in use, or can't be written.
        """
        folder = Path(folder)
        run = _run_of(plan)
        if not (folder / _RUN).exists():
            _refuse_strangers(folder)
        else:
            _refuse_another(_read_run(folder), run, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(sentence(error, folder.parent), folder) from error
        with locked(folder / _LOCK, f"another program is working on the run in {folder}"):
            if not (folder / _RUN).exists():
                _create(folder, plan, run)
            yield cls(Results.open(folder, "r+"), plan)

    def write(self, number: int, score: NDArray[np.uint8] | None, seconds: float) -> None:
        """Write a block's core and note it in the journal; ``None``: background, nothing to write.

        Raises
        ------
        WriteError
            If the disk is full or can't be written; the journal then doesn't name the block.
        """
        facts: dict[str, Any] = {"block": number, "seconds": round(seconds, 3)}
        if score is None:
            facts |= {"voxels": 0, "skipped": True}
        else:
            facts["voxels"] = write_block(self.results, self._plan, number, score, self._level)
        self.note(facts)

    def note(self, facts: Mapping[str, Any]) -> None:
        """Add a line to the journal."""
        add_line(self.results.folder, facts)

    def finish(self, monitor: Monitor) -> None:
        """Make the coarser levels, if that was not done."""
        if not self.results.complete:
            make_levels(self.results, monitor)


def write_block(
    results: Results, plan: Plan, number: int, score: NDArray[np.uint8], level: int
) -> int:
    """Write the core of a block, probability and labels, and see it on the disk.

    Returns
    -------
    int
        Voxels that are axon.
    """
    core = plan.blocks[number].core.relative_to(plan.region)
    labels = (score >= level).view(np.uint8)
    with disk_errors_said(results.folder):
        for array, values, where in (
            (results.probability, score, results.image / "0"),
            (results.labels, labels, results.label_image / "0"),
        ):
            array[core.slices] = values
            _settle(where, core, array.chunks)
    return int(np.count_nonzero(labels))


def make_levels(results: Results, monitor: Monitor, *, labels_only: bool = False) -> None:
    """Make the coarser levels of probability and labels; the brightest voxel stands for all."""

    def step(done: int, total: int) -> None:
        monitor.step(done, total, "making coarser levels")

    if not labels_only:
        build_levels(results.image, results.place, "probability", "max", step)
    build_levels(results.label_image, results.place, LABELS, "max", step)
    add_line(results.folder, {"levels": results.threshold})


def relabel(folder: str | Path, threshold: float, monitor: Monitor) -> Results:
    """Make the labels of a run anew at another threshold; no engine runs.

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
    results = Results.open(folder, "r+")
    with locked(results.folder / _LOCK, f"another program is working on {folder}"):
        whole = len(results.done()) and results.complete
        _write_run(results.folder, {**results.run, "threshold": threshold})
        results = Results.open(folder, "r+")
        level, boxes = label_level(threshold), list(results.blocks())
        with disk_errors_said(results.folder):
            for number, box in enumerate(boxes):
                monitor.step(number, len(boxes), "labels at the new threshold")
                score = np.asarray(results.probability[box.slices])
                results.labels[box.slices] = (score >= level).view(np.uint8)
        if whole:
            make_levels(results, monitor, labels_only=True)
    return results


def _run_of(plan: Plan) -> dict[str, Any]:
    source, settings = plan.source, plan.settings
    spacing = source.spacing or (1.0, 1.0, 1.0)
    base = source.volume.geometry.affine[[2, 1, 0], 3] if _has_origin(plan) else np.zeros(3)
    origin = base + np.array(plan.region.start) * spacing
    return {
        "format": FORMAT,
        "version": __version__,
        "source": source.fingerprint(),
        "name": source.name,
        "address": source.address.to_json() if source.address else None,
        "region": [list(plan.region.start), list(plan.region.stop)],
        "spacing": list(source.spacing) if source.spacing else None,
        "origin": [float(v) for v in origin],
        "engine": settings.engine,
        "options": dict(settings.options),
        "provenance": dict(plan.provenance),
        "intensity": plan.survey.to_json(),
        "skip_background": settings.skip_background,
        "threshold": settings.threshold,
        "core": list(plan.layout.core) if not plan.layout.slabs else list(plan.chunks),
        "halo": list(plan.layout.halo),
        "step": list(plan.layout.step),
        "chunk": list(plan.chunks),
        "slabs": plan.layout.slabs,
        "blocks": len(plan.blocks),
    }


def _has_origin(plan: Plan) -> bool:
    """Whether the source's own translation counts: an image in um with its own voxel size."""
    geometry = plan.source.volume.geometry
    return geometry.frame == "image" and geometry.unit == "um"


def _create(folder: Path, plan: Plan, run: dict[str, Any]) -> None:
    place = ImagePlace(plan.source.spacing, tuple(run["origin"]))
    image = folder / _IMAGE
    # Without a run.json an image can only be the beginning of one that a crash cut short.
    shutil.rmtree(image, ignore_errors=True)
    (folder / JOURNAL).unlink(missing_ok=True)
    create_image(image, plan.region.shape, np.uint8, plan.chunks, place, "probability")
    add_labels(image, LABELS, place, plan.chunks)
    _write_run(folder, run)


def _write_run(folder: Path, run: Mapping[str, Any]) -> None:
    with staging(folder) as stage:
        (stage / _RUN).write_text(json.dumps(run, indent=1), encoding="utf-8")


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / _RUN
    if not path.is_file():
        raise ReadError(f"{folder} holds no run of axons ({_RUN} is missing)", folder)
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReadError(f"{path} can't be read: {error}; start a new folder", path) from error
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        raise ReadError(f"{path} was written by another version; start a new folder", path)
    return run


def _refuse_strangers(folder: Path) -> None:
    """Raise if a folder that is not a run's holds anything but the beginning of one."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise WriteError(f"{folder} is a file; name a folder for the results", folder)
    ours = {_IMAGE, _LOCK, JOURNAL}
    found = {p.name for p in folder.iterdir() if not p.name.startswith(".openmedlab-")}
    if found - ours or (_IMAGE in found and _LOCK not in found):
        raise WriteError(
            f"{folder} is not empty and holds no run of axons; choose a new folder, nothing was "
            "changed",
            folder,
        )


def _refuse_another(stored: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    plain = json.loads(json.dumps(wanted))
    differing = [name for name in _IDENTITY if stored.get(name) != plain.get(name)]
    if differing:
        raise WriteError(
            f"{folder} holds another run: it differs in {', '.join(differing)}. Choose another "
            "folder, or repeat the run's own settings (in its run.json) to go on with it; nothing "
            "was changed",
            folder,
        )
    if stored["threshold"] != wanted["threshold"]:
        raise WriteError(
            f"the run in {folder} has the threshold {stored['threshold']:g}, not "
            f"{wanted['threshold']:g}; change it there first: nothing has to be computed again",
            folder,
        )


def _settle(where: Path, core: Box, chunks: tuple[int, ...]) -> None:
    """Have the chunks of a core on the disk: the journal must not run ahead of them."""
    spans = [
        range(a // c, -(-b // c)) for a, b, c in zip(core.start, core.stop, chunks, strict=True)
    ]
    for z, y, x in product(*spans):
        path = where / str(z) / str(y) / str(x)
        if path.exists():  # chunks of zeros have no file
            with path.open("r+b") as file:
                os.fsync(file.fileno())
