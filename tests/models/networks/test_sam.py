"""SAM and MedSAM: published keys, segment_anything's numbers, no torchvision.

Whole predictions at 1024 pixels are compared in ``engines/test_sam_slices_protocols.py``.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from golden_networks import largest_difference, load_filled, shapes_of
from torch.nn import functional

from napari_openmedlab.models import networks
from napari_openmedlab.models.networks import sam, sam_attention

PUBLISHED = {
    "sam-vit-b": ("sam_vit_b", 93_735_472),
    "medsam": ("medsam_vit_b", 93_735_472),
    "ft-sam": ("ft-sam_b", 90_737_200),
    "sam-med2d": ("sam-med2d_b", 271_241_776),
}


@pytest.fixture(scope="module", autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def published_keys(golden):
    with gzip.open(golden / "sam_med2d" / "keys.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_order_and_shapes_are_the_published_ones(name, published_keys):
    entry, parameters = PUBLISHED[name]
    network = networks.build(name, device="meta")
    wanted = [(key, tuple(shape)) for key, shape, _ in published_keys[entry]]
    assert shapes_of(network) == wanted
    assert not network.training
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}
    learnable = sum(value.numel() for value in network.parameters() if value.requires_grad)
    assert learnable == parameters


def test_the_published_form_without_adapters(published_keys):
    network = networks.build("sam-med2d", device="meta", adapters=False)
    wanted = published_keys["sam-med2d_b"]
    wanted = [(key, tuple(shape)) for key, shape, _ in wanted if ".Adapter." not in key]
    assert shapes_of(network) == wanted


@pytest.mark.parametrize(
    ("name", "width", "depth", "global_blocks"),
    [("sam-vit-l", 1024, 24, {5, 11, 17, 23}), ("sam-vit-h", 1280, 32, {7, 15, 23, 31})],
)
def test_the_larger_sams(name, width, depth, global_blocks, published_keys):
    network = networks.build(name, device="meta")
    assert network.image_encoder.pos_embed.shape == (1, 64, 64, width)
    blocks = network.image_encoder.blocks
    assert len(blocks) == depth
    assert {i for i, block in enumerate(blocks) if block.attn.window == 0} == global_blocks
    assert {len(block.attn.rel_pos_h) for block in blocks} == {27, 127}
    assert {block.attn.heads for block in blocks} == {16}
    # Beside the encoder all sizes are one network, and each block has 14 entries.
    others = [key for key, _, _ in published_keys["sam_vit_b"]]
    assert len(network.state_dict()) == len(others) + 14 * (depth - 12)
    rest = [key for key in network.state_dict() if "image_encoder.blocks" not in key]
    assert rest == [key for key in others if "image_encoder.blocks" not in key]


@pytest.mark.parametrize("name", [*PUBLISHED, "sam-vit-l", "sam-vit-h"])
def test_constants_are_real_in_a_meta_build(name):
    network = networks.build(name, device="meta")
    in_checkpoint = set(network.state_dict())
    tensors = [*network.named_parameters(), *network.named_buffers()]
    assert {key for key, value in tensors if value.is_meta} == in_checkpoint
    assert network.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert network.pixel_std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])


def test_a_build_on_the_cpu_is_usable():
    network = sam._build(64, width=48, depth=4, heads=4).eval()
    masks, scores = network(torch.zeros(2, 3, 64, 64), boxes=torch.tensor([[4.0, 4, 40, 40]]))
    assert masks.shape == (2, 4, 16, 16)
    assert scores.shape == (2, 4)


# -- against segment_anything's own computation ------------------------------------------------


def filled(module, salt):
    return load_filled(module, salt=salt)


@pytest.mark.parametrize("mask_bytes", [sam_attention._MASK_BYTES, 100_000, 1])
@pytest.mark.parametrize(
    ("window", "grid", "width", "heads"),
    [
        (14, 64, 64, 2),
        (14, 16, 64, 2),
        (14, 28, 64, 2),
        (0, 16, 160, 2),  # 80 channels a head: ViT-H
        (0, 32, 64, 1),
    ],
)
def test_blocks_equal_the_plain_form(monkeypatch, mask_bytes, window, grid, width, heads):
    parts = sam._modeling()
    encoder = parts.ImageEncoderViT(
        img_size=grid * 16,
        embed_dim=width,
        depth=1,
        num_heads=heads,
        use_rel_pos=True,
        window_size=window,
    )
    plain = filled(encoder, "plain").blocks[0]
    own = sam_attention.EncoderBlock(plain)
    monkeypatch.setattr(sam_attention, "_MASK_BYTES", mask_bytes)
    tokens = torch.randn(2, grid, grid, width, generator=torch.Generator().manual_seed(3))
    assert largest_difference(own(tokens), plain(tokens)) < 2e-5


def test_the_decoder_equals_the_plain_form():
    parts = sam._modeling()
    transformer = parts.TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048)
    plain = filled(parts.MaskDecoder(transformer_dim=256, transformer=transformer), "plain")
    random = torch.Generator().manual_seed(4)
    image, image_pe = (torch.randn(1, 256, 12, 12, generator=random) for _ in range(2))
    sparse = torch.randn(3, 5, 256, generator=random)
    dense = torch.randn(3, 256, 12, 12, generator=random)
    single = plain(image, image_pe, sparse, dense, multimask_output=False)
    three = plain(image, image_pe, sparse, dense, multimask_output=True)
    masks, scores = sam.SliceMaskDecoder(plain)(image, image_pe, sparse, dense)
    assert largest_difference(masks, torch.cat([single[0], three[0]], 1)) < 1e-4
    assert largest_difference(scores, torch.cat([single[1], three[1]], 1)) < 1e-4


def test_the_mask_of_relative_positions_stays_small(monkeypatch):
    """At 1024 pixels the full mask of one image would be 800 MB."""
    sizes = []
    kernel = functional.scaled_dot_product_attention

    def counted(query, key, value, attn_mask=None):
        sizes.append(attn_mask.numel() * attn_mask.element_size())
        return kernel(query, key, value, attn_mask=attn_mask)

    parts = sam._modeling()
    block = parts.ImageEncoderViT(
        img_size=1024, embed_dim=96, depth=1, num_heads=12, use_rel_pos=True
    ).blocks[0]
    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    sam_attention.EncoderBlock(block)(torch.zeros(1, 64, 64, 96))
    assert max(sizes) <= sam_attention._MASK_BYTES
    assert sum(sizes) == 12 * 4096 * 4096 * 4


# -- the package -------------------------------------------------------------------------------


def test_torchvision_is_not_needed():
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from napari_openmedlab.models import networks\n"
        "networks.build('sam-vit-b', device='meta')\n"
        "assert 'segment_anything' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, sam._MODELING, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'napari-openmedlab\[models\]'"):
        networks.build("medsam", device="meta")


def test_a_broken_package_leaves_nothing_behind(monkeypatch, tmp_path):
    folder = tmp_path / "segment_anything"
    (folder / "modeling").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "modeling" / "__init__.py").write_text("raise RuntimeError('broken')")
    monkeypatch.delitem(sys.modules, sam._MODELING, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(RuntimeError, match="broken"):
        networks.build("medsam", device="meta")
    assert sam._MODELING not in sys.modules
