"""FMUNet: MIS-FM's residual 3D U-Net, pre-trained by volume fusion.

Paper: Wang et al., IEEE TIP 2025, 10.1109/TIP.2025.3610249; code openmedlab/MIS-FM and PyMIC's
``FMUNetV3``. The published weights solve a pretext task (five mixing levels, no anatomy): they are
a start for training on own labels. Axes are (z, y, x); an engine normalises the patch before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from napari_openmedlab.models.networks.instance_norm import InstanceNorm3d
from napari_openmedlab.models.networks.point_convolution import PointConv3d

__all__ = ["FMUNet", "build_fmunet"]

PUBLISHED_CHANNELS = (32, 64, 128, 256, 512)
LEVELS = 5
DEPTH = 2  # convolutions in a block
DROPOUT = 0.2  # at the levels 2, 3 and 4
SLOPE = 0.01
# Resolution mode -> whether the levels 0 and 1 are flat (no kernel and no step along z).
FLAT_LEVELS = {0: (False, False), 1: (True, False), 2: (True, True)}


def build_fmunet(
    in_channels: int = 1,
    out_channels: int = 5,
    resolution_mode: int = 0,
    channels: Sequence[int] = PUBLISHED_CHANNELS,
) -> FMUNet:
    """Build FMUNet.

    Parameters
    ----------
    in_channels : int
        Image channels; 1 as published.
    out_channels : int
        Classes with the background; 5 as published (the pretext task).
    resolution_mode : {0, 1, 2}
        0: near-isotropic voxels, as published; 1: level 0 works slice by slice; 2: levels 0 and 1
        do, for thick slices. It decides shapes of the weights.
    channels : sequence of 5 int
        Channels of the levels, full resolution first.

    Returns
    -------
    FMUNet
        146 state-dict entries; 47,371,572 parameters with the default values.

    Raises
    ------
    ValueError
        For counts below 1, another number of levels, or another mode.
    """
    return FMUNet(in_channels, out_channels, resolution_mode, channels)


class FMUNet(nn.Module):
    """U-Net of five levels; every convolution comes after its norm and activation.

    Parameters
    ----------
    in_channels, out_channels, resolution_mode, channels
        As in :func:`build_fmunet`.

    Attributes
    ----------
    deep_supervision : bool
        False: :meth:`forward` returns the full-resolution logits and computes no other head.
        True, for training: it returns the heads of the levels 0 to 3.
    multiple : tuple of int
        Every edge (z, y, x) of a patch is a multiple of this: (16, 16, 16), (8, 16, 16) or
        (4, 16, 16) in mode 0, 1 and 2.
    memory_format : torch.memory_format
        The faster layout on the CPU: 7.1 s instead of 8.0 s of processor time for 64x128x128 on
        one thread. An engine may convert the network once with
        ``network.to(memory_format=network.memory_format)``; patches need no conversion.

    Raises
    ------
    ValueError
        As in :func:`build_fmunet`.
    """

    memory_format = torch.channels_last_3d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution_mode: int = 0,
        channels: Sequence[int] = PUBLISHED_CHANNELS,
    ) -> None:
        super().__init__()
        if resolution_mode not in FLAT_LEVELS:
            raise ValueError(f"resolution mode {resolution_mode}: there are 0, 1 and 2")
        if len(channels) != LEVELS or min(in_channels, out_channels, *channels) < 1:
            raise ValueError(f"FMUNet takes {LEVELS} levels of at least one channel: {channels}")
        self.deep_supervision = False
        flat = (*FLAT_LEVELS[resolution_mode], False, False, False)
        self.multiple = (2 ** (4 - sum(flat)), 16, 16)
        self.project = _convolution(in_channels, channels[0], flat[0])
        self.encoder = _Encoder(channels, flat)
        self.decoder = _Decoder(channels, flat)
        self.out_layers = nn.ModuleList(
            _activated(channels[k], _convolution(channels[k], out_channels, flat[k]))
            for k in range(LEVELS - 1)
        )

    def forward(self, patch: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return class logits of a normalised patch.

        Parameters
        ----------
        patch : torch.Tensor
            (B, in_channels, Z, Y, X), float, axes (z, y, x); edges are multiples of ``multiple``.

        Returns
        -------
        torch.Tensor or tuple of torch.Tensor
            (B, out_channels, Z, Y, X) logits, softmax over axis 1. With ``deep_supervision`` a
            tuple, full resolution first, then the levels 1, 2 and 3 on their own grids.

        Raises
        ------
        ValueError
            For a patch with other edges, or one that leaves a single voxel at the bottom.
        """
        self._check(patch)
        levels = self.decoder(self.encoder(self.project(patch)), self.deep_supervision)
        if self.deep_supervision:
            return tuple(
                head(features) for head, features in zip(self.out_layers, levels, strict=True)
            )
        return self.out_layers[0](levels[0])

    def _check(self, patch: torch.Tensor) -> None:
        edges = tuple(patch.shape[2:])
        if len(edges) != 3 or any(
            edge < 1 or edge % unit for edge, unit in zip(edges, self.multiple, strict=True)
        ):
            wanted = " x ".join(map(str, self.multiple))
            raise ValueError(
                f"a patch of {edges} voxels: the edges (z, y, x) must be multiples of {wanted}"
            )
        if edges == self.multiple:  # instance norm has no spread to divide by
            raise ValueError(f"a patch of {edges} voxels has one voxel at the bottom: too small")


class _Encoder(nn.Module):
    """Levels 0 to 4, a convolution with stride between them."""

    def __init__(self, channels: Sequence[int], flat: Sequence[bool]) -> None:
        super().__init__()
        for k in range(LEVELS):
            self.add_module(f"en_conv{k}", _Residual(channels[k], flat[k], _dropout(k)))
        for k in range(LEVELS - 1):
            self.add_module(f"down{k}", _Down(channels[k], channels[k + 1], flat[k]))

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Return the features of all levels, full resolution first."""
        levels = [self.get_submodule("en_conv0")(features)]
        for k in range(LEVELS - 1):
            features = self.get_submodule(f"down{k}")(levels[-1])
            levels.append(self.get_submodule(f"en_conv{k + 1}")(features))
        return levels


class _Decoder(nn.Module):
    """One more block at level 4, then up to level 0."""

    def __init__(self, channels: Sequence[int], flat: Sequence[bool]) -> None:
        super().__init__()
        for k in range(LEVELS - 1):
            self.add_module(f"upcat{k}", _UpCat(channels[k + 1], channels[k], flat[k]))
        for k in range(LEVELS):
            self.add_module(f"de_conv{k}", _Residual(channels[k], flat[k], _dropout(k)))

    def forward(self, levels: list[torch.Tensor], keep: bool) -> list[torch.Tensor]:
        """Return the features of level 0, or with ``keep`` those of the levels 0 to 3.

        ``levels`` is used up.
        """
        features = self.get_submodule("de_conv4")(levels.pop())
        found: list[torch.Tensor] = []
        for k in range(LEVELS - 2, -1, -1):
            features = self.get_submodule(f"upcat{k}")(features, levels.pop())
            features = self.get_submodule(f"de_conv{k}")(features)
            found = [features, *found] if keep else [features]
        return found


class _Residual(nn.Module):
    """Convolutions that each add to their input."""

    def __init__(self, channels: int, flat: bool, dropout: float) -> None:
        super().__init__()
        self.conv_list = nn.ModuleList(
            _activated(channels, nn.Dropout(dropout), _convolution(channels, channels, flat))
            for _ in range(DEPTH)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features of the same shape."""
        for layer in self.conv_list:
            features = layer(features).add_(features)
        return features


class _Down(nn.Module):
    """A convolution with stride 2, along z too unless the level is flat."""

    def __init__(self, inputs: int, outputs: int, flat: bool) -> None:
        super().__init__()
        self.down = _activated(inputs, _convolution(inputs, outputs, flat, _step(flat)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs, ...) features on the coarser grid."""
        return self.down(features)


class _UpCat(nn.Module):
    """Bring coarse features up, join them behind the fine ones, halve the channels."""

    def __init__(self, coarse: int, fine: int, flat: bool) -> None:
        super().__init__()
        factor = tuple(float(step) for step in _step(flat))
        # Corners of both grids coincide, as published.
        grow = nn.Upsample(scale_factor=factor, mode="trilinear", align_corners=True)
        self.up = _activated(coarse, PointConv3d(coarse, fine), grow)
        self.conv = _activated(2 * fine, _convolution(2 * fine, fine, flat))

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """Return (B, fine, ...) features on the fine grid."""
        return self.conv(torch.cat((fine, self.up(coarse)), dim=1))


class _Norm(InstanceNorm3d):
    """Instance norm that leaves its input alone, because here the input is used again."""

    def _in_place(self, features: torch.Tensor) -> torch.Tensor:
        return super()._in_place(features.clone())


def _activated(channels: int, *layers: nn.Module) -> nn.Sequential:
    """Return the layers behind instance norm and leaky ReLU."""
    return nn.Sequential(_Norm(channels, affine=True), nn.LeakyReLU(SLOPE, inplace=True), *layers)


def _convolution(
    inputs: int, outputs: int, flat: bool, stride: tuple[int, int, int] = (1, 1, 1)
) -> nn.Conv3d:
    kernel = (1, 3, 3) if flat else (3, 3, 3)
    padding = (0, 1, 1) if flat else (1, 1, 1)
    return nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=padding)


def _step(flat: bool) -> tuple[int, int, int]:
    return (1, 2, 2) if flat else (2, 2, 2)


def _dropout(level: int) -> float:
    return DROPOUT if level >= 2 else 0.0
