"""Keeps a session and its labels layer in step, in both directions."""

from __future__ import annotations

from typing import Any

import numpy as np
from app_model.types import KeyCode, KeyMod
from napari.layers import Labels, Layer
from psygnal import Signal

from napari_openmedlab.bridge.objects import labels_layer_for, show_objects
from napari_openmedlab.bridge.painting import difference_patch, is_written, stroke_patch
from napari_openmedlab.errors import OpenMedLabError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import LabelPatch
from napari_openmedlab.session.session import Session

__all__ = ["LabelsBinding"]

_UNDO = KeyMod.CtrlCmd | KeyCode.KeyZ
_REDO = KeyMod.CtrlCmd | KeyMod.Shift | KeyCode.KeyZ


class LabelsBinding:
    """One session, its image layer and the labels layer that shows its objects.

    Parameters
    ----------
    viewer : napari.Viewer or napari.components.ViewerModel
    session : Session
    image : Layer
        The layer of the session's volume; it is never changed.

    Attributes
    ----------
    layer_removed : Signal()
        The user deleted the labels layer. The session keeps the labels; :meth:`ensure_layer`
        (or the next change of the labels) brings the layer back.
    notice : Signal(str)
        A sentence for the user: a stroke was refused, an assignment to the layer's data taken
        in or refused.

    Notes
    -----
    A finished stroke (brush, eraser, fill, polygon) becomes one step of the session, and the
    layer's own undo history is emptied at that moment: the session is the only one who undoes,
    otherwise napari would write values back that engines have changed since. Ctrl+Z and
    Ctrl+Shift+Z on the layer call the session.
    """

    layer_removed = Signal()
    notice = Signal(str)

    def __init__(self, viewer: Any, session: Session, image: Layer) -> None:
        self.session = session
        self.image = image
        self._viewer = viewer
        self._layer: Labels | None = None
        self._shown: Any = None
        self._busy = False
        self._painted: list[Any] = []
        session.labels_changed.connect(self._on_labels_changed)
        session.objects_changed.connect(self._on_objects_changed)
        session.active_changed.connect(self._on_active_changed)
        viewer.layers.events.removed.connect(self._on_layer_removed)

    @property
    def layer(self) -> Labels | None:
        """The labels layer, or ``None`` while it is not in the viewer."""
        return self._layer

    def ensure_layer(self) -> Labels:
        """Return the labels layer, adding it above the image if it is not in the viewer.

        The selected layer stays selected, so that a tool in use is not interrupted.
        """
        if self._layer is None:
            data, kwargs, _ = labels_layer_for(self.session, self.image)
            layer = Labels(data, **kwargs)
            self._layer, self._shown = layer, data
            self._insert(layer)
            layer.events.paint.connect(self._on_paint, position="last")
            layer.events.labels_update.connect(self._take_painted, position="last")
            layer.events.set_data.connect(self._take_painted, position="last")
            layer.events.data.connect(self._on_data)
            layer.events.selected_label.connect(self._on_selected_label)
            layer.bind_key(_UNDO, lambda _layer: self.session.undo(), overwrite=True)
            layer.bind_key(_REDO, lambda _layer: self.session.redo(), overwrite=True)
            self._on_active_changed()
        return self._layer

    def close(self) -> None:
        """Stop listening; the layer stays as an ordinary labels layer with all its voxels."""
        self.session.labels_changed.disconnect(self._on_labels_changed, missing_ok=True)
        self.session.objects_changed.disconnect(self._on_objects_changed, missing_ok=True)
        self.session.active_changed.disconnect(self._on_active_changed, missing_ok=True)
        self._viewer.layers.events.removed.disconnect(self._on_layer_removed)
        self._release()

    def _insert(self, layer: Labels) -> None:
        layers = self._viewer.layers
        selected = layers.selection.active
        above = layers.index(self.image) + 1 if self.image in layers else len(layers)
        layers.insert(above, layer)
        if selected is not None:
            layers.selection.active = selected

    def _release(self) -> None:
        layer, self._layer = self._layer, None
        if layer is None:
            return
        layer.events.paint.disconnect(self._on_paint)
        layer.events.labels_update.disconnect(self._take_painted)
        layer.events.set_data.disconnect(self._take_painted)
        layer.events.data.disconnect(self._on_data)
        layer.events.selected_label.disconnect(self._on_selected_label)
        layer.bind_key(_UNDO, None)
        layer.bind_key(_REDO, None)

    # -- from the session ------------------------------------------------------------------

    def _on_labels_changed(self, box: Box) -> None:
        if self._layer is None:
            self.ensure_layer()
        elif not box.is_empty:
            # Only what is on screen is drawn again: some 3 ms for a 512 x 512 slice.
            self._layer.refresh(extent=False, highlight=False)

    def _on_objects_changed(self) -> None:
        if self._layer is not None:
            # A new colormap makes napari name the selected label again; nobody chose it.
            with self._layer.events.selected_label.blocker(self._on_selected_label):
                show_objects(self._layer, self.session.objects)

    def _on_active_changed(self) -> None:
        active = self.session.active_id
        if self._layer is not None and active is not None and not self._busy:
            self._layer.selected_label = active

    # -- from the viewer -------------------------------------------------------------------

    def _on_paint(self, event: Any) -> None:
        self._painted.extend(event.value)
        # The list is the one in napari's undo history: emptied, it can't be played back.
        event.value.clear()
        if is_written(self.session.labels, self._painted):
            self._take_painted()

    def _take_painted(self, event: Any = None) -> None:
        """Take in what napari announced as painted, once it stands in the array."""
        atoms, self._painted = self._painted, []
        if atoms:
            self._take(stroke_patch(self.session.labels, atoms))

    def _take(self, patch: LabelPatch) -> None:
        """Make a change of the array a step of the session, or put the voxels back."""
        try:
            kept = self.session.apply_edit(patch)
        except OpenMedLabError as error:
            self.session.labels[patch.box.slices] = patch.before
            self._on_labels_changed(patch.box)
            self.notice.emit(str(error))
            return
        if not np.array_equal(kept.after, patch.after):
            self.notice.emit("Locked objects were left as they are; unlock them to paint there.")

    def _on_data(self, event: Any = None) -> None:
        """Take in an array that somebody assigned to the layer; our own array stays."""
        layer = self._layer
        if layer is None or self._busy or layer.data is self._shown:
            return
        given = np.asarray(layer.data)
        self._busy = True
        layer.data = self._shown
        self._busy = False
        shape = self._shown.shape
        if given.shape != shape:
            self.notice.emit(
                f"'{layer.name}' keeps its labels: the array assigned to it has shape "
                f"{given.shape}, the image {shape}."
            )
            return
        if given.size and (given.min() < 0 or given.max() > np.iinfo(np.uint16).max):
            self.notice.emit(
                f"'{layer.name}' keeps its labels: values must lie between 0 and 65535."
            )
            return
        labels = self.session.labels
        patch = difference_patch(labels, given.reshape(labels.shape))
        if patch is not None:
            labels[patch.box.slices] = patch.after
            self._take(patch)
            layer.refresh()

    def _on_selected_label(self, event: Any = None) -> None:
        """Make the object active whose label the user picked in napari's own controls."""
        if self._layer is None or self._busy:
            return
        value = int(self._layer.selected_label)
        if value == self.session.active_id or value not in {o.id for o in self.session.objects}:
            return
        self._busy = True
        try:
            self.session.set_active(value)
        finally:
            self._busy = False

    def _on_layer_removed(self, event: Any) -> None:
        if self._layer is not None and event.value is self._layer:
            self._release()
            self.layer_removed.emit()
