"""Where DICOM slices lie: order along the normal, copies, gaps, gantry tilt, the affine.

Positions come from ImagePositionPatient alone (DICOM PS3.3 C.7.6.2.1.1); file names, instance
numbers, SliceLocation and SpacingBetweenSlices are not trusted with them.

What is done about slices that don't fill an even grid, and why: nothing is ever moved or
squeezed. A few missing slices become blank planes, so that everything else stays where it is
and the reader can still see the scan; the volume's notes name them. Spacing that changes is
refused here (and split into even parts by ``dicom_series``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.io.dicom_files import Slice

__all__ = ["Layout", "even_runs", "lay_out", "plane_distances", "same_plane_mm"]

same_plane_mm = 0.01
"""Slices nearer than this along the normal are at the same place."""

_MISSING_SHARE = 0.2  # more blank planes than this is not "a few missing" but another spacing
_ALONG = 0.1  # largest error of a position along the normal, in slice spacings
_ACROSS = 0.25  # largest error of a position within its plane, in pixels
_QUIET = 0.02  # errors below this share (or 0.01 mm) are rounding in the file
_TILT_DEGREES = 0.1  # frames.is_sheared uses the same limit
_RUN = 3  # slices in the shortest part of an uneven series that is worth showing


@dataclass(frozen=True, eq=False)
class Layout:
    """Slices on an even grid, in ascending order along the slice normal.

    Attributes
    ----------
    planes : tuple of Slice or None
        One entry for each plane of the grid; ``None`` where the series has no slice.
    extras : tuple of (int, Slice)
        Further slices at the place of plane ``int``.
    affine : ndarray, shape (4, 4)
        Index (slice, row, column) to LPS mm, built from the first and last position, so it is
        sheared where the gantry was tilted.
    tilt : float
        Angle in degrees between the stacking direction and the slice normal.
    notes : tuple of str
        What the user must know of the positions.
    """

    planes: tuple[Slice | None, ...]
    extras: tuple[tuple[int, Slice], ...]
    affine: NDArray[np.float64]
    tilt: float
    notes: tuple[str, ...]

    @property
    def missing(self) -> tuple[int, ...]:
        """Planes without a slice."""
        return tuple(i for i, plane in enumerate(self.planes) if plane is None)


def lay_out(slices: Sequence[Slice]) -> Layout:
    """Put slices of one orientation and size on an even grid.

    Parameters
    ----------
    slices : sequence of Slice
        At least one, all with position, orientation and spacing.

    Raises
    ------
    GeometryError
        If the orientation is not two perpendicular directions, the spacing between slices
        changes, too many slices are missing, or the slices do not lie on one line.
    """
    distances = plane_distances(slices)
    ranks = sorted(range(len(slices)), key=lambda i: (distances[i], slices[i].instance))
    ordered = [slices[i] for i in ranks]
    groups = _same_planes(distances[ranks])
    affine, index, notes = _grid([ordered[group[0]] for group in groups])
    tilt = _angle(affine[:3, 0], np.cross(affine[:3, 2], affine[:3, 1]))
    if tilt > _TILT_DEGREES:
        notes.append(
            f"gantry tilt of {tilt:.1f} degrees: the scan is shown along its own axes; "
            "measurements and exports use the true (sheared) positions"
        )
    planes: list[Slice | None] = [None] * (int(index[-1]) + 1)
    extras: list[tuple[int, Slice]] = []
    for plane, group in zip(index, groups, strict=True):
        planes[plane] = ordered[group[0]]
        extras += [(int(plane), ordered[i]) for i in group[1:]]
    return Layout(tuple(planes), tuple(extras), affine, tilt, tuple(notes))


def plane_distances(slices: Sequence[Slice]) -> NDArray[np.float64]:
    """Return the distance of each slice along the normal of the first, in mm, shape (N,)."""
    normal = np.cross(*_directions(slices[0]))
    return np.array([_position(s) for s in slices]) @ normal


def even_runs(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Cut slices of uneven spacing where the spacing changes.

    Returns
    -------
    list of list of Slice
        Parts of at least three slices with an even spacing each, neighbours sharing the slice
        between them; empty if the spacing changes too often for that.
    """
    distances = plane_distances(slices)
    ordered = [slices[i] for i in np.argsort(distances, kind="stable")]
    steps = np.diff(np.sort(distances))
    changes = np.flatnonzero(np.abs(np.diff(steps)) > _ALONG * np.minimum(steps[:-1], steps[1:]))
    edges = [0, *(int(c) + 1 for c in changes), len(ordered) - 1]
    # A jump between two parts is a run of one step (two slices); it holds no slice of its own.
    runs = [ordered[a : b + 1] for a, b in pairwise(edges)]
    parts = [run for run in runs if len(run) >= _RUN]
    inside = {id(s) for run in parts for s in run}
    return parts if len(inside) == len(ordered) and len(parts) > 1 else []


def _directions(plane: Slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return unit vectors of growing column index and growing row index (PS3.3 C.7.6.2)."""
    if plane.orientation is None or plane.position is None:
        raise GeometryError("the image doesn't state its position in the patient")
    row, column = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if min(lengths) < 1e-6 or abs(row @ column) > 1e-2 * lengths[0] * lengths[1]:
        raise GeometryError(
            f"the image orientation {plane.orientation} is not two perpendicular directions"
        )
    return _unit(row), _unit(column)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale to length 1, leaving vectors that are unit but for their last digits alone."""
    length = float(np.linalg.norm(vector))
    return vector if abs(length - 1.0) < 1e-9 else vector / length


def _position(plane: Slice) -> NDArray[np.float64]:
    return np.array(plane.position, dtype=np.float64)


def _same_planes(sorted_distances: NDArray[np.float64]) -> list[list[int]]:
    """Group indices of sorted distances that name the same place."""
    groups = [[0]]
    for i in range(1, len(sorted_distances)):
        if sorted_distances[i] - sorted_distances[groups[-1][0]] < same_plane_mm:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _grid(slices: list[Slice]) -> tuple[NDArray[np.float64], NDArray[np.int_], list[str]]:
    """Return the affine of slices in ascending order, the plane of each, and notes."""
    first = slices[0]
    row, column = _directions(first)
    spacing = first.spacing or (1.0, 1.0)
    notes: list[str] = []
    affine = np.eye(4)
    affine[:3, 1] = column * spacing[0]
    affine[:3, 2] = row * spacing[1]
    affine[:3, 3] = _position(first)
    normal = np.cross(row, column)
    if len(slices) == 1:
        affine[:3, 0] = normal * _single_thickness(first, notes)
        return affine, np.zeros(1, dtype=int), notes
    index, affine[:3, 0] = _grid_index(slices, normal, min(spacing), notes)
    return affine, index, notes


def _single_thickness(plane: Slice, notes: list[str]) -> float:
    if plane.thickness is not None:
        notes.append(f"a single slice: its depth of {plane.thickness:g} mm is the slice thickness")
        return plane.thickness
    notes.append("a single slice without a thickness: shown 1 mm deep, don't measure volumes")
    return 1.0


def _grid_index(
    slices: list[Slice], normal: NDArray[np.float64], pixel: float, notes: list[str]
) -> tuple[NDArray[np.int_], NDArray[np.float64]]:
    """Return the plane of each slice (ascending) and the LPS vector from plane to plane."""
    positions = np.array([_position(s) for s in slices])
    steps = np.diff(positions @ normal)
    base = float(np.sort(steps)[(len(steps) - 1) // 2])
    counts = np.maximum(np.rint(steps / base), 1).astype(int)
    index = np.concatenate([[0], np.cumsum(counts)])
    missing = int(index[-1]) + 1 - len(slices)
    step = (positions[-1] - positions[0]) / index[-1]
    error = positions - positions[0] - index[:, None] * step
    along = np.abs(error @ normal)
    across = np.linalg.norm(error - np.outer(error @ normal, normal), axis=1)
    if along.max() > _ALONG * base or missing > max(1, _MISSING_SHARE * (index[-1] + 1)):
        raise GeometryError(_uneven(positions @ normal, steps, base))
    if across.max() > _ACROSS * pixel:
        raise GeometryError(
            f"the slices don't lie on one line: one is {across.max():.2g} mm off to the side"
        )
    worst = max(float(along.max()), float(across.max()))
    if along.max() > max(_QUIET * base, 0.01) or across.max() > max(_QUIET * pixel, 0.01):
        notes.append(f"slice positions stray from an even spacing by up to {worst:.2g} mm")
    return index, step


def _uneven(distances: NDArray[np.float64], steps: NDArray[np.float64], base: float) -> str:
    odd = np.flatnonzero(np.abs(steps - base) > _ALONG * base)
    named = ", ".join(
        f"{steps[i]:.3g} mm from {distances[i]:.1f} to {distances[i + 1]:.1f}" for i in odd[:4]
    )
    more = f" and {len(odd) - 4} more" if len(odd) > 4 else ""
    return (
        f"the slices are not evenly spaced: mostly {base:.3g} mm apart, but {named}{more} "
        "(mm along the slice normal)"
    )


def _angle(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), abs(a @ b))))
