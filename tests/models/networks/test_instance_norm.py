"""The instance norm of our own: exact in both layouts, and torch's numbers with gradients."""

import pytest
import torch
from golden_networks import largest_difference
from torch import nn

from napari_openmedlab.models.networks.instance_norm import InstanceNorm3d

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])


def features_of(layout, edge=96, batch=2, channels=3):
    random = torch.Generator().manual_seed(3)
    features = torch.randn(batch, channels, edge, edge, edge, generator=random)
    features = features * torch.tensor([0.01, 1.0, 40.0]).view(1, 3, 1, 1, 1) + 5.0
    return features.contiguous(memory_format=layout)


def exact(layer, features):
    with torch.enable_grad():  # torch's own form
        return nn.InstanceNorm3d.forward(layer.double(), features.double()).detach()


@LAYOUTS
@pytest.mark.parametrize("affine", [False, True])
def test_equals_double_precision_and_keeps_the_layout(layout, affine):
    layer = InstanceNorm3d(3, affine=affine)
    if affine:
        layer.weight.data, layer.bias.data = torch.rand(3) + 0.5, torch.randn(3)
    features = features_of(layout)
    wanted = exact(layer, features)
    with torch.inference_mode():
        found = layer.float()(features.clone(memory_format=torch.preserve_format))
    assert found.is_contiguous(memory_format=layout)
    # The channel of spread 0.01 around 5 has only about 14 bits left in float32.
    assert largest_difference(found[:, :1], wanted[:, :1]) < 2e-3
    assert largest_difference(found[:, 1:], wanted[:, 1:]) < 1e-5


@LAYOUTS
def test_without_gradients_equals_with(layout):
    layer = InstanceNorm3d(3, affine=True)
    features = features_of(layout, edge=12)
    trained = layer(features)
    trained.sum().backward()
    assert layer.bias.grad is not None
    with torch.inference_mode():
        found = layer(features.clone(memory_format=torch.preserve_format))
    assert largest_difference(found[:, 1:], trained.detach()[:, 1:]) < 1e-5


def test_takes_other_precisions():
    layer = InstanceNorm3d(3, affine=True)
    features = features_of(torch.channels_last_3d, edge=8).bfloat16()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = layer(features)
    wanted = exact(layer, features)
    assert largest_difference(found[:, 1:], wanted[:, 1:]) < 0.05
