"""The short form of SAM-Med3D's window attention gives the numbers of the written-out form."""

from __future__ import annotations

import pytest
import torch
from golden_networks import largest_difference, load_filled
from sam_med3d_inputs import volume
from sam_med3d_reference import attend, use_reference

from napari_openmedlab.models.networks.sam_med3d_encoder import (
    ImageEncoder,
    RelativeAttention,
    WindowAttention,
)


def attention_of(kind, strength: float):
    """An attention whose position terms have about the given spread."""
    generator = torch.Generator().manual_seed(7)
    attention = kind()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        for table in (attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w):
            table.mul_(strength)
    return attention.eval(), torch.randn(1, 8, 8, 8, 768, generator=generator)


# The strongest spread makes logits of hundreds: a sum of exponentials without care overflows.
@pytest.mark.parametrize("strength", [0.3, 3.0, 100.0])
@pytest.mark.parametrize("kind", [RelativeAttention, WindowAttention])
def test_one_attention(kind, strength):
    attention, x = attention_of(kind, strength)
    with torch.inference_mode():
        wanted = attend(attention, x)
        assert largest_difference(attention(x), wanted) <= 1e-4
        assert wanted.std() > 0.01


def test_batches_do_not_mix():
    attention, x = attention_of(WindowAttention, 1.0)
    both = torch.cat((x, x.flip(1)))
    with torch.inference_mode():
        found = attention(both)
        assert largest_difference(found[:1], attention(x)) <= 1e-5
        assert largest_difference(found[1:], attention(x.flip(1))) <= 1e-5


@pytest.mark.parametrize("kind", [RelativeAttention, WindowAttention])
def test_gradients_flow_to_every_weight(kind):
    attention, x = attention_of(kind, 1.0)
    attention(x).square().mean().backward()
    for name, parameter in attention.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_gradients_are_those_of_the_written_out_form():
    attention, x = attention_of(RelativeAttention, 1.0)
    found, wanted = (
        torch.autograd.grad(run(x).square().mean(), attention.rel_pos_h)[0]
        for run in (attention, lambda x: attend(attention, x))
    )
    assert largest_difference(found, wanted) <= 1e-6


@pytest.mark.slow
def test_the_whole_encoder_is_equal():
    with torch.device("meta"):
        encoder = ImageEncoder()
    load_filled(encoder, prefix="image_encoder.")
    with torch.inference_mode():
        found = encoder(volume(1234))
        with use_reference(encoder):
            wanted = encoder(volume(1234))
    assert largest_difference(found, wanted) <= 1e-4
