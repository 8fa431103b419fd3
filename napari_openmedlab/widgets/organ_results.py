"""The table of measured structures: sortable, a click shows the structure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from napari_openmedlab.models.organ_table import OrganRow
from napari_openmedlab.models.organs import title_of
from napari_openmedlab.session.session import Session

__all__ = ["OrganTable"]

NAME, VOLUME, MEAN, SLICES, BORDER, SIDE = range(6)
_HEADERS = ("Structure", "ml", "HU", "Slices", "Cut", "Side")
_TIPS = (
    "Click a row to go there and make the object the active one",
    "Volume in millilitres",
    "Mean of the scan's values inside, HU in a CT",
    "First and last slice along the first axis, counted from 0",
    "Faces of the scan it reaches, where it may be cut off: S, I, A, P, L, R",
    "Whether it lies on the side of the body that its name says",
)
_LETTERS = {VOLUME: 7, MEAN: 6, SLICES: 9, BORDER: 7, SIDE: 7}  # width of the columns
_ID = Qt.ItemDataRole.UserRole
_KEY = Qt.ItemDataRole.UserRole + 1
_ROWS = 8
_WARNING = QColor("#f59e0b")


class _Item(QTableWidgetItem):
    """Sorts by its key, so that 9 comes before 10; what is unknown comes last."""

    def __lt__(self, other: QTableWidgetItem) -> bool:
        mine, theirs = self.data(_KEY), other.data(_KEY)
        if isinstance(mine, float) and isinstance(theirs, float):
            return bool(mine < theirs)
        return str(mine) < str(theirs)


class OrganTable(QTableWidget):
    """Shows measured objects.

    Attributes
    ----------
    picked : Signal(int)
        The user clicked the row of an object.
    """

    picked = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(0, len(_HEADERS), parent)
        self._filling = False
        self.setHorizontalHeaderLabels(_HEADERS)
        for column, tip in enumerate(_TIPS):
            self.horizontalHeaderItem(column).setToolTip(tip)
        self.verticalHeader().setVisible(False)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        header = self.horizontalHeader()
        header.setMinimumSectionSize(20)
        header.setStyleSheet("QHeaderView::section { padding: 2px 1px; }")  # room for names
        header.setSectionResizeMode(NAME, QHeaderView.ResizeMode.Stretch)
        letter = self.fontMetrics().averageCharWidth()
        for column, letters in _LETTERS.items():
            self.setColumnWidth(column, letters * letter)
        row = self.fontMetrics().height() + 8
        self.verticalHeader().setDefaultSectionSize(row)
        self.setMinimumHeight(row * (_ROWS + 1))
        self.setSortingEnabled(True)
        self.sortByColumn(NAME, Qt.SortOrder.AscendingOrder)
        self.itemSelectionChanged.connect(self._on_selection)
        self.cellClicked.connect(self._on_clicked)

    def show_rows(self, session: Session | None, rows: Iterable[OrganRow]) -> None:
        """Show these rows, in the order the user sorted by."""
        objects = {} if session is None else {o.id: o for o in session.objects}
        shown = [row for row in rows if row.voxels and row.value in objects]
        self._filling = True
        self.setSortingEnabled(False)
        try:
            self.setRowCount(len(shown))
            for number, row in enumerate(shown):
                self._fill(number, row, objects[row.value].colour)
        finally:
            self.setSortingEnabled(True)
            self._filling = False
        self.mark(None if session is None else session.active_id)

    def mark(self, object_id: int | None) -> None:
        """Select the row of the active object."""
        self._filling = True
        found = [row for row in range(self.rowCount()) if self.id_at(row) == object_id]
        if found:
            self.selectRow(found[0])
        else:
            self.clearSelection()
        self._filling = False

    def id_at(self, row: int) -> int:
        """Return the id of the object in a row."""
        return int(self.item(row, NAME).data(_ID))

    def _fill(self, number: int, row: OrganRow, colour: tuple[float, float, float]) -> None:
        first, last = row.slices or (0, 0)
        cells: dict[int, tuple[str, Any]] = {
            NAME: (title_of(row.name), row.name),
            VOLUME: (_ml(row.volume_ml), row.volume_ml),
            MEAN: ("" if math.isnan(row.mean) else f"{row.mean:.0f}", row.mean),
            SLICES: (f"{first}–{last}", float(first)),
            BORDER: (_faces(row), ", ".join(row.touches)),
            SIDE: ("check" if row.side_check else "", row.side_check),
        }
        tips = {NAME: row.name, BORDER: _cut(row), SIDE: row.side_check.capitalize()}
        right = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        for column, (text, key) in cells.items():
            item = _Item(text)
            unknown = isinstance(key, float) and math.isnan(key)
            item.setData(_KEY, math.inf if unknown else key)
            item.setData(_ID, row.value)
            item.setToolTip(tips.get(column, "") or _TIPS[column])
            if column in (VOLUME, MEAN, SLICES):
                item.setTextAlignment(right)
            if column in (BORDER, SIDE) and text:
                item.setForeground(_WARNING)
            self.setItem(number, column, item)
        swatch = QColor.fromRgbF(*colour)
        self.item(number, NAME).setData(Qt.ItemDataRole.DecorationRole, swatch)

    def _on_selection(self) -> None:
        rows = self.selectionModel().selectedRows()
        if not self._filling and rows:
            self.picked.emit(self.id_at(rows[0].row()))

    def _on_clicked(self, row: int, _column: int) -> None:
        """Go there again where the row was selected already."""
        if row == self.currentRow() and not self._filling:
            self.picked.emit(self.id_at(row))


def _ml(volume: float) -> str:
    if math.isnan(volume):
        return "–"
    return f"{volume:.2f}" if volume < 10 else f"{volume:.0f}"


def _faces(row: OrganRow) -> str:
    """Return the faces in letters: S I A P L R, or the axes without a patient."""
    return " ".join(
        face.replace("axis ", "axis\u00a0") if face.startswith("axis") else face[0].upper()
        for face in row.touches
    )


def _cut(row: OrganRow) -> str:
    return f"Reaches the scan's end ({', '.join(row.touches)}): it may be cut off." * bool(
        row.touches
    )
