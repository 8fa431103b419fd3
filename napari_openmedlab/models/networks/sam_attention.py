"""Attention of SAM's image encoder and mask decoder on torch's fused kernels, equal in numbers.

The modules here take over the layers of segment_anything's modules: parameter names, order and
shapes stay the published ones, only the computation differs. What saves time and memory:

- the kernel never holds the full table of logits, and the relative positions are added as a mask
  for a few rows of queries at a time, so that 4096 x 4096 logits a head are never in memory;
- windows that reach over the border of the image are filled up after the projection to queries,
  keys and values instead of before: the fill's projection is the bias, so nothing is computed
  for it, and no answer is computed for fill that is cut away anyway (two thirds of the window
  tokens at 256 pixels).

The networks' papers are arXiv 2304.02643 (SAM) and 2308.16184 (SAM-Med2D).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["EncoderBlock", "GridAttention", "TokenAttention"]

# The additive mask of one kernel call stays below this; measured on a CPU, smaller and larger
# pieces are not faster.
_MASK_BYTES = 64 * 2**20


class GridAttention(nn.Module):
    """Self attention of a grid of tokens with relative positions, global or in windows.

    Parameters
    ----------
    original : torch.nn.Module
        segment_anything's attention of one encoder block; its layers are taken over.
    window : int
        Side of the square windows in tokens; 0 for attention over the whole grid.
    """

    def __init__(self, original: Any, window: int) -> None:
        super().__init__()
        self.heads: int = original.num_heads
        self.window = window
        # Parameters first and in this order: the order of the published state dict.
        self.rel_pos_h = original.rel_pos_h
        self.rel_pos_w = original.rel_pos_w
        self.qkv = original.qkv
        self.proj = original.proj

    def forward(self, grid: Any) -> Any:
        """Attend.

        Parameters
        ----------
        grid : torch.Tensor
            Float (batch, rows, columns, channels); square, and for global attention as large as
            the tables of relative positions are for.

        Returns
        -------
        torch.Tensor
            Same shape.
        """
        batch, rows, columns, channels = grid.shape
        side = self.window or rows
        # Windows are filled up with zeros before the projection; after it, zero is the bias.
        projected = _cut(functional.linear(grid, self.qkv.weight), side)
        projected = projected + self.qkv.bias.to(projected.dtype)
        query, key, value = (
            projected.view(len(projected), side * side, 3, self.heads, -1)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        answer = self._attend(query, key, value, side)
        answer = answer.transpose(1, 2).reshape(-1, side, side, channels)
        return self.proj(_join(answer, batch, rows, columns))

    def _attend(self, query: Any, key: Any, value: Any, side: int) -> Any:
        """Attend a few rows of queries at a time; all (windows, heads, side * side, depth)."""
        row_bias, column_bias = self._relative(query, side)
        row_bytes = query.shape[0] * self.heads * side**3 * query.element_size()
        step = min(side, max(1, _MASK_BYTES // row_bytes))
        pieces = []
        for start in range(0, side, step):
            part = slice(start, start + step)
            mask = row_bias[:, :, part, :, :, None] + column_bias[:, :, part, :, None, :]
            pieces.append(
                functional.scaled_dot_product_attention(
                    query[:, :, start * side : (start + step) * side],
                    key,
                    value,
                    attn_mask=mask.flatten(4, 5).flatten(2, 3),
                )
            )
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)

    def _relative(self, query: Any, side: int) -> tuple[Any, Any]:
        """Return what row and column distance add to the logits, from the unscaled queries.

        Both (windows, heads, row, column, other's row or column): the query's place and the
        place it looks at.
        """
        spread = query.unflatten(2, (side, side))
        # Table entry ``y - y' + side - 1`` for every pair: a sliding window, read backwards.
        rows = self.rel_pos_h.unfold(0, side, 1).flip(-1)
        columns = self.rel_pos_w.unfold(0, side, 1).flip(-1)
        row_bias = torch.einsum("bhyxc,yck->bhyxk", spread, rows)
        column_bias = torch.einsum("bhyxc,xck->bhyxk", spread, columns)
        # Contiguous, or the sum of the two inherits an order of axes the kernel has to copy.
        return row_bias.to(query.dtype).contiguous(), column_bias.to(query.dtype).contiguous()


class TokenAttention(nn.Module):
    """Attention between two sets of tokens in the mask decoder.

    Parameters
    ----------
    original : torch.nn.Module
        segment_anything's decoder attention; its layers are taken over.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.heads: int = original.num_heads
        self.q_proj = original.q_proj
        self.k_proj = original.k_proj
        self.v_proj = original.v_proj
        self.out_proj = original.out_proj

    def forward(self, q: Any, k: Any, v: Any) -> Any:
        """Attend from ``q`` (batch, n, channels) to ``k`` and ``v`` (batch, m, channels)."""
        answer = functional.scaled_dot_product_attention(
            self._split(self.q_proj(q)), self._split(self.k_proj(k)), self._split(self.v_proj(v))
        )
        return self.out_proj(answer.transpose(1, 2).flatten(2))

    def _split(self, tokens: Any) -> Any:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class EncoderBlock(nn.Module):
    """One block of the image encoder.

    Attributes
    ----------
    Adapter : torch.nn.Module or None
        Gets the same normalised grid as the MLP and is added to it; the name is the published
        key. None, as built, has no entry in the state dict.

    Parameters
    ----------
    original : torch.nn.Module
        segment_anything's encoder block; its layers are taken over.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.norm1 = original.norm1
        self.attn = GridAttention(original.attn, original.window_size)
        self.norm2 = original.norm2
        self.mlp = original.mlp
        self.Adapter: nn.Module | None = None

    def forward(self, grid: Any) -> Any:
        """Map (batch, rows, columns, channels) to the same shape."""
        grid = grid + self.attn(self.norm1(grid))
        normed = self.norm2(grid)
        result = grid + self.mlp(normed)
        return result if self.Adapter is None else result + self.Adapter(normed)


def _cut(grid: Any, side: int) -> Any:
    """Cut (batch, rows, columns, c) into (batch * windows, side, side, c), zeros at the ends."""
    _, rows, columns, channels = grid.shape
    below, right = -rows % side, -columns % side
    if below or right:
        grid = functional.pad(grid, (0, 0, 0, right, 0, below))
    return (
        grid.unflatten(2, (-1, side))
        .unflatten(1, (-1, side))
        .transpose(2, 3)
        .reshape(-1, side, side, channels)
    )


def _join(windows: Any, batch: int, rows: int, columns: int) -> Any:
    """Undo :func:`_cut`: back to (batch, rows, columns, c), fill cut away."""
    side = windows.shape[1]
    down, across = -(-rows // side), -(-columns // side)
    grid = windows.reshape(batch, down, across, side, side, -1).transpose(2, 3)
    return grid.reshape(batch, down * side, across * side, -1)[:, :rows, :columns]
