"""The tab on which a cohort is run: folders, engines, progress, and the table of cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtpy.QtCore import QObject, Qt, Signal
from qtpy.QtWidgets import (
    QDoubleSpinBox,
    QFormLayout,
    QHBoxLayout,
    QLineEdit,
    QProgressBar,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_openmedlab.cohort.cases import Case
from napari_openmedlab.cohort.library import Library
from napari_openmedlab.cohort.records import CaseRecord
from napari_openmedlab.cohort.results import Results
from napari_openmedlab.cohort.review import Reviewer, Row
from napari_openmedlab.cohort.run import Plan, Summary, run_cohort
from napari_openmedlab.cohort.settings import Settings, default_localizer
from napari_openmedlab.errors import Cancelled, OpenMedLabError, ReadError, SettingsError
from napari_openmedlab.models.catalogue import engines
from napari_openmedlab.models.contract import Monitor, Progress
from napari_openmedlab.session.workbench import Workbench
from napari_openmedlab.widgets.background import Background
from napari_openmedlab.widgets.cohort_inputs import CaseTable, EngineInput, FolderInput
from napari_openmedlab.widgets.sections import button
from napari_openmedlab.widgets.worker_bridge import WorkerBridge

__all__ = ["RunTab"]


class _Reports(QObject):
    """Carries a finished case from the worker's thread to the window's."""

    case = Signal(object, object)


class RunTab(QWidget):
    """Runs a cohort in a thread of its own, so that clicks elsewhere are answered meanwhile.

    Attributes
    ----------
    said : Signal(str, str)
        A sentence and its severity.
    results_changed : Signal(Path)
        Results in this folder came or changed.
    case_done : Signal(Path, str)
        The result of one case in this folder is new.
    picked : Signal(str)
        The user wants to look at this case.
    """

    said = Signal(str, str)
    results_changed = Signal(object)
    case_done = Signal(object, str)
    picked = Signal(str)

    def __init__(self, library: Callable[[], Library | None]) -> None:
        super().__init__()
        self._library = library
        self._worker = WorkerBridge(self)
        self._background = Background(self._worker, self)
        self._reports = _Reports(self)
        self._reports.case.connect(self._on_case, Qt.ConnectionType.QueuedConnection)
        self._monitor: Monitor | None = None
        self._build()
        self._connect()
        self._set_running(False)

    def _build(self) -> None:
        self.scans = FolderInput("Scans", "Folder with scans: DICOM folders and files mixed")
        self.out = FolderInput(
            "Results", "Folder for the results; one with results already is gone on with"
        )
        self.structures = QLineEdit()
        self.structures.setPlaceholderText("all that the library has")
        self.structures.setToolTip("Structures to look for, with commas between")
        self.localizer = EngineInput(engines("localizer"), "Who finds the structures")
        self.engine = EngineInput(engines("promptable"), "Who segments in the boxes", "boxes only")
        self.margin = QDoubleSpinBox()
        self.margin.setRange(0.0, 200.0)
        self.margin.setSuffix(" mm")
        self.margin.setToolTip("Added to each side of a found box; the mask ends there")
        self.slabs = QSpinBox()
        self.slabs.setRange(0, 100)
        self.slabs.setSpecialValueText("whole boxes")
        self.slabs.setToolTip(
            "Boxes of slabs of so many 3 mm slices, for structures marked from masks (MedLSAM: 2)"
        )
        self.run = button("Run", "Work on all cases that are not finished")
        self.cancel = button("Cancel", "Stop; what is finished stays, Run goes on")
        self.bar = QProgressBar()
        self.bar.setTextVisible(True)
        self.table = CaseTable()
        form = QFormLayout()
        for title, field in (
            ("Scans", self.scans),
            ("Results", self.out),
            ("Structures", self.structures),
            ("Find by", self.localizer),
            ("Segment by", self.engine),
            ("Margin", self.margin),
            ("Sub-patches", self.slabs),
        ):
            form.addRow(title, field)
        buttons = QHBoxLayout()
        buttons.addWidget(self.run)
        buttons.addWidget(self.cancel)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addLayout(buttons)
        layout.addWidget(self.bar)
        layout.addWidget(self.table, 1)
        try:
            self.localizer.choose(default_localizer())
        except OpenMedLabError as error:
            self.localizer.setToolTip(str(error))

    def _connect(self) -> None:
        self.run.clicked.connect(self.start)
        self.cancel.clicked.connect(self.stop)
        self.out.chosen.connect(self._on_out)
        self.table.picked.connect(self.picked)

    @property
    def running(self) -> bool:
        """Whether a run is at work."""
        return self._monitor is not None

    def start(self) -> None:
        """Run the cohort, or go on with it."""
        if self.running:
            return
        try:
            plan = self._plan()
        except OpenMedLabError as error:
            self.said.emit(str(error), "error")
            return
        own = Monitor()
        self._monitor = own
        self._set_running(True)
        self.said.emit("The cohort runs; you can go on working meanwhile.", "busy")

        def work(bench: Workbench, monitor: Monitor) -> Summary | None:
            both = _Both(own, monitor)
            told = self._reports.case.emit
            try:
                return run_cohort(
                    Plan(
                        plan.folder,
                        plan.out,
                        plan.templates,
                        plan.settings,
                        plan.library,
                        "",
                        bench,
                    ),
                    both,
                    told,
                )
            except Cancelled:
                return None

        self._background.run(work, self._on_done, self._on_failed, self._on_progress)

    def stop(self) -> None:
        """Cancel the run at its next step."""
        if self._monitor is not None:
            self._monitor.cancel()
            self.said.emit("Stopping at the next step ...", "busy")

    def end(self) -> None:
        """Stop everything; the panel goes."""
        if self._monitor is not None:
            self._monitor.cancel()
        self._background.close()
        self._worker.close()

    def show_results(self) -> None:
        """Fill the table from the folder of results."""
        out = self.out.path
        if out is None:
            return
        try:
            self.table.show_rows(Reviewer(out).rows())
        except ReadError:
            self.table.show_rows([])

    def _plan(self) -> Plan:
        library, scans, out = self._library(), self.scans.path, self.out.path
        localizer = self.localizer.spec
        if library is None:
            raise SettingsError("choose a template library first (tab Templates)")
        if scans is None or out is None:
            raise SettingsError("choose the folder with the scans and one for the results")
        if localizer is None:
            raise SettingsError("there is no engine that finds structures")
        names = tuple(n.strip() for n in self.structures.text().split(",") if n.strip())
        settings = Settings(
            localizer=localizer.id,
            localizer_options=self.localizer.values(),
            engine=self.engine.spec.id if self.engine.spec else "",
            engine_options=self.engine.values(),
            structures=names,
            margin_mm=self.margin.value(),
            slab_interval=self.slabs.value(),
        )
        settings.check()
        templates = library.templates(names, slab_interval=settings.slab_interval)
        return Plan(scans, out, templates, settings, library.folder)

    def _set_running(self, on: bool) -> None:
        self.run.setEnabled(not on)
        self.cancel.setEnabled(on)
        self.bar.setVisible(on)
        self.bar.setRange(0, 0)
        for field in (self.scans, self.out, self.structures, self.localizer, self.engine):
            field.setEnabled(not on)

    def _on_out(self, _path: Path | None) -> None:
        self.show_results()
        if self.out.path is not None:
            self.results_changed.emit(self.out.path)

    def _on_progress(self, progress: Progress) -> None:
        self.bar.setRange(0, progress.total)
        self.bar.setValue(progress.done)
        self.bar.setFormat(f"{progress.done} of {progress.total}")
        self.said.emit(progress.text, "busy")

    def _on_case(self, case: Case, record: CaseRecord) -> None:
        out = self.out.path
        if out is None:
            return
        known = [self.table.case_at(row) for row in range(self.table.rowCount())]
        if case.id in known:
            self.table.update_row(Row(case, record, Results(out).review(case.id)))
        else:
            self.show_results()
            self.results_changed.emit(out)
        self.case_done.emit(out, case.id)

    def _on_done(self, summary: Summary | None) -> None:
        self._ended()
        if summary is None:
            self.said.emit("Stopped. What is finished stays; Run goes on.", "unsure")
            return
        counts = {
            "done": summary.done,
            "finished before": summary.skipped,
            "kept as reviewed": summary.kept,
            "failed": len(summary.failed),
        }
        text = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
        severity = "unsure" if summary.failed else "done"
        self.said.emit(f"{summary.cases} cases: {text}. Look at them in Review.", severity)

    def _on_failed(self, error: OpenMedLabError) -> None:
        self._ended()
        self.said.emit(str(error), "error")

    def _ended(self) -> None:
        self._monitor = None
        self._set_running(False)
        self.show_results()
        if self.out.path is not None:
            self.results_changed.emit(self.out.path)


class _Both(Monitor):
    """Reports to the worker's monitor; a cancel of either one counts."""

    def __init__(self, own: Monitor, worker: Monitor) -> None:
        super().__init__()
        self._own, self._worker = own, worker

    @property
    def cancelled(self) -> bool:
        """Whether the user cancelled, or the worker is being closed."""
        return self._own.cancelled or self._worker.cancelled

    def step(self, done: int = 0, total: int = 0, text: str = "") -> None:
        """Report a step and raise after a cancel."""
        if self.cancelled:
            raise Cancelled("cancelled")
        self._worker.step(done, total, text)
