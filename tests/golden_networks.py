"""What all golden tests of networks share: stand-in weights and comparing key lists."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_weights import tensor_for


def load_filled(network: torch.nn.Module, prefix: str = "", salt: str = "") -> torch.nn.Module:
    """Give every state-dict entry its stand-in weights, strictly; return the network.

    ``prefix`` is put before each key when its numbers are drawn (``"module."`` of a published
    file); the memory of one more copy of the weights is never held.
    """
    state = network.state_dict()
    filled = {
        key: torch.from_numpy(np.asarray(tensor_for(prefix + key, tuple(value.shape), salt)))
        if value.is_floating_point()
        else value  # an index table is a constant, no weight
        for key, value in state.items()
    }
    network.load_state_dict(filled, strict=True, assign=True)
    return network.eval()


def shapes_of(network: torch.nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Return keys and shapes of the state dict, in order."""
    return [(key, tuple(value.shape)) for key, value in network.state_dict().items()]


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def largest_difference(found: Any, wanted: Any) -> float:
    """Return the largest absolute difference of two arrays of one shape (float64)."""
    found = np.asarray(torch.as_tensor(found).detach().float().cpu())
    assert found.shape == np.shape(wanted), f"shape {found.shape}, wanted {np.shape(wanted)}"
    return float(np.abs(found.astype(float) - np.asarray(wanted, dtype=float)).max())


@contextmanager
def recorded(modules: Mapping[str, torch.nn.Module]) -> Iterator[dict[str, Any]]:
    """Yield a dict that collects each named module's last output while the context is open."""
    outputs: dict[str, Any] = {}

    def hook_for(name: str) -> Any:
        def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            outputs[name] = output

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
