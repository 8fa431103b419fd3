"""The table of objects: colour, name, volume, score, shown, locked. It keeps no state itself."""

from __future__ import annotations

import math
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QColorDialog,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from napari_openmedlab.session.objects import SegmentObject
from napari_openmedlab.session.session import Session

__all__ = ["ObjectTable", "volume_text"]

_COLOUR, _NAME, _VOLUME, _SCORE, _SHOWN, _LOCKED = range(6)
_HEADERS = ("", "Name", "ml", "Score", "Show", "Lock")
_TIPS = (
    "Colour: double-click to change it",
    "Name: double-click to change it",
    "Volume in millilitres (voxels, where the voxel size is not known)",
    "The engine's own estimate of the mask's quality, from 0 to 1",
    "Show or hide the object",
    "A locked object neither loses nor gains voxels",
)
_ID = Qt.ItemDataRole.UserRole
_ROWS_SHOWN = 4


def volume_text(session: Session, found: SegmentObject) -> str:
    """Return an object's volume in ml, or its voxels where the voxel size is not known."""
    volume = session.volume_ml(found.id)
    if math.isnan(volume):
        return f"{found.voxels} vx"
    if volume and volume < 0.001:
        return f"{volume:.1e}"
    return f"{volume:.3f}" if volume < 1 else f"{volume:.1f}"


class ObjectTable(QTableWidget):
    """Shows a session's objects; what the user changes goes out as a signal.

    Attributes
    ----------
    activated_object : Signal(int)
        A row was chosen.
    changed : Signal(int, dict)
        Object id and the new ``name``, ``colour``, ``visible`` or ``locked``.
    """

    activated_object = Signal(int)
    changed = Signal(int, dict)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(0, len(_HEADERS), parent)
        self._filling = False
        self.setHorizontalHeaderLabels(_HEADERS)
        for column, tip in enumerate(_TIPS):
            self.horizontalHeaderItem(column).setToolTip(tip)
        self.verticalHeader().setVisible(False)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.DoubleClicked)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        header = self.horizontalHeader()
        header.setMinimumSectionSize(20)
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(_COLOUR, QHeaderView.ResizeMode.Fixed)
        header.setSectionResizeMode(_NAME, QHeaderView.ResizeMode.Stretch)
        self.setColumnWidth(_COLOUR, 26)
        row = self.fontMetrics().height() + 8
        self.verticalHeader().setDefaultSectionSize(row)
        self.setMinimumHeight(row * (_ROWS_SHOWN + 1))
        self.setMaximumHeight(row * (_ROWS_SHOWN + 5))
        self.itemChanged.connect(self._on_item_changed)
        self.itemSelectionChanged.connect(self._on_selection)
        self.cellDoubleClicked.connect(self._on_double_click)

    def show_session(self, session: Session | None) -> None:
        """Show the objects of a session (none without one)."""
        if self.state() == QAbstractItemView.State.EditingState:
            return  # a name is being typed: the change that follows refreshes the table
        objects = session.objects if session else ()
        self._filling = True
        try:
            self.setRowCount(len(objects))
            for row, found in enumerate(objects):
                self._fill_row(row, found, volume_text(session, found) if session else "")
            active = [r for r, o in enumerate(objects) if session and o.id == session.active_id]
            if active:
                self.selectRow(active[0])
            else:
                self.clearSelection()
        finally:
            self._filling = False

    def id_at(self, row: int) -> int:
        """Return the id of the object in a row."""
        return int(self.item(row, _NAME).data(_ID))

    def _fill_row(self, row: int, found: SegmentObject, volume: str) -> None:
        score = "–" if math.isnan(found.score) else f"{found.score:.2f}"
        texts = ("", found.name, volume, score, "", "")
        for column, text in enumerate(texts):
            item = self.item(row, column) or QTableWidgetItem()
            item.setText(text)
            item.setData(_ID, found.id)
            item.setFlags(self._flags(column))
            item.setToolTip(_TIPS[column])
            if self.item(row, column) is None:
                self.setItem(row, column, item)
        red, green, blue = found.colour
        self.item(row, _COLOUR).setData(
            Qt.ItemDataRole.DecorationRole, QColor.fromRgbF(red, green, blue)
        )
        self.item(row, _NAME).setToolTip("\n".join((found.name, *found.notes)))
        align = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        for column in (_VOLUME, _SCORE):
            self.item(row, column).setTextAlignment(align)
        self.item(row, _SHOWN).setCheckState(_check(found.visible))
        self.item(row, _LOCKED).setCheckState(_check(found.locked))

    @staticmethod
    def _flags(column: int) -> Any:
        flags = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        if column == _NAME:
            flags |= Qt.ItemFlag.ItemIsEditable
        if column in (_SHOWN, _LOCKED):
            flags |= Qt.ItemFlag.ItemIsUserCheckable
        return flags

    def _on_item_changed(self, item: QTableWidgetItem) -> None:
        if self._filling:
            return
        object_id = int(item.data(_ID))
        checked = item.checkState() == Qt.CheckState.Checked
        if item.column() == _NAME:
            self.changed.emit(object_id, {"name": item.text().strip()})
        elif item.column() == _SHOWN:
            self.changed.emit(object_id, {"visible": checked})
        elif item.column() == _LOCKED:
            self.changed.emit(object_id, {"locked": checked})

    def _on_selection(self) -> None:
        rows = self.selectionModel().selectedRows()
        if not self._filling and rows:
            self.activated_object.emit(self.id_at(rows[0].row()))

    def _on_double_click(self, row: int, column: int) -> None:
        if column != _COLOUR:
            return
        old = self.item(row, _COLOUR).data(Qt.ItemDataRole.DecorationRole)
        new = QColorDialog.getColor(old, self, "Colour of the object")
        if new.isValid():
            colour = (new.redF(), new.greenF(), new.blueF())
            self.changed.emit(self.id_at(row), {"colour": colour})


def _check(value: bool) -> Any:
    return Qt.CheckState.Checked if value else Qt.CheckState.Unchecked
