"""How a model of STU-Net's family wants its input, and what its classes are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from napari_openmedlab.errors import EngineError
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.class_names import class_names, names_from_json
from napari_openmedlab.models.organs import TOTAL_SEGMENTATOR

__all__ = ["Form", "Intensity", "Plan", "names_from_json", "plan_of"]

Form = Literal["v1", "v2"]
Index3 = tuple[int, int, int]

_PATCH = (128, 128, 128)
_SPACING = (1.5, 1.5, 1.5)


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
    facts: Mapping[str, Any] = record.facts
    if "transpose" in facts:
        raise EngineError(
            f"model '{record.name}' was trained on scans with swapped axes "
            f"({facts['transpose']}), which can't be run here",
            engine="stu-net",
            stage="load",
        )
    known, told = class_names(record, names)
    notes = list(told)
    spacing = _triple(facts.get("spacing"), _SPACING)
    patch = _fitting(_triple(facts.get("patch"), _PATCH), record.variant.get("strides"))
    if classes != len(TOTAL_SEGMENTATOR) and "spacing" not in facts:
        notes.append(
            "The model's own plan is not known, so a grid of 1.5 mm is assumed, that of the "
            "TotalSegmentator weights it was tuned from."
        )
    form: Form = "v2" if facts.get("form") == "v2" else "v1"
    return Plan(known, spacing, patch, form, _intensity(facts.get("intensity")), tuple(notes))


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
