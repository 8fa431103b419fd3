"""The end of a panel: whatever way it goes, the worker stops and work is written out.

napari closes panels in two ways. A dock closed by the user takes the panel out of the window;
a closing window destroys it without telling it. Here is what has to outlive the panel by a
moment, so it is no widget and no child of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QWidget

from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.panel_end import PanelEnd
from napari_openmedlab.widgets.worker_bridge import ActivityEntry
from napari_openmedlab.widgets.workplace import Workplace

if TYPE_CHECKING:
    from napari_openmedlab.bridge.sessions import ViewerSessions
    from napari_openmedlab.widgets.controller import SegmentController
    from napari_openmedlab.widgets.image_chooser import LayerChooser
    from napari_openmedlab.widgets.worker_bridge import WorkerBridge

__all__ = ["PanelLife"]


class PanelLife:
    """What a panel started and has to stop.

    Parameters
    ----------
    workplace : Workplace
        Shared with the viewer's other panels.

    Attributes
    ----------
    sessions : ViewerSessions
    worker : WorkerBridge
    activity : ActivityEntry
    controller : SegmentController or None
        Of the session at work, in the Segment panel.
    """

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace
        self.sessions: ViewerSessions = workplace.sessions
        self.worker: WorkerBridge = workplace.worker
        self.activity = ActivityEntry()
        self.controller: SegmentController | None = None
        workplace.join()
        self._chooser: LayerChooser | None = None
        self._remove_layers = False
        self._end = PanelEnd()
        self._end.add(self._stop)

    def start(self, panel: QWidget, chooser: LayerChooser) -> None:
        """Stop by itself when the panel is destroyed or the application quits."""
        self._chooser = chooser
        self._end.start(panel)

    def note_saved(self, session: Session) -> None:
        """Remember that the user saved the session: unchanged since, it needs no recovery."""
        self.workplace.note_saved(session)

    def at_end(self, command: Any) -> None:
        """Call this when the panel ends, before anything is closed."""
        self._end.add(command)

    def end(self, *, remove_layers: bool = False) -> None:
        """Stop everything once; ``remove_layers`` where the viewer goes on without the panel."""
        self._remove_layers = remove_layers
        self._end.call()

    def _stop(self) -> None:
        if self.controller is not None:
            self.controller.close(remove_layers=self._remove_layers)
            self.controller = None
        self.activity.end()
        if self._chooser is not None:
            self._chooser.stop()
        self.workplace.leave()
