"""Agreement of two masks on one grid: overlap, distance between surfaces, volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box, box_of_mask
from napari_openmedlab.geometry.volume import Geometry

__all__ = [
    "Agreement",
    "compare_labels",
    "compare_masks",
    "dice",
    "surface_distances",
    "surface_points",
    "volume_of",
]

_FIND_OBJECTS_LIMIT = 65_535  # find_objects makes a list as long as the largest label


@dataclass(frozen=True)
class Agreement:
    """How a mask agrees with its reference.

    Attributes
    ----------
    dice : float
        In [0, 1].
    surface_dice : float
        Share of both surfaces that lies within the tolerance of the other one, in [0, 1].
    hd95 : float
        95th percentile Hausdorff distance in the grid's unit; ``inf`` if one mask is empty.
    voxels, reference_voxels : int
        Size of the mask and of its reference.

    Notes
    -----
    Two empty masks agree perfectly (Dice 1, surface Dice 1, HD95 0); if only one is empty they
    do not agree at all (0, 0, ``inf``).
    """

    dice: float
    surface_dice: float
    hd95: float
    voxels: int
    reference_voxels: int


def dice(mask: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Return ``2 |A and B| / (|A| + |B|)``; 1 if both masks are empty.

    Parameters
    ----------
    mask, reference : ndarray of bool, same shape
    """
    total = int(np.count_nonzero(mask)) + int(np.count_nonzero(reference))
    if total == 0:
        return 1.0
    return 2.0 * int(np.count_nonzero(mask & reference)) / total


def surface_points(mask: NDArray[np.bool_], geometry: Geometry) -> NDArray[np.float64]:
    """Return the centres of a mask's surface voxels.

    A surface voxel is one of the mask with a face neighbour outside it; beyond the array
    everything is outside.

    Parameters
    ----------
    mask : ndarray of bool, shape ``geometry.shape``, axes (z, y, x)

    Returns
    -------
    ndarray of float64, shape (N, 3)
        World (x, y, z) in the geometry's unit.
    """
    inside = np.pad(mask, 1)
    core = np.ones(mask.shape, dtype=bool)
    for axis in range(3):
        for step in (0, 2):
            cut = [slice(1, -1)] * 3
            cut[axis] = slice(step, step + mask.shape[axis])
            core &= inside[tuple(cut)]
    return geometry.to_world(np.argwhere(mask & ~core))


def surface_distances(
    points: NDArray[np.float64], others: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return for each point the distance to the nearest of the others.

    Parameters
    ----------
    points, others : ndarray of float64, shape (N, 3) and (M, 3), M >= 1
    """
    from scipy.spatial import cKDTree

    distances, _ = cKDTree(others).query(points)
    return np.asarray(distances, dtype=np.float64)


def compare_masks(
    mask: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    geometry: Geometry,
    *,
    tolerance: float = 2.0,
) -> Agreement:
    """Return how a mask agrees with its reference.

    Parameters
    ----------
    mask, reference : ndarray of bool, shape ``geometry.shape``, axes (z, y, x)
    geometry : Geometry
        Grid of both; any affine, sheared ones included.
    tolerance : float
        For the surface Dice, in the geometry's unit. >= 0.

    Raises
    ------
    GeometryError
        If a mask has another shape than the grid.

    Notes
    -----
    With ``S`` a mask's surface voxels (:func:`surface_points`) and ``d(a, S)`` the distance of
    voxel centres, HD95 is the larger of the 95th percentiles of ``d(a, S_B)`` over ``S_A`` and
    of ``d(b, S_A)`` over ``S_B`` (linear interpolation), and surface Dice is the share of the
    voxels of both surfaces whose distance is at most ``tolerance`` [1]_. Only the box that
    holds both masks is looked at.

    References
    ----------
    .. [1] S. Nikolov et al., "Deep learning to achieve clinically applicable segmentation of
       head and neck anatomy for radiotherapy", 2018 (there weighted by surface area, here
       each surface voxel counts once).
    """
    for name, array in (("mask", mask), ("reference", reference)):
        if array.shape != geometry.shape:
            raise GeometryError(
                f"the {name} has shape {array.shape}, its grid {geometry.shape}; both must agree"
            )
    box = box_of_mask(mask).union(box_of_mask(reference))
    if box.is_empty:
        return Agreement(1.0, 1.0, 0.0, 0, 0)
    return _compare(mask[box.slices], reference[box.slices], geometry.crop(box), tolerance)


def _compare(
    mask: NDArray[np.bool_], reference: NDArray[np.bool_], grid: Geometry, tolerance: float
) -> Agreement:
    voxels, expected = int(np.count_nonzero(mask)), int(np.count_nonzero(reference))
    if not voxels or not expected:
        return Agreement(0.0, 0.0, float("inf"), voxels, expected)
    mine, theirs = surface_points(mask, grid), surface_points(reference, grid)
    there, back = surface_distances(mine, theirs), surface_distances(theirs, mine)
    close = int((there <= tolerance).sum()) + int((back <= tolerance).sum())
    return Agreement(
        dice=dice(mask, reference),
        surface_dice=close / (len(there) + len(back)),
        hd95=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        voxels=voxels,
        reference_voxels=expected,
    )


def compare_labels(
    labels: NDArray[Any],
    reference: NDArray[Any],
    geometry: Geometry,
    *,
    values: Sequence[int] | None = None,
    tolerance: float = 2.0,
) -> Iterator[tuple[int, Agreement]]:
    """Yield each label value with its agreement, in the order of the values.

    Parameters
    ----------
    labels, reference : ndarray of int, shape ``geometry.shape``, axes (z, y, x)
    values : sequence of int, optional
        Label values to compare; by default all that occur in either map, 0 left out.
    tolerance : float
        See :func:`compare_masks`.
    """
    mine, theirs = _boxes(labels), _boxes(reference)
    nothing = Box((0, 0, 0), (0, 0, 0))
    for value in sorted(set(mine) | set(theirs)) if values is None else values:
        box = mine.get(value, nothing).union(theirs.get(value, nothing))
        if box.is_empty:
            yield value, Agreement(1.0, 1.0, 0.0, 0, 0)
            continue
        pair = labels[box.slices] == value, reference[box.slices] == value
        yield value, _compare(*pair, geometry.crop(box), tolerance)


def _boxes(labels: NDArray[Any]) -> dict[int, Box]:
    """Return the box of each label value that occurs, 0 left out."""
    from scipy import ndimage

    if labels.size and int(labels.max()) <= _FIND_OBJECTS_LIMIT:
        found = ndimage.find_objects(labels)
        return {
            value: Box(tuple(c.start for c in cut), tuple(c.stop for c in cut))
            for value, cut in enumerate(found, start=1)
            if cut is not None
        }
    values = (int(v) for v in np.unique(labels) if v)
    return {value: box_of_mask(labels == value) for value in values}


def volume_of(voxels: int, geometry: Geometry) -> tuple[float, str]:
    """Return a number of voxels as a volume with its unit: ml, um3 or voxels.

    Examples
    --------
    >>> grid = Geometry.from_spacing((10, 10, 10), (4.0, 1.0, 1.0))
    >>> volume_of(500, grid)
    (2.0, 'ml')
    """
    if geometry.unit == "mm":
        return voxels * geometry.voxel_volume / 1000.0, "ml"
    if geometry.unit == "um":
        return voxels * geometry.voxel_volume, "um3"
    return float(voxels), "voxels"
