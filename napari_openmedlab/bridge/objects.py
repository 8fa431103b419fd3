"""The labels layer of a session: one array, shared; colours from the objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels, Layer

from napari_openmedlab.bridge.display import label_colormap
from napari_openmedlab.bridge.layers import (
    METADATA_KEY,
    LayerData,
    LayerTag,
    label_features,
    layer_spatial,
)

if TYPE_CHECKING:
    from napari_openmedlab.session.objects import SegmentObject
    from napari_openmedlab.session.session import Session

__all__ = ["SESSION_KEY", "labels_layer_for", "show_objects"]

SESSION_KEY = "openmedlab_session"
"""Where a labels layer keeps its session, so that the Export panel finds it there."""


def labels_layer_for(session: Session, layer: Layer) -> LayerData:
    """Return the labels layer that shows a session's objects over its image layer.

    The layer's data *is* ``session.labels`` (a view of it without the slice axis over a 2D
    image): what the session writes is on screen after a refresh, what the user paints is in the
    session's array at once.
    """
    data = session.labels if layer.ndim == 3 else session.labels[0]
    kwargs: dict[str, Any] = {
        "name": f"{layer.name} objects",
        **layer_spatial(layer),
        "opacity": 0.5,
        "metadata": {
            METADATA_KEY: LayerTag.new("labels", session.volume),
            SESSION_KEY: session,
        },
        "colormap": _colormap(session.objects),
        "features": label_features({o.id: o for o in session.objects}),
    }
    return data, kwargs, "labels"


def show_objects(layer: Labels, objects: Iterable[SegmentObject]) -> None:
    """Bring names, colours and visibility of the objects to their labels layer."""
    objects = tuple(objects)
    colormap = _colormap(objects)
    if not _same_colours(layer.colormap, colormap):
        layer.colormap = colormap
    layer.features = label_features({o.id: o for o in objects})


def _colormap(objects: Iterable[SegmentObject]) -> Any:
    return label_colormap({o.id: (o.colour, o.visible) for o in objects})


def _same_colours(one: Any, other: Any) -> bool:
    """Return whether two direct colormaps agree; a new one costs a full redraw."""
    mine, theirs = getattr(one, "color_dict", None), other.color_dict
    if mine is None or set(mine) != set(theirs):
        return False
    return all(np.allclose(mine[value], theirs[value]) for value in theirs)
