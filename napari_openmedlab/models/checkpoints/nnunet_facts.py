"""What nnU-Net's plan says besides strides: class names, grid, window, intensities. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["facts_v1", "facts_v2", "fits_facts"]

_KEYS = {"names", "spacing", "patch", "form", "intensity", "transpose"}
_AXES = [0, 1, 2]
_MOST_NAMES = 65_536


def facts_v1(
    plans: Mapping[str, Any], stage: Mapping[str, Any], dataset: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the facts of a plan of nnU-Net v1, as far as it states them.

    Parameters
    ----------
    plans : mapping
        Content of ``plans.pkl``.
    stage : mapping
        The one of full resolution in ``plans_per_stage``.
    dataset : mapping
        ``dataset.json``; may be empty.

    Returns
    -------
    dict
        Plain JSON values: ``names`` (list, the background first), ``spacing`` and ``patch``
        (z, y, x), ``form`` (``"v1"``), ``intensity`` (``low``, ``high``, ``mean``,
        ``deviation``; only for the CT scheme) and ``transpose`` (only if axes are swapped).
    """
    schemes = plans.get("normalization_schemes")
    scheme = schemes.get(0, schemes.get("0")) if isinstance(schemes, Mapping) else None
    properties = plans.get("dataset_properties")
    known = properties.get("intensityproperties") if isinstance(properties, Mapping) else None
    first = known.get(0, known.get("0")) if isinstance(known, Mapping) else None
    ct = scheme in ("CT", "CT2")
    return _facts(
        form="v1",
        names=_names(dataset.get("labels")),
        spacing=_numbers(stage.get("current_spacing")),
        patch=_numbers(stage.get("patch_size"), whole=True),
        intensity=_intensity(first, "sd") if ct else None,
        transpose=_swapped(plans.get("transpose_forward")),
    )


def facts_v2(
    plans: Mapping[str, Any], settings: Mapping[str, Any], dataset: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the facts of a plan of nnU-Net v2; as :func:`facts_v1`.

    Parameters
    ----------
    plans : mapping
        Content of ``plans.json``.
    settings : mapping
        Its configuration, with what that inherits.
    dataset : mapping
        Content of ``dataset.json``; may be empty.
    """
    schemes = settings.get("normalization_schemes")
    ct = isinstance(schemes, list) and schemes[:1] == ["CTNormalization"]
    known = plans.get("foreground_intensity_properties_per_channel")
    first = known.get("0") if isinstance(known, Mapping) else None
    return _facts(
        form="v2",
        names=_names(dataset.get("labels")),
        spacing=_numbers(settings.get("spacing")),
        patch=_numbers(settings.get("patch_size"), whole=True),
        intensity=_intensity(first, "std") if ct else None,
        transpose=_swapped(plans.get("transpose_forward")),
    )


def fits_facts(found: Any) -> bool:
    """Return whether a value can be the facts of a model's record."""
    return isinstance(found, dict) and set(found) <= _KEYS


def _facts(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _names(labels: Any) -> list[str] | None:
    """Return class names by number; ``None`` for regions and where a number has no name."""
    if not isinstance(labels, Mapping) or "ignore" in labels or len(labels) > _MOST_NAMES:
        return None
    by_number: dict[int, str] = {}
    for key, value in labels.items():
        if isinstance(value, int) and not isinstance(value, bool):
            by_number[value] = str(key).strip()
        elif isinstance(value, str) and str(key).strip().isdigit():
            by_number[int(key)] = value.strip()
        else:
            return None
    names = [by_number.get(number, "") for number in range(len(by_number))]
    return names if all(names) and len(set(names)) == len(names) else None


def _numbers(found: Any, *, whole: bool = False) -> list[float] | list[int] | None:
    if not isinstance(found, list | tuple) or len(found) != len(_AXES):
        return None
    if not all(isinstance(n, int | float) and 0 < n < 1e4 for n in found):
        return None
    return [int(n) for n in found] if whole else [float(n) for n in found]


def _intensity(found: Any, deviation: str) -> dict[str, float] | None:
    if not isinstance(found, Mapping):
        return None
    keys = {
        "low": "percentile_00_5",
        "high": "percentile_99_5",
        "mean": "mean",
        "deviation": deviation,
    }
    values = {name: found.get(key) for name, key in keys.items()}
    if not all(isinstance(n, int | float) and abs(n) < 1e9 for n in values.values()):
        return None
    return {name: float(n) for name, n in values.items() if n is not None}


def _swapped(found: Any) -> list[int] | None:
    """Return the order of axes if it is not the usual one."""
    if not isinstance(found, list | tuple) or sorted(map(str, found)) != ["0", "1", "2"]:
        return None
    order = [int(n) for n in found]
    return order if order != _AXES else None
