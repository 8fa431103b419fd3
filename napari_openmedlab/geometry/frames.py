"""Affine algebra: coordinate frames, spacing, orientation, and lossless reorientation.

Three frames meet in this project:

* **index**: array coordinates ``(z, y, x)``; an integer names a voxel *centre*.
* **LPS**: patient millimetres ``(x, y, z)`` growing to Left, Posterior, Superior, as in DICOM
  and ITK. Every affine in this package maps index ``(z, y, x, 1)`` to LPS ``(x, y, z, 1)``.
* **RAS**: patient millimetres as in NIfTI. It exists at the file boundary only.

Display order is the permutation and flips that bring the array axes nearest to
**I, P, L** (axis 0 grows to Inferior, 1 to Posterior, 2 to patient Left): napari draws axes
downward and to the right, so this is the order in which its default camera is radiological.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_openmedlab.errors import GeometryError

__all__ = [
    "DISPLAY_AXES",
    "Reorientation",
    "as_affine",
    "axis_codes",
    "display_reorientation",
    "is_sheared",
    "obliquity",
    "ras_lps",
    "spacing_of",
]

Affine = NDArray[np.float64]

DISPLAY_AXES: NDArray[np.float64] = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
"""Row ``i`` is the LPS unit vector that display axis ``i`` should grow along: I, P, L."""

_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))


def as_affine(affine: ArrayLike) -> Affine:
    """Return ``affine`` as a checked 4x4 float64 array.

    Parameters
    ----------
    affine : array-like, shape (4, 4)
        Maps index coordinates to LPS.

    Raises
    ------
    GeometryError
        If it has another shape, a value that is not finite, a last row other than
        ``(0, 0, 0, 1)``, or no inverse (an axis of zero length, or two parallel axes).
    """
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise GeometryError(f"an affine is a 4x4 matrix, this one has shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise GeometryError("the affine holds values that are not finite numbers")
    if not np.array_equal(matrix[3], [0.0, 0.0, 0.0, 1.0]):
        raise GeometryError(f"the last row of an affine is 0 0 0 1, this one is {matrix[3]}")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if not lengths.all() or abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6:
        raise GeometryError(
            "the affine can't be inverted: a voxel axis has no length or two axes are parallel"
        )
    return matrix


def ras_lps(affine: ArrayLike) -> Affine:
    """Return the affine with its world axes turned from RAS to LPS, or back (its own inverse).

    Only signs change, so the conversion there and back is exact to the bit.
    """
    matrix = np.array(affine, dtype=np.float64)
    matrix[:2] = 0.0 - matrix[:2]  # 0.0 - x keeps zeros positive
    return matrix


def spacing_of(affine: ArrayLike) -> tuple[float, float, float]:
    """Return the distance between neighbouring voxel centres along each array axis."""
    lengths = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    return float(lengths[0]), float(lengths[1]), float(lengths[2])


def axis_codes(affine: ArrayLike) -> str:
    """Return the letter (R/L, A/P, I/S) each array axis grows to, for example ``"IPL"``.

    An oblique axis gets the letter of the patient axis assigned to it by
    :func:`display_reorientation`, so the three letters always name three different axes.
    """
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    matrix = matrix / np.linalg.norm(matrix, axis=0)
    world_of = _assign_world_axes(matrix)
    return "".join(
        _LETTERS[world][int(matrix[world, axis] > 0)] for axis, world in enumerate(world_of)
    )


def _assign_world_axes(unit: NDArray[np.float64]) -> tuple[int, ...]:
    """Give each array axis one world axis so that the sum of |cosines| is largest.

    Ties (45 degrees) go to the first permutation in lexical order, so the answer is stable.
    """
    cosines = np.round(np.abs(unit), 6)
    return max(
        permutations(range(3)),
        key=lambda world: float(sum(cosines[w, axis] for axis, w in enumerate(world))),
    )


@dataclass(frozen=True)
class Reorientation:
    """A permutation and flips of array axes, with its exact inverse.

    Attributes
    ----------
    order : tuple of int
        ``order[i]`` is the source axis that becomes axis ``i``.
    flips : tuple of bool
        ``flips[i]`` says whether axis ``i`` of the *result* runs against its source axis.
    """

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: Any) -> Any:
        """Return a view of a source-order array (last three axes) in the new order."""
        return self._flip(self._permute(array, self.order))

    def undo(self, array: Any) -> Any:
        """Return a view of a reordered array (last three axes) in source order."""
        inverse = tuple(int(i) for i in np.argsort(self.order))
        return self._permute(self._flip(array), inverse)

    def _permute(self, array: Any, order: tuple[int, ...]) -> Any:
        lead = array.ndim - 3
        return array.transpose(*range(lead), *(lead + axis for axis in order))

    def _flip(self, array: Any) -> Any:
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return array[(..., *steps)]

    def apply_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the shape in the new order of an array with this source shape."""
        a, b, c = (int(shape[axis]) for axis in self.order)
        return a, b, c

    def index_map(self, source_shape: tuple[int, ...]) -> Affine:
        """Return the 4x4 matrix from new-order index coordinates to source index coordinates."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        for new, (source, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            matrix[source, new] = -1.0 if flip else 1.0
            matrix[source, 3] = float(source_shape[source] - 1) if flip else 0.0
        return matrix

    @property
    def is_identity(self) -> bool:
        """Whether nothing is moved."""
        return self.order == (0, 1, 2) and not any(self.flips)


def display_reorientation(affine: ArrayLike) -> Reorientation:
    """Return the permutation and flips that bring the array axes nearest to I, P, L.

    Parameters
    ----------
    affine : array-like, shape (4, 4)
        Source index (any axis order) to LPS mm.

    Notes
    -----
    Permutations and flips are lossless. Resampling never happens here.
    """
    unit = as_affine(affine)[:3, :3]
    unit = unit / np.linalg.norm(unit, axis=0)
    world_of = _assign_world_axes(unit)
    order: list[int] = []
    flips: list[bool] = []
    for target in DISPLAY_AXES:
        world = int(np.argmax(np.abs(target)))
        axis = world_of.index(world)
        order.append(axis)
        flips.append(bool(unit[world, axis] * target[world] < 0))
    return Reorientation((order[0], order[1], order[2]), (flips[0], flips[1], flips[2]))


def obliquity(affine: ArrayLike) -> float:
    """Return the largest angle in degrees between an array axis and its patient axis."""
    unit = np.asarray(affine, dtype=np.float64)[:3, :3]
    unit = unit / np.linalg.norm(unit, axis=0)
    world_of = _assign_world_axes(unit)
    angles = []
    for axis, world in enumerate(world_of):
        rest = np.delete(unit[:, axis], world)
        angles.append(np.arctan2(np.linalg.norm(rest), abs(unit[world, axis])))
    return float(np.degrees(max(angles)))


def is_sheared(affine: ArrayLike, tolerance_degrees: float = 0.1) -> bool:
    """Return whether two array axes are not at right angles (a gantry-tilted stack, say)."""
    unit = np.asarray(affine, dtype=np.float64)[:3, :3]
    unit = unit / np.linalg.norm(unit, axis=0)
    cosines = np.abs(np.triu(unit.T @ unit, 1))
    return bool(cosines.max() > np.sin(np.radians(tolerance_degrees)))
