"""The form of an engine's options, built from its catalogue entry alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QLineEdit,
    QSpinBox,
    QWidget,
)

from napari_openmedlab.models.catalogue import EngineSpec, Option

__all__ = ["EngineForm", "option_label"]

_INT_RANGE = (-(2**31), 2**31 - 1)  # what a QSpinBox holds
_FLOAT_RANGE = (-1e9, 1e9)


def option_label(name: str) -> str:
    """Return an option's key as words: ``"max_size_mm"`` becomes ``"Max size (mm)"``."""
    words = name.replace("_", " ").strip()
    for unit in ("mm", "um", "ml", "hu"):
        if words.endswith(f" {unit}"):
            words = f"{words[: -len(unit) - 1]} ({unit})"
    return words[:1].upper() + words[1:]


class EngineForm(QWidget):
    """One input per option of an engine; :attr:`changed` carries the values that differ.

    Attributes
    ----------
    changed : Signal(dict)
        Option values other than the defaults, after the user changed one.
    """

    changed = Signal(dict)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._layout = QFormLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        self._spec: EngineSpec | None = None
        self._inputs: dict[str, QWidget] = {}
        self._filling = False

    @property
    def spec(self) -> EngineSpec | None:
        """The catalogue entry shown."""
        return self._spec

    def show_spec(self, spec: EngineSpec, values: Mapping[str, Any]) -> None:
        """Rebuild the form for an engine and fill in ``values`` (defaults elsewhere)."""
        if spec is not self._spec:
            self._rebuild(spec)
        self._filling = True
        for option in spec.options:
            _set_value(self._inputs[option.name], values.get(option.name, option.default))
        self._filling = False

    def values(self) -> dict[str, Any]:
        """Return the option values that differ from the engine's defaults."""
        options = self._spec.options if self._spec else ()
        current = {o.name: _value_of(self._inputs[o.name]) for o in options}
        return {o.name: current[o.name] for o in options if current[o.name] != o.default}

    def input_of(self, name: str) -> QWidget:
        """Return the input of an option."""
        return self._inputs[name]

    def _rebuild(self, spec: EngineSpec) -> None:
        while self._layout.rowCount():
            self._layout.removeRow(0)
        self._spec = spec
        self._inputs = {}
        for option in spec.options:
            field = _make_input(option)
            field.setToolTip(option.description)
            _change_signal(field).connect(self._on_change)
            self._inputs[option.name] = field
            self._layout.addRow(option_label(option.name), field)
            self._layout.labelForField(field).setToolTip(option.description)

    def _on_change(self, *_: Any) -> None:
        if not self._filling:
            self.changed.emit(self.values())


def _make_input(option: Option) -> QWidget:
    """Return an empty input of the option's type with its limits or choices."""
    if isinstance(option.default, bool):
        return QCheckBox()
    if isinstance(option.default, int):
        return _whole_number(option)
    if isinstance(option.default, float):
        return _real_number(option)
    if option.choices:
        box = QComboBox()
        box.addItems(option.choices)
        return box
    return QLineEdit()


def _whole_number(option: Option) -> QSpinBox:
    box = QSpinBox()
    low, high = _INT_RANGE
    box.setRange(
        low if option.minimum is None else int(option.minimum),
        high if option.maximum is None else int(option.maximum),
    )
    box.setKeyboardTracking(False)
    return box


def _real_number(option: Option) -> QDoubleSpinBox:
    box = QDoubleSpinBox()
    low, high = _FLOAT_RANGE
    low = low if option.minimum is None else option.minimum
    high = high if option.maximum is None else option.maximum
    box.setRange(low, high)
    span = high - low if option.minimum is not None and option.maximum is not None else 100.0
    box.setDecimals(4 if span <= 1 else 3 if span <= 10 else 2)
    box.setSingleStep(span / 100 if span <= 100 else 1.0)
    box.setKeyboardTracking(False)
    return box


def _set_value(field: QWidget, value: Any) -> None:
    if isinstance(field, QCheckBox):
        field.setChecked(bool(value))
    elif isinstance(field, QSpinBox | QDoubleSpinBox):
        field.setValue(value)
    elif isinstance(field, QComboBox):
        field.setCurrentText(str(value))
    elif isinstance(field, QLineEdit):
        field.setText(str(value))


def _value_of(field: QWidget) -> Any:
    if isinstance(field, QCheckBox):
        return field.isChecked()
    if isinstance(field, QSpinBox | QDoubleSpinBox):
        return field.value()
    if isinstance(field, QComboBox):
        return field.currentText()
    return field.text() if isinstance(field, QLineEdit) else None


def _change_signal(field: QWidget) -> Any:
    if isinstance(field, QCheckBox):
        return field.toggled
    if isinstance(field, QSpinBox | QDoubleSpinBox):
        return field.valueChanged
    if isinstance(field, QComboBox):
        return field.currentTextChanged
    return field.editingFinished
