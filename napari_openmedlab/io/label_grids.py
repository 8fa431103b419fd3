"""Volumes read from files as label maps: whole numbers, on the grid of the scan they belong to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError, ReadError
from napari_openmedlab.geometry.frames import Reorientation
from napari_openmedlab.geometry.labels import smallest_label_dtype
from napari_openmedlab.geometry.volume import Geometry, Unit, Volume

__all__ = ["as_labels", "on_grid_of"]


def as_labels(volume: Volume, path: Path) -> Volume:
    """Return the volume with its values as the smallest fitting unsigned integers.

    Raises
    ------
    ReadError
        If a value is negative, no whole number, or too large for 32 bits.
    """
    array = np.asarray(volume.array)
    if array.dtype.kind == "f":
        _check_whole(array, path)
    low, high = int(array.min()), int(array.max())
    if low < 0:
        raise ReadError(
            f"{path} holds the value {low}; label values are 0 or more, so this isn't a label map",
            path,
        )
    try:
        dtype = smallest_label_dtype(high)
    except GeometryError as error:
        raise ReadError(f"{path} isn't a label map: {error}", path) from error
    return replace(volume, array=array.astype(dtype, copy=False))


def _check_whole(array: NDArray[Any], path: Path) -> None:
    for plane in array:
        wrong = ~(np.isfinite(plane) & (np.rint(plane) == plane))
        if wrong.any():
            raise ReadError(
                f"{path} holds the value {plane[wrong][0]:g}; label values are whole numbers, so "
                "this is an image or a probability map, not a label map",
                path,
            )


def on_grid_of(labels: Volume, like: Volume, path: Path, *, resample: bool = False) -> Volume:
    """Return the labels on the grid of a scan, in its axis order.

    Raises
    ------
    GeometryError
        If they lie on another grid and ``resample`` is False; or share no space with it.
    """
    grid = like.geometry
    labels = replace(labels, geometry=_in_unit(labels.geometry, grid.unit))
    move = _matching(labels.geometry, grid)
    if move is not None:
        return replace(labels, array=move.apply(labels.array), geometry=grid, source=like.source)
    if not resample:
        raise GeometryError(
            f"the labels in {path} lie on another grid than '{like.name}': "
            f"{grid.difference(labels.geometry)}; open the scan they were made on, or ask for "
            "them to be resampled (nearest voxel)"
        )
    if labels.geometry.unit != grid.unit:
        raise GeometryError(
            f"the labels in {path} are in {labels.geometry.unit}, '{like.name}' in {grid.unit}: "
            "they can't be resampled onto each other"
        )
    array = _nearest(np.asarray(labels.array), labels.geometry, grid)
    note = f"resampled (nearest voxel) from another grid: {grid.difference(labels.geometry)}"
    return replace(
        labels, array=array, geometry=grid, source=like.source, notes=(*labels.notes, note)
    )


def _in_unit(geometry: Geometry, unit: Unit) -> Geometry:
    """Return the grid with its lengths in mm or um; ``"pixel"`` has no length and stays."""
    factor = {("mm", "um"): 1000.0, ("um", "mm"): 0.001}.get((geometry.unit, unit))
    if factor is None:
        return geometry
    affine = geometry.affine.copy()
    affine[:3] *= factor
    return replace(geometry, affine=affine, unit=unit)


def _matching(own: Geometry, wanted: Geometry) -> Reorientation | None:
    """Return the permutation and flips that bring ``own`` onto ``wanted``, if there are any.

    Both are usually in display order already. Not so when the tie at 45 degrees fell to the
    other side, or when one of them was stored without the patient's axes.
    """
    steps = np.linalg.solve(own.affine[:3, :3], wanted.affine[:3, :3])
    order = np.argmax(np.abs(steps), axis=0)
    if sorted(order) != [0, 1, 2]:
        return None
    flips = steps[order, np.arange(3)] < 0
    a, b, c = (int(n) for n in order)
    move = Reorientation((a, b, c), (bool(flips[0]), bool(flips[1]), bool(flips[2])))
    return move if own.reorient(move).same_grid(wanted) else None


def _nearest(array: NDArray[Any], own: Geometry, wanted: Geometry) -> NDArray[Any]:
    """Sample labels at the voxel centres of another grid; 0 beyond their own."""
    from scipy import ndimage

    matrix = np.linalg.solve(own.affine, wanted.affine)
    matrix[np.abs(matrix) < 1e-12] = 0.0
    # "grid-constant" goes on to the outer face of the edge voxels; "constant" stops at their centre
    out = np.empty(wanted.shape, dtype=array.dtype)
    ndimage.affine_transform(
        array, matrix[:3, :3], matrix[:3, 3], wanted.shape, out, order=0, mode="grid-constant"
    )
    return out
