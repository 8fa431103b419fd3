"""Axial attention of the Axon-Seg network: along z, then y, then x, at one decoder level.

Memory grows with the length of an axis, never with the number of voxels squared, and the scores
are never stored: torch's fused attention takes each axis as views, without moving the data.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

__all__ = ["AxialAttention", "AxialEmbedding", "AxisAttention"]

# The largest number of sequences or heads one call gives to a fused kernel: CUDA's grids end
# at 65535 in the two dimensions that count them.
LARGEST_GRID = 65535


class AxialEmbedding(nn.Module):
    """Learned positions of a cube: one vector a plane along z, y and x, summed by broadcasting.

    Parameters
    ----------
    channels : int
        Feature channels.
    size : int
        Edge of the cube in voxels of this level. The learned lengths fix it.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.param_0 = nn.Parameter(torch.randn(1, channels, size, 1, 1))
        self.param_1 = nn.Parameter(torch.randn(1, channels, 1, size, 1))
        self.param_2 = nn.Parameter(torch.randn(1, channels, 1, 1, size))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, C, S, S, S) features with their positions added."""
        return features + (self.param_0 + (self.param_1 + self.param_2))


class AxisAttention(nn.Module):
    """Multi-head self-attention along one axis; all other axes are batch.

    Parameters
    ----------
    channels : int
        Feature channels in and out.
    heads : int
        Heads; head-major in the hidden channels.
    head_width : int
        Hidden channels a head.
    axis : {1, 2, 3}
        Attended axis of a channels-last tensor (B, Z, Y, X, C).
    """

    def __init__(self, channels: int, heads: int, head_width: int, axis: int) -> None:
        super().__init__()
        hidden = heads * head_width
        self.heads, self.head_width, self.axis = heads, head_width, axis
        self.to_q = nn.Linear(channels, hidden, bias=False)
        self.to_kv = nn.Linear(channels, 2 * hidden, bias=False)
        self.to_out = nn.Linear(hidden, channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (B, Z, Y, X, C) tokens after attention along the axis.

        Parameters
        ----------
        tokens : torch.Tensor
            (B, Z, Y, X, C), float; contiguous, or a copy is made.
        """
        # Keys and values are projected apart: halves of one tensor could not be seen as
        # (sequences, length, heads, width) without a copy.
        to_key, to_value = self.to_kv.weight.chunk(2)
        query = self._by_axis(self.to_q(tokens))
        key = self._by_axis(functional.linear(tokens, to_key))
        value = self._by_axis(functional.linear(tokens, to_value))
        attended = attend(query, key, value).transpose(1, 2)
        return self.to_out(attended.reshape(*tokens.shape[:-1], -1))

    def _by_axis(self, hidden: torch.Tensor) -> torch.Tensor:
        """See (B, Z, Y, X, hidden) as (axes before, axes behind and heads, length, width)."""
        shape = hidden.shape
        before = math.prod(shape[: self.axis])
        behind = math.prod(shape[self.axis + 1 : -1])
        rows = hidden.reshape(before, shape[self.axis], behind * self.heads, self.head_width)
        return rows.transpose(1, 2)


class AxialAttention(nn.Module):
    """Attention along z, then y, then x, one after the other: no residual between, no norm.

    Parameters
    ----------
    channels, heads, head_width : int
        As in :class:`AxisAttention`.
    """

    def __init__(self, channels: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.axial_attentions = nn.ModuleList(
            _Permuted(AxisAttention(channels, heads, head_width, axis)) for axis in (1, 2, 3)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, C, Z, Y, X) features after the three attentions (a view, channels last)."""
        tokens = features.movedim(1, -1).contiguous()
        for attention in self.axial_attentions:
            tokens = attention.fn(tokens)
        return tokens.movedim(-1, 1)


class _Permuted(nn.Module):
    """Only a name: the published keys say ``axial_attentions.<axis>.fn``."""

    def __init__(self, attention: AxisAttention) -> None:
        super().__init__()
        self.fn = attention


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return softmax(query key^T / sqrt(width)) value for (N, H, length, width) tensors."""
    for dimension in (0, 1):
        if query.shape[dimension] > LARGEST_GRID:
            parts = zip(
                *(t.split(LARGEST_GRID, dimension) for t in (query, key, value)), strict=True
            )
            return torch.cat([attend(*part) for part in parts], dimension)
    return functional.scaled_dot_product_attention(query, key, value)
