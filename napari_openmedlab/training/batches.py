"""Batches for the training loop, drawn ahead in helper threads.

All chance of a patch comes from the run's seed, the iteration and the patch's number in its
batch. So a run gives the same patches in one go or in parts, and nothing about chance has to be
kept on the disk.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batches", "Samples", "generator"]

_AHEAD = 2  # batches drawn for each helper thread while the network computes
_CORES_EACH = 4  # the network needs the others
_MOST_HELPERS = 4

Batch = tuple[NDArray[np.float32], NDArray[np.uint8]]


class Samples(Protocol):
    """Where patches come from. Called from helper threads; must not keep state."""

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return a patch (C, z, y, x) and its classes (z, y, x); all chance comes from ``rng``."""


def generator(seed: int, iteration: int, number: int) -> np.random.Generator:
    """Return the generator of one patch."""
    return np.random.default_rng((abs(seed), iteration, number))


class Batches:
    """Yields (B, C, z, y, x) images and (B, z, y, x) classes of the iterations from ``first``.

    A context manager: its threads end with the block. Errors of ``samples`` come out where the
    batch is taken.
    """

    def __init__(self, samples: Samples, seed: int, size: int, first: int, last: int) -> None:
        self._samples, self._seed, self._size = samples, seed, size
        self._range = range(first, last)
        helpers = max(1, min(_MOST_HELPERS, (os.cpu_count() or 1) // _CORES_EACH))
        self._ahead = _AHEAD * helpers
        self._pool = ThreadPoolExecutor(helpers, thread_name_prefix="openmedlab-batches")

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        waiting: deque[Future[Any]] = deque()
        coming = iter(self._range)
        for _ in self._range:
            while len(waiting) < self._ahead and (number := next(coming, None)) is not None:
                waiting.append(self._pool.submit(self._draw, number))
            yield waiting.popleft().result()

    def _draw(self, iteration: int) -> Batch:
        drawn = [
            self._samples.draw(generator(self._seed, iteration, number))
            for number in range(self._size)
        ]
        images, classes = zip(*drawn, strict=True)
        return np.stack(images), np.stack(classes)
