"""A structure's box on the canvas: its outline on the slice shown, and handles on its walls.

napari has no 3D box. The outline is a shapes layer, redrawn for the slice and plane at hand; the
handles are a points layer with one point on each wall that cuts the slice, so that a wall is
dragged in any view it is seen in. In 3D all twelve edges show.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from napari.layers import Layer, Points, Shapes
from numpy.typing import NDArray
from psygnal import Signal

from napari_openmedlab.bridge.layers import METADATA_KEY, LayerTag, layer_spatial
from napari_openmedlab.bridge.viewer import unit_factors
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.localisation import WALLS

__all__ = ["BoxHandles", "boundary_after", "handles_on", "outline_on"]

_VIEW_EVENTS = ("current_step", "order", "ndisplay")
_LETTERS = {name: name[0].upper() for name in WALLS}
_AXES = {"superior": 0, "inferior": 0, "anterior": 1, "posterior": 1, "right": 2, "left": 2}
_ENDS = ("inferior", "posterior", "left")  # walls at the high end of their axis in I, P, L order
_PIXELS = (10, 18)
_LINE_VOXELS = 0.6
_COLOUR = "#22d3ee"


class BoxHandles:
    """Shows one box over an image layer and says when a wall was dragged.

    Parameters
    ----------
    viewer : napari.Viewer
    image : Layer
        Its place on screen is taken over.
    volume : Volume
        What it shows; axes in display order (I, P, L).

    Attributes
    ----------
    moved : Signal(str, int)
        A wall was let go: its name, and the voxel boundary it stands at now.
    """

    moved = Signal(str, int)

    def __init__(self, viewer: Any, image: Layer, volume: Volume) -> None:
        self._viewer, self._image, self._volume = viewer, image, volume
        self._box: Box | None = None
        self._walls: list[str] = []
        self._points: Points | None = None
        self._shapes: Shapes | None = None
        self._writing = False
        viewer.layers.events.removed.connect(self._on_removed)
        for name in _VIEW_EVENTS:
            getattr(viewer.dims.events, name).connect(self._on_view)

    @property
    def points(self) -> Points | None:
        """The layer of the handles."""
        return self._points

    @property
    def box(self) -> Box | None:
        """The box shown."""
        return self._box

    def show(self, box: Box | None, name: str = "") -> None:
        """Show this box, or none; the handles become the active layer, ready to be dragged."""
        self._box = None if box is None or box.is_empty else box
        if self._box is None:
            self.hide()
            return
        self._shapes = self._shapes or self._add_shapes()
        self._points = self._points or self._add_points()
        self._points.name = f"walls of {name}" if name else "walls"
        self._draw()
        self._viewer.layers.selection.active = self._points
        self._points.mode = "select"

    def hide(self) -> None:
        """Take the box away."""
        self._box = None
        layers, self._points, self._shapes = (self._points, self._shapes), None, None
        for layer in layers:
            if layer is not None and layer in self._viewer.layers:
                self._viewer.layers.remove(layer)

    def close(self, *, remove: bool = True) -> None:
        """Stop listening; take the box away, unless the window is going anyway."""
        self._viewer.layers.events.removed.disconnect(self._on_removed)
        for name in _VIEW_EVENTS:
            getattr(self._viewer.dims.events, name).disconnect(self._on_view)
        if remove:
            self.hide()

    # -- inside ----------------------------------------------------------------------------

    def _add_points(self) -> Points:
        layer = Points(
            np.zeros((0, 3)),
            ndim=3,
            name="walls",
            **layer_spatial(self._image),
            features={"wall": np.zeros(0, dtype=str)},
            text={"string": "{wall}", "size": 8, "color": "black", "anchor": "center"},
            face_color=_COLOUR,
            border_color="black",
            border_width=0.1,
            symbol="square",
            size=0.03 * max(self._volume.geometry.shape[1:]),
            canvas_size_limits=_PIXELS,
            metadata={METADATA_KEY: LayerTag.new("prompts", self._volume)},
        )
        layer.events.data.connect(self._on_dragged)
        self._viewer.add_layer(layer)
        return layer

    def _add_shapes(self) -> Shapes:
        layer = Shapes(
            ndim=3,
            name="box",
            **layer_spatial(self._image),
            edge_color=_COLOUR,
            face_color="transparent",
            metadata={METADATA_KEY: LayerTag.new("prompts", self._volume)},
        )
        self._viewer.add_layer(layer)
        return layer

    def _hidden(self) -> tuple[int, int] | None:
        """Return the axis across the screen and the slice shown; ``None`` in 3D."""
        dims = self._viewer.dims
        first = dims.ndim - 3
        hidden = [axis - first for axis in range(first, dims.ndim) if axis not in dims.displayed]
        if dims.ndisplay != 2 or len(hidden) != 1:
            return None
        point = np.array(dims.point, dtype=np.float64)[-3:] * unit_factors(
            self._viewer, self._image
        )
        index = self._image.world_to_data(point)
        return hidden[0], round(float(index[hidden[0]]))

    def _draw(self) -> None:
        box, points, shapes = self._box, self._points, self._shapes
        if box is None or points is None or shapes is None:
            return
        plane = self._hidden()
        places = handles_on(box, plane)
        self._walls = list(places)
        lines = outline_on(box, plane)
        with self._quiet():
            shapes.data = []
            if lines:
                shapes.add_paths(lines, edge_color=_COLOUR, edge_width=_LINE_VOXELS)
            points.selected_data = set()
            points.data = np.array(list(places.values()), dtype=float).reshape(-1, 3)
            points.features = {"wall": [_LETTERS[wall] for wall in self._walls]}
            points.size = 0.03 * max(self._volume.geometry.shape[1:])

    def _on_dragged(self, event: Any) -> None:
        if self._writing or self._box is None or self._points is None:
            return
        if event.action in ("added", "removed"):
            self._draw()  # the six walls are all there is
        elif event.action == "changed":
            moved = self._moved()
            if moved is None:
                self._draw()
            else:
                self.moved.emit(*moved)

    def _moved(self) -> tuple[str, int] | None:
        """Return the wall that was dragged farthest, and where it stands now."""
        assert self._points is not None
        assert self._box is not None
        data = np.asarray(self._points.data)
        best: tuple[float, str, int] = (0.0, "", 0)
        shape = self._volume.geometry.shape
        for wall, place in zip(self._walls, data, strict=False):
            boundary = boundary_after(self._box, wall, float(place[_AXES[wall]]), shape)
            now = _boundary(self._box, wall)
            if abs(boundary - now) > best[0]:
                best = (abs(boundary - now), wall, boundary)
        return best[1:] if best[1] else None

    def _on_view(self, event: Any = None) -> None:
        self._draw()

    def _on_removed(self, event: Any) -> None:
        """Show the box again if the user deletes one of its two layers."""
        if event.value not in (self._points, self._shapes) or self._writing:
            return
        if event.value is self._points:
            self._points = None
        else:
            self._shapes = None

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        before, self._writing = self._writing, True
        try:
            yield
        finally:
            self._writing = before


def _boundary(box: Box, wall: str) -> int:
    axis = _AXES[wall]
    return (box.stop if wall in _ENDS else box.start)[axis]


def boundary_after(box: Box, wall: str, place: float, shape: tuple[int, int, int]) -> int:
    """Return the voxel boundary for a wall that was let go at an index on its axis.

    It stays inside the scan, and at least one voxel from the opposite wall.
    """
    axis = _AXES[wall]
    boundary = int(np.floor(place + 1.0))  # the boundary nearest to a face at boundary - 0.5
    if wall in _ENDS:
        return min(max(boundary, box.start[axis] + 1), shape[axis])
    return min(max(boundary, 0), box.stop[axis] - 1)


def handles_on(box: Box, plane: tuple[int, int] | None) -> dict[str, NDArray[np.float64]]:
    """Return where the handles of a box stand: wall to index (z, y, x).

    Parameters
    ----------
    box : Box
    plane : (int, int) or None
        Axis across the screen and slice; the walls that cut the slice get a handle on it, none
        if the slice lies outside the box. ``None``: 3D, all six.
    """
    middle = (np.array(box.start) + np.array(box.stop) - 1) / 2
    if plane is not None:
        axis, number = plane
        if not box.start[axis] <= number < box.stop[axis]:
            return {}
        middle[axis] = number
    places = {}
    for wall in WALLS:
        if plane is not None and _AXES[wall] == plane[0]:
            continue
        place = middle.copy()
        place[_AXES[wall]] = _boundary(box, wall) - 0.5
        places[wall] = place
    return places


def outline_on(box: Box, plane: tuple[int, int] | None) -> list[NDArray[np.float64]]:
    """Return the lines (N, 3) of a box on a slice, or its twelve edges in 3D."""
    low, high = np.array(box.start) - 0.5, np.array(box.stop) - 0.5
    if plane is None:
        edges = []
        for axis in range(3):
            first, second = (a for a in range(3) if a != axis)
            for one in (low, high):
                for two in (low, high):
                    ends = np.array([low, high])
                    ends[:, first], ends[:, second] = one[first], two[second]
                    edges.append(ends)
        return edges
    axis, number = plane
    if not box.start[axis] <= number < box.stop[axis]:
        return []
    first, second = (a for a in range(3) if a != axis)
    corners = np.zeros((5, 3))
    corners[:, axis] = number
    corners[:, first] = [low[first], low[first], high[first], high[first], low[first]]
    corners[:, second] = [low[second], high[second], high[second], low[second], low[second]]
    return [corners]
