"""The inputs of an engine's options: one widget for each kind of option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QSpinBox,
    QWidget,
)

from napari_openmedlab.models.catalogue import Option
from napari_openmedlab.models.checkpoints.disk import size_text
from napari_openmedlab.models.checkpoints.records import Record

__all__ = ["ChoiceInput", "ModelInput", "change_signal", "make_input", "set_value", "value_of"]

_INT_RANGE = (-(2**31), 2**31 - 1)  # what a QSpinBox holds
_FLOAT_RANGE = (-1e9, 1e9)


class ChoiceInput(QComboBox):
    """Texts to choose from, each with a value of its own; an unknown value is added."""

    chosen = Signal()

    def __init__(self, choices: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__()
        # As wide as there is room, whatever the longest text.
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setSizeAdjustPolicy(self.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(6)
        self.unknown = "{}"
        self.offer(choices)
        self.activated.connect(lambda _: self.chosen.emit())

    def offer(self, choices: Sequence[tuple[str, str]]) -> None:
        """Offer these pairs of value and text; what is chosen stays chosen."""
        kept = self.value()
        self.clear()
        for value, text in choices:
            self.addItem(text, value)
        if kept is not None:
            self.set_value(kept)

    def value(self) -> str | None:
        """Return the value chosen; ``None`` if there is nothing to choose."""
        return self.currentData()

    def set_value(self, value: str) -> None:
        """Choose a value, adding it if it is not offered."""
        row = self.findData(value)
        if row < 0:
            self.addItem(self.unknown.format(value), value)
            row = self.count() - 1
        self.setCurrentIndex(row)


class ModelInput(QWidget):
    """The models on this computer that fit the engine, and the way to more of them.

    Attributes
    ----------
    more_asked : Signal()
        The user wants to see the Models panel.
    """

    more_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.choice = ChoiceInput()
        self.choice.unknown = "{} (not on this computer)"
        self.more = QPushButton("Get models…")
        self.more.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.more.setToolTip("Open the Models panel: download models or import weight files")
        self.more.clicked.connect(lambda _=False: self.more_asked.emit())
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.choice, 1)
        row.addWidget(self.more)
        self.show_models(())

    def show_models(self, records: Sequence[Record]) -> None:
        """Offer these models, newest first."""
        newest = f"Newest ({records[0].name})" if records else "None on this computer yet"
        named = [(r.name, f"{r.name}, {size_text(r.size)}") for r in records]
        self.choice.offer([("", newest), *named])


def make_input(option: Option) -> QWidget:
    """Return an empty input of the option's type with its limits or choices."""
    if option.source == "models":
        return ModelInput()
    if option.source == "devices":
        return ChoiceInput([("auto", "auto"), ("cpu", "cpu")])
    if option.source == "contrast":
        return ChoiceInput([("", "the engine's own"), ("shown", "the layer's contrast limits")])
    if isinstance(option.default, bool):
        return QCheckBox()
    if isinstance(option.default, int):
        return _whole_number(option)
    if isinstance(option.default, float):
        return _real_number(option)
    if option.choices:
        box = QComboBox()
        box.addItems(option.choices)
        box.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        return box
    return QLineEdit()


def set_value(field: QWidget, value: Any) -> None:
    """Show a value in an input."""
    if isinstance(field, QCheckBox):
        field.setChecked(bool(value))
    elif isinstance(field, QSpinBox | QDoubleSpinBox):
        field.setValue(value)
    elif isinstance(field, ModelInput):
        field.choice.set_value(str(value))
    elif isinstance(field, ChoiceInput):
        field.set_value(str(value))
    elif isinstance(field, QComboBox):
        field.setCurrentText(str(value))
    elif isinstance(field, QLineEdit):
        field.setText(str(value))


def value_of(field: QWidget) -> Any:
    """Return the value an input shows."""
    if isinstance(field, QCheckBox):
        return field.isChecked()
    if isinstance(field, ModelInput):
        return field.choice.value()
    if isinstance(field, QSpinBox | QDoubleSpinBox | ChoiceInput):
        return field.value()
    if isinstance(field, QComboBox):
        return field.currentText()
    return field.text() if isinstance(field, QLineEdit) else None


def change_signal(field: QWidget) -> Any:
    """Return the signal an input gives when the user changed it."""
    if isinstance(field, QCheckBox):
        return field.toggled
    if isinstance(field, QSpinBox | QDoubleSpinBox):
        return field.valueChanged
    if isinstance(field, ModelInput):
        return field.choice.chosen
    if isinstance(field, ChoiceInput):
        return field.chosen
    if isinstance(field, QComboBox):
        return field.currentTextChanged
    return field.editingFinished


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
