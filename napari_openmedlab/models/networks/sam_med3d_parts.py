"""What the three parts of SAM-Med3D share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["EPS", "GRID", "PATCH", "WIDTH", "LayerNorm3d", "Tokens"]

PATCH = 16
"""Voxels of the input along each side of one image token."""
GRID = 8
"""Image tokens along each axis."""
WIDTH = 384
"""Channels of the embedding and of all prompt tokens."""
EPS = 1e-6
"""Of every norm in the image and prompt encoder and of :class:`LayerNorm3d`."""


class LayerNorm3d(nn.Module):
    """Layer norm over the channels of each voxel of a (B, C, ...) tensor (biased variance)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise; shape and axis order stay (B, C, D, H, W)."""
        return self.last(x.movedim(1, -1)).movedim(-1, 1)

    def last(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise a tensor whose channels are the last axis."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, EPS)


class Tokens(nn.Module):
    """Learned tokens: ``weight`` is (rows, 384), under the key an embedding table has.

    No ``nn.Embedding``: its random start makes torch import 800 modules on the meta device, a
    second that the user would wait for at the first load.
    """

    def __init__(self, rows: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, WIDTH))
