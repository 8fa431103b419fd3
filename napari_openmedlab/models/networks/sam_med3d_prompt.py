"""Prompt encoder of SAM-Med3D: clicks and a previous mask as tokens for the decoder.

Three facts of the published weights that look like slips and must stay: a position is encoded as
(sin, cos, sin); the dense grid swaps its first two axes and the points don't; a list of points
always gets one more padding token.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .sam_med3d_parts import GRID, PATCH, WIDTH, LayerNorm3d, Tokens

__all__ = ["MASK_SIDE", "PADDING_LABEL", "PromptEncoder"]

MASK_SIDE = 4 * GRID
PADDING_LABEL = -1
_FREQUENCIES = WIDTH // 3
_IMAGE_SIDE = GRID * PATCH


class _Positions(nn.Module):
    """Random Fourier features of positions; the frequencies are part of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.zeros(3, _FREQUENCIES))
        # (frequencies, their version, grid encoding): see `grid`.
        self._cached: tuple[torch.Tensor, int, torch.Tensor] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of what is returned: that of the weights."""
        return self.positional_encoding_gaussian_matrix.dtype

    def forward(self, fractions: torch.Tensor) -> torch.Tensor:
        """Encode positions in [0, 1]: (..., 3) -> (..., 384)."""
        frequencies = self.positional_encoding_gaussian_matrix
        # Half precision would turn the phase by tenths of a radian.
        with torch.autocast(frequencies.device.type, enabled=False):
            phase = 2 * math.pi * ((2 * fractions.float() - 1) @ frequencies.float())
            sine = phase.sin()
            return torch.cat((sine, phase.cos(), sine), dim=-1).to(self.dtype)

    def grid(self) -> torch.Tensor:
        """Return the encoding of the token grid, (1, 384, 8, 8, 8), computed once per weights."""
        frequencies = self.positional_encoding_gaussian_matrix
        if frequencies.is_inference():  # such tensors don't tell when they change
            return self._encode_grid()
        stamp = frequencies._version
        if self._cached is None or not (
            self._cached[0] is frequencies
            and self._cached[1] == stamp
            and self._cached[2].device == frequencies.device
        ):
            # A cached inference tensor could not be used in training later.
            with torch.inference_mode(False), torch.no_grad():
                self._cached = (frequencies, stamp, self._encode_grid())
        return self._cached[2]

    def _encode_grid(self) -> torch.Tensor:
        device = self.positional_encoding_gaussian_matrix.device
        centres = (torch.arange(GRID, dtype=torch.float32, device=device) + 0.5) / GRID
        a, b, c = torch.meshgrid(centres, centres, centres, indexing="ij")
        # The first two are swapped in comparison with the points: so were the weights trained.
        return self(torch.stack((b, a, c), dim=-1)).permute(3, 0, 1, 2)[None]


class PromptEncoder(nn.Module):
    """Clicks and a mask prompt -> sparse tokens and dense tokens (keys as published)."""

    def __init__(self) -> None:
        super().__init__()
        self.pe_layer = _Positions()
        self.point_embeddings = nn.ModuleList((Tokens(), Tokens()))
        self.not_a_point_embed = Tokens()
        self.mask_downscaling = nn.Sequential(
            nn.Conv3d(1, 4, kernel_size=2, stride=2),
            LayerNorm3d(4),
            nn.GELU(),
            nn.Conv3d(4, 16, kernel_size=2, stride=2),
            LayerNorm3d(16),
            nn.GELU(),
            nn.Conv3d(16, WIDTH, kernel_size=1),
        )
        self.no_mask_embed = Tokens()

    def grid_positions(self) -> torch.Tensor:
        """Return the positional encoding of the image tokens, (1, 384, 8, 8, 8)."""
        return self.pe_layer.grid()

    def points(self, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Encode clicks.

        Parameters
        ----------
        points : torch.Tensor
            (B, n, 3) voxel indexes along the input's axes 0, 1, 2 (no reversal); whole numbers
            are voxel centres. Not modified.
        labels : torch.Tensor
            (B, n): 1 inside the object, 0 outside, -1 no point at all (such a row still is a
            token, so it is not neutral).

        Returns
        -------
        torch.Tensor
            (B, n + 1, 384); the last row is the padding token.

        Raises
        ------
        ValueError
            For another label.
        """
        if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) <= 1:
            raise ValueError("labels are 1 (inside), 0 (outside) or -1 (no point)")
        negative, positive = (tokens.weight for tokens in self.point_embeddings)
        kind = labels[..., None]
        positions = self.pe_layer((points.float() + 0.5) / _IMAGE_SIDE)
        tokens = positions + torch.where(kind == 1, positive, negative)
        nowhere = self.not_a_point_embed.weight
        tokens = torch.where(kind == PADDING_LABEL, nowhere, tokens)
        return torch.cat((tokens, nowhere.expand(len(tokens), 1, -1)), dim=1)

    def mask(self, mask_prompt: torch.Tensor | None) -> torch.Tensor:
        """Encode a previous answer.

        Parameters
        ----------
        mask_prompt : torch.Tensor or None
            (B, 1, 32, 32, 32) raw logits; all zeros at the first click. None gives the learned
            "no mask" token, which the published inference never uses.

        Returns
        -------
        torch.Tensor
            (B, 384, 8, 8, 8); (1, 384, 1, 1, 1) for None.
        """
        if mask_prompt is None:
            return self.no_mask_embed.weight.view(1, -1, 1, 1, 1)
        return self.mask_downscaling(mask_prompt)
