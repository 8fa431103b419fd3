"""Marking a structure by its six extreme points: a points layer, and what to click next.

The words stand in the slice itself, where the user looks. Points may be set in any order, dragged
and deleted with napari's own tools.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.components.overlays import TextOverlay
from napari.layers import Layer, Points
from numpy.typing import NDArray
from psygnal import Signal

from napari_openmedlab.bridge.layers import METADATA_KEY, LayerTag, layer_spatial
from napari_openmedlab.bridge.positions import volume_points
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.widgets.tools import assign_roles, roles_of

__all__ = ["TemplateMarks", "what_next"]

_OVERLAY = "openmedlab_template"
_COLOUR = "#facc15"
_PIXELS = (8, 16)
_POINTS = 6


class TemplateMarks:
    """The points of one structure being marked on an image layer.

    Parameters
    ----------
    viewer : napari.Viewer
    image : Layer
    volume : Volume
        What the layer shows.
    name : str
        Of the structure.

    Attributes
    ----------
    changed : Signal()
        A point came, went or was moved.
    """

    changed = Signal()

    def __init__(self, viewer: Any, image: Layer, volume: Volume, name: str) -> None:
        self._viewer, self._image, self._volume, self._name = viewer, image, volume, name
        self._writing = False
        self._layer = Points(
            np.zeros((0, 3)),
            ndim=3,
            name=f"template: {name}",
            **layer_spatial(image),
            features={"role": np.zeros(0, dtype=str)},
            text={"string": "{role}", "size": 9, "color": "black", "anchor": "center"},
            face_color=_COLOUR,
            border_color="black",
            border_width=0.08,
            size=0.03 * max(volume.geometry.shape[1:]),
            canvas_size_limits=_PIXELS,
            metadata={METADATA_KEY: LayerTag.new("prompts", volume)},
        )
        viewer.add_layer(self._layer)
        viewer.layers.selection.active = self._layer
        self._layer.mode = "add"
        self._layer.events.data.connect(self._on_data)
        viewer.canvas.overlays[_OVERLAY] = TextOverlay(
            position="bottom_left", font_size=12, visible=True, text=self.guidance()
        )

    @property
    def layer(self) -> Points:
        """The points layer."""
        return self._layer

    @property
    def points(self) -> NDArray[np.float64]:
        """World points (N, 3), LPS mm."""
        return self._volume.geometry.to_world(volume_points(self._layer, self._layer.data))

    @property
    def complete(self) -> bool:
        """Whether all six are set."""
        return len(self._layer.data) == _POINTS

    def guidance(self) -> str:
        """Return what to do next."""
        return what_next(self._name, self.points, self._volume.geometry.frame)

    def close(self) -> None:
        """Take points and words away."""
        self._viewer.canvas.overlays.pop(_OVERLAY, None)
        self._layer.events.data.disconnect(self._on_data)
        if self._layer in self._viewer.layers:
            self._viewer.layers.remove(self._layer)

    def _on_data(self, event: Any) -> None:
        if self._writing or event.action not in ("added", "removed", "changed"):
            return
        self._writing = True
        try:
            self._write_roles()
        finally:
            self._writing = False
        self._viewer.canvas.overlays[_OVERLAY].text = self.guidance()
        self.changed.emit()

    def _write_roles(self) -> None:
        points, frame = self.points, self._volume.geometry.frame
        roles = ["" for _ in points]
        if len(points) <= _POINTS:
            roles = [role.letter for role in assign_roles(points, frame)]
        self._layer.features = {"role": roles}
        if len(points) >= _POINTS and self._layer.mode == "add":
            self._layer.mode = "select"  # a seventh click would spoil them


def what_next(name: str, points: NDArray[np.float64], frame: Any) -> str:
    """Return the sentence for the next of the six points."""
    count = len(points)
    if count > _POINTS:
        return f"{name}: {count} points, but a structure has six; delete {count - _POINTS}."
    if count == _POINTS:
        return f"{name}: all six points are set. Drag one to correct it, then add it."
    taken = assign_roles(points, frame)
    wanted = next(role for role in roles_of(frame) if role not in taken)
    return f"{name}, point {count + 1} of 6: {wanted.name}. Scroll to it and click."
