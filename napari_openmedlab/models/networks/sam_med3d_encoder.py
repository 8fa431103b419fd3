"""Image encoder of SAM-Med3D: a vision transformer over the 8 x 8 x 8 patches of a 128-voxel cube.

Written from the description of the network (uni-medical/SAM-Med3D @ f3de1fa, variant
``vit_b_ori``); keys and numbers equal the published weights'. Two things are unusual and kept,
because the released weights were trained with them:

* the relative position terms all run over the last key axis (:class:`RelativeAttention`);
* two thirds of the blocks attend inside a window of 14 tokens a side, to which the 8 tokens are
  zero-padded without a mask, so that 2232 padding tokens take part (:class:`WindowAttention`).
  All of them have the same key and value: here they are one token with the logit of their sum,
  which gives the same numbers about ten times faster.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .sam_med3d_parts import EPS, GRID, PATCH, WIDTH, LayerNorm3d

__all__ = ["ImageEncoder", "RelativeAttention", "WindowAttention"]

_WINDOW = 14
_VIT_WIDTH = 768
_HEADS = 12
_DEPTH = 12
_GLOBAL_BLOCKS = (2, 5, 8, 11)


class RelativeAttention(nn.Module):
    """Self attention over all tokens of an 8 x 8 x 8 grid, with SAM-Med3D's relative position.

    With ``q`` the unscaled query of a head, the logit from token (d, h, w) to token (a, b, c) is::

        q[d,h,w].k[a,b,c] / sqrt(64) + q[d,h,w].Td[d,c] + q[d,h,a].Th[h,c] + q[d,h,b].Tw[b,c]

    where ``Tx[i, j] = rel_pos_x[i - j + side - 1]``. The usual form would be
    ``q.Td[d,a] + q.Th[h,b] + q.Tw[w,c]``; the published weights do not work with it.

    Parameters
    ----------
    side : int
        Tokens along each axis of the field that the tables describe: 8, or 14 in a window.
    """

    def __init__(self, side: int = GRID) -> None:
        super().__init__()
        width = _VIT_WIDTH // _HEADS
        self.rel_pos_d = nn.Parameter(torch.zeros(2 * side - 1, width))
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width))
        self.qkv = nn.Linear(_VIT_WIDTH, 3 * _VIT_WIDTH)
        self.proj = nn.Linear(_VIT_WIDTH, _VIT_WIDTH)
        # Explicitly on the CPU: this constant is in no file, so a build on "meta" must hold it.
        steps = torch.arange(side, device="cpu")
        offsets = steps[:, None] - steps[None, :] + side - 1
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend: (B, 8, 8, 8, 768) -> (B, 8, 8, 8, 768)."""
        batch = x.shape[0]
        qkv = self.qkv(x).view(batch, GRID, GRID, GRID, 3, _HEADS, -1)
        # Each (B, heads, d, h, w, 64).
        q, k, v = qkv.permute(4, 0, 5, 1, 2, 3, 6)
        # Keys go in the order (c, a, b), kept as (B, heads, c, a * b, 64): the first position
        # term is then one number along 64 neighbours.
        k, v = (t.permute(0, 1, 4, 2, 3, 5).flatten(3, 4) for t in (k, v))
        k, v, bias = self._keys(q, k, v)
        out = F.scaled_dot_product_attention(
            q.flatten(2, 4),
            k.flatten(2, 3),
            v.flatten(2, 3),
            attn_mask=bias.flatten(5).flatten(2, 4).to(q.dtype),
        )
        out = out.unflatten(2, (GRID, GRID, GRID)).permute(0, 2, 3, 4, 1, 5)
        return self.proj(out.flatten(4))

    def _keys(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return keys and values (B, heads, c, n, 64) and the bias (B, heads, d, h, w, c, n)."""
        first, second, third = self._terms(q)
        return k, v, first[..., None] + _pairs(second, third)[..., None, :, :]

    def _terms(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the three position terms (B, heads, d, h, i, c), i being w, a and b in turn."""
        rows = self.offsets[:GRID]
        first = torch.einsum("nedhwf,dcf->nedhwc", q, self.rel_pos_d[rows])
        second = torch.einsum("nedhaf,hcf->nedhac", q, self.rel_pos_h[rows])
        third = torch.einsum("nedhbf,bcf->nedhbc", q, self.rel_pos_w[rows])
        return first, second, third


class WindowAttention(RelativeAttention):
    """The same attention inside a 14 x 14 x 14 window around the 8 x 8 x 8 grid, zero-padded.

    A padding token is a zero vector before ``qkv``: its query, key and value are the bias of
    ``qkv``. Padded queries are cropped away afterwards, and padded keys differ in their position
    terms alone. So for each c the padding keys act as one, with the log of their summed
    exponentials as bias, and that sum factors into one over a and one over b. The 2232 padding
    keys become 8; those with c beyond the grid join the first of them.
    """

    def __init__(self) -> None:
        super().__init__(_WINDOW)

    def _keys(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first, second, third = (term.float() for term in self._terms(q))
        padding = self._padding(second, third)
        grid = _pairs(second[..., :GRID], third[..., :GRID])
        pairs = torch.cat((grid, padding[..., :GRID, None]), dim=-1)
        bias = first[..., :GRID, None] + pairs[..., None, :, :]
        outer = first + padding[..., None, :]
        bias[..., 0, -1] = torch.logaddexp(outer[..., 0], outer[..., GRID:].logsumexp(-1))
        _, pad_k, pad_v = self.qkv.bias.to(q.dtype).view(3, _HEADS, 1, 1, -1)
        lone = (*k.shape[:3], 1, -1)
        k = torch.cat((k, pad_k.expand(lone)), dim=3)
        v = torch.cat((v, pad_v.expand(lone)), dim=3)
        return k, v, bias

    def _padding(self, second: torch.Tensor, third: torch.Tensor) -> torch.Tensor:
        """Return (B, heads, d, h, c): the log of the sum over padding (a, b) of both terms."""
        pad_q = self.qkv.bias.view(3, _HEADS, -1)[0]
        h_table = self.rel_pos_h[self.offsets[:GRID]]
        w_table = self.rel_pos_w[self.offsets[GRID:]]
        # Sums over a and over b, inside the grid (real) and outside it (pad). Outside, all a have
        # the same row of the h table; each b has its own of the w table.
        pad_a = torch.einsum("ef,hcf->ehc", pad_q, h_table).float() + math.log(_WINDOW - GRID)
        pad_a = pad_a[:, None]
        pad_b = torch.einsum("ef,bcf->ebc", pad_q, w_table).float().logsumexp(1)[:, None, None]
        real_a = second.logsumexp(-2)
        real_b = third.logsumexp(-2)
        all_b = torch.logaddexp(real_b, pad_b)
        # With c inside the grid a padding token has a or b outside; with c outside, any (a, b).
        inside = torch.logaddexp(pad_a + all_b, real_a + pad_b)
        outside = torch.logaddexp(real_a, pad_a) + all_b
        return torch.cat((inside[..., :GRID], outside[..., GRID:]), dim=-1)


def _pairs(second: torch.Tensor, third: torch.Tensor) -> torch.Tensor:
    """Add the two terms that don't depend on w: (B, heads, d, h, c, a * b)."""
    second, third = second.transpose(-1, -2), third.transpose(-1, -2)
    return (second[..., None] + third[..., None, :]).flatten(-2)


class _Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1 = nn.Linear(_VIT_WIDTH, 4 * _VIT_WIDTH)
        self.lin2 = nn.Linear(4 * _VIT_WIDTH, _VIT_WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin2(F.gelu(self.lin1(x)))


class _Block(nn.Module):
    """Transformer block: attention and MLP, each after its norm and with a residual."""

    def __init__(self, attention: RelativeAttention) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(_VIT_WIDTH, eps=EPS)
        self.attn = attention
        self.norm2 = nn.LayerNorm(_VIT_WIDTH, eps=EPS)
        self.mlp = _Mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _PatchEmbed(nn.Module):
    """Cut the volume into 16-voxel cubes and project each to one token."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv3d(1, _VIT_WIDTH, kernel_size=PATCH, stride=PATCH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The cubes don't overlap: one matrix product, with the channels where the blocks want them.
        cubes = x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).unfold(4, PATCH, PATCH)
        return F.linear(cubes[:, 0].flatten(4), self.proj.weight.flatten(1), self.proj.bias)


class ImageEncoder(nn.Module):
    """Volume (B, 1, 128, 128, 128) -> embedding (B, 384, 8, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, GRID, GRID, GRID, _VIT_WIDTH))
        self.patch_embed = _PatchEmbed()
        self.blocks = nn.ModuleList(
            _Block(RelativeAttention() if index in _GLOBAL_BLOCKS else WindowAttention())
            for index in range(_DEPTH)
        )
        self.neck = nn.Sequential(
            nn.Conv3d(_VIT_WIDTH, WIDTH, 1, bias=False),
            LayerNorm3d(WIDTH),
            nn.Conv3d(WIDTH, WIDTH, 3, padding=1, bias=False),
            LayerNorm3d(WIDTH),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode a normalised volume.

        Parameters
        ----------
        x : torch.Tensor
            (B, 1, 128, 128, 128), axes as in training (R, A, S), z-normalised.

        Returns
        -------
        torch.Tensor
            (B, 384, 8, 8, 8).
        """
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 4, 1, 2, 3))
