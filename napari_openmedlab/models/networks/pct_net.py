"""PCT-Net: MIS-FM's pyramid of convolutions and Swin transformers, pre-trained by volume fusion.

Paper: Wang et al., IEEE TIP 2025, 10.1109/TIP.2025.3610249; code openmedlab/MIS-FM. The published
weights solve a pretext task (five mixing levels, no anatomy): they are a start for training on own
labels. Axes are (z, y, x); an engine normalises the patch before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from napari_openmedlab.models.networks.pct_net_attention import PUBLISHED_WINDOW
from napari_openmedlab.models.networks.pct_net_parts import (
    ConvBlock,
    ConvTransBlock,
    Down,
    Head,
    UpCat,
    convolution,
)

__all__ = ["PCTNet", "build_pct_net"]

PUBLISHED_CHANNELS = (24, 48, 128, 256, 512)
HEADS = (4, 8, 16)  # attention heads at the levels 2, 3 and 4
# Resolution mode -> whether the levels 0 and 1 are flat (no kernel and no step along z).
FLAT_LEVELS = ((False, False), (True, False), (True, True))


def build_pct_net(
    in_channels: int = 1,
    out_channels: int = 5,
    resolution_mode: int = 1,
    channels: Sequence[int] = PUBLISHED_CHANNELS,
    windows: Sequence[int] = (PUBLISHED_WINDOW,) * 3,
) -> PCTNet:
    """Build PCT-Net.

    Parameters
    ----------
    in_channels : int
        Image channels; 1 as published.
    out_channels : int
        Classes with the background; 5 as published (the pretext task).
    resolution_mode : {0, 1, 2}
        0: near-isotropic voxels; 1: level 0 works slice by slice, as published; 2: levels 0 and 1
        do, for thick slices. The weights hold all three stems and heads; no shape depends on it.
    channels : sequence of 5 int
        Channels of the levels, full resolution first; the last three are multiples of 4, 8, 16.
    windows : sequence of 3 int
        Edge in voxels of the attention windows at the levels 2, 3 and 4, from 1 to 6; all 6 as
        published. Smaller ones come from training on patches smaller than ``smallest``.

    Returns
    -------
    PCTNet
        684 state-dict entries; 45,289,554 parameters with the default values.

    Raises
    ------
    ValueError
        For counts below 1, another number of levels, another mode, or such windows or channels.
    """
    return PCTNet(in_channels, out_channels, resolution_mode, channels, windows)


class PCTNet(nn.Module):
    """Stem and head chosen by voxel shape around a trunk of convolutions and transformers.

    Parameters
    ----------
    in_channels, out_channels, resolution_mode, channels, windows
        As in :func:`build_pct_net`.

    Attributes
    ----------
    deep_supervision : bool
        False: :meth:`forward` returns the full-resolution logits and computes no other head.
        True, for training: it returns the heads of the levels 0 to 3.
    resolution_mode : int
        Which stem and head run.
    multiple : tuple of int
        Every edge (z, y, x) of a patch is a multiple of this: (16, 16, 16), (8, 16, 16) or
        (4, 16, 16) in mode 0, 1 and 2.
    smallest : tuple of int
        The smallest patch the windows fit, (48, 96, 96) in mode 1 as published. At exactly six
        voxels at level 4 nothing is shifted there, as in the published network.
    memory_format : torch.memory_format
        The faster layout on the CPU: 8.0 s instead of 10.6 s of processor time for 64x128x128 on
        one thread. An engine may convert the network once with
        ``network.to(memory_format=network.memory_format)``; patches need no conversion.

    Raises
    ------
    ValueError
        As in :func:`build_pct_net`.
    """

    memory_format = torch.channels_last_3d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution_mode: int = 1,
        channels: Sequence[int] = PUBLISHED_CHANNELS,
        windows: Sequence[int] = (PUBLISHED_WINDOW,) * 3,
    ) -> None:
        super().__init__()
        _check_variant((in_channels, out_channels), resolution_mode, channels, windows)
        self.deep_supervision = False
        self.resolution_mode = resolution_mode
        self.windows = tuple(windows)
        self.embeddings = nn.ModuleList(_Stem(in_channels, channels, flat) for flat in FLAT_LEVELS)
        self.pyramid_ct = _Trunk(channels[2:], windows, out_channels)
        self.pred_heads = nn.ModuleList(
            _PredictionHead(channels, out_channels, flat) for flat in FLAT_LEVELS
        )

    @property
    def multiple(self) -> tuple[int, int, int]:
        """Edges (z, y, x) of a patch are multiples of this."""
        return (2 ** (4 - sum(FLAT_LEVELS[self.resolution_mode])), 16, 16)

    @property
    def smallest(self) -> tuple[int, int, int]:
        """Edges (z, y, x) of the smallest patch whose windows fit the weights."""
        # A level's grid is twice the next one's.
        coarse = max(-(-self.windows[k] // 2 ** (2 - k)) for k in range(3))
        z, y, x = (unit * coarse for unit in self.multiple)
        return (z, y, x)

    def forward(self, patch: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return class logits of a normalised patch.

        Parameters
        ----------
        patch : torch.Tensor
            (B, in_channels, Z, Y, X), float, axes (z, y, x); edges are multiples of ``multiple``
            from ``smallest`` on. The attention grids follow from the patch.

        Returns
        -------
        torch.Tensor or tuple of torch.Tensor
            (B, out_channels, Z, Y, X) logits, softmax over axis 1. With ``deep_supervision`` a
            tuple, full resolution first, then the levels 1, 2 and 3 on their own grids.

        Raises
        ------
        ValueError
            For a patch with other edges.
        """
        self._check(patch)
        fine, middle, coarse = self.embeddings[self.resolution_mode](patch)
        level2, level3 = self.pyramid_ct(coarse)
        head = self.pred_heads[self.resolution_mode]
        level1, level0 = head(fine, middle, level2)
        full = head.out_conv0(level0)
        if not self.deep_supervision:
            return full
        return (
            full,
            head.out_conv1(level1),
            self.pyramid_ct.out_conv2(level2),
            self.pyramid_ct.out_conv3(level3),
        )

    def _check(self, patch: torch.Tensor) -> None:
        edges = tuple(patch.shape[2:])
        if len(edges) != 3 or any(
            edge < least or edge % unit
            for edge, least, unit in zip(edges, self.smallest, self.multiple, strict=True)
        ):
            multiple, smallest = (" x ".join(map(str, n)) for n in (self.multiple, self.smallest))
            raise ValueError(
                f"a patch of {edges} voxels: the edges (z, y, x) must be multiples of {multiple}, "
                f"from {smallest} on"
            )


class _Stem(nn.Module):
    """Levels 0 and 1, and the step to level 2."""

    def __init__(self, in_channels: int, channels: Sequence[int], flat: tuple[bool, bool]) -> None:
        super().__init__()
        self.proj = convolution(in_channels, channels[0], flat[0])
        self.conv0 = ConvBlock(channels[0], flat[0])
        self.conv1 = ConvBlock(channels[1], flat[1])
        self.down1 = Down(channels[0], channels[1], flat_step=flat[0], flat=flat[1])
        self.down2 = Down(channels[1], channels[2], flat_step=flat[1])

    def forward(self, patch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the features of level 0, level 1, and what enters level 2."""
        fine = self.conv0(self.proj(patch))
        middle = self.conv1(self.down1(fine))
        return fine, middle, self.down2(middle)


class _Trunk(nn.Module):
    """Levels 2 to 4, down and up again."""

    def __init__(self, channels: Sequence[int], windows: Sequence[int], out_channels: int) -> None:
        super().__init__()
        two, three, four = channels
        self.down3 = Down(two, three)
        self.down4 = Down(three, four)
        self.up3 = UpCat(three, two)
        self.up4 = UpCat(four, three)
        self.convtrans_e2 = ConvTransBlock(two, HEADS[0], windows[0])
        self.convtrans_d2 = ConvTransBlock(two, HEADS[0], windows[0])
        self.convtrans_e3 = ConvTransBlock(three, HEADS[1], windows[1])
        self.convtrans_d3 = ConvTransBlock(three, HEADS[1], windows[1])
        self.convtrans_e4 = ConvTransBlock(four, HEADS[2], windows[2])
        self.out_conv2 = Head(two, out_channels)
        self.out_conv3 = Head(three, out_channels)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of the levels 2 and 3 on the way up."""
        level2 = self.convtrans_e2(features)
        level3 = self.convtrans_e3(self.down3(level2))
        level4 = self.convtrans_e4(self.down4(level3))
        level3 = self.convtrans_d3(self.up4(level3, level4))
        return self.convtrans_d2(self.up3(level2, level3)), level3


class _PredictionHead(nn.Module):
    """From level 2 up to full resolution."""

    def __init__(self, channels: Sequence[int], out_channels: int, flat: tuple[bool, bool]) -> None:
        super().__init__()
        self.up1 = UpCat(channels[1], channels[0], flat_step=flat[0], flat=flat[0])
        self.up2 = UpCat(channels[2], channels[1], flat_step=flat[1], flat=flat[1])
        self.conv0 = ConvBlock(channels[0], flat[0])
        self.conv1 = ConvBlock(channels[1], flat[1])
        self.out_conv0 = Head(channels[0], out_channels)
        self.out_conv1 = Head(channels[1], out_channels)

    def forward(
        self, fine: torch.Tensor, middle: torch.Tensor, coarse: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of the levels 1 and 0."""
        level1 = self.conv1(self.up2(middle, coarse))
        return level1, self.conv0(self.up1(fine, level1))


def _check_variant(
    counts: tuple[int, int],
    resolution_mode: int,
    channels: Sequence[int],
    windows: Sequence[int],
) -> None:
    if resolution_mode not in range(len(FLAT_LEVELS)):
        raise ValueError(f"resolution mode {resolution_mode}: there are 0, 1 and 2")
    if len(channels) != 5 or min(*counts, *channels) < 1:
        raise ValueError(f"PCT-Net takes 5 levels of at least one channel, not {list(channels)}")
    if any(width % heads for width, heads in zip(channels[2:], HEADS, strict=True)):
        raise ValueError(f"the last three of the channels {list(channels)} must suit {HEADS} heads")
    if len(windows) != 3 or any(edge not in range(1, PUBLISHED_WINDOW + 1) for edge in windows):
        raise ValueError(f"PCT-Net takes three windows from 1 to 6, not {list(windows)}")
