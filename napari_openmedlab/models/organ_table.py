"""What can be said of labelled structures: volume, mean intensity, where they end, which side."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.io.atomic import resolved_target, staging
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.organs import MIDLINE, partner, side_of, title_of

__all__ = ["COLUMNS", "OrganRow", "measure", "to_csv", "write_csv"]

COLUMNS = (
    "label", "name", "voxels", "volume_ml", "mean", "first_slice", "last_slice",
    "touches_border", "side_check",
)  # fmt: skip
"""Columns of the CSV file. ``mean`` is in HU for a CT; slices count from 0 along axis 0."""

_FACES = {"S": "superior", "I": "inferior", "A": "anterior", "P": "posterior", "L": "left",
          "R": "right"}  # fmt: skip
_OPPOSITE = dict(zip("SIAPLR", "ISPARL", strict=True))
_LEEWAY_MM = 15.0  # a spine may be bent by this much
_WRONG = 0.5  # of a structure on the other side is too much
_ML = {"mm": 1e-3, "um": 1e-12, "pixel": math.nan}


@dataclass(frozen=True)
class OrganRow:
    """One structure.

    Attributes
    ----------
    value : int
        In the labels.
    name : str
    voxels : int
    volume_ml : float
        NaN if the voxel size is not known.
    mean : float
        Of the scan's values inside, HU for a CT. NaN if empty.
    box : Box
        Smallest one that holds it, in the volume; empty if it was not found.
    centre : tuple of float
        World point (x, y, z) of its centre of mass; NaN if empty.
    touches : tuple of str
        Faces of the volume that it reaches, where it may be cut off: ``"superior"``, ``"left"``
        ..., or ``"axis 0 start"`` without a patient.
    side_check : str
        A sentence if it lies on the wrong side of the body, else empty.
    """

    value: int
    name: str
    voxels: int = 0
    volume_ml: float = 0.0
    mean: float = math.nan
    box: Box = field(default_factory=lambda: Box((0, 0, 0), (0, 0, 0)))
    centre: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    touches: tuple[str, ...] = ()
    side_check: str = ""

    @property
    def slices(self) -> tuple[int, int] | None:
        """First and last slice along axis 0, or ``None`` if it was not found."""
        return (self.box.start[0], self.box.stop[0] - 1) if self.voxels else None


def measure(
    volume: Volume,
    labels: NDArray[Any],
    names: Mapping[int, str],
    box: Box | None = None,
    *,
    around: Sequence[OrganRow] = (),
    monitor: Monitor | None = None,
) -> tuple[OrganRow, ...]:
    """Return a row for each name, in the order of the values.

    Parameters
    ----------
    volume : Volume
    labels : ndarray of unsigned int, shape ``box.shape``
    names : mapping of int to str
        Values to look for; others are left out.
    box : Box, optional
        Where the labels lie in the volume; by default everywhere.
    around : sequence of OrganRow
        Rows known of other structures, to compare left with right.
    monitor : Monitor, optional
        A cancel acts at the next plane.

    Raises
    ------
    GeometryError
        If labels and box don't fit.
    """
    box = Box.whole(volume.geometry.shape) if box is None else box
    if labels.shape != box.shape or not Box.whole(volume.geometry.shape).contains(box):
        raise GeometryError(f"labels of shape {labels.shape} don't fit {box} of '{volume.name}'")
    sums = _Sums.of(volume, labels, box, max(names, default=0) + 1, monitor or Monitor())
    found = [_row(volume, sums, value, name, box) for value, name in sorted(names.items())]
    return _sides_checked(volume, sums, box, found, around)


def to_csv(rows: Sequence[OrganRow]) -> str:
    """Return the rows as CSV text with a head of :data:`COLUMNS`."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in rows:
        first, last = row.slices or ("", "")
        mean = "" if math.isnan(row.mean) else f"{row.mean:.1f}"
        ml = "" if math.isnan(row.volume_ml) else f"{row.volume_ml:.3f}"
        faces = " ".join(face.replace(" ", "-") for face in row.touches)
        table.writerow(
            [row.value, row.name, row.voxels, ml, mean, first, last, faces, row.side_check]
        )
    return out.getvalue()


def write_csv(path: Path, rows: Sequence[OrganRow]) -> Path:
    """Write the rows as a CSV file, whole or not at all, and return where it lies.

    Raises
    ------
    WriteError
        If the folder can't be written to or the disk is full.
    """
    target = resolved_target(path)
    with staging(target.parent) as folder:
        (folder / target.name).write_text(to_csv(rows), encoding="utf-8")
    return target


@dataclass(frozen=True, eq=False)
class _Sums:
    """Counts by value: along each axis of the labels, and the scan's values added up."""

    along: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    values: NDArray[np.float64]

    @classmethod
    def of(
        cls, volume: Volume, labels: NDArray[Any], box: Box, values: int, monitor: Monitor
    ) -> _Sums:
        """Go once through labels and scan, plane by plane."""
        depth, height, width = box.shape
        along = tuple(np.zeros((values, n), dtype=np.int64) for n in box.shape)
        added = np.zeros(values)
        lines, columns = np.arange(height)[:, None], np.arange(width)
        for number in range(depth):
            monitor.step(number, depth, "measuring")
            plane = np.asarray(labels[number])
            plane = np.where(plane < values, plane, 0).astype(np.int64)
            found = np.bincount(plane.ravel(), minlength=values)
            if found[0] == plane.size:
                continue
            along[0][:, number] = found
            by_line = np.bincount((plane * height + lines).ravel(), minlength=values * height)
            along[1][:] += by_line.reshape(values, height)
            by_column = np.bincount((plane * width + columns).ravel(), minlength=values * width)
            along[2][:] += by_column.reshape(values, width)
            z = box.start[0] + number
            pixels = np.asarray(volume.array[z, box.slices[1], box.slices[2]], dtype=np.float64)
            added += np.bincount(plane.ravel(), np.nan_to_num(pixels).ravel(), values)
        return cls((along[0], along[1], along[2]), added)


def _row(volume: Volume, sums: _Sums, value: int, name: str, box: Box) -> OrganRow:
    voxels = int(sums.along[0][value].sum())
    if not voxels:
        return OrganRow(value, name)
    start, stop, centre = [], [], []
    for axis, first in enumerate(box.start):
        line = sums.along[axis][value]
        places = np.flatnonzero(line)
        start.append(first + int(places[0]))
        stop.append(first + int(places[-1]) + 1)
        centre.append(first + float(line @ np.arange(len(line))) / voxels)
    extent = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    x, y, z = (float(each) for each in volume.geometry.to_world(centre))
    geometry = volume.geometry
    return OrganRow(
        value,
        name,
        voxels,
        voxels * geometry.voxel_volume * _ML[geometry.unit],
        float(sums.values[value]) / voxels,
        extent,
        (x, y, z),
        _touched(volume, extent),
    )


def _touched(volume: Volume, extent: Box) -> tuple[str, ...]:
    """Return the faces of the volume that a box reaches; an axis of one slice has none."""
    found = []
    geometry = volume.geometry
    patient = geometry.frame == "patient"
    for axis, size in enumerate(geometry.shape):
        code = geometry.codes[axis] if patient else ""
        ends = (
            ("start", extent.start[axis] == 0, _OPPOSITE.get(code, "")),
            ("end", extent.stop[axis] == size, code),
        )
        for end, hit, letter in ends:
            if hit and size > 1:
                found.append(_FACES[letter] if patient else f"axis {axis} {end}")
    return tuple(found)


def _sides_checked(
    volume: Volume,
    sums: _Sums,
    box: Box,
    rows: Sequence[OrganRow],
    around: Sequence[OrganRow],
) -> tuple[OrganRow, ...]:
    """Return the rows with a sentence where left and right can't be as they are."""
    if volume.geometry.frame != "patient" or volume.geometry.unit != "mm":
        return tuple(rows)
    by_name = {row.name: row for row in (*around, *rows) if row.voxels}
    middle = _middle(by_name)
    checked = []
    for row in rows:
        text = _against_partner(row, by_name) if row.voxels else ""
        if row.voxels and not text and middle is not None:
            text = _against_middle(row, _lefts(volume, sums, box, row), middle)
        checked.append(replace(row, side_check=text))
    return tuple(checked)


def _middle(by_name: Mapping[str, OrganRow]) -> float | None:
    """Return the x (LPS) of the middle of the body: of the spine, else between two of a pair."""
    spine = [row.centre[0] for name, row in by_name.items() if name in MIDLINE]
    if spine:
        return float(np.median(spine))
    pairs = [
        (row.centre[0] + by_name[other].centre[0]) / 2
        for name, row in by_name.items()
        if side_of(name) == "left" and (other := partner(name, tuple(by_name)))
    ]
    return float(np.median(pairs)) if pairs else None


def _against_partner(row: OrganRow, by_name: Mapping[str, OrganRow]) -> str:
    other = by_name.get(partner(row.name, tuple(by_name)))
    if other is None:
        return ""
    further_left = row.centre[0] > other.centre[0]
    if further_left == (side_of(row.name) == "left"):
        return ""
    return f"lies further {'left' if further_left else 'right'} than {title_of(other.name)}"


def _lefts(
    volume: Volume, sums: _Sums, box: Box, row: OrganRow
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the x (LPS) of the layers across the body, and the structure's voxels in each."""
    directions = np.abs(volume.geometry.affine[0, :3]) / np.array(volume.geometry.spacing)
    axis = int(np.argmax(directions))
    count = sums.along[axis][row.value]
    index = np.tile(volume.geometry.to_index(row.centre), (len(count), 1))
    index[:, axis] = box.start[axis] + np.arange(len(count))
    return volume.geometry.to_world(index)[:, 0], count


def _against_middle(
    row: OrganRow, lefts: tuple[NDArray[np.float64], NDArray[np.int64]], middle: float
) -> str:
    side = side_of(row.name)
    if not side:
        return ""
    x, count = lefts
    away = x - middle if side == "left" else middle - x
    if count[away < -_LEEWAY_MM].sum() <= _WRONG * row.voxels:
        return ""
    return f"lies mostly on the {'right' if side == 'left' else 'left'} of the body's middle"
