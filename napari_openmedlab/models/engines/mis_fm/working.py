"""From a scan to what the network sees, as the model's card says, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import EngineError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.mis_fm.choosing import ID
from napari_openmedlab.models.finetuned import Preprocessing
from napari_openmedlab.models.preparation import grid_plan, padding, scaling_of
from napari_openmedlab.models.tiling.resampling import AxisMap

__all__ = ["Working", "work_on"]

_MM = {"mm": 1.0, "um": 0.001}


@dataclass(frozen=True, eq=False)
class Working:
    """The part of a scan that the network sees.

    Attributes
    ----------
    data : ndarray of float32, shape (1, z, y, x)
        Normalised, on the network's grid, padded by mirroring up to one window.
    grid : tuple of int
        Voxels of that grid before padding.
    low : tuple of int
        Voxels padded before the first one.
    seen : Box
        What was cut out of the scan.
    region : Box
        What is to be labelled.
    """

    data: NDArray[np.float32]
    grid: tuple[int, int, int]
    low: tuple[int, int, int]
    seen: Box
    region: Box

    @property
    def resampled(self) -> bool:
        """Whether the network's voxels are not the scan's."""
        return self.grid != self.seen.shape

    @property
    def padded(self) -> bool:
        """Whether the scan is thinner than a window along some axis."""
        return self.data.shape[1:] != self.grid

    def inner(self) -> tuple[slice, slice, slice]:
        """Return where the region lies in ``data``, if nothing was resampled."""
        z, y, x = (
            slice(low + first, low + last)
            for low, first, last in zip(self.low, *self._ends(), strict=True)
        )
        return z, y, x

    def maps(self) -> tuple[AxisMap, AxisMap, AxisMap]:
        """Return where the region's voxels lie in ``data``."""
        first, last = self._ends()
        z, y, x = (
            AxisMap.linear(self.grid[axis], self.seen.shape[axis]).part(
                first[axis], last[axis], -self.low[axis]
            )
            for axis in range(3)
        )
        return z, y, x

    def _ends(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        inside = self.region.relative_to(self.seen)
        return inside.start, inside.stop


def work_on(volume: Volume, region: Box, prepared: Preprocessing, monitor: Monitor) -> Working:
    """Cut out, resample, normalise and pad.

    Parameters
    ----------
    volume : Volume
    region : Box
        The network sees at least half a window more on every side. Mean and deviation are those
        of the whole scan, so that a voxel looks the same in any region.
    prepared : Preprocessing
        Of the model's card.
    monitor : Monitor

    Raises
    ------
    EngineError
        If the scan is constant.
    GeometryError
        If the model works in mm and the scan has no voxel size.
    """
    monitor.step(0, 0, "looking at intensities")
    scaling = scaling_of(volume, prepared.intensity)
    if prepared.intensity.rule == "z-score" and scaling.scale <= 1e-4:
        raise EngineError(
            f"every voxel of '{volume.name}' has the same value, so there is nothing to segment",
            engine=ID,
            stage="prepare",
        )
    monitor.step(0, 0, "preparing the scan")
    seen = _seen(volume, region, prepared)
    # Scaled first, then resampled, as in training; a voxel more on each side to sample from.
    around = seen.grow(1).clip(volume.geometry.shape)
    part = Volume(scaling.apply(volume.crop(around)), volume.geometry.crop(around))
    cut = seen.relative_to(around)
    plan = grid_plan(part.geometry, prepared.spacing, cut)
    data = part.array[cut.slices] if plan is None else plan.apply(part)
    z, y, x = data.shape
    pads = padding(data.shape, prepared.patch)
    if any(map(any, pads)):
        data = np.pad(data, pads, mode="reflect")
    low = (pads[0][0], pads[1][0], pads[2][0])
    return Working(data[None], (z, y, x), low, seen, region)


def _seen(volume: Volume, region: Box, prepared: Preprocessing) -> Box:
    """Return the region with half a window around it, and at least a window in all."""
    shape, spacing = volume.geometry.shape, volume.geometry.spacing
    factor: Any = np.ones(3)
    if prepared.spacing is not None:
        factor = np.array(prepared.spacing) / (np.array(spacing) * _MM.get(volume.geometry.unit, 1))
    start, stop = [], []
    for axis in range(3):
        window = int(np.ceil(prepared.patch[axis] * factor[axis]))
        margin = max(window // 2, -(-(window - region.shape[axis]) // 2))
        low = max(0, min(region.start[axis] - margin, shape[axis] - window))
        high = min(shape[axis], max(region.stop[axis] + margin, low + window))
        start.append(low)
        stop.append(high)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
