"""Mask decoder of SAM-Med3D: image embedding and prompt tokens -> low-resolution logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .sam_med3d_parts import GRID, WIDTH, LayerNorm3d, Tokens

__all__ = ["MaskDecoder", "fold"]

_HEADS = 8
_CROSS_WIDTH = 192
_MLP_WIDTH = 2048
_DEPTH = 2
_MASKS = 4
_SINGLE = slice(0, 1)


class _Attention(nn.Module):
    """Attention with separate projections, to an inner width of its own."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, inner)
        self.k_proj = nn.Linear(WIDTH, inner)
        self.v_proj = nn.Linear(WIDTH, inner)
        self.out_proj = nn.Linear(inner, WIDTH)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attend from q (B, n, 384) to k and v (B, m, 384)."""
        q, k, v = (
            project(x).unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class _TokenMlp(nn.Module):
    """Two linear layers with a ReLU between."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1 = nn.Linear(WIDTH, _MLP_WIDTH)
        self.lin2 = nn.Linear(_MLP_WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class _Head(nn.Module):
    """Three linear layers with ReLU between."""

    def __init__(self, hidden: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            (nn.Linear(WIDTH, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, out))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))


class _TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens.

    Parameters
    ----------
    first : bool
        The first block's self attention sees no positions, and replaces the tokens instead of
        being added to them.
    """

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = _Attention(WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.cross_attn_token_to_image = _Attention(_CROSS_WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = _TokenMlp()
        self.norm3 = nn.LayerNorm(WIDTH)
        self.norm4 = nn.LayerNorm(WIDTH)
        self.cross_attn_image_to_token = _Attention(_CROSS_WIDTH)

    def forward(
        self,
        tokens: torch.Tensor,
        image: torch.Tensor,
        token_positions: torch.Tensor,
        image_positions: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return new tokens (B, n, 384) and new image tokens (B, 512, 384)."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_positions
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        keys = image + image_positions
        queries = tokens + token_positions
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(queries, keys, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        placed = tokens + token_positions
        image = self.norm4(image + self.cross_attn_image_to_token(keys, placed, tokens))
        return tokens, image


class _TwoWayTransformer(nn.Module):
    """Two two-way blocks and a last look of the tokens at the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_TwoWayBlock(first=index == 0) for index in range(_DEPTH))
        self.final_attn_token_to_image = _Attention(_CROSS_WIDTH)
        self.norm_final_attn = nn.LayerNorm(WIDTH)

    def forward(
        self, tokens: torch.Tensor, image: torch.Tensor, image_positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (B, n, 384) and image tokens (B, 512, 384)."""
        token_positions = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_positions, image_positions)
        queries, keys = tokens + token_positions, image + image_positions
        tokens = tokens + self.final_attn_token_to_image(queries, keys, image)
        return self.norm_final_attn(tokens), image


class MaskDecoder(nn.Module):
    """Image embedding and prompt tokens -> logits at a quarter of the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = _TwoWayTransformer()
        self.iou_token = Tokens()
        self.mask_tokens = Tokens(_MASKS)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(WIDTH, WIDTH // 4, kernel_size=2, stride=2),
            LayerNorm3d(WIDTH // 4),
            nn.GELU(),
            nn.ConvTranspose3d(WIDTH // 4, WIDTH // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            _Head(WIDTH, WIDTH // 8) for _ in range(_MASKS)
        )
        self.iou_prediction_head = _Head(256, _MASKS)

    def forward(
        self,
        embedding: torch.Tensor,
        grid_positions: torch.Tensor,
        sparse: torch.Tensor,
        dense: torch.Tensor,
        heads: slice = _SINGLE,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode.

        Parameters
        ----------
        embedding : torch.Tensor
            (B, 384, 8, 8, 8), or a batch of 1 shared by all prompts.
        grid_positions : torch.Tensor
            (1, 384, 8, 8, 8), encoding of the image tokens' positions.
        sparse : torch.Tensor
            (B, n, 384) prompt tokens; n may be 0.
        dense : torch.Tensor
            Broadcasts to (B, 384, 8, 8, 8).
        heads : slice
            Which of the four masks. Upstream trained the first alone.

        Returns
        -------
        logits : torch.Tensor
            (B, masks, 32, 32, 32).
        iou : torch.Tensor
            (B, masks), the network's guess; upstream never trained it.
        """
        tokens, image = self.attend(embedding, grid_positions, sparse, dense)
        chosen = range(_MASKS)[heads]
        weights = torch.stack(
            [self.output_hypernetworks_mlps[n](tokens[:, 1 + n]) for n in chosen], dim=-1
        )
        # (B, 512 * 8 * 8, 48) times (B, 48, masks)
        logits = self.upscale(image).flatten(1, 3) @ weights
        iou = self.iou_prediction_head(tokens[:, 0])[:, heads]
        return fold(logits.unflatten(1, (GRID**3, 8, 8))), iou

    def attend(
        self,
        embedding: torch.Tensor,
        grid_positions: torch.Tensor,
        sparse: torch.Tensor,
        dense: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the transformer: tokens (B, 5 + n, 384) and image tokens (B, 512, 384)."""
        batch = len(sparse)
        own = torch.cat((self.iou_token.weight, self.mask_tokens.weight))
        tokens = torch.cat((own.expand(batch, -1, -1), sparse), dim=1)
        image = (embedding + dense).expand(batch, -1, -1, -1, -1).flatten(2).transpose(1, 2)
        positions = grid_positions.flatten(2).transpose(1, 2)
        return self.transformer(tokens, image.contiguous(), positions.contiguous())

    def upscale(self, image: torch.Tensor) -> torch.Tensor:
        """Split each image token twice into 2 x 2 x 2: (B, 512, 384) -> (B, 512, 8, 8, 48).

        Nothing here looks at a neighbour, so the children stay beside each other (see
        :func:`fold`) and each transposed convolution is a matrix product.
        """
        first, norm, _, second, _ = self.output_upscaling
        x = F.gelu(norm.last(_split(first, image)))
        return F.gelu(_split(second, x))


def _split(layer: nn.ConvTranspose3d, x: torch.Tensor) -> torch.Tensor:
    """Apply a transposed convolution of kernel and stride 2 to each voxel: (..., C) -> (..., 8, D).

    The 8 children are in C order of (axis 0, axis 1, axis 2).
    """
    weight = layer.weight.flatten(2).permute(2, 1, 0)
    return F.linear(x, weight.flatten(0, 1), layer.bias.repeat(8)).unflatten(-1, (8, -1))


def fold(x: torch.Tensor) -> torch.Tensor:
    """Put children in their places: (B, 512, 8, 8, C) -> (B, C, 32, 32, 32)."""
    parts = x.unflatten(3, (2, 2, 2)).unflatten(2, (2, 2, 2)).unflatten(1, (GRID, GRID, GRID))
    # (B, d, h, w, 2d, 2h, 2w, 2d, 2h, 2w, C) -> (B, C, d 2 2, h 2 2, w 2 2)
    ordered = parts.permute(0, 10, 1, 4, 7, 2, 5, 8, 3, 6, 9)
    return ordered.reshape(x.shape[0], x.shape[-1], 4 * GRID, 4 * GRID, 4 * GRID)
