"""Options whose value is what the user looks at: the axis across the slices, the contrast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from napari.layers import Layer

from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.models.catalogue import EngineSpec, Option

__all__ = ["LiveOptions", "can_propagate", "is_live", "works_by_slice"]

_AXES = "zyx"
_AXIS_WORDS = {*_AXES, "0", "1", "2"}


def is_live(option: Option) -> bool:
    """Return whether an option follows the view alone, so that a form need not ask for it."""
    return option.source == "view" or (
        option.source == "contrast" and isinstance(option.default, float)
    )


def works_by_slice(spec: EngineSpec) -> bool:
    """Return whether an engine answers on the slice shown: it asks across which axis that is."""
    return any(option.source == "view" for option in spec.options)


def can_propagate(spec: EngineSpec | None) -> bool:
    """Return whether an engine carries an object from slice to slice when asked to."""
    options = spec.options if spec is not None else ()
    return any(o.name == "propagate" and isinstance(o.default, bool) for o in options)


class LiveOptions:
    """Fills in the options that follow the view when a request is made.

    Parameters
    ----------
    image : Layer
        The image layer of the session.
    shown_axis : callable() -> int
        The array axis that is across the slices on screen.

    Notes
    -----
    An object keeps the axis its last gesture was made on: pressing Run from another view, or
    from 3D, asks the same as before. Boxes and scribbles that no gesture made (of a file, of a
    layer) leave it to the engine where its default says so. Options of source "view" get the
    axis as a number, or as the letter or digit among their choices. Of source "contrast" two
    numbers get the lower and the upper limit, in this order; a text that is not empty gets both,
    as ``"low high"``.
    """

    def __init__(self, image: Layer, shown_axis: Callable[[], int]) -> None:
        self._image = image
        self._shown_axis = shown_axis
        self._axes: dict[int, int] = {}

    def note_axis(self, object_id: int, axis: int) -> None:
        """Remember the axis across the slice that a gesture for an object was made on."""
        self._axes[object_id] = axis

    def fill(
        self,
        spec: EngineSpec,
        options: Mapping[str, Any],
        object_id: int | None = None,
        prompts: PromptSet | None = None,
    ) -> Mapping[str, Any]:
        """Return the options with those that follow the view filled in, all checked.

        Parameters
        ----------
        object_id : int, optional
            Whose request it is; without one, the axis shown now counts.
        prompts : PromptSet, optional
            What is asked.
        """
        values = dict(options)
        limits = list(self._limits())
        flat = prompts is not None and bool(prompts.boxes or prompts.scribbles)
        for option in spec.options:
            if option.source == "view":
                values[option.name] = self._axis_for(option, object_id, flat=flat)
            elif option.source == "contrast" and isinstance(option.default, float):
                values[option.name] = limits.pop(0) if limits else option.default
            elif option.source == "contrast" and values.get(option.name):
                values[option.name] = self.contrast_text()
        return MappingProxyType(spec.check_options(values))

    def contrast_text(self) -> str:
        """Return the contrast limits as an option of type text takes them."""
        low, high = self._limits()
        return f"{low:.9g} {high:.9g}"

    def _axis_for(self, option: Option, object_id: int | None, *, flat: bool) -> int | str:
        noted = self._axes.get(object_id) if object_id is not None else None
        if noted is not None:
            return _axis_value(option, noted)
        if flat and option.choices and option.default not in _AXIS_WORDS:
            return str(option.default)
        return _axis_value(option, self._shown_axis())

    def _limits(self) -> tuple[float, float]:
        low, high = self._image.contrast_limits
        return float(low), float(high)


def _axis_value(option: Option, axis: int) -> int | str:
    if isinstance(option.default, int):
        return axis
    return _AXES[axis] if _AXES[axis] in option.choices else str(axis)
