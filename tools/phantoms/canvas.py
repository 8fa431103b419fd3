"""A grid of patient coordinates and a picture on it that implicit shapes are painted into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

Array = np.ndarray
Field = Callable[[Array, Array, Array], Array]
Bounds = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]

SUB_SLICES = 3
"""Thin slices averaged into each thick one: partial volume along the table."""


@dataclass(frozen=True)
class Shape:
    """An implicit shape: ``field(x, y, z)`` is negative inside; ``low``/``high`` bound it in mm."""

    field: Field
    low: tuple[float, ...] = (-np.inf,) * 3
    high: tuple[float, ...] = (np.inf,) * 3

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """Return the implicit value at world points."""
        return self.field(x, y, z)


@dataclass(frozen=True)
class Grid:
    """Voxel centres in mm: x grows to the patient's left, y to posterior, z to superior."""

    x: Array
    y: Array
    z: Array

    @classmethod
    def of(cls, extent_mm: Bounds, spacing_xyz: tuple[float, float, float]) -> Grid:
        """Return the centres of whole voxels between the limits, slices split into thin ones."""
        fine = (spacing_xyz[0], spacing_xyz[1], spacing_xyz[2] / SUB_SLICES)
        axes = []
        for (low, high), step, whole in zip(extent_mm, fine, spacing_xyz, strict=True):
            count = round((high - low) / whole) * round(whole / step)
            axes.append((low + step * (np.arange(count) + 0.5)).astype(np.float32))
        return cls(*axes)

    @property
    def steps_zyx(self) -> tuple[float, float, float]:
        """Distance between neighbouring centres."""
        return tuple(float(a[1] - a[0]) for a in (self.z, self.y, self.x))

    def window(self, shape: Shape, margin: float) -> tuple[slice, slice, slice]:
        """Return the index expression (z, y, x) of the voxels a shape may reach."""
        cut = []
        for axis, low, high in zip((self.x, self.y, self.z), shape.low, shape.high, strict=True):
            first, last = np.searchsorted(axis, [low - margin, high + margin])
            cut.append(slice(int(first), int(last)))
        return cut[2], cut[1], cut[0]


class Canvas:
    """An image and its labels; every shape painted later covers the earlier ones."""

    def __init__(self, grid: Grid, background: float, seed: int, wobble_mm: float) -> None:
        self.grid = grid
        shape = (len(grid.z), len(grid.y), len(grid.x))
        self.image = np.full(shape, background, dtype=np.float32)
        self.labels = np.zeros(shape, dtype=np.uint8)
        self._margin = 4.0 * wobble_mm + 6.0
        straight = np.meshgrid(grid.z, grid.y, grid.x, indexing="ij", copy=False)
        rng = np.random.default_rng(seed)
        # One smooth deformation of space bends all organs together, so nothing is an ellipsoid.
        self._world = [
            axis + smooth_noise(rng, shape, grid.steps_zyx, 34.0, wobble_mm) for axis in straight
        ]

    def distance(self, shape: Shape) -> tuple[tuple[slice, slice, slice], Array]:
        """Return where a shape may reach and there the distance in mm to its surface.

        Negative inside; exact to first order near the surface, which is where it matters.
        """
        cut = self.grid.window(shape, self._margin)
        if min(len(range(n)[c]) for n, c in zip(self.image.shape, cut, strict=True)) < 2:
            return cut, np.ones(self.image[cut].shape, dtype=np.float32)
        z, y, x = (axis[cut] for axis in self._world)
        value = shape(x, y, z)
        slopes = np.gradient(value, *self.grid.steps_zyx)
        return cut, value / np.maximum(np.sqrt(sum(s * s for s in slopes)), 1e-3)

    def paint(
        self,
        shape: Shape,
        value: float | Array,
        *,
        label: int | None = None,
        softness: float = 2.0,
    ) -> None:
        """Paint a shape: ``softness`` is the width of its edge in mm."""
        cut, distance = self.distance(shape)
        cover = np.clip(0.5 - distance / softness, 0.0, 1.0)
        piece = self.image[cut]
        inner = value[cut] if isinstance(value, np.ndarray) else value
        piece += cover * (inner - piece)
        if label is not None:
            self.labels[cut][distance < 0] = label

    def erase(self, shape: Shape) -> None:
        """Take the labels off a shape (its picture stays)."""
        cut, distance = self.distance(shape)
        self.labels[cut][distance < 0] = 0

    def thick(self) -> tuple[Array, Array]:
        """Return image (mean of the thin slices) and labels (the middle one), axes (z, y, x)."""
        count = self.image.shape[0] // SUB_SLICES
        image = self.image.reshape(count, SUB_SLICES, *self.image.shape[1:]).mean(axis=1)
        return image, self.labels[SUB_SLICES // 2 :: SUB_SLICES].copy()


def smooth_noise(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    steps: tuple[float, ...],
    length_mm: float,
    amplitude: float,
) -> Array:
    """Return noise with this correlation length and standard deviation, as float32."""
    coarse = [max(4, int(n * s / (length_mm / 2)) + 3) for n, s in zip(shape, steps, strict=True)]
    seeds = ndimage.gaussian_filter(rng.standard_normal(coarse), 1.0)
    seeds *= amplitude / seeds.std()
    zoom = [n / c for n, c in zip(shape, coarse, strict=True)]
    return ndimage.zoom(seeds.astype(np.float32), zoom, order=2, mode="nearest", grid_mode=True)


def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Shape:
    """Return an ellipsoid; radii along x, y, z."""

    def value(x: Array, y: Array, z: Array) -> Array:
        parts = zip((x, y, z), centre, radii, strict=True)
        return np.sqrt(sum(((a - c) / r) ** 2 for a, c, r in parts)) - 1.0

    return Shape(value, *_ball(centre, radii))


def turned(shape: Shape, centre: tuple[float, float, float], degrees: float, axis: str) -> Shape:
    """Return the bounded shape turned about an axis ('x', 'y' or 'z') through a point."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]

    def value(*xyz: Array) -> Array:
        moved = list(xyz)
        a, b = xyz[first] - centre[first], xyz[second] - centre[second]
        moved[first] = centre[first] + cos * a + sin * b
        moved[second] = centre[second] - sin * a + cos * b
        return shape(*moved)

    corners = np.abs([np.subtract(shape.low, centre), np.subtract(shape.high, centre)])
    return Shape(value, *_ball(centre, (float(np.linalg.norm(corners.max(axis=0))),) * 3))


def tube(points: Sequence[tuple[float, float, float]], radius: float) -> Shape:
    """Return a round tube along a polyline."""
    path = np.asarray(points, dtype=np.float32)

    def value(x: Array, y: Array, z: Array) -> Array:
        best = np.full(x.shape, np.inf, dtype=np.float32)
        for a, b in pairwise(path):
            way = b - a
            t = (x - a[0]) * way[0] + (y - a[1]) * way[1] + (z - a[2]) * way[2]
            t = np.clip(t / float(way @ way), 0.0, 1.0)
            gap = (x - a[0] - t * way[0]) ** 2 + (y - a[1] - t * way[1]) ** 2
            best = np.minimum(best, gap + (z - a[2] - t * way[2]) ** 2)
        return np.sqrt(best) - radius

    return Shape(value, tuple(path.min(axis=0) - radius), tuple(path.max(axis=0) + radius))


def both(*shapes: Shape) -> Shape:
    """Return the intersection."""
    low = tuple(np.max([s.low for s in shapes], axis=0))
    high = tuple(np.min([s.high for s in shapes], axis=0))
    return Shape(lambda x, y, z: np.maximum.reduce([s(x, y, z) for s in shapes]), low, high)


def either(*shapes: Shape) -> Shape:
    """Return the union."""
    low = tuple(np.min([s.low for s in shapes], axis=0))
    high = tuple(np.max([s.high for s in shapes], axis=0))
    return Shape(lambda x, y, z: np.minimum.reduce([s(x, y, z) for s in shapes]), low, high)


def outside(shape: Shape) -> Shape:
    """Return the complement."""
    return Shape(lambda x, y, z: -shape(x, y, z))


def _ball(centre: Sequence[float], radii: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    spans = list(zip(centre, radii, strict=True))
    return tuple(c - r for c, r in spans), tuple(c + r for c, r in spans)
