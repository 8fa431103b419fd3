"""Carries a volume through a network window by window; finished parts go to a sink at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.tiling.placement import Window, Windows
from napari_openmedlab.models.tiling.sums import Average, Brick, Storage, Sums, bytes_needed
from napari_openmedlab.models.tiling.transfer import Download

__all__ = ["PlainScores", "Report", "Scores", "Sink", "Tiling", "run"]

# Bytes of class values computed at a time: they stay in a CPU's cache, and keep a card busy.
_AT_A_TIME = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
# On the CPU, sums of probabilities up to this size are kept in float32, larger ones in 16 bits.
# A fixed number, so that a volume gives the same labels whatever else the computer does.
_EXACT = 2**30
_OF_A_CARD = 0.5  # part of a graphics card's free memory that sums may take


class Scores(Protocol):
    """What a network says of a batch of windows; class values are made when asked for."""

    @property
    def classes(self) -> int:
        """Number of classes K, background included."""

    @property
    def device(self) -> Any:
        """Where the values are made."""

    def rows(self, number: int, first: int, last: int) -> torch.Tensor:
        """Return logits of some rows of one window: (rows, y, x, K), float32."""


class Sink(Protocol):
    """What takes finished bricks, in their order: axis 0 outermost."""

    def add(self, brick: Brick) -> None:
        """Take a brick; its memory is gone afterwards."""


@dataclass(frozen=True, eq=False)
class PlainScores:
    """Scores of a network that returns all class values at once: (B, K, z, y, x) logits."""

    logits: torch.Tensor

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.logits.shape[1])

    @property
    def device(self) -> Any:
        """Where the logits are."""
        return self.logits.device

    def rows(self, number: int, first: int, last: int) -> torch.Tensor:
        """Return logits of some rows of one window: (rows, y, x, K), float32."""
        return self.logits[number, :, first:last].movedim(0, -1).float()


@dataclass(frozen=True)
class Tiling:
    """How a volume is cut into windows, and how those become one answer.

    Attributes
    ----------
    windows : Windows
    average : {"probabilities", "logits"}
        nnU-Net v1 averages the softmax of each window, v2 and PyMIC the logits.
    mirror : tuple of int
        Axes (0 z, 1 y, 2 x) along which each window is also run mirrored: 2 to the number of
        axes passes instead of one.
    storage : {"auto", "float32", "int16"}
        ``"auto"``: float32, or 16 bits where float32 sums of probabilities are above 1 GiB
        (on a card: above half of its free memory).
    batch : int
        Windows given to the network at once.
    """

    windows: Windows
    average: Average = "probabilities"
    mirror: tuple[int, ...] = ()
    storage: str = "auto"
    batch: int = 1

    def passes(self) -> tuple[tuple[int, ...], ...]:
        """Return the axes mirrored in each pass; none in the first."""
        counts = range(len(self.mirror) + 1)
        return tuple(itertools.chain(*(itertools.combinations(self.mirror, n) for n in counts)))


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes
    ----------
    windows, skipped : int
        Placed, and of those not run.
    storage, device : str
        How and where the sums were kept; empty if no window was run.
    sums_bytes : int
        Most bytes of the sums at once.
    """

    windows: int = 0
    skipped: int = 0
    storage: str = ""
    device: str = ""
    sums_bytes: int = 0


def run(
    volume: NDArray[np.float32],
    tiling: Tiling,
    network: Callable[[torch.Tensor], Scores],
    sink: Sink,
    monitor: Monitor,
    skip: Callable[[Window], bool] | None = None,
) -> Report:
    """Run a network over a volume.

    Parameters
    ----------
    volume : ndarray of float32, shape (C, z, y, x)
        Normalised; not padded: windows that reach beyond see 0.
    tiling : Tiling
    network : callable
        Takes windows (B, C, *patch) on the CPU, returns :class:`Scores`. Has to step down by
        itself where memory runs out; it is asked for each batch anew.
    sink : Sink
        Gets every brick of the volume once.
    monitor : Monitor
        Hears of each window before it runs; a cancel acts there.
    skip : callable, optional
        Says of a window that it need not be run because all in it is background.

    Returns
    -------
    Report

    Notes
    -----
    What is added for a window is its share of all windows at each voxel, so sums are means at
    the end and nothing is divided. The mean over mirrored passes and the Gaussian average are
    those of nnU-Net.
    """
    work = _Work(volume, tiling, network, sink, Sums(tiling.windows, tiling.average))
    windows, number = tiling.windows, 0
    waiting: list[tuple[Window, bool]] = []
    for number, window in enumerate(windows):
        monitor.step(number, len(windows), f"window {number + 1} of {len(windows)}")
        waiting.append((window, skip is not None and skip(window)))
        if sum(not skipped for _, skipped in waiting) == tiling.batch:
            work.take(waiting)
            waiting = []
    work.take(waiting)
    monitor.step(len(windows), len(windows), "windows done")
    return work.report


class _Work:
    def __init__(
        self,
        volume: NDArray[np.float32],
        tiling: Tiling,
        network: Callable[[torch.Tensor], Scores],
        sink: Sink,
        sums: Sums,
    ) -> None:
        self.volume, self.tiling, self.network = volume, tiling, network
        self.sink, self.sums = sink, sums
        self.report = Report(windows=len(tiling.windows))
        self.download = Download(sums.device)

    def take(self, waiting: list[tuple[Window, bool]]) -> None:
        """Run windows, add them up, and hand on what they complete."""
        real = [window for window, skipped in waiting if not skipped]
        for window, skipped in waiting:
            if skipped:
                self.sums.skip(window)
        self.report = replace(self.report, skipped=self.report.skipped + len(waiting) - len(real))
        if real:
            self._add(real)
            self.download.finish()
        last = len(self.tiling.windows.axes[2].starts) - 1
        for window, _ in waiting:
            if window.number[2] == last:
                self.sink.add(self.sums.finish(*window.number[:2]))

    def _add(self, windows: list[Window]) -> None:
        cut = [self.tiling.windows.cut(self.volume, window) for window in windows]
        patches = torch.from_numpy(np.stack(cut))
        passes = self.tiling.passes()
        for axes in passes:
            flips = [axis - 3 for axis in axes]
            scores = self.network(patches.flip(flips) if flips else patches)
            if not self.report.storage:
                self._place(scores)
            for number, window in enumerate(windows):
                self._add_window(scores, number, window, flips, len(passes))
            del scores

    def _add_window(
        self, scores: Scores, number: int, window: Window, flips: list[int], passes: int
    ) -> None:
        """Add one window row by row: its class values are never there as a whole."""
        depth, height, width = self.tiling.windows.patch
        size = _AT_A_TIME.get(scores.device.type, 64 * 2**20)
        rows = max(1, size // (height * width * scores.classes * 4))
        z, y, x = (
            torch.from_numpy(line.astype(np.float32)).to(scores.device)
            for line in self.tiling.windows.share(window)
        )
        across = (y[:, None] * x / passes)[None, ..., None]
        for first in range(0, depth, rows):
            last = min(first + rows, depth)
            values = self._values(scores, number, (first, last), flips)
            share = z[first:last, None, None, None] * across
            encoded = self.sums.encoded(values, share)
            self.download.take(encoded, partial(self.sums.add, window, first))

    def _values(
        self, scores: Scores, number: int, rows: tuple[int, int], flips: list[int]
    ) -> torch.Tensor:
        """Return what is averaged of some rows (rows, y, x, K), mirrored back; fresh memory."""
        first, last = rows
        if -3 in flips:
            depth = self.tiling.windows.patch[0]
            first, last = depth - last, depth - first
        values = scores.rows(number, first, last)
        values = values.flip([axis + 3 for axis in flips]) if flips else values
        if self.tiling.average == "probabilities":
            return values.softmax(dim=-1)
        return values.clone(memory_format=torch.contiguous_format)

    def _place(self, scores: Scores) -> None:
        """Decide, once the first answer is there, where sums are kept and in which form."""
        storage, device = _storage(self.tiling, scores)
        self.sums.place(storage, device)
        self.download = Download(self.sums.device)
        size = bytes_needed(self.tiling.windows, scores.classes, storage)
        self.report = replace(
            self.report, storage=storage, device=str(self.sums.device), sums_bytes=size
        )


def _storage(tiling: Tiling, scores: Scores) -> tuple[Storage, Any]:
    exact = bytes_needed(tiling.windows, scores.classes, "float32")
    choices: list[Storage] = ["float32", "int16"] if tiling.average == "probabilities" else []
    if tiling.storage == "float32" or not choices:
        choices = ["float32"]
    elif tiling.storage == "int16":
        choices = ["int16"]
    if scores.device.type == "cuda":
        free = torch.cuda.mem_get_info(scores.device)[0]
        for kind in choices:
            if exact // (1 if kind == "float32" else 2) <= _OF_A_CARD * free:
                return kind, scores.device
    return (choices[0] if exact <= _EXACT else choices[-1]), "cpu"
