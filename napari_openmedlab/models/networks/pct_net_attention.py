"""PCT-Net's transformer: two Swin blocks over windows of a 3D grid, the second one shifted.

As published, two things differ from the textbook: the relative position index maps different
offsets to one row of the table, and voxels that pad the grid take part in the attention. Features
have the shape (B, Z, Y, X, C) here.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["PUBLISHED_WINDOW", "SwinPair"]

PUBLISHED_WINDOW = 6
SHIFT = 3
APART = -100.0  # added to the attention of voxels that a shift brought together
DROPOUT = 0.2
DROP_PATH = 0.2
MLP_RATIO = 4


class SwinPair(nn.Module):
    """A Swin block on plain windows, then one on shifted windows.

    Parameters
    ----------
    channels : int
        Features of a voxel.
    heads : int
        Attention heads; they share the channels.
    window : int
        Edge of the windows the weights belong to. On grids whose smallest edge is at most 6, as
        published, the window is that edge and nothing is shifted.
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            _SwinBlock(channels, heads, window, shift) for shift in (0, SHIFT)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features of the same shape (B, Z, Y, X, C).

        Raises
        ------
        ValueError
            For a grid that asks for another window than the weights have.
        """
        smallest = min(features.shape[1:4])
        if min(smallest, PUBLISHED_WINDOW) != self.window:
            raise ValueError(
                f"a grid of {tuple(features.shape[1:4])} asks for windows of "
                f"{min(smallest, PUBLISHED_WINDOW)} voxels, these weights have {self.window}"
            )
        shifts = smallest > PUBLISHED_WINDOW
        features = functional.dropout(features, DROPOUT, self.training)
        for block in self.blocks:
            features = block(features, shifts)
        return features


class _SwinBlock(nn.Module):
    """Window attention and a two-layer perceptron, each behind a layer norm and added."""

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = _WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = _Perceptron(channels)

    def forward(self, features: torch.Tensor, shifts: bool) -> torch.Tensor:
        """Return (B, Z, Y, X, C) features; without ``shifts`` the windows stay in place."""
        shift = self.shift if shifts else 0
        features = features + _drop_path(self._attended(features, shift), self.training)
        return features + _drop_path(self.mlp(self.norm2(features)), self.training)

    def _attended(self, features: torch.Tensor, shift: int) -> torch.Tensor:
        edges = features.shape[1:4]
        fill = [-edge % self.window for edge in edges]
        # Zeros behind the norm; they take part, with the bias of q, k and v as their values.
        padded = functional.pad(self.norm1(features), (0, 0, 0, fill[2], 0, fill[1], 0, fill[0]))
        grid = padded.shape[1:4]
        mask = None
        if shift:
            padded = padded.roll((-shift,) * 3, dims=(1, 2, 3))
            mask = self.apart(grid, shift, features.device)
        windows = self.attn(_split(padded, self.window), mask)
        merged = _merge(windows, grid, self.window)
        if shift:
            merged = merged.roll((shift,) * 3, dims=(1, 2, 3))
        return merged[:, : edges[0], : edges[1], : edges[2]]

    def apart(
        self, grid: tuple[int, ...], shift: int, device: torch.device | str
    ) -> torch.Tensor | None:
        """Return (windows, n, n) float: -100 between voxels that are no neighbours, else 0."""
        regions = torch.zeros((), dtype=torch.int64, device=device)
        for edge in grid:
            place = torch.arange(edge, device=device)
            along = (place >= edge - self.window).long() + (place >= edge - shift).long()
            regions = 3 * regions[..., None] + along
        numbers = _split(regions[None, ..., None], self.window)[0, :, :, 0]
        return APART * (numbers[:, :, None] != numbers[:, None, :]).float()


class _WindowAttention(nn.Module):
    """Self-attention in windows with a learned bias for relative positions."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        rows = (2 * window - 1) ** 3
        self.relative_position_bias_table = nn.Parameter(torch.randn(rows, heads) * 0.02)
        # On the CPU even where the network is built without memory: the index is no weight.
        self.register_buffer("relative_position_index", _position_index(window))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, windows: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return attended (B, windows, n, C) features of the same shape.

        Windows and heads share one axis, so a mask need not be repeated for each sample.
        """
        batch, count, voxels, channels = windows.shape
        parts = self.qkv(windows).view(batch, count, voxels, 3, self.heads, -1)
        q, k, v = parts.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        bias = self.relative_position_bias_table[self.relative_position_index]
        bias = bias.permute(2, 0, 1)  # (heads, n, n)
        bias = bias.expand(count, -1, -1, -1) if mask is None else bias + mask[:, None]
        attended = functional.scaled_dot_product_attention(
            q, k, v, bias.flatten(0, 1)[None].to(q.dtype), DROPOUT if self.training else 0.0
        )
        attended = attended.unflatten(1, (count, self.heads)).transpose(2, 3)
        projected = self.proj(attended.reshape(batch, count, voxels, channels))
        return functional.dropout(projected, DROPOUT, self.training)


class _Perceptron(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, MLP_RATIO * channels)
        self.fc2 = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features of the same shape."""
        inner = functional.dropout(functional.gelu(self.fc1(features)), DROPOUT, self.training)
        return functional.dropout(self.fc2(inner), DROPOUT, self.training)


def _position_index(window: int) -> torch.Tensor:
    """Return the (n, n) table row of each pair of voxels in a window, n = window cubed.

    Published as it is: the factors of a true three-digit number would be (2w - 1) squared and
    2w - 1. With these ones offsets share rows, and most of the table is never read.
    """
    edge = torch.arange(window, device="cpu")
    places = torch.stack(torch.meshgrid(edge, edge, edge, indexing="ij")).flatten(1)
    offsets = places[:, :, None] - places[:, None, :] + window - 1
    return offsets[0] * (3 * window - 1) + offsets[1] * (2 * window - 1) + offsets[2]


def _split(features: torch.Tensor, window: int) -> torch.Tensor:
    """Return (B, windows, n, C) of (B, Z, Y, X, C) whose edges are multiples of the window."""
    for axis in (1, 3, 5):
        features = features.unflatten(axis, (-1, window))
    return features.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(1, 3)


def _merge(windows: torch.Tensor, grid: torch.Size, window: int) -> torch.Tensor:
    """Undo :func:`_split`."""
    z, y, x = (edge // window for edge in grid)
    features = windows.unflatten(1, (z, y, x)).unflatten(4, (window, window, window))
    features = features.permute(0, 1, 4, 2, 5, 3, 6, 7)
    return features.flatten(5, 6).flatten(3, 4).flatten(1, 2)


def _drop_path(branch: torch.Tensor, training: bool) -> torch.Tensor:
    """While training, leave out the branch of some samples and scale up the others'."""
    if not training:
        return branch
    shape = (branch.shape[0],) + (1,) * (branch.dim() - 1)
    kept = branch.new_empty(shape).bernoulli_(1 - DROP_PATH) / (1 - DROP_PATH)
    return branch * kept
