"""A label of some labels layer, taken as the mask an object starts from."""

from __future__ import annotations

import numpy as np
from napari.layers import Labels

from napari_openmedlab.bridge.layers import volume_of_layer
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.volume import Geometry

__all__ = ["mask_of_layer"]


def mask_of_layer(layer: Labels) -> tuple[MaskPatch, Geometry]:
    """Return the voxels of the layer's selected label, on the layer's own grid.

    Raises
    ------
    GeometryError
        If the layer is not a 2D or 3D label map.
    """
    volume = volume_of_layer(layer)
    mask = np.asarray(volume.array) == layer.selected_label
    return MaskPatch.of(mask), volume.geometry
