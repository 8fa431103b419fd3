"""Labels on the scan's grid, interpolated from class values as soon as they are complete.

The same labels as resampling every class over the whole volume and then taking the largest;
but class values are there for a row at a time. Where all eight neighbours of a voxel have one and
the same largest class, it is the largest between them too, so nothing is interpolated there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_openmedlab.geometry.labels import smallest_label_dtype
from napari_openmedlab.models.tiling.resampling import AxisMap
from napari_openmedlab.models.tiling.sums import Brick

__all__ = ["InterpolateLabels"]

_POINTS = {"cpu": 2**12}  # voxels interpolated at a time; elsewhere:
_POINTS_ELSEWHERE = 2**20

Maps = tuple[AxisMap, AxisMap, AxisMap]


class InterpolateLabels:
    """Takes bricks, keeps labels on another grid.

    Parameters
    ----------
    maps : tuple of three AxisMap
        Where the target's voxels lie in the volume (z, y, x).
    shape : tuple of int
        Voxels of the volume (z, y, x).
    classes : int

    Attributes
    ----------
    labels : ndarray of uint8 or uint16
        On the target grid.
    """

    def __init__(self, maps: Maps, shape: tuple[int, int, int], classes: int) -> None:
        self.maps, self.classes = maps, classes
        target = (len(maps[0]), len(maps[1]), len(maps[2]))
        self.labels: NDArray[Any] = np.zeros(target, dtype=smallest_label_dtype(classes - 1))
        # Values and labels of the last row (y, x) of the bricks above this one, and of the last
        # line (z, x) of the brick before it, which starts a row above.
        self._above = torch.zeros((*shape[1:], classes))
        self._above_labels = np.zeros(shape[1:], dtype=np.uint16)
        self._before = torch.zeros(0)
        self._before_labels = np.zeros(0, dtype=np.uint16)

    def add(self, brick: Brick) -> None:
        """Take a brick."""
        (top, left), (depth, height, _) = brick.start, brick.shape
        if brick.device is not None:
            self._above = self._above.to(brick.device)
            self._before = self._before.to(brick.device)
        part = _Part(self, brick)
        for number in range(depth):
            rows = _reaching(self.maps[0], top + number, top + number + 1)
            if rows:
                part.write(number, rows)
        corner = left + height - 1
        ends = [part.own(number)[-1:] for number in range(depth)]
        self._before = torch.cat([self._above[corner : corner + 1], *ends])
        self._before_labels = np.concatenate(
            [self._above_labels[corner : corner + 1], part.labels[:, -1]]
        )
        self._above[left : left + height] = part.own(depth - 1)
        self._above_labels[left : left + height] = part.labels[-1]


class _Part:
    """One brick with its neighbours above and before."""

    def __init__(self, sink: InterpolateLabels, brick: Brick) -> None:
        self.sink, self.brick = sink, brick
        self.labels = brick.labels()
        left, height = brick.start[1], brick.shape[1]
        self.here = slice(left, left + height)
        self.first_line = left - 1 if left else 0
        y, x = sink.maps[1], sink.maps[2]
        found = _reaching(y, left, left + height)
        self.target = slice(found.start, found.stop)
        self.lines = y.part(found.start, found.stop, self.first_line)
        self.columns = x

    def own(self, number: int) -> torch.Tensor:
        """Return the values (y, x, K) of a row of the brick."""
        found = self.brick.row(number)
        if found is not None:
            return found
        empty = torch.zeros((*self.brick.shape[1:], self.sink.classes))
        empty[..., 0] = 1.0
        return empty.to(self.sink._above.device)

    def values(self, number: int) -> torch.Tensor:
        """Return the values of a row, -1 the one above, with the line before in front."""
        row = self.own(number) if number >= 0 else self.sink._above[self.here]
        if self.here.start == 0:
            return row
        return torch.cat([self.sink._before[number + 1 : number + 2], row])

    def row_labels(self, number: int) -> NDArray[np.uint16]:
        """Return the labels of a row, as :meth:`values`."""
        row = self.labels[number] if number >= 0 else self.sink._above_labels[self.here]
        if self.here.start == 0:
            return row
        return np.concatenate([self.sink._before_labels[number + 1 : number + 2], row])

    def write(self, number: int, rows: range) -> None:
        """Write the target's rows that end at a row of the brick."""
        z = self.sink.maps[0]
        between = [row for row in rows if z.first[row] != z.second[row]]
        labels = self.row_labels(number)
        pair = (self.row_labels(number - 1), labels) if between else (labels, labels)
        y, x = self.lines, self.columns
        plain = labels[np.ix_(y.first, x.first)]
        mixed = np.nonzero(_mixed(*pair)[np.ix_(y.first, x.first)])
        above = self.values(number - 1) if between and len(mixed[0]) else None
        below = self.values(number) if len(mixed[0]) else None
        for row in rows:
            out = self.sink.labels[row, self.target]
            out[:] = plain
            if below is None:
                continue
            weight = float(z.weight[row])
            flat = below if row not in between else torch.lerp(above, below, weight)
            out[mixed] = self._largest(flat, mixed)

    def _largest(
        self, values: torch.Tensor, points: tuple[NDArray[np.intp], ...]
    ) -> NDArray[np.int64]:
        """Interpolate along lines and columns at some points; return the largest class each.

        Points come line by line. Whole lines are interpolated first, since the target mostly has
        several voxels in each of the source's; all that is in work stays in a CPU's cache.
        """
        found = np.empty(len(points[0]), dtype=np.int64)
        begin = 0
        for end in self._ends(points[0], values.device.type):
            line, column = (axis[begin:end] for axis in points)
            low, high = int(line[0]), int(line[-1]) + 1
            lines, columns = self.lines.part(low, high), self.columns
            first, second = values[lines.first[0] :], values[lines.second[0] :]
            upper = first.index_select(0, _on(lines.first - lines.first[0], values))
            lower = second.index_select(0, _on(lines.second - lines.second[0], values))
            flat = upper.lerp_(lower, _weights(lines.weight, values)[..., None]).flatten(0, 1)
            start = (line - low) * values.shape[1]
            near = flat.index_select(0, _on(start + columns.first[column], values))
            far = flat.index_select(0, _on(start + columns.second[column], values))
            near.lerp_(far, _weights(columns.weight[column], values))
            on_cpu = near.device.type == "cpu"
            found[begin:end] = near.numpy().argmax(-1) if on_cpu else near.argmax(-1).cpu().numpy()
            begin = end
        return found

    def _ends(self, line: NDArray[np.intp], device: str) -> list[int]:
        """Return where to cut points that come line by line, between two lines."""
        size = _POINTS.get(device, _POINTS_ELSEWHERE)
        starts = np.flatnonzero(np.diff(line, prepend=-1))
        taken = np.searchsorted(starts, np.arange(size, len(line), size), side="right") - 1
        inner = starts[taken]
        return [*sorted({int(n) for n in inner if n > 0}), len(line)]


def _on(index: NDArray[np.intp], values: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(index)).to(values.device)


def _weights(weight: NDArray[np.float64], values: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(weight.astype(np.float32)).to(values.device)[:, None]


def _mixed(above: NDArray[np.uint16], below: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Return for each voxel whether it and its later neighbours, in both rows, differ."""
    low, high = np.minimum(above, below), np.maximum(above, below)
    for axis in (0, 1):
        later = [slice(None), slice(None)]
        sooner = [slice(None), slice(None)]
        later[axis], sooner[axis] = slice(1, None), slice(None, -1)
        low[tuple(sooner)] = np.minimum(low[tuple(sooner)], low[tuple(later)])
        high[tuple(sooner)] = np.maximum(high[tuple(sooner)], high[tuple(later)])
    return np.asarray(low != high)


def _reaching(axis: AxisMap, low: int, high: int) -> range:
    """Return the target voxels whose later neighbour lies in a part of the source."""
    first, last = np.searchsorted(axis.second, [low, high])
    return range(int(first), int(last))
