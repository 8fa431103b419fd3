"""How a model of STU-Net's family wants its input, and what its classes are called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from napari_openmedlab.errors import EngineError
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.organs import ABDOMEN_ATLAS, CT_ORG, TOTAL_SEGMENTATOR

__all__ = ["Form", "Intensity", "Plan", "names_from_json", "plan_of"]

Form = Literal["v1", "v2"]
Index3 = tuple[int, int, int]

_PATCH = (128, 128, 128)
_SPACING = (1.5, 1.5, 1.5)
_LARGEST = 4 * 2**20  # bytes of a JSON of names


@dataclass(frozen=True)
class Intensity:
    """Fixed limits, mean and deviation (nnU-Net's CT scheme), in the scan's own values."""

    low: float
    high: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class Plan:
    """What has to be known beside the weights.

    Attributes
    ----------
    names : tuple of str
        Of all classes, the background first.
    spacing : tuple of float
        Of the network's grid (z, y, x) in mm.
    patch : tuple of int
        Voxels of a window (z, y, x).
    form : {"v1", "v2"}
        nnU-Net v1 resamples, normalises and averages probabilities; v2 normalises, resamples
        and averages logits.
    intensity : Intensity or None
        ``None``: mean 0 and deviation 1 over the scan, as for the published weights.
    notes : tuple of str
        Sentences for the user on what had to be assumed.
    """

    names: tuple[str, ...]
    spacing: tuple[float, float, float] = _SPACING
    patch: Index3 = _PATCH
    form: Form = "v1"
    intensity: Intensity | None = None
    notes: tuple[str, ...] = ()


def plan_of(record: Record, names: str = "") -> Plan:
    """Return the plan of a model in the store.

    Parameters
    ----------
    record : Record
    names : str
        JSON, or the path of a JSON file, with class names: replaces those known of the model.

    Raises
    ------
    EngineError
        If the model takes several images at once, or the names don't fit it.
    """
    channels = int(record.variant.get("in_channels", 1))
    if channels != 1:
        raise EngineError(
            f"model '{record.name}' wants {channels} images of the same patient at once; only "
            "models of one image can be run here",
            engine="stu-net",
            stage="load",
        )
    classes = int(record.variant.get("out_channels", len(TOTAL_SEGMENTATOR)))
    facts: Mapping[str, Any] = getattr(record, "facts", {}) or {}
    known, notes = _names(record, classes, facts)
    if names.strip():
        known, notes = names_from_json(_text(names), classes), []
    spacing = _triple(facts.get("spacing"), _SPACING)
    patch = _fitting(_triple(facts.get("patch"), _PATCH), record.variant.get("strides"))
    if classes != len(TOTAL_SEGMENTATOR) and "spacing" not in facts:
        notes.append(
            "The model's own plan is not known, so a grid of 1.5 mm is assumed, that of the "
            "TotalSegmentator weights it was tuned from."
        )
    form: Form = "v2" if facts.get("form") == "v2" else "v1"
    return Plan(known, spacing, patch, form, _intensity(facts.get("intensity")), tuple(notes))


def names_from_json(text: str, classes: int) -> tuple[str, ...]:
    """Return class names by number, the background first.

    Parameters
    ----------
    text : str
        JSON: a list of names; ``{"liver": 1, ...}`` (nnU-Net v2) or ``{"1": "liver", ...}``
        (v1); or a ``dataset.json`` with such ``labels``. The background may be left out.
    classes : int
        Of the model, background included.

    Raises
    ------
    EngineError
        If it is none of these, a class has no name, or two have the same.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise _bad(f"they are no JSON ({error})") from error
    if isinstance(found, Mapping) and "labels" in found:
        found = found["labels"]
    by_number = _by_number(found, classes)
    missing = [number for number in range(1, classes) if number not in by_number]
    beyond = [number for number in by_number if not 0 <= number < classes]
    if missing or beyond:
        what = f"no name for {missing[0]}" if missing else f"a name for {beyond[0]}"
        raise _bad(f"there is {what}; the model has classes 1 to {classes - 1}")
    names = ("background", *(by_number[number] for number in range(1, classes)))
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise _bad(f"two classes are called '{twice}'")
    return names


def _by_number(found: Any, classes: int) -> dict[int, str]:
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        first = 1 if len(found) == classes - 1 else 0
        return {number: name.strip() for number, name in enumerate(found, first)}
    if not isinstance(found, Mapping):
        raise _bad("they are neither a list nor pairs of name and number")
    pairs: dict[int, str] = {}
    for key, value in found.items():
        if isinstance(value, int) and not isinstance(value, bool):
            pairs[value] = str(key).strip()
        elif isinstance(value, str) and str(key).strip().isdigit():
            pairs[int(key)] = value.strip()
        else:
            raise _bad(f"'{key}' goes with {value!r}, which is no single number of a class")
    return pairs


def _bad(why: str) -> EngineError:
    return EngineError(
        f"the class names can't be used: {why}. Give a JSON list of names, or pairs like "
        '{"liver": 1}',
        engine="stu-net",
    )


def _text(names: str) -> str:
    """Return JSON given as such, or read from a file."""
    if names.lstrip().startswith(("[", "{")):
        return names
    path = Path(names.strip()).expanduser()
    try:
        if path.stat().st_size > _LARGEST:
            raise _bad(f"{path} is too large")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(f"{path} can't be read") from error


def _names(
    record: Record, classes: int, facts: Mapping[str, Any]
) -> tuple[tuple[str, ...], list[str]]:
    """Return the class names known of a model, and what has to be told of them."""
    own = facts.get("names")
    if isinstance(own, Sequence) and not isinstance(own, str) and len(own) == classes:
        return tuple(str(name) for name in own), []
    if classes == len(TOTAL_SEGMENTATOR):
        return TOTAL_SEGMENTATOR, []
    for ending, names in (("-abdomen", ABDOMEN_ATLAS), ("-ct-org", CT_ORG)):
        if record.checkpoint.endswith(ending) and len(names) == classes:
            return names, []
    numbered = ("background", *(f"class_{number}" for number in range(1, classes)))
    return numbered, [
        f"The {classes - 1} classes of '{record.name}' are numbered because their names are not "
        "known; give a JSON of names (the dataset.json of its training will do)."
    ]


def _triple(found: Any, default: Any) -> Any:
    if (
        isinstance(found, Sequence)
        and len(found) == 3
        and all(isinstance(each, (int, float)) and each > 0 for each in found)
    ):
        kind = type(default[0])
        return tuple(kind(each) for each in found)
    return default


def _fitting(patch: Index3, strides: Any) -> Index3:
    """Return the patch with edges that the network can halve as often as it does."""
    if not isinstance(strides, Sequence) or isinstance(strides, str):
        return patch
    sides = []
    for axis, edge in enumerate(patch):
        unit = 1
        for stride in strides:
            unit *= int(stride[axis])
        sides.append(-(-edge // unit) * unit)
    return sides[0], sides[1], sides[2]


def _intensity(found: Any) -> Intensity | None:
    if not isinstance(found, Mapping):
        return None
    try:
        values = [float(found[key]) for key in ("low", "high", "mean", "deviation")]
    except (KeyError, TypeError, ValueError):
        return None
    return Intensity(*values)
