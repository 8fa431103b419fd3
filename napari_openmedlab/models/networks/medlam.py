"""MedLAM's network: where in the body a patch lies, and features to match its surroundings.

One encoder serves two ends. The position head gives a coordinate embedding of a 64^3 patch; it
needs the encoder alone (a tenth of the work). The decoder gives feature maps at three scales;
it runs only as far as the finest scale asked for. Patches are CT at 3 mm, normalised to 0..1,
axes (z, y, x) with z to Superior, y to Anterior, x to patient Left.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from napari_openmedlab.models.networks.instance_norm import InstanceNorm3d

__all__ = ["MedLAM", "MedLAMOutput", "build_medlam"]

PATCH = 64
LEVELS = 5  # grids of 64, 32, 16, 8 and 4 voxels
SCALES = (0, 1, 2)  # feature0 at 16^3, feature1 at 32^3, feature2 at 64^3
POSITIONS = 3
EPSILON = 1e-5


class MedLAMOutput(NamedTuple):
    """What one patch gives.

    Attributes
    ----------
    position : torch.Tensor
        (B, 3) coordinate embedding (z, y, x), without unit. R * tanh(target - start), with R =
        (1500, 600, 600) mm, is the offset between two patch centres.
    features : tuple of torch.Tensor
        One map for each scale asked for, in that order: (B, 96, n, n, n) with n = 16, 32 or 64
        for scale 0, 1 or 2; not negative.
    """

    position: torch.Tensor
    features: tuple[torch.Tensor, ...]


def build_medlam(base_channels: int = 24) -> MedLAM:
    """Build MedLAM.

    Parameters
    ----------
    base_channels : int
        Width; 24 as published. Smaller ones serve tests.

    Returns
    -------
    MedLAM
        44 state-dict entries, 15,067,878 parameters at the published width. The published file
        puts ``module.`` before every key; readers strip it.

    Raises
    ------
    ValueError
        For a width below 1.
    """
    return MedLAM(base_channels)


class MedLAM(nn.Module):
    """Encoder-decoder with a position head.

    In half precision take float16, as upstream does: bfloat16 moved positions by 0.04 to 0.09
    where float16 moved them by 0.002 (stand-in weights, CPU); 0.01 is up to 15 mm.

    Parameters
    ----------
    base_channels : int
        Width b. Stages have 2b, 2b, 4b, 8b, 16b channels down and 8b, 4b, 4b, 4b up.

    Attributes
    ----------
    memory_format : torch.memory_format
        The layout that was faster where it was measured (CPU). An engine may convert the
        network once with ``network.to(memory_format=network.memory_format)``; patches need no
        conversion.

    Raises
    ------
    ValueError
        For a width below 1.
    """

    memory_format = torch.channels_last_3d

    def __init__(self, base_channels: int = 24) -> None:
        super().__init__()
        if base_channels < 1:
            raise ValueError(f"a width of {base_channels}: it starts at 1")
        b = base_channels
        self.conv0_1, self.conv0_2 = _Block(1, 2 * b), _Block(2 * b, 2 * b)
        self.conv1_1, self.conv1_2 = _Block(2 * b, 2 * b), _Block(2 * b, 2 * b)
        self.conv2_1, self.conv2_2 = _Block(2 * b, 2 * b), _Block(2 * b, 4 * b)
        self.conv3_1, self.conv3_2 = _Block(4 * b, 4 * b), _Block(4 * b, 8 * b)
        self.conv4_1, self.conv4_2 = _Block(8 * b, 8 * b), _Block(8 * b, 16 * b)
        self.conv5_1, self.conv5_2 = _Block(24 * b, 8 * b), _Block(8 * b, 8 * b)
        self.conv6_1, self.conv6_2 = _Block(12 * b, 4 * b), _Block(4 * b, 4 * b)
        self.conv7_1, self.conv7_2 = _Block(6 * b, 4 * b), _Block(4 * b, 4 * b)
        self.conv8_1, self.conv8_2 = _Block(6 * b, 4 * b), _Block(4 * b, 4 * b)
        self.classification = nn.Sequential(nn.Conv3d(4 * b, 3, 1))
        self.fc1 = nn.Linear(16 * b * (PATCH >> (LEVELS - 1)) ** 3, 8 * b)
        self.fc2 = nn.Linear(8 * b, 4 * b)
        self.fc3 = nn.Linear(4 * b, POSITIONS)
        self.down = nn.MaxPool3d(2)
        self.up = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)
        self.dropout = nn.Dropout(0.2)  # in training only

    def forward(self, patches: torch.Tensor, scales: Sequence[int] = SCALES) -> MedLAMOutput:
        """Return position and features of each patch (what a template needs).

        Parameters
        ----------
        patches : torch.Tensor
            (B, 1, 64, 64, 64), float; outside the scan 0 (air). Patches don't influence each
            other.
        scales : sequence of {0, 1, 2}
            Feature scales wanted. Scale 2 costs three quarters of the whole network.

        Returns
        -------
        MedLAMOutput

        Raises
        ------
        ValueError
            For patches of another shape or an unknown scale.
        """
        _check_scales(scales)
        bottleneck, skips = self._encoded(patches)
        return MedLAMOutput(self._located(bottleneck), self._decoded(bottleneck, skips, scales))

    def position(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the (B, 3) coordinate embedding of each patch; the decoder doesn't run.

        Parameters
        ----------
        patches : torch.Tensor
            (B, 1, 64, 64, 64), float.

        Raises
        ------
        ValueError
            For patches of another shape.
        """
        return self._located(self._encoded(patches, keep_skips=False)[0])

    def features(
        self, patches: torch.Tensor, scales: Sequence[int] = SCALES
    ) -> tuple[torch.Tensor, ...]:
        """Return the feature maps of each patch; the position head doesn't run.

        Parameters
        ----------
        patches : torch.Tensor
            (B, 1, 64, 64, 64), float.
        scales : sequence of {0, 1, 2}
            As in :meth:`forward`.

        Raises
        ------
        ValueError
            For patches of another shape or an unknown scale.
        """
        _check_scales(scales)
        bottleneck, skips = self._encoded(patches)
        return self._decoded(bottleneck, skips, scales)

    def unused_probability(self, finest: torch.Tensor) -> torch.Tensor:
        """Return sigmoid of the 1x1x1 classifier on feature2: (B, 96, ...) to (B, 3, ...).

        The published training has no loss on it, so its weights say nothing: no engine should
        use it. It is here because the checkpoint holds it.
        """
        return torch.sigmoid(self.classification(finest))

    def _encoded(
        self, patches: torch.Tensor, keep_skips: bool = True
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        if tuple(patches.shape[1:]) != (1, PATCH, PATCH, PATCH):
            raise ValueError(
                f"patches of shape {tuple(patches.shape)}: MedLAM takes (B, 1, 64, 64, 64)"
            )
        features, skips = patches, []
        for level in range(LEVELS):
            if level:
                features = self.down(features)
            for block in self._stage(level):
                features = block(features)
            if keep_skips and level < LEVELS - 1:
                skips.append(features)
        return self.dropout(features), skips

    def _located(self, bottleneck: torch.Tensor) -> torch.Tensor:
        # Flattened in (C, D, H, W) order, whatever the memory layout; no activations between.
        # In the weights' precision even under autocast: a hundredth here is 15 mm in the body.
        with torch.autocast(bottleneck.device.type, enabled=False):
            flat = bottleneck.flatten(1).to(self.fc1.weight.dtype)
            return self.fc3(self.fc2(self.fc1(flat)))

    def _decoded(
        self, features: torch.Tensor, skips: list[torch.Tensor], scales: Sequence[int]
    ) -> tuple[torch.Tensor, ...]:
        maps: dict[int, torch.Tensor] = {}
        for scale in range(-1, max(scales, default=-2) + 1):  # stage 5 gives no feature map
            features = torch.cat((self.up(features), skips.pop()), dim=1)
            for block in self._stage(LEVELS + 1 + scale):  # one by one: frees its input
                features = block(features)
            maps[scale] = features
        return tuple(maps[scale] for scale in scales)

    def _stage(self, number: int) -> tuple[nn.Module, nn.Module]:
        return getattr(self, f"conv{number}_1"), getattr(self, f"conv{number}_2")


class _Block(nn.Module):
    """Only names: the published keys say ``model.conv1_1.Conv``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.model = nn.Sequential(OrderedDict(conv1_1=_Convolution(inputs, outputs)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs, ...) activations."""
        return self.model(features)


class _Convolution(nn.Module):
    """Convolution 3x3x3, instance norm without scale and shift, ReLU.

    The norm cancels the convolution's bias; the checkpoint holds it all the same.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.Conv = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.norm = InstanceNorm3d(outputs, eps=EPSILON, affine=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs, ...) activations, not negative."""
        return functional.relu_(self.norm(self.Conv(features)))


def _check_scales(scales: Sequence[int]) -> None:
    if unknown := sorted(set(scales) - set(SCALES)):
        raise ValueError(f"there is no feature scale {unknown[0]}; there are 0, 1 and 2")
