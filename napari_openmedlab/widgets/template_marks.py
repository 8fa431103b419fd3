"""Marking a structure by its six extreme points: a points layer, and what to click next.

The words stand in the slice itself, where the user looks. Points may be set in any order, dragged
and deleted with napari's own tools.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from napari.components.overlays import TextOverlay
from napari.layers import Layer, Points
from numpy.typing import NDArray
from psygnal import Signal

from napari_openmedlab.bridge.layers import METADATA_KEY, LayerTag, layer_spatial
from napari_openmedlab.bridge.positions import volume_points
from napari_openmedlab.cohort.guidance import Guidance, guide
from napari_openmedlab.geometry.prompts import as_point
from napari_openmedlab.geometry.volume import Volume

__all__ = ["TemplateMarks"]

_OVERLAY = "openmedlab_template"
_COLOUR = "#facc15"
_PIXELS = (8, 16)
_POINTS = 6
_WORDS_WIDE = 48


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
            position="bottom_left", font_size=12, visible=True, text=self._in_slice()
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
        """Whether there are six points that can be the ends of one structure."""
        return self._guide().complete

    def guidance(self) -> str:
        """Return what to do next, or what is wrong with the six points."""
        sentence = self._guide().sentence
        return f"{sentence[:1].upper()}{sentence[1:]}"

    def _in_slice(self) -> str:
        """Return the words as they stand in the slice: in short lines, for none is wrapped."""
        return "\n".join(textwrap.wrap(self.guidance(), _WORDS_WIDE))

    def _guide(self) -> Guidance:
        points = [as_point(point) for point in self.points]
        return guide(points, self._name, self._volume.geometry)

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
        self._viewer.canvas.overlays[_OVERLAY].text = self._in_slice()
        self.changed.emit()

    def _write_roles(self) -> None:
        count = len(self._layer.data)
        placed = self._guide().placed or ("",) * count
        self._layer.features = {"role": [wall[:1].upper() for wall in placed]}
        if count >= _POINTS and self._layer.mode == "add":
            self._layer.mode = "select"  # a seventh click would spoil them
