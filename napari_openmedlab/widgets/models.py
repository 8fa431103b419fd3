"""The Models panel: which weights there are, on what terms, and how to get them here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import QEvent, QSize, Qt, QUrl
from qtpy.QtGui import QDesktopServices, QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import QFileDialog, QVBoxLayout, QWidget

from napari_openmedlab.errors import Cancelled, OpenMedLabError
from napari_openmedlab.models.catalogue import CheckpointSpec, checkpoints
from napari_openmedlab.models.checkpoints.bundle import SUFFIX
from napari_openmedlab.models.checkpoints.disk import size_text
from napari_openmedlab.models.checkpoints.records import Entry
from napari_openmedlab.models.contract import Progress
from napari_openmedlab.widgets.model_asking import LicenceDialog
from napari_openmedlab.widgets.model_imports import Importer, dropped_files
from napari_openmedlab.widgets.model_jobs import Job, ModelWorker
from napari_openmedlab.widgets.model_rows import ModelRow, State, about, join
from napari_openmedlab.widgets.model_sections import (
    ActionSection,
    FolderSection,
    ListSection,
    WorkSection,
)
from napari_openmedlab.widgets.model_shelf import Shelf
from napari_openmedlab.widgets.panel_end import PanelEnd
from napari_openmedlab.widgets.worker_bridge import ActivityEntry

__all__ = ["ModelsWidget"]

_FILES = "Weights and bundles (*.pth *.pt *.model *.safetensors *.zip);;All files (*)"


class ModelsWidget(QWidget):
    """Lists, fetches, imports, checks and removes weights.

    Everything that takes longer than a moment runs in one thread of its own, one job after the
    other. The panel needs no image and no viewer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._had_parent = False
        self._shelf = Shelf()
        self._jobs: list[Job] = []
        self._all: list[ModelRow] = []
        self._place = Path()
        self.worker = ModelWorker()
        self.activity = ActivityEntry()
        self._end = PanelEnd()
        self._end.add(self.activity.end)
        self._end.add(self.worker.close)
        self.licence: LicenceDialog | None = None
        self._build()
        self.imports = Importer(self._shelf, self.work, self._submit)
        self._connect()
        if self.refresh():
            self.work.status.say(self._greeting())

    def _build(self) -> None:
        self.setMinimumWidth(380)
        self.setAcceptDrops(True)
        self.list = ListSection()
        self.actions = ActionSection()
        self.work = WorkSection()
        self.folder = FolderSection()
        layout = QVBoxLayout(self)
        layout.addWidget(self.list, 1)
        for made in (self.actions, self.work, self.folder):
            layout.addWidget(made)

    def _connect(self) -> None:
        queued = Qt.ConnectionType.QueuedConnection
        self.worker.started.connect(self._on_started, queued)
        self.worker.progressed.connect(self._on_progress, queued)
        self.worker.finished.connect(self._on_finished, queued)
        self.worker.failed.connect(self._on_failed, queued)
        self.activity.cancelled.connect(self.worker.cancel)
        self.list.search.textChanged.connect(self.list.table.search)
        self.list.only_here.toggled.connect(self.refresh)
        self.list.table.chosen.connect(self._on_chosen)
        self.actions.download.clicked.connect(self._on_download)
        self.actions.import_file.clicked.connect(self._on_import)
        self.actions.verify.clicked.connect(self._on_verify)
        self.actions.remove.clicked.connect(self._on_remove)
        self.actions.bundle.clicked.connect(self._on_bundle)
        self.work.cancel.clicked.connect(self.worker.cancel)
        self.folder.open_folder.clicked.connect(self._on_open_folder)
        self.folder.change_folder.clicked.connect(self._on_change_folder)
        for field in (self.folder.mirror, self.folder.proxy):
            field.editingFinished.connect(self._on_network)
        self._end.start(self)

    def sizeHint(self) -> QSize:
        """Ask for room for the first four columns; less will do."""
        return QSize(560, 800)

    # -- what there is ---------------------------------------------------------------------

    def refresh(self, *_: Any) -> bool:
        """Show the catalogue and the store as they are now; ``False`` if that was not possible."""
        entries: tuple[Entry, ...] = ()
        partly: dict[str, int] = {}
        problem = ""
        try:
            settings = self._shelf.settings
            self._place = self._shelf.folder
            self.folder.show_place(self._place, self._shelf.fixed_by)
            self.folder.show_network(settings.mirror, settings.proxy)
            entries, partly = self._shelf.entries(), self._shelf.partly()
        except OpenMedLabError as error:
            problem = str(error)
            self.work.status.say(problem, "error")
        self.imports.awaited -= {entry.record.checkpoint for entry in entries}
        rows = self._all = join(checkpoints(), entries, self.imports.awaited, partly)
        if self.list.only_here.isChecked():
            rows = [row for row in rows if row.record is not None]
        self.list.table.show_rows(rows)
        return not problem

    def _greeting(self) -> str:
        ready = sum(row.state == State.READY for row in self._all)
        count = f"{ready} model{'s' if ready != 1 else ''} ready" if ready else "No model here yet"
        return f"{count}. Download one, or drop weight files on this panel."

    def _on_chosen(self) -> None:
        row = self.list.table.row
        direct = row is not None and row.spec is not None and row.spec.how == "direct"
        here = row is not None and row.record is not None
        begun = row is not None and row.state == State.PARTLY
        text = "Download…" if direct or row is None else "Get in browser…"
        self.actions.download.setText("Go on…" if begun else text)
        self.actions.download.setEnabled(row is not None and row.spec is not None and not here)
        self.actions.verify.setEnabled(here)
        self.actions.remove.setEnabled(here or begun)
        self.list.details.setHtml("" if row is None else about(row, self._place))

    # -- getting weights -------------------------------------------------------------------

    def _on_download(self) -> None:
        """Show the licence of the selected model; go on when it is accepted."""
        row = self.list.table.row
        if row is None or row.spec is None:
            return
        spec = row.spec
        self.licence = LicenceDialog(spec, self)
        self.licence.accepted.connect(lambda: self.fetch(spec))
        self.licence.finished.connect(self._on_licence_closed)
        self.licence.open()

    def _on_licence_closed(self, *_: Any) -> None:
        self.licence = None

    def fetch(self, spec: CheckpointSpec) -> None:
        """Get a checkpoint whose licence was accepted: fetch it, or open its page and wait."""
        if spec.how == "direct":
            self._submit(Job(spec.id, "downloading", spec.title, partial(self._shelf.fetch, spec)))
            return
        self.imports.awaited.add(spec.id)
        self.refresh()
        named = f"Save {spec.file}" if spec.file else "Save the file"
        if QDesktopServices.openUrl(QUrl(spec.page)):
            what = f"The page is open in your browser. {named} there"
        else:
            what = f"No browser could be opened. Go to {spec.page}, save the file"
        self.work.status.say(
            f"{what}, then drop it on this panel while {spec.title} is selected.", "busy"
        )

    def _on_import(self) -> None:
        chosen, _ = QFileDialog.getOpenFileNames(self, "Import weights or a bundle", "", _FILES)
        self.take([Path(path) for path in chosen])

    def take(self, paths: Sequence[Path]) -> None:
        """Import files: weights of any published form, or bundles."""
        row = self.list.table.row
        self.imports.take(paths, "" if row is None else row.key)

    # -- looking after them ----------------------------------------------------------------

    def _on_verify(self) -> None:
        row = self.list.table.row
        if row is not None and row.record is not None:
            work = partial(self._shelf.verify, row.record.name)
            self._submit(Job(row.key, "verifying", row.title, work))

    def _on_remove(self) -> None:
        row = self.list.table.row
        if row is None:
            return
        key, title = row.key, row.title
        if row.record is not None:
            question = f"Delete {title} ({size_text(row.size)}) from this computer?"
            work = partial(self._shelf.remove, row.record.name)
        elif row.spec is not None and row.partly:
            question = f"Delete the {size_text(row.partly)} that have come of {title}?"
            work = partial(self._shelf.discard, row.spec)
        else:
            return

        def answered(number: int) -> None:
            if number == 0:
                self._submit(Job(key, "removing", title, work))

        self.work.question.ask(question, ["Delete", "Keep"], answered)

    def _on_bundle(self) -> None:
        """Pack all models, or the selected one: asked only where that makes a difference."""
        ready = [row for row in self._all if row.state == State.READY]
        chosen = self.list.table.row
        if chosen is None or chosen.record is None or chosen not in ready or len(ready) < 2:
            self._pack(None)
            return
        total = size_text(sum(row.size for row in ready))
        answers = [f"All {len(ready)} ({total})", f"Only {chosen.title}", "Nothing"]
        names = [None, [chosen.record.name]]
        self.work.question.ask(
            "What goes into the bundle?",
            answers,
            lambda number: self._pack(names[number]) if number < len(names) else None,
        )

    def _pack(self, names: list[str] | None) -> None:
        suggested = str(Path.home() / f"openmedlab-models{SUFFIX}")
        chosen, _ = QFileDialog.getSaveFileName(
            self, "Pack a bundle", suggested, f"Bundle (*{SUFFIX})"
        )
        if chosen:
            path = Path(chosen)
            path = path if path.suffix else path.with_suffix(SUFFIX)
            self._submit(Job("", "packing", path.name, partial(self._shelf.pack, path, names)))

    def _on_open_folder(self) -> None:
        folder = self._place
        if not folder.is_dir():
            self.work.status.say(f"{folder} comes into being with the first model.")
        elif not QDesktopServices.openUrl(QUrl.fromLocalFile(str(folder))):
            self.work.status.say(f"No file manager could be opened for {folder}.", "error")

    def _on_change_folder(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Keep the models in", str(self._place))
        if not chosen:
            return
        before, ready = self._place, [row for row in self._all if row.state == State.READY]
        self._change(folder=str(Path(chosen).absolute()))
        if not ready or self._place == before:
            return

        def answered(number: int) -> None:
            if number == 0:
                work = partial(self._shelf.move, before)
                self._submit(Job("", "moving", f"models to {self._place}", work))

        total = size_text(sum(row.size for row in ready))
        count = f"{len(ready)} model{'s' if len(ready) > 1 else ''}"
        self.work.question.ask(
            f"Move the {count} ({total}) from {before} as well?", ["Move", "Leave"], answered
        )

    def _on_network(self) -> None:
        self._change(
            mirror=self.folder.mirror.text().strip(), proxy=self.folder.proxy.text().strip()
        )

    def _change(self, **settings: Any) -> None:
        try:
            said = self._shelf.change(**settings)
        except OpenMedLabError as error:
            self.work.status.say(str(error), "error")
            return
        if said:
            self.work.status.say(said, "done")
        self.refresh()

    # -- the worker's reports --------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether something runs, waits, or has ended without having been reported here."""
        return bool(self._jobs)

    def _submit(self, job: Job) -> None:
        self.list.table.show_doing(job.key, "waits its turn" if self._jobs else job.doing)
        self._jobs.append(job)
        self.worker.submit(job)
        self.work.cancel.show()

    def _on_started(self, job: Job) -> None:
        self.work.bar.setRange(0, 0)
        self.work.bar.show()
        self.work.cancel.show()
        self.work.status.say(f"{job.doing.capitalize()} {job.title}…", "busy")
        self.list.table.show_doing(job.key, job.doing)
        self.activity.begin(f"{job.doing} {job.title}")

    def _on_progress(self, job: Job, progress: Progress) -> None:
        if job not in self._jobs:
            return  # a late report: napari's progress bar lets events overtake each other
        share = min(1.0, progress.done / progress.total) if progress.total else 0.0
        self.work.bar.setRange(0, 1000 if progress.total else 0)
        self.work.bar.setValue(round(1000 * share))
        words = progress.text or f"{job.doing.capitalize()} {job.title}…"
        self.work.status.say(words, "busy")
        percent = f" {share:.0%}" if progress.total else ""
        self.list.table.show_doing(job.key, f"{job.doing}{percent}")
        self.activity.report(Progress(round(1000 * share), 1000 if progress.total else 0))

    def _on_finished(self, job: Job, sentence: str) -> None:
        self._over(job)
        self.work.status.say(sentence, "done")
        self.refresh()

    def _on_failed(self, job: Job, error: OpenMedLabError) -> None:
        self._over(job)
        asked = job.otherwise is not None and job.otherwise(error)
        if asked:
            self.work.status.say(f"{job.title} needs an answer from you, above.", "unsure")
        elif isinstance(error, Cancelled):
            self.work.status.say(f"Cancelled: {job.doing} {job.title}.")
        else:
            self.work.status.say(str(error), "error")
        self.refresh()

    def _over(self, job: Job) -> None:
        self._jobs.remove(job)
        self.list.table.show_doing(job.key, "")
        if not self._jobs:
            self.work.bar.hide()
            self.work.cancel.hide()
            self.activity.end()

    # -- drops, and the end ----------------------------------------------------------------

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """Welcome files; anything else goes its way."""
        if dropped_files(event):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        """Import the files."""
        paths = dropped_files(event)
        if paths:
            event.acceptProposedAction()
            self.take(paths)

    def event(self, event: QEvent) -> bool:
        """Stop when the panel is taken out of the window."""
        if event.type() == QEvent.Type.ParentChange:
            if self.parent() is not None:
                self._had_parent = True
            elif self._had_parent:
                self._end.call()
        return bool(super().event(event))
