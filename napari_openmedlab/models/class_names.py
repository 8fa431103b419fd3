"""What the classes of a model in the store are called. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_openmedlab.errors import EngineError
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.organs import ABDOMEN_ATLAS, CT_ORG, TOTAL_SEGMENTATOR

__all__ = ["class_names", "names_from_json"]

_LARGEST = 4 * 2**20  # bytes of a JSON of names


def class_names(record: Record, names: str = "") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the class names of a model by number, the background first, and notes on them.

    Parameters
    ----------
    record : Record
    names : str
        JSON, or the path of a JSON file, with class names: replaces those known of the model.

    Raises
    ------
    EngineError
        If the names don't fit the model.
    """
    if record.model_card is not None:
        return ("background", *record.model_card.names.values()), ()
    classes = int(record.variant.get("out_channels", len(TOTAL_SEGMENTATOR)))
    if names.strip():
        return names_from_json(_text(names), classes), ()
    found, notes = _known(record, classes)
    return found, tuple(notes)


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


def _known(record: Record, classes: int) -> tuple[tuple[str, ...], list[str]]:
    """Return the class names known of a model, and what has to be told of them."""
    own = record.facts.get("names")
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
