"""The network on patches of a scan: embeddings, what is kept of a template, maps of a query.

Nothing couples the patches of a batch (instance norm), so batches change no number but rounding.
A cancel acts between two batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from napari_openmedlab.errors import EngineError
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.medlam.grid import ENGINE_ID
from napari_openmedlab.models.engines.medlam.preparing import Prepared
from napari_openmedlab.models.engines.weights import Loaded

__all__ = ["KERNEL", "PointFeatures", "Steps", "embeddings", "feature_maps", "point_features"]

KERNEL = {0: 2, 1: 4, 2: 8}
"""Edge of the cube that is kept around a template's point, by scale: 24 mm at each."""

_EPSILON = 1e-12


@dataclass
class Steps:
    """Counts patches for the user; every step obeys a cancel."""

    monitor: Monitor
    total: int = 0
    done: int = 0
    text: str = field(default="")

    def step(self, patches: int) -> None:
        """Report before ``patches`` more are computed."""
        self.monitor.step(self.done, self.total, self.text)
        self.done += patches


@dataclass(frozen=True, eq=False)
class PointFeatures:
    """What is kept of points marked on a template.

    Attributes
    ----------
    positions : ndarray of float32, shape (P, 3)
        Embedding of the patch around each point.
    kernels : tuple of ndarray of float32, shape (P, C, k, k, k)
        Features around each point, unit length over the channels, one array a scale.
    """

    positions: NDArray[np.float32]
    kernels: tuple[NDArray[np.float32], ...]


def embeddings(
    loaded: Loaded, prepared: Prepared, centres: NDArray[np.int64], steps: Steps
) -> NDArray[np.float32]:
    """Return embeddings (N, 3) of the patches around padded voxels; the decoder doesn't run."""
    found = []
    for part in _batches(centres, loaded):
        steps.step(len(part))
        patches = torch.from_numpy(prepared.patches(part)).to(loaded.device)
        with loaded.running():
            found.append(_numbers(loaded.network.position(patches), loaded))
    return np.concatenate(found)


def point_features(
    loaded: Loaded,
    prepared: Prepared,
    centres: NDArray[np.int64],
    scales: Sequence[int],
    steps: Steps,
) -> PointFeatures:
    """Return what is kept of the points of a template, given as padded voxels (P, 3)."""
    positions = []
    kernels: list[list[NDArray[np.float32]]] = [[] for _ in scales]
    for part in _batches(centres, loaded):
        steps.step(len(part))
        patches = torch.from_numpy(prepared.patches(part)).to(loaded.device)
        with loaded.running():
            output = loaded.network(patches, scales)
            positions.append(_numbers(output.position, loaded))
            for kept, scale, features in zip(kernels, scales, output.features, strict=True):
                middle, half = features.shape[-1] // 2, KERNEL[scale] // 2
                core = slice(middle - half, middle + half)
                unit = functional.normalize(
                    features[:, :, core, core, core].float(), dim=1, eps=_EPSILON
                )
                kept.append(unit.contiguous().cpu().numpy())
    return PointFeatures(np.concatenate(positions), tuple(np.concatenate(each) for each in kernels))


def feature_maps(
    loaded: Loaded,
    prepared: Prepared,
    centres: NDArray[np.int64],
    scales: Sequence[int],
    steps: Steps,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield for each padded voxel the feature maps (C, n, n, n) of its patch, one a scale.

    float32 on the device, unit length over the channels.
    """
    for part in _batches(centres, loaded):
        steps.step(len(part))
        patches = torch.from_numpy(prepared.patches(part)).to(loaded.device)
        with loaded.running():
            batch = loaded.network.features(patches, scales)
        for number in range(len(part)):
            with torch.inference_mode():
                maps = tuple(
                    functional.normalize(each[number].float(), dim=0, eps=_EPSILON)
                    for each in batch
                )
            yield maps


def _numbers(positions: torch.Tensor, loaded: Loaded) -> NDArray[np.float32]:
    """Return embeddings as an array, or raise: a place can't be had from infinity."""
    found: NDArray[np.float32] = positions.float().cpu().numpy()
    if not np.isfinite(found).all():
        raise EngineError(
            f"MedLAM gave no numbers in {loaded.placement.precision} on "
            f"{loaded.placement.device}; set precision to float32, or check the weights",
            engine=ENGINE_ID,
            stage="locate",
        )
    return found


def _batches(centres: NDArray[np.int64], loaded: Loaded) -> Iterator[NDArray[np.int64]]:
    # One at a time on the CPU: more gain nothing there and take 0.4 GB each.
    size = 1 if loaded.placement.device == "cpu" else max(1, loaded.placement.batch)
    for first in range(0, len(centres), size):
        yield centres[first : first + size]
