"""Centre-lines of a mask larger than memory: thinned block by block, small pieces left out.

Each block is thinned with a halo around it and keeps its core. Thinning looks only as far as a
structure is thick, so the result is that of the whole volume; where a structure has two equally
good centres (an even number of voxels across) a block may in rare cases take the other one.
Pieces are counted across blocks: two blocks see the same plane of voxels where they meet, and
what they see there as one is joined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.axons.pieces import PieceCounter
from napari_openmedlab.axons.radii import radii_at
from napari_openmedlab.errors import GeometryError, SettingsError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.contract import Monitor

__all__ = ["LazyMask", "Skeleton", "SkeletonSettings", "block_grid", "skeletonise"]

BYTES_PER_POINT = 40
"""Memory per voxel of the skeleton while blocks are gathered and sorted."""


class LazyMask(Protocol):
    """What can be cut into: a NumPy, dask or zarr array with axes (z, y, x)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels (z, y, x)."""

    def __getitem__(self, key: Any) -> Any: ...


@dataclass(frozen=True)
class SkeletonSettings:
    """How to thin.

    Attributes
    ----------
    core : tuple of int
        Voxels (z, y, x) of a block; a multiple of the chunks of what is read and written.
    halo : int
        Voxels read around a core; at least twice the largest radius. 1 or more.
    smallest : int
        Connected pieces of the mask (26 neighbours) with fewer voxels are left out; 10 in the
        published preparation of labels.
    """

    core: tuple[int, int, int] = (256, 256, 256)
    halo: int = 24
    smallest: int = 10

    def __post_init__(self) -> None:
        if min(self.core) < 1 or self.halo < 1 or self.smallest < 0:
            raise SettingsError(
                f"a skeleton needs blocks and a halo of 1 voxel or more and a smallest piece of 0 "
                f"or more; got {self.core}, {self.halo}, {self.smallest}"
            )


@dataclass(frozen=True)
class Skeleton:
    """Centre-lines as a list of voxels.

    Attributes
    ----------
    points : ndarray of int32, shape (N, 3)
        (z, y, x), sorted by z, then y, then x.
    radii : ndarray of float32, shape (N,)
        Distance to the nearest voxel outside the mask, in the unit of ``spacing``; at most the
        halo. Beyond the volume nothing counts as outside.
    shape : tuple of int
        Of the volume.
    spacing : tuple of float
        Voxel size (z, y, x).
    pieces, dropped : int
        Connected pieces of the mask that were kept, and that were too small.
    """

    points: NDArray[np.int32]
    radii: NDArray[np.float32]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    pieces: int = 0
    dropped: int = 0

    def fill(self, box: Box) -> NDArray[np.uint8]:
        """Return a box of the volume with 1 on the centre-lines."""
        first, last = np.searchsorted(self.points[:, 0], (box.start[0], box.stop[0]))
        some = self.points[first:last] - np.array(box.start)
        inside = ((some >= 0) & (some < box.shape)).all(axis=1)
        block = np.zeros(box.shape, dtype=np.uint8)
        block[tuple(some[inside].T)] = 1
        return block


def block_grid(shape: tuple[int, ...], core: tuple[int, int, int]) -> Iterator[Box]:
    """Yield the blocks of a volume, x fastest; the last ones may be smaller."""
    for low in product(*(range(0, n, c) for n, c in zip(shape, core, strict=True))):
        high = tuple(min(a + c, n) for a, c, n in zip(low, core, shape, strict=True))
        yield Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def skeletonise(
    mask: LazyMask,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    settings: SkeletonSettings | None = None,
    *,
    out: Any = None,
    monitor: Monitor | None = None,
) -> Skeleton:
    """Return the centre-lines of a mask.

    Parameters
    ----------
    mask : array-like, shape (z, y, x)
        0 is background. Only blocks with their halo are ever read.
    spacing : tuple of float
        Voxel size (z, y, x), for the radii.
    settings : SkeletonSettings, optional
    out : array with ``out[slices] = block``, optional
        Zarr or NumPy array of the mask's shape that gets 1 on the centre-lines, block by block.
    monitor : Monitor, optional
        Hears of every block; a cancel leaves ``out`` untouched unless it was being written.

    Raises
    ------
    GeometryError
        If the mask has not three axes, or ``out`` has another shape.
    Cancelled
        At the next block after a cancel.

    Notes
    -----
    Thinning is that of T. C. Lee, R. L. Kashyap and C. N. Chu (1994) as in scikit-image. Peak
    memory is that of one block plus :data:`BYTES_PER_POINT` per voxel found.
    """
    settings = settings or SkeletonSettings()
    shape = _checked_shape(mask, out)
    monitor = monitor or Monitor()
    boxes = list(block_grid(shape, settings.core))
    counter = PieceCounter(shape)
    found: list[_Found] = []
    for number, box in enumerate(boxes):
        monitor.step(number, len(boxes), "thinning")
        part = _thinned(mask, box, spacing, settings.halo, counter)
        if part is not None:
            found.append(part)
    sizes = counter.totals()
    skeleton = _gathered(found, sizes >= settings.smallest, shape, spacing)
    kept, groups = counter.count(settings.smallest)
    skeleton = Skeleton(
        skeleton.points, skeleton.radii, shape, spacing, pieces=kept, dropped=groups - kept
    )
    if out is not None:
        for number, box in enumerate(boxes):
            monitor.step(number, len(boxes), "writing the skeleton")
            out[box.slices] = skeleton.fill(box)
    return skeleton


@dataclass(frozen=True)
class _Found:
    """Skeleton voxels of one block and the piece each belongs to."""

    points: NDArray[np.int32]
    radii: NDArray[np.float32]
    pieces: NDArray[np.int64]


def _checked_shape(mask: LazyMask, out: Any) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in mask.shape)
    if len(shape) != 3:
        raise GeometryError(f"a mask to be thinned has axes (z, y, x), this one has shape {shape}")
    if out is not None and tuple(out.shape) != shape:
        raise GeometryError(
            f"the skeleton is to be written into an array of shape {tuple(out.shape)}, but the "
            f"mask has {shape}"
        )
    return shape[0], shape[1], shape[2]


def _thinned(
    mask: LazyMask,
    box: Box,
    spacing: tuple[float, float, float],
    halo: int,
    counter: PieceCounter,
) -> _Found | None:
    """Thin a block, count its pieces, and return what of its skeleton lies in the core."""
    low = [max(a - halo, 0) for a in box.start]
    high = [min(b + halo, n) for b, n in zip(box.stop, counter.shape, strict=True)]
    region = np.asarray(mask[tuple(map(slice, low, high))]) != 0
    start = [a - b for a, b in zip(box.start, low, strict=True)]
    core = tuple(slice(a, a + n) for a, n in zip(start, box.shape, strict=True))
    shared = region[tuple(slice(a, a + n + 1) for a, n in zip(start, box.shape, strict=True))]
    if not shared.any():
        return None
    # Even with an empty core: two pieces may touch through the planes shared with neighbours.
    pieces, offset = counter.add(shared, box)
    if not region[core].any():
        return None
    thin = _thin(region)[core]
    places = np.argwhere(thin)
    points = (places + np.array(box.start)).astype(np.int32)
    radii = radii_at(region, places + np.array(start), spacing, halo)
    return _Found(points, radii, pieces[tuple(places.T)].astype(np.int64) + offset)


def _thin(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Thin a block; no piece vanishes.

    The thinning takes straight bars with an even number of voxels across in both directions away
    altogether. Such a piece is thinned again one voxel thicker, when it has a middle.
    """
    from scipy import ndimage
    from skimage.morphology import skeletonize

    thin: NDArray[np.bool_] = skeletonize(region, method="lee") != 0
    pieces, count = ndimage.label(region, structure=np.ones((3, 3, 3)))
    there = np.zeros(count + 1, dtype=bool)
    there[pieces[thin]] = True
    there[0] = True
    if there.all():
        return thin
    places = ndimage.find_objects(pieces)
    for number in np.flatnonzero(~there):
        place = places[number - 1]
        piece = np.pad(pieces[place] == number, 2)
        thicker = piece.copy()
        for axis in range(3):
            thicker |= np.roll(thicker, 1, axis=axis)
        found = (skeletonize(thicker, method="lee") != 0) & piece
        thin[place] |= found[2:-2, 2:-2, 2:-2]
    return thin


def _gathered(
    found: list[_Found],
    kept: NDArray[np.bool_],
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
) -> Skeleton:
    """Return the voxels of all kept pieces, in one order whatever the blocks were."""
    if not found:
        return Skeleton(np.zeros((0, 3), np.int32), np.zeros(0, np.float32), shape, spacing)
    good = [kept[part.pieces] for part in found]
    points = np.concatenate([p.points[g] for p, g in zip(found, good, strict=True)])
    radii = np.concatenate([p.radii[g] for p, g in zip(found, good, strict=True)])
    flat = np.ravel_multi_index(tuple(points.T.astype(np.int64)), shape)
    order = np.argsort(flat, kind="stable")
    return Skeleton(points[order], radii[order], shape, spacing)
