"""SAM-Med3D's 1.5 mm RAS grid, its 128-voxel crops, and the way back to the scan's own grid.

The grid is only described, never filled: a crop is sampled straight from the source voxels, with
the numbers of "resample the whole scan, then crop" (the phase of the grid is the same). Work and
memory follow from the crop, not from the scan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.engines.sam_med3d.slabs import Taps, expand, shrink

__all__ = ["CROP", "SPACING_MM", "Crop", "WorkingGrid"]

CROP = 128  # voxels along each edge of the network's input
SPACING_MM = 1.5  # the spacing the published weights were trained at


@dataclass(frozen=True)
class WorkingGrid:
    """An isotropic grid over a scan, its axes nearest to Right, Anterior, Superior.

    Attributes
    ----------
    source : Geometry
        The scan's grid.
    spacing : float
        Edge of a working voxel, in the unit of the source (mm for patients).

    Notes
    -----
    As upstream's resampling: ``floor(n * source_spacing / spacing)`` voxels along an axis of n
    (an axis of one voxel keeps one), the centre of the grid at the centre of the scan, axes
    permuted and flipped to RAS. Microscopy without patient axes is taken as (x, y, z).
    """

    source: Geometry
    spacing: float = SPACING_MM

    @cached_property
    def order(self) -> tuple[int, int, int]:
        """The source axis (z, y, x) = (0, 1, 2) behind each working axis."""
        if self.source.frame != "patient":
            return (2, 1, 0)
        codes = self.source.codes
        first, second, third = (
            next(axis for axis, code in enumerate(codes) if code in pair)
            for pair in ("LR", "PA", "IS")
        )
        return (first, second, third)

    @cached_property
    def signs(self) -> tuple[int, int, int]:
        """1 where a working axis runs as its source axis, -1 where against it."""
        if self.source.frame != "patient":
            return (1, 1, 1)
        first, second, third = (1 if self.source.codes[a] in "RAS" else -1 for a in self.order)
        return (first, second, third)

    @cached_property
    def steps(self) -> tuple[float, float, float]:
        """Source voxels per working voxel, along each working axis."""
        first, second, third = (self.spacing / self.source.spacing[a] for a in self.order)
        return (first, second, third)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Working voxels along R, A, S."""
        counts = [self.source.shape[axis] for axis in self.order]
        first, second, third = (
            1 if n == 1 else max(1, math.floor(n / step))
            for n, step in zip(counts, self.steps, strict=True)
        )
        return (first, second, third)

    def to_grid(self, world: ArrayLike) -> NDArray[np.float64]:
        """Return fractional working indices (..., 3) of world points (..., 3) as (x, y, z)."""
        index = self.source.to_index(world)[..., list(self.order)]
        middle = np.array([(self.source.shape[a] - 1) / 2 for a in self.order])
        half = (np.array(self.shape) - 1) / 2
        found: NDArray[np.float64] = (index - middle) * self.signs / self.steps + half
        return found

    def nearest(self, world: ArrayLike) -> tuple[int, int, int]:
        """Return the working voxel nearest to a world point (halves up), clipped to the grid."""
        rounded = np.floor(self.to_grid(world) + 0.5)
        first, second, third = np.clip(rounded, 0, np.array(self.shape) - 1).astype(int).tolist()
        return (first, second, third)

    def source_index(self, axis: int, index: ArrayLike) -> NDArray[np.float64]:
        """Return fractional source indices along the source axis behind a working axis."""
        n = self.source.shape[self.order[axis]]
        offset = np.asarray(index, dtype=np.float64) - (self.shape[axis] - 1) / 2
        return (n - 1) / 2 + self.signs[axis] * self.steps[axis] * offset

    def crop_around(self, centre: Sequence[int]) -> Crop:
        """Return the crop that has a working voxel at index 64 of each axis."""
        first, second, third = (int(c) - CROP // 2 for c in centre)
        return Crop(self, (first, second, third))


@dataclass(frozen=True)
class Crop:
    """128 x 128 x 128 working voxels, perhaps reaching beyond the scan.

    Attributes
    ----------
    grid : WorkingGrid
    start : tuple of int
        Working index of the crop's first voxel; may be negative.
    """

    grid: WorkingGrid
    start: tuple[int, int, int]

    def to_crop(self, world: ArrayLike) -> NDArray[np.float64]:
        """Return fractional crop indices (..., 3) of world points (..., 3)."""
        return self.grid.to_grid(world) - self.start

    def contains(self, world: ArrayLike, margin: int = 0) -> bool:
        """Return whether a world point lies in the crop, ``margin`` voxels from its faces.

        Where the scan ends before the crop does, no margin is asked: nothing lies beyond.
        """
        index = np.floor(self.to_crop(world) + 0.5)
        for axis in range(3):
            last = self.grid.shape[axis] - 1 - self.start[axis]
            low = margin if self.start[axis] > 0 else 0
            high = CROP - 1 - (margin if last > CROP - 1 else 0)
            if not low <= index[axis] <= high:
                return False
        return True

    def open_faces(self) -> tuple[tuple[bool, bool], ...]:
        """Return for each axis whether the scan goes on beyond the low and the high face."""
        return tuple(
            (start > 0, start + CROP < n)
            for start, n in zip(self.start, self.grid.shape, strict=True)
        )

    def inside(self) -> tuple[slice, slice, slice]:
        """Return the part of the crop that lies in the scan, axes (R, A, S); perhaps none."""
        return self._inside(0), self._inside(1), self._inside(2)

    def source_box(self) -> Box:
        """Return the voxels of the scan whose centres lie in the crop."""
        box = Box.whole(self.grid.source.shape)
        start, stop = list(box.start), list(box.stop)
        for axis, source_axis in enumerate(self.grid.order):
            start[source_axis], stop[source_axis] = self._source_range(axis, (0, CROP - 1))
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2])).clip(box.shape)

    def sample(
        self, volume: Volume, limits: tuple[float, float] | None = None
    ) -> NDArray[np.float32]:
        """Return the raw intensities, linearly interpolated; 0 beyond the scan.

        Parameters
        ----------
        volume : Volume
            On the grid's source geometry.
        limits : (low, high), optional
            Clip the source to these before interpolation (CT: -1000, 1000).

        Returns
        -------
        ndarray of float32, shape (128, 128, 128), axes (R, A, S)
            Integer sources are truncated toward zero, as upstream keeps their pixel type.
        """
        inside = self.inside()
        result = np.zeros((CROP, CROP, CROP), dtype=np.float32)
        if any(span.start >= span.stop for span in inside):
            return result
        taps = [self._source_taps(axis, inside[axis]) for axis in range(3)]
        block = shrink(volume, self._by_source(taps), limits)
        if np.issubdtype(volume.array.dtype, np.integer):
            np.trunc(block, out=block)
        result[inside] = block.transpose(self.grid.order)
        return result

    def paste(self, logits: NDArray[np.float32], *, smooth: bool = True) -> MaskPatch:
        """Return the voxels of the scan where the crop's logits are above 0.

        Parameters
        ----------
        logits : ndarray of float32, shape (128, 128, 128), axes (R, A, S)
        smooth : bool
            Interpolate the logits linearly (a smooth border at any spacing); otherwise take
            the nearest working voxel's decision, as upstream does.
        """
        positive = logits > 0
        spans = [self._positive_span(positive, axis) for axis in range(3)]
        if any(span is None for span in spans):
            return MaskPatch.empty()
        ranges = [self._source_range(axis, span) for axis, span in enumerate(spans) if span]
        if any(low >= high for low, high in ranges):
            return MaskPatch.empty()
        taps = [self._crop_taps(axis, *ranges[axis]) for axis in range(3)]
        back = np.argsort(self.grid.order)
        mask = expand(logits.transpose(back), self._by_source(taps), nearest=not smooth)
        corners = np.array(self._by_source(ranges))
        return MaskPatch(Box(tuple(corners[:, 0]), tuple(corners[:, 1])), mask).trimmed()

    def take(self, mask: MaskPatch) -> NDArray[np.float32]:
        """Return a mask of the scan as 0..1 on the crop, linearly interpolated.

        Returns
        -------
        ndarray of float32, shape (128, 128, 128), axes (R, A, S)
        """
        geometry = self.grid.source
        whole = Volume(_Window(mask, geometry.shape), geometry)
        return self.sample(whole)

    def _inside(self, axis: int) -> slice:
        """Return the crop indices that lie on the working grid."""
        start, n = self.start[axis], self.grid.shape[axis]
        return slice(min(CROP, max(0, -start)), max(0, min(CROP, n - start)))

    def _by_source(self, values: Sequence[Any]) -> list[Any]:
        """Return values of the working axes in the order of the source axes behind them."""
        return [values[self.grid.order.index(axis)] for axis in range(3)]

    def _source_taps(self, axis: int, inside: slice) -> Taps:
        index = np.arange(inside.start, inside.stop) + self.start[axis]
        n = self.grid.source.shape[self.grid.order[axis]]
        return Taps.at(self.grid.source_index(axis, index), n)

    def _positive_span(self, positive: NDArray[np.bool_], axis: int) -> tuple[int, int] | None:
        """Return first and last crop index with a positive voxel along an axis."""
        others = tuple(a for a in range(3) if a != axis)
        found = np.flatnonzero(positive.any(axis=others))
        return (int(found[0]), int(found[-1])) if found.size else None

    def _source_range(self, axis: int, span: tuple[int, int]) -> tuple[int, int]:
        """Return the source voxels whose centres can be positive: one working voxel around."""
        low, high = max(-0.5, span[0] - 1), min(CROP - 0.5, span[1] + 1)
        ends = self.grid.source_index(axis, np.array([low, high]) + self.start[axis])
        n = self.grid.source.shape[self.grid.order[axis]]
        return max(0, math.ceil(ends.min())), min(n, math.floor(ends.max()) + 1)

    def _crop_taps(self, axis: int, low: int, high: int) -> Taps:
        n = self.grid.source.shape[self.grid.order[axis]]
        offset = np.arange(low, high) - (n - 1) / 2
        working = offset * self.grid.signs[axis] / self.grid.steps[axis]
        return Taps.at(working + (self.grid.shape[axis] - 1) / 2 - self.start[axis], CROP)


class _Window:
    """A mask patch that reads like the whole array, without its memory."""

    dtype = np.dtype(np.float32)
    ndim = 3

    def __init__(self, mask: MaskPatch, shape: tuple[int, int, int]) -> None:
        self._mask = mask
        self.shape = shape

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        spans = [slice(*part.indices(n)) for part, n in zip(key, self.shape, strict=True)]
        box = Box(
            (spans[0].start, spans[1].start, spans[2].start),
            (spans[0].stop, spans[1].stop, spans[2].stop),
        )
        return self._mask.inside(box).astype(np.float32)
