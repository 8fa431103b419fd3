"""The commands of the Segment panel on one session: prompts in, masks out.

Everything here runs in the window's thread. The controller holds what is neither the session's
(work) nor the panel's (looks): which tool is on, which requests wait for an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from app_model.types import KeyCode, KeyMod
from napari.layers import Layer
from qtpy.QtCore import QTimer, Signal

from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import MaskPrompt, Point, PromptSet
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.answers import waits_for
from napari_openmedlab.widgets.canvas_input import CanvasInput
from napari_openmedlab.widgets.gestures import Gesture, ToolState, prompts_after, rectangle_path
from napari_openmedlab.widgets.hints import Hints
from napari_openmedlab.widgets.live_options import LiveOptions, works_by_slice
from napari_openmedlab.widgets.local_models import Need
from napari_openmedlab.widgets.object_commands import ObjectCommands
from napari_openmedlab.widgets.point_rows import COLOURS
from napari_openmedlab.widgets.prompt_layers import PromptLayers
from napari_openmedlab.widgets.requests import RequestDesk
from napari_openmedlab.widgets.tools import SIGN_KEY, TOOLS, Tool
from napari_openmedlab.widgets.worker_bridge import WorkerBridge

__all__ = ["SegmentController"]


class SegmentController(ObjectCommands):
    """One session in one viewer: turns gestures and buttons into commands of the session.

    Parameters
    ----------
    viewer : napari.Viewer
    image : Layer
        The image layer of the session.
    session : Session
    worker : WorkerBridge
        Shared by all sessions of a panel.
    need : callable() -> Need or None
        What the session's engine lacks to run.

    Attributes
    ----------
    tool_changed : Signal()
        Tool, sign or a waiting corner changed.
    busy_changed : Signal(bool)
    progressed : Signal(Progress)
    answered : Signal(Prediction)
    """

    tool_changed = Signal()
    busy_changed = Signal(bool)
    progressed = Signal(object)
    answered = Signal(object)

    def __init__(
        self,
        viewer: Any,
        image: Layer,
        session: Session,
        worker: WorkerBridge,
        need: Callable[[], Need | None],
    ) -> None:
        super().__init__(viewer, image, session)
        self._state = ToolState(brush=4 * min(session.volume.geometry.spacing[1:]))
        self._closed = False
        self._look_again = QTimer(self)
        self._look_again.setSingleShot(True)
        self._look_again.timeout.connect(self._check_active_layer)
        self.layers = PromptLayers(viewer, image, session.volume)
        self._live = LiveOptions(image, self.layers.hidden_axis)
        self._desk = RequestDesk(session, worker, self._live, need, self)
        for name in ("said", "busy_changed", "progressed", "answered"):
            getattr(self._desk, name).connect(getattr(self, name))
        self._input = CanvasInput(
            viewer,
            image,
            self.layers.hidden_axis,
            on_gesture=self._on_gesture,
            on_drawing=self._on_drawing,
            on_message=lambda text: self.said.emit(text, "error"),
        )
        self._hints = Hints(
            session, worker, self._input, self.layers, self._live, lambda: need() is None
        )
        self._connect()
        self._show_prompts()

    def close(self, *, remove_layers: bool = True) -> None:
        """Stop listening, cancel what runs, take our prompt layers away; the session stays."""
        if self._closed:
            return
        self._closed = True
        self._hints.stop()
        self._input.unbind()
        self._desk.close()
        self._connect(off=True)
        self.layers.close(remove=remove_layers)

    @property
    def state(self) -> ToolState:
        """How the next gesture is read: tool, sign, brush, a corner that waits."""
        return self._state

    @property
    def tool(self) -> Tool | None:
        """The tool that is on."""
        return self._state.tool

    @property
    def positive(self) -> bool:
        """Whether clicks and strokes mean inside."""
        return self._state.positive

    # -- tools -----------------------------------------------------------------------------

    def choose_tool(self, tool: Tool | None) -> None:
        """Switch a tool on (or all off): its mouse and keys work on our points layer only."""
        self._input.unbind()
        self._state = replace(self._state, tool=tool, corner=None)
        if tool is not None:
            points = self.layers.ensure_points()
            self._viewer.layers.selection.active = points
            self._input.bind(points, drags=TOOLS[tool].drags, keys=self._keys())
            points.events.mode.connect(self._on_mode)
        self._hints.follow(self._state)
        self._show_prompts()
        self.tool_changed.emit()

    def set_positive(self, positive: bool) -> None:
        """Let clicks and strokes mean inside, or outside."""
        self._state = replace(self._state, positive=positive)
        self._hints.follow(self._state)
        self.tool_changed.emit()

    def set_brush(self, diameter: float) -> None:
        """Set the diameter of the scribble's brush, in the unit of the volume."""
        self._state = replace(self._state, brush=diameter)

    def _keys(self) -> dict[Any, Any]:
        keys: dict[Any, Any] = {
            info.key: (lambda t=tool: self.choose_tool(t)) for tool, info in TOOLS.items()
        }
        keys[SIGN_KEY] = lambda: self.set_positive(not self.positive)
        keys["N"] = self.accept
        keys["Enter"] = self.run
        keys["Escape"] = self._on_escape
        keys[KeyMod.CtrlCmd | KeyCode.KeyZ] = self.undo
        keys[KeyMod.CtrlCmd | KeyMod.Shift | KeyCode.KeyZ] = self.redo
        return keys

    def _on_escape(self) -> None:
        """Give up a box in the making, else switch the tool off."""
        if self._state.corner is not None:
            self._set_corner(None)
        else:
            self.choose_tool(None)

    def _on_active_layer(self, event: Any = None) -> None:
        """Look again in a moment: napari selects every new layer, if only in passing."""
        if self.tool is not None:
            self._look_again.start(0)

    def _check_active_layer(self) -> None:
        """Switch the tool off if the user turned to another layer."""
        active = self._viewer.layers.selection.active
        if self.tool is not None and not self._closed and active is not self.layers.points:
            self.choose_tool(None)

    # -- gestures --------------------------------------------------------------------------

    def _on_gesture(self, gesture: Gesture) -> None:
        self.layers.end_stroke()
        self._try(lambda: self._take(gesture))

    def _take(self, gesture: Gesture) -> None:
        after = prompts_after(gesture, self._prompts(), self._state, self.session.volume.geometry)
        if isinstance(after, PromptSet):
            self._state = replace(self._state, corner=None)
            if self.session.active is None:
                self.session.add_object()
            self._live.note_axis(self.session.get().id, gesture.axis)
            self.set_prompts(after)
            self.tool_changed.emit()
        else:
            self._set_corner(after)

    def _on_drawing(self, gesture: Gesture) -> None:
        if self.tool is Tool.BOX:
            self.layers.show_stroke(rectangle_path(gesture), COLOURS["corner", True], 0.8)
            return
        sign = self.positive != gesture.swapped
        finest = min(self.session.volume.geometry.spacing[1:])
        width = max(1.0, self._state.brush / finest)
        self.layers.show_stroke(gesture.path, COLOURS["scribble", sign], width)

    def _set_corner(self, corner: Point | None) -> None:
        if corner != self._state.corner:
            self._state = replace(self._state, corner=corner)
            self._show_prompts()
            self.tool_changed.emit()

    # -- prompts and answers ---------------------------------------------------------------

    def _prompts(self) -> PromptSet:
        """Return the active object's prompts (an empty set without one)."""
        active = self.session.active
        return active.prompts if active is not None else PromptSet()

    def set_prompts(self, prompts: PromptSet) -> None:
        """Give the active object these prompts (made now if there is none) and run if wanted."""
        if self.session.active is None:
            self.session.add_object()
        self.session.set_prompts(prompts)
        if not self.session.choice.auto_run:
            self.said.emit("Prompts set. Press Run when they are complete.", "info")
        elif reason := self._waits_for(prompts):
            self.said.emit(reason, "info")
        else:
            self.run()

    def clear_prompts(self) -> None:
        """Take all prompts of the active object away."""
        self._desk.cancel()
        self._set_corner(None)
        self._try(self.session.clear_prompts)
        self._show_prompts()

    def use_mask(self, patch: MaskPatch, geometry: Any) -> None:
        """Take an existing mask as the active object's prompt."""
        if patch.is_empty:
            self.said.emit("That label has no voxel; choose another label or layer.", "error")
            return
        prompt = MaskPrompt(patch, geometry)
        self._try(lambda: self.set_prompts(replace(self._prompts(), mask=prompt)))

    def run(self) -> None:
        """Ask the engine for the active object, with the prompts there are."""
        self._try(self._desk.submit)

    def propagate(self) -> None:
        """Ask the engine to carry the active object on through the slices, this once."""
        self._try(lambda: self._desk.submit(propagate=True))

    def run_for(self, object_ids: Iterable[int]) -> None:
        """Ask the engine for several objects, one after the other."""
        self._desk.submit_all(object_ids)

    def try_again(self) -> None:
        """Go on with what waited for a model, if it is here now."""
        self._try(self._desk.try_again)

    def cancel(self) -> None:
        """Stop the engine; prompts and masks stay as they are."""
        self.said.emit(self._desk.cancel(), "info")

    # -- inside ----------------------------------------------------------------------------

    def _waits_for(self, prompts: PromptSet) -> str:
        """Return why an automatic run should wait for more prompts; ``""`` if it should not."""
        by_slice = works_by_slice(get_spec(self.session.choice.engine))
        return waits_for(prompts, self.tool, self.session.volume.geometry, by_slice=by_slice)

    def _leave_object(self) -> None:
        self._set_corner(None)

    def _on_choice(self) -> None:
        """Follow another engine: what waited for the old one's model may run with the new one."""
        self._hints.follow(self._state)
        self.try_again()

    def _show_prompts(self, *_: Any) -> None:
        if not self._closed:
            self.layers.show(self._prompts(), self._state.corner)

    def _on_edited(self, prompts: PromptSet) -> None:
        """Take in points or a box changed with napari's own tools; put back what is refused."""
        if not self._try(lambda: self.set_prompts(prompts)):
            self._show_prompts()

    def _on_points_removed(self) -> None:
        self._input.unbind()
        if self.tool is not None:
            self.choose_tool(None)

    def _on_prompts_changed(self, object_id: int) -> None:
        if object_id == self.session.active_id:
            self._show_prompts()

    def _on_mode(self, event: Any) -> None:
        """Switch the tool off when the user takes one of napari's tools on our layer."""
        points = self.layers.points
        if self.tool is not None and points is not None and points.mode != "pan_zoom":
            self.choose_tool(None)

    def _connect(self, *, off: bool = False) -> None:
        for name, listener in (
            (self.session.prompts_changed, self._on_prompts_changed),
            (self.session.active_changed, self._show_prompts),
            (self.session.choice_changed, self._on_choice),
            (self.layers.edited, self._on_edited),
            (self.layers.points_removed, self._on_points_removed),
            (self._viewer.layers.selection.events.active, self._on_active_layer),
        ):
            if off:
                name.disconnect(listener)
            else:
                name.connect(listener)
