"""The table of models: searched by words, sorted by a click on a column's head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtCore import (
    QAbstractTableModel,
    QItemSelectionModel,
    QModelIndex,
    QSortFilterProxyModel,
    Qt,
    Signal,
)
from qtpy.QtGui import QColor, QIcon, QPainter, QPixmap
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableView, QWidget

from napari_openmedlab.widgets.model_rows import ModelRow, State

__all__ = ["ModelTable"]

_HEADERS = ("Model", "Status", "Size", "Licence", "For what", "Engine")
_TIPS = (
    "Published checkpoints, and what you imported yourself",
    "Whether it is on this computer",
    "On this computer, or expected (≈: counted from the network, the publisher states none)",
    "Of the weights; the licence of the code stands below",
    "What it is good for",
    "The engine it is made for",
)
_MODEL, _STATUS, _SIZE, _LICENCE, _PURPOSE, _ENGINE = range(6)
_WIDTHS = {_MODEL: 185, _STATUS: 135, _SIZE: 75, _LICENCE: 110, _PURPOSE: 330, _ENGINE: 80}
_COLOURS = {
    State.READY: "#22c55e",
    State.DAMAGED: "#ef4444",
    State.MISSING: "#ef4444",
    State.PARTLY: "#fbbf24",
    State.AWAITED: "#fbbf24",
    State.ABSENT: "#9ca3af",
}
_BUSY = "#60a5fa"
_SORT = Qt.ItemDataRole.UserRole


class _Model(QAbstractTableModel):
    """Rows and what is being done to them at the moment."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.rows: list[ModelRow] = []
        self._doing: dict[str, str] = {}
        self._dots = {colour: _dot(colour) for colour in {*_COLOURS.values(), _BUSY}}

    def set_rows(self, rows: Sequence[ModelRow]) -> None:
        if [row.key for row in rows] == [row.key for row in self.rows]:
            self.rows = list(rows)
            last = self.index(len(rows) - 1, len(_HEADERS) - 1)
            self.dataChanged.emit(self.index(0, 0), last)
            return
        self.beginResetModel()
        self.rows = list(rows)
        self.endResetModel()

    def set_doing(self, key: str, text: str) -> None:
        if text:
            self._doing[key] = text
        else:
            self._doing.pop(key, None)
        for row, found in enumerate(self.rows):
            if found.key == key:
                self.dataChanged.emit(self.index(row, _STATUS), self.index(row, _STATUS))

    def status(self, row: ModelRow) -> str:
        return self._doing.get(row.key, row.state_text)

    def rowCount(self, parent: QModelIndex | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self.rows)

    def columnCount(self, parent: QModelIndex | None = None) -> int:
        return len(_HEADERS)

    def headerData(
        self, section: int, orientation: Any, role: int = Qt.ItemDataRole.DisplayRole
    ) -> Any:
        if orientation != Qt.Orientation.Horizontal:
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return _HEADERS[section]
        return _TIPS[section] if role == Qt.ItemDataRole.ToolTipRole else None

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        row, column = self.rows[index.row()], index.column()
        if role == Qt.ItemDataRole.DisplayRole:
            return self._text(row, column)
        if role == _SORT:
            return self._sort_key(row, column)
        if role == Qt.ItemDataRole.ToolTipRole:
            return self._text(row, column)
        if role == Qt.ItemDataRole.DecorationRole and column == _STATUS:
            colour = _BUSY if row.key in self._doing else _COLOURS[row.state]
            return self._dots[colour]
        if role == Qt.ItemDataRole.TextAlignmentRole and column == _SIZE:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        return None

    def _text(self, row: ModelRow, column: int) -> str:
        texts = (
            row.title,
            self.status(row),
            row.size_text,
            row.licence,
            row.purpose,
            row.engine,
        )
        return texts[column]

    def _sort_key(self, row: ModelRow, column: int) -> Any:
        if column == _SIZE:
            return float(row.size)  # a Qt integer ends at 2 GB
        if column == _STATUS:
            return -1 if row.key in self._doing else State.ALL.index(row.state)
        return self._text(row, column).lower()


class _Filter(QSortFilterProxyModel):
    """Keeps rows in which every word of the search occurs."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._words: tuple[str, ...] = ()
        self.setSortRole(_SORT)

    def search(self, text: str) -> None:
        self._words = tuple(text.lower().split())
        self.invalidate()

    def filterAcceptsRow(self, row: int, parent: QModelIndex) -> bool:
        model: Any = self.sourceModel()
        found = model.rows[row]
        text = f"{found.haystack} {model.status(found)}"
        return all(word in text for word in self._words)


class ModelTable(QTableView):
    """Shows :class:`~napari_openmedlab.widgets.model_rows.ModelRow`; keeps no state of its own.

    Attributes
    ----------
    chosen : Signal()
        Another row is selected, or none.
    """

    chosen = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._model = _Model(self)
        self._filter = _Filter(self)
        self._filter.setSourceModel(self._model)
        self.setModel(self._filter)
        self._key = ""
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setWordWrap(False)
        self.setShowGrid(False)
        self.setSortingEnabled(True)
        self.sortByColumn(-1, Qt.SortOrder.AscendingOrder)  # as the catalogue has them
        self.verticalHeader().setVisible(False)
        self.verticalHeader().setDefaultSectionSize(self.fontMetrics().height() + 8)
        header = self.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
        header.setStretchLastSection(True)
        for column, width in _WIDTHS.items():
            self.setColumnWidth(column, width)
        self.selectionModel().selectionChanged.connect(self._on_selection)

    def show_rows(self, rows: Sequence[ModelRow]) -> None:
        """Show these rows; the selected one stays selected if it is still there."""
        key = self._key
        self._model.set_rows(rows)
        self.select(key)
        self.chosen.emit()  # the same row may be in another state now

    def show_doing(self, key: str, text: str) -> None:
        """Show in the status column what is being done to a row; ``""`` when it is over."""
        self._model.set_doing(key, text)

    def search(self, text: str) -> None:
        """Show only rows in which every word occurs."""
        key = self._key
        self._filter.search(text)
        self.select(key)

    @property
    def row(self) -> ModelRow | None:
        """The selected row."""
        return next((row for row in self._model.rows if row.key == self._key), None)

    def rows(self) -> list[ModelRow]:
        """Return the rows as they are shown: found by the search, in their order."""
        shown = range(self._filter.rowCount())
        return [self._model.rows[self._source(row)] for row in shown]

    def status(self, key: str) -> str:
        """Return the text in the status column of a row."""
        row = next(row for row in self._model.rows if row.key == key)
        return self._model.status(row)

    def select(self, key: str) -> None:
        """Select a row; none if it is not shown."""
        for row in range(self._filter.rowCount()):
            if self._model.rows[self._source(row)].key == key:
                flags = (
                    QItemSelectionModel.SelectionFlag.ClearAndSelect
                    | QItemSelectionModel.SelectionFlag.Rows
                )
                index = self._filter.index(row, 0)
                self.selectionModel().setCurrentIndex(index, flags)
                self.scrollTo(index)
                return
        self.clearSelection()
        self._on_selection()  # a reset of the model takes the selection away without a word

    def _source(self, row: int) -> int:
        return int(self._filter.mapToSource(self._filter.index(row, 0)).row())

    def _on_selection(self, *_: Any) -> None:
        found = self.selectionModel().selectedRows()
        self._key = self._model.rows[self._source(found[0].row())].key if found else ""
        self.chosen.emit()


def _dot(colour: str) -> QIcon:
    picture = QPixmap(12, 12)
    picture.fill(Qt.GlobalColor.transparent)
    painter = QPainter(picture)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setBrush(QColor(colour))
    painter.setPen(Qt.PenStyle.NoPen)
    painter.drawEllipse(2, 2, 8, 8)
    painter.end()
    return QIcon(picture)
