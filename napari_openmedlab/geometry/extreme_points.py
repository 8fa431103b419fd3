"""Six extreme points of a structure: which is which, whether they can be meant, and from a mask.

The order is that of ``models.localisation.WALLS`` everywhere: inferior, posterior, right,
superior, anterior, left. Each point stands for one wall of the structure's box; the wall lies
across the axis of the grid that runs nearest to the patient's axis, whatever order and direction
the array has.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry import frames
from napari_openmedlab.geometry.boxes import Box, box_of_mask
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.volume import Geometry

__all__ = [
    "ROLES",
    "assign_walls",
    "box_of_walls",
    "check_walls",
    "slabs_of_mask",
    "wall_directions",
    "walls_of_mask",
]

ROLES = ("inferior", "posterior", "right", "superior", "anterior", "left")
"""The six walls, in the order in which their points are kept."""

_PATIENT = np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
_SLACK_MM = 3.0  # a click may miss a wall by so much, or by a voxel and a half
_THIN_MM = 6.0  # two voxels of the 3 mm grid that MedLAM works on
_CYCLIC = ((1, 2), (2, 0), (0, 1))  # axes of the slice at an extreme, spec of MedLAM 4.1

Points = NDArray[np.float64]


def wall_directions(geometry: Geometry | None = None) -> Points:
    """Return unit vectors (3, 3) in LPS towards superior, anterior, left, one a row.

    Parameters
    ----------
    geometry : Geometry, optional
        Whose voxel axes stand for the patient's: an oblique scan is looked at, marked and boxed
        along its own axes. Without one, the patient's axes themselves.
    """
    if geometry is None:
        return _PATIENT.copy()
    linear = (geometry.affine @ _upward(geometry).index_map(geometry.shape))[:3, :3]
    directions: Points = (linear / np.linalg.norm(linear, axis=0)).T
    return directions


def _upward(geometry: Geometry) -> frames.Reorientation:
    """Return what brings an array to the order superior, anterior, left."""
    shown = frames.display_reorientation(geometry.affine)  # inferior, posterior, left
    first, second, third = shown.flips
    return frames.Reorientation(shown.order, (not first, not second, third))


def assign_walls(points: ArrayLike, geometry: Geometry | None = None) -> Points:
    """Return six points in the order of :data:`ROLES`, however they were placed.

    Every point gets one wall, so that all walls together lie as far out as they can: a 6 x 6
    assignment over the points' positions along the three axes.

    Parameters
    ----------
    points : array-like, shape (6, 3)
        LPS mm, any order.
    geometry : Geometry, optional
        See :func:`wall_directions`.

    Returns
    -------
    ndarray of float64, shape (6, 3)

    Raises
    ------
    PromptError
        If there are not exactly six finite points.
    """
    from scipy.optimize import linear_sum_assignment

    given = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    if len(given) != len(ROLES):
        what = "place the others" if len(given) < len(ROLES) else "remove those too many"
        raise PromptError(
            f"a structure is marked by six extreme points, one for each of {', '.join(ROLES)}; "
            f"there are {len(given)}: {what}"
        )
    if not np.isfinite(given).all():
        raise PromptError("an extreme point is three finite numbers (x, y, z)")
    upward = given @ wall_directions(geometry).T
    rows, columns = linear_sum_assignment(np.hstack([upward, -upward]))
    ordered = np.empty_like(given)
    ordered[columns] = given[rows]
    return ordered


def check_walls(
    points: ArrayLike, geometry: Geometry | None = None, name: str = "structure"
) -> tuple[str, ...]:
    """Refuse points that can't be the six extremes of one structure; return what looks odd.

    Parameters
    ----------
    points : array-like, shape (6, 3)
        LPS mm, order of :data:`ROLES`.
    geometry : Geometry, optional
        Grid of the scan; points must lie on it.
    name : str
        Of the structure, for the sentences.

    Returns
    -------
    tuple of str
        Warnings: a structure thinner than 6 mm, a point at the scan's edge (cut off there?).

    Raises
    ------
    PromptError
        If a point lies outside the scan, two walls are crossed, or a point lies farther out
        than the point that is to mark that wall (by more than 3 mm and one and a half voxels).
    """
    given = np.asarray(points, dtype=np.float64).reshape(len(ROLES), 3)
    slack = np.full(3, _SLACK_MM)
    warnings: list[str] = []
    if geometry is not None:
        warnings += _check_inside(given, geometry, name)
        upright = _upward(geometry)
        slack = np.maximum(slack, 1.5 * np.array(geometry.spacing)[list(upright.order)])
    upward = given @ wall_directions(geometry).T
    for axis in range(3):
        low, high = upward[axis, axis], upward[axis + 3, axis]
        if low > high + 1e-6:
            raise PromptError(
                f"'{name}': the {ROLES[axis]} point lies on the {ROLES[axis + 3]} side of the "
                f"{ROLES[axis + 3]} point; swap them or place them anew"
            )
        _check_extreme(upward[:, axis], axis, float(slack[axis]), name)
        if high - low < _THIN_MM:
            warnings.append(
                f"'{name}' is only {high - low:.1f} mm from {ROLES[axis]} to {ROLES[axis + 3]}: "
                "thinner than two voxels of the grid engines work on; check the two points"
            )
    return tuple(warnings)


def _check_extreme(along: Points, axis: int, slack: float, name: str) -> None:
    """Raise if any point lies beyond the two walls of an axis."""
    for wall, beyond in ((axis, along[axis] - along), (axis + 3, along - along[axis + 3])):
        worst = int(beyond.argmax())
        if beyond[worst] > slack:
            raise PromptError(
                f"'{name}': the {ROLES[worst]} point lies {beyond[worst]:.1f} mm more "
                f"{ROLES[wall]} than the {ROLES[wall]} point, so that one is not the "
                f"structure's extreme; move it to where the structure ends"
            )


def _check_inside(points: Points, geometry: Geometry, name: str) -> list[str]:
    index = geometry.to_index(points)
    outside = np.flatnonzero(~geometry.contains_index(index))
    if outside.size:
        raise PromptError(
            f"'{name}': the {ROLES[outside[0]]} point lies outside the scan; place it on the image"
        )
    move = _upward(geometry)
    warnings = []
    for axis, source in enumerate(move.order):
        last = geometry.shape[source] - 1
        ends = {
            0: axis + 3 if move.flips[axis] else axis,
            last: axis if move.flips[axis] else axis + 3,
        }
        for edge, wall in ends.items():
            if last > 0 and abs(index[wall, source] - edge) < 0.5:
                warnings.append(
                    f"'{name}' reaches the {ROLES[wall]} edge of the scan: if it is cut off "
                    "there, mark it on another scan"
                )
    return warnings


def box_of_walls(points: ArrayLike, geometry: Geometry) -> Box:
    """Return the voxels between six walls, clipped to the grid (perhaps empty).

    Parameters
    ----------
    points : array-like, shape (6, 3)
        LPS mm, order of :data:`ROLES`. Each wall comes from its own point only.
    """
    index = geometry.to_index(np.asarray(points, dtype=np.float64).reshape(len(ROLES), 3))
    start, stop = np.zeros(3, dtype=int), np.zeros(3, dtype=int)
    for axis, source in enumerate(_upward(geometry).order):
        ends = np.rint(np.sort(index[[axis, axis + 3], source])).astype(int)
        start[source], stop[source] = ends[0], ends[1] + 1
    return Box(tuple(start), tuple(stop)).clip(geometry.shape)


def walls_of_mask(mask: MaskPatch | NDArray[np.bool_], geometry: Geometry) -> Points:
    """Return the six extreme points of a mask (MedLAM's rule).

    At each extreme slice the foreground voxels are listed row by row and the one in the middle
    of the list is taken: not the centroid, always a voxel of the mask. Rows and columns are in
    cyclic order of superior, anterior, left (openmedlab/MedLSAM, detection_functions).

    Parameters
    ----------
    mask : MaskPatch or ndarray of bool
        On the grid; an array has the shape of the grid.
    geometry : Geometry

    Returns
    -------
    ndarray of float64, shape (6, 3)
        LPS mm of voxel centres, order of :data:`ROLES`.

    Raises
    ------
    PromptError
        If the mask is empty.
    """
    array, affine = _upright(mask, geometry)
    voxels = np.empty((6, 3))
    for axis in range(3):
        voxels[axis] = _middle(array, axis, 0, array.shape[axis])
        voxels[axis + 3] = _middle(array, axis, array.shape[axis] - 1, -1)
    return voxels @ affine[:3, :3].T + affine[:3, 3]


def slabs_of_mask(mask: MaskPatch | NDArray[np.bool_], geometry: Geometry, count: int) -> Points:
    """Return six extreme points for each of several slabs of a mask, from inferior to superior.

    The sub-patches of MedLSAM, as published: slabs are equally high but for the last, which
    takes the rest; the slice at a slab's end belongs to the next, and the topmost slice to none;
    an empty slab takes the walls of the one before.

    Parameters
    ----------
    mask : MaskPatch or ndarray of bool
    geometry : Geometry
    count : int
        Slabs; at most the mask's height in slices less one.

    Returns
    -------
    ndarray of float64, shape (count, 6, 3)
        LPS mm, order of :data:`ROLES`.

    Raises
    ------
    PromptError
        If the mask is empty, or has too few slices for so many slabs.
    """
    array, affine = _upright(mask, geometry)
    last = array.shape[0] - 1
    if count < 1 or last < count:
        raise PromptError(
            f"a structure of {last + 1} slice(s) can't be cut into {count} slabs; ask for fewer"
        )
    voxels = np.array([_slab(array, walls) for walls in _slab_walls(array, count)], dtype=float)
    points: Points = voxels @ affine[:3, :3].T + affine[:3, 3]
    return points


def _slab_walls(array: NDArray[np.bool_], count: int) -> list[tuple[list[int], list[int]]]:
    last = array.shape[0] - 1
    step = last // count
    found: list[tuple[list[int], list[int]]] = []
    for number in range(count):
        low = number * step
        high = last if number == count - 1 else low + step
        box = box_of_mask(array[low:high])
        if box.is_empty:  # never the first: the lowest slice holds a voxel
            found.append(found[-1])
            continue
        _, *start = box.start
        _, *stop = box.stop
        found.append(([low, *start], [high, *(v - 1 for v in stop)]))
    return found


def _slab(array: NDArray[np.bool_], walls: tuple[list[int], list[int]]) -> Points:
    voxels = np.empty((6, 3))
    for axis in range(3):
        for end in range(2):
            place = walls[end][axis]
            voxels[axis + 3 * end] = _middle(array, axis, place, array.shape[axis])
            voxels[axis + 3 * end, axis] = place
    return voxels


def _middle(array: NDArray[np.bool_], axis: int, place: int, towards: int) -> NDArray[np.int_]:
    """Return the middle voxel of the first slice from ``place`` on that is not empty."""
    step = 1 if towards > place else -1
    order = _CYCLIC[axis]
    for slot in range(place, towards, step):
        plane = array.take(slot, axis=axis)  # its axes are the other two, ascending
        listed = np.argwhere(plane if order[0] < order[1] else plane.T)
        if len(listed):
            voxel = np.empty(3, dtype=int)
            voxel[axis] = slot
            voxel[list(order)] = listed[len(listed) // 2]
            return voxel
    raise PromptError("the mask is empty; choose one that has voxels")


def _upright(
    mask: MaskPatch | NDArray[np.bool_], geometry: Geometry
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return the trimmed mask in order superior, anterior, left, and its index's way to LPS."""
    patch = (mask if isinstance(mask, MaskPatch) else MaskPatch.of(mask)).clip(geometry.shape)
    patch = patch.trimmed()
    if patch.is_empty:
        raise PromptError("the mask is empty; choose one that has voxels")
    crop = geometry.crop(patch.box)
    move = _upward(crop)
    array: NDArray[np.bool_] = move.apply(patch.mask)
    return array, crop.reorient(move).affine
