"""Sessions and prompts to and from files: the dialogs, and what happens to the session."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from napari.layers import Layer
from qtpy.QtWidgets import QFileDialog, QWidget

from napari_openmedlab.bridge.exporting import suggested_path
from napari_openmedlab.bridge.layers import volume_of_layer
from napari_openmedlab.bridge.sessions import ViewerSessions
from napari_openmedlab.errors import SessionError
from napari_openmedlab.session import store
from napari_openmedlab.session.prompt_checks import check_prompts
from napari_openmedlab.session.prompt_files import NamedPrompts, read_prompts, write_prompts
from napari_openmedlab.session.session import Session

__all__ = [
    "add_objects",
    "ask_open",
    "ask_save",
    "load_prompts",
    "open_session",
    "save_prompts",
]

SESSION_FILTER = f"Sessions (*{store.SUFFIX})"
PROMPT_FILTER = "Prompts and 3D Slicer markups (*.json)"


def ask_save(parent: QWidget, title: str, session: Session, suffix: str, kinds: str) -> Path | None:
    """Ask where to save; ``None`` if the user thought better of it."""
    start = str(suggested_path(session.volume, suffix)).replace("_mask", "")
    chosen, _ = QFileDialog.getSaveFileName(parent, title, start, kinds)
    return Path(chosen) if chosen else None


def ask_open(parent: QWidget, title: str, session: Session, kinds: str) -> Path | None:
    """Ask for a file to open; ``None`` if the user thought better of it."""
    folder = str(suggested_path(session.volume, "").parent)
    chosen, _ = QFileDialog.getOpenFileName(parent, title, folder, kinds)
    return Path(chosen) if chosen else None


def open_session(path: Path, viewer: Any, sessions: ViewerSessions, image: Layer) -> Session:
    """Put a saved session to work on an image layer.

    The labels layer of the session that was there goes if it is empty; with masks in it, it
    stays as an ordinary labels layer, so nothing is lost.

    Raises
    ------
    OpenMedLabError
        If the file is damaged or belongs to another image; the session at work goes on.
    """
    loaded = store.load(path, volume_of_layer(image))
    before = sessions.session_of(image)
    old_layer = sessions.labels_of(before) if before is not None else None
    sessions.adopt(image, loaded)
    emptied = before is not None and not any(o.voxels for o in before.objects)
    if old_layer is not None and emptied and old_layer in viewer.layers:
        name = old_layer.name
        viewer.layers.remove(old_layer)
        sessions.labels_of(loaded).name = name
    return loaded


def load_prompts(path: Path, session: Session) -> list[int]:
    """Add one object for each in a prompts file and return their ids, in the file's order.

    Raises
    ------
    OpenMedLabError
        If the file can't be read or a prompt lies outside the image; nothing is added then.
    """
    named = read_prompts(path, session.volume)
    if not named:
        raise SessionError(f"{path.name} holds no prompts")
    return add_objects(named, session)


def add_objects(named: Sequence[NamedPrompts], session: Session) -> list[int]:
    """Add an object for each of these and return their ids, in the same order.

    An active object that is still empty becomes the first of them.

    Raises
    ------
    OpenMedLabError
        If a prompt lies outside the image; nothing is added then.
    """
    for each in named:
        check_prompts(each.prompts, session.volume.geometry)
    ids = []
    for each in named:
        active = session.active
        empty = active is not None and active.prompts.is_empty and not active.voxels
        if active is not None and empty and not active.locked:
            session.update_object(active.id, name=each.name)
        else:
            active = session.add_object(each.name)
        session.set_prompts(each.prompts, active.id)
        ids.append(active.id)
    return ids


def save_prompts(path: Path, session: Session) -> Path:
    """Write the prompts of all objects that have some.

    Raises
    ------
    OpenMedLabError
        If there are none or the file can't be written.
    """
    named = [NamedPrompts(o.name, o.prompts) for o in session.objects if not o.prompts.is_empty]
    if not named:
        raise SessionError("There are no prompts to save yet.")
    target = path if path.suffix == ".json" else path.with_name(f"{path.name}.json")
    return write_prompts(target, named, session.volume)
