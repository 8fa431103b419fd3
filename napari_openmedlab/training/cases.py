"""Labelled volumes to learn from: found in folders or open layers, checked, listed.

What can't be used is left out with a reason, never silently. Importing this module imports no
torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import Cancelled, GeometryError, OpenMedLabError, SettingsError
from napari_openmedlab.geometry.labels import count_labels
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.contract import Monitor

__all__ = ["Case", "CasesFound", "Checked", "check_cases"]

_MOST_CLASSES = 255  # classes are kept in a byte a voxel
_LOOKED_AT = 32  # slices of an image that are looked at for its values
_UNEVEN = 2.0
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Case:
    """One volume with its labels, read when they are needed.

    Attributes
    ----------
    name : str
        Unique among the cases; stays on this machine.
    image : Volume or Path
        Of an open layer, or a file or folder :func:`napari_openmedlab.io.api.read` takes.
    labels : ndarray of int, shape of the image (z, y, x), or Path
        In display order; or a label file.
    names : mapping of int to str
        Class names by label value, where known; a label file's sidecar is asked too.
    """

    name: str
    image: Volume | Path
    labels: NDArray[Any] | Path
    names: Mapping[int, str] = field(default_factory=dict)

    def read(self) -> tuple[Volume, NDArray[Any], dict[int, str]]:
        """Return the scan, its labels (z, y, x) on the same grid, and names by value.

        Raises
        ------
        ReadError, GeometryError
            If a file can't be read, holds no labels, or lies on another grid than the scan.
        """
        from napari_openmedlab.io.api import read, read_labels

        image = read(self.image) if isinstance(self.image, Path) else self.image
        names = dict(self.names)
        if isinstance(self.labels, Path):
            volume, objects = read_labels(self.labels, image)
            names = {value: info.name for value, info in objects.items()} | names
            return image, np.asarray(volume.array), names
        labels = np.asarray(self.labels)
        if labels.shape != image.geometry.shape:
            raise GeometryError(
                f"its labels have {_times(labels.shape)} voxels, its image "
                f"{_times(image.geometry.shape)}: they lie on another grid"
            )
        if labels.dtype.kind not in "biu" or (labels.size and int(labels.min()) < 0):
            raise GeometryError("its labels hold values that are no whole numbers from 0 on")
        return image, labels, names


@dataclass(frozen=True, eq=False)
class Checked:
    """A case that can be used, and what was seen of it.

    Attributes
    ----------
    case : Case
    geometry : Geometry
    modality : str
    voxels : mapping of int to int
        Voxels by value of ``CasesFound.classes`` (the canonical value, after names were
        matched).
    mapping : mapping of int to int
        Label value in the case's own labels -> value in ``CasesFound.classes``. Other values
        count as background.
    lowest : float
        Smallest value of the image.
    """

    case: Case
    geometry: Geometry
    modality: str
    voxels: Mapping[int, int]
    mapping: Mapping[int, int]
    lowest: float


@dataclass(frozen=True, eq=False)
class CasesFound:
    """What a run may learn from.

    Attributes
    ----------
    cases : tuple of Checked
        Sorted by name.
    classes : mapping of int to str
        Name by label value, ascending; background (0) is not in it.
    left_out : tuple of (str, str)
        Name and reason of what can't be used.
    notes : tuple of str
        Sentences for the user (classes that are rare, odd voxel sizes).
    """

    cases: tuple[Checked, ...]
    classes: Mapping[int, str]
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def check_cases(
    cases: Iterable[Case],
    classes: Mapping[int, str] | None = None,
    *,
    others_as_background: bool = False,
    left_out: Sequence[tuple[str, str]] = (),
    monitor: Monitor | None = None,
) -> CasesFound:
    """Look at every case and say which can be used.

    Parameters
    ----------
    cases : iterable of Case
    classes : mapping of int to str, optional
        What to learn: name by value. Where a case names its labels, classes are matched by
        name, else by value. Without it: all classes that the cases have.
    others_as_background : bool
        Take label values outside of ``classes`` as background; otherwise the case is left out.
    left_out : sequence of (str, str)
        From :func:`.pairs.pair_folders`, to be listed with the rest.
    monitor : Monitor, optional
        Hears of each case, and may cancel.

    Returns
    -------
    CasesFound

    Raises
    ------
    SettingsError
        If no case is left, no class is labelled anywhere, or a class is empty in all cases; the
        text lists what was left out.
    Cancelled
        After a cancel.
    """
    seen, bad = _look_at_all(list(cases), monitor or Monitor())
    out = [*left_out, *bad]
    names = dict(classes) if classes is not None else _classes_of(seen)
    _check_class_list(names)
    kept = []
    for one in seen:
        mapping, strange = _mapping(one, names)
        reason = _why_not(one, mapping, strange, names, others_as_background)
        if reason:
            out.append((one.case.name, reason))
            continue
        voxels = dict.fromkeys(names, 0)
        for value, wanted in mapping.items():
            voxels[wanted] += one.voxels.get(value, 0)
        kept.append(Checked(one.case, one.geometry, one.modality, voxels, mapping, one.lowest))
    if not kept:
        raise SettingsError("there is no case to learn from" + _listed(out))
    empty = [name for value, name in names.items() if not any(c.voxels[value] for c in kept)]
    if empty:
        raise SettingsError(
            f"{_classes_words(empty)} empty in all {len(kept)} volumes; label it, or take it out "
            f"of the class list{_listed(out)}"
        )
    kept.sort(key=lambda checked: checked.case.name)
    return CasesFound(tuple(kept), names, tuple(out), tuple(_remarks(kept, names)))


@dataclass(frozen=True, eq=False)
class _Seen:
    """A case that could be read."""

    case: Case
    geometry: Geometry
    modality: str
    voxels: Mapping[int, int]
    names: Mapping[int, str]
    lowest: float


def _look_at_all(cases: list[Case], monitor: Monitor) -> tuple[list[_Seen], list[tuple[str, str]]]:
    seen: list[_Seen] = []
    out: list[tuple[str, str]] = []
    count = Counter(case.name.casefold() for case in cases)
    for number, case in enumerate(cases):
        monitor.step(number, len(cases), f"looking at {case.name}")
        if count[case.name.casefold()] > 1:
            out.append((case.name, "several cases have this name; rename all but one"))
            continue
        try:
            seen.append(_look_at(case))
        except Cancelled:
            raise
        except OpenMedLabError as error:
            out.append((case.name, str(error)))
    monitor.step(len(cases), len(cases), "cases looked at")
    return seen, out


def _look_at(case: Case) -> _Seen:
    image, labels, names = case.read()
    shape = image.geometry.shape
    if min(shape) == 1:
        raise GeometryError(
            f"it is a 2D image ({_times(shape)} voxels); the networks learn from volumes"
        )
    some = np.asarray(image.array[:: max(1, shape[0] // _LOOKED_AT)])
    low, high = float(np.nanmin(some)), float(np.nanmax(some))
    if not low < high:
        raise GeometryError("its image has one value everywhere")
    voxels = {v: n for v, n in count_labels(labels).items() if v > 0}
    return _Seen(case, image.geometry, image.modality, voxels, names, low)


def _key(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _classes_of(seen: list[_Seen]) -> dict[int, str]:
    """Return all classes of the cases: by name where there are names, else by value."""
    found: dict[int, str] = {}
    known: set[str] = set()
    for one in seen:
        for value in sorted(one.voxels):
            name = one.names.get(value, "").strip()
            if name and _key(name) not in known:
                free = value if value not in found else max(found) + 1
                found[free] = name
                known.add(_key(name))
    for one in seen:
        for value in sorted(one.voxels):
            if not one.names.get(value, "").strip() and value not in found:
                found[value] = f"label {value}"
    return dict(sorted(found.items()))


def _mapping(one: _Seen, classes: Mapping[int, str]) -> tuple[dict[int, int], list[str]]:
    """Return case value -> class value, and in words the values that are no class."""
    by_name = {_key(name): value for value, name in classes.items()}
    mapping: dict[int, int] = {}
    strange: list[str] = []
    for value in sorted(one.voxels):
        name = one.names.get(value, "").strip()
        if name and _key(name) in by_name:
            mapping[value] = by_name[_key(name)]
        elif not name and value in classes:
            mapping[value] = value
        else:
            strange.append(f"{value} ({name})" if name else str(value))
    return mapping, strange


def _why_not(
    one: _Seen,
    mapping: Mapping[int, int],
    strange: list[str],
    classes: Mapping[int, str],
    others_as_background: bool,
) -> str:
    if not one.voxels:
        return "nothing is labelled in it"
    if strange and not others_as_background:
        return (
            f"its labels hold {_few(strange)}, which the class list ("
            f"{_few([f'{v} {n}' for v, n in classes.items()])}) does not have"
        )
    return "" if mapping else "it has no label of the class list"


def _check_class_list(classes: Mapping[int, str]) -> None:
    if len(classes) > _MOST_CLASSES:
        raise SettingsError(f"a network can learn {_MOST_CLASSES} classes, not {len(classes)}")
    if any(value < 1 for value in classes):
        raise SettingsError("class values are whole numbers from 1 on; 0 is the background")
    if len({_key(name) for name in classes.values()}) < len(classes):
        raise SettingsError(f"two classes have one name: {', '.join(classes.values())}")
    if not all(name.strip() for name in classes.values()):
        raise SettingsError("a class has no name")


def _remarks(kept: list[Checked], classes: Mapping[int, str]) -> list[str]:
    lonely = [
        name
        for value, name in classes.items()
        if len(kept) > 1 and sum(bool(c.voxels[value]) for c in kept) == 1
    ]
    notes = (
        [f"Only one case has {_few(lonely)}: it can't be learnt and measured."] if lonely else []
    )
    if len({c.geometry.unit for c in kept}) > 1:
        notes.append("Some scans have no known voxel size: none is resampled.")
    spacings = np.array([c.geometry.spacing for c in kept])
    if float((spacings.max(axis=0) / spacings.min(axis=0)).max()) > _UNEVEN:
        notes.append("Voxel sizes differ by more than a factor of two between scans.")
    return notes


def _classes_words(names: list[str]) -> str:
    return f"class '{names[0]}' is" if len(names) == 1 else f"the classes {_few(names)} are"


def _listed(out: Sequence[tuple[str, str]]) -> str:
    if not out:
        return ""
    lines = [f"{name}: {reason}" for name, reason in out[:_SHOWN]]
    more = [f"and {len(out) - _SHOWN} more"] if len(out) > _SHOWN else []
    return ". Left out: " + "; ".join([*lines, *more])


def _few(words: Sequence[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (" ..." if len(words) > _SHOWN else "")


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
