"""Prompts taken from the user's own layers: a mask of a labels layer, many points or boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from napari.layers import Labels, Layer, Points, Shapes
from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QMenu, QPushButton

from napari_openmedlab.bridge.layer_prompts import prompts_of_layer
from napari_openmedlab.bridge.sessions import ViewerSessions
from napari_openmedlab.errors import OpenMedLabError
from napari_openmedlab.widgets.controller import SegmentController
from napari_openmedlab.widgets.mask_prompts import mask_of_layer
from napari_openmedlab.widgets.sections import PromptSection
from napari_openmedlab.widgets.session_files import add_objects

__all__ = ["LayerActions"]


class LayerActions(QObject):
    """The buttons that take prompts from layers.

    Parameters
    ----------
    viewer : napari.Viewer
    sessions : ViewerSessions
    section : PromptSection
    controller : callable() -> SegmentController or None
        Of the session at work.

    Attributes
    ----------
    said : Signal(str, str)
        A sentence for the status line and its severity.
    """

    said = Signal(str, str)

    def __init__(
        self,
        viewer: Any,
        sessions: ViewerSessions,
        section: PromptSection,
        controller: Callable[[], SegmentController | None],
    ) -> None:
        super().__init__(section)
        self._viewer = viewer
        self._sessions = sessions
        self._section = section
        self._controller = controller
        section.mask.clicked.connect(lambda _=False: self._on_mask())
        section.from_layer.clicked.connect(lambda _=False: self._on_from_layer())

    def use_mask(self, layer: Labels) -> None:
        """Take the selected label of a labels layer as the active object's prompt."""
        controller = self._controller()
        if controller is None:
            return
        try:
            patch, geometry = mask_of_layer(layer)
        except OpenMedLabError as error:
            self.said.emit(str(error), "error")
            return
        controller.use_mask(patch, geometry)

    def use_layer(self, layer: Layer) -> None:
        """Make one object for each point, shape or name of a layer, and segment them all."""
        controller = self._controller()
        if controller is None:
            return
        session = controller.session
        try:
            geometry = session.volume.geometry
            named = prompts_of_layer(self._viewer, layer, controller.image, geometry)
            ids = add_objects(named, session)
        except OpenMedLabError as error:
            self.said.emit(str(error), "error")
            return
        controller.run_for(ids)

    def _on_mask(self) -> None:
        controller = self._controller()
        own = None if controller is None else self._sessions.labels_of(controller.session)
        labels = [layer for layer in self._layers(Labels) if layer is not own]
        texts = [f"{layer.name}: label {layer.selected_label}" for layer in labels]
        if not labels:
            self.said.emit("There is no other labels layer to take a mask from; open one.", "info")
        elif layer := self._choose(self._section.mask, labels, texts):
            self.use_mask(layer)

    def _on_from_layer(self) -> None:
        controller = self._controller()
        shown = () if controller is None else (controller.layers.points, controller.layers.shapes)
        layers = [x for x in self._layers((Points, Shapes)) if all(x is not own for own in shown)]
        texts = [f"{layer.name}: {_count(layer)}" for layer in layers]
        if not layers:
            self.said.emit(
                "There is no layer of yours with points or shapes. Add one with napari's own "
                "buttons, mark each object by a point or a rectangle, and come back.",
                "info",
            )
        elif layer := self._choose(self._section.from_layer, layers, texts, always=True):
            self.use_layer(layer)

    def _layers(self, kind: Any) -> list[Layer]:
        return [layer for layer in self._viewer.layers if isinstance(layer, kind)]

    def _choose(
        self,
        below: QPushButton,
        layers: Sequence[Layer],
        texts: Sequence[str],
        *,
        always: bool = False,
    ) -> Layer | None:
        """Return the only layer, or ask with a menu under the button; ``None`` for none."""
        if len(layers) == 1 and not always:
            return layers[0]
        menu = QMenu(self._section)
        actions = [menu.addAction(text) for text in texts]
        picked = menu.exec(below.mapToGlobal(below.rect().bottomLeft()))
        return layers[actions.index(picked)] if picked in actions else None


def _count(layer: Layer) -> str:
    kind = "point" if isinstance(layer, Points) else "shape"
    count = len(layer.data)
    return f"{count} {kind}{'' if count == 1 else 's'}"
