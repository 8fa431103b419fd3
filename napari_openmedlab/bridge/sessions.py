"""The sessions of one viewer: one for each image layer, made when asked for, never shared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from napari.layers import Image, Labels, Layer
from psygnal import Signal

from napari_openmedlab.bridge.layers import tag_of, volume_of_layer
from napari_openmedlab.bridge.preferences import Preferences, read_preferences
from napari_openmedlab.bridge.sync import LabelsBinding
from napari_openmedlab.errors import GeometryError, OpenMedLabError, WriteError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.session.autosave import Autosave
from napari_openmedlab.session.objects import EngineChoice, OverlapRule
from napari_openmedlab.session.session import Session

__all__ = ["ViewerSessions"]

_WATCHED = ("data", "scale", "translate", "rotate", "shear", "affine", "units")


@dataclass(eq=False)
class _Entry:
    """A session at work on an image layer."""

    session: Session
    image: Layer
    binding: LabelsBinding
    autosave: Autosave | None = field(default=None)


class ViewerSessions:
    """Holds one :class:`Session` for each image layer of one viewer.

    Made and closed by the panel that owns it; two viewers have two. Layers are known by
    reference, so renaming them changes nothing.

    Parameters
    ----------
    viewer : napari.Viewer or napari.components.ViewerModel
    preferences : Preferences, optional
        Default: what the user set in napari's Preferences.

    Attributes
    ----------
    opened : Signal(Session)
        A session was made or adopted.
    image_changed : Signal(Session)
        The data, place or voxel size of the session's image layer was changed. The session is
        closed; :meth:`open` on the layer starts a new one that takes the objects over where
        the shape still fits.
    image_removed : Signal(Session)
        The image layer was deleted. The session and its labels layer stay, and go on if the
        same layer is put back.
    notice : Signal(str)
        A sentence for the user.
    """

    opened = Signal(Session)
    image_changed = Signal(Session)
    image_removed = Signal(Session)
    notice = Signal(str)

    def __init__(self, viewer: Any, preferences: Preferences | None = None) -> None:
        self._viewer = viewer
        self._preferences = preferences
        self._entries: list[_Entry] = []
        self._left: dict[Layer, tuple[Session, Labels | None]] = {}
        viewer.layers.events.removed.connect(self._on_layer_removed)

    @property
    def preferences(self) -> Preferences:
        """The preferences new sessions start with."""
        return self._preferences or read_preferences()

    @property
    def sessions(self) -> tuple[Session, ...]:
        """All sessions, oldest first."""
        return tuple(entry.session for entry in self._entries)

    def images(self) -> tuple[Layer, ...]:
        """Return the layers a session can be opened on, in the order of the layer list."""
        return tuple(layer for layer in self._viewer.layers if _is_image(layer))

    def open(self, image: Layer) -> Session:
        """Return the session of an image layer, making it if there is none.

        Raises
        ------
        GeometryError
            If the layer can't be used as a volume; the text says what to do.
        """
        known = self._find(image)
        if known is not None:
            return known.session
        if tag_of(image) is None and isinstance(image, Labels):
            raise GeometryError(f"'{image.name}' is a labels layer; choose an image layer")
        volume = volume_of_layer(image)
        before, shown = self._left.get(image, (None, None))
        session = self.adopt(image, self._start(volume, before))
        self._left.pop(image, None)
        if before is not None and before.labels.shape == session.labels.shape:
            self._remove(shown)  # its voxels and objects live on in the new one
        return session

    def adopt(self, image: Layer, session: Session) -> Session:
        """Put a session (a recovered or loaded one) to work on an image layer.

        Raises
        ------
        GeometryError
            If the layer lies on another grid than the session's volume.
        """
        difference = volume_of_layer(image).geometry.difference(session.volume.geometry)
        if difference:
            raise GeometryError(
                f"the session belongs to '{session.volume.name}', which differs from "
                f"'{image.name}' in {difference}"
            )
        known = self._find(image)
        if known is not None:
            self._drop(known)
        binding = LabelsBinding(self._viewer, session, image)
        binding.notice.connect(self._say)
        entry = _Entry(session, image, binding, self._autosave(session))
        self._entries.append(entry)
        for name in _WATCHED:
            getattr(image.events, name).connect(self._on_image_event)
        binding.ensure_layer()
        self.opened.emit(session)
        return session

    def session_of(self, layer: Layer) -> Session | None:
        """Return the session that an image layer or a session's labels layer belongs to."""
        for entry in self._entries:
            if layer is entry.image or layer is entry.binding.layer:
                return entry.session
        return None

    def image_of(self, session: Session) -> Layer:
        """Return the image layer of a session (perhaps no longer in the viewer)."""
        return self._entry(session).image

    def labels_of(self, session: Session) -> Labels:
        """Return the labels layer of a session, put back if the user deleted it."""
        return self._entry(session).binding.ensure_layer()

    def autosave_of(self, session: Session) -> Autosave | None:
        """Return the session's autosave, ``None`` if it is switched off or impossible."""
        return self._entry(session).autosave

    def close_session(self, session: Session) -> None:
        """Stop a session; its labels layer stays in the viewer as an ordinary one."""
        self._drop(self._entry(session))

    def close(self) -> None:
        """Stop everything; autosaves are written out first."""
        for entry in tuple(self._entries):
            self._drop(entry)
        self._left.clear()
        self._viewer.layers.events.removed.disconnect(self._on_layer_removed)

    # -- inside ----------------------------------------------------------------------------

    def _find(self, image: Layer) -> _Entry | None:
        return next((entry for entry in self._entries if entry.image is image), None)

    def _entry(self, session: Session) -> _Entry:
        for entry in self._entries:
            if entry.session is session:
                return entry
        raise GeometryError(f"the session on '{session.volume.name}' was closed in this viewer")

    def _say(self, sentence: str) -> None:
        self.notice.emit(sentence)

    def _start(self, volume: Volume, before: Session | None) -> Session:
        wanted = self.preferences
        fits = before is not None and before.labels.shape == volume.geometry.shape
        labels = before.labels.copy() if before is not None and fits else None
        session = Session(volume, labels=labels, history_bytes=wanted.undo_megabytes * 2**20)
        session.overlap = OverlapRule(wanted.overlap)
        try:
            session.choice = EngineChoice(engine=wanted.engine, auto_run=wanted.auto_run)
        except OpenMedLabError as error:
            self.notice.emit(f"{error}; the built-in engine is used.")
            session.choice = EngineChoice(auto_run=wanted.auto_run)
        if before is not None and fits:
            _carry_over(before, session)
        return session

    def _autosave(self, session: Session) -> Autosave | None:
        wanted = self.preferences
        if not wanted.autosave:
            return None
        autosave = Autosave(session, delay=wanted.autosave_delay)
        try:
            autosave.start()
        except WriteError as error:
            self.notice.emit(str(error))
            return None
        return autosave

    def _drop(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        for name in _WATCHED:
            getattr(entry.image.events, name).disconnect(self._on_image_event)
        entry.binding.close()
        if entry.autosave is not None:
            # Work is kept for the next start; a session nothing was done in leaves no file.
            keep = bool(entry.session.history.past) or bool(entry.session.history.future)
            (entry.autosave.stop if keep else entry.autosave.discard)()

    def _remove(self, layer: Layer | None) -> None:
        if layer is not None and layer in self._viewer.layers:
            self._viewer.layers.remove(layer)

    def _on_image_event(self, event: Any) -> None:
        entry = self._find(event.source)
        if entry is None or _is_same_image(entry.image, entry.session.volume):
            return
        self._left[entry.image] = (entry.session, entry.binding.layer)
        self._drop(entry)
        self.notice.emit(
            f"'{entry.image.name}' was changed, so its session was closed; the objects stay in "
            "their labels layer."
        )
        self.image_changed.emit(entry.session)

    def _on_layer_removed(self, event: Any) -> None:
        self._left.pop(event.value, None)
        entry = self._find(event.value)
        if entry is not None:
            self.image_removed.emit(entry.session)


def _is_image(layer: Layer) -> bool:
    """Return whether a layer is an image that a session can be opened on."""
    return isinstance(layer, Image) and not getattr(layer, "rgb", False) and layer.ndim in (2, 3)


def _is_same_image(image: Layer, volume: Volume) -> bool:
    """Return whether the layer still shows this very array in this very place."""
    try:
        now = volume_of_layer(image)
    except GeometryError:
        return False
    same_array = now.array is volume.array or (
        image.ndim == 2 and np.shares_memory(np.asarray(now.array), np.asarray(volume.array))
    )
    return same_array and not now.geometry.difference(volume.geometry)


def _carry_over(before: Session, session: Session) -> None:
    """Give the objects of a session their names, colours and locks in its successor."""
    kept = {o.id for o in session.objects}
    for old in before.objects:
        if old.id in kept:
            session.update_object(old.id, name=old.name, colour=old.colour, visible=old.visible)
            if old.locked:
                session.update_object(old.id, locked=True)
