"""A combo box that lists layers of one kind and follows them by reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from napari.layers import Layer
from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QComboBox

__all__ = ["LayerChooser"]


class LayerChooser(QObject):
    """Keeps a combo box in step with the viewer's layers.

    Parameters
    ----------
    viewer : napari.Viewer
    box : QComboBox
    wanted : callable(Layer) -> bool
        Which layers are listed.
    preferred : callable(Layer) -> bool, optional
        Which of them is taken first while the user has chosen none.

    Attributes
    ----------
    chosen : Signal(Layer or None)
        The chosen layer changed: by the user, or because layers came or went.
    """

    chosen = Signal(object)

    def __init__(
        self,
        viewer: Any,
        box: QComboBox,
        wanted: Callable[[Layer], bool],
        *,
        preferred: Callable[[Layer], bool] | None = None,
        parent: QObject | None = None,
    ) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._box = box
        self._wanted = wanted
        self._preferred = preferred if preferred is not None else wanted
        self._by_hand = False
        self._layers: list[Layer] = []
        self._current: Layer | None = None
        self._events = viewer.layers.events
        for event in (self._events.inserted, self._events.removed, self._events.moved):
            event.connect(self.refresh)
        self._events.renamed.connect(self._on_renamed)
        box.activated.connect(self._on_activated)

    @property
    def layer(self) -> Layer | None:
        """The chosen layer."""
        return self._current

    def choose(self, layer: Layer | None) -> None:
        """Choose a layer of the list, or none."""
        if layer is not None and layer not in self._layers:
            return
        self._box.setCurrentIndex(-1 if layer is None else self._layers.index(layer))
        if layer is not self._current:
            self._current = layer
            self.chosen.emit(layer)

    def refresh(self, event: Any = None) -> None:
        """List the layers there are; the chosen one stays chosen as long as it is there."""
        self._layers = [layer for layer in self._viewer.layers if self._wanted(layer)]
        self._box.clear()
        self._box.addItems([layer.name for layer in self._layers])
        self._by_hand &= self._current in self._layers
        kept = self._current if self._current in self._layers else None
        best = [layer for layer in self._layers if self._preferred(layer)]
        if best and not self._by_hand and kept not in best:
            kept = best[-1]  # what the user did not choose gives way to something better
        newest = self._layers[-1] if self._layers else None
        self.choose(kept if kept is not None else newest)

    def stop(self) -> None:
        """Stop listening."""
        for event in (self._events.inserted, self._events.removed, self._events.moved):
            event.disconnect(self.refresh)
        self._events.renamed.disconnect(self._on_renamed)
        self._layers = []

    def _on_renamed(self, event: Any = None) -> None:
        for row, layer in enumerate(self._layers):
            self._box.setItemText(row, layer.name)

    def _on_activated(self, row: int) -> None:
        if 0 <= row < len(self._layers):
            self._by_hand = True
            self.choose(self._layers[row])
