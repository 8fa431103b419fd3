"""The end of a panel: whatever way it goes, the worker stops and work is written out.

napari closes panels in two ways. A dock closed by the user takes the panel out of the window;
a closing window destroys it without telling it. Here is what has to outlive the panel by a
moment, so it is no widget and no child of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QApplication, QWidget

from napari_openmedlab.bridge.sessions import ViewerSessions
from napari_openmedlab.session.history import Step
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.worker_bridge import ActivityEntry, WorkerBridge

if TYPE_CHECKING:
    from napari_openmedlab.widgets.controller import SegmentController
    from napari_openmedlab.widgets.image_chooser import LayerChooser

__all__ = ["PanelLife"]

_NEVER = object()


class PanelLife:
    """What a Segment panel started and has to stop.

    Parameters
    ----------
    sessions : ViewerSessions

    Attributes
    ----------
    worker : WorkerBridge
    activity : ActivityEntry
    controller : SegmentController or None
        Of the session at work.
    """

    def __init__(self, sessions: ViewerSessions) -> None:
        self.sessions = sessions
        self.worker = WorkerBridge()
        self.activity = ActivityEntry()
        self.controller: SegmentController | None = None
        self._saved: dict[Session, Step | None] = {}
        self._chooser: LayerChooser | None = None
        self._on_end: list[Any] = []
        self._started = False
        self._ended = False

    def start(self, panel: QWidget, chooser: LayerChooser) -> None:
        """Stop by itself when the panel is destroyed or the application quits."""
        self._chooser = chooser
        self._started = True
        panel.destroyed.connect(self._on_destroyed)
        application = QApplication.instance()
        if application is not None:
            application.aboutToQuit.connect(self._on_destroyed)

    def note_saved(self, session: Session) -> None:
        """Remember that the user saved the session: unchanged since, it needs no recovery."""
        self._saved[session] = session.history.last

    def at_end(self, command: Any) -> None:
        """Call this when the panel ends, before anything is closed."""
        self._on_end.append(command)

    def end(self, *, remove_layers: bool = False) -> None:
        """Stop everything once; ``remove_layers`` where the viewer goes on without the panel."""
        if self._ended:
            return
        self._ended = True
        application = QApplication.instance()
        if application is not None and self._started:
            application.aboutToQuit.disconnect(self._on_destroyed)  # it would keep us alive
        for command in self._on_end:
            command()
        if self.controller is not None:
            self.controller.close(remove_layers=remove_layers)
            self.controller = None
        self.activity.end()
        self.worker.close()
        if self._chooser is not None:
            self._chooser.stop()
        for session in self.sessions.sessions:
            autosave = self.sessions.autosave_of(session)
            if autosave and self._saved.get(session, _NEVER) is session.history.last:
                autosave.discard()
        self.sessions.close()
        self._saved.clear()
        self._on_end.clear()

    def _on_destroyed(self, *_: Any) -> None:
        self.end()
