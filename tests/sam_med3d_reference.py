"""The attention of SAM-Med3D's encoder written out: every token of the padded window takes part.

This is the form upstream runs, kept as the measure of the package's shortcut (tests compare the
numbers, benchmarks the time). `use_reference` swaps it into a network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn

HEADS = 12
GRID = 8


def attend(attention: nn.Module, x: torch.Tensor, textbook: bool = False) -> torch.Tensor:
    """(B, 8, 8, 8, 768) -> the same shape, with the weights of one attention of the package.

    ``textbook`` uses the usual relative position, which the published weights do not fit.
    """
    side = (len(attention.rel_pos_d) + 1) // 2
    fill = side - GRID
    x = F.pad(x, (0, 0, 0, fill, 0, fill, 0, fill))
    batch, tokens = len(x), side**3
    qkv = attention.qkv(x).reshape(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.reshape(3, batch * HEADS, tokens, -1)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)
    logits = add_positions(logits, q, attention, textbook)
    out = (logits.softmax(dim=-1) @ v).view(batch, HEADS, side, side, side, -1)
    out = out.permute(0, 2, 3, 4, 1, 5).reshape(batch, side, side, side, -1)
    return attention.proj(out)[:, :GRID, :GRID, :GRID].contiguous()


def add_positions(
    logits: torch.Tensor, q: torch.Tensor, attention: nn.Module, textbook: bool
) -> torch.Tensor:
    """Add the relative position terms to (B * heads, tokens, tokens)."""
    side = (len(attention.rel_pos_d) + 1) // 2
    steps = torch.arange(side, device=q.device)
    rows = steps[:, None] - steps[None, :] + side - 1
    q = q.view(len(q), side, side, side, -1)
    for_d = torch.einsum("ndhwf,dkf->ndhwk", q, attention.rel_pos_d[rows])
    for_h = torch.einsum("ndhwf,hkf->ndhwk", q, attention.rel_pos_h[rows])
    for_w = torch.einsum("ndhwf,wkf->ndhwk", q, attention.rel_pos_w[rows])
    if textbook:
        terms = (
            for_d[..., :, None, None],
            for_h[..., None, :, None],
            for_w[..., None, None, :],
        )
    else:
        # All three run over the last key axis; the third query axis of the last two is
        # taken for the first, respectively the second, key axis.
        terms = (
            for_d[:, :, :, :, None, None, :],
            for_h[:, :, :, None, :, None, :],
            for_w[:, :, :, None, None, :, :],
        )
    spread = logits.view(len(q), *(side,) * 6)
    return (spread + terms[0] + terms[1] + terms[2]).view_as(logits)


@contextmanager
def use_reference(
    encoder: nn.Module, blocks: tuple[int, ...] = tuple(range(12)), textbook: bool = False
) -> Iterator[nn.Module]:
    """Let the named blocks of an image encoder attend in the written-out form."""

    def forward(attention: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return attend(attention, x, textbook)

    chosen = [encoder.blocks[index].attn for index in blocks]
    for attention in chosen:
        attention.forward = MethodType(forward, attention)
    try:
        yield encoder
    finally:
        for attention in chosen:
            del attention.forward
