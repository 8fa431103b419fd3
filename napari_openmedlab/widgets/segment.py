"""The Segment panel: assembles its parts and shows the state of the session at work.

The panel holds no work of its own. Objects, prompts and masks live in the session; the tools
and the requests on their way in the :class:`~.controller.SegmentController`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import napari
from napari.layers import Image, Layer
from napari.utils.notifications import show_error
from qtpy.QtCore import QEvent, QTimer
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_openmedlab.bridge.sessions import ViewerSessions
from napari_openmedlab.bridge.viewer import plain_viewer
from napari_openmedlab.errors import OpenMedLabError
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.session.autosave import discard
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets import session_files as files
from napari_openmedlab.widgets.controller import SegmentController
from napari_openmedlab.widgets.engine_panel import EnginePanel
from napari_openmedlab.widgets.file_actions import FileActions
from napari_openmedlab.widgets.image_chooser import LayerChooser
from napari_openmedlab.widgets.layer_actions import LayerActions
from napari_openmedlab.widgets.live_options import can_propagate
from napari_openmedlab.widgets.local_models import LocalModels
from napari_openmedlab.widgets.model_door import open_models
from napari_openmedlab.widgets.panel_life import PanelLife
from napari_openmedlab.widgets.recovery import RecoveryBar, recoverable_for
from napari_openmedlab.widgets.sections import (
    EngineSection,
    FileSection,
    ImageSection,
    ObjectSection,
    PromptSection,
    RunSection,
    scrolled,
)
from napari_openmedlab.widgets.tools import TOOLS, Tool, guidance, kinds_of
from napari_openmedlab.widgets.view_buttons import ViewButtons
from napari_openmedlab.widgets.workplace import Workplace

__all__ = ["SegmentWidget"]

_WIDTH = 330


class SegmentWidget(QWidget):
    """Segment structures by prompts: points, boxes, clicks, strokes, masks.

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
        self.controller: SegmentController | None = None
        self._build()
        self._models = LocalModels(self)
        self._engine = EnginePanel(self.engine, self._models, self)
        self._layers = LayerActions(viewer, self.sessions, self.prompts, lambda: self.controller)
        self._files = FileActions(self.files, self, lambda: self.session)
        letters = self.sessions.preferences.letters
        self._views = ViewButtons(viewer, self.image, letters=letters, parent=self)
        self._life.at_end(self._views.stop)
        self._refresher = QTimer(self)
        self._refresher.setSingleShot(True)
        self._refresher.timeout.connect(self._refresh)
        self._chooser = LayerChooser(viewer, self.image.choice, _is_image, parent=self)
        self._connect()
        self._chooser.refresh()
        self._refresh()

    @property
    def session(self) -> Session | None:
        """The session at work, if an image is chosen that can be segmented."""
        return None if self.controller is None else self.controller.session

    @property
    def sessions(self) -> ViewerSessions:
        """All sessions of this viewer."""
        return self._life.sessions

    # -- building --------------------------------------------------------------------------

    def _build(self) -> None:
        self.setMinimumWidth(_WIDTH)
        self.image = ImageSection()
        self.recovery = RecoveryBar()
        self.engine = EngineSection()
        self.prompts = PromptSection()
        self.run = RunSection()
        self.objects = ObjectSection()
        self.files = FileSection()
        parts = (
            self.image,
            self.recovery,
            self.engine,
            self.prompts,
            self.run,
            self.objects,
            self.files,
        )
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(scrolled(parts))

    def _connect(self) -> None:
        self._chooser.chosen.connect(self._on_image)
        self._engine.chosen.connect(self._on_engine)
        self._engine.overlap_chosen.connect(self._on_overlap)
        self.prompts.tool_clicked.connect(self._on_tool)
        self.prompts.inside.clicked.connect(lambda: self._do("set_positive", True))
        self.prompts.outside.clicked.connect(lambda: self._do("set_positive", False))
        self.prompts.brush.valueChanged.connect(lambda value: self._do("set_brush", value))
        self._layers.said.connect(self.say)
        self.run.models.clicked.connect(self._on_models_asked)
        self.engine.form.models_asked.connect(self._on_models_asked)
        self._models.changed.connect(self._on_models)
        self.prompts.clear.clicked.connect(lambda: self._do("clear_prompts"))
        self.run.auto.toggled.connect(self._on_auto)
        for made, command in (
            (self.run.run, "run"),
            (self.run.propagate, "propagate"),
            (self.run.cancel, "cancel"),
            (self.run.undo, "undo"),
            (self.run.redo, "redo"),
            (self.objects.new, "new_object"),
            (self.objects.accept, "accept"),
            (self.objects.jump, "jump"),
            (self.objects.delete, "delete"),
        ):
            made.clicked.connect(lambda _=False, name=command: self._do(name))
        self.objects.table.activated_object.connect(lambda n: self._do("activate", n))
        self.objects.table.changed.connect(self._on_table)
        self._files.said.connect(self.say)
        self._files.saved.connect(self._life.note_saved)
        self._files.session_chosen.connect(self._replace_session)
        self._files.objects_added.connect(lambda ids: self._do("run_for", ids))
        self.recovery.restore_asked.connect(self._on_restore)
        self._life.start(self, self._chooser)
        self._life.activity.cancelled.connect(lambda: self._do("cancel"))
        for signal, slot in self._heard():
            signal.connect(slot)
        self._life.at_end(self._stop_hearing)

    def _heard(self) -> tuple[tuple[Any, Any], ...]:
        """Return what is listened to at the sessions, which may outlive the panel."""
        sessions = self.sessions
        return (
            (sessions.notice, self._on_notice),
            (sessions.image_changed, self._on_image_changed),
            (sessions.image_removed, self._on_image_removed),
        )

    def _stop_hearing(self) -> None:
        for signal, slot in self._heard():
            signal.disconnect(slot, missing_ok=True)
        session = self.session
        for signal in () if session is None else _signals_of(session):
            signal.disconnect(self._schedule, missing_ok=True)

    def _do(self, command: str, *values: Any) -> None:
        """Send a command to the controller of the session at work."""
        if self.controller is not None:
            getattr(self.controller, command)(*values)
        else:
            self.say("Choose an image to begin.")

    # -- sessions --------------------------------------------------------------------------

    def _on_image(self, image: Layer | None) -> None:
        """Put the session of the chosen image to work."""
        self._leave()
        if image is None:
            self.say("Open an image to begin: File > Open, or File > Open Sample.")
            self._refresh()
            return
        try:
            session = self.sessions.open(image)
        except OpenMedLabError as error:
            self.say(str(error), "error")
            self._refresh()
            return
        self._enter(image, session)
        self._offer_recovery(session)

    def _enter(self, image: Layer, session: Session) -> None:
        controller = SegmentController(
            self._viewer, image, session, self._life.worker, lambda: self._engine.need(session)
        )
        self.controller = self._life.controller = controller
        controller.said.connect(self.say)
        controller.tool_changed.connect(self._schedule)
        controller.busy_changed.connect(self._on_busy)
        controller.progressed.connect(self._on_progress)
        controller.answered.connect(lambda answer: self._engine.note_answer(answer.provenance))
        for signal in _signals_of(session):
            signal.connect(self._schedule)
        spacing = min(session.volume.geometry.spacing[1:])
        self.prompts.brush.blockSignals(True)
        self.prompts.brush.setSuffix(f" {session.volume.geometry.unit}")
        self.prompts.brush.setRange(spacing, 100 * spacing)
        self.prompts.brush.setSingleStep(spacing)
        self.prompts.brush.setValue(controller.state.brush)
        self.prompts.brush.blockSignals(False)
        self.say("Choose a tool, then click on the image.")
        self._schedule()

    def _leave(self) -> None:
        """Put the session at work aside; it and its layers stay."""
        controller, self.controller = self.controller, None
        self._life.controller = None
        self.recovery.offer(None)
        if controller is not None:
            for signal in _signals_of(controller.session):
                signal.disconnect(self._schedule, missing_ok=True)
            controller.close()
        self._on_busy(False)

    def _on_image_changed(self, session: Session) -> None:
        """Begin anew on an image whose data or place were changed; masks are carried over."""
        if self.session is session and self._chooser.layer is not None:
            self._on_image(self._chooser.layer)

    def _on_image_removed(self, session: Session) -> None:
        if self.session is session:
            self.say("The image was deleted; its objects stay in their labels layer.")

    def _offer_recovery(self, session: Session) -> None:
        autosave = self.sessions.autosave_of(session)
        own = None if autosave is None else autosave.path
        if not session.objects:
            found = recoverable_for(session.volume)
            self.recovery.offer(None if found is None or found.path == own else found)

    def _on_restore(self, entry: Any) -> None:
        if self._replace_session(entry.path):
            discard(entry.path)

    def _replace_session(self, path: Path) -> bool:
        """Put a saved session in the place of the one at work."""
        image = self._chooser.layer
        if image is None:
            return False
        try:
            session = files.open_session(path, self._viewer, self.sessions, image)
        except OpenMedLabError as error:
            self._fail(error)
            return False
        self._leave()
        self._enter(image, session)
        count = len(session.objects)
        self.say(f"Session opened: {count} object{'s' if count != 1 else ''}.", "done")
        return True

    # -- what the user does ----------------------------------------------------------------

    def _on_tool(self, tool: Tool | None) -> None:
        self._do("choose_tool", tool)
        self._schedule()

    def _on_table(self, object_id: int, fields: dict[str, Any]) -> None:
        self._do("update", object_id, fields)
        self._schedule()  # puts back what the session refused

    def _on_engine(self, choice: Any) -> None:
        self._change(lambda session: setattr(session, "choice", choice))
        if self.session is not None and (need := self._engine.need(self.session)):
            self.say(need.text, "unsure")

    def _on_models_asked(self) -> None:
        if self.session is not None:
            open_models(self._viewer, self._engine.spec(self.session))

    def _on_models(self) -> None:
        """Go on with what waited, now that there are other models."""
        self._do("try_again")
        self._schedule()

    def _on_overlap(self, rule: Any) -> None:
        self._change(lambda session: setattr(session, "overlap", rule))

    def _on_auto(self, on: bool) -> None:
        if self.session is not None and self.session.choice.auto_run != on:
            self._on_engine(self._engine.with_auto_run(self.session.choice, on))

    def _change(self, command: Any) -> None:
        try:
            if self.session is not None:
                command(self.session)
        except OpenMedLabError as error:
            self._fail(error)
        self._schedule()

    def load_prompts(self, path: Path) -> None:
        """Add the objects of a prompts file and ask the engine for each of them."""
        self._files.load_prompts(path)

    def take_prompts_of(self, layer: Layer) -> None:
        """Make one object for each point, shape or name of a layer, and segment them all."""
        self._layers.use_layer(layer)

    # -- what the user sees ----------------------------------------------------------------

    def say(self, text: str, severity: str = "info") -> None:
        """Show a sentence in the status line; errors also as napari notification."""
        self.run.status.say(text, severity)
        if severity == "error":
            show_error(text)

    def _fail(self, error: OpenMedLabError) -> None:
        self.say(str(error), "error")

    def _on_notice(self, text: str) -> None:
        self.say(text, "unsure")

    def _on_busy(self, busy: bool) -> None:
        self.run.bar.setVisible(busy)
        self.run.cancel.setEnabled(busy)
        if busy:
            self.run.bar.setRange(0, 0)
            self._life.activity.begin("napari-openmedlab")
        else:
            self._life.activity.end()

    def _on_progress(self, progress: Any) -> None:
        self.run.bar.setRange(0, progress.total)
        self.run.bar.setValue(progress.done)
        self._life.activity.report(progress)

    def _schedule(self, *_: Any) -> None:
        """Refresh once the events at hand are done."""
        self._refresher.start(0)

    def _refresh(self) -> None:
        session = self.session
        for part in (self.engine, self.prompts, self.run.run, self.objects, self.files):
            part.setEnabled(session is not None)
        self.objects.table.show_session(session)
        self._views.show(session)
        controller = self.controller
        if session is None or controller is None:
            self.prompts.show_tool(None, True)
            self.prompts.guide.setText("")
            self.run.undo.setEnabled(False)
            self.run.redo.setEnabled(False)
            return
        self._engine.show(session)
        spec, need = self._engine.spec(session), self._engine.need(session, fresh=False)
        self.run.propagate.setVisible(can_propagate(spec))
        self.run.models.setVisible(need is not None and need.models)
        self._show_prompts(session, controller)
        self.run.auto.setChecked(session.choice.auto_run)
        self.run.undo.setEnabled(session.can_undo)
        self.run.redo.setEnabled(session.can_redo)
        self.objects.show_active(session.active)

    def _show_prompts(self, session: Session, controller: SegmentController) -> None:
        state = controller.state
        self.prompts.show_tool(state.tool, state.positive)
        accepted = self._engine.accepted(session)
        for tool, made in self.prompts.tools.items():
            made.setEnabled(TOOLS[tool].kind in accepted)
        self.prompts.mask.setEnabled("mask" in accepted)
        active = session.active
        prompts = PromptSet() if active is None else active.prompts
        frame = session.volume.geometry.frame
        corner = state.corner is not None
        self.prompts.guide.setText(
            guidance(state.tool, prompts, frame, state.positive, corner=corner)
        )
        name = "New object" if active is None else active.name
        self.prompts.count.setText(f"{name}: {kinds_of(prompts)}")
        self.prompts.clear.setEnabled(not prompts.is_empty)

    def showEvent(self, event: QShowEvent) -> None:
        """Look again which models there are: much may have happened meanwhile."""
        super().showEvent(event)
        self._models.look()

    def event(self, event: QEvent) -> bool:
        """Stop for good when the panel is taken out of the window."""
        if event.type() == QEvent.Type.ParentChange:
            if self.parent() is not None:
                self._had_parent = True
            elif self._had_parent:
                self._life.end(remove_layers=True)
        return bool(super().event(event))


def _is_image(layer: Layer) -> bool:
    return isinstance(layer, Image)


def _signals_of(session: Session) -> tuple[Any, ...]:
    return (
        session.objects_changed,
        session.active_changed,
        session.prompts_changed,
        session.labels_changed,
        session.choice_changed,
        session.history_changed,
    )
