"""Axon-Seg's network: a 3D U-Net of nnU-Net's form, with axial attention in the decoder.

Published by D-LMBmap (Nature Methods 2023, 10.1038/s41592-023-01998-6) for axons in light-sheet
volumes. Two layouts share the class: ``axon-seg`` with axial attention and ``axon-seg-plain``
without it. Axes are (z, y, x); an engine normalises the patch before.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from napari_openmedlab.models.networks.axon_seg_attention import AxialAttention, AxialEmbedding
from napari_openmedlab.models.networks.instance_norm import InstanceNorm3d

__all__ = ["AxonSeg", "build_axial", "build_plain"]

PUBLISHED_PATCH = 128
STEPS = 5  # halvings from the patch to the bottleneck
BASE_CHANNELS = 32
LARGEST_CHANNELS = 320
BASE_HEADS = 2  # at level d: 2 * 2**d heads ...
BASE_HEAD_WIDTH = 8  # ... of 8 * 2**d hidden channels each
SLOPE = 0.01
EPSILON = 1e-5


def build_axial(
    patch_size: int = PUBLISHED_PATCH, *, in_channels: int = 1, classes: int = 2
) -> AxonSeg:
    """Build the network with axial attention at the decoder levels 4, 3, 2 and 1.

    Parameters
    ----------
    patch_size : int
        Edge of the input cube in voxels, a multiple of 32 from 64 on. 128 as published; the learned
        position lengths fix it (``axial_embedding.3.param_0`` holds half of it).
    in_channels : int
        Image channels; 1 as published.
    classes : int
        Output channels with the background; 2 as published.

    Returns
    -------
    AxonSeg
        158 state-dict entries; 50,558,368 parameters at the published size.

    Raises
    ------
    ValueError
        For a patch size that is no multiple of 32 from 64 on, or counts below 1.
    """
    return AxonSeg(in_channels, classes, patch_size)


def build_plain(*, in_channels: int = 1, classes: int = 2) -> AxonSeg:
    """Build the same network without axial attention (upstream's "normal U-Net").

    Parameters
    ----------
    in_channels, classes : int
        As in :func:`build_axial`.

    Returns
    -------
    AxonSeg
        98 state-dict entries; 31,194,784 parameters. It takes any patch whose edges are
        multiples of 32, one of them more than 32; 128 in training.

    Raises
    ------
    ValueError
        For counts below 1.
    """
    return AxonSeg(in_channels, classes)


class AxonSeg(nn.Module):
    """U-Net of six levels: two units a level, stride-2 convolutions down, transposed ones up.

    Parameters
    ----------
    in_channels : int
        Image channels.
    classes : int
        Output channels.
    patch_size : int, optional
        Edge of the input cube for the layout with axial attention; None for the plain layout.

    Attributes
    ----------
    deep_supervision : bool
        False: :meth:`forward` returns the logits alone and computes no other head. True, for
        training: it returns all five heads.
    patch_size : int or None
        As given.
    memory_format : torch.memory_format
        The layout that was faster where it was measured (CPU: 10.5 s instead of 12.8 s for
        128^3 on one thread, and 0.2 GB less memory). An engine may convert the network once
        with ``network.to(memory_format=network.memory_format)``; patches need no conversion.

    Raises
    ------
    ValueError
        For a patch size that is no multiple of 32 from 64 on, or counts below 1.
    """

    memory_format = torch.channels_last_3d

    def __init__(self, in_channels: int, classes: int, patch_size: int | None = None) -> None:
        super().__init__()
        if min(in_channels, classes) < 1:
            raise ValueError(f"{in_channels} image channels and {classes} classes: both start at 1")
        if patch_size is not None and (patch_size < 64 or patch_size % 2**STEPS):
            raise ValueError(f"the patch size {patch_size} is not a multiple of 32 from 64 on")
        self.deep_supervision = False
        self.patch_size = patch_size
        widths = [min(BASE_CHANNELS * 2**level, LARGEST_CHANNELS) for level in range(STEPS + 1)]
        upward = range(STEPS - 1, -1, -1)  # levels of the decoder steps
        # The order of these attributes is the order of the published keys.
        self.conv_blocks_localization = nn.ModuleList(
            _two_stacks(2 * widths[d], widths[d], widths[d]) for d in upward
        )
        self.conv_blocks_context = nn.ModuleList([_Stack(in_channels, widths[0], units=2)])
        for level in range(1, STEPS):
            self.conv_blocks_context.append(
                _Stack(widths[level - 1], widths[level], stride=2, units=2)
            )
        self.conv_blocks_context.append(_two_stacks(widths[-2], widths[-1], widths[-1], stride=2))
        self.tu = nn.ModuleList(
            nn.ConvTranspose3d(widths[d + 1], widths[d], 2, stride=2, bias=False) for d in upward
        )
        self.seg_outputs = nn.ModuleList(
            nn.Conv3d(widths[d], classes, 1, bias=False) for d in upward
        )
        self.axial_embedding, self.axial_attention = nn.ModuleList(), nn.ModuleList()
        if patch_size is not None:
            for d in range(STEPS - 1, 0, -1):  # none at full resolution
                self.axial_embedding.append(AxialEmbedding(widths[d], patch_size // 2**d))
                self.axial_attention.append(
                    AxialAttention(widths[d], BASE_HEADS * 2**d, BASE_HEAD_WIDTH * 2**d)
                )

    def forward(self, patch: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return class logits of a normalised patch.

        Parameters
        ----------
        patch : torch.Tensor
            (B, in_channels, Z, Y, X), float, axes (z, y, x). Every edge equals ``patch_size``
            in the axial layout, else it is a multiple of 32.

        Returns
        -------
        torch.Tensor or tuple of torch.Tensor
            (B, classes, Z, Y, X) logits; softmax over axis 1, class 1 is axon. With
            ``deep_supervision`` a tuple: the same at full, 1/2, 1/4, 1/8 and 1/16 resolution.

        Raises
        ------
        ValueError
            For a patch of another size.
        """
        self._check(patch)
        features, skips = patch, []
        for stage in self.conv_blocks_context:
            features = stage(features)
            skips.append(features)
        skips.pop()
        heads = []
        for step in range(STEPS):
            features = self.upsampled(step, features)
            features = torch.cat((features, skips.pop()), dim=1)
            for stack in self.conv_blocks_localization[step]:  # one by one: frees its input
                features = stack(features)
            if self.deep_supervision or step == STEPS - 1:
                heads.append(self.seg_outputs[step](features))
        return tuple(reversed(heads)) if self.deep_supervision else heads[0]

    def upsampled(self, step: int, features: torch.Tensor) -> torch.Tensor:
        """Return the features of decoder step ``step`` (0 is deepest) before the skip joins."""
        features = self.tu[step](features)
        if step < len(self.axial_attention):
            embedded = self.axial_embedding[step](features)
            features = features + self.axial_attention[step](embedded)
        return features

    def _check(self, patch: torch.Tensor) -> None:
        edges = tuple(patch.shape[2:])
        if self.patch_size is not None and edges != (self.patch_size,) * 3:
            raise ValueError(
                f"a patch of {edges} voxels: this network takes {self.patch_size} along z, y and x"
            )
        if len(edges) != 3 or any(edge < 1 or edge % 2**STEPS for edge in edges):
            raise ValueError(f"a patch of {edges} voxels: each edge must be a multiple of 32")
        if max(edges) == 2**STEPS:  # instance norm has no spread to divide by
            raise ValueError(f"a patch of {edges} voxels has one voxel at the bottom: too small")


class _Unit(nn.Module):
    """Convolution 3x3x3, instance norm with scale and shift, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1)
        self.instnorm = InstanceNorm3d(outputs, eps=EPSILON, affine=True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs, ...) activations."""
        return functional.leaky_relu_(self.instnorm(self.conv(features)), SLOPE)


class _Stack(nn.Module):
    """Units in a row; the first may halve the grid."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, units: int = 1) -> None:
        super().__init__()
        first = _Unit(inputs, outputs, stride)
        self.blocks = nn.Sequential(first, *(_Unit(outputs, outputs) for _ in range(units - 1)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs, ...) activations."""
        return self.blocks(features)


def _two_stacks(inputs: int, middle: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Two stacks of one unit: the form of the bottleneck and of every decoder step."""
    return nn.Sequential(_Stack(inputs, middle, stride), _Stack(middle, outputs))
