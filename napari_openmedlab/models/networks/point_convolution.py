"""Convolution with a 1x1x1 kernel as a matrix product: several times faster on the CPU.

torch's CPU form (2.13) unfolds the input first and copies channels-last features to the plain
layout and back; that cost 22 to 29 % of a whole STU-Net-S forward pass.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["PointConv3d"]


class PointConv3d(nn.Conv3d):
    """``torch.nn.Conv3d`` with a 1x1x1 kernel; the same numbers to rounding.

    With gradients, on another device or in another precision torch's form runs.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    stride : tuple of int
        Every n-th voxel along (z, y, x) is taken.
    bias : bool
        Whether the layer has a bias.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: tuple[int, ...] = (1, 1, 1),
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(inputs, outputs, 1, stride=stride, bias=bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs, ...) features of (B, inputs, Z, Y, X) ones, in the same layout."""
        fast = features.device.type == "cpu" and features.dtype == torch.float32
        if not fast or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(features)
        if not _channels_last(features, self.weight):
            return super().forward(features)
        dz, dy, dx = self.stride
        voxels = features[:, :, ::dz, ::dy, ::dx].permute(0, 2, 3, 4, 1)
        return functional.linear(voxels, self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)


def _channels_last(*tensors: torch.Tensor) -> bool:
    layout = torch.channels_last_3d
    return all(tensor.is_contiguous(memory_format=layout) for tensor in tensors)
