"""Sums of overlapping windows, kept only for the part of the volume that is being worked on.

The volume is cut along axes 0 and 1 where windows start or end. Between two cuts the same windows
reach, so such a cell takes memory from the first of them on and leaves it after the last one.
Axes are (z, y, x, class): classes lie side by side, which makes softmax and argmax several times
faster than the usual order.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from napari_openmedlab.models.tiling.placement import Axis, Window, Windows

__all__ = ["Average", "Brick", "Piece", "Storage", "Sums", "bytes_needed"]

Average = Literal["probabilities", "logits"]
Storage = Literal["float32", "int16"]
Cell = tuple[int, int]

# Probabilities in 16 bits: steps of 1.5e-5. A voxel lies in some ten windows at most, each may be
# mirrored eight times and rounded up as often, so full scale stays below the type's end.
_SCALE = 65_000.0
_ZERO = -32_768
_TYPES = {"float32": torch.float32, "int16": torch.int16}
_BYTES = {"float32": 4, "int16": 2}


def bytes_needed(windows: Windows, classes: int, storage: Storage) -> int:
    """Return the most bytes the sums of a run take at once; they are allocated as windows come."""
    z, y, x = windows.axes
    live: dict[Cell, int] = {}
    most = 0
    for i, first in enumerate(z.starts):
        for j, second in enumerate(y.starts):
            for m, rows, _ in _pieces(z, first, first + z.patch):
                for n, lines, _ in _pieces(y, second, second + y.patch):
                    live[m, n] = (rows.stop - rows.start) * (lines.stop - lines.start) * x.padded
            most = max(most, sum(live.values()))
            for cell in itertools.product(z.closed_by(i), y.closed_by(j)):
                live.pop(cell)
    return most * classes * _BYTES[storage]


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a brick: its rows and lines, and its values (z, y, x, K) if any were computed."""

    rows: int
    lines: int
    values: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Brick:
    """A finished part of the volume, as wide as the volume along axis 2.

    Attributes
    ----------
    start : tuple of int
        First row and line (z, y) in the volume, padding taken off.
    shape : tuple of int
        Voxels (z, y, x).
    pieces : tuple of tuple of Piece
        Its parts along axis 0, each of them cut along axis 1. Values are float32 means or int16
        steps of probability; where no window was run, all is background.
    """

    start: tuple[int, int]
    shape: tuple[int, int, int]
    pieces: tuple[tuple[Piece, ...], ...]

    @classmethod
    def of(cls, start: tuple[int, int], values: torch.Tensor) -> Brick:
        """Return a brick of one piece with these values (z, y, x, K)."""
        z, y, x = values.shape[:3]
        return cls(start, (z, y, x), ((Piece(z, y, values),),))

    @property
    def device(self) -> torch.device | None:
        """Where its values are; ``None`` if it has none."""
        every = itertools.chain(*self.pieces)
        return next((p.values.device for p in every if p.values is not None), None)

    def row(self, number: int) -> torch.Tensor | None:
        """Return mean probabilities or logits of one row, (y, x, K) float32; ``None``: no window.

        Where only a part of the row was run, the rest is background with certainty.
        """
        found = self._row(number)
        if found is None or found.dtype == torch.float32:
            return found
        return found.to(torch.float32).sub_(_ZERO).div_(_SCALE)

    def labels(self) -> NDArray[np.uint16]:
        """Return the class with the largest mean for each voxel (z, y, x)."""
        out = np.zeros(self.shape, dtype=np.uint16)
        for number in range(self.shape[0]):
            row = self._row(number)
            if row is not None:  # NumPy's argmax is four times faster along the last axis
                on_cpu = row.device.type == "cpu"
                out[number] = row.numpy().argmax(-1) if on_cpu else row.argmax(-1).cpu().numpy()
        return out

    def _row(self, number: int) -> torch.Tensor | None:
        """Return a row as it is kept."""
        for pieces in self.pieces:
            if number < pieces[0].rows:
                break
            number -= pieces[0].rows
        like = next((piece.values for piece in pieces if piece.values is not None), None)
        if like is None:
            return None
        if len(pieces) == 1:
            return like[number]
        return torch.cat([
            _background(like, piece.lines) if piece.values is None else piece.values[number]
            for piece in pieces
        ])  # fmt: skip


class Sums:
    """Adds windows up.

    Parameters
    ----------
    windows : Windows
    average : {"probabilities", "logits"}

    Attributes
    ----------
    storage : {"float32", "int16"}
        ``"int16"`` takes half the memory, for probabilities only: what a window adds is rounded
        to a step of 1.5e-5.
    device : torch.device
        Where the sums are kept.
    """

    def __init__(self, windows: Windows, average: Average = "probabilities") -> None:
        self.windows, self.average = windows, average
        self.storage: Storage = "float32"
        self.device = torch.device("cpu")
        self._cells: dict[Cell, torch.Tensor] = {}
        self._skipped: list[Window] = []

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return sum(cell.nbytes for cell in self._cells.values())

    def place(self, storage: Storage, device: Any) -> None:
        """Say how and where sums are kept; before the first window is added.

        Raises
        ------
        ValueError
            For logits in 16 bits: they have no bounds.
        """
        if storage == "int16" and self.average == "logits":
            raise ValueError("logits have no bounds, so their sums are kept in float32")
        self.storage, self.device = storage, torch.device(device)

    def encoded(self, values: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """Return class values (rows, y, x, K) times what they count, as they are added.

        Is done on the device of the values: what is sent to the sums is as small as can be.
        Overwrites the values.
        """
        if self.storage == "float32":
            return values.mul_(share)
        return values.mul_(share * _SCALE).round_().to(torch.int16)

    def add(self, window: Window, first: int, encoded: torch.Tensor) -> None:
        """Add some rows of a window.

        Parameters
        ----------
        window : Window
        first : int
            First of the rows within the window.
        encoded : torch.Tensor
            From :meth:`encoded`, (rows, *patch[1:], K), on the device of the sums.
        """
        z, y, x = self.windows.axes
        top, left, near = window.start[0] + first, window.start[1], window.start[2]
        across = slice(near, near + x.patch)
        for m, rows, rows_in in _pieces(z, top, top + len(encoded)):
            for n, lines, lines_in in _pieces(y, left, left + y.patch):
                cell = self._cell((m, n), encoded.shape[-1])
                cell[rows_in, lines_in, across] += encoded[rows, lines]

    def skip(self, window: Window) -> None:
        """Count a window that is not run: it says background."""
        self._skipped.append(window)

    def finish(self, i: int, j: int) -> Brick:
        """Take out what the windows with these numbers along axes 0 and 1 are the last to reach."""
        z, y, x = self.windows.axes
        cells = [[(m, n) for n in y.closed_by(j)] for m in z.closed_by(i)]
        pieces = tuple(tuple(self._piece(cell) for cell in row) for row in cells)
        # A padded axis has one window, so one brick, which begins before the volume.
        start = (max(z.starts[i] - z.low, 0), max(y.starts[j] - y.low, 0))
        depth = sum(row[0].rows for row in pieces)
        height = sum(piece.lines for piece in pieces[0])
        if j == len(y.starts) - 1:
            later = z.edges[z.closed_by(i).stop]
            self._skipped = [w for w in self._skipped if w.start[0] + z.patch > later]
        return Brick(start, (depth, height, x.size), pieces)

    def _piece(self, cell: Cell) -> Piece:
        """Take one cell out, without what is padding."""
        z, y, x = self.windows.axes
        rows, lines = _inside(z, cell[0]), _inside(y, cell[1])
        values = self._cells.pop(cell, None)
        if values is not None:
            self._count_skipped(values, cell)
            values = values[rows, lines, x.low : x.low + x.size]
        return Piece(rows.stop - rows.start, lines.stop - lines.start, values)

    def _cell(self, number: Cell, classes: int) -> torch.Tensor:
        found = self._cells.get(number)
        if found is None:
            z, y, x = self.windows.axes
            shape = (_length(z, number[0]), _length(y, number[1]), x.padded, classes)
            empty = 0 if self.storage == "float32" else _ZERO
            found = torch.full(shape, empty, dtype=_TYPES[self.storage], device=self.device)
            self._cells[number] = found
        return found

    def _count_skipped(self, values: torch.Tensor, number: Cell) -> None:
        """Add what skipped windows would have said to a cell."""
        share = self._skipped_share(number)
        if share is None:
            return
        missing = torch.from_numpy(share).to(self.device)
        if self.average == "logits":  # the others decide among themselves
            values /= (1.0 - missing).clamp_min(1e-30)[..., None]
        elif self.storage == "float32":
            values[..., 0] += missing
        else:
            values[..., 0] += (missing * _SCALE).round().to(torch.int16)

    def _skipped_share(self, number: Cell) -> NDArray[np.float32] | None:
        """Return what skipped windows count at each voxel of a cell; ``None`` if none reach it."""
        z, y, x = self.windows.axes
        top, left = z.edges[number[0]], y.edges[number[1]]
        depth, height = _length(z, number[0]), _length(y, number[1])
        total: NDArray[np.float32] | None = None
        for window in self._skipped:
            a, b, c = window.start
            # A window that reaches a cell holds all of it along axes 0 and 1.
            if not (a <= top < a + z.patch and b <= left < b + y.patch):
                continue
            if total is None:
                total = np.zeros((depth, height, x.padded), dtype=np.float32)
            along = self.windows.share(window)
            part = along[0][top - a : top - a + depth, None, None] * along[2]
            part = part * along[1][left - b : left - b + height, None]
            total[..., c : c + x.patch] += part
        return total


def _background(like: torch.Tensor, lines: int) -> torch.Tensor:
    """Return lines (y, x, K) that are background with certainty."""
    low, high = (0, 1) if like.dtype == torch.float32 else (_ZERO, _ZERO + int(_SCALE))
    found = torch.full((lines, *like.shape[2:]), low, dtype=like.dtype, device=like.device)
    found[..., 0] = high
    return found


def _length(axis: Axis, cell: int) -> int:
    return axis.edges[cell + 1] - axis.edges[cell]


def _inside(axis: Axis, cell: int) -> slice:
    """Return the part of a cell that is no padding."""
    if axis.size < axis.padded:
        return slice(axis.low, axis.low + axis.size)
    return slice(0, _length(axis, cell))


def _pieces(axis: Axis, low: int, high: int) -> list[tuple[int, slice, slice]]:
    """Return for each cell between two places: its number, where it lies there, and within."""
    found = []
    edges = axis.edges
    for cell, (begin, end) in enumerate(itertools.pairwise(edges)):
        first, last = max(begin, low), min(end, high)
        if first < last:
            found.append((cell, slice(first - low, last - low), slice(first - begin, last - begin)))
    return found
