"""Where windows lie on a volume, and how much each counts where they overlap.

nnU-Net's rules for the networks trained with it; PyMIC's for those trained with PyMIC. The two
place windows differently, and MONAI's inferer differs from both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Axis", "Window", "Windows", "gaussian_line", "nnunet_starts", "pymic_starts"]

Index3 = tuple[int, int, int]


def nnunet_starts(size: int, patch: int, step: float = 0.5) -> tuple[int, ...]:
    """Return where windows start along one axis: spread evenly, never further than the step.

    Parameters
    ----------
    size : int
        Voxels along the axis, at least ``patch``.
    patch : int
        Voxels of a window.
    step : float
        Largest distance between two windows as a part of the patch, in (0, 1].

    Raises
    ------
    ValueError
        If the window is larger than the axis, or the step is out of range.

    Examples
    --------
    >>> nnunet_starts(211, 128)
    (0, 42, 83)
    """
    if not 0 < step <= 1:
        raise ValueError(f"the step lies above 0 and up to 1, got {step}")
    if size < patch:
        raise ValueError(f"a window of {patch} does not fit into {size} voxels; pad first")
    count = int(np.ceil((size - patch) / (patch * step))) + 1
    if count == 1:
        return (0,)
    distance = (size - patch) / (count - 1)
    return tuple(int(np.round(distance * number)) for number in range(count))


def pymic_starts(size: int, patch: int, stride: int) -> tuple[int, ...]:
    """Return where PyMIC's windows start: every ``stride``, those beyond the end moved back.

    Windows moved back to one place stand there more than once, as in PyMIC, and count so.

    Examples
    --------
    >>> pymic_starts(32, 16, 8)
    (0, 8, 16, 16)
    """
    if size < patch or not 0 < stride <= patch:
        raise ValueError(f"windows of {patch} every {stride} don't fit {size} voxels")
    return tuple(min(start, size - patch) for start in range(0, size, stride))


def gaussian_line(patch: int) -> NDArray[np.float64]:
    """Return how much each voxel of a window counts along one axis; 1 at ``patch // 2``.

    The window's map is the product of its three lines. It is that of nnU-Net and PyMIC: a
    Gaussian of an eighth of the patch, centred on a voxel, without a floor.
    """
    place = np.arange(patch) - patch // 2
    line: NDArray[np.float64] = np.exp(-0.5 * (place / (patch / 8)) ** 2)
    return line


@dataclass(frozen=True)
class Axis:
    """Windows along one axis of the padded volume.

    Attributes
    ----------
    size : int
        Voxels of the volume before padding.
    patch : int
    starts : tuple of int
        Ascending, each once, in the padded volume.
    counts : tuple of int
        How often each window counts (more than once in PyMIC only).
    """

    size: int
    patch: int
    starts: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def padded(self) -> int:
        """Voxels after padding to at least one window."""
        return max(self.size, self.patch)

    @property
    def low(self) -> int:
        """Voxels padded before the first one."""
        return (self.padded - self.size) // 2

    @property
    def edges(self) -> tuple[int, ...]:
        """Where windows start or end: between two edges the same windows reach."""
        ends = (start + self.patch for start in self.starts)
        return tuple(sorted({*self.starts, *ends}))

    def closed_by(self, number: int) -> range:
        """Return the cells between edges that a window is the last one to reach."""
        begin = self.starts[number]
        end = self.starts[number + 1] if number + 1 < len(self.starts) else self.padded
        return range(self.edges.index(begin), self.edges.index(end))

    def shares(self) -> tuple[NDArray[np.float64], ...]:
        """Return for each window what it counts along this axis; all windows add up to 1."""
        line = gaussian_line(self.patch)
        total = np.zeros(self.padded)
        for start, count in zip(self.starts, self.counts, strict=True):
            total[start : start + self.patch] += count * line
        return tuple(
            count * line / total[start : start + self.patch]
            for start, count in zip(self.starts, self.counts, strict=True)
        )


@dataclass(frozen=True)
class Window:
    """One window: its number along each axis, and its first voxel in the padded volume."""

    number: Index3
    start: Index3


@dataclass(frozen=True)
class Windows:
    """All windows on a volume, in the order they run: axis 0 outermost.

    Attributes
    ----------
    axes : tuple of three Axis
    """

    axes: tuple[Axis, Axis, Axis]
    _shares: tuple[tuple[NDArray[np.float64], ...], ...] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "_shares", tuple(axis.shares() for axis in self.axes))

    @classmethod
    def nnunet(cls, shape: Index3, patch: Index3, step: float = 0.5) -> Windows:
        """Return nnU-Net's windows; a volume smaller than the patch is padded on both sides.

        Parameters
        ----------
        shape, patch : tuple of int
            Voxels of the volume and of a window (z, y, x).
        step : float
            As for :func:`nnunet_starts`.
        """
        axes = []
        for size, edge in zip(shape, patch, strict=True):
            starts = nnunet_starts(max(size, edge), edge, step)
            axes.append(Axis(size, edge, starts, (1,) * len(starts)))
        return cls((axes[0], axes[1], axes[2]))

    @classmethod
    def pymic(cls, shape: Index3, patch: Index3, stride: Index3) -> Windows:
        """Return PyMIC's windows; a window larger than the volume shrinks to it.

        Windows that PyMIC runs several times at one place run once and count as often.
        """
        axes = []
        for size, edge, step in zip(shape, patch, stride, strict=True):
            fitting = min(size, edge)
            found = pymic_starts(size, fitting, min(step, fitting))
            starts = tuple(sorted(set(found)))
            axes.append(Axis(size, fitting, starts, tuple(found.count(s) for s in starts)))
        return cls((axes[0], axes[1], axes[2]))

    def __len__(self) -> int:
        z, y, x = (len(axis.starts) for axis in self.axes)
        return z * y * x

    def __iter__(self) -> Iterator[Window]:
        z, y, x = self.axes
        for i, first in enumerate(z.starts):
            for j, second in enumerate(y.starts):
                for k, third in enumerate(x.starts):
                    yield Window((i, j, k), (first, second, third))

    @property
    def shape(self) -> Index3:
        """Voxels of the volume before padding."""
        z, y, x = self.axes
        return z.size, y.size, x.size

    @property
    def patch(self) -> Index3:
        """Voxels of a window."""
        z, y, x = self.axes
        return z.patch, y.patch, x.patch

    def share(self, window: Window) -> tuple[NDArray[np.float64], ...]:
        """Return what a window counts along each axis; its map is the product of the three."""
        z, y, x = (lines[n] for lines, n in zip(self._shares, window.number, strict=True))
        return z, y, x

    def cut(self, volume: NDArray[np.float32], window: Window) -> NDArray[np.float32]:
        """Return the voxels of a window, 0 where it reaches beyond the volume.

        Parameters
        ----------
        volume : ndarray, shape (C, z, y, x)
            Not padded.

        Returns
        -------
        ndarray, shape (C, *patch)
            A view where the window lies inside.
        """
        begin = [start - axis.low for start, axis in zip(window.start, self.axes, strict=True)]
        end = [first + axis.patch for first, axis in zip(begin, self.axes, strict=True)]
        if min(begin) >= 0 and all(e <= n for e, n in zip(end, volume.shape[1:], strict=True)):
            return volume[(slice(None), *map(slice, begin, end))]
        out = np.zeros((volume.shape[0], *self.patch), dtype=volume.dtype)
        inner, outer = [], []
        for first, last, size in zip(begin, end, volume.shape[1:], strict=True):
            low, high = max(first, 0), min(last, size)
            outer.append(slice(low, high))
            inner.append(slice(low - first, high - first))
        out[(slice(None), *inner)] = volume[(slice(None), *outer)]
        return out
