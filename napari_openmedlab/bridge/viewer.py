"""The viewer: the object behind napari's proxy, and the units its world is in."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.layers import Layer
from numpy.typing import ArrayLike, NDArray

__all__ = ["layer_position", "plain_viewer", "unit_factors"]


def plain_viewer(viewer: Any) -> Any:
    """Return the viewer behind the proxy that napari hands to widgets of plugins.

    The proxy keeps plugins from private names, which we do not use, and wraps whatever is
    reached through it anew each time: two accesses to one layer give two objects. We know
    layers by reference, so we need the layers themselves.
    """
    return getattr(viewer, "__wrapped__", viewer)


def unit_factors(viewer: Any, layer: Layer) -> NDArray[np.float64]:
    """Return, for each axis of a layer, the viewer's world unit in the layer's own unit.

    With layers in mm and in um side by side, napari counts its world in one of them, while a
    layer's transforms go on counting in its own. Units that can't be compared count as equal,
    which is how napari draws them.
    """
    world = tuple(getattr(viewer.dims, "units", None) or ())[-layer.ndim :]
    own = layer.units[-len(world) :] if world else ()
    factors = np.ones(layer.ndim)
    for axis, (unit, wanted) in enumerate(zip(world, own, strict=True), layer.ndim - len(own)):
        if unit != wanted and unit.is_compatible_with(wanted):
            factors[axis] = float((1 * unit).to(wanted).magnitude)
    return factors


def layer_position(viewer: Any, layer: Layer, position: ArrayLike) -> NDArray[np.float64]:
    """Return a position of the viewer (``event.position``, ``dims.point``) in a layer's units.

    Surplus leading axes are dropped.
    """
    return np.asarray(position, dtype=np.float64)[-layer.ndim :] * unit_factors(viewer, layer)
