"""What has to happen when a panel goes, whichever way it goes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from qtpy.QtWidgets import QApplication, QWidget

__all__ = ["PanelEnd"]


class PanelEnd:
    """Calls commands once: when told to, when the panel is destroyed, or when napari quits.

    A closing window destroys its panels without telling them, and Python may have collected
    what belongs to a panel before Qt destroys it. So the application holds this object until
    the end; a command must hold no more than it needs, or that lives as long.
    """

    def __init__(self) -> None:
        self._commands = ExitStack()
        self._over = False
        self._quit: Callable[[], None] | None = None

    def add(self, command: Callable[[], Any]) -> None:
        """Call this at the end, before what was added earlier; an error keeps none from it."""
        self._commands.callback(command)

    def start(self, panel: QWidget) -> None:
        """End by itself when the panel is destroyed or the application quits."""
        panel.destroyed.connect(self.call)
        application = QApplication.instance()
        if application is not None:
            # Signals hold methods weakly but functions strongly: this keeps us alive.
            self._quit = lambda: self.call()
            application.aboutToQuit.connect(self._quit)

    def call(self, *_: Any) -> None:
        """End now."""
        if self._over:
            return
        self._over = True
        application = QApplication.instance()
        if self._quit is not None and application is not None:
            application.aboutToQuit.disconnect(self._quit)
        self._quit = None
        self._commands.close()
