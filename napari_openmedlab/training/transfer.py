"""Start weights: fresh as published, or taken over from pre-trained ones, the heads never.

MIS-FM's rule: a tensor is taken over if its name and shape are in the new network too; all
weights are trained. Unlike upstream the class heads are always fresh: with five classes the
heads of the pretext task would fit, and would name mixing levels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models import networks

__all__ = ["HEADS", "Start", "fresh_network", "take_over"]

#: The layers that name classes, by network.
HEADS = {
    "fmunet": re.compile(r"out_layers\.\d+\.2\."),
    "pct-net": re.compile(r"(pyramid_ct|pred_heads\.\d+)\.out_conv\d+\.conv\.2\."),
}
_SLOPE = 0.01  # of FMUNet's leaky ReLU, which its start weights are made for


@dataclass(frozen=True)
class Start:
    """What became of the tensors of a network.

    Attributes
    ----------
    kept : tuple of str
        Names of state-dict entries taken over.
    fresh : tuple of str
        Those freshly initialised: the heads, and what has another shape.
    """

    kept: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.kept)} of {len(self.kept) + len(self.fresh)} tensors were taken over, "
            f"{len(self.fresh)} start fresh"
        )


def fresh_network(network: str, variant: Mapping[str, Any], seed: int) -> Any:
    """Build a network with random start weights, as published; the same for the same seed.

    Parameters
    ----------
    network : {"fmunet", "pct-net"}
    variant : mapping
        Keywords for ``networks.build``.
    seed : int

    Returns
    -------
    torch.nn.Module
        On the CPU, float32. FMUNet: convolutions by Kaiming's normal rule, their bias 0.
        PCT-Net: torch's defaults, position tables with a deviation of 0.02.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = networks.build(network, **variant)
        if network == "fmunet":
            for module in built.modules():
                if isinstance(module, nn.Conv3d):
                    nn.init.kaiming_normal_(module.weight, a=_SLOPE)
                    nn.init.zeros_(module.bias)
    return built


def take_over(built: Any, network: str, source: Mapping[str, torch.Tensor], name: str) -> Start:
    """Copy what fits from pre-trained weights into a fresh network.

    Parameters
    ----------
    built : torch.nn.Module
        From :func:`fresh_network`; changed in place.
    network : str
    source : mapping of str to torch.Tensor
        State dict of the pre-trained network, its class heads included.
    name : str
        Of the source, for errors.

    Raises
    ------
    CheckpointError
        If less than half of the network would come from it: weights of another width.
    """
    own = built.state_dict()
    head = HEADS[network]
    kept = tuple(
        key
        for key, tensor in own.items()
        if key in source and source[key].shape == tensor.shape and not head.match(key)
    )
    if 2 * len(kept) < len(own):
        odd = next((k for k in own if k in source and k not in kept and not head.match(k)), "")
        why = f"'{odd}' is {tuple(source[odd].shape)} instead of {tuple(own[odd].shape)}"
        raise CheckpointError(
            f"{name} is no start for this {network}: only {len(kept)} of {len(own)} tensors fit"
            + (f"; {why}" if odd else "")
        )
    with torch.no_grad():
        for key in kept:
            own[key].copy_(source[key])
    return Start(kept, tuple(key for key in own if key not in kept))
