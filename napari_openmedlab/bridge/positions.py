"""Points between napari's world, voxel indices and patient millimetres.

Every conversion goes through voxel indices: napari's world is straightened for oblique scans,
so only the index is common ground. A 2D layer is the single slice of a volume (z = 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from napari.layers import Layer
from numpy.typing import ArrayLike, NDArray

from napari_openmedlab.bridge.viewer import unit_factors
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Geometry

__all__ = [
    "data_points",
    "index_at",
    "jump_to",
    "point_at",
    "position_of",
    "visible_box",
    "volume_points",
]


def index_at(layer: Layer, position: ArrayLike) -> NDArray[np.float64]:
    """Return the fractional voxel index (z, y, x) under a napari world position.

    Parameters
    ----------
    layer : Layer
        The image layer, 2D or 3D.
    position : array-like of float
        ``event.position`` or ``viewer.cursor.position``: all axes of the viewer, in their own
        order whatever the display order is. Surplus leading axes are ignored.
    """
    return volume_points(layer, [layer.world_to_data(np.asarray(position, dtype=np.float64))])[0]


def point_at(layer: Layer, geometry: Geometry, position: ArrayLike) -> NDArray[np.float64]:
    """Return the world point (x, y, z) - LPS mm for a patient - under a napari position."""
    return geometry.to_world(index_at(layer, position))


def position_of(layer: Layer, geometry: Geometry, point: ArrayLike) -> tuple[float, ...]:
    """Return the napari world position (one number per layer axis) of a point (x, y, z)."""
    index = data_points(layer, geometry, np.asarray(point))[0]
    return tuple(float(v) for v in layer.data_to_world(index))


def data_points(layer: Layer, geometry: Geometry, points: ArrayLike) -> NDArray[np.float64]:
    """Return points (N, 3) as (x, y, z) in the data coordinates of the layer.

    A points layer made with the image layer's own transforms takes these as its data.
    """
    index = geometry.to_index(np.asarray(points, dtype=np.float64).reshape(-1, 3))
    return index[:, 3 - layer.ndim :]


def volume_points(layer: Layer, data: ArrayLike) -> NDArray[np.float64]:
    """Return data coordinates (N, 2 or 3) of the layer as volume indices (N, 3)."""
    rows = np.asarray(data, dtype=np.float64).reshape(-1, layer.ndim)
    return np.hstack([np.zeros((len(rows), 3 - layer.ndim)), rows])


def jump_to(viewer: Any, layer: Layer, index: Sequence[float]) -> None:
    """Move the sliders, and the middle of the view, to a voxel index (z, y, x) of the layer."""
    position = np.array(layer.data_to_world(np.asarray(index, dtype=np.float64)[3 - layer.ndim :]))
    position = position / unit_factors(viewer, layer)
    first = viewer.dims.ndim - layer.ndim  # layers are aligned to the last axes
    for axis, value in enumerate(position):
        viewer.dims.set_point(first + axis, value)
    centre = np.array(viewer.scene.camera.center, dtype=np.float64)
    shown = [axis - first for axis in viewer.dims.displayed]
    if min(shown) >= 0:
        centre[-len(shown) :] = position[shown]
        viewer.scene.camera.center = tuple(centre)


def visible_box(viewer: Any, layer: Layer, shape: tuple[int, int, int]) -> Box:
    """Return the part of a volume that the view shows: its rectangle, through all slices.

    In 3D, all of it. Empty if the layer is out of sight.

    Parameters
    ----------
    viewer : napari.Viewer
    layer : Layer
        The image layer, 2D or 3D.
    shape : tuple of int
        Of the volume (z, y, x).
    """
    whole = Box.whole(shape)
    if viewer.dims.ndisplay != 2:
        return whole
    start, stop = list(whole.start), list(whole.stop)
    corners = np.asarray(layer.corner_pixels, dtype=np.float64)
    if layer.multiscale:
        corners = corners * np.asarray(layer.downsample_factors[layer.data_level])
    first = viewer.dims.ndim - layer.ndim
    for shown in viewer.dims.displayed:
        if shown >= first:
            axis = shown - first + 3 - layer.ndim
            low, high = sorted(corners[:, shown - first])
            start[axis] = int(np.floor(max(low, 0)))
            stop[axis] = max(start[axis], int(np.ceil(min(high + 1, shape[axis]))))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2])).intersection(whole)
