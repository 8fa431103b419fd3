"""What axon networks are trained with: nnU-Net's Dice and cross-entropy, and a clDice term.

D-LMBmap trained with Dice and cross-entropy at five scales; its soft clDice belongs to an older
trainer. It is here as an addition that may help where axons break into pieces. Reference values:
``tests/golden/axon_seg/loss_values.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

__all__ = ["AxonLoss", "cl_dice_loss", "cross_entropy", "dice_loss", "soft_skeleton"]

_SMOOTH = 1e-5
_TINY = 1e-12


def dice_loss(
    logits: torch.Tensor, classes: torch.Tensor, *, whole_batch: bool = False
) -> torch.Tensor:
    """Return nnU-Net's soft Dice without background, negative: -1 is perfect.

    Parameters
    ----------
    logits : torch.Tensor
        (B, K, z, y, x).
    classes : torch.Tensor
        (B, z, y, x), whole numbers.
    whole_batch : bool
        One Dice over the batch instead of the mean of each sample's.
    """
    probabilities = logits.float().softmax(1)[:, 1:]
    count = logits.shape[1]
    target = functional.one_hot(classes.long(), count).movedim(-1, 1)[:, 1:].float()
    axes = (0, 2, 3, 4) if whole_batch else (2, 3, 4)
    both = (probabilities * target).sum(axes)
    # nnU-Net: 2 tp / (2 tp + fp + fn), the denominator being the sum of both.
    either = probabilities.sum(axes) + target.sum(axes)
    return -((2 * both + _SMOOTH) / (either + _SMOOTH)).mean()


def cross_entropy(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over all voxels."""
    return functional.cross_entropy(logits.float(), classes.long())


def soft_skeleton(values: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Return D-LMBmap's soft skeleton of (B, 1, z, y, x); gradients pass.

    Parameters
    ----------
    values : torch.Tensor
        Probabilities.
    rounds : int
        Voxels that are taken off a surface.
    """
    left = values
    for _ in range(rounds):
        thin = left
        for kernel, pad in (((3, 1, 1), (1, 0, 0)), ((1, 3, 1), (0, 1, 0)), ((1, 1, 3), (0, 0, 1))):
            thin = torch.minimum(thin, -functional.max_pool3d(-left, kernel, 1, pad))
        contour = (functional.max_pool3d(thin, 3, 1, 1) - thin).relu()
        left = (left - contour).relu()
    return left


def cl_dice_loss(probabilities: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return D-LMBmap's soft clDice, negative: -1 is perfect.

    Parameters
    ----------
    probabilities : torch.Tensor
        (B, 1, z, y, x), of axon.
    label : torch.Tensor
        The same shape, 0 and 1.
    """
    true, found = soft_skeleton(label), soft_skeleton(probabilities)
    recall = ((true * probabilities).sum() + _TINY) / (true.sum() + _TINY)
    precision = ((found * label).sum() + _TINY) / (found.sum() + _TINY)
    return -2 * recall * precision / (recall + precision)


@dataclass(frozen=True)
class AxonLoss:
    """Dice and cross-entropy at several scales, and clDice at the finest if wanted.

    Attributes
    ----------
    cl_dice : float
        Weight of the clDice term; 0 as published.
    whole_batch : bool
        As in :func:`dice_loss`.
    """

    cl_dice: float = 0.0
    whole_batch: bool = False

    def __call__(self, logits: Any, classes: torch.Tensor) -> torch.Tensor:
        """Return the loss of one output, or of several scales, finest first.

        Scales weigh 1, 1/2, 1/4 ..., the coarsest of three or more nothing (nnU-Net). Where a
        scale's voxel holds any axon, it is axon: thin ones would vanish otherwise.
        """
        scales: Sequence[torch.Tensor] = [logits] if isinstance(logits, torch.Tensor) else logits
        weights = [0.5**scale for scale in range(len(scales))]
        if len(scales) > 2:
            weights[-1] = 0.0
        total = torch.zeros((), device=scales[0].device)
        for weight, scale in zip(weights, scales, strict=True):
            if weight:
                one = self._one(scale, _coarser(classes, scale))
                total = total + weight / sum(weights) * one
        if self.cl_dice:
            axon = scales[0].float().softmax(1)[:, 1:2]
            total = total + self.cl_dice * cl_dice_loss(axon, (classes[:, None] == 1).float())
        return total

    def _one(self, logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        dice = dice_loss(logits, classes, whole_batch=self.whole_batch)
        return dice + cross_entropy(logits, classes)


def _coarser(classes: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if classes.shape[1:] == like.shape[2:]:
        return classes
    pooled: Callable[..., torch.Tensor] = functional.adaptive_max_pool3d
    return pooled(classes[:, None].float(), like.shape[2:])[:, 0]
