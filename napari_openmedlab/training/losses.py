"""The published loss: half Dice, half cross-entropy, at four scales.

PyMIC's form, which MIS-FM was trained with. MONAI's ``DiceLoss`` (softmax, over the batch,
smoothing 1e-5) gives the same Dice, but loading MONAI takes ten seconds for these three lines;
its cross-entropy and its deep supervision differ (no smoothing of probabilities; targets by
nearest voxel instead of their mean), so all of it is written out here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

__all__ = ["cross_entropy", "deep_loss", "dice_loss", "one_hot"]

_SMOOTH = 1e-5
_KEEP, _FLOOR = 0.999, 5e-4  # probabilities go through this before the logarithm


def dice_loss(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return 1 - Dice, the mean over classes, background included.

    Parameters
    ----------
    probabilities, target : torch.Tensor
        (B, K, Z, Y, X), float32. Each class's Dice is taken over all voxels of the batch.
    """
    space = (0, 2, 3, 4)
    both = (probabilities * target).sum(space)
    either = probabilities.sum(space) + target.sum(space)
    return (1 - (2 * both + _SMOOTH) / (either + _SMOOTH)).mean()


def cross_entropy(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean over voxels of ``-sum(target * log(0.999 p + 0.0005))``."""
    return -(target * torch.log(_KEEP * probabilities + _FLOOR)).sum(1).mean()


def deep_loss(logits: Any, classes: torch.Tensor) -> torch.Tensor:
    """Return the loss of one output, or of several scales with weights 1, 1/2, 1/4 ...

    Parameters
    ----------
    logits : torch.Tensor or sequence of them
        (B, K, z, y, x), full resolution first; taken to float32.
    classes : torch.Tensor
        (B, Z, Y, X), whole numbers from 0 to K - 1. Coarser scales get the mean of their voxels.

    Returns
    -------
    torch.Tensor
        A number.
    """
    scales: Sequence[torch.Tensor] = [logits] if isinstance(logits, torch.Tensor) else logits
    target = one_hot(classes, scales[0].shape[1])
    total = torch.zeros((), device=target.device)
    weights = [0.5**scale for scale in range(len(scales))]
    for weight, scale in zip(weights, scales, strict=True):
        probabilities = scale.float().softmax(1)
        edges = scale.shape[2:]
        wanted = target
        if edges != target.shape[2:]:
            wanted = functional.adaptive_avg_pool3d(target, edges)
        half = dice_loss(probabilities, wanted) + cross_entropy(probabilities, wanted)
        total = total + weight / sum(weights) * 0.5 * half
    return total


def one_hot(classes: torch.Tensor, count: int) -> torch.Tensor:
    """Return (B, count, Z, Y, X) float32 of class numbers (B, Z, Y, X)."""
    batch, *edges = classes.shape
    out = torch.zeros((batch, count, *edges), device=classes.device)
    return out.scatter_(1, classes[:, None].long(), 1.0)
