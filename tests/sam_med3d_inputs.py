"""Inputs of SAM-Med3D's golden files: formulas, so that no volume has to be stored."""

from __future__ import annotations

import numpy as np
import torch


def volume(seed: int) -> torch.Tensor:
    """(1, 1, 128, 128, 128) float32: blocks of 16 voxels plus noise."""
    coarse = np.random.RandomState(seed).standard_normal((8, 8, 8)).astype(np.float32)
    low = coarse.repeat(16, 0).repeat(16, 1).repeat(16, 2)
    noise = np.random.RandomState(seed + 1).standard_normal((128, 128, 128)).astype(np.float32)
    return torch.from_numpy((low + np.float32(0.5) * noise)[None, None])


def mask_prompt(seed: int) -> torch.Tensor:
    """(1, 1, 32, 32, 32) float32: logits of an off-centre ellipsoid, with noise."""
    i, j, k = np.meshgrid(*[np.arange(32, dtype=np.float32)] * 3, indexing="ij")
    inside = ((i - 10) / 6) ** 2 + ((j - 18) / 9) ** 2 + ((k - 13) / 5) ** 2 < 1
    noise = np.random.RandomState(seed).standard_normal((32, 32, 32)).astype(np.float32)
    logits = np.where(inside, np.float32(8), np.float32(-8)) + noise
    return torch.from_numpy(logits[None, None].astype(np.float32))
