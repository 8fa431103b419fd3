"""What the panels of one viewer share: its sessions and the one worker.

The first panel makes it, panels that are opened later find it in the window, and whoever leaves
last closes it: an object made in one panel is at once the same object in another.
"""

from __future__ import annotations

from typing import Any

from napari_openmedlab.bridge.sessions import ViewerSessions
from napari_openmedlab.session.history import Step
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.worker_bridge import WorkerBridge

__all__ = ["Workplace"]

_NEVER = object()


class Workplace:
    """Sessions and worker of one viewer.

    Panels that use it keep it as their attribute ``workplace``; there others find it.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer itself, not its proxy.

    Attributes
    ----------
    sessions : ViewerSessions
    worker : WorkerBridge
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self.sessions = ViewerSessions(viewer)
        self.worker = WorkerBridge()
        self._panels = 0
        self._closed = False
        self._saved: dict[Session, Step | None] = {}

    @classmethod
    def of(cls, viewer: Any) -> Workplace:
        """Return the workplace of the panels docked in a viewer, or a new one."""
        window = getattr(viewer, "window", None)
        for panel in () if window is None else window.dock_widgets.values():
            found = getattr(panel, "workplace", None)
            if isinstance(found, cls) and found._viewer is viewer and not found._closed:
                return found
        return cls(viewer)

    def join(self) -> None:
        """Count one more panel."""
        self._panels += 1

    def leave(self) -> None:
        """Count one panel less; the last one closes everything, work is written out."""
        self._panels -= 1
        if self._panels > 0 or self._closed:
            return
        self._closed = True
        self.worker.close()
        for session in self.sessions.sessions:
            autosave = self.sessions.autosave_of(session)
            if autosave and self._saved.get(session, _NEVER) is session.history.last:
                autosave.discard()
        self.sessions.close()
        self._saved.clear()

    def note_saved(self, session: Session) -> None:
        """Remember that the user saved the session: unchanged since, it needs no recovery."""
        self._saved[session] = session.history.last
