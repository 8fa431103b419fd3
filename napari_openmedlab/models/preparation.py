"""How a scan becomes a network's input, the same in training and in use.

Follows the ``Preprocessing`` of a model's card: grid, intensities, padding. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.grid import GridPlan
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.finetuned import Intensity

__all__ = ["Scaling", "grid_plan", "padding", "scaling_of"]

_MM = {"mm": 1.0, "um": 0.001}
_SAME = 1e-3  # relative difference of spacings that is none
_BLOCK = 8_000_000  # voxels looked at at once


@dataclass(frozen=True)
class Scaling:
    """Intensities of one scan to those of the network: ``(clip(v) - offset) / scale``.

    Attributes
    ----------
    offset, scale : float
    low, high : float
        Values beyond are cut off first; infinite where none are.
    """

    offset: float
    scale: float
    low: float = -np.inf
    high: float = np.inf

    def apply(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return scaled values in float32, of any shape; NaN becomes the offset (0)."""
        out = np.array(values, dtype=np.float32)
        np.nan_to_num(out, copy=False, nan=self.offset)
        np.clip(out, self.low, self.high, out=out)
        out -= np.float32(self.offset)
        out /= np.float32(self.scale)
        return out


def scaling_of(volume: Volume, intensity: Intensity) -> Scaling:
    """Return the scaling of a scan; for ``"z-score"`` all its voxels are looked at.

    ``"clip"``: ``2 (v - low) / (high - low) - 1`` between the limits (PyMIC's
    ``NormalizeWithMinMax``). ``"z-score"``: ``(v - mean) / (deviation + 1e-5)`` over the whole
    volume before any resampling, without a mask (PyMIC's ``NormalizeWithMeanStd``).
    """
    if intensity.rule == "clip":
        half = (intensity.high - intensity.low) / 2
        return Scaling(intensity.low + half, half, intensity.low, intensity.high)
    total, squares, count = 0.0, 0.0, 0
    rows = max(1, _BLOCK // max(1, int(np.prod(volume.geometry.shape[1:]))))
    depth = volume.geometry.shape[0]
    blocks = [(first, min(first + rows, depth)) for first in range(0, depth, rows)]
    for first, last in blocks:
        values = _finite(volume.array[first:last])
        total += float(values.sum())
        count += values.size
    mean = total / max(1, count)
    for first, last in blocks:
        values = _finite(volume.array[first:last])
        squares += float(np.square(values - mean).sum())
    return Scaling(mean, float(np.sqrt(squares / max(1, count))) + 1e-5)


def _finite(values: Any) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.asarray(values, dtype=np.float64).ravel()
    return found[np.isfinite(found)]


def grid_plan(
    geometry: Geometry, spacing: tuple[float, float, float] | None, box: Box | None = None
) -> GridPlan | None:
    """Return the plan to the network's grid, or ``None`` if the scan has those voxels already.

    Parameters
    ----------
    geometry : Geometry
        Of the scan.
    spacing : tuple of float or None
        In mm, (z, y, x); ``None``: the scan's own.
    box : Box, optional
        Only this part; the whole scan by default.

    Raises
    ------
    GeometryError
        If the scan's voxel size is not known.
    """
    if spacing is None:
        return None
    if geometry.unit not in _MM:
        raise GeometryError(
            "the voxel size of the scan is not known, but it has to be brought to "
            f"{' x '.join(f'{s:g}' for s in spacing)} mm; set the voxel size first"
        )
    wanted = np.array(spacing) / _MM[geometry.unit]
    if np.allclose(geometry.spacing, wanted, rtol=_SAME, atol=0):
        return None
    z, y, x = (float(step) for step in wanted)
    return GridPlan.crop_to_spacing(geometry, box or Box.whole(geometry.shape), (z, y, x))


def padding(
    shape: tuple[int, ...], patch: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return voxels to add before and behind each axis so that one patch fits; centred.

    For ``np.pad(..., mode="reflect")``, as PyMIC's ``Pad``: mirrored content keeps the
    statistics that instance norm takes over a window.
    """
    missing = [max(0, edge - size) for size, edge in zip(shape, patch, strict=True)]
    z, y, x = ((more // 2, more - more // 2) for more in missing)
    return z, y, x
