"""The inputs on which the networks are measured, and how their answers are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F

__all__ = ["CASES", "Case", "agreement", "image"]

Compare = Literal["classes", "masks", "values"]
Encode = Callable[[Any, torch.Tensor], torch.Tensor]
Decode = Callable[[Any, torch.Tensor], Any]


def _whole(network: Any, images: torch.Tensor) -> Any:
    return network(images)


def _encode(network: Any, images: torch.Tensor) -> Any:
    return network.encode(images)


def _click_2d(network: Any, embedding: torch.Tensor) -> Any:
    middle = network.image_size / 2
    point = torch.full((1, 1, 2), middle, device=embedding.device)
    return network.decode(embedding, point, torch.ones(1, 1, device=embedding.device))[0]


def _click_3d(network: Any, embedding: torch.Tensor) -> Any:
    point = torch.full((1, 1, 3), 64.0, device=embedding.device)
    label = torch.ones(1, 1, dtype=torch.long, device=embedding.device)
    return network.decode(embedding, point, label, network.empty_mask())[0]


@dataclass(frozen=True)
class Case:
    """How one network is measured.

    Attributes
    ----------
    shape : tuple of int
        Of the published input, (batch, channels, ...).
    small : tuple of int
        Of the input with ``--quick``; the same where the network takes no other.
    compare : {"classes", "masks", "values"}
        How two precisions are compared: largest of several classes, logits above 0, numbers.
    forward : callable
        Network and images to the answer, or to the embedding where ``decode`` follows.
    decode : callable, optional
        Network and embedding to the answer to one click.
    variant, small_variant : mapping
        Keywords of the network's builder, published and with ``--quick``.
    """

    shape: tuple[int, ...]
    small: tuple[int, ...]
    compare: Compare = "classes"
    forward: Encode = _whole
    decode: Decode | None = None
    variant: Mapping[str, Any] = field(default_factory=dict)
    small_variant: Mapping[str, Any] = field(default_factory=dict)


def _cube(side: int) -> tuple[int, ...]:
    return (1, 1, side, side, side)


def _slices(side: int) -> Case:
    return Case((1, 3, side, side), (1, 3, side, side), "masks", _encode, _click_2d)


CASES: dict[str, Case] = {
    **dict.fromkeys(("sam-vit-b", "sam-vit-l", "sam-vit-h", "medsam"), _slices(1024)),
    **dict.fromkeys(("ft-sam", "sam-med2d"), _slices(256)),
    "sam-med3d": Case(_cube(128), _cube(128), "masks", _encode, _click_3d),
    **dict.fromkeys((f"stu-net-{size}" for size in "sblh"), Case(_cube(128), _cube(64))),
    "pct-net": Case((1, 1, 64, 128, 128), (1, 1, 48, 96, 96)),
    "fmunet": Case((1, 1, 64, 128, 128), (1, 1, 32, 64, 64)),
    "medlam": Case(_cube(64), _cube(64), "values"),
    "axon-seg": Case(_cube(128), _cube(64), small_variant={"patch_size": 64}),
    "axon-seg-plain": Case(_cube(128), _cube(64)),
}


def image(shape: tuple[int, ...]) -> torch.Tensor:
    """Return a made-up image with large and small structures, mean 0; always the same."""
    source = torch.Generator().manual_seed(0)
    coarse = [max(1, side // 16) for side in shape[2:]]
    blocks = torch.randn(*shape[:2], *coarse, generator=source)
    mode = "bilinear" if len(shape) == 4 else "trilinear"
    smooth = F.interpolate(blocks, size=shape[2:], mode=mode, align_corners=False)
    return smooth + 0.3 * torch.randn(*shape, generator=source)


def agreement(compare: Compare, found: Any, wanted: Any) -> str:
    """Say how far an answer lies from that in float32."""
    pairs = list(zip(_flat(found), _flat(wanted), strict=True))
    largest = max(float((f.float() - w.float()).abs().max()) for f, w in pairs)
    scale = max(float(w.float().std()) for _, w in pairs)
    text = f"max diff {largest:.2g} (spread {scale:.2g})"
    logits, reference = pairs[0]
    if compare == "masks":
        return f"{text}, Dice {_dice(logits > 0, reference > 0):.4f}"
    if compare == "classes":
        same = (logits.argmax(1) == reference.argmax(1)).double().mean()
        return f"{text}, same class {100 * float(same):.2f} %"
    return text


def _flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in _flat(item)]


def _dice(found: torch.Tensor, wanted: torch.Tensor) -> float:
    total = int(found.sum()) + int(wanted.sum())
    return 2 * int((found & wanted).sum()) / total if total else 1.0
