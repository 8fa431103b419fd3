"""Prompts for many objects at once, taken from a points or shapes layer of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from napari.layers import Layer, Points, Shapes
from numpy.typing import NDArray

from napari_openmedlab.bridge.positions import volume_points
from napari_openmedlab.bridge.viewer import unit_factors
from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.prompts import BoxPrompt, Click, PromptSet, as_point
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.session.prompt_files import NamedPrompts

__all__ = ["prompts_of_layer", "world_of_layer"]

_NAME_COLUMNS = ("name", "label", "structure", "class", "object")


def prompts_of_layer(
    viewer: Any, layer: Layer, image: Layer, geometry: Geometry
) -> list[NamedPrompts]:
    """Return one object for each point or shape, or for each name if they have names.

    Parameters
    ----------
    viewer : napari.Viewer
    layer : Points or Shapes
        A point is a positive click; a shape's extent is a box. Names come from a feature column
        called name, label, structure, class or object; points of one name are clicks of one
        object, and the box of one name holds all its shapes (corners on two slices make it 3D).
    image : Layer
        The image layer of the session, which may have another scale, place or unit.
    geometry : Geometry
        The session's grid.

    Raises
    ------
    PromptError
        If the layer is of another kind or empty, or a point lies outside the image.
    """
    if isinstance(layer, Points):
        corners = [row.reshape(1, -1) for row in np.asarray(layer.data, dtype=np.float64)]
    elif isinstance(layer, Shapes):
        corners = [np.asarray(shape, dtype=np.float64) for shape in layer.data]
    else:
        raise PromptError(f"'{layer.name}' holds neither points nor shapes")
    if not corners:
        raise PromptError(f"layer '{layer.name}' is empty; add points or rectangles to it first")
    kind = "Point" if isinstance(layer, Points) else "Box"
    grouped: dict[str, list[NDArray[np.float64]]] = {}
    for name, rows in zip(_names(layer, len(corners), kind), corners, strict=True):
        world = world_of_layer(viewer, layer, rows, image, geometry)
        grouped.setdefault(name, []).append(world)
    made = []
    for name, parts in grouped.items():
        prompts = _clicks(parts) if isinstance(layer, Points) else _box(parts, geometry)
        try:
            prompts.check_inside(geometry)
        except PromptError as error:
            raise PromptError(f"layer '{layer.name}', {name}: {error}") from error
        made.append(NamedPrompts(name, prompts))
    return made


def world_of_layer(
    viewer: Any, layer: Layer, rows: NDArray[np.float64], image: Layer, geometry: Geometry
) -> NDArray[np.float64]:
    """Return world points (N, 3) as (x, y, z) of data coordinates (N, ndim) of any layer.

    Both layers' transforms and units count; a layer with fewer axes is taken on the slice shown.
    """
    shown = np.array(viewer.dims.point, dtype=np.float64)
    own, other = unit_factors(viewer, layer), unit_factors(viewer, image)
    found = []
    for row in rows:
        position = shown.copy()
        position[-layer.ndim :] = np.asarray(layer.data_to_world(row)) / own
        found.append(image.world_to_data(position[-image.ndim :] * other))
    return geometry.to_world(volume_points(image, np.array(found)))


def _names(layer: Layer, count: int, kind: str) -> Sequence[str]:
    features = layer.features
    for column in _NAME_COLUMNS:
        if column in features.columns:
            texts = ["" if value != value else str(value).strip() for value in features[column]]
            return [text or f"{kind} {n}" for n, text in enumerate(texts, start=1)]
    return [f"{kind} {n}" for n in range(1, count + 1)]


def _clicks(parts: list[NDArray[np.float64]]) -> PromptSet:
    return PromptSet(clicks=tuple(Click(as_point(row)) for part in parts for row in part))


def _box(parts: list[NDArray[np.float64]], geometry: Geometry) -> PromptSet:
    """Return the box, along the scan's own axes, of all corners."""
    index = geometry.to_index(np.concatenate(parts))
    low, high = geometry.to_world([index.min(axis=0), index.max(axis=0)])
    return PromptSet(boxes=(BoxPrompt(as_point(low), as_point(high)),))
