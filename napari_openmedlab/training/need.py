"""How much memory a training step takes, told before it runs; and parts that fit."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from napari_openmedlab.models.device import AUTO, Device, Precision, precision_for
from napari_openmedlab.models.memory import MARGIN, MemoryNeed, estimate, shortage
from napari_openmedlab.training.settings import LoopSettings

__all__ = ["fitted", "training_need", "training_precision"]

_COPIES = 2  # what Adam keeps beside each weight; gradients are counted while running


def training_precision(device: Device, wanted: str) -> Precision:
    """Return the precision a network is trained in, as :func:`.device.precision_for` would.

    Apple's GPU trains in float32 unless asked otherwise: it is best in float16, which needs
    its losses scaled, and that was never tried there.
    """
    if device.kind == "mps" and wanted == AUTO:
        return "float32"
    return precision_for(device, wanted)


def training_need(
    network: str,
    variant: Mapping[str, Any],
    patch: tuple[int, int, int],
    patches: int,
    precision: Any = "float32",
) -> MemoryNeed:
    """Follow one training step without numbers and return what it needs at its peak.

    Parameters
    ----------
    network : str
    variant : mapping
        As for ``networks.build``.
    patch : tuple of int
    patches : int
        Computed at once.
    precision : {"float32", "bfloat16", "float16"}

    Returns
    -------
    MemoryNeed
        ``weights`` with what the optimiser keeps. For the published networks and two patches of
        64x128x128 in float32: 8.8 GiB (FMUNet) and 18.0 GiB (PCT-Net) in all.
    """
    return _need(network, json.dumps(dict(variant), sort_keys=True), patch, patches, precision)


@functools.lru_cache(maxsize=32)  # a second each; a form asks again at each change
def _need(
    network: str, variant: str, patch: tuple[int, int, int], patches: int, precision: Any
) -> MemoryNeed:
    import torch

    from napari_openmedlab.models import networks
    from napari_openmedlab.training.losses import deep_loss

    def build() -> Any:
        built = networks.build(network, **json.loads(variant)).train()
        built.deep_supervision = True
        return built

    def step(built: Any) -> None:
        # Backwards in float32, as it is outside of autocast; the estimate is then on the safe side.
        with torch.enable_grad():
            logits = built(torch.zeros(patches, 1, *patch))
            deep_loss(logits, torch.zeros(patches, *patch, dtype=torch.uint8)).backward()

    need = estimate(build, step, precision)
    return MemoryNeed(need.weights * (1 + _COPIES), need.running)


def fitted(
    loop: LoopSettings,
    network: str,
    variant: Mapping[str, Any],
    patch: tuple[int, int, int],
    device: Device,
) -> tuple[LoopSettings, int, str]:
    """Return a loop whose batches are computed in as many parts as the device's memory asks for.

    Returns
    -------
    loop : LoopSettings
    bytes : int
        What it needs at its peak.
    warning : str
        If even one patch at a time may not fit; else empty.
    """
    precision = training_precision(device, loop.precision)
    at_once = -(-loop.batch // loop.accumulation)
    while True:
        need = training_need(network, variant, patch, at_once, precision)
        if at_once == 1 or need.total * MARGIN <= device.free:
            break
        at_once = -(-at_once // 2)
    parts = max(loop.accumulation, -(-loop.batch // at_once))
    return replace(loop, accumulation=parts), need.total, shortage(need, device)
