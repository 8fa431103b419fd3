"""Where to start without extreme points: the likeliest object in a box, the scale of a click."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi

from napari_openmedlab.geometry.boxes import Box

__all__ = ["core_of", "guess_in_box", "share_on_faces"]

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

#: Intensity classes a box is split into; objects are runs of neighbouring classes.
CLASSES = 6
#: Longest run of classes taken for one object.
LONGEST_RUN = 3
#: A part comes near a face of the box if it gets within this share of the box's side.
NEAR_FACE = 0.1


@dataclass(frozen=True)
class _Part:
    """A connected part of one intensity range inside a box, with its score."""

    mask: Bools
    score: float


def guess_in_box(image: Floats, spacing: NDArray[np.float64], box: Box, outside: Bools) -> Bools:
    """Return the core of the part that best fits the box, as seeds.

    A box drawn round an object is tight: the object comes near all six faces but does not go
    on beyond them. Each run of intensity classes is cut into connected parts; the part that
    keeps this best is the guess.

    Parameters
    ----------
    image : ndarray of float32, shape (z, y, x)
        The box with its margin.
    spacing : ndarray, shape (3,)
    box : Box
        In voxels of ``image``.
    outside : ndarray of bool, shape ``image.shape``
        Voxels known not to belong: a part that holds one is no guess.

    Returns
    -------
    ndarray of bool, shape ``image.shape``
        Never empty: the middle voxel of the box if no part is found.
    """
    smooth = ndi.gaussian_filter(image, 0.6 * spacing.min() / spacing)
    best: _Part | None = None
    edges = _class_edges(smooth[box.slices])
    for first in range(CLASSES):
        for last in range(first, min(first + LONGEST_RUN, CLASSES)):
            part = _best_part((smooth >= edges[first]) & (smooth < edges[last + 1]), box)
            if part is None or (part.mask & outside[box.slices]).any():
                continue
            if best is None or part.score > best.score:
                best = part
    seeds = np.zeros(image.shape, bool)
    if best is not None:
        seeds[box.slices] = core_of(best.mask, spacing)
    if not seeds.any():
        seeds[tuple((a + b - 1) // 2 for a, b in zip(box.start, box.stop, strict=True))] = True
    return seeds


def _class_edges(values: Floats) -> NDArray[np.float64]:
    """Borders of intensity classes (k-means in one dimension), the outer ones infinite."""
    sample = np.sort(values.ravel()[:: max(1, values.size // 20_000)]).astype(float)
    centres = np.quantile(sample, (np.arange(CLASSES) + 0.5) / CLASSES)
    total = np.concatenate([[0.0], np.cumsum(sample)])
    for _ in range(30):
        cuts = np.searchsorted(sample, (centres[1:] + centres[:-1]) / 2)
        bounds = np.concatenate([[0], cuts, [sample.size]])
        count = np.diff(bounds)
        means = np.diff(total[bounds]) / np.maximum(count, 1)
        moved = np.where(count > 0, means, centres)
        if np.allclose(moved, centres):
            break
        centres = moved
    return np.concatenate([[-np.inf], (centres[1:] + centres[:-1]) / 2, [np.inf]])


def _best_part(mask: Bools, box: Box) -> _Part | None:
    """Return the largest part of a mask inside the box, scored by how it fits the box."""
    parts, count = ndi.label(mask[box.slices])
    if count == 0:
        return None
    largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    part = parts == largest
    reach, crossing, free_faces = 0.0, 0, 0
    for axis in range(3):
        side = part.shape[axis]
        layers = np.flatnonzero(part.any(axis=tuple(k for k in range(3) if k != axis)))
        near = max(1.0, NEAR_FACE * side)
        reach += float(layers[0] < near) + float(side - 1 - layers[-1] < near)
        for layer, beyond in ((0, box.start[axis] - 1), (side - 1, box.stop[axis])):
            if 0 <= beyond < mask.shape[axis]:
                free_faces += 1
                outer = list(box.slices)
                outer[axis] = slice(beyond, beyond + 1)
                face = part.take([layer], axis=axis) & mask[tuple(outer)]
                crossing += int(np.count_nonzero(face))
    size = int(np.count_nonzero(part))
    # Area through which the part leaves the box, over the area of a compact part this big.
    leak = crossing / (max(free_faces, 1) * size ** (2 / 3))
    fill = size / part.size
    return _Part(part, reach / 6 - 2.0 * min(leak, 1.0) + 0.5 * min(fill, 0.5))


def core_of(part: Bools, spacing: NDArray[np.float64]) -> Bools:
    """Voxels of a part at least half as deep inside it as its typical deep voxel."""
    depth = ndi.distance_transform_edt(np.pad(part, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    deep = float(np.quantile(depth[part], 0.9))
    return np.asarray(depth >= max(0.5 * deep, 1e-9)) & part


def share_on_faces(mask: Bools, box: Box) -> float:
    """Return the share of a mask's voxels on those faces of its box that it could cross."""
    touching = 0
    for axis in range(3):
        for layer, inner in (
            (box.start[axis], box.start[axis] > 0),
            (box.stop[axis] - 1, box.stop[axis] < mask.shape[axis]),
        ):
            if inner:
                touching += int(np.count_nonzero(mask.take(layer, axis=axis)))
    return touching / max(1, int(np.count_nonzero(mask)))
