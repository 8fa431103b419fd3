"""STU-Net: residual 3D U-Nets of four sizes, published for the 104 structures of TotalSegmentator.

Paper: Huang et al., arXiv 2304.06716. Sizes, keys and strides follow the published files. No tensor
shape depends on the strides, so wrong strides load without an error and give wrong masks: they
are part of the variant. Axes are (z, y, x); an engine normalises the patch before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from napari_openmedlab.models.networks.instance_norm import InstanceNorm3d
from napari_openmedlab.models.networks.point_convolution import PointConv3d

__all__ = ["STUNet", "build_base", "build_huge", "build_large", "build_small"]

Strides = Sequence[Sequence[int]]

PUBLISHED_STRIDES = ((2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 2))
STEPS = 5  # downsamplings from the patch to the bottleneck
CLASSES = 105  # 104 structures and the background
SLOPE = 0.01
EPSILON = 1e-5


def build_small(
    in_channels: int = 1,
    out_channels: int = CLASSES,
    strides: str | Strides = "published",
    deep_supervision: bool = False,
) -> STUNet:
    """Build STU-Net-S: one block a stage, 16 to 256 channels.

    Parameters
    ----------
    in_channels : int
        Image channels; 1 as published.
    out_channels : int
        Classes with the background; 105 as published.
    strides : "published" or sequence of 5 triples of int
        Downsampling (z, y, x) of each step. ``"published"`` is four times (2, 2, 2), then
        (1, 1, 2): the TotalSegmentator weights.
    deep_supervision : bool
        Start value of the attribute of :class:`STUNet`.

    Returns
    -------
    STUNet
        130 state-dict entries; 14,596,941 parameters with 1 channel and 105 classes.

    Raises
    ------
    ValueError
        For counts below 1, or strides that are not 5 triples of numbers from 1 on.
    """
    return _build(16, 1, (in_channels, out_channels), strides, deep_supervision)


def build_base(
    in_channels: int = 1,
    out_channels: int = CLASSES,
    strides: str | Strides = "published",
    deep_supervision: bool = False,
) -> STUNet:
    """Build STU-Net-B: one block a stage, 32 to 512 channels, 58,262,669 parameters.

    Parameters, return value and errors are those of :func:`build_small`; 130 entries.
    """
    return _build(32, 1, (in_channels, out_channels), strides, deep_supervision)


def build_large(
    in_channels: int = 1,
    out_channels: int = CLASSES,
    strides: str | Strides = "published",
    deep_supervision: bool = False,
) -> STUNet:
    """Build STU-Net-L: two blocks a stage, 64 to 1024 channels, 440,302,605 parameters.

    Parameters, return value and errors are those of :func:`build_small`; 218 entries.
    """
    return _build(64, 2, (in_channels, out_channels), strides, deep_supervision)


def build_huge(
    in_channels: int = 1,
    out_channels: int = CLASSES,
    strides: str | Strides = "published",
    deep_supervision: bool = False,
) -> STUNet:
    """Build STU-Net-H: three blocks a stage, 96 to 1536 channels, 1,457,326,221 parameters.

    Parameters, return value and errors are those of :func:`build_small`; 306 entries.
    """
    return _build(96, 3, (in_channels, out_channels), strides, deep_supervision)


def _build(
    width: int,
    blocks: int,
    channels: tuple[int, int],
    strides: str | Strides,
    deep_supervision: bool,
) -> STUNet:
    if isinstance(strides, str):
        if strides != "published":
            raise ValueError(f"strides are 'published' or five triples, not '{strides}'")
        strides = PUBLISHED_STRIDES
    widths = [width * factor for factor in (1, 2, 4, 8, 16, 16)]
    network = STUNet(*channels, widths=widths, blocks=blocks, strides=strides)
    network.deep_supervision = deep_supervision
    return network


class STUNet(nn.Module):
    """Residual U-Net: six stages down, five up, one head at each step up.

    Parameters
    ----------
    in_channels : int
        Image channels.
    out_channels : int
        Classes with the background.
    widths : sequence of 6 int
        Channels of the stages, full resolution first.
    blocks : int
        Residual blocks in every stage, down and up.
    strides : sequence of 5 triples of int
        Downsampling (z, y, x) of each step.

    Attributes
    ----------
    deep_supervision : bool
        False: :meth:`forward` returns the full-resolution logits and computes no other head.
        True, for training: it returns all five heads.
    strides : tuple of tuple of int
        As given.
    multiple : tuple of int
        Every edge (z, y, x) of a patch is a multiple of this; (16, 16, 32) with the published
        strides.
    memory_format : torch.memory_format
        The faster layout on the CPU: 3.5 s instead of 4.2 s of processor time for S at 128^3 on
        one thread, because it lets 1x1x1 convolutions run as matrix products.
        An engine may convert the network once with
        ``network.to(memory_format=network.memory_format)``; patches need no conversion.

    Raises
    ------
    ValueError
        For counts below 1, not six widths, or strides that are not 5 triples from 1 on.
    """

    memory_format = torch.channels_last_3d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int],
        blocks: int,
        strides: Strides = PUBLISHED_STRIDES,
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels, blocks, *widths) < 1:
            raise ValueError("channels, classes, blocks and widths all start at 1")
        if len(widths) != STEPS + 1:
            raise ValueError(f"STU-Net has {STEPS + 1} stages, so as many widths: {list(widths)}")
        self.deep_supervision = False
        self.strides = _checked(strides)
        self.multiple = tuple(
            stride[0] * stride[1] * stride[2] * stride[3] * stride[4]
            for stride in zip(*self.strides, strict=True)
        )
        unit = (1, 1, 1)
        upward = range(STEPS - 1, -1, -1)  # levels of the decoder steps
        # The order of these attributes is the order of the published keys.
        self.conv_blocks_context = nn.ModuleList([_stage(in_channels, widths[0], unit, blocks)])
        for level, stride in enumerate(self.strides):
            self.conv_blocks_context.append(
                _stage(widths[level], widths[level + 1], stride, blocks)
            )
        self.upsample_layers = nn.ModuleList(
            _Upsample(widths[d + 1], widths[d], self.strides[d]) for d in upward
        )
        self.conv_blocks_localization = nn.ModuleList(
            _stage(2 * widths[d], widths[d], unit, blocks) for d in upward
        )
        self.seg_outputs = nn.ModuleList(PointConv3d(widths[d], out_channels) for d in upward)

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
            tuple, full resolution first, then each coarser decoder step on its own grid.

        Raises
        ------
        ValueError
            For a patch with other edges, or one that leaves a single voxel at the bottom.
        """
        if not self.deep_supervision:
            return self.seg_outputs[-1](self.features(patch))
        heads = [
            head(features)
            for head, features in zip(self.seg_outputs, self._decoded(patch), strict=True)
        ]
        return tuple(reversed(heads))

    def features(self, patch: torch.Tensor) -> torch.Tensor:
        """Return what the last head works on: (B, widths[0], Z, Y, X) of a patch.

        ``seg_outputs[-1]`` makes the logits of them voxel by voxel, so they can be made a few
        rows at a time; all at once they are several times larger than the features.
        """
        for features in self._decoded(patch):  # noqa: B007
            pass
        return features

    def _decoded(self, patch: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield what each head works on, coarsest first."""
        self._check(patch)
        features, skips = patch, []
        for stage in self.conv_blocks_context:
            features = stage(features)
            skips.append(features)
        skips.pop()
        for step, stage in enumerate(self.conv_blocks_localization):
            features = self.upsample_layers[step](features)
            features = self.joined(features, skips.pop())
            for block in stage:  # one by one: frees its input
                features = block(features)
            yield features

    def joined(self, upsampled: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Return what a decoder stage works on: the upsampled features first, then the skip."""
        return torch.cat((upsampled, skip), dim=1)

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


class _Block(nn.Module):
    """Two convolutions with instance norm; the input joins before the last activation."""

    def __init__(
        self, inputs: int, outputs: int, stride: tuple[int, ...], projection: bool
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1)
        self.norm1 = InstanceNorm3d(outputs, eps=EPSILON, affine=True)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1)
        self.norm2 = InstanceNorm3d(outputs, eps=EPSILON, affine=True)
        self.conv3 = PointConv3d(inputs, outputs, stride) if projection else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs, ...) activations."""
        inner = functional.leaky_relu_(self.norm1(self.conv1(features)), SLOPE)
        inner = self.norm2(self.conv2(inner))
        inner += features if self.conv3 is None else self.conv3(features)
        return functional.leaky_relu_(inner, SLOPE)


class _Upsample(nn.Module):
    """1x1x1 convolution, then nearest-neighbour upsampling.

    Upstream upsamples first. A 1x1x1 convolution of repeated voxels gives the repeated result,
    so this is the same with an eighth of the work.
    """

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = tuple(float(step) for step in stride)
        self.conv = PointConv3d(inputs, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs, ...) features on the finer grid."""
        return functional.interpolate(self.conv(features), scale_factor=self.stride, mode="nearest")


def _stage(inputs: int, outputs: int, stride: tuple[int, ...], blocks: int) -> nn.Sequential:
    """Return residual blocks in a row; the first changes channels and grid."""
    first = _Block(inputs, outputs, stride, projection=True)
    more = (_Block(outputs, outputs, (1, 1, 1), projection=False) for _ in range(blocks - 1))
    return nn.Sequential(first, *more)


def _checked(strides: Strides) -> tuple[tuple[int, ...], ...]:
    found = tuple(tuple(stride) for stride in strides)
    triples = len(found) == STEPS and all(len(stride) == 3 for stride in found)
    if not triples or any(not isinstance(n, int) or n < 1 for stride in found for n in stride):
        raise ValueError(f"STU-Net takes {STEPS} strides of three numbers from 1 on, not {found}")
    return found
