"""SAM-Med3D: clicks in a 128-voxel cube become a mask (arXiv 2310.15161).

Encode a cube once, then decode per click. State-dict keys, their order and all numbers equal the
published ``vit_b_ori`` weights (uni-medical/SAM-Med3D @ f3de1fa, Apache-2.0).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .sam_med3d_decoder import MaskDecoder
from .sam_med3d_encoder import ImageEncoder
from .sam_med3d_parts import GRID, PATCH
from .sam_med3d_prompt import MASK_SIDE, PromptEncoder

__all__ = ["IMAGE_SIDE", "MASK_SIDE", "SamMed3D", "build_sam_med3d", "upsample"]

IMAGE_SIDE = GRID * PATCH


def build_sam_med3d() -> SamMed3D:
    """Build the one published variant, ``vit_b_ori`` (100.5 million parameters)."""
    return SamMed3D()


class SamMed3D(nn.Module):
    """Image encoder, prompt encoder and mask decoder with the published keys.

    Examples
    --------
    >>> embedding = network.encode(cube)                                # once   # doctest: +SKIP
    >>> logits, _ = network.decode(embedding, point, label, network.empty_mask())
    >>> logits, _ = network.decode(embedding, newest, label, logits)    # per further click
    >>> mask = upsample(logits) > 0
    """

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder()
        self.prompt_encoder = PromptEncoder()
        self.mask_decoder = MaskDecoder()

    def forward(
        self,
        image: torch.Tensor,
        points: torch.Tensor | None,
        labels: torch.Tensor | None,
        mask_prompt: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode and decode in one go; see :meth:`encode` and :meth:`decode`."""
        return self.decode(self.encode(image), points, labels, mask_prompt)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Encode cubes.

        Parameters
        ----------
        image : torch.Tensor
            (B, 1, 128, 128, 128), axes (R, A, S) at 1.5 mm as in training, z-normalised.

        Returns
        -------
        torch.Tensor
            (B, 384, 8, 8, 8).

        Raises
        ------
        ValueError
            For another shape: the relative positions fit this cube only.
        """
        side = (IMAGE_SIDE,) * 3
        if image.ndim != 5 or tuple(image.shape[1:]) != (1, *side):
            raise ValueError(f"the cube is (B, 1, 128, 128, 128), not {tuple(image.shape)}")
        return self.image_encoder(image)

    def decode(
        self,
        embedding: torch.Tensor,
        points: torch.Tensor | None,
        labels: torch.Tensor | None,
        mask_prompt: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn prompts into logits; cheap enough to run at every click.

        Parameters
        ----------
        embedding : torch.Tensor
            From :meth:`encode`: (B, 384, 8, 8, 8), or (1, 384, 8, 8, 8) for B prompts in one cube.
        points : torch.Tensor or None
            (B, n, 3) voxel indexes in the cube along its axes 0, 1, 2. Training gave one new
            point per step. None (with ``labels`` None): the mask prompt alone.
        labels : torch.Tensor or None
            (B, n): 1 inside the object, 0 outside, -1 no point.
        mask_prompt : torch.Tensor or None
            (B, 1, 32, 32, 32) or (1, ...): the last step's raw logits. At the first click use
            :meth:`empty_mask` as training did. None is the learned "no mask" token, which the
            published inference never uses and which gives other numbers.

        Returns
        -------
        logits : torch.Tensor
            (B, 1, 32, 32, 32); the object is where they exceed 0.
        iou : torch.Tensor
            (B, 1), untrained upstream: no measure of confidence.

        Raises
        ------
        ValueError
            For shapes that don't fit together, or an unknown label.
        """
        batch = _batch(embedding, points, labels, mask_prompt)
        prompts = self.prompt_encoder
        positions = prompts.grid_positions()
        if points is None or labels is None:
            sparse = positions.new_zeros(batch, 0, positions.shape[1])
        else:
            sparse = prompts.points(points, labels).expand(batch, -1, -1)
        return self.mask_decoder(embedding, positions, sparse, prompts.mask(mask_prompt))

    def empty_mask(self, batch: int = 1) -> torch.Tensor:
        """Return the mask prompt of the first click: zeros, (batch, 1, 32, 32, 32)."""
        return self.prompt_encoder.grid_positions().new_zeros(batch, 1, *(MASK_SIDE,) * 3)


def upsample(logits: torch.Tensor) -> torch.Tensor:
    """Bring logits to the cube's voxels: (B, 1, 32, 32, 32) -> (B, 1, 128, 128, 128)."""
    return F.interpolate(logits, size=(IMAGE_SIDE,) * 3, mode="trilinear", align_corners=False)


def _batch(
    embedding: torch.Tensor,
    points: torch.Tensor | None,
    labels: torch.Tensor | None,
    mask_prompt: torch.Tensor | None,
) -> int:
    """Return the number of prompts after checking that all shapes fit together."""
    if (points is None) != (labels is None):
        raise ValueError("points and labels come together, or neither does")
    sizes = {len(embedding)}
    if points is not None and labels is not None:
        if points.ndim != 3 or points.shape[2] != 3 or points.shape[:2] != labels.shape:
            raise ValueError(
                f"points are (B, n, 3) and labels (B, n), not {tuple(points.shape)} "
                f"and {tuple(labels.shape)}"
            )
        sizes.add(len(points))
    if mask_prompt is not None:
        if tuple(mask_prompt.shape[1:]) != (1, *(MASK_SIDE,) * 3):
            raise ValueError(f"mask prompts are (B, 1, 32, 32, 32), not {tuple(mask_prompt.shape)}")
        sizes.add(len(mask_prompt))
    if len(sizes - {1}) > 1:
        raise ValueError(f"embedding, points and mask prompt differ in batch size: {sorted(sizes)}")
    return max(sizes)
