"""From a scan to a network's input, and where its voxels lie on the scan's grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import EngineError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.frames import Reorientation, display_reorientation
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.stu_net.plan import Plan
from napari_openmedlab.models.tiling.resampling import AxisMap, cubic, new_shape, separate_axis

__all__ = ["AIR", "ORIENTATIONS", "Working", "box_in", "order_of", "prepare", "spacing_mm"]

AIR = -300.0
"""HU that no voxel of a window reaches if all of it is air."""

CONTEXT = 32
"""Least voxels of the network's grid seen around a region of interest on every side."""

# Which way stored axes (z, y, x) may run against display order, head first, back last, left last.
ORIENTATIONS: dict[str, tuple[bool, bool, bool]] = {
    "RAS": (True, True, True),
    "LAS": (True, True, False),
    "LPS": (True, False, False),
    "RPS": (True, False, True),
}
_CT_FLOOR = -500.0
_MOST = 2**31


@dataclass(frozen=True, eq=False)
class Working:
    """A scan, or a region of it, as a network sees it. All axes are in the network's order.

    Attributes
    ----------
    data : ndarray of float32, shape (1, z, y, x)
        Normalised, on the network's grid; the part that is to be seen.
    begin : tuple of int
        Its first voxel on the network's grid of the whole crop.
    grid : tuple of int
        Voxels of that grid.
    crop : Box
        The part of the scan that is not 0 everywhere around.
    inside : Box
        The part of the region that lies in ``crop``.
    region : Box
    order : Reorientation
        From the scan's order to the network's.
    separate : int or None
        Axis with slices too thick to interpolate across.
    air : float or None
        Value in ``data`` that only air lies below; ``None`` if the scan is no CT.
    """

    data: NDArray[np.float32]
    begin: tuple[int, int, int]
    grid: tuple[int, int, int]
    crop: Box
    inside: Box
    region: Box
    order: Reorientation
    separate: int | None
    air: float | None

    def maps(self, *, linear: bool) -> tuple[AxisMap, AxisMap, AxisMap]:
        """Return where the scan's voxels in ``inside`` lie in ``data``."""
        found = []
        for axis in range(3):
            smooth = linear and axis != self.separate
            make = AxisMap.linear if smooth else AxisMap.nearest
            low = self.inside.start[axis] - self.crop.start[axis]
            high = self.inside.stop[axis] - self.crop.start[axis]
            whole = make(self.grid[axis], self.crop.shape[axis])
            found.append(whole.part(low, high, self.begin[axis]))
        return found[0], found[1], found[2]

    def placed(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return labels of ``inside`` in the whole region, in the scan's own order."""
        out = np.zeros(self.region.shape, dtype=labels.dtype)
        out[self.inside.relative_to(self.region).slices] = labels
        return np.ascontiguousarray(self.order.undo(out))


def prepare(
    volume: Volume, region: Box, plan: Plan, *, spacing: float, orientation: str, monitor: Monitor
) -> Working | None:
    """Bring a scan to the network's order, grid and intensities.

    Parameters
    ----------
    volume : Volume
    region : Box
        The part to be labelled. The network sees at least :data:`CONTEXT` voxels more; and mean
        and deviation are those of the whole scan, so that a voxel looks the same in any region.
    plan : Plan
    spacing : float
        Of the network's grid in mm; 0 takes the plan's.
    orientation : str
        One of :data:`ORIENTATIONS`: how the scans were stored that the network was trained on.
    monitor : Monitor

    Returns
    -------
    Working or None
        ``None`` if all of the region is empty (0).

    Raises
    ------
    EngineError
        If the scan has no voxel size or nothing in it.
    """
    order = order_of(volume.geometry, orientation)
    array = order.apply(np.asarray(volume.array))
    region = box_in(order, region, volume.geometry.shape)
    monitor.step(0, 0, "looking for the body")
    crop = _not_zero(array)
    if crop.is_empty:
        raise EngineError(
            f"'{volume.name}' is empty: every voxel is 0", engine="stu-net", stage="prepare"
        )
    inside = region.intersection(crop)
    if inside.is_empty:
        return None
    old = tuple(np.array(spacing_mm(volume.geometry))[list(order.order)])
    target = plan.spacing if spacing == 0 else (spacing,) * 3
    grid = new_shape(crop.shape, old, target)
    if int(np.prod([float(n) for n in grid])) > _MOST:
        raise EngineError(
            f"on a grid of {target[0]:g} mm the scan would have {' x '.join(map(str, grid))} "
            "voxels, too many; crop it or choose a larger spacing",
            engine="stu-net",
            stage="prepare",
        )
    separate = separate_axis(old, target)
    monitor.step(0, 0, "resampling")
    is_ct = _is_ct(volume, array[crop.slices])
    data, air = _values(array[crop.slices], grid, separate, plan)
    monitor.step(0, 0, "cutting out")
    cut = _seen(inside.relative_to(crop), crop.shape, grid, plan.patch)
    if cut.shape != grid:
        data = data[cut.slices].copy()
    return Working(
        data[None], cut.start, grid, crop, inside, region, order, separate, air if is_ct else None
    )


def order_of(geometry: Geometry, orientation: str) -> Reorientation:
    """Return the way from a scan's axes to the network's; none without patient axes."""
    if geometry.frame != "patient":
        return Reorientation((0, 1, 2), (False, False, False))
    display = display_reorientation(geometry.affine)
    flips = ORIENTATIONS[orientation]
    turned = [a != b for a, b in zip(display.flips, flips, strict=True)]
    return Reorientation(display.order, (turned[0], turned[1], turned[2]))


def box_in(order: Reorientation, box: Box, shape: tuple[int, int, int]) -> Box:
    """Return a box of the source order in the new one; ``shape`` is the source's."""
    start, stop = [], []
    for axis, flip in zip(order.order, order.flips, strict=True):
        low, high = box.start[axis], box.stop[axis]
        start.append(shape[axis] - high if flip else low)
        stop.append(shape[axis] - low if flip else high)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def spacing_mm(geometry: Geometry) -> tuple[float, float, float]:
    """Return the spacing (z, y, x) in mm.

    Raises
    ------
    EngineError
        If the voxel size is not known.
    """
    if geometry.unit == "pixel":
        raise EngineError(
            "this image has no voxel size in mm, which STU-Net needs; set the scale of its layer",
            engine="stu-net",
            stage="prepare",
        )
    factor = 1e-3 if geometry.unit == "um" else 1.0
    z, y, x = (factor * each for each in geometry.spacing)
    return z, y, x


def _values(
    array: NDArray[Any], grid: tuple[int, int, int], separate: int | None, plan: Plan
) -> tuple[NDArray[np.float32], float]:
    """Return the whole crop on the network's grid, normalised, and the value of :data:`AIR`."""
    first = plan.form == "v1"  # v1 resamples, then normalises
    values = (
        cubic(array, grid, separate)
        if first
        else np.nan_to_num(array.astype(np.float32), copy=False)
    )
    if plan.intensity is not None:
        given = plan.intensity
        np.clip(values, given.low, given.high, out=values)
        mean, scale = given.mean, max(given.deviation, 1e-8)
    else:
        mean, deviation = _statistics(values)
        scale = deviation + 1e-8 if first else max(deviation, 1e-8)
    data = _normalised(values, mean, scale)
    return (data if first else cubic(data, grid, separate)), (AIR - mean) / scale


def _normalised(data: NDArray[np.float32], mean: float, scale: float) -> NDArray[np.float32]:
    """Subtract and divide in place."""
    data -= np.float32(mean)
    data /= np.float32(scale)
    return data


def _statistics(data: NDArray[np.float32]) -> tuple[float, float]:
    """Return mean and standard deviation, added up in float64 without a float64 copy."""
    mean = sum(float(plane.sum(dtype=np.float64)) for plane in data) / data.size
    squares = 0.0
    for plane in data:
        away = plane - np.float32(mean)
        squares += float(np.square(away, out=away).sum(dtype=np.float64))
    return mean, float(np.sqrt(squares / data.size))


def _not_zero(array: NDArray[Any]) -> Box:
    """Return the smallest box that holds all voxels that are not 0 (NaN is not)."""
    flat = np.zeros(array.shape[1:], dtype=bool)
    rows = np.zeros(len(array), dtype=bool)
    for number, plane in enumerate(array):
        other = plane != 0
        rows[number] = other.any()
        flat |= other
    if not rows.any():
        return Box((0, 0, 0), (0, 0, 0))
    ends = [_span(hit) for hit in (rows, np.any(flat, axis=1), np.any(flat, axis=0))]
    start, stop = zip(*ends, strict=True)
    return Box(start, stop)


def _span(hit: Any) -> tuple[int, int]:
    places = np.flatnonzero(hit)
    return int(places[0]), int(places[-1]) + 1


def _is_ct(volume: Volume, array: NDArray[Any]) -> bool:
    """Return whether values are Hounsfield units: air is far below 0."""
    if volume.modality not in ("", "CT"):
        return False
    return any(float(np.nanmin(plane)) < _CT_FLOOR for plane in _finite(array))


def _finite(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the planes that hold a number."""
    for plane in array:
        if plane.dtype.kind != "f" or not np.isnan(plane).all():
            yield plane


def _seen(
    inside: Box,
    crop: tuple[int, int, int],
    grid: tuple[int, int, int],
    patch: tuple[int, int, int],
) -> Box:
    """Return the part of the network's grid to be seen for a part of the crop.

    At least a window, as far as there is one: it is computed anyway.
    """
    start, stop = [], []
    for axis in range(3):
        line = AxisMap.linear(grid[axis], crop[axis])
        first = int(line.first[inside.start[axis]])
        last = int(line.second[inside.stop[axis] - 1]) + 1
        margin = max(CONTEXT, -(-(patch[axis] - (last - first)) // 2))
        low = max(0, min(first - margin, grid[axis] - patch[axis]))
        high = min(grid[axis], max(last + margin, low + patch[axis]))
        start.append(low)
        stop.append(high)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
