"""The Organs panel: names many structures at once; each is an object that prompts can refine.

The panel holds no work of its own: structures become objects of the viewer's session for the
image, the one that the Segment panel works on too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import napari
from napari.layers import Image, Layer
from napari.utils.notifications import show_error
from qtpy.QtCore import QEvent, QTimer
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QFileDialog, QVBoxLayout, QWidget

from napari_openmedlab.bridge.positions import jump_to, visible_box
from napari_openmedlab.bridge.viewer import plain_viewer
from napari_openmedlab.errors import OpenMedLabError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.organ_table import write_csv
from napari_openmedlab.session.arrivals import Arrival
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.image_chooser import LayerChooser
from napari_openmedlab.widgets.local_models import LocalModels
from napari_openmedlab.widgets.model_door import open_models
from napari_openmedlab.widgets.organ_desk import OrganDesk
from napari_openmedlab.widgets.organ_models import OrganModels
from napari_openmedlab.widgets.organ_sections import (
    GoSection,
    ModelSection,
    ResultSection,
    ScanSection,
    StructureSection,
)
from napari_openmedlab.widgets.panel_life import PanelLife
from napari_openmedlab.widgets.sections import scrolled
from napari_openmedlab.widgets.workplace import Workplace

__all__ = ["OrgansWidget"]

_WIDTH = 420
_SHOWN = 6  # names spelled out in a sentence


class OrgansWidget(QWidget):
    """Name the structures of a CT at once, measure them, and refine any of them.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        viewer = plain_viewer(viewer)
        self._viewer = viewer
        self.workplace = Workplace.of(viewer)
        self._life = PanelLife(self.workplace)
        self._had_parent = False
        self._waits = False
        self._build()
        self._local = LocalModels(self)
        self.models = OrganModels(self.model, self._local, self)
        self.desk = OrganDesk(self._life.worker, self)
        self._life.at_end(self._stop)
        self._refresher = QTimer(self)
        self._refresher.setSingleShot(True)
        self._refresher.timeout.connect(self._refresh)
        self._chooser = LayerChooser(viewer, self.scan.choice, _is_image, parent=self)
        self._session: Session | None = None
        self._connect()
        self._chooser.refresh()
        self.models.look()
        self._refresh()

    @property
    def session(self) -> Session | None:
        """The session of the chosen image, if it can be segmented."""
        return self._session

    # -- building --------------------------------------------------------------------------

    def _build(self) -> None:
        self.setMinimumWidth(_WIDTH)
        self.scan = ScanSection()
        self.model = ModelSection()
        self.structures = StructureSection()
        self.go = GoSection()
        self.results = ResultSection()
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        parts = (self.scan, self.model, self.structures, self.go, self.results)
        outer.addWidget(scrolled(parts))

    def _connect(self) -> None:
        tree = self.structures.tree
        self.models.names_changed.connect(lambda: tree.show_names(self.models.class_names))
        self.models.changed.connect(self._on_models)
        self.models.said.connect(self.say)
        self.model.get.clicked.connect(self._on_get)
        self.structures.search.textChanged.connect(tree.search)
        self.structures.all.clicked.connect(lambda: self._tick(True))
        self.structures.none.clicked.connect(lambda: self._tick(False))
        tree.changed.connect(self._schedule)
        self.go.run.clicked.connect(lambda: self.run())
        self.go.cancel.clicked.connect(lambda: self.desk.cancel())
        self.go.undo.clicked.connect(self._on_undo)
        self.results.save.clicked.connect(self._on_save)
        self.results.table.picked.connect(self.show_object)
        desk = self.desk
        desk.said.connect(self.say)
        desk.busy_changed.connect(self._on_busy)
        desk.progressed.connect(self._on_progress)
        desk.arrived.connect(self._on_arrived)
        desk.measured.connect(self._schedule)
        self._chooser.chosen.connect(self._on_image)
        self._life.start(self, self._chooser)
        self._life.activity.cancelled.connect(lambda: self.desk.cancel())
        for signal, slot in self._heard():
            signal.connect(slot)

    def _heard(self) -> tuple[tuple[Any, Any], ...]:
        """Return what is listened to at the sessions, which may outlive the panel."""
        sessions = self.workplace.sessions
        return (
            (sessions.opened, self._on_opened),
            (sessions.image_changed, self._on_image_changed),
            (sessions.image_removed, self._on_image_removed),
        )

    def _stop(self) -> None:
        """Stop listening: the panel ends."""
        for signal, slot in self._heard():
            signal.disconnect(slot, missing_ok=True)
        self._follow(None)
        self.desk.close()

    # -- sessions --------------------------------------------------------------------------

    def _on_image(self, image: Layer | None) -> None:
        if self.desk.busy:
            self.desk.cancel("Cancelled, as another image was chosen; nothing was changed.")
        self._follow(None)
        if image is None:
            self.say("Open a CT to begin: File > Open, or File > Open Sample.")
            return
        try:
            self._follow(self.workplace.sessions.open(image))
        except OpenMedLabError as error:
            self.say(str(error), "error")
            return
        self.say("Tick the structures you want, then press Name structures.")

    def _follow(self, session: Session | None) -> None:
        """Show this session, and listen to it."""
        if self._session is not None:
            for signal in _signals_of(self._session):
                signal.disconnect(self._schedule, missing_ok=True)
        self._session = session
        if session is not None:
            for signal in _signals_of(session):
                signal.connect(self._schedule)
        self.desk.follow(session)
        self._schedule()

    def _on_opened(self, session: Session) -> None:
        """Follow a session that was put in the place of the one at work."""
        image = self._chooser.layer
        if image is not None and self.workplace.sessions.session_of(image) is session:
            if self.desk.busy and session is not self._session:
                self.desk.cancel("Cancelled, as another session was opened.")
            self._follow(session)

    def _on_image_changed(self, session: Session) -> None:
        if session is self._session:
            self._on_image(self._chooser.layer)

    def _on_image_removed(self, session: Session) -> None:
        if session is self._session and self.desk.busy:
            self.desk.cancel("Cancelled, as the image was deleted; nothing was changed.")

    # -- runs ------------------------------------------------------------------------------

    def run(self) -> None:
        """Name the ticked structures."""
        session, image = self._session, self._chooser.layer
        chosen = self.structures.tree.chosen()
        if session is None or image is None:
            self.say("Choose an image to begin.")
            return
        if need := self.models.need():
            self._waits = need.models
            self.say(need.text, "unsure")
            return
        if not chosen:
            self.say("Tick at least one structure.", "unsure")
            return
        region = self._region(session, image)
        if region.is_empty:
            self.say("The view shows nothing of the scan; zoom out, or take all of it.", "unsure")
            return
        self._waits = False
        try:
            spec, options = self.models.request(chosen)
            self.desk.run(session, spec.id, region, options, chosen)
        except OpenMedLabError as error:
            self.say(str(error), "error")

    def _region(self, session: Session, image: Layer) -> Box:
        shape = session.volume.geometry.shape
        if self.scan.region.currentData() == "view":
            return visible_box(self._viewer, image, shape)
        return Box.whole(shape)

    def _on_arrived(self, arrival: Arrival) -> None:
        """Tell what was found; the labels layer is back if it was deleted meanwhile."""
        if self._session is not None and self._chooser.layer in self._viewer.layers:
            self.workplace.sessions.labels_of(self._session)
        count = len(arrival.ids)
        text = f"{count} of {len(arrival.chosen)} structures in {arrival.found.seconds:.0f} s."
        if arrival.left:
            text += f" Left as you made them: {_listed(arrival.left)}."
        self.say(text, "done" if count else "unsure")
        notes = list(arrival.found.notes)
        if arrival.absent and count:
            notes.append(f"Not found: {_listed(arrival.absent)}.")
        self.go.notes.setText("\n".join(notes))
        self.go.notes.setVisible(bool(notes))
        self._schedule()

    def _on_undo(self) -> None:
        if self._session is not None and not self._session.undo():
            self.say("Nothing to undo.")

    # -- models and structures -------------------------------------------------------------

    def _on_models(self) -> None:
        """Go on with what waited for a model, if it is here now."""
        self._schedule()
        if self._waits and self.models.need() is None:
            self.run()

    def _on_get(self) -> None:
        open_models(self._viewer, self.models.spec)

    def _tick(self, on: bool) -> None:
        tree = self.structures.tree
        found, chosen = set(tree.found()), set(tree.chosen())
        tree.choose(chosen | found if on else chosen - found)

    # -- results ---------------------------------------------------------------------------

    def show_object(self, object_id: int) -> None:
        """Make an object the active one and go to its middle."""
        session, image = self._session, self._chooser.layer
        if session is None or session.state.find(object_id) is None:
            return
        session.set_active(object_id)
        box = session.mask_of(object_id).box
        if image is not None and not box.is_empty:
            middle = [(a + b) // 2 for a, b in zip(box.start, box.stop, strict=True)]
            jump_to(self._viewer, image, middle)

    def _on_save(self) -> None:
        session = self._session
        if session is None or not self.desk.rows:
            self.say("There is nothing to save yet.", "unsure")
            return
        suggested = str(Path.home() / f"{session.volume.name or 'organs'}.csv")
        chosen, _ = QFileDialog.getSaveFileName(self, "Save the table", suggested, "CSV (*.csv)")
        if chosen:
            self.save_table(Path(chosen))

    def save_table(self, path: Path) -> None:
        """Write the measured objects as a CSV file."""
        path = path if path.suffix else path.with_suffix(".csv")
        try:
            self.say(f"Written: {write_csv(path, self.desk.rows)}", "done")
        except OpenMedLabError as error:
            self.say(str(error), "error")

    # -- what the user sees ----------------------------------------------------------------

    def say(self, text: str, severity: str = "info") -> None:
        """Show a sentence in the status line; errors also as napari notification."""
        self.go.status.say(text, severity)
        if severity == "error":
            show_error(text)

    def _on_busy(self, busy: bool) -> None:
        self.go.bar.setVisible(busy)
        if busy:
            self.go.bar.setRange(0, 0)
            self._life.activity.begin("naming structures")
        else:
            self._life.activity.end()
        self._schedule()

    def _on_progress(self, progress: Any) -> None:
        self.go.bar.setRange(0, progress.total)
        self.go.bar.setValue(progress.done)
        self._life.activity.report(progress)

    def _schedule(self, *_: Any) -> None:
        """Refresh once the events at hand are done."""
        self._refresher.start(0)

    def _refresh(self) -> None:
        session, tree = self._session, self.structures.tree
        self.structures.count.setText(f"{len(tree.chosen())} of {len(tree.names)}")
        self.go.run.setEnabled(session is not None and not self.desk.busy)
        self.go.cancel.setEnabled(self.desk.busy)
        self.go.undo.setEnabled(session is not None and session.can_undo)
        self.results.save.setEnabled(bool(self.desk.rows))
        self.results.table.show_rows(session, self.desk.rows)
        notes = () if session is None else session.volume.notes
        self.scan.note.setText("\n".join(notes))
        self.scan.note.setVisible(bool(notes))

    def showEvent(self, event: QShowEvent) -> None:
        """Look again which models there are."""
        super().showEvent(event)
        self._local.look()

    def event(self, event: QEvent) -> bool:
        """Stop for good when the panel is taken out of the window."""
        if event.type() == QEvent.Type.ParentChange:
            if self.parent() is not None:
                self._had_parent = True
            elif self._had_parent:
                self._life.end()
        return bool(super().event(event))


def _is_image(layer: Layer) -> bool:
    return isinstance(layer, Image)


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _signals_of(session: Session) -> tuple[Any, ...]:
    return (session.objects_changed, session.active_changed, session.history_changed)
