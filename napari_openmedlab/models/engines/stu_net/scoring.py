"""STU-Net as tiling calls it: features of a batch at once, class values a few rows at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.weights import Loaded, Weights

__all__ = ["FeatureScores", "Network"]


class FeatureScores:
    """What the network says of a batch.

    105 classes of a patch take 0.9 GB, the 16 features they are made of (size S) 0.13 GB. The
    last layer is one product a voxel, done in float32 whatever the rest ran in.
    """

    def __init__(self, features: Sequence[torch.Tensor], head: Any) -> None:
        self._features = features
        self._weight, self._bias = head.weight.flatten(1).float(), head.bias.float()

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self._bias)

    @property
    def device(self) -> Any:
        """Where the features are."""
        return self._features[0].device

    def rows(self, number: int, first: int, last: int) -> torch.Tensor:
        """Return logits of some rows of one window: (rows, y, x, K), float32."""
        voxels = self._features[number][:, first:last].permute(1, 2, 3, 0).float()
        return functional.linear(voxels, self._weight, self._bias)


class Network:
    """Runs batches of windows, with less at a time or on the CPU where memory runs out.

    Parameters
    ----------
    weights : Weights
    options : mapping
        With ``checkpoint``, ``device`` and ``precision``.
    monitor : Monitor

    Attributes
    ----------
    loaded : Loaded or None
        As the last batch ran.
    """

    def __init__(self, weights: Weights, options: Mapping[str, Any], monitor: Monitor) -> None:
        self._weights, self._options, self._monitor = weights, options, monitor
        self.loaded: Loaded | None = None

    def __call__(self, patches: torch.Tensor) -> FeatureScores:
        """Return the scores of windows (B, 1, *patch)."""

        def attempt(loaded: Loaded) -> FeatureScores:
            self.loaded = loaded
            network = loaded.network.to(memory_format=loaded.network.memory_format)
            found: list[torch.Tensor] = []
            size = 1 if loaded.device.type == "cpu" else loaded.placement.batch
            for part in patches.split(size):
                with loaded.running():
                    found += network.features(_sent(part, loaded.device))
            return FeatureScores(found, network.seg_outputs[-1])

        return self._weights.run(self._options, self._monitor, attempt)


def _sent(patches: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Send windows to the device without waiting for them to arrive."""
    if device.type != "cuda":
        return patches.to(device)
    return patches.pin_memory().to(device, non_blocking=True)
