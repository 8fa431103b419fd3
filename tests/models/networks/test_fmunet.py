"""FMUNet equals the published network in its three resolution modes."""

import pytest
import torch
from golden_networks import largest_difference, shapes_of
from mis_fm_cases import TOLERANCE, case_of, filled, is_caught, params_of, published_keys
from torch import nn

from napari_openmedlab.models import networks
from napari_openmedlab.models.networks import fmunet

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
VARIANTS = ["fmunet_r0_c5", "fmunet_r0_c2", "fmunet_r1_c3", "fmunet_r2_c3", "fmunet_mini"]


@pytest.fixture
def mini(golden):
    return case_of(golden, "fmunet_mini")


@pytest.mark.parametrize("name", VARIANTS)
def test_keys_of_the_published_file_and_its_variants(golden, name):
    wanted, parameters = published_keys(golden, name)
    network = networks.build("fmunet", device="meta", **params_of(golden, name))
    assert shapes_of(network) == wanted
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_published_values_are_the_default(golden):
    network = networks.build("fmunet", device="meta")
    assert shapes_of(network) == published_keys(golden, "fmunet_r0_c5")[0]


@LAYOUTS
@pytest.mark.parametrize("name", ["fmunet_mini", "fmunet_r1_c3", "fmunet_r2_c3"])
def test_numbers(golden, name, layout):
    case = case_of(golden, name)
    found = case.differences(case.network().to(memory_format=layout))
    assert len(found) == (18 if name == "fmunet_mini" else 3)
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("name", VARIANTS)
def test_all_numbers(golden, full_golden, name):
    case = case_of(golden, name, full_golden)
    network = case.network()
    found = case.differences(network.to(memory_format=network.memory_format))
    assert len(found) == 18
    assert max(found.values()) < TOLERANCE, found


def test_a_meta_build_is_complete_once_loaded(mini):
    network = mini.network()
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))


def test_several_heads_for_training(mini):
    network = mini.network()
    assert network.deep_supervision is False
    with torch.inference_mode():
        alone = network(mini.patch)
        network.deep_supervision = True
        heads = network(mini.patch)
    assert [head.shape[-1] for head in heads] == [32, 16, 8, 4]
    assert torch.equal(alone, heads[0])


@LAYOUTS
def test_with_gradients_the_numbers_are_the_same(mini, layout):
    network = mini.network().to(memory_format=layout)
    trained = network(mini.patch)
    trained.square().mean().backward()
    with torch.inference_mode():
        assert largest_difference(network(mini.patch), trained.detach()) < TOLERANCE


def test_training_reaches_every_weight_and_drops_features(mini):
    network = mini.network().train()
    network.deep_supervision = True
    heads = network(mini.patch)
    sum(head.square().mean() for head in heads).backward()
    assert all(weight.grad is not None for weight in network.parameters())
    assert not torch.equal(heads[0], network(mini.patch)[0])


@pytest.mark.parametrize(
    ("mode", "edges", "multiple"),
    [
        (0, (40, 32, 32), "16 x 16 x 16"),
        (1, (12, 32, 32), "8 x 16 x 16"),
        (2, (6, 32, 32), "4 x 16 x 16"),
        (2, (8, 32, 24), "4 x 16 x 16"),
        (0, (0, 16, 16), "16 x 16 x 16"),
    ],
)
def test_patches_that_do_not_fit_are_refused(mode, edges, multiple):
    network = networks.build("fmunet", resolution_mode=mode, channels=[2] * 5)
    assert " x ".join(map(str, network.multiple)) == multiple
    with pytest.raises(ValueError, match=f"multiples of {multiple}"):
        network(torch.zeros(1, 1, *edges))


def test_a_patch_with_one_voxel_at_the_bottom_is_refused():
    network = networks.build("fmunet", resolution_mode=1, channels=[2] * 5)
    with pytest.raises(ValueError, match="too small"):
        network(torch.zeros(1, 1, 8, 16, 16))
    assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 5, 16, 16, 16)


@pytest.mark.parametrize(
    "variant",
    [{"resolution_mode": 3}, {"channels": [8] * 4}, {"channels": [0] * 5}, {"out_channels": 0}],
)
def test_impossible_variants(variant):
    with pytest.raises(ValueError, match=r"resolution mode 3|at least one channel"):
        networks.build("fmunet", device="meta", **variant)


def test_bfloat16_moves_the_logits_little(mini):
    """By 3.3 % of their spread on average, 0.2 at most; 1 % of the voxels change class.

    Measured with stand-in weights, whose logits lie closer together than trained ones'.
    """
    found, wanted = in_bfloat16(mini)
    off = (found - wanted).abs()
    assert off.mean() / wanted.std() < 0.05
    assert off.max() < 0.4
    assert (found.argmax(1) != wanted.argmax(1)).float().mean() < 0.03


@torch.inference_mode()
def in_bfloat16(case):
    network = case.network()
    with torch.autocast("cpu", torch.bfloat16):
        found = network(case.patch).float()
    return found, network(case.patch)


# Deliberate faults: each must move the numbers well beyond the tolerance.


def test_fault_corners_not_aligned(mini):
    network = mini.network()
    for module in network.modules():
        if isinstance(module, nn.Upsample):
            module.align_corners = False
    assert is_caught(mini.differences(network))


def test_fault_coarse_features_first(mini, monkeypatch):
    def swapped(self, coarse, fine):
        return self.conv(torch.cat((self.up(coarse), fine), dim=1))

    monkeypatch.setattr(fmunet._UpCat, "forward", swapped)
    assert is_caught(mini.differences(mini.network()))


def test_fault_plain_relu(mini):
    network = mini.network()
    for module in network.modules():
        if isinstance(module, nn.LeakyReLU):
            module.negative_slope = 0.0
    assert is_caught(mini.differences(network))


def test_fault_one_residual_missing(mini, monkeypatch):
    network = mini.network()
    block = network.get_submodule("encoder.en_conv0")
    plain = nn.Sequential(*block.conv_list)
    monkeypatch.setattr(block, "forward", plain.forward)
    assert is_caught(mini.differences(network))


def test_fault_no_block_at_the_bottom(mini):
    network = mini.network()
    network.decoder.de_conv4 = nn.Identity()
    assert is_caught(mini.differences(network))


def test_weights_of_another_resolution_mode_do_not_fit(golden):
    wanted = filled("fmunet", **params_of(golden, "fmunet_mini")).state_dict()
    other = networks.build(
        "fmunet", channels=[8, 16, 24, 32, 48], out_channels=2, resolution_mode=1
    )
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(wanted)
