"""What a brush, fill or polygon stroke in napari changed, as a patch of the label map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.geometry.boxes import Box, box_of_points
from napari_openmedlab.geometry.labels import LabelPatch

__all__ = ["difference_patch", "is_written", "stroke_patch"]


def is_written(labels: NDArray[Any], atoms: Sequence[Any]) -> bool:
    """Return whether the array already holds what the atoms say.

    napari announces a brush stroke after it has written it, but a fill or ``data_setitem``
    before; an atom lists only voxels that change, so any of them tells.
    """
    if not atoms:
        return True
    new_values = atoms[-1].new_value if hasattr(atoms[-1], "slice_key") else atoms[-1][2]
    key, _ = _lift(atoms[-1])
    return bool(np.all(labels[key] == new_values))


def stroke_patch(labels: NDArray[Any], atoms: Sequence[Any]) -> LabelPatch:
    """Return one patch for everything a stroke did.

    Parameters
    ----------
    labels : ndarray of int, shape (z, y, x)
        The label map as the stroke left it.
    atoms : sequence
        The value of napari's ``layer.events.paint``: in the order painted, either objects with
        ``slice_key``, ``mask`` (or ``None``) and ``old_values`` (brush, fill, polygon), or
        tuples (indices, old values, new values) (``data_setitem``). Those of a 2D layer lack
        the slice axis.

    Returns
    -------
    LabelPatch
        In the smallest box around the atoms. ``before`` comes from taking the atoms back, the
        last one first, because one stroke may cross a voxel several times.
    """
    lifted = [_lift(atom) for atom in atoms]
    box = Box((0, 0, 0), (0, 0, 0))
    for key, _ in lifted:
        box = box.union(_box_of(key))
    after = labels[box.slices].copy()
    before = after.copy()
    for key, old_values in reversed(lifted):
        before[tuple(_moved(k, start) for k, start in zip(key, box.start, strict=True))] = (
            old_values
        )
    return LabelPatch(box, before, after)


def difference_patch(labels: NDArray[Any], wanted: NDArray[Any]) -> LabelPatch | None:
    """Return the patch that turns ``labels`` into ``wanted``; ``None`` if they are equal.

    Works slice by slice: no temporary of the size of the volume.
    """
    box = Box((0, 0, 0), (0, 0, 0))
    for z in range(labels.shape[0]):
        rows, columns = np.nonzero(labels[z] != wanted[z])
        if rows.size:
            corner = (z, int(rows.min()), int(columns.min()))
            box = box.union(Box(corner, (z + 1, int(rows.max()) + 1, int(columns.max()) + 1)))
    if box.is_empty:
        return None
    after = np.asarray(wanted[box.slices]).astype(labels.dtype)
    return LabelPatch(box, labels[box.slices].copy(), after)


def _lift(atom: Any) -> tuple[tuple[Any, ...], Any]:
    """Return an atom as (three index arrays or slices, old values)."""
    if not hasattr(atom, "slice_key"):
        indices, old_values, _ = atom
        arrays = [np.asarray(axis) for axis in indices]
        zeros = [np.zeros_like(arrays[0])] * (3 - len(arrays))
        return (*zeros, *arrays), old_values
    slices = (slice(0, 1),) * (3 - len(atom.slice_key)) + tuple(atom.slice_key)
    shape = tuple(s.stop - s.start for s in slices)
    if atom.mask is None:
        return slices, np.reshape(atom.old_values, shape)
    hit = np.nonzero(np.reshape(atom.mask, shape))
    return tuple(h + s.start for h, s in zip(hit, slices, strict=True)), atom.old_values


def _box_of(key: tuple[Any, ...]) -> Box:
    if isinstance(key[0], slice):
        ends = np.array([(k.start, k.stop) for k in key])
        return Box(tuple(ends[:, 0]), tuple(ends[:, 1]))
    if key[0].size == 0:
        return Box((0, 0, 0), (0, 0, 0))
    return box_of_points(np.stack(key, axis=1))


def _moved(key: Any, start: int) -> Any:
    """Return an index expression relative to the box that starts here."""
    return slice(key.start - start, key.stop - start) if isinstance(key, slice) else key - start
