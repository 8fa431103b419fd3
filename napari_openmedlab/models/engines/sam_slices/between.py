"""The shape of an object on slices between two slices where it is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi

from napari_openmedlab.models.engines.sam_slices.planes import Outline

__all__ = ["between"]


def between(first: Outline, second: Outline, share: float) -> Outline:
    """Return the outline a ``share`` (0..1) of the way from one slice's outline to another's.

    Signed distances to both outlines, each moved so that the centroids meet on the straight
    line between them, are averaged: a round object grows smoothly, and one that wanders across
    the slices is followed even where the two outlines don't overlap.

    Parameters
    ----------
    first, second : Outline
        Not empty.
    share : float
        0 gives the first, 1 the second.
    """
    centres = np.array([_centroid(first), _centroid(second)])
    centre = centres[0] + (centres[1] - centres[0]) * share
    moves = np.rint(centre - centres).astype(int)
    places = [
        (each.row + int(move[0]), each.column + int(move[1]))
        for each, move in zip((first, second), moves, strict=True)
    ]
    top = min(row for row, _ in places) - 1
    left = min(column for _, column in places) - 1
    below = max(p[0] + o.mask.shape[0] for p, o in zip(places, (first, second), strict=True)) + 1
    right = max(p[1] + o.mask.shape[1] for p, o in zip(places, (first, second), strict=True)) + 1
    distance = np.zeros((below - top, right - left))
    for outline, (row, column), weight in zip(
        (first, second), places, (1.0 - share, share), strict=True
    ):
        canvas = np.zeros(distance.shape, dtype=bool)
        rows, columns = outline.mask.shape
        canvas[row - top : row - top + rows, column - left : column - left + columns] = outline.mask
        distance += weight * _signed(canvas)
    return Outline.of(distance > 0, top, left)


def _centroid(outline: Outline) -> NDArray[np.float64]:
    corner = np.array([outline.row, outline.column], dtype=np.float64)
    centroid: NDArray[np.float64] = corner + np.argwhere(outline.mask).mean(axis=0)
    return centroid


def _signed(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the distance to the border in pixels, positive inside; zero on no pixel."""
    inside = ndi.distance_transform_edt(mask)
    outside = ndi.distance_transform_edt(~mask)
    signed: NDArray[np.float64] = np.where(mask, inside - 0.5, 0.5 - outside)
    return signed
