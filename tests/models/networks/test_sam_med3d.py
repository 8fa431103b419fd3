"""SAM-Med3D equals the published network: keys, numbers of each part, and of two clicks."""

from __future__ import annotations

import copy
from types import MethodType

import numpy as np
import pytest
import torch
from golden_networks import largest_difference, load_filled, read_json, recorded, shapes_of
from sam_med3d_inputs import mask_prompt, volume
from sam_med3d_reference import use_reference
from torch import nn

from napari_openmedlab.models import networks
from napari_openmedlab.models.networks import sam_med3d_decoder, sam_med3d_encoder, sam_med3d_prompt
from napari_openmedlab.models.networks.sam_med3d import SamMed3D, upsample

TOLERANCE = 2e-4
CASES = ("one_pos", "one_neg", "two", "three", "one_pos_zero_mask", "two_mask", "mask_only")
BLOCK_CUT = (0, slice(None, None, 2), slice(None, None, 2), slice(None, None, 2))


@pytest.fixture(scope="module")
def folder(golden):
    return golden / "sam_med3d"


@pytest.fixture(scope="module")
def gold(folder):
    return {
        name: dict(np.load(folder / f"{name}.npz"))
        for name in ("encoder", "prompt", "decoder", "two_clicks")
    }


@pytest.fixture(scope="module")
def network() -> SamMed3D:
    return load_filled(networks.build("sam-med3d", device="meta"))


@pytest.fixture(scope="module")
def embedding(network):
    with torch.inference_mode():
        return network.encode(volume(1234))


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def arrays_of(gold, case):
    """The arrays of one case, under the names without the case."""
    prefix = f"{case}_"
    return {key.removeprefix(prefix): gold[key] for key in gold if key.startswith(prefix)}


def prompts(gold, case):
    """Points, labels and mask prompt of a case."""
    if case == "mask_only":
        return None, None, mask_prompt(77)
    points = torch.from_numpy(gold["prompt"][f"{case}_coords"])[None]
    labels = torch.from_numpy(gold["prompt"][f"{case}_labels"])[None]
    if case.endswith("zero_mask"):
        return points, labels, torch.zeros(1, 1, 32, 32, 32)
    return points, labels, mask_prompt(77) if case.endswith("mask") else None


def encoder_difference(network, gold):
    wanted = gold["encoder"]
    found = network.encode(volume(int(wanted["volume_seed"])))
    return largest_difference(found[0, :, ::2, ::2, ::2], wanted["embedding_sub"])


def prompt_difference(network, gold):
    wanted, encoder = gold["prompt"], network.prompt_encoder
    worst = largest_difference(encoder.grid_positions()[0, ::12], wanted["dense_pe_sub"])
    for case in (*CASES[:-1], "pad_label"):
        points, labels, mask = prompts(gold, case)
        found = encoder.points(points, labels)[0]
        worst = max(worst, largest_difference(found, wanted[f"{case}_sparse"]))
        if f"{case}_dense_sub" in wanted:
            found = encoder.mask(mask)[0, ::12]
            worst = max(worst, largest_difference(found, wanted[f"{case}_dense_sub"]))
    return worst


def decoder_difference(network, embedding, gold, cases=CASES):
    wanted, worst = gold["decoder"], 0.0
    for case in cases:
        logits, iou = network.decode(embedding, *prompts(gold, case))
        if f"{case}_lowres" in wanted:
            worst = max(worst, largest_difference(logits[0, 0], wanted[f"{case}_lowres"]))
        else:
            cut = logits[0, 0, ::2, ::2, ::2]
            worst = max(worst, largest_difference(cut, wanted[f"{case}_lowres_sub"]))
        worst = max(worst, largest_difference(iou[0], wanted[f"{case}_iou"]))
    return worst


def test_keys_order_and_shapes_are_the_published_ones(folder):
    wanted = read_json(folder / "keys.json")
    network = networks.build("sam-med3d", device="meta")
    assert shapes_of(network) == [(key, tuple(shape)) for key, shape, _ in wanted["entries"]]
    for part, count in wanted["n_parameters_by_part"].items():
        assert sum(p.numel() for p in getattr(network, part).parameters()) == count


def test_build_is_ready_for_inference():
    network = networks.build("sam-med3d", device="meta")
    assert not network.training
    assert all(value.dtype == torch.float32 for value in network.state_dict().values())
    with pytest.raises(TypeError):
        networks.build("sam-med3d", device="meta", side=256)


def test_a_meta_build_loads_completely(network):
    held = (*network.named_parameters(), *network.named_buffers())
    assert not [name for name, value in held if value.is_meta]


def test_inputs_are_those_of_the_golden_files(gold):
    found = volume(int(gold["encoder"]["volume_seed"]))
    assert largest_difference(found[0, 0, ::16, ::16, ::16], gold["encoder"]["input_probe"]) == 0
    found = mask_prompt(int(gold["prompt"]["mask_seed"]))
    assert largest_difference(found[0, 0, ::4, ::4, ::4], gold["prompt"]["mask_probe"]) == 0


def test_encoder_equals_upstream_from_layer_to_layer(network, gold):
    wanted, encoder = gold["encoder"], network.image_encoder
    parts = {f"block{index:02d}": block for index, block in enumerate(encoder.blocks)}
    parts |= {"patch_embed": encoder.patch_embed, "neck_ln1": encoder.neck[1]}
    with recorded(parts) as found:
        assert encoder_difference(network, gold) <= TOLERANCE
    for name in ("patch_embed", "block00", "block02", "block11"):
        cut = found[name][BLOCK_CUT][..., ::8]
        assert largest_difference(cut, wanted[f"{name}_sub"]) <= TOLERANCE, name
    for index in range(12):
        block = found[f"block{index:02d}"]
        statistics = [float(block.mean()), float(block.std())]
        assert largest_difference(statistics, wanted[f"block{index:02d}_mean_std"]) <= 1e-5
    cut = found["neck_ln1"][0, ::8, ::2, ::2, ::2]
    assert largest_difference(cut, wanted["neck_ln1_sub"]) <= TOLERANCE


def test_every_channel_of_the_embedding(embedding, gold):
    rows = embedding[0].flatten(1)
    wanted = gold["encoder"]
    assert largest_difference(rows.mean(1), wanted["embedding_channel_mean"]) <= 1e-5
    assert largest_difference(rows.std(1), wanted["embedding_channel_std"]) <= 1e-5


def test_prompt_encoder_equals_upstream(network, gold):
    assert prompt_difference(network, gold) <= 1e-5
    no_mask = network.prompt_encoder.mask(None).flatten()
    assert largest_difference(no_mask, gold["prompt"]["one_pos_dense_no_mask_vector"]) <= 1e-6


def test_decoder_equals_upstream(network, embedding, gold):
    assert decoder_difference(network, embedding, gold) <= TOLERANCE


@pytest.mark.parametrize("case", ["one_pos_zero_mask", "two_mask"])
def test_inner_steps_of_the_decoder(network, embedding, gold, case):
    wanted = arrays_of(gold["decoder"], case)
    points, labels, mask = prompts(gold, case)
    encoder, decoder = network.prompt_encoder, network.mask_decoder
    inputs = (
        embedding,
        encoder.grid_positions(),
        encoder.points(points, labels),
        encoder.mask(mask),
    )
    tokens, image = decoder.attend(*inputs)
    assert largest_difference(tokens[0], wanted["hs"]) <= TOLERANCE
    assert largest_difference(image[0, ::8, ::4], wanted["src_sub"]) <= TOLERANCE
    features = sam_med3d_decoder.fold(decoder.upscale(image))
    assert largest_difference(features[0, ::4, ::4, ::4, ::4], wanted["upscaled_sub"]) <= TOLERANCE
    logits, iou = decoder(*inputs, heads=slice(1, 4))
    cut = logits[0, :, ::2, ::2, ::2]
    assert largest_difference(cut, wanted["multimask_lowres_sub"]) <= TOLERANCE
    assert largest_difference(iou[0], wanted["multimask_iou"]) <= TOLERANCE


def test_upscaling_equals_the_transposed_convolutions(network):
    image = torch.randn(2, 512, 384, generator=torch.Generator().manual_seed(3))
    decoder = network.mask_decoder
    grid = image.transpose(1, 2).unflatten(2, (8, 8, 8))
    wanted = decoder.output_upscaling(grid)
    assert largest_difference(sam_med3d_decoder.fold(decoder.upscale(image)), wanted) <= 1e-5


def two_clicks(network, embedding, gold):
    """Logits of click 1, and of click 2 with history and alone."""
    first, second = gold["two_clicks"]["click1"], gold["two_clicks"]["click2"]
    clicks = torch.tensor(np.stack([first, second]))[None]
    points, labels = clicks[..., :3], clicks[..., 3]
    start, _ = network.decode(embedding, points[:, :1], labels[:, :1], network.empty_mask())
    history, _ = network.decode(embedding, points, labels, start)
    newest, _ = network.decode(embedding, points[:, 1:], labels[:, 1:], start)
    return {"click1": start, "click2_history": history, "click2_newest": newest}


@pytest.mark.parametrize("tag", ["click1", "click2_history", "click2_newest"])
def test_two_clicks_from_volume_to_mask(network, embedding, gold, tag):
    wanted = arrays_of(gold["two_clicks"], tag)
    logits = two_clicks(network, embedding, gold)[tag]
    if "lowres" in wanted:
        assert largest_difference(logits[0, 0], wanted["lowres"]) <= TOLERANCE
    else:
        cut = logits[0, 0, ::2, ::2, ::2]
        assert largest_difference(cut, wanted["lowres_sub"]) <= TOLERANCE
    full = upsample(logits)[0, 0]
    if "up_planes" in wanted:
        planes = torch.stack([full[64], full[:, 64], full[:, :, 64]])[:, ::2, ::2]
        assert largest_difference(planes, wanted["up_planes"]) <= TOLERANCE
    mask = (full > 0).numpy()
    unsure = int(wanted["near_zero_voxels"]) // 20
    assert abs(int(mask.sum()) - int(wanted["mask_voxels"])) <= unsure
    profiles = np.stack([mask.sum(axis=(1, 2)), mask.sum(axis=(0, 2)), mask.sum(axis=(0, 1))])
    assert np.abs(profiles - wanted["mask_profiles"]).max() <= unsure


def test_the_full_golden_arrays(network, embedding, gold, full_golden):
    full = {
        name: np.load(full_golden / "sam_med3d" / f"{name}.npz")
        for name in ("encoder", "prompt", "decoder", "two_clicks")
    }
    assert largest_difference(embedding[0], full["encoder"]["embedding"]) <= TOLERANCE
    grid = network.prompt_encoder.grid_positions()
    assert largest_difference(grid[0], full["prompt"]["dense_pe"]) <= 1e-5
    assert decoder_difference(network, embedding, full) <= TOLERANCE
    for tag, logits in two_clicks(network, embedding, full).items():
        assert largest_difference(logits[0, 0], full["two_clicks"][f"{tag}_lowres"]) <= TOLERANCE
        up = upsample(logits)[0, 0, ::5, ::5, ::5]
        assert largest_difference(up, full["two_clicks"][f"{tag}_up_sub"]) <= TOLERANCE


def test_several_prompts_share_one_embedding(network, embedding, gold):
    points = torch.tensor([[[31, 70, 95]], [[88, 41, 17]], [[64, 64, 64]]])
    labels = torch.tensor([[1], [0], [1]])
    masks = torch.cat((mask_prompt(77), torch.zeros(1, 1, 32, 32, 32), mask_prompt(78)))
    together, scores = network.decode(embedding, points, labels, masks)
    assert together.shape == (3, 1, 32, 32, 32)
    assert scores.shape == (3, 1)
    for index in range(3):
        one = slice(index, index + 1)
        alone, _ = network.decode(embedding, points[one], labels[one], masks[one])
        assert largest_difference(together[one], alone) <= 1e-4
    shared, _ = network.decode(embedding, points[:1], labels[:1], masks)
    assert shared.shape == (3, 1, 32, 32, 32)
    assert largest_difference(shared[:1], together[:1]) <= 1e-4


def test_forward_is_encode_and_decode(network, embedding, gold):
    case = prompts(gold, "two_mask")
    logits, _ = network(volume(1234), *case)
    assert largest_difference(logits, network.decode(embedding, *case)[0]) <= 1e-5


def test_the_callers_points_are_not_changed(network, embedding):
    points = torch.tensor([[[31.0, 70.0, 95.0]]])
    before = points.clone()
    network.decode(embedding, points, torch.tensor([[1]]), network.empty_mask())
    assert torch.equal(points, before)


def test_grid_positions_are_computed_once_per_weights(network):
    with torch.inference_mode(False):  # a copy made in inference mode could not be watched
        positions = copy.deepcopy(network.prompt_encoder)
    first = positions.grid_positions()
    assert positions.grid_positions() is first
    assert not first.is_inference()
    with torch.inference_mode(False):
        positions.pe_layer.positional_encoding_gaussian_matrix.mul_(2)
    changed = positions.grid_positions()
    assert largest_difference(changed, first) > 0.1
    positions.load_state_dict(network.prompt_encoder.state_dict(), assign=True)
    assert largest_difference(positions.grid_positions(), first) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points": torch.zeros(1, 3)}, "points are"),
        ({"labels": torch.ones(1, 2)}, "points are"),
        ({"labels": torch.full((1, 1), 2)}, "labels are 1"),
        ({"labels": None}, "come together"),
        ({"mask_prompt": torch.zeros(1, 1, 16, 16, 16)}, "mask prompts are"),
        ({"points": torch.zeros(2, 1, 3), "labels": torch.ones(2, 1)}, "batch size"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(network, embedding, change, words):
    given = {
        "points": torch.zeros(1, 1, 3),
        "labels": torch.ones(1, 1),
        "mask_prompt": network.empty_mask(3),
    }
    with pytest.raises(ValueError, match=words):
        network.decode(embedding, **(given | change))


def test_another_cube_is_refused(network):
    with pytest.raises(ValueError, match="128"):
        network.encode(torch.zeros(1, 1, 128, 128, 96))


def test_half_precision_moves_the_logits_little(network, embedding, gold):
    """Measured: embedding 0.043 (it spreads by 1.0), logits 0.041 (by 0.57), 0.5 % change sign."""
    case = prompts(gold, "two_mask")
    wanted, _ = network.decode(embedding, *case)
    with torch.autocast("cpu", torch.bfloat16):
        half = network.encode(volume(1234))
        logits, _ = network.decode(half, *case)
    assert 1e-4 < largest_difference(half, embedding) < 0.1
    assert largest_difference(logits, wanted) < 0.1
    assert ((logits > 0) != (wanted > 0)).float().mean() < 0.02


# Faults a rewrite is likely to make: each must be noticed by the comparisons above.


def _keys_without_padding(self, q, k, v):
    first, second, third = (term[..., :8] for term in self._terms(q))
    pairs = sam_med3d_encoder._pairs(second, third)
    return k, v, first[..., None] + pairs[..., None, :, :]


@pytest.mark.parametrize("blocks", [(2, 5, 8, 11), (0,)])
def test_textbook_relative_position_is_noticed(network, gold, blocks):
    with use_reference(network.image_encoder, blocks, textbook=True):
        assert encoder_difference(network, gold) > 50 * TOLERANCE


def test_masked_padding_tokens_are_noticed(network, gold, monkeypatch):
    monkeypatch.setattr(sam_med3d_encoder.WindowAttention, "_keys", _keys_without_padding)
    assert encoder_difference(network, gold) > 50 * TOLERANCE


def test_a_miscounted_padding_is_noticed(network, gold, monkeypatch):
    monkeypatch.setattr(sam_med3d_encoder, "_WINDOW", 13)
    assert encoder_difference(network, gold) > 5 * TOLERANCE


def test_swapped_tables_are_noticed(network, gold, monkeypatch):
    attention = network.image_encoder.blocks[11].attn
    tables = attention.rel_pos_h, attention.rel_pos_w
    attention.rel_pos_w, attention.rel_pos_h = tables
    try:
        assert encoder_difference(network, gold) > 50 * TOLERANCE
    finally:
        attention.rel_pos_h, attention.rel_pos_w = tables


def _unswapped_grid(self):
    centres = (torch.arange(8) + 0.5) / 8
    grid = torch.stack(torch.meshgrid(centres, centres, centres, indexing="ij"), dim=-1)
    return self(grid).permute(3, 0, 1, 2)[None]


def _reversed_points(self, fractions):
    return _forward(self, fractions.flip(-1))


def _without_second_sine(self, fractions):
    encoded = _forward(self, fractions)
    return torch.cat((encoded[..., :256], encoded[..., 128:256]), dim=-1)


_forward = sam_med3d_prompt._Positions.forward


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("grid", _unswapped_grid),
        ("forward", _reversed_points),
        ("forward", _without_second_sine),
    ],
)
def test_other_positions_are_noticed(network, embedding, gold, monkeypatch, name, fault):
    monkeypatch.setattr(sam_med3d_prompt._Positions, name, fault)
    monkeypatch.setattr(network.prompt_encoder.pe_layer, "_cached", None)
    assert prompt_difference(network, gold) > 0.1
    assert decoder_difference(network, embedding, gold) > 10 * TOLERANCE


def test_a_residual_in_the_first_self_attention_is_noticed(network, embedding, gold):
    attention = network.mask_decoder.transformer.layers[0].self_attn
    handle = attention.register_forward_hook(lambda _m, inputs, output: inputs[0] + output)
    try:
        assert decoder_difference(network, embedding, gold) > 50 * TOLERANCE
    finally:
        handle.remove()


def test_positions_in_the_first_self_attention_are_noticed(network, embedding, gold):
    attention = network.mask_decoder.transformer.layers[0].self_attn
    plain = type(attention).forward
    attention.forward = MethodType(lambda self, q, k, v: plain(self, q + q, k + k, v), attention)
    try:
        assert decoder_difference(network, embedding, gold) > 50 * TOLERANCE
    finally:
        del attention.forward


def test_the_no_mask_token_at_the_first_click_is_noticed(network, embedding, gold):
    points, labels, _ = prompts(gold, "one_pos_zero_mask")
    logits, _ = network.decode(embedding, points, labels, None)
    wanted = gold["decoder"]["one_pos_zero_mask_lowres"]
    assert largest_difference(logits[0, 0], wanted) > 50 * TOLERANCE


def test_swapped_axes_of_the_children_are_noticed(network, embedding, gold, monkeypatch):
    fold = sam_med3d_decoder.fold
    monkeypatch.setattr(sam_med3d_decoder, "fold", lambda x: fold(x.transpose(2, 3)))
    assert decoder_difference(network, embedding, gold) > 50 * TOLERANCE


def test_a_missing_activation_is_noticed(network, embedding, gold, monkeypatch):
    monkeypatch.setattr(network.prompt_encoder.mask_downscaling, "5", nn.Identity())
    assert prompt_difference(network, gold) > 50 * TOLERANCE
