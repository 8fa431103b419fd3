"""Which slices belong to one volume: series, and the several volumes a series may hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_openmedlab.errors import GeometryError, ReadError
from napari_openmedlab.io.choices import ImageChoice
from napari_openmedlab.io.dicom_files import Slice
from napari_openmedlab.io.dicom_geometry import (
    even_runs,
    lay_out,
    plane_distances,
    same_plane_mm,
)

__all__ = ["Stack", "choices", "find_stacks", "holding", "select"]

_SAME_DIRECTION = 5e-4  # difference of direction cosines: a quarter of a millimetre over 500 mm
_SHOWN = 20  # choices named in an error message


@dataclass(frozen=True)
class Stack:
    """Slices that make one volume.

    Attributes
    ----------
    key : str
        Series instance UID, with ``#2`` and so on where a series holds several volumes.
    slices : tuple of Slice
        One orientation and size; in no particular order.
    part : str
        What tells it from the other volumes of its series, for example ``"echo 4.6"``.
    copies : int
        Files left out because they hold the same object once more.
    """

    key: str
    slices: tuple[Slice, ...]
    part: str = ""
    copies: int = 0

    @property
    def title(self) -> str:
        """Series description, or modality and series number."""
        first = self.slices[0]
        fallback = f"{first.modality or 'image'} series {first.series_number}".strip()
        title = first.description or fallback
        return f"{title}, {self.part}" if self.part else title

    @property
    def choice(self) -> ImageChoice:
        """The stack as the user chooses it; the shape is (slices, rows, columns)."""
        first, count = self.slices[0], len(self.slices)
        return ImageChoice(
            key=self.key,
            title=self.title,
            shape=(count, first.rows, first.columns),
            detail=f"{first.modality or 'unknown modality'}, {count} "
            f"slice{'s' if count != 1 else ''} of {first.rows} x {first.columns}",
        )


def find_stacks(slices: Iterable[Slice]) -> tuple[Stack, ...]:
    """Sort slices into volumes, by series number, series UID and then by what differs."""
    series: dict[str, list[Slice]] = {}
    for plane in slices:
        series.setdefault(plane.series_uid, []).append(plane)
    ordered = sorted(series.values(), key=lambda s: (_number(s[0].series_number), s[0].series_uid))
    return tuple(stack for members in ordered for stack in _stacks_of_series(members))


def choices(stacks: Sequence[Stack]) -> tuple[ImageChoice, ...]:
    """Return one choice for each stack."""
    return tuple(stack.choice for stack in stacks)


def select(stacks: Sequence[Stack], series: str | None, index: int | None, path: Path) -> Stack:
    """Return the one stack that ``series`` and ``index`` name.

    Parameters
    ----------
    series : str or None
        Number in the list (from 1), series instance UID, the beginning of one, or a key of
        :func:`choices`.
    index : int or None
        Number (from 0) among the volumes that are left after ``series``.

    Raises
    ------
    ReadError
        If nothing or more than one volume is meant; the message lists the volumes.
    """
    found = list(stacks) if series is None else _matching(stacks, series.strip())
    if series is not None and not found:
        raise ReadError(f"{path} holds no series '{series}'; it holds {_listed(stacks)}", path)
    if index is not None:
        if not 0 <= index < len(found):
            raise ReadError(
                f"volume {index} was asked for, but {path} has volumes 0 to {len(found) - 1}: "
                f"{_listed(found)}",
                path,
            )
        return found[index]
    if len(found) > 1:
        raise ReadError(
            f"{path} holds {len(found)} volumes; choose one by its number or UID: "
            f"{_listed(found, stacks)}",
            path,
        )
    return found[0]


def holding(stacks: Sequence[Stack], path: Path) -> tuple[Stack, ...]:
    """Return the stacks with a slice out of this file, or those of its series."""
    return tuple(s for s in stacks if any(plane.path == path for plane in s.slices))


def _matching(stacks: Sequence[Stack], series: str) -> list[Stack]:
    exact = [s for s in stacks if s.key == series]
    if not exact and series.isdecimal() and 1 <= int(series) <= len(stacks):
        return [stacks[int(series) - 1]]
    exact = exact or [s for s in stacks if s.slices[0].series_uid == series]
    return exact or [s for s in stacks if series and s.key.startswith(series)]


def _listed(stacks: Sequence[Stack], numbering: Sequence[Stack] = ()) -> str:
    """List stacks with the numbers :func:`select` takes."""
    numbers = {id(s): n for n, s in enumerate(numbering or stacks, start=1)}
    lines = [
        f"\n  {numbers[id(s)]}: {s.title} ({s.choice.detail}), {s.key}" for s in stacks[:_SHOWN]
    ]
    rest = len(stacks) - _SHOWN
    return "".join(lines) + (f"\n  and {rest} more" if rest > 0 else "")


def _number(text: str) -> tuple[int, str]:
    return (int(text), "") if text.lstrip("-").isdecimal() else (1 << 30, text)


def _stacks_of_series(members: list[Slice]) -> list[Stack]:
    unique: dict[tuple[str, int | None], Slice] = {}
    for plane in members:
        unique.setdefault((plane.sop_uid or str(plane.path), plane.frame), plane)
    copies = len(members) - len(unique)
    parts: list[tuple[str, list[Slice]]] = []
    bases = _by_base(list(unique.values()))
    for base in bases:
        label = _base_label(base) if len(bases) > 1 else ""
        for words, part in _split(base):
            parts.append((", ".join(w for w in (label, words) if w), part))
    parts.sort(key=lambda item: -len(item[1]))
    uid = members[0].series_uid
    return [
        Stack(uid if len(parts) == 1 else f"{uid}#{n}", tuple(part), label, copies)
        for n, (label, part) in enumerate(parts, start=1)
    ]


def _by_base(slices: list[Slice]) -> list[list[Slice]]:
    """Separate what can't share a grid: orientation, size, pixel spacing, localizers.

    Images without a position stand alone.
    """
    groups: list[list[Slice]] = []
    alone = [[plane] for plane in slices if plane.orientation is None]
    for plane in (s for s in slices if s.orientation is not None):
        for group in groups:
            if _same_base(group[0], plane):
                group.append(plane)
                break
        else:
            groups.append([plane])
    return groups + alone


def _same_base(a: Slice, b: Slice) -> bool:
    if (a.rows, a.columns, a.frame_of_reference) != (b.rows, b.columns, b.frame_of_reference):
        return False
    if _is_localizer(a) != _is_localizer(b) or not a.orientation or not b.orientation:
        return False
    turned = np.abs(np.subtract(a.orientation, b.orientation)).max()
    same_pixels = np.allclose(a.spacing or 0, b.spacing or 0, rtol=1e-4)
    return bool(turned < _SAME_DIRECTION and same_pixels)


def _is_localizer(plane: Slice) -> bool:
    return "LOCALIZER" in plane.traits.get("image type", "").upper()


def _base_label(group: list[Slice]) -> str:
    first = group[0]
    words = ["localizer"] if _is_localizer(first) else []
    if first.orientation is None:
        return " ".join([*words, f"image {first.instance}"])
    normal = np.abs(np.cross(first.orientation[:3], first.orientation[3:]))
    words.append(("sagittal", "coronal", "axial")[int(normal.argmax())])
    return " ".join(words)


def _split(group: list[Slice]) -> list[tuple[str, list[Slice]]]:
    """Split slices into volumes with each place taken once, as far as their traits allow."""
    score = _trouble(group)
    if score == 0 or not _measurable(group):
        return [("", group)]
    for trait in group[0].traits:
        parts = _partition(group, trait)
        if len(parts) > 1 and _worth(parts, group) and sum(map(_trouble, parts.values())) < score:
            return [
                (", ".join(w for w in (f"{trait} {value}", words) if w), part)
                for value, members in parts.items()
                for words, part in _split(members)
            ]
    repeats = _repeats(group)
    if repeats > 1:
        return _by_occurrence(group, repeats)
    runs = [] if _duplicates(group) else even_runs(group)
    return [(f"part {n}", run) for n, run in enumerate(runs, start=1)] or [("", group)]


def _partition(group: list[Slice], trait: str) -> dict[str, list[Slice]]:
    parts: dict[str, list[Slice]] = {}
    for plane in sorted(group, key=lambda s: s.instance):
        parts.setdefault(plane.traits.get(trait, ""), []).append(plane)
    return parts


def _worth(parts: dict[str, list[Slice]], group: list[Slice]) -> bool:
    """Tell a trait of volumes (echo) from one that changes with every slice (a time)."""
    return len(parts) <= _most_at_one_place(group) or min(map(len, parts.values())) >= 3


def _trouble(group: list[Slice]) -> int:
    """Count slices at places already taken; 1 if there are none but the grid isn't even."""
    if len(group) < 2:
        return 0
    try:
        twice = _duplicates(group)
        if not twice:
            lay_out(group)
    except GeometryError:
        return 1
    return twice * len(group)  # any duplicate weighs more than unevenness


def _measurable(group: list[Slice]) -> bool:
    """Whether positions mean something; if not, ``lay_out`` says why when the user opens it."""
    try:
        plane_distances(group)
    except GeometryError:
        return False
    return True


def _places(group: list[Slice]) -> list[int]:
    """Return how many slices lie at each place along the normal."""
    distances = np.sort(plane_distances(group))
    new = np.concatenate([[True], np.diff(distances) >= same_plane_mm])
    return [int(n) for n in np.bincount(np.cumsum(new) - 1)]


def _duplicates(group: list[Slice]) -> int:
    return sum(n - 1 for n in _places(group))


def _most_at_one_place(group: list[Slice]) -> int:
    return max(_places(group))


def _repeats(group: list[Slice]) -> int:
    """Return k if every place is taken exactly k times (k volumes), else 1."""
    counts = set(_places(group))
    return next(iter(counts)) if len(counts) == 1 else 1


def _by_occurrence(group: list[Slice], repeats: int) -> list[tuple[str, list[Slice]]]:
    """Deal slices to ``repeats`` volumes: at each place by instance number."""
    distances = plane_distances(group)
    nearest = np.cumsum(np.concatenate([[0], np.diff(np.sort(distances)) >= same_plane_mm]))
    place = np.empty(len(group), dtype=int)
    place[np.argsort(distances, kind="stable")] = nearest
    order = sorted(range(len(group)), key=lambda i: (place[i], group[i].instance))
    dealt = [[group[i] for i in order[n::repeats]] for n in range(repeats)]
    return [(f"pass {n}", part) for n, part in enumerate(dealt, start=1)]
