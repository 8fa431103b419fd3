"""Previews of the Axons panel: where they are asked for, and the layers that show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import napari
import numpy as np
from napari.layers import Image, Layer
from qtpy.QtCore import QObject

from napari_openmedlab.axons.preview import Preview
from napari_openmedlab.axons.source import Source
from napari_openmedlab.bridge.axon_layers import preview_layers
from napari_openmedlab.bridge.positions import index_at, visible_box
from napari_openmedlab.bridge.viewer import layer_position
from napari_openmedlab.errors import GeometryError, SettingsError
from napari_openmedlab.geometry.boxes import Box

__all__ = ["AxonPreviews"]


class AxonPreviews(QObject):
    """Finds the place of a preview, and keeps its two layers.

    Parameters
    ----------
    viewer : napari.Viewer
    image : callable() -> Image or None
        The chosen image.
    ask : callable(index)
        Asks for the preview of the block around a voxel (z, y, x).
    parent : QObject
    """

    def __init__(
        self,
        viewer: napari.Viewer,
        image: Callable[[], Image | None],
        ask: Callable[[Any], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._viewer, self._image, self._ask = viewer, image, ask
        self._shown: dict[str, Layer] = {}
        self.found: Preview | None = None
        self.source: Source | None = None
        self.image: Layer | None = None

    def owns(self, layer: Layer) -> bool:
        """Return whether a layer shows a preview."""
        return layer in self._shown.values()

    def middle(self, shape: tuple[int, int, int]) -> list[float]:
        """Return the voxel in the middle of what the view shows.

        Raises
        ------
        GeometryError
            If the view shows nothing of the image.
        """
        image, dims = self._image(), self._viewer.dims
        assert image is not None
        box = visible_box(self._viewer, image, shape)
        if box.is_empty:
            raise GeometryError("The view shows nothing of the volume; zoom out.")
        middle = [(a + b) / 2 for a, b in zip(box.start, box.stop, strict=True)]
        here = index_at(image, layer_position(self._viewer, image, dims.point))
        for axis in dims.not_displayed[-3:]:
            middle[axis - dims.ndim + 3] = here[axis - dims.ndim + 3]
        return middle

    def pick(self, on: bool) -> None:
        """Preview where the user clicks, or no longer."""
        callbacks = self._viewer.mouse_drag_callbacks
        if on and self._clicked not in callbacks:
            callbacks.append(self._clicked)
        elif not on and self._clicked in callbacks:
            callbacks.remove(self._clicked)

    def show(self, found: Preview, source: Source, image: Image, threshold: float) -> None:
        """Show a preview over the image it was made of, in place of the last one."""
        if image not in self._viewer.layers:  # deleted meanwhile: the last one stays
            return
        self.found, self.source, self.image = found, source, image
        probability, labels = preview_layers(image, found, threshold)
        self._put("probability", self._viewer.add_image, *probability)
        self._put("labels", self._viewer.add_labels, *labels)

    def block(self) -> tuple[Source, Layer, Box]:
        """Return the volume, its layer and the block that was previewed last.

        Raises
        ------
        SettingsError
            If there is none, or its image is gone.
        """
        found, source, image = self.found, self.source, self.image
        if found is None or source is None or image not in self._viewer.layers:
            raise SettingsError("Preview a block first: it becomes the cube.")
        return source, image, found.box

    def threshold(self, value: float) -> None:
        """Move the threshold of the preview that is shown."""
        layer = self._shown.get("labels")
        if self.found is not None and layer is not None and layer in self._viewer.layers:
            layer.data = self.found.labels(value)

    def _put(self, key: str, add: Callable[..., Layer], data: Any, arguments: Any) -> None:
        layer = self._shown.get(key)
        active = self._viewer.layers.selection.active
        if layer is not None and layer in self._viewer.layers:
            self._viewer.layers.remove(layer)
        self._shown[key] = add(data, **arguments)
        self._viewer.layers.selection.active = active

    def _clicked(self, _: Any, event: Any) -> Any:
        """Preview where the mouse was pressed and released without a drag."""
        pressed = event.position
        yield
        while event.type == "mouse_move":
            yield
        image = self._image()
        if image is None or np.abs(np.subtract(event.position, pressed)).max() > 1e-6:
            return
        self._ask(index_at(image, layer_position(self._viewer, image, pressed)))
