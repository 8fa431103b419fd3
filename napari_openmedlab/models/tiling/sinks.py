"""What becomes of finished parts: labels on the working grid, or class means for small volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.geometry.labels import smallest_label_dtype
from napari_openmedlab.models.tiling.sums import Brick

__all__ = ["KeepLabels", "KeepMeans"]


class KeepLabels:
    """Keeps the most likely class of every voxel.

    Parameters
    ----------
    shape : tuple of int
        Of the volume (z, y, x).
    classes : int

    Attributes
    ----------
    labels : ndarray of uint8 or uint16
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        self.labels: NDArray[Any] = np.zeros(shape, dtype=smallest_label_dtype(classes - 1))

    def add(self, brick: Brick) -> None:
        """Take a brick."""
        z, y = brick.start
        depth, height, _ = brick.shape
        self.labels[z : z + depth, y : y + height] = brick.labels()


class KeepMeans:
    """Keeps all class values: for small volumes, few classes and tests.

    Parameters
    ----------
    shape : tuple of int
    classes : int

    Attributes
    ----------
    means : ndarray of float32, shape (K, z, y, x)
        Mean probabilities or logits; 0 where no window was run.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        self.means = np.zeros((classes, *shape), dtype=np.float32)

    def add(self, brick: Brick) -> None:
        """Take a brick."""
        z, y = brick.start
        depth, height, _ = brick.shape
        for number in range(depth):
            row = brick.row(number)
            if row is not None:
                self.means[:, z + number, y : y + height] = row.movedim(-1, 0).cpu().numpy()
