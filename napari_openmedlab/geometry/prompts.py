"""Prompts in patient coordinates, so that they survive cropping, resampling and a new engine.

All points are (x, y, z) in the world frame of a :class:`~.volume.Geometry` (LPS mm for a
patient). Everything here is frozen: an edit makes a new :class:`PromptSet`, which is what undo
and autosave keep.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.boxes import Box, box_of_points
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.volume import Geometry

__all__ = ["BoxPrompt", "Click", "MaskPrompt", "Point", "PromptSet", "Scribble", "as_point"]

Point = tuple[float, float, float]


def as_point(values: ArrayLike) -> Point:
    """Return three finite floats, or raise :class:`PromptError` naming the values."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (3,) or not np.isfinite(array).all():
        raise PromptError(f"a point is three finite numbers (x, y, z), got {values!r}")
    return float(array[0]), float(array[1]), float(array[2])


@dataclass(frozen=True)
class Click:
    """A point inside the object (``positive``) or outside it."""

    point: Point
    positive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "point", as_point(self.point))


@dataclass(frozen=True)
class BoxPrompt:
    """A box given by two opposite corners in world coordinates.

    Its edges run along the axes of the volume it is used on, so for an oblique scan the two
    corners, not the world axes, say where it is. A box of one slice has both corners on it.
    """

    corner: Point
    opposite: Point

    def __post_init__(self) -> None:
        object.__setattr__(self, "corner", as_point(self.corner))
        object.__setattr__(self, "opposite", as_point(self.opposite))

    def to_box(self, geometry: Geometry) -> Box:
        """Return the voxels whose centres the box holds, clipped to the volume.

        A thin box always keeps the voxel layer nearest to it.

        Raises
        ------
        PromptError
            If the box lies entirely outside the volume.
        """
        corners = np.sort(geometry.to_index([self.corner, self.opposite]), axis=0)
        low, high = np.ceil(corners[0] - 1e-3), np.floor(corners[1] + 1e-3)
        thin = high < low
        low[thin] = high[thin] = np.rint(corners.mean(axis=0))[thin]
        box = Box(tuple(low.astype(int)), tuple(high.astype(int) + 1)).clip(geometry.shape)
        if box.is_empty:
            raise PromptError(
                f"the box from {_text(self.corner)} to {_text(self.opposite)} lies outside the "
                "volume; draw it on the image"
            )
        return box

    @classmethod
    def from_box(cls, box: Box, geometry: Geometry) -> BoxPrompt:
        """Return the prompt whose corners are the centres of the box's corner voxels."""
        first, last = geometry.to_world(np.array([box.start, np.array(box.stop) - 1]))
        return cls(as_point(first), as_point(last))


@dataclass(frozen=True, eq=False)
class Scribble:
    """Painted voxels, as the world positions of their centres.

    Attributes
    ----------
    points : ndarray of float64, shape (N, 3), read-only
        World (x, y, z) of each painted voxel centre, N >= 1.
    positive : bool
        Inside the object or outside it.
    """

    points: NDArray[np.float64]
    positive: bool = True

    def __post_init__(self) -> None:
        points = np.array(self.points, dtype=np.float64).reshape(-1, 3)
        if not len(points) or not np.isfinite(points).all():
            raise PromptError("a scribble needs at least one point, all of them finite")
        points.setflags(write=False)
        object.__setattr__(self, "points", points)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Scribble)
            and self.positive == other.positive
            and np.array_equal(self.points, other.points)
        )

    def __hash__(self) -> int:
        return hash((self.positive, self.points.tobytes()))


@dataclass(frozen=True, eq=False)
class MaskPrompt:
    """An existing mask of the object, on any grid.

    Attributes
    ----------
    patch : MaskPatch
        The mask inside its box.
    geometry : Geometry
        The grid the patch's box refers to.
    """

    patch: MaskPatch
    geometry: Geometry

    def on_grid(self, geometry: Geometry) -> MaskPatch:
        """Return the mask on another grid (nearest voxel), cropped to it."""
        if geometry.same_grid(self.geometry):
            return self.patch.clip(geometry.shape)
        ends = zip(self.patch.box.start, self.patch.box.stop, strict=True)
        corners = np.array(np.meshgrid(*ends)).reshape(3, -1).T - 0.5
        world = self.geometry.to_world(corners)
        box = box_of_points(geometry.to_index(world)).grow(1).clip(geometry.shape)
        grid = np.moveaxis(np.indices(box.shape), 0, -1) + np.array(box.start)
        source = np.rint(self.geometry.to_index(geometry.to_world(grid))).astype(int)
        local = source - np.array(self.patch.box.start)
        inside = ((local >= 0) & (local < self.patch.box.shape)).all(axis=-1)
        mask = np.zeros(box.shape, dtype=bool)
        mask[inside] = self.patch.mask[tuple(local[inside].T)]
        return MaskPatch(box, mask).trimmed()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, MaskPrompt)
            and self.patch == other.patch
            and self.geometry.same_grid(other.geometry)
        )

    def __hash__(self) -> int:
        return hash(self.patch)


@dataclass(frozen=True)
class PromptSet:
    """All prompts of one object. Order within a kind is the order in which they were given.

    Attributes
    ----------
    extreme_points : tuple of (x, y, z)
        Up to six points on the object's surface, farthest along each patient axis, any order.
    boxes : tuple of BoxPrompt
        Boxes that hold the whole object; several are united.
    clicks : tuple of Click
    scribbles : tuple of Scribble
    mask : MaskPrompt or None
        A mask to start from.
    """

    extreme_points: tuple[Point, ...] = ()
    boxes: tuple[BoxPrompt, ...] = ()
    clicks: tuple[Click, ...] = ()
    scribbles: tuple[Scribble, ...] = ()
    mask: MaskPrompt | None = field(default=None)

    def __post_init__(self) -> None:
        points = tuple(as_point(p) for p in self.extreme_points)
        if len(points) > 6:
            raise PromptError(
                f"an object has six extreme points, two along each axis; got {len(points)}"
            )
        object.__setattr__(self, "extreme_points", points)
        for name in ("boxes", "clicks", "scribbles"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def is_empty(self) -> bool:
        """Whether there is no prompt at all."""
        return self == PromptSet()

    @property
    def has_positive(self) -> bool:
        """Whether anything says where the object *is* (not only where it is not)."""
        return bool(
            self.extreme_points
            or self.boxes
            or self.mask is not None
            or any(c.positive for c in self.clicks)
            or any(s.positive for s in self.scribbles)
        )

    def kinds(self) -> frozenset[str]:
        """Return the kinds present: extreme_points, box, click, scribble, mask."""
        present = {
            "extreme_points": self.extreme_points,
            "box": self.boxes,
            "click": self.clicks,
            "scribble": self.scribbles,
            "mask": self.mask is not None,
        }
        return frozenset(kind for kind, value in present.items() if value)

    def with_extreme_point(self, point: ArrayLike) -> PromptSet:
        """Return a copy with one extreme point more."""
        return replace(self, extreme_points=(*self.extreme_points, as_point(point)))

    def with_click(self, point: ArrayLike, positive: bool = True) -> PromptSet:
        """Return a copy with one click more."""
        return replace(self, clicks=(*self.clicks, Click(as_point(point), positive)))

    def with_box(self, box: BoxPrompt) -> PromptSet:
        """Return a copy with ``box`` as its only box."""
        return replace(self, boxes=(box,))

    def with_scribble(self, points: ArrayLike, positive: bool = True) -> PromptSet:
        """Return a copy with one scribble more."""
        scribble = Scribble(np.asarray(points, dtype=np.float64), positive)
        return replace(self, scribbles=(*self.scribbles, scribble))

    def world_points(self) -> NDArray[np.float64]:
        """Return every prompt's points stacked, shape (N, 3), masks left out."""
        rows: list[Iterable[Point]] = [self.extreme_points]
        rows += [(b.corner, b.opposite) for b in self.boxes]
        rows.append([c.point for c in self.clicks])
        flat = [point for row in rows for point in row]
        stacked = [np.array(flat, dtype=np.float64).reshape(-1, 3)]
        return np.concatenate([*stacked, *(s.points for s in self.scribbles)])

    def check_inside(self, geometry: Geometry) -> None:
        """Raise :class:`PromptError` naming the first prompt that lies off the grid.

        Boxes may reach beyond the volume; they are clipped where they are used.
        """
        named = [(f"extreme point {i + 1}", p) for i, p in enumerate(self.extreme_points)]
        named += [(f"click {i + 1}", c.point) for i, c in enumerate(self.clicks)]
        for name, point in named:
            index = geometry.to_index(point)
            if not geometry.contains_index(index):
                raise PromptError(
                    f"{name} at {_text(point)} lies outside the volume of shape "
                    f"{geometry.shape}: its index (z, y, x) is {_text(index)}"
                )


def _text(point: ArrayLike) -> str:
    return "(" + ", ".join(f"{v:.1f}" for v in np.asarray(point)) + ")"
