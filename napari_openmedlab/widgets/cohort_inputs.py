"""Small inputs of the Cohort panel: a folder, an engine with its options, the table of cases."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QSizePolicy,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_openmedlab.cohort.review import Row
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.engine_spec import EngineSpec
from napari_openmedlab.widgets.engine_form import EngineForm
from napari_openmedlab.widgets.sections import button

__all__ = ["CaseTable", "EngineInput", "FolderInput"]

_ID = Qt.ItemDataRole.UserRole
_COLOURS = {
    "accepted": "#22c55e",
    "rejected": "#ef4444",
    "failed": "#ef4444",
    "skipped": "#f59e0b",
}
_WORDS = {"pending": "to review"}
_ROWS = 7


class FolderInput(QWidget):
    """A line with a folder and a button to choose one.

    Attributes
    ----------
    chosen : Signal(Path)
        The user entered or chose a folder.
    """

    chosen = Signal(object)

    def __init__(self, title: str, tooltip: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._title = title
        self.line = QLineEdit()
        self.line.setPlaceholderText(title)
        self.line.setToolTip(tooltip)
        self.button = button("...", f"Choose: {tooltip[:1].lower()}{tooltip[1:]}")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.line, 1)
        layout.addWidget(self.button)
        self.line.editingFinished.connect(self._on_entered)
        self.button.clicked.connect(self._on_asked)
        self._last = ""

    @property
    def path(self) -> Path | None:
        """The folder, if one is given."""
        text = self.line.text().strip()
        return Path(text).expanduser() if text else None

    def set_path(self, path: str | Path) -> None:
        """Put a folder there and tell of it."""
        self.line.setText(str(path))
        self._on_entered()

    def _on_entered(self) -> None:
        text = self.line.text().strip()
        if text != self._last:
            self._last = text
            self.chosen.emit(self.path)

    def _on_asked(self) -> None:
        start = str(self.path or "")
        found = QFileDialog.getExistingDirectory(self, self._title, start)
        if found:
            self.set_path(found)


class EngineInput(QWidget):
    """A combo box of engines and the form of the chosen one's options.

    Parameters
    ----------
    specs : iterable of EngineSpec
    nothing : str
        Text of an entry for "no engine"; empty: there is none.
    """

    def __init__(
        self,
        specs: Iterable[EngineSpec],
        tooltip: str,
        nothing: str = "",
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._specs: list[EngineSpec | None] = list(specs)
        self.choice = QComboBox()
        self.choice.setToolTip(tooltip)
        self.choice.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        for spec in self._specs:
            assert spec is not None
            self.choice.addItem(spec.title)
        if nothing:
            self._specs.append(None)
            self.choice.addItem(nothing)
        self.more = button("Options", "Show the engine's options", checkable=True)
        self.form = EngineForm()
        self.form.hide()
        top = QHBoxLayout()
        top.addWidget(self.choice, 1)
        top.addWidget(self.more)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(top)
        layout.addWidget(self.form)
        self.choice.currentIndexChanged.connect(self._show)
        self.more.toggled.connect(self._show)
        self._show()

    @property
    def spec(self) -> EngineSpec | None:
        """The engine chosen; ``None`` for none."""
        row = self.choice.currentIndex()
        return self._specs[row] if 0 <= row < len(self._specs) else None

    def choose(self, engine: str) -> None:
        """Choose an engine by its id; an unknown one changes nothing."""
        for row, spec in enumerate(self._specs):
            if (spec.id if spec else "") == engine:
                self.choice.setCurrentIndex(row)

    def values(self) -> dict[str, Any]:
        """Return the options that differ from the defaults."""
        return {} if self.spec is None else self.form.values()

    def _show(self, *_: Any) -> None:
        spec = self.spec
        if spec is not None and spec is not self.form.spec:
            self.form.show_spec(spec, {})
            store = ModelStore()
            self.form.show_models([r for n in spec.networks for r in store.models_of(n)])
            self.choice.setToolTip(spec.summary)
        wanted = spec is not None and bool(spec.options)
        self.more.setVisible(wanted)
        self.form.setVisible(wanted and self.more.isChecked())


class _Item(QTableWidgetItem):
    """Sorts numbers as numbers."""

    def __lt__(self, other: QTableWidgetItem) -> bool:
        mine, theirs = self.data(_ID + 1), other.data(_ID + 1)
        if isinstance(mine, float) and isinstance(theirs, float):
            return bool(mine < theirs)
        return self.text().casefold() < other.text().casefold()


class CaseTable(QTableWidget):
    """Cases: name, structures found, the lowest confidence, what became of it.

    Attributes
    ----------
    picked : Signal(str)
        The user double-clicked a case.
    """

    picked = Signal(str)

    _HEADERS = ("Case", "Found", "Sure", "Status")
    _TIPS = (
        "Double-click to open it for review",
        "Structures found, of those looked for",
        "Confidence of the least certain structure",
        "What became of the case",
    )

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(0, len(self._HEADERS), parent)
        self.setHorizontalHeaderLabels(self._HEADERS)
        for column, tip in enumerate(self._TIPS):
            self.horizontalHeaderItem(column).setToolTip(tip)
        self.verticalHeader().setVisible(False)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        header = self.horizontalHeader()
        header.setMinimumSectionSize(20)
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        row = self.fontMetrics().height() + 8
        self.verticalHeader().setDefaultSectionSize(row)
        self.setMinimumHeight(row * (_ROWS + 1))
        self.setSortingEnabled(True)
        self.sortByColumn(0, Qt.SortOrder.AscendingOrder)
        self.itemDoubleClicked.connect(lambda item: self.picked.emit(self.case_at(item.row())))

    def show_rows(self, rows: Iterable[Row]) -> None:
        """Show these cases, in the order the user sorted by."""
        chosen = self.selected()
        self.setSortingEnabled(False)
        shown = list(rows)
        self.setRowCount(len(shown))
        for number, row in enumerate(shown):
            self._fill(number, row)
        self.setSortingEnabled(True)
        self.select(chosen)

    def update_row(self, row: Row) -> None:
        """Show one case anew."""
        self.setSortingEnabled(False)
        for number in range(self.rowCount()):
            if self.case_at(number) == row.case.id:
                self._fill(number, row)
        self.setSortingEnabled(True)

    def select(self, case: str) -> None:
        """Select the row of a case."""
        for number in range(self.rowCount()):
            if self.case_at(number) == case:
                self.selectRow(number)

    def selected(self) -> str:
        """Return the selected case, ``""`` for none."""
        rows = self.selectionModel().selectedRows()
        return self.case_at(rows[0].row()) if rows else ""

    def case_at(self, row: int) -> str:
        """Return the case in a row."""
        item = self.item(row, 0)
        return "" if item is None else str(item.data(_ID))

    def _fill(self, number: int, row: Row) -> None:
        record = row.record
        worked = record is not None and record.status == "done"
        found = f"{record.found}/{len(record.structures)}" if record and worked else ""
        sure = f"{row.certainty:.2f}" if worked else ""
        texts = (row.case.id, found, sure, _WORDS.get(row.status, row.status))
        tip = row.reason or row.case.title
        for column, text in enumerate(texts):
            item = _Item(text)
            item.setData(_ID, row.case.id)
            item.setData(_ID + 1, row.certainty if column == 2 else text)
            item.setToolTip(tip)
            if column == 3 and text in _COLOURS:
                item.setForeground(QColor(_COLOURS[text]))
            self.setItem(number, column, item)
