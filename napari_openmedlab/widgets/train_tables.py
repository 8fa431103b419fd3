"""The tables of the Train panel: cases with what is held out, and classes with what is learnt."""

from __future__ import annotations

from collections.abc import Mapping

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from napari_openmedlab.training.cases import CasesFound

__all__ = ["CaseTable", "ClassTable"]

_ROWS, _MOST_ROWS = 3, 6
_GREY = QColor("#94a3b8")
_WARNING = QColor("#f59e0b")
_CHECKABLE = Qt.ItemFlag.ItemIsUserCheckable | Qt.ItemFlag.ItemIsEnabled


class _Table(QTableWidget):
    """A small table of plain rows."""

    def __init__(self, headers: tuple[str, ...], stretch: int, parent: QWidget | None) -> None:
        super().__init__(0, len(headers), parent)
        self.setHorizontalHeaderLabels(headers)
        self.verticalHeader().setVisible(False)
        self.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        header = self.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(stretch, QHeaderView.ResizeMode.Stretch)
        row = self.fontMetrics().height() + 8
        self.verticalHeader().setDefaultSectionSize(row)
        self.setMinimumHeight(row * (_ROWS + 1))
        self.setMaximumHeight(row * (_MOST_ROWS + 1))

    def put(self, row: int, column: int, text: str, tip: str = "") -> QTableWidgetItem:
        """Write a cell and return it."""
        item = QTableWidgetItem(text)
        item.setFlags(Qt.ItemFlag.ItemIsEnabled)
        item.setToolTip(tip or text)
        self.setItem(row, column, item)
        return item


class CaseTable(_Table):
    """Cases that can be learnt from, with a tick for those held out, then what is left out."""

    NAME, SIZE, HELD_OUT = range(3)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(("Case", "Voxels, or why not", "Hold out"), self.SIZE, parent)
        self._cases: list[str] = []

    def show_found(self, found: CasesFound | None) -> None:
        """Show what was found; nothing is ticked."""
        cases = found.cases if found else ()
        left_out = found.left_out if found else ()
        self._cases = [checked.case.name for checked in cases]
        self.setRowCount(len(cases) + len(left_out))
        for row, checked in enumerate(cases):
            self.put(row, self.NAME, checked.case.name)
            size = " x ".join(map(str, checked.geometry.shape))
            step = " x ".join(f"{each:.3g}" for each in checked.geometry.spacing)
            self.put(row, self.SIZE, size, f"{step} {checked.geometry.unit} (z, y, x)")
            tick = self.put(row, self.HELD_OUT, "", "Not trained on, but measured")
            tick.setFlags(_CHECKABLE)
            tick.setCheckState(Qt.CheckState.Unchecked)
        for row, (name, reason) in enumerate(left_out, len(cases)):
            for column, text in ((self.NAME, name), (self.SIZE, reason), (self.HELD_OUT, "")):
                self.put(row, column, text, reason).setForeground(_WARNING)

    def held_out(self) -> tuple[str, ...]:
        """Return the names of the ticked cases."""
        on = Qt.CheckState.Checked
        return tuple(
            name
            for row, name in enumerate(self._cases)
            if self.item(row, self.HELD_OUT).checkState() == on
        )

    def tick(self, name: str) -> None:
        """Hold a case out."""
        self.item(self._cases.index(name), self.HELD_OUT).setCheckState(Qt.CheckState.Checked)


class ClassTable(_Table):
    """Classes with their voxels; only those ticked are learnt.

    Attributes
    ----------
    changed : Signal()
        Ticks were changed.
    """

    NAME, VALUE, CASES, VOXELS = range(4)
    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(("Class", "Value", "Cases", "Voxels"), self.NAME, parent)
        self._values: list[tuple[int, str]] = []
        self._filling = False
        self.itemChanged.connect(self._on_changed)

    def show_found(self, found: CasesFound | None) -> None:
        """Show the classes that were found; all are ticked."""
        self._filling = True
        self._values = sorted(found.classes.items()) if found else []
        self.setRowCount(len(self._values))
        for row, (value, name) in enumerate(self._values):
            counts = [c.voxels.get(value, 0) for c in found.cases] if found else []
            item = self.put(row, self.NAME, name, "Learnt if ticked; else taken as background")
            item.setFlags(_CHECKABLE)
            item.setCheckState(Qt.CheckState.Checked)
            self.put(row, self.VALUE, str(value))
            self.put(row, self.CASES, str(sum(count > 0 for count in counts)))
            self.put(row, self.VOXELS, f"{sum(counts):,}")
        self._filling = False

    def chosen(self) -> Mapping[int, str] | None:
        """Return the ticked classes by value; ``None`` if all are."""
        on = Qt.CheckState.Checked
        found = {
            value: name
            for row, (value, name) in enumerate(self._values)
            if self.item(row, self.NAME).checkState() == on
        }
        return None if len(found) == len(self._values) else found

    def _on_changed(self, item: QTableWidgetItem) -> None:
        if self._filling:
            return
        on = item.checkState() == Qt.CheckState.Checked
        for column in (self.VALUE, self.CASES, self.VOXELS):
            other = self.item(item.row(), column)
            if other is not None:
                self._filling = True
                other.setForeground(_GREY if not on else self.palette().text())
                self._filling = False
        self.changed.emit()
