"""Mouse and keys on the canvas while one of our tools is on.

Everything is bound to our own points layer, never to the viewer: napari consults a layer's
callbacks and keys only while that layer is the active one, so nothing of ours can reach, or
shadow, any other layer. When the tool goes off all of it is taken away again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from napari.layers import Layer, Points
from numpy.typing import NDArray

from napari_openmedlab.bridge.positions import index_at
from napari_openmedlab.bridge.viewer import layer_position
from napari_openmedlab.widgets.gestures import Gesture

__all__ = ["NO_DEPTH", "CanvasInput"]

_DRAG_PIXELS = 4  # a hand is never quite still during a click

NO_DEPTH = (
    "A click in the 3D display has no depth, so no prompt was set. Choose Axial, Coronal or "
    "Sagittal first."
)


class CanvasInput:
    """Turns mouse and keys on our points layer into gestures and commands.

    Parameters
    ----------
    viewer : napari.Viewer
    image : Layer
        The image layer that indices refer to.
    hidden_axis : callable
        Returns the array axis that is not on screen.
    on_gesture : callable(Gesture)
    on_drawing : callable(Gesture)
        A drawing tool's path so far.
    on_message : callable(str)
    """

    def __init__(
        self,
        viewer: Any,
        image: Layer,
        hidden_axis: Callable[[], int],
        *,
        on_gesture: Callable[[Gesture], None],
        on_drawing: Callable[[Gesture], None],
        on_message: Callable[[str], None],
    ) -> None:
        self._viewer = viewer
        self._image = image
        self._hidden_axis = hidden_axis
        self._on_gesture = on_gesture
        self._on_drawing = on_drawing
        self._on_message = on_message
        self._on_hover: Callable[[], None] | None = None
        self._hovered: NDArray[np.float64] | None = None
        self._layer: Points | None = None
        self._keys: tuple[Any, ...] = ()
        self._drags = False

    @property
    def layer(self) -> Points | None:
        """The layer that is bound, if any."""
        return self._layer

    def bind(self, layer: Points, *, drags: bool, keys: Mapping[Any, Callable[[], None]]) -> None:
        """Listen on this layer; ``drags`` keeps the left button for drawing."""
        self.unbind()
        self._layer = layer
        self._drags = drags
        layer.mode = "pan_zoom"
        layer.mouse_pan = not drags
        layer.mouse_drag_callbacks.append(self._on_press)
        self._keys = tuple(keys)
        for key, command in keys.items():
            layer.bind_key(key, _key_handler(command), overwrite=True)

    def unbind(self) -> None:
        """Take every callback and key away from the layer."""
        layer, self._layer = self._layer, None
        if layer is None:
            return
        if self._on_press in layer.mouse_drag_callbacks:
            layer.mouse_drag_callbacks.remove(self._on_press)
        for key in self._keys:
            layer.bind_key(key, None)
        self._keys = ()
        if self._drags:
            layer.mouse_pan = layer.mode == "pan_zoom"
        self._listen_to_moves(layer, None)

    def follow_cursor(self, on_hover: Callable[[], None] | None) -> None:
        """Call this whenever the mouse moves between clicks; ``None``: don't listen to that."""
        if self._layer is not None:
            self._listen_to_moves(self._layer, on_hover)

    def place_under_cursor(self) -> NDArray[np.float64] | None:
        """Return the index a click would have where the mouse is; ``None``: not on the image.

        The slice may have changed since the mouse moved: the click would be on the one shown.
        """
        dims = self._viewer.dims
        if self._hovered is None or dims.ndisplay != 2 or len(self._hovered) != dims.ndim:
            return None
        position = np.array(dims.point, dtype=np.float64)
        shown = list(dims.displayed)
        position[shown] = self._hovered[shown]
        return self._index(position, self._hidden_axis())

    def _listen_to_moves(self, layer: Points, on_hover: Callable[[], None] | None) -> None:
        self._on_hover = on_hover
        callbacks = layer.mouse_move_callbacks
        if on_hover is None:
            self._hovered = None
            if self._on_move in callbacks:
                callbacks.remove(self._on_move)
        elif self._on_move not in callbacks:
            callbacks.append(self._on_move)

    def _on_move(self, layer: Points, event: Any) -> None:
        self._hovered = np.array(event.position, dtype=np.float64)
        if self._on_hover is not None:
            self._on_hover()

    def _on_press(self, layer: Points, event: Any) -> Iterator[None]:
        if event.button != 1 or layer.mode != "pan_zoom":
            return
        if self._viewer.dims.ndisplay != 2:
            self._on_message(NO_DEPTH)
            return
        axis = self._hidden_axis()
        start = np.array(event.pos, dtype=np.float64)
        swapped = "Shift" in event.modifiers
        path = [self._index(event.position, axis)]
        dragged = False
        yield
        while event.type == "mouse_move":
            dragged |= bool(np.linalg.norm(np.array(event.pos) - start) > _DRAG_PIXELS)
            if self._drags:
                path.append(self._index(event.position, axis))
                if dragged:
                    self._on_drawing(Gesture(np.array(path), True, swapped, axis))
            yield
        if self._drags or not dragged:
            self._on_gesture(Gesture(np.array(path), dragged, swapped, axis))

    def _index(self, position: Any, axis: int) -> NDArray[np.float64]:
        index = index_at(self._image, layer_position(self._viewer, self._image, position))
        index[axis] = np.rint(index[axis])
        return index


def _key_handler(command: Callable[[], None]) -> Callable[[Any], None]:
    return lambda _layer: command()
