"""PCT-Net's convolution layers: batch norm and PReLU come before each convolution.

``flat`` layers have no kernel, or no step, along z. Features have the shape (B, C, Z, Y, X).
"""

from __future__ import annotations

import torch
from torch import nn

from napari_openmedlab.models.networks.pct_net_attention import SwinPair
from napari_openmedlab.models.networks.point_convolution import PointConv3d

__all__ = ["ConvBlock", "ConvTransBlock", "Down", "Head", "UpCat", "convolution"]

TRUNK_DROPOUT = 0.2


class ConvBlock(nn.Module):
    """Two convolutions.

    Parameters
    ----------
    channels : int
        Of input and output.
    flat : bool
        Whether the kernels are 1x3x3.
    dropout : float
        Share of features left out between the two while training.
    """

    def __init__(self, channels: int, flat: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv_conv = nn.Sequential(
            *_activation(channels),
            convolution(channels, channels, flat),
            *_activation(channels),
            nn.Dropout(dropout),
            convolution(channels, channels, flat),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features of the same shape."""
        return self.conv_conv(features)


class Down(nn.Module):
    """Max-pooling, then a convolution to more channels.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    flat_step : bool
        Whether z keeps its size.
    flat : bool
        Whether the kernel is 1x3x3.
    """

    def __init__(
        self, inputs: int, outputs: int, flat_step: bool = False, flat: bool = False
    ) -> None:
        super().__init__()
        self.pool = nn.MaxPool3d(_step(flat_step))
        self.conv = nn.Sequential(*_activation(inputs), convolution(inputs, outputs, flat))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs, ...) features on the coarser grid."""
        return self.conv(self.pool(features))


class UpCat(nn.Module):
    """Bring coarse features up, join them behind the fine ones, halve the channels.

    Parameters
    ----------
    coarse, fine : int
        Channels.
    flat_step : bool
        Whether z keeps its size.
    flat : bool
        Whether the kernel is 1x3x3.
    """

    def __init__(self, coarse: int, fine: int, flat_step: bool = False, flat: bool = False) -> None:
        super().__init__()
        step = _step(flat_step)
        grow = nn.ConvTranspose3d(coarse, fine, step, stride=step)
        self.up = nn.Sequential(*_activation(coarse), grow)
        self.conv = nn.Sequential(*_activation(2 * fine), convolution(2 * fine, fine, flat))

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Return (B, fine, ...) features on the fine grid."""
        return self.conv(torch.cat((fine, self.up(coarse)), dim=1))


class Head(nn.Module):
    """1x1x1 convolution to class logits."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*_activation(channels), PointConv3d(channels, classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, classes, ...) logits."""
        return self.conv(features)


class ConvTransBlock(nn.Module):
    """The sum of a convolution block and a transformer on the same features.

    Parameters
    ----------
    channels : int
        Of input and output.
    heads : int
        Attention heads.
    window : int
        Edge of the attention windows in voxels.
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.conv = ConvBlock(channels, dropout=TRUNK_DROPOUT)
        self.trans = SwinPair(channels, heads, window)
        self.norm_layer = nn.LayerNorm(channels)  # in the published files, but never applied

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features of the same shape."""
        last = features.permute(0, 2, 3, 4, 1)
        return self.conv(features) + self.trans(last).permute(0, 4, 1, 2, 3)


def convolution(inputs: int, outputs: int, flat: bool = False) -> nn.Conv3d:
    """Return a convolution that keeps the grid: 3x3x3, or 1x3x3 where ``flat``."""
    kernel = (1, 3, 3) if flat else (3, 3, 3)
    padding = (0, 1, 1) if flat else (1, 1, 1)
    return nn.Conv3d(inputs, outputs, kernel, padding=padding)


def _activation(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm3d(channels), nn.PReLU()


def _step(flat: bool) -> tuple[int, int, int]:
    return (1, 2, 2) if flat else (2, 2, 2)
