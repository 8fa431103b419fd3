"""Tell from names and shapes which network weights belong to; file names are not asked.

Each detector knows one family by a key that no other has, and reads the variant (size,
channels, classes) off the shapes. Whether everything fits is checked afterwards against the
network itself, so a detector may be generous. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from napari_openmedlab.models.checkpoints.nnunet_plans import Plan, Strides

__all__ = ["HARMLESS_EXTRAS", "Candidate", "Shapes", "adapter_keys", "candidates"]

Shapes = Mapping[str, tuple[int, ...]]

# Keys that a published file of the network has too many, without meaning for it: the challenge
# files of SAM-Med3D carry embeddings of box corners, which their own inference does not use.
HARMLESS_EXTRAS: Mapping[str, frozenset[str]] = {
    "sam-med3d": frozenset(f"prompt_encoder.point_embeddings.{i}.weight" for i in (2, 3)),
}

# The strides of the published TotalSegmentator weights; all four sizes share them.
_PUBLISHED_STRIDES: Strides = (*[(2, 2, 2)] * 4, (1, 1, 2))
_PUBLISHED_CHANNELS = (1, 105)
_BRATS_STRIDES: Strides = ((2, 2, 2),) * 5  # of the fine-tuned BraTS21 weights
_BRATS_CHANNELS = (4, 5)
_STU_NET_WIDTHS = {16: "stu-net-s", 32: "stu-net-b", 64: "stu-net-l", 96: "stu-net-h"}
_SAM_WIDTHS = {768: ("sam-vit-b", "medsam"), 1024: ("sam-vit-l",), 1280: ("sam-vit-h",)}
_SAM_PATCH = 16


@dataclass(frozen=True)
class Candidate:
    """A network the weights may belong to.

    Attributes
    ----------
    network : str
        Name for :func:`napari_openmedlab.models.networks.build`.
    variant : dict
        Its keywords; plain JSON values.
    notes : tuple of str
        How what the weights don't say was decided.
    facts : dict
        What the plan says of input and classes; see :mod:`.nnunet_facts`.
    """

    network: str
    variant: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def candidates(shapes: Shapes, plan: Callable[[], Plan | None]) -> tuple[Candidate, ...]:
    """Return the networks that the weights look like: none, one, or several that look alike.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Of all tensors, by key without ``module.``.
    plan : callable
        Looks for nnU-Net's plan; called only for networks that need one.
    """
    if _marked(shapes, "conv_blocks_context.0.0.conv1.weight", 5):
        return (_stu_net(shapes, plan()),)
    for detector in (_sam, _sam_3d, _axon_seg, _pct_net, _fmunet, _medlam):
        found = detector(shapes)
        if found:
            return found
    return ()


def adapter_keys(shapes: Shapes) -> tuple[str, ...]:
    """Return the keys of SAM-Med2D's adapters, which FT-SAM does without."""
    return tuple(key for key in shapes if ".Adapter." in key)


def _marked(shapes: Shapes, key: str, dimensions: int) -> bool:
    """Whether the key is there with so many dimensions."""
    return len(shapes.get(key, ())) == dimensions


def _sam(shapes: Shapes) -> tuple[Candidate, ...]:
    if not _marked(shapes, "image_encoder.pos_embed", 4):
        return ()
    _, side, _, width = shapes["image_encoder.pos_embed"]
    if adapter_keys(shapes):
        return (Candidate("sam-med2d"),)
    if side * _SAM_PATCH == 256:
        return (Candidate("ft-sam"),)
    return tuple(Candidate(name) for name in _SAM_WIDTHS.get(width, ("sam-vit-b",)))


def _sam_3d(shapes: Shapes) -> tuple[Candidate, ...]:
    return (Candidate("sam-med3d"),) if _marked(shapes, "image_encoder.pos_embed", 5) else ()


def _stu_net(shapes: Shapes, plan: Plan | None) -> Candidate:
    width, in_channels = shapes["conv_blocks_context.0.0.conv1.weight"][:2]
    out_channels = (shapes.get("seg_outputs.4.weight") or (0,))[0]
    network = _STU_NET_WIDTHS[min(_STU_NET_WIDTHS, key=lambda known: abs(known - width))]
    strides, note = _strides(in_channels, out_channels, plan)
    used = plan is not None and _fits(plan, in_channels, out_channels)
    variant = {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "strides": [list(stride) for stride in strides],
    }
    return Candidate(network, variant, (note,), plan.facts if plan is not None and used else {})


def _fits(plan: Plan, in_channels: int, out_channels: int) -> bool:
    """Return whether a plan is for weights of these channels and classes."""
    return plan.in_channels in (None, in_channels) and plan.out_channels in (None, out_channels)


def _strides(in_channels: int, out_channels: int, plan: Plan | None) -> tuple[Strides, str]:
    """Return the strides and a sentence on where they come from."""
    published = (
        "Strides: the published ones of STU-Net's TotalSegmentator weights (four times 2 x 2 x 2, "
        "then 1 x 1 x 2)"
    )
    if plan is None and (in_channels, out_channels) == _PUBLISHED_CHANNELS:
        return _PUBLISHED_STRIDES, f"{published}; channels and classes are theirs."
    if plan is None and (in_channels, out_channels) == _BRATS_CHANNELS:
        return _BRATS_STRIDES, (
            "Strides: five times 2 x 2 x 2, those of the published BraTS21 weights, whose channels "
            "and classes these have. If they are others, put the plan beside the file and import "
            "it again."
        )
    if plan is None:
        return _PUBLISHED_STRIDES, (
            f"{published}, because no plan lies beside the file. Weights trained with other "
            "strides give wrong masks so: put the plan (NAME.model.pkl, plans.pkl or plans.json) "
            "beside the file and import it again."
        )
    if not _fits(plan, in_channels, out_channels):
        return _PUBLISHED_STRIDES, (
            f"{published}. {plan.source} beside the file was not used: it is for "
            f"{plan.in_channels} channels and {plan.out_channels} classes, the weights have "
            f"{in_channels} and {out_channels}."
        )
    text = ", ".join(" x ".join(map(str, stride)) for stride in plan.strides)
    return plan.strides, f"Strides from {plan.source}: {text}."


def _axon_seg(shapes: Shapes) -> tuple[Candidate, ...]:
    first = "conv_blocks_context.0.blocks.0.conv.weight"
    if not _marked(shapes, first, 5):
        return ()
    variant: dict[str, Any] = {
        "in_channels": shapes[first][1],
        "classes": (shapes.get("seg_outputs.4.weight") or (0,))[0],
    }
    if not any(key.startswith("axial_attention.") for key in shapes):
        return (Candidate("axon-seg-plain", variant),)
    position = "axial_embedding.3.param_0"
    if _marked(shapes, position, 5):
        variant["patch_size"] = shapes[position][2] * 2
    return (Candidate("axon-seg", variant),)


def _pct_net(shapes: Shapes) -> tuple[Candidate, ...]:
    stem = "embeddings.0.proj.weight"
    widths = [
        stem,
        "embeddings.0.down1.conv.2.weight",
        "embeddings.0.down2.conv.2.weight",
        "pyramid_ct.down3.conv.2.weight",
        "pyramid_ct.down4.conv.2.weight",
    ]
    head = "pred_heads.0.out_conv0.conv.2.weight"
    if not all(_marked(shapes, key, 5) for key in (*widths, head)):
        return ()
    variant = {
        "in_channels": shapes[stem][1],
        "out_channels": shapes[head][0],
        "channels": [shapes[key][0] for key in widths],
        "resolution_mode": 1,
        "windows": [_window(shapes, level) for level in (2, 3, 4)],
    }
    note = (
        "Resolution mode 1 (as published): a PCT-Net file holds all three modes and does not say "
        "which were trained."
    )
    return (Candidate("pct-net", variant, (note,)),)


def _window(shapes: Shapes, level: int) -> int:
    """Return the attention window w of a level from its table of (2w - 1)^3 rows."""
    table = f"pyramid_ct.convtrans_e{level}.trans.blocks.0.attn.relative_position_bias_table"
    rows = (shapes.get(table) or (0,))[0]
    edge: int = round(float(rows) ** (1 / 3))
    return (edge + 1) // 2


def _fmunet(shapes: Shapes) -> tuple[Candidate, ...]:
    stem, head = "project.weight", "out_layers.0.2.weight"
    levels = [f"encoder.en_conv{level}.conv_list.0.3.weight" for level in range(5)]
    if not all(_marked(shapes, key, 5) for key in (stem, head, *levels)):
        return ()
    # A flat kernel (1 x 3 x 3) at level 0 is mode 1, at levels 0 and 1 it is mode 2.
    flat = sum(shapes[key][2] == 1 for key in (stem, levels[1]))
    variant = {
        "in_channels": shapes[stem][1],
        "out_channels": shapes[head][0],
        "channels": [shapes[key][0] for key in levels],
        "resolution_mode": flat,
    }
    return (Candidate("fmunet", variant),)


def _medlam(shapes: Shapes) -> tuple[Candidate, ...]:
    marked = _marked(shapes, "conv0_1.model.conv1_1.Conv.weight", 5)
    return (Candidate("medlam"),) if marked else ()
