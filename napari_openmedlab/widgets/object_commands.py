"""The commands of the Segment panel on objects and history: new, accept, delete, undo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from napari.layers import Layer
from qtpy.QtCore import QObject, Signal

from napari_openmedlab.bridge.positions import jump_to
from napari_openmedlab.errors import OpenMedLabError
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.requests import RequestDesk

__all__ = ["ObjectCommands"]


class ObjectCommands(QObject):
    """Commands that need no tool and no canvas; the controller adds those that do.

    Parameters
    ----------
    viewer : napari.Viewer
    image : Layer
        The image layer of the session.
    session : Session

    Attributes
    ----------
    said : Signal(str, str)
        A sentence for the status line and its severity.
    """

    said = Signal(str, str)

    def __init__(
        self, viewer: Any, image: Layer, session: Session, parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self.session = session
        self.image = image
        self._viewer = viewer
        self._desk: RequestDesk

    def undo(self) -> None:
        """Take the last step back; an answer still on its way is no longer wanted."""
        self._travel(self.session.undo, "Nothing to undo.")

    def redo(self) -> None:
        """Do the step again that was taken back last."""
        self._travel(self.session.redo, "Nothing to redo.")

    def new_object(self) -> None:
        """Add an object and make it the active one."""
        self._leave_object()
        self._try(self.session.add_object)
        self.said.emit(f"{self.session.get().name}: set its prompts.", "info")

    def accept(self) -> None:
        """Lock the active object, so that nothing overwrites it, and begin the next one."""
        active = self.session.active
        if active is None or not active.voxels:
            self.said.emit("There is no mask to accept yet.", "error")
            return
        self._try(lambda: self.session.update_object(active.id, locked=True))
        self._try(self.session.add_object)
        now = self.session.get()
        self.said.emit(f"{active.name} is locked. Next: {now.name}.", "done")

    def delete(self) -> None:
        """Remove the active object and its mask."""
        active = self.session.active
        if active is not None:
            self._desk.forget(active.id)
            self._leave_object()
            if self._try(lambda: self.session.remove_object(active.id)):
                self.said.emit(f"{active.name} was deleted; Undo brings it back.", "info")

    def update(self, object_id: int, fields: dict[str, Any]) -> None:
        """Rename, recolour, show or lock an object."""
        self._try(lambda: self.session.update_object(object_id, **fields))

    def activate(self, object_id: int) -> None:
        """Choose the object that prompts go to."""
        self._leave_object()
        self._try(lambda: self.session.set_active(object_id))

    def jump(self) -> None:
        """Show the middle of the active object (of its prompts, while it has no mask)."""
        active = self.session.active
        if active is None:
            return
        geometry = self.session.volume.geometry
        box = self.session.mask_of(active.id).box
        points = active.prompts.world_points()
        if not box.is_empty:
            jump_to(self._viewer, self.image, ((np.array(box.start) + box.stop) // 2).tolist())
        elif len(points):
            middle = np.rint(geometry.to_index(points).mean(axis=0))
            jump_to(self._viewer, self.image, middle.tolist())
        else:
            self.said.emit(f"{active.name} is still empty.", "info")

    # -- inside ----------------------------------------------------------------------------

    def _travel(self, step: Callable[[], Any], nothing: str) -> None:
        self._desk.cancel()
        self._leave_object()
        moved = bool(step())
        self._show_prompts()
        if not moved:
            self.said.emit(nothing, "info")
            return
        last = self.session.history.last
        self.said.emit(f"Last step now: {last.text}." if last else "Back at the start.", "info")

    def _try(self, command: Callable[[], Any]) -> bool:
        """Run a command of the session; a refusal becomes a sentence."""
        try:
            command()
        except OpenMedLabError as error:
            self.said.emit(str(error), "error")
            return False
        return True

    def _leave_object(self) -> None:
        """Give up what the user had begun on the active object."""

    def _show_prompts(self) -> None:
        """Show the active object's prompts as they are now."""
