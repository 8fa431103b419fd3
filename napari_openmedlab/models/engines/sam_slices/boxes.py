"""A rectangle for each slice out of extreme points, a 3D box, or a neighbour's mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.engines.sam_slices.planes import (
    Rectangle,
    in_plane_axes,
)

__all__ = ["BoxRule", "between_rectangles", "grown", "rectangles_of_box", "rectangles_of_points"]

BoxRule = Literal["contour", "constant"]


def rectangles_of_box(box: Box, axis: int) -> dict[int, Rectangle]:
    """Return the same rectangle for each slice of a box along ``axis``."""
    first, second = in_plane_axes(axis)
    same = (
        float(box.start[first]),
        float(box.start[second]),
        float(box.stop[first]),
        float(box.stop[second]),
    )
    return dict.fromkeys(range(box.start[axis], box.stop[axis]), same)


def rectangles_of_points(
    points: NDArray[np.float64], box: Box, axis: int, rule: BoxRule
) -> dict[int, Rectangle]:
    """Return a rectangle for each slice between the extreme points along ``axis``.

    Parameters
    ----------
    points : ndarray, shape (N, 3)
        Extreme points as fractional indices. With fewer than six the rule is "constant".
    box : Box
        The box of the points, inside the volume.
    rule : {"contour", "constant"}
        ``"contour"``: each side of the rectangle follows an ellipse from the first slice's
        point over that side's extreme point to the last slice's point, exact for an ellipsoid.
        ``"constant"``: the box's rectangle on every slice, as MedLSAM does.

    Notes
    -----
    Measured on 174 stacks (29 organs of two AMOS22 scans, 29 structures of a torso CT, three
    axes each, exact points): overlap of the rectangle with the true one, mean over slices,
    0.51 against 0.39 for the constant one; 96 % of the object's area lies inside (constant:
    100 %). Straight lines instead of ellipses cut away 43 % of it.
    """
    constant = rectangles_of_box(box, axis)
    if rule == "constant" or len(points) < 6:
        return constant
    first, second = in_plane_axes(axis)
    ends = points[np.argsort(points[:, axis], kind="stable")][[0, -1]]
    numbers = np.array(sorted(constant), dtype=float)
    sides = []
    for across, last in ((first, False), (second, False), (first, True), (second, True)):
        order = np.argsort(points[:, across], kind="stable")
        peak = points[order[-1 if last else 0]]
        side = _ellipse(numbers, ends[:, [axis, across]], peak[[axis, across]])
        sides.append(np.floor(side + 0.5) + float(last))  # voxels, the last one included
    low = np.array(constant[box.start[axis]])
    found = {}
    for row, number in enumerate(sorted(constant)):
        r0, c0, r1, c1 = (float(side[row]) for side in sides)
        r0, c0 = min(max(r0, low[0]), low[2] - 1), min(max(c0, low[1]), low[3] - 1)
        r1, c1 = max(min(r1, low[2]), r0 + 1), max(min(c1, low[3]), c0 + 1)
        found[number] = (r0, c0, r1, c1)
    return found


def _ellipse(
    numbers: NDArray[np.float64], ends: NDArray[np.float64], peak: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a side's position on each slice: end - peak - end along two quarter ellipses.

    The object ends half a slice beyond the centres of its first and last slice.
    """
    found = np.empty(len(numbers))
    for row, number in enumerate(numbers):
        before = number <= peak[0]
        end, value = ends[0 if before else 1]
        reach = abs(peak[0] - end) + 0.5
        share = min(1.0, abs(number - peak[0]) / reach)
        found[row] = value + (peak[1] - value) * np.sqrt(1.0 - share * share)
    return found


def grown(rectangle: Rectangle, margin: tuple[float, float], shape: tuple[int, int]) -> Rectangle:
    """Return a rectangle with a margin (rows, columns) on each side, inside the slice."""
    r0, c0, r1, c1 = rectangle
    return (
        max(0.0, r0 - margin[0]),
        max(0.0, c0 - margin[1]),
        min(float(shape[0]), r1 + margin[0]),
        min(float(shape[1]), c1 + margin[1]),
    )


def between_rectangles(boxes: Mapping[int, Rectangle], number: int) -> Rectangle:
    """Return the rectangle at a slice between (or beyond) slices that have one; straight lines."""
    numbers = sorted(boxes)
    sides = np.array([boxes[n] for n in numbers])
    r0, c0, r1, c1 = (float(np.interp(number, numbers, sides[:, k])) for k in range(4))
    return (r0, c0, r1, c1)
