"""How volumes and objects look: contrast limits and label colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from napari.utils.colormaps import DirectLabelColormap
from numpy.typing import NDArray

from napari_openmedlab.geometry.volume import Volume

__all__ = ["contrast_limits", "label_colormap"]

Colour = tuple[float, float, float]

_SOFT_TISSUE = (-160.0, 240.0)  # the usual abdominal CT window: level 40, width 400 HU
_FAR_BELOW_WATER = -500.0  # HU; files that don't name their modality and reach lower are CT
_SAMPLE = 64  # about this many voxels along each axis are looked at
_UNNAMED = (0.6, 0.6, 0.6, 1.0)


def contrast_limits(volume: Volume, levels: Sequence[Any] = ()) -> tuple[float, float]:
    """Return sensible display limits without reading the whole image.

    A CT gets the soft-tissue window where its values reach it (so does a file that states no
    modality, as NIfTI, but holds values far below water); anything else the 0.5 and 99.8
    percentiles of a sparse sample. Values that are not finite are ignored.

    Notes
    -----
    At most about ``64**3`` voxels are looked at; of a lazy image only a block of three slices
    (or the coarsest level, if small) is read.
    """
    values = _sample(levels[-1] if len(levels) > 1 else volume.array)
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.8)))
    looks_like_ct = volume.modality == "" and values.min() < _FAR_BELOW_WATER
    reaches = low < _SOFT_TISSUE[1] and high > _SOFT_TISSUE[0]
    if reaches and (volume.modality == "CT" or looks_like_ct):
        return _SOFT_TISSUE
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low, low + 1.0)


def _sample(array: Any) -> NDArray[np.float64]:
    """Return finite values of a sparse sample of an array, cheap for lazy ones."""
    if isinstance(array, np.ndarray):
        steps = tuple(slice(None, None, max(1, n // _SAMPLE)) for n in array.shape)
        values = array[steps]
    else:
        rows = sorted({array.shape[0] * k // 4 for k in (1, 2, 3)})
        block = tuple(
            slice(max(0, n // 2 - 4 * _SAMPLE), n // 2 + 4 * _SAMPLE) for n in array.shape[1:]
        )
        values = np.concatenate([np.asarray(array[(slice(r, r + 1), *block)]) for r in rows])
        values = values[:, ::2, ::2]
    flat = np.asarray(values, dtype=np.float64).ravel()
    return flat[np.isfinite(flat)]


def label_colormap(colours: Mapping[int, tuple[Colour, bool]]) -> DirectLabelColormap:
    """Return napari's colormap for label values.

    Parameters
    ----------
    colours : mapping of int to (colour, visible)
        Colour (r, g, b) from 0 to 1; a hidden value is transparent. Values that are not in the
        mapping show in grey, so that no voxel of a mask can go unseen.
    """
    table: dict[int | None, Any] = {None: np.array(_UNNAMED), 0: np.zeros(4)}
    for value, (colour, visible) in colours.items():
        table[int(value)] = np.array([*colour, 1.0 if visible else 0.0])
    return DirectLabelColormap(color_dict=table)
