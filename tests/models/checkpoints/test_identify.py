"""The content says which network a file is of; what does not fit entirely is refused."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoint_factory import pickled, save
from published_layouts import layout

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models import networks
from napari_openmedlab.models.checkpoints.identify import AmbiguousCheckpoint, identify
from napari_openmedlab.models.checkpoints.reading import RawCheckpoint, read_checkpoint

PUBLISHED = [[2, 2, 2]] * 4 + [[1, 1, 2]]
EVEN = [[2, 2, 2]] * 5
TOTAL = {"in_channels": 1, "out_channels": 105, "strides": PUBLISHED}
WIDE = [24, 48, 128, 256, 512]
FMU = [32, 64, 128, 256, 512]


def mis_fm(classes, mode, channels):
    return {
        "in_channels": 1,
        "out_channels": classes,
        "channels": channels,
        "resolution_mode": mode,
    }


def pct(classes, channels, *windows):
    return {**mis_fm(classes, 1, channels), "windows": list(windows)}


FILES = {
    "ft_sam": ("ft-sam", {}),
    "sam_med2d": ("sam-med2d", {}),
    "sam_med3d": ("sam-med3d", {}),
    "medlam": ("medlam", {}),
    "axon_seg": ("axon-seg", {"in_channels": 1, "classes": 2, "patch_size": 128}),
    "axon_seg_64": ("axon-seg", {"in_channels": 1, "classes": 2, "patch_size": 64}),
    "stu_net_s": ("stu-net-s", TOTAL),
    "stu_net_b": ("stu-net-b", TOTAL),
    "stu_net_l": ("stu-net-l", TOTAL),
    "stu_net_h": ("stu-net-h", TOTAL),
    "pctnet_m1_c5": ("pct-net", pct(5, WIDE, 6, 6, 6)),
    "pctnet_m1_c2": ("pct-net", pct(2, WIDE, 6, 6, 6)),
    "pctnet_mini": ("pct-net", pct(2, [8, 16, 32, 64, 128], 6, 6, 4)),
    "fmunet_r0_c5": ("fmunet", mis_fm(5, 0, FMU)),
    "fmunet_r0_c2": ("fmunet", mis_fm(2, 0, FMU)),
    "fmunet_r1_c3": ("fmunet", mis_fm(3, 1, FMU)),
    "fmunet_r2_c3": ("fmunet", mis_fm(3, 2, FMU)),
    "fmunet_mini": ("fmunet", mis_fm(2, 0, [8, 16, 24, 32, 48])),
}


def found(tensors, path="x.pth", as_network=None, plans=None):
    return identify(RawCheckpoint(tensors, plans=plans), path, as_network)


def reason(tensors, as_network=None) -> str:
    with pytest.raises(CheckpointError) as caught:
        found(tensors, "some/x.pth", as_network)
    assert "x.pth" in str(caught.value)
    return str(caught.value)


def network_layout(name, **variant):
    state = networks.build(name, device="meta", **variant).state_dict()
    return {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in state.items()}


@pytest.mark.parametrize("name", FILES)
def test_each_published_layout(name):
    network, variant = FILES[name]
    tensors = layout(name)
    mixed = dict(sorted(tensors.items()))  # the order in the file does not matter
    match = found(mixed)
    assert match.network == network
    assert match.variant == variant
    assert json.loads(json.dumps(match.variant)) == variant
    assert list(match.tensors) == list(tensors)
    assert match.dropped == ()


def test_the_plain_axon_network():
    plain = {k: v for k, v in layout("axon_seg").items() if not k.startswith("axial_")}
    match = found(plain)
    assert match.network == "axon-seg-plain"
    assert match.variant == {"in_channels": 1, "classes": 2}


@pytest.mark.parametrize("name", ["sam-vit-l", "sam-vit-h"])
def test_the_larger_sams(name):
    match = found(network_layout(name))
    assert match.network == name


def test_sam_and_medsam_look_alike():
    with pytest.raises(AmbiguousCheckpoint, match="sam-vit-b and medsam") as caught:
        found(layout("sam_vit_b"))
    assert caught.value.candidates == ("sam-vit-b", "medsam")
    for name in caught.value.candidates:
        assert found(layout("sam_vit_b"), as_network=name).network == name


def test_alike_but_incomplete_is_refused_before_asking():
    tensors = layout("sam_vit_b")
    tensors.pop("mask_decoder.iou_token.weight")
    with pytest.raises(CheckpointError, match="iou_token") as caught:
        found(tensors)
    assert not isinstance(caught.value, AmbiguousCheckpoint)


def test_sam_med2d_without_adapters_only_when_asked():
    tensors = layout("sam_med2d")
    assert found(tensors).network == "sam-med2d"
    match = found(tensors, as_network="ft-sam")
    assert match.network == "ft-sam"
    assert len(match.dropped) == 72
    assert all(".Adapter." in key for key in match.dropped)
    assert list(match.tensors) == list(layout("ft_sam"))
    assert "without their adapters" in match.notes[0]


def test_a_missing_adapter_is_not_left_to_chance():
    tensors = layout("sam_med2d")
    key = "image_encoder.blocks.3.Adapter.channel.0.weight"
    tensors.pop(key)
    assert f"'{key}' (192, 768) is missing" in reason(tensors)


def test_harmless_extras_of_the_challenge_files():
    tensors = layout("sam_med3d")
    extras = {f"prompt_encoder.point_embeddings.{i}.weight": torch.zeros(1, 384) for i in (2, 3)}
    match = found(tensors | extras)
    assert match.network == "sam-med3d"
    assert set(match.dropped) == set(extras)
    assert list(match.tensors) == list(tensors)
    other = {"prompt_encoder.point_embeddings.4.weight": torch.zeros(1, 384)}
    assert "is too much" in reason(tensors | other)


@pytest.mark.parametrize("name", ["sam_med2d", "sam_med3d", "medlam", "axon_seg", "pctnet_m1_c5"])
@pytest.mark.parametrize("fault", ["missing", "surplus", "shape", "kind"])
def test_strict(name, fault):
    tensors = layout(name)
    key = list(tensors)[-1]
    network = FILES[name][0]
    if fault == "missing":
        tensors.pop(key)
        words = "is missing"
    elif fault == "surplus":
        tensors["another.weight"] = torch.zeros(2)
        words = "'another.weight' is too much"
    elif fault == "shape":
        tensors[key] = torch.zeros(2, 7)
        words = f"'{key}' is (2, 7) instead of"
    else:
        tensors[key] = tensors[key].to(torch.complex64)
        words = "torch.complex64 instead of torch.float32 numbers"
    text = reason(tensors)
    assert words in text
    assert f"comes nearest to {network}" in text


def test_only_the_first_differences_are_told():
    tensors = {key: value[..., :-1] for key, value in layout("sam_med3d").items() if value.dim()}
    text = reason(tensors)
    assert text.count("instead of") == 3
    assert "and 321 more" in text


@pytest.mark.parametrize(
    ("name", "nearest"), [("sam_med3d_256", "sam-med3d"), ("sam_vit_b", "sam-vit-b")]
)
def test_sizes_that_were_never_published(name, nearest):
    tensors = layout(name)
    if name == "sam_vit_b":
        tensors["image_encoder.pos_embed"] = torch.zeros(1, 32, 32, 768)
    text = reason(tensors)
    assert f"nearest to {nearest}" in text
    assert "pos_embed" in text


def test_the_nearest_is_found_where_the_telling_key_is_gone():
    tensors = layout("medlam")
    tensors.pop("conv0_1.model.conv1_1.Conv.weight")
    text = reason(tensors)
    assert "nearest to medlam" in text
    assert "'conv0_1.model.conv1_1.Conv.weight' (48, 1, 3, 3, 3) is missing" in text


@pytest.mark.parametrize("tensors", [layout("axon_small"), {"fc.weight": torch.zeros(3, 3)}])
def test_unknown_networks_are_named_as_such(tensors):
    text = reason(tensors)
    assert "no network known here" in text
    assert repr(next(iter(tensors))) in text


def test_another_network_than_asked_for():
    assert "holds weights of sam-med3d, not of medlam" in reason(layout("sam_med3d"), "medlam")
    assert "of sam-vit-b or medsam, not of ft-sam" in reason(layout("sam_vit_b"), "ft-sam")
    assert "not of sam-med2d" in reason(layout("ft_sam"), "sam-med2d")
    with pytest.raises(CheckpointError, match="there is no network 'sam3'"):
        found(layout("ft_sam"), as_network="sam3")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_become_float32(dtype):
    tensors = found(layout("fmunet_mini", dtype)).tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_counters_stay_whole_numbers():
    kinds = {str(tensor.dtype) for tensor in found(layout("pctnet_mini")).tensors.values()}
    assert kinds == {"torch.float32", "torch.int64"}


def test_a_form_that_cannot_be_built():
    tensors = layout("axon_seg_64")
    key = "axial_embedding.3.param_0"
    tensors[key] = torch.zeros(1, 64, 31, 1, 1)
    assert "not in a form that can be built: the patch size 62" in reason(tensors)


# --- STU-Net's strides ---------------------------------------------------------------------------


def with_head(name: str, classes: int) -> dict[str, torch.Tensor]:
    return {
        key: value[:classes] if key.startswith("seg_outputs.") else value
        for key, value in layout(name).items()
    }


def v1(classes, strides, modalities=1):
    stage = {"pool_op_kernel_sizes": strides}
    return {"num_classes": classes, "num_modalities": modalities, "plans_per_stage": {0: stage}}


def test_published_strides_without_a_plan(tmp_path):
    match = found(layout("stu_net_s"), tmp_path / "small_ep4k.model")
    assert match.variant["strides"] == PUBLISHED
    assert match.notes == (
        "Strides: the published ones of STU-Net's TotalSegmentator weights (four times 2 x 2 x 2, "
        "then 1 x 1 x 2); channels and classes are theirs.",
    )


def test_other_classes_without_a_plan_are_warned_of(tmp_path):
    match = found(with_head("stu_net_b", 10), tmp_path / "model.model")
    assert match.variant == {"in_channels": 1, "out_channels": 10, "strides": PUBLISHED}
    assert "no plan lies beside the file" in match.notes[0]
    assert "wrong masks" in match.notes[0]


def test_brats21_weights_have_their_own_published_strides(tmp_path):
    tensors = with_head("stu_net_b", 5)
    for key in ("conv_blocks_context.0.0.conv1.weight", "conv_blocks_context.0.0.conv3.weight"):
        tensors[key] = tensors[key].repeat(1, 4, 1, 1, 1)
    match = found(tensors, tmp_path / "base_ep1k.model")
    assert match.variant == {"in_channels": 4, "out_channels": 5, "strides": EVEN}
    assert "BraTS21" in match.notes[0]


def test_the_plan_beside_the_file_decides(tmp_path):
    path = tmp_path / "model_final_checkpoint.model"
    path.with_name(path.name + ".pkl").write_bytes(pickled({"plans": v1(9, EVEN)}, 4))
    match = found(with_head("stu_net_b", 10), path)
    assert match.variant["strides"] == EVEN
    assert match.notes[0].startswith("Strides from model_final_checkpoint.model.pkl: 2 x 2 x 2,")


def test_a_plan_of_something_else_is_not_used(tmp_path):
    (tmp_path / "plans.pkl").write_bytes(pickled(v1(13, EVEN), 4))
    match = found(layout("stu_net_s"), tmp_path / "small.model")
    assert match.variant["strides"] == PUBLISHED
    assert "plans.pkl beside the file was not used" in match.notes[0]
    assert "14 classes, the weights have 1 and 105" in match.notes[0]


def test_the_plan_in_the_checkpoint_goes_first(tmp_path):
    (tmp_path / "plans.pkl").write_bytes(pickled(v1(9, EVEN), 4))
    inside = {
        "plans": {
            "configurations": {
                "3d_fullres": {"pool_op_kernel_sizes": [[1, 1, 1], *[[2, 2, 2]] * 4, [2, 1, 1]]}
            }
        },
        "dataset_json": {"labels": {str(i): i for i in range(10)}},
    }
    match = found(with_head("stu_net_b", 10), tmp_path / "x.pth", plans=inside)
    assert match.variant["strides"][-1] == [2, 1, 1]
    assert "the checkpoint itself" in match.notes[0]


def test_plans_are_only_read_for_networks_that_need_them(tmp_path):
    (tmp_path / "plans.pkl").write_bytes(b"damaged")
    assert found(layout("medlam"), tmp_path / "medlam.pth").network == "medlam"
    with pytest.raises(CheckpointError, match=r"plans\.pkl is damaged"):
        found(layout("stu_net_s"), tmp_path / "small.model")


def test_a_small_network_of_that_kind_is_refused():
    tiny = {
        key: torch.zeros([max(1, size // 4) if i < 2 else size for i, size in enumerate(v.shape)])
        for key, v in layout("stu_net_s").items()
    }
    assert "nearest to stu-net-s" in reason(tiny)


# --- from the file to the network ----------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", ["model_state_dict", "model", "state_dict"])
def test_from_a_real_file(tmp_path, wrapper, legacy):
    weights = {f"module.{k}": torch.rand(v.shape) for k, v in layout("fmunet_mini").items()}
    path = save({wrapper: weights, "iteration": 3}, tmp_path / "x.pt", legacy)
    match = identify(read_checkpoint(path), path)
    assert match.network == "fmunet"
    assert all(torch.equal(weights[f"module.{k}"], v) for k, v in match.tensors.items())
