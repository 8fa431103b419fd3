"""Local effect of a correction: what a new click may change in the mask, and what it may not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi

__all__ = ["click_radius", "marked_ball", "settle"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]

#: A click stands for a ball of this share of its distance to the mask's border.
BALL_SHARE = 0.8
#: A change that gets this much deeper than at its click has run into something else.
DEPTH_SLACK = 1.1
#: A change ends at this many times its depth at the click.
DEPTH_REACH = 5.0
_TOUCHING = np.ones((3, 3, 3), dtype=bool)


def click_radius(
    mask: Bools, voxel: Ints, positive: bool, spacing: NDArray[np.float64], largest: float
) -> float:
    """Return the radius of the ball that a click stands for.

    People click in the middle of what is wrong, so its distance to the border of the mask
    tells how large the wrong part is.

    Parameters
    ----------
    mask : ndarray of bool, shape (z, y, x)
        The mask that is corrected.
    voxel : ndarray of int, shape (3,)
    positive : bool
    spacing : ndarray, shape (3,)
    largest : float
        Upper limit in the unit of ``spacing``: far from any mask the distance says nothing.
    """
    smallest = float(spacing.min())
    wrong = ~mask if positive else mask
    if wrong.all() or not wrong[tuple(voxel)]:
        return smallest
    depth = ndi.distance_transform_edt(wrong, sampling=spacing)[tuple(voxel)]
    return max(smallest, BALL_SHARE * min(float(depth), largest))


def marked_ball(
    shape: tuple[int, ...], voxel: Ints, radius: float, spacing: NDArray[np.float64]
) -> Bools:
    """Return the voxels within ``radius`` of a voxel, that voxel always included."""
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    steps = (((g - c) * s) ** 2 for g, c, s in zip(grid, voxel, spacing, strict=True))
    ball = np.asarray(sum(steps) <= (1.005 * radius) ** 2)
    ball[tuple(voxel)] = True
    return ball


def settle(
    before: Bools, after: Bools, marked: Bools, positive: bool, spacing: NDArray[np.float64]
) -> Bools:
    """Return what may be flipped by one correction on its way from ``before`` to ``after``.

    A positive mark only adds, a negative one only removes, and only in one piece with the
    mark. Where the change gets deeper than at the mark it has run over into a part that was
    right (a person would have clicked there), so it is cut off before.

    Parameters
    ----------
    before, after : ndarray of bool, shape (z, y, x)
    marked : ndarray of bool
        Voxels the user marked with this correction.
    positive : bool
    spacing : ndarray, shape (3,)

    Returns
    -------
    ndarray of bool
        Voxels to set (positive) or clear (negative); the marked ones are among them as far
        as they need to flip.
    """
    wrong = ~before if positive else before
    change = wrong & (after if positive else ~after)
    change |= marked & wrong
    change = _touching(change, marked)
    if not change.any():
        return change
    depth = ndi.distance_transform_edt(np.pad(change, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    here = float(depth[ndi.binary_dilation(marked, _TOUCHING)].max())
    deeper = depth > DEPTH_SLACK * here
    if deeper.any():
        beyond = ndi.distance_transform_edt(~deeper, sampling=spacing) < DEPTH_SLACK * here
        change = _touching(change & (~beyond | marked), marked)
    away = ndi.distance_transform_edt(~marked, sampling=spacing)
    return np.asarray(change & (away <= DEPTH_REACH * here))


def _touching(mask: Bools, marked: Bools) -> Bools:
    """Parts of a mask that hold a marked voxel."""
    parts, _ = ndi.label(mask, _TOUCHING)
    keep = np.unique(parts[marked & mask])
    return np.asarray(np.isin(parts, keep[keep > 0]))
