"""The tab on which results are looked through: the least certain case first, all of it by key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QGroupBox,
    QHBoxLayout,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_openmedlab.cohort.library import Library
from napari_openmedlab.cohort.records import ReviewState, StructureRecord
from napari_openmedlab.cohort.review import Reviewer
from napari_openmedlab.cohort.training_pairs import add_pair
from napari_openmedlab.errors import OpenMedLabError, ReadError, SettingsError
from napari_openmedlab.widgets.background import Background
from napari_openmedlab.widgets.cohort_desk import ReviewDesk
from napari_openmedlab.widgets.cohort_inputs import CaseTable, FolderInput
from napari_openmedlab.widgets.sections import button, wrapped_label
from napari_openmedlab.widgets.workplace import Workplace

__all__ = ["KEYS", "ReviewTab"]

KEYS = {"Alt-A": "accept", "Alt-R": "reject", "Alt-S": "skip", "Alt-N": "following"}
"""Keys on the canvas while the panel is open."""

_STATES: dict[str, ReviewState] = {"accept": "accepted", "reject": "rejected", "skip": "skipped"}


class ReviewTab(QWidget):
    """Goes through the cases of a folder of results.

    Attributes
    ----------
    said : Signal(str, str)
        A sentence and its severity.
    library_changed : Signal()
        A case was added to the template library.
    """

    said = Signal(str, str)
    library_changed = Signal()

    def __init__(
        self, viewer: Any, workplace: Workplace, library: Callable[[], Library | None]
    ) -> None:
        super().__init__()
        self._viewer, self._library = viewer, library
        self._background = Background(workplace.worker, self)
        self.desk = ReviewDesk(viewer, workplace, self._background, self)
        self._filling = False
        self._build()
        self._connect()
        self._refresh()

    def _build(self) -> None:
        self.out = FolderInput("Results", "Folder with the results of a cohort")
        self.state = wrapped_label()
        self.buttons = {
            "following": button("Next [Alt+N]", "Open the least certain case that waits"),
            "accept": button("Accept [Alt+A]", "The masks are right; open the next case"),
            "reject": button("Reject [Alt+R]", "The masks are of no use; open the next case"),
            "skip": button("Skip [Alt+S]", "Decide later; open the next case"),
        }
        self.structures = _StructureTable()
        self.template = button(
            "To template library", "Accept this case and add it to the template library"
        )
        self.pair = button(
            "To training data", "Accept this case and copy scan and labels to the folder below"
        )
        self.training = FolderInput("Training data", "Folder that 'openmedlab finetune' takes")
        self.export = button("Export table", "Write cohort.csv and boxes.json anew")
        self.cases = CaseTable()
        first, second, uses = QHBoxLayout(), QHBoxLayout(), QHBoxLayout()
        for name in ("following", "accept"):
            first.addWidget(self.buttons[name])
        for name in ("reject", "skip"):
            second.addWidget(self.buttons[name])
        for made in (self.template, self.pair):
            uses.addWidget(made)
        use = QGroupBox("Use an accepted case")
        inner = QVBoxLayout(use)
        inner.addLayout(uses)
        inner.addWidget(self.training)
        layout = QVBoxLayout(self)
        layout.addWidget(self.out)
        layout.addWidget(self.state)
        layout.addLayout(first)
        layout.addLayout(second)
        layout.addWidget(self.structures)
        layout.addWidget(use)
        layout.addWidget(self.cases, 1)
        layout.addWidget(self.export)

    def _connect(self) -> None:
        self.out.chosen.connect(self.open_results)
        for name, made in self.buttons.items():
            made.clicked.connect(lambda _=False, command=name: self.do(command))
        self.structures.picked.connect(self.desk.select)
        self.cases.picked.connect(self.desk.open)
        self.template.clicked.connect(lambda: self._use(self._to_template))
        self.pair.clicked.connect(lambda: self._use(self._to_pair))
        self.export.clicked.connect(self._on_export)
        self.desk.said.connect(self.said)
        self.desk.opened.connect(self._on_opened)
        self.desk.changed.connect(self._refresh_case)
        for key, command in KEYS.items():
            self._viewer.bind_key(key, self._handler(command), overwrite=True)

    def _handler(self, command: str) -> Callable[[Any], None]:
        return lambda _viewer: self.do(command)

    def end(self, *, remove: bool) -> None:
        """Take keys and the box away; what was changed is saved before.

        Parameters
        ----------
        remove : bool
            Whether the viewer goes on without the panel.
        """
        for key in KEYS if remove else ():
            self._viewer.bind_key(key, None, overwrite=True)
        self.desk.end(remove=remove)
        self._background.close()

    # -- results ---------------------------------------------------------------------------

    def open_results(self, folder: Path | None) -> None:
        """Review the results in this folder."""
        reviewer = None
        if folder is not None:
            try:
                reviewer = Reviewer(folder)
            except ReadError as error:
                self.said.emit(str(error), "error")
        self.desk.reviewer = reviewer
        self._refresh()

    def results_changed(self, folder: Path) -> None:
        """Take notice of results that a run has just changed."""
        reviewer = self.desk.reviewer
        if reviewer is None or reviewer.results.folder != folder:
            if (folder / "cohort.json").exists():
                self.out.set_path(folder)
            return
        try:
            reviewer.reload()
        except ReadError as error:
            self.said.emit(str(error), "error")
        self._refresh()

    def case_done(self, folder: Path, case: str) -> None:
        """Take notice of one case that a run has just finished."""
        reviewer = self.desk.reviewer
        if reviewer is not None and reviewer.results.folder == folder:
            self._refresh_case(case)

    # -- commands --------------------------------------------------------------------------

    def do(self, command: str) -> None:
        """Accept, reject or skip the case on the desk and open the next, or only that."""
        if self.desk.reviewer is None:
            self.said.emit("Choose a folder with results first.", "info")
        elif command == "following":
            self._open_following()
        else:
            self.desk.finish(_STATES[command], self._open_following)

    def _open_following(self) -> None:
        reviewer = self.desk.reviewer
        case = None if reviewer is None else reviewer.following(self.desk.case or None)
        if case is not None:
            self.desk.open(case)
            return
        self.desk.save(self.desk.clear)
        self.said.emit("No case waits for review.", "done")

    def _use(self, command: Callable[[Reviewer, str], None]) -> None:
        """Accept the case on the desk and put it to use."""
        reviewer, case = self.desk.reviewer, self.desk.case
        if reviewer is not None and case:
            self.desk.finish("accepted", lambda: command(reviewer, case))
        else:
            self.said.emit("Open a case first.", "info")

    def _to_template(self, reviewer: Reviewer, case: str) -> None:
        library = self._library()
        if library is None:
            self._fail(SettingsError("choose a template library first (tab Templates)"))
            return

        def done(_added: Any) -> None:
            self.said.emit(f"{case} is a template now.", "done")
            self.library_changed.emit()

        self.said.emit(f"Adding {case} to the library ...", "busy")
        self._background.run(
            lambda _bench, _monitor: reviewer.to_template(case, library), done, self._fail
        )

    def _to_pair(self, reviewer: Reviewer, case: str) -> None:
        folder = self.training.path
        if folder is None:
            self._fail(SettingsError("choose a folder for the training data first"))
            return

        def work(_bench: Any, _monitor: Any) -> Any:
            volume, labels, objects = reviewer.open(case)
            return add_pair(folder, case, volume, labels, objects)

        def done(paths: Any) -> None:
            self.said.emit(
                f"Training data: {paths[0].name} in {folder}. Train with: openmedlab finetune "
                f"{folder}/images {folder}/labels -o MODEL",
                "done",
            )

        self.said.emit(f"Copying {case} ...", "busy")
        self._background.run(work, done, self._fail)

    def _on_export(self) -> None:
        reviewer = self.desk.reviewer
        if reviewer is None:
            self.said.emit("Choose a folder with results first.", "info")
            return

        def write() -> None:
            self._background.run(
                lambda _bench, _monitor: reviewer.export(),
                lambda paths: self.said.emit(f"Written: {paths[0]} and {paths[1].name}.", "done"),
                self._fail,
            )

        self.desk.save(write)

    def _fail(self, error: OpenMedLabError) -> None:
        self.said.emit(str(error), "error")

    # -- what is shown ---------------------------------------------------------------------

    def _on_opened(self, case: str) -> None:
        self.cases.select(case)
        self._show_state()
        reviewer = self.desk.reviewer
        if case and reviewer is not None:
            record = reviewer.results.record(case)
            found = [s for s in record.structures if s.found] if record else []
            if found:  # the least certain structure first, as with cases
                self.structures.select(min(found, key=lambda s: s.certainty).name)

    def _refresh(self) -> None:
        """Show all cases; with a thousand of them too slow for every little change."""
        reviewer = self.desk.reviewer
        self.cases.show_rows([] if reviewer is None else reviewer.rows())
        self.cases.select(self.desk.case)
        self._show_state()

    def _refresh_case(self, case: str) -> None:
        """Show one case anew."""
        reviewer = self.desk.reviewer
        if reviewer is not None and reviewer.job.case(case) is not None:
            self.cases.update_row(reviewer.row(case))
        self._show_state()

    def _show_state(self) -> None:
        reviewer, case = self.desk.reviewer, self.desk.case
        ready = reviewer is not None
        for name, made in self.buttons.items():
            made.setEnabled(ready and (name == "following" or bool(case)))
        for made in (self.template, self.pair):
            made.setEnabled(bool(case))
        self.export.setEnabled(ready)
        if reviewer is None:
            self.state.setText("Choose a folder with results, or run a cohort.")
            self.structures.show_rows(())
            return
        rows = reviewer.rows()
        waiting = sum(row.status == "pending" for row in rows)
        skipped = sum(row.status == "skipped" for row in rows)
        text = f"{waiting} of {len(rows)} cases wait for review"
        text += f", {skipped} skipped." if skipped else "."
        record = reviewer.row(case).record if case else None
        if record is not None:
            text += f"\nOpen: {case} ({reviewer.row(case).status})."
            notes = " ".join(record.notes)
            text += f"\n{notes}" if notes else ""
        self.state.setText(text)
        self.structures.show_rows(() if record is None else record.structures)


class _StructureTable(QTableWidget):
    """Structures of the open case.

    Attributes
    ----------
    picked : Signal(str)
        The user selected a structure.
    """

    picked = Signal(str)

    _HEADERS = ("Structure", "Sure", "ml", "Status")

    def __init__(self) -> None:
        super().__init__(0, len(self._HEADERS))
        self._filling = False
        self.setHorizontalHeaderLabels(self._HEADERS)
        self.verticalHeader().setVisible(False)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setToolTip("Click a structure to go there; drag the walls of its box in any view")
        header = self.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        row = self.fontMetrics().height() + 8
        self.verticalHeader().setDefaultSectionSize(row)
        self.setMinimumHeight(row * 5)
        self.itemSelectionChanged.connect(self._on_selection)

    def show_rows(self, rows: tuple[StructureRecord, ...]) -> None:
        """Show these; the selected one stays selected."""
        chosen = self._name(self.currentRow())
        self._filling = True
        self.setRowCount(len(rows))
        for number, row in enumerate(rows):
            volume = "" if row.volume_ml is None else f"{row.volume_ml:.1f}"
            sure = f"{row.certainty:.2f}" if row.found else ""
            reasons = [f"{name}: {value:.3g}" for name, value in row.checks.items()]
            tip = "\n".join((*row.notes, *reasons, *([row.reason] if row.reason else [])))
            for column, text in enumerate((row.name, sure, volume, row.status)):
                item = QTableWidgetItem(text)
                item.setToolTip(tip)
                if column in (1, 2):
                    item.setTextAlignment(
                        Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
                    )
                self.setItem(number, column, item)
            if row.name == chosen:
                self.selectRow(number)
        self._filling = False

    def select(self, name: str) -> None:
        """Select a structure, as a click would."""
        for number in range(self.rowCount()):
            if self._name(number) == name:
                self.clearSelection()
                self.selectRow(number)

    def _name(self, row: int) -> str:
        item = self.item(row, 0)
        return "" if item is None else item.text()

    def _on_selection(self) -> None:
        rows = self.selectionModel().selectedRows()
        if rows and not self._filling:
            self.picked.emit(self._name(rows[0].row()))
