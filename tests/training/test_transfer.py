"""What is taken over from pre-trained weights: all that fits, the class heads never."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from napari_openmedlab.errors import CheckpointError  # noqa: E402
from napari_openmedlab.training.transfer import HEADS, fresh_network, take_over  # noqa: E402

SMALL = {"fmunet": [2, 2, 4, 4, 4], "pct-net": [2, 2, 4, 8, 16]}


def made(network: str, seed: int = 1, **changes):
    # One window of 2 keeps PCT-Net's tables small; names and counts don't depend on it.
    variant = {"in_channels": 1, "out_channels": 5, "channels": SMALL[network]}
    variant |= {"windows": [2, 2, 2]} if network == "pct-net" else {}
    return fresh_network(network, variant | changes, seed)


@pytest.mark.parametrize(
    ("network", "classes", "kept", "fresh"),
    [
        # Counts of the published code when the number of classes changes (spec, section 4) ...
        ("pct-net", 3, 668, 16),
        ("fmunet", 2, 138, 8),
        # ... and with five classes, where upstream would keep the heads of the pretext task.
        ("pct-net", 5, 668, 16),
        ("fmunet", 5, 138, 8),
    ],
)
def test_heads_start_fresh_and_all_else_is_taken_over(network, classes, kept, fresh):
    source = made(network, seed=7).state_dict()
    new = made(network, seed=8, out_channels=classes)
    before = {key: value.clone() for key, value in new.state_dict().items()}
    start = take_over(new, network, source, "weights")
    assert (len(start.kept), len(start.fresh)) == (kept, fresh)
    assert str(start).startswith(f"{kept} of {kept + fresh} tensors")
    after = new.state_dict()
    assert all(torch.equal(after[key], source[key]) for key in start.kept)
    assert all(torch.equal(after[key], before[key]) for key in start.fresh)
    assert all(HEADS[network].match(key) for key in start.fresh)


def test_other_image_channels_start_the_first_layer_fresh():
    for network, stems in (("fmunet", 1), ("pct-net", 3)):
        new = made(network, in_channels=2)
        start = take_over(new, network, made(network).state_dict(), "weights")
        odd = [key for key in start.fresh if not HEADS[network].match(key)]
        assert len(odd) == stems
        assert all(key.endswith(("proj.weight", "project.weight")) for key in odd)


def test_another_resolution_mode_starts_only_flat_convolutions_fresh():
    new = made("fmunet", resolution_mode=1)
    start = take_over(new, "fmunet", made("fmunet").state_dict(), "weights")
    odd = [key for key in start.fresh if not HEADS["fmunet"].match(key)]
    assert {key.split(".")[-1] for key in odd} == {"weight"}
    parts = {"project", "encoder.en_conv0", "encoder.down0", "decoder.de_conv0", "decoder.upcat0"}
    assert {next(p for p in parts if key.startswith(p)) for key in odd} == parts
    pct = made("pct-net", resolution_mode=2)
    assert len(take_over(pct, "pct-net", made("pct-net").state_dict(), "w").fresh) == 16


def test_weights_of_another_width_are_refused():
    source = made("fmunet", channels=[2, 4, 8, 8, 8]).state_dict()
    with pytest.raises(CheckpointError, match=r"only \d+ of 146 tensors fit; 'project.*|only"):
        take_over(made("fmunet", channels=[3, 5, 5, 6, 7]), "fmunet", source, "odd weights")


def test_start_weights_follow_the_seed_and_fmunets_rule():
    first, again, other = (made("fmunet", seed=seed) for seed in (1, 1, 2))
    same, differ = (
        all(torch.equal(a, b) for a, b in zip(first.parameters(), n.parameters(), strict=True))
        for n in (again, other)
    )
    assert same
    assert not differ
    wide = fresh_network(
        "fmunet", {"in_channels": 1, "out_channels": 2, "channels": [8, 8, 16, 16, 16]}, 1
    )
    layer = wide.encoder.en_conv2.conv_list[0][3]
    # Kaiming's normal rule for a leaky ReLU of 0.01: deviation sqrt(2 / (1 + a^2) / fan_in).
    assert float(layer.weight.std()) == pytest.approx((2 / 1.0001 / (16 * 27)) ** 0.5, rel=0.05)
    assert not layer.bias.any()


def test_building_leaves_the_users_chance_alone():
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    made("fmunet")
    assert torch.equal(torch.rand(1), wanted)
