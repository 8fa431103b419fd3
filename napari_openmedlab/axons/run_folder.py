"""The folder of a run as the run itself sees it: begun or gone on with, block by block."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab import __version__
from napari_openmedlab.axons.density_grid import Patient
from napari_openmedlab.axons.journal import NAME as JOURNAL
from napari_openmedlab.axons.journal import add_line, disk_errors_said
from napari_openmedlab.axons.plan import Plan
from napari_openmedlab.axons.store import (
    FORMAT,
    IMAGE,
    LABELS,
    LOCK,
    RUN,
    Results,
    finish,
    label_level,
    read_run,
    settle,
    write_run,
)
from napari_openmedlab.errors import WriteError
from napari_openmedlab.io.atomic import sentence
from napari_openmedlab.io.ome_zarr_write import ImagePlace, add_labels, create_image
from napari_openmedlab.models.checkpoints.locks import locked
from napari_openmedlab.models.contract import Monitor

__all__ = ["RunFolder", "write_block"]

# Where a run differs in one of these it is another run.
_IDENTITY = (
    "format", "version", "source", "region", "spacing", "engine", "options", "provenance",
    "intensity", "skip_background", "core", "halo", "step", "chunk", "slabs",
)  # fmt: skip


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
        if not (folder / RUN).exists():
            _refuse_strangers(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(sentence(error, folder.parent), folder) from error
        with locked(folder / LOCK, f"another program is working on the run in {folder}"):
            if (folder / RUN).exists():
                _refuse_another(read_run(folder), run, folder)
            else:
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
        """Finish a relabel that was cut short and make the coarser levels, if that was not done."""
        finish(self.results, monitor)


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
            settle(where, core, array.chunks)
    return int(np.count_nonzero(labels))


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
        "patient": patient.to_json() if (patient := Patient.of(source.volume)) else None,
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
    image = folder / IMAGE
    # Without a run.json an image can only be the beginning of one that a crash cut short.
    shutil.rmtree(image, ignore_errors=True)
    (folder / JOURNAL).unlink(missing_ok=True)
    create_image(image, plan.region.shape, np.uint8, plan.chunks, place, "probability")
    add_labels(image, LABELS, place, plan.chunks)
    write_run(folder, run)


def _refuse_strangers(folder: Path) -> None:
    """Raise if a folder that is not a run's holds anything but the beginning of one."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise WriteError(f"{folder} is a file; name a folder for the results", folder)
    ours = {IMAGE, LOCK, JOURNAL}
    found = {p.name for p in folder.iterdir() if not p.name.startswith(".openmedlab-")}
    if found - ours or (IMAGE in found and LOCK not in found):
        raise WriteError(
            f"{folder} is not empty and holds no run of axons; choose a new folder, nothing was "
            "changed",
            folder,
        )


def _entries(stored: Any, wanted: Any) -> str:
    """Return which entries of two mappings differ, in words."""
    if not isinstance(stored, dict) or not isinstance(wanted, dict):
        return ""
    said = []
    for name in {**stored, **wanted}:
        before, now = stored.get(name), wanted.get(name)
        if before != now:
            plain = not isinstance(before, dict) and not isinstance(now, dict)
            said.append(f"{name}: {now} instead of {before}" if plain else name)
    return f" ({', '.join(said)})"


def _refuse_another(stored: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    plain = json.loads(json.dumps(wanted))
    differing = [
        name + _entries(stored.get(name), plain.get(name))
        for name in _IDENTITY
        if stored.get(name) != plain.get(name)
    ]
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
