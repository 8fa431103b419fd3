"""The layers that show the prompts of the active object and let the user move or delete them.

Points (extreme points, clicks, scribbles) are one points layer; the box is one shapes layer
that shows its outline on the visible slice. Both are ours alone: found by reference, made anew
when the user deletes them, and never the place where prompts are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from napari.layers import Layer, Points, Shapes
from numpy.typing import NDArray
from psygnal import Signal

from napari_openmedlab.bridge.layers import METADATA_KEY, LayerTag, layer_spatial
from napari_openmedlab.bridge.positions import data_points, index_at, volume_points
from napari_openmedlab.bridge.viewer import layer_position
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.prompts import BoxPrompt, Point, PromptSet
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.widgets.point_rows import PointRows, rows_of, rows_to_prompts

__all__ = ["PromptLayers"]

_VIEW_EVENTS = ("current_step", "order", "ndisplay")
_EDITS = ("added", "removed", "changed")
_POINT_PIXELS = (0, 18)  # on screen; napari's own stand-in for "no point" must stay unseen
_POINT_SHARE = 0.03  # of the image's longest side
_BOX_COLOUR = "#22d3ee"
_LINE_VOXELS = 0.8


class PromptLayers:
    """Shows one object's prompts over an image layer.

    Parameters
    ----------
    viewer : napari.Viewer
    image : Layer
        The image layer; its place on screen is taken over.
    volume : Volume
        What the layer shows.

    Attributes
    ----------
    edited : Signal(PromptSet)
        The user changed points or the box with napari's own tools.
    points_removed : Signal()
        The user deleted the points layer.
    view_changed : Signal()
        Another slice, another plane, or 2D against 3D.
    """

    edited = Signal(PromptSet)
    points_removed = Signal()
    view_changed = Signal()

    def __init__(self, viewer: Any, image: Layer, volume: Volume) -> None:
        self._viewer = viewer
        self._image = image
        self._volume = volume
        self._points: Points | None = None
        self._shapes: Shapes | None = None
        self._prompts = PromptSet()
        self._rows: PointRows = rows_of(PromptSet(), "patient")
        self._corner: Point | None = None
        self._writing = False
        viewer.layers.events.removed.connect(self._on_removed)
        for name in _VIEW_EVENTS:
            getattr(viewer.dims.events, name).connect(self._on_view)

    @property
    def points(self) -> Points | None:
        """The points layer, if there is one."""
        return self._points

    @property
    def shapes(self) -> Shapes | None:
        """The layer of the box and of the stroke being drawn, if there is one."""
        return self._shapes

    def ensure_points(self) -> Points:
        """Return the points layer, made now if there is none."""
        if self._points is None:
            self._points = self._add(self._new_points())
            self._points.events.data.connect(self._on_points_edited)
            self.show(self._prompts, self._corner)
        return self._points

    def show(self, prompts: PromptSet, corner: Point | None = None) -> None:
        """Show these prompts, and the first corner of a box that waits for its second."""
        self._prompts = prompts
        self._corner = corner
        self._rows = rows_of(prompts, self._volume.geometry.frame, corner)
        if self._points is None and len(self._rows.points):
            self.ensure_points()
            return
        if self._points is not None:
            self._write_points(self._points)
        self._show_box()

    def show_stroke(self, path: NDArray[np.float64], colour: str, width: float) -> None:
        """Draw a stroke or rectangle in the making; ``path`` (N, 3) holds voxel indices."""
        layer = self._ensure_shapes()
        data = path[:, 3 - self._image.ndim :]
        if len(data) == 1:
            data = np.repeat(data, 2, axis=0)
        with self._quiet():
            layer.data = []
            layer.add_paths([data], edge_color=colour, edge_width=width)

    def end_stroke(self) -> None:
        """Take the stroke in the making away and show the box again."""
        self._show_box(force=True)

    def close(self, *, remove: bool = True) -> None:
        """Stop listening; take both layers away, unless the window is going anyway."""
        self._viewer.layers.events.removed.disconnect(self._on_removed)
        for name in _VIEW_EVENTS:
            getattr(self._viewer.dims.events, name).disconnect(self._on_view)
        layers, self._points, self._shapes = (self._points, self._shapes), None, None
        for layer in layers:
            if remove and layer is not None and layer in self._viewer.layers:
                self._viewer.layers.remove(layer)

    # -- points ----------------------------------------------------------------------------

    def _new_points(self) -> Points:
        layer = Points(
            np.zeros((0, self._image.ndim)),
            ndim=self._image.ndim,
            name=f"{self._image.name} prompts",
            **layer_spatial(self._image),
            features=rows_of(PromptSet(), "patient").features(),
            text={
                "string": "{label}",
                "size": 8,
                "color": "black",
                "anchor": "center",
            },
            border_color="black",
            border_width=0.08,
            canvas_size_limits=_POINT_PIXELS,
            metadata={METADATA_KEY: LayerTag.new("prompts", self._volume)},
        )
        layer.feature_defaults = {
            "kind": "click",
            "positive": True,
            "group": -1,
            "row": -1,
            "label": "+",
        }
        return layer

    def _write_points(self, layer: Points) -> None:
        rows = self._rows
        with self._quiet():
            layer.selected_data = set()
            layer.data = data_points(self._image, self._volume.geometry, rows.points)
            layer.features = rows.features()
            if len(rows.points):
                layer.face_color = rows.colours()
                layer.symbol = rows.symbols()
                layer.size = _POINT_SHARE * max(self._volume.geometry.shape[1:])

    def _on_points_edited(self, event: Any) -> None:
        if self._writing or event.action not in _EDITS or self._points is None:
            return
        table = self._points.features
        index = volume_points(self._points, self._points.data)
        world = self._volume.geometry.to_world(index)
        known = data_points(self._image, self._volume.geometry, self._rows.points)
        rows = table["row"].to_numpy(dtype=int)
        for k, row in enumerate(rows):  # what was not moved keeps its exact place
            if 0 <= row < len(known) and np.array_equal(self._points.data[k], known[row]):
                world[k] = self._rows.points[row]
        self.edited.emit(rows_to_prompts(self._prompts, world, table))

    # -- the box ---------------------------------------------------------------------------

    def _ensure_shapes(self) -> Shapes:
        if self._shapes is None:
            layer = Shapes(
                ndim=self._image.ndim,
                name=f"{self._image.name} box",
                **layer_spatial(self._image),
                edge_color=_BOX_COLOUR,
                face_color="transparent",
                metadata={METADATA_KEY: LayerTag.new("prompts", self._volume)},
            )
            self._shapes = self._add(layer)
            self._shapes.events.data.connect(self._on_box_edited)
        return self._shapes

    def _on_view(self, event: Any = None) -> None:
        self._show_box()
        self.view_changed.emit()

    def _show_box(self, *, force: bool = False) -> None:
        if self._writing or (self._shapes is None and not self._prompts.boxes):
            return
        layer = self._ensure_shapes()
        outlines = [o for b in self._prompts.boxes for o in self._outline(b)]
        if not outlines and not len(layer.data) and not force:
            return
        kind = "rectangle" if self._viewer.dims.ndisplay == 2 else "path"
        with self._quiet():
            layer.selected_data = set()
            layer.data = []
            if outlines:
                layer.add(
                    outlines,
                    shape_type=kind,
                    edge_color=_BOX_COLOUR,
                    edge_width=_LINE_VOXELS,
                    face_color="transparent",
                )

    def _outline(self, prompt: BoxPrompt) -> list[NDArray[np.float64]]:
        """Return the box's rectangle on the visible slice, or its edges in 3D."""
        box = prompt.to_box(self._volume.geometry)
        low, high = np.array(box.start) - 0.5, np.array(box.stop) - 0.5
        first = 3 - self._image.ndim
        if self._viewer.dims.ndisplay == 3:
            return [edge[:, first:] for edge in _edges(low, high)]
        hidden = self.hidden_axis()
        corners = np.array([low, low, high, high])
        shown = [axis for axis in range(3) if axis != hidden]
        corners[1, shown[1]], corners[3, shown[1]] = high[shown[1]], low[shown[1]]
        here = self.visible_slice(hidden)
        if not box.start[hidden] <= here < box.stop[hidden]:
            return []
        corners[:, hidden] = here
        return [corners[:, first:]]

    def hidden_axis(self) -> int:
        """Return the array axis (0 z, 1 y, 2 x) that is not on screen in 2D display."""
        offset = self._viewer.dims.ndim - 3
        displayed = {axis - offset for axis in self._viewer.dims.displayed}
        return next((axis for axis in range(3) if axis not in displayed), 0)

    @property
    def in_slices(self) -> bool:
        """Whether the viewer shows slices, not 3D."""
        return bool(self._viewer.dims.ndisplay == 2)

    def visible_slice(self, axis: int) -> int:
        """Return the index of the slice on screen across an array axis."""
        place = layer_position(self._viewer, self._image, self._viewer.dims.point)
        return int(np.rint(index_at(self._image, place)[axis]))

    def _on_box_edited(self, event: Any) -> None:
        if self._writing or event.action not in _EDITS or self._shapes is None:
            return
        corners = [volume_points(self._shapes, shape) for shape in self._shapes.data]
        if not corners or not self._prompts.boxes:
            emptied = not corners and bool(self._prompts.boxes)
            boxes = () if emptied else tuple(self._box_of(c, None) for c in corners)
        else:
            old = self._prompts.boxes[0].to_box(self._volume.geometry)
            boxes = (self._box_of(corners[0], old),)
        self.edited.emit(replace(self._prompts, boxes=boxes))

    def _box_of(self, corners: NDArray[np.float64], old: Box | None) -> BoxPrompt:
        """Return the box with an edited outline; across the slice it stays as deep as it was."""
        low, high = corners.min(axis=0) + 0.5, corners.max(axis=0) - 0.5
        start, stop = np.rint(low).astype(int), np.rint(high).astype(int) + 1
        hidden = self.hidden_axis()
        if old is not None:
            start[hidden], stop[hidden] = old.start[hidden], old.stop[hidden]
        else:
            start[hidden] = self.visible_slice(hidden)
            stop[hidden] = start[hidden] + 1
        box = Box(tuple(start), tuple(np.maximum(stop, start + 1)))
        return BoxPrompt.from_box(box, self._volume.geometry)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Write to a layer without taking its events for the user's; may be nested."""
        before, self._writing = self._writing, True
        try:
            yield
        finally:
            self._writing = before

    # -- both ------------------------------------------------------------------------------

    def _add(self, layer: Any) -> Any:
        """Add a layer of ours without taking the selection away from the user's layer."""
        selected = self._viewer.layers.selection.active
        self._viewer.add_layer(layer)
        if selected is not None:
            self._viewer.layers.selection.active = selected
        return layer

    def _on_removed(self, event: Any) -> None:
        if event.value is self._points:
            self._points = None
            self.points_removed.emit()
        elif event.value is self._shapes:
            self._shapes = None


def _edges(low: NDArray[np.float64], high: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return the twelve edges of a box as pairs of points (2, 3)."""
    ends = np.array([low, high])
    edges = []
    for axis in range(3):
        across = [a for a in range(3) if a != axis]
        for one, other in ((0, 0), (0, 1), (1, 0), (1, 1)):
            edge = np.array([low, high])
            edge[:, across[0]], edge[:, across[1]] = ends[one, across[0]], ends[other, across[1]]
            edges.append(edge)
    return edges
