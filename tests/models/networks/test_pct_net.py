"""PCT-Net equals the published network, odd position index and shrinking windows included."""

import itertools

import pytest
import torch
from golden_networks import largest_difference, shapes_of
from mis_fm_cases import TOLERANCE, case_of, filled, is_caught, params_of, published_keys
from torch import nn

from napari_openmedlab.models import networks
from napari_openmedlab.models.networks import pct_net_attention, pct_net_parts

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
VARIANTS = ["pctnet_m1_c5", "pctnet_m1_c2", "pctnet_mini"]
NUMBERS = [*VARIANTS, "pctnet_m0_c3", "pctnet_m2_c3"]
SMALL = {"channels": [2, 2, 4, 8, 16], "out_channels": 2}


@pytest.fixture
def mini(golden):
    return case_of(golden, "pctnet_mini")


@pytest.mark.parametrize("name", VARIANTS)
def test_keys_of_the_published_file_and_its_variants(golden, name):
    wanted, parameters = published_keys(golden, name)
    network = networks.build("pct-net", device="meta", **params_of(golden, name))
    assert shapes_of(network) == wanted
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_published_values_are_the_default(golden):
    network = networks.build("pct-net", device="meta")
    assert shapes_of(network) == published_keys(golden, "pctnet_m1_c5")[0]


@LAYOUTS
def test_numbers(mini, layout):
    found = mini.differences(mini.network().to(memory_format=layout))
    assert len(found) == 19
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.slow
@pytest.mark.parametrize("name", NUMBERS)
def test_all_numbers(golden, full_golden, name):
    case = case_of(golden, name, full_golden)
    network = case.network()
    found = case.differences(network.to(memory_format=network.memory_format))
    assert len(found) == 19
    assert max(found.values()) < TOLERANCE, found


def test_a_meta_build_is_complete_once_loaded(mini):
    network = mini.network()
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))


def test_position_index_is_the_published_formula():
    network = networks.build("pct-net", device="meta")
    index = network.pyramid_ct.convtrans_e2.trans.blocks[1].attn.relative_position_index
    assert index.shape == (216, 216)
    assert index.max() == 290  # of 1330
    assert index.unique().numel() == 291
    first = index[0]  # from voxel (0, 0, 0) to (z, y, x)
    for z, y, x in itertools.product((0, 3, 5), repeat=3):
        assert first[36 * z + 6 * y + x] == (5 - z) * 17 + (5 - y) * 11 + 5 - x


def test_several_heads_for_training(mini):
    network = mini.network()
    assert network.deep_supervision is False
    with torch.inference_mode():
        alone = network(mini.patch)
        network.deep_supervision = True
        heads = network(mini.patch)
    edges = [tuple(head.shape[2:]) for head in heads]
    assert edges == [(32, 64, 64), (32, 32, 32), (16, 16, 16), (8, 8, 8)]
    assert torch.equal(alone, heads[0])


def test_samples_of_a_batch_do_not_mix():
    network = filled("pct-net", **SMALL, resolution_mode=2)
    batch = torch.randn(2, 1, 28, 112, 112, generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        both = network(batch)
        for i in range(2):
            assert largest_difference(both[i : i + 1], network(batch[i : i + 1])) < TOLERANCE


def test_training_reaches_every_weight_of_the_mode(mini):
    network = mini.network().train()
    network.deep_supervision = True
    sum(head.square().mean() for head in network(mini.patch)).backward()
    idle = {name for name, weight in network.named_parameters() if weight.grad is None}
    others = ("embeddings.0.", "embeddings.2.", "pred_heads.0.", "pred_heads.2.")
    assert {name for name in idle if not name.startswith(others)} == {
        f"pyramid_ct.convtrans_{level}.norm_layer.{kind}"
        for level in ("e2", "e3", "e4", "d2", "d3")
        for kind in ("weight", "bias")
    }


def test_with_gradients_the_numbers_are_the_same(mini):
    network = mini.network()
    trained = network(mini.patch).detach()
    with torch.inference_mode():
        assert largest_difference(network(mini.patch), trained) < TOLERANCE


def test_drop_path_keeps_the_mean():
    torch.manual_seed(0)
    branch = torch.ones(20000, 2, 1)
    found = pct_net_attention._drop_path(branch, training=True)
    assert set(found.unique().tolist()) == {0.0, 1.25}
    assert torch.equal(found[:, 0], found[:, 1])  # a sample as a whole
    assert abs(found.mean() - 1) < 0.02
    assert pct_net_attention._drop_path(branch, training=False) is branch


@pytest.mark.parametrize(
    ("mode", "multiple", "smallest"),
    [
        (0, (16, 16, 16), (96, 96, 96)),
        (1, (8, 16, 16), (48, 96, 96)),
        (2, (4, 16, 16), (24, 96, 96)),
    ],
)
def test_patches_that_do_not_fit_are_refused(mode, multiple, smallest):
    network = networks.build("pct-net", **SMALL, resolution_mode=mode)
    assert (network.multiple, network.smallest) == (multiple, smallest)
    for axis in range(3):
        for edge in (smallest[axis] - multiple[axis], smallest[axis] + 2, 0):
            edges = list(smallest)
            edges[axis] = edge
            with pytest.raises(ValueError, match=f"multiples of {multiple[0]} x 16 x 16, from"):
                network(torch.zeros(1, 1, *edges))


def test_a_small_window_takes_its_own_size_only(mini):
    network = mini.network()
    assert network.smallest == (32, 64, 64)
    with pytest.raises(ValueError, match=r"windows of 5 voxels, these weights have 4"):
        network(torch.zeros(1, 1, 40, 80, 80))


def test_the_stem_and_head_can_be_changed():
    """All three modes are in one file; the choice is an attribute."""
    network = filled("pct-net", **SMALL, resolution_mode=2)
    other = filled("pct-net", **SMALL, resolution_mode=1)
    patch = torch.randn(1, 1, 48, 96, 96, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        thick = network(patch)
        network.resolution_mode = 1
        mild = network(patch)
        assert torch.equal(mild, other(patch))
    assert largest_difference(thick, mild) > 0.1


@pytest.mark.parametrize(
    "variant",
    [
        {"resolution_mode": 3},
        {"channels": [8] * 4},
        {"channels": [8, 16, 32, 64, 100]},
        {"out_channels": 0},
        {"windows": [6, 6]},
        {"windows": [6, 6, 7]},
    ],
)
def test_impossible_variants(variant):
    with pytest.raises(ValueError, match=r"there are 0, 1|at least one|heads|windows from 1 to 6"):
        networks.build("pct-net", device="meta", **variant)


@torch.inference_mode()
def test_bfloat16_moves_the_logits_little(mini):
    """By 0.9 % of their spread on average, 0.03 at most; 0.3 % of the voxels change class.

    Measured with stand-in weights, whose logits lie closer together than trained ones'.
    """
    network = mini.network()
    wanted = network(mini.patch)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(mini.patch).float()
    off = (found - wanted).abs()
    assert off.mean() / wanted.std() < 0.02
    assert off.max() < 0.06
    assert (found.argmax(1) != wanted.argmax(1)).float().mean() < 0.01


# Deliberate faults: each must move the numbers well beyond the tolerance.


def test_fault_windows_not_shifted(mini):
    network = mini.network()
    for block in swin_blocks(network):
        block.shift = 0
    assert is_caught(mini.differences(network))


def test_fault_no_mask_between_shifted_parts(mini, monkeypatch):
    monkeypatch.setattr(pct_net_attention._SwinBlock, "apart", lambda *_: None)
    assert is_caught(mini.differences(mini.network()))


def test_fault_textbook_position_index(mini):
    network = mini.network()
    for block in swin_blocks(network):
        block.attn.relative_position_index = textbook_index(block.window)
    assert is_caught(mini.differences(network))


def test_fault_shift_where_the_window_fills_the_grid(mini, monkeypatch):
    """Upstream's rule: up to six voxels nothing is shifted."""
    monkeypatch.setattr(pct_net_attention, "PUBLISHED_WINDOW", 3)
    network = mini.network()
    for pair in network.modules():
        if isinstance(pair, pct_net_attention.SwinPair):
            pair.window = 3  # what the rule is compared with; the blocks keep their own
    assert is_caught(mini.differences(network))


@pytest.mark.parametrize(
    "where", ["embeddings.1.conv0.conv_conv", "pyramid_ct.up4.up", "pred_heads.1.out_conv0.conv"]
)
def test_fault_missing_activation(mini, where):
    network = mini.network()
    layers = network.get_submodule(where)
    assert isinstance(layers[1], nn.PReLU)
    layers[1] = nn.Identity()
    assert is_caught(mini.differences(network))


def test_fault_coarse_features_first(mini, monkeypatch):
    def swapped(self, fine, coarse):
        return self.conv(torch.cat((self.up(coarse), fine), dim=1))

    monkeypatch.setattr(pct_net_parts.UpCat, "forward", swapped)
    assert is_caught(mini.differences(mini.network()))


def test_fault_last_norm_applied(mini, monkeypatch):
    """The layer norm is in the published file, but upstream never uses it."""

    def normed(self, features):
        last = self.norm_layer(self.trans(features.permute(0, 2, 3, 4, 1)))
        return self.conv(features) + last.permute(0, 4, 1, 2, 3)

    monkeypatch.setattr(pct_net_parts.ConvTransBlock, "forward", normed)
    assert is_caught(mini.differences(mini.network()))


def swin_blocks(network):
    return [m for m in network.modules() if isinstance(m, pct_net_attention._SwinBlock)]


def textbook_index(window):
    edge = torch.arange(window)
    places = torch.cartesian_prod(edge, edge, edge)
    offsets = places[:, None] - places[None] + window - 1
    width = 2 * window - 1
    return (offsets * torch.tensor([width * width, width, 1])).sum(-1)
