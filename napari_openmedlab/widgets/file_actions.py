"""The file buttons of the Segment panel: sessions and prompts, saved and opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QWidget

from napari_openmedlab.errors import OpenMedLabError
from napari_openmedlab.session import store
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets import session_files as files
from napari_openmedlab.widgets.sections import FileSection

__all__ = ["FileActions"]


class FileActions(QObject):
    """Asks for paths, and reads and writes files of the session at work.

    Parameters
    ----------
    section : FileSection
    panel : QWidget
        Parent of the dialogs.
    session : callable() -> Session or None
        The session at work.

    Attributes
    ----------
    said : Signal(str, str)
        A sentence for the status line and its severity.
    saved : Signal(Session)
    session_chosen : Signal(Path)
        The user wants to go on with this saved session.
    objects_added : Signal(list of int)
        Prompts of these objects were read from a file.
    """

    said = Signal(str, str)
    saved = Signal(object)
    session_chosen = Signal(object)
    objects_added = Signal(list)

    def __init__(
        self, section: FileSection, panel: QWidget, session: Callable[[], Session | None]
    ) -> None:
        super().__init__(panel)
        self._panel = panel
        self._session = session
        section.save.clicked.connect(self._on_save)
        section.open.clicked.connect(self._on_open)
        section.load_prompts.clicked.connect(self._on_load_prompts)
        section.save_prompts.clicked.connect(self._on_save_prompts)

    def load_prompts(self, path: Path) -> None:
        """Add the objects of a prompts file to the session at work."""
        session = self._session()
        if session is None:
            return
        try:
            ids = files.load_prompts(path, session)
        except OpenMedLabError as error:
            self.said.emit(str(error), "error")
            return
        self.objects_added.emit(ids)

    def _on_save(self) -> None:
        self._ask_and(
            lambda s: self._ask_save("Save session", s, store.SUFFIX, files.SESSION_FILTER),
            self._save,
            "Session saved: {}",
        )

    def _save(self, path: Path, session: Session) -> Path:
        target = store.save(session, path)
        self.saved.emit(session)
        return target

    def _on_save_prompts(self) -> None:
        self._ask_and(
            lambda s: self._ask_save("Save prompts", s, ".json", files.PROMPT_FILTER),
            files.save_prompts,
            "Prompts saved: {}",
        )

    def _ask_save(self, title: str, session: Session, suffix: str, kinds: str) -> Path | None:
        return files.ask_save(self._panel, title, session, suffix, kinds)

    def _ask_and(self, ask: Any, act: Any, told: str) -> None:
        """Ask for a path and do something with it; an error becomes a sentence."""
        session = self._session()
        path = ask(session) if session is not None else None
        if path is None or session is None:
            return
        try:
            self.said.emit(told.format(act(path, session)), "done")
        except OpenMedLabError as error:
            self.said.emit(str(error), "error")

    def _on_open(self) -> None:
        session = self._session()
        if session is not None:
            path = files.ask_open(self._panel, "Open session", session, files.SESSION_FILTER)
            if path is not None:
                self.session_chosen.emit(path)

    def _on_load_prompts(self) -> None:
        session = self._session()
        if session is not None:
            path = files.ask_open(self._panel, "Load prompts", session, files.PROMPT_FILTER)
            if path is not None:
                self.load_prompts(path)
