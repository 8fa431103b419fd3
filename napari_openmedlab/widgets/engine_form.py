"""The form of an engine's options, built from its catalogue entry alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFormLayout, QWidget

from napari_openmedlab.models.catalogue import EngineSpec, Option
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.widgets.engine_inputs import (
    ChoiceInput,
    ModelInput,
    change_signal,
    make_input,
    set_value,
    value_of,
)
from napari_openmedlab.widgets.live_options import is_live

__all__ = ["EngineForm", "option_label"]

_ACRONYMS = {"ct", "mr"}


def option_label(name: str) -> str:
    """Return an option's key as words: ``"max_size_mm"`` becomes ``"Max size (mm)"``."""
    words = name.replace("_", " ").strip()
    for unit in ("mm", "um", "ml", "hu"):
        if words.endswith(f" {unit}"):
            words = f"{words[: -len(unit) - 1]} ({unit})"
    words = " ".join(w.upper() if w in _ACRONYMS else w for w in words.split(" "))
    return words[:1].upper() + words[1:]


class EngineForm(QWidget):
    """One input per option of an engine; :attr:`changed` carries the values that differ.

    Options that follow the view have none: they are filled in with each request.

    Attributes
    ----------
    changed : Signal(dict)
        Option values other than the defaults, after the user changed one.
    models_asked : Signal()
        The user wants to see the Models panel.
    """

    changed = Signal(dict)
    models_asked = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._layout = QFormLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        self._spec: EngineSpec | None = None
        self._inputs: dict[str, QWidget] = {}
        self._devices: tuple[tuple[str, str], ...] = ()
        self._filling = False

    @property
    def spec(self) -> EngineSpec | None:
        """The catalogue entry shown."""
        return self._spec

    def show_spec(self, spec: EngineSpec, values: Mapping[str, Any]) -> None:
        """Show an engine's options with these values, defaults elsewhere; nothing is sent."""
        self._filling = True
        if spec is not self._spec:
            self._rebuild(spec)
        for option in self._asked():
            set_value(self._inputs[option.name], values.get(option.name, option.default))
        self._filling = False

    def show_models(self, records: Sequence[Record]) -> None:
        """Offer these models for the engine shown."""
        for field in self._inputs.values():
            if isinstance(field, ModelInput):
                field.show_models(records)

    def show_devices(self, devices: Sequence[tuple[str, str]]) -> None:
        """Offer these devices, pairs of id and text, from now on."""
        self._devices = tuple(devices)
        for option in self._asked():
            field = self._inputs[option.name]
            if option.source == "devices" and isinstance(field, ChoiceInput):
                field.offer(self._devices)

    def values(self) -> dict[str, Any]:
        """Return the option values that differ from the engine's defaults."""
        current = {o.name: value_of(self._inputs[o.name]) for o in self._asked()}
        return {o.name: current[o.name] for o in self._asked() if current[o.name] != o.default}

    def input_of(self, name: str) -> QWidget:
        """Return the input of an option."""
        return self._inputs[name]

    def _asked(self) -> tuple[Option, ...]:
        """Return the options that have an input."""
        options = self._spec.options if self._spec else ()
        return tuple(option for option in options if not is_live(option))

    def _rebuild(self, spec: EngineSpec) -> None:
        while self._layout.rowCount():
            self._layout.removeRow(0)
        self._spec = spec
        self._inputs = {}
        for option in self._asked():
            field = make_input(option)
            field.setToolTip(option.description)
            change_signal(field).connect(self._on_change)
            if isinstance(field, ModelInput):
                field.more_asked.connect(self.models_asked)
            self._inputs[option.name] = field
            self._layout.addRow(option_label(option.name), field)
            self._layout.labelForField(field).setToolTip(option.description)
        if self._devices:
            self.show_devices(self._devices)

    def _on_change(self, *_: Any) -> None:
        if not self._filling:
            self.changed.emit(self.values())
