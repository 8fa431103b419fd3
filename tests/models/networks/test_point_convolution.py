"""The 1x1x1 convolution of our own gives torch's numbers in both layouts."""

import pytest
import torch
from golden_networks import largest_difference
from torch import nn

from napari_openmedlab.models.networks.point_convolution import PointConv3d


def features_of(layout, channels=6):
    random = torch.Generator().manual_seed(4)
    features = torch.randn(2, channels, 6, 8, 10, generator=random)
    return features.contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 1, 2)])
@pytest.mark.parametrize("channels", [6, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_torch(layout, stride, channels, bias):
    layer = PointConv3d(channels, 5, stride, bias=bias).to(memory_format=layout)
    features = features_of(layout, channels)
    wanted = nn.Conv3d.forward(layer, features).detach()
    with torch.inference_mode():
        found = layer(features)
    assert found.is_contiguous(memory_format=layout) or channels == 1
    assert largest_difference(found, wanted) < 1e-6


def test_trains_and_takes_other_precisions():
    layer = PointConv3d(6, 5).to(memory_format=torch.channels_last_3d)
    features = features_of(torch.channels_last_3d)
    layer(features).sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert layer(features).dtype == torch.bfloat16
