"""Patches for Volume-Fusion pre-training, and how well a network tells the mixing levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import EngineError
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.device import Placement, autocast
from napari_openmedlab.training.prepared import Prepared
from napari_openmedlab.training.unlabelled import LEVELS
from napari_openmedlab.training.volume_fusion import (
    BLOCKS,
    Constant,
    Crop,
    Fusion,
    crop_pair,
    fuse,
)

__all__ = ["HeldOutMixtures", "Mixtures", "fusion_for"]

Index3 = tuple[int, int, int]

_PUBLISHED_PATCH = (64, 128, 128)
_TRIES = 50  # crops without contrast in a row after which a scan is of no use
_MEASURED = 8  # mixtures


def fusion_for(patch: Index3) -> Fusion:
    """Return the published mixing, its blocks as large a part of the patch as published."""

    def scaled(edges: Index3) -> Index3:
        z, y, x = (
            max(2, round(edge * mine / published))
            for edge, mine, published in zip(edges, patch, _PUBLISHED_PATCH, strict=True)
        )
        return z, y, x

    return Fusion(smallest=scaled(BLOCKS[0]), largest=scaled(BLOCKS[1]))


@dataclass(frozen=True, eq=False)
class Mixtures:
    """Draws mixtures; a :class:`.batches.Samples`.

    Attributes
    ----------
    cases : sequence of Prepared
    patch : tuple of int
        Voxels (z, y, x).
    """

    cases: Sequence[Prepared]
    patch: Index3

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return a mixture (1, z, y, x) and its mixing levels (z, y, x).

        Parts of scans without contrast are rejected, and others drawn.

        Raises
        ------
        EngineError
            If no part with contrast is found.
        """
        chance = Random(int(rng.integers(2**63)))
        for _ in range(_TRIES):
            case = self.cases[chance.randrange(len(self.cases))]
            try:
                pair = crop_pair(case.image[case.inside], Crop(self.patch), chance)
            except Constant:
                continue
            mixed, levels = fuse(*pair, fusion_for(self.patch), chance)
            return mixed.astype(np.float32)[None], levels
        raise EngineError(
            "the scans are nearly all of one value: no part with contrast was found; leave such "
            "scans out",
            engine="mis-fm",
            stage="train",
        )


@dataclass(frozen=True, eq=False)
class HeldOutMixtures:
    """Measures a network on mixtures of scans it is not trained on; for ``Task.validate``.

    Attributes
    ----------
    cases : sequence of Prepared
    patch : tuple of int
    seed : int
        The same mixtures are made each time.
    """

    cases: Sequence[Prepared]
    patch: Index3
    seed: int

    def __call__(self, network: Any, placement: Placement, monitor: Monitor) -> dict[str, float]:
        """Return Dice by mixing level, over all mixtures together."""
        import torch

        both, each = np.zeros(len(LEVELS) + 1), np.zeros(len(LEVELS) + 1)
        mixtures = Mixtures(self.cases, self.patch)
        for number in range(_MEASURED):
            monitor.step(number, _MEASURED, f"held-out mixture {number + 1} of {_MEASURED}")
            image, levels = mixtures.draw(np.random.default_rng((abs(self.seed), number, 1 << 21)))
            with torch.inference_mode(), autocast(placement):
                logits = network(torch.from_numpy(image)[None].to(placement.device))
            found = logits[0].argmax(0).cpu().numpy()
            counts = len(both)
            both += np.bincount(levels[found == levels], minlength=counts)
            each += np.bincount(levels.ravel(), minlength=counts)
            each += np.bincount(found.ravel(), minlength=counts)
        return {
            name: float(2 * both[value] / each[value]) if each[value] else math.nan
            for value, name in LEVELS.items()
        }
