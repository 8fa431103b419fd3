"""Cases as the network sees them: on its grid, scaled, padded; kept in the run's folder.

They are plain NumPy files that are mapped to memory. So scans larger than memory can be learnt
from, and a run goes on after a crash without the scans. They are deleted when the run is done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import CheckpointError, EngineError, OpenMedLabError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.io.atomic import staging
from napari_openmedlab.models.checkpoints.disk import require_space
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.finetuned import LabelClass, Preprocessing
from napari_openmedlab.models.preparation import grid_plan, padding, scaling_of
from napari_openmedlab.training.cases import Checked

__all__ = ["FOLDER", "Prepared", "drop_cases", "open_cases", "prepare_cases"]

FOLDER = "prepared"
_LIST = "cases.json"
_PLACES = 20_000  # voxels of a class that patches are placed on


@dataclass(frozen=True, eq=False)
class Prepared:
    """One case.

    Attributes
    ----------
    name : str
    image : ndarray of float32, shape (z, y, x)
        At least one patch large; mirrored at its faces where the scan is thinner.
    labels : ndarray of uint8, shape (z, y, x)
        Class numbers: 0 background, then in the order of the plan's classes.
    inside : tuple of slice
        The scan without what was added around it.
    places : mapping of int to ndarray of int64
        Flat indices of voxels by class number, some thousands of each class that is there.
    """

    name: str
    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    inside: tuple[slice, slice, slice]
    places: Mapping[int, NDArray[np.int64]]


def prepare_cases(
    cases: Sequence[Checked],
    preprocessing: Preprocessing,
    classes: Sequence[LabelClass],
    folder: Path,
    monitor: Monitor,
) -> None:
    """Write all cases into ``folder / FOLDER``; what is there already is not made again.

    Raises
    ------
    EngineError
        If a case can't be prepared; the text names it.
    WriteError
        If the disk is full.
    Cancelled
        After a cancel.
    """
    target = folder / FOLDER
    with staging(folder):
        target.mkdir(exist_ok=True)
    for number, checked in enumerate(cases):
        monitor.step(number, len(cases), f"preparing {checked.case.name}")
        if not (target / f"{number:04d}.json").exists():
            _prepare(checked, preprocessing, classes, target, number)
    monitor.step(len(cases), len(cases), "cases prepared")
    with staging(target) as work:
        names = [checked.case.name for checked in cases]
        (work / _LIST).write_text(json.dumps(names), encoding="utf-8")


def open_cases(folder: Path) -> tuple[Prepared, ...]:
    """Return the cases that :func:`prepare_cases` wrote.

    Raises
    ------
    CheckpointError
        If they are not there or damaged.
    """
    source = folder / FOLDER
    try:
        names = json.loads((source / _LIST).read_text(encoding="utf-8"))
        return tuple(_open(source, number, name) for number, name in enumerate(names))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the prepared scans in {source} are damaged or gone ({error}); start the run anew in "
            "another folder",
            source,
        ) from error


def drop_cases(folder: Path) -> None:
    """Delete the prepared cases of a run that is done."""
    with suppress(OSError):
        shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _prepare(
    checked: Checked,
    preprocessing: Preprocessing,
    classes: Sequence[LabelClass],
    folder: Path,
    number: int,
) -> None:
    name = checked.case.name
    try:
        volume, labels, _ = checked.case.read()
        image, target = _on_grid(volume, _numbered(labels, checked, classes), preprocessing)
    except OpenMedLabError as error:
        raise EngineError(f"{name} can't be prepared: {error}", stage="prepare") from error
    around = padding(image.shape, preprocessing.patch)
    inside = [[low, low + size] for (low, _), size in zip(around, image.shape, strict=True)]
    if any(low or high for low, high in around):
        image = np.pad(image, around, mode="reflect")
        target = np.pad(target, around, mode="reflect")
    require_space(folder, image.nbytes + target.nbytes, f"preparing {name}")
    with staging(folder) as work:
        np.save(work / f"{number:04d}_image.npy", image)
        np.save(work / f"{number:04d}_labels.npy", target)
        np.savez(
            work / f"{number:04d}_places.npz", **cast("Any", _places(target, len(classes), number))
        )
        facts = {"name": name, "inside": inside}
        (work / f"{number:04d}.json").write_text(json.dumps(facts), encoding="utf-8")


def _numbered(
    labels: NDArray[Any], checked: Checked, classes: Sequence[LabelClass]
) -> NDArray[np.uint8]:
    """Return class numbers instead of the case's own label values."""
    order = {each.value: number for number, each in enumerate(classes, 1)}
    out = np.zeros(labels.shape, dtype=np.uint8)
    for value, wanted in checked.mapping.items():
        out[labels == value] = order[wanted]
    return out


def _on_grid(
    volume: Volume, target: NDArray[np.uint8], preprocessing: Preprocessing
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    scaling = scaling_of(volume, preprocessing.intensity)
    plan = grid_plan(volume.geometry, preprocessing.spacing)
    if plan is None:
        return scaling.apply(np.asarray(volume.array)), target
    # Scaled before it is resampled, as a scan is when the model is used.
    scaled = Volume(scaling.apply(np.asarray(volume.array)), volume.geometry)
    numbers = plan.apply(Volume(target, volume.geometry), order=0)
    return plan.apply(scaled), np.rint(numbers).astype(np.uint8)


def _places(target: NDArray[np.uint8], count: int, number: int) -> dict[str, NDArray[np.int64]]:
    """Return flat indices of voxels by class, at most some thousands of each."""
    flat = target.ravel()
    labelled = np.flatnonzero(flat)
    values = flat[labelled]
    rng = np.random.default_rng(number)
    places = {}
    for value in range(1, count + 1):
        found = labelled[values == value]
        if len(found) > _PLACES:
            found = np.sort(rng.choice(found, _PLACES, replace=False))
        if len(found):
            places[str(value)] = found.astype(np.int64)
    return places


def _open(source: Path, number: int, name: str) -> Prepared:
    facts = json.loads((source / f"{number:04d}.json").read_text(encoding="utf-8"))
    if facts["name"] != name:
        raise ValueError(f"{name} is not case {number}")
    z, y, x = (slice(first, last) for first, last in facts["inside"])
    with np.load(source / f"{number:04d}_places.npz") as file:
        places = {int(value): file[value] for value in file.files}
    image, labels = (
        np.load(source / f"{number:04d}_{part}.npy", mmap_mode="r") for part in ("image", "labels")
    )
    return Prepared(name, image, labels, (z, y, x), places)
