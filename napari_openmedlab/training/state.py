"""A run's state on the disk: complete at any moment, numbers only, never a pickle.

One safetensors file holds weights, optimiser and, in its header, a JSON text with the iteration
and what else is needed to go on. It takes its name's place only when it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch

from napari_openmedlab import __version__
from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.io.atomic import staging
from napari_openmedlab.models.checkpoints.disk import require_space
from napari_openmedlab.models.checkpoints.weight_files import Steps, write_weights
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.training.run_folder import FACTS_KEY

__all__ = [
    "NETWORK",
    "optimiser_tensors",
    "read_state",
    "restore_optimiser",
    "weights_of",
    "write_state",
]

_PARTS = ("exp_avg", "exp_avg_sq", "step")  # what Adam keeps of each weight
NETWORK, OPTIMISER = "network.", "optimiser."


def write_state(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and facts; what was there stays until the new file is whole.

    Parameters
    ----------
    path : Path
    tensors : mapping of str to torch.Tensor
        float32 or int64, on any device.
    facts : mapping
        Plain JSON values.

    Raises
    ------
    WriteError
        If the disk is full or the folder can't be written to.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    require_space(path.parent, size, f"keeping the training in {path.name}")
    header = {"format": "pt", "openmedlab.version": __version__, FACTS_KEY: json.dumps(dict(facts))}
    here = {key: tensor.detach().cpu() for key, tensor in tensors.items()}
    with staging(path.parent) as folder, (folder / path.name).open("wb") as file:
        write_weights(file, here, header, Steps(Monitor(), size))


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return tensors, in memory, and facts of a state.

    Raises
    ------
    CheckpointError
        If the file is damaged or no state of a training.
    """
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            facts = json.loads((file.metadata() or {})[FACTS_KEY])
            # Copies: a mapped file could not be replaced on Windows.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged or no state of a training ({error}); start the run anew in "
            "another folder",
            path,
        ) from error
    return tensors, facts


def optimiser_tensors(optimiser: torch.optim.Adam, names: Mapping[Any, str]) -> dict[str, Any]:
    """Return what Adam keeps, by ``optimiser.PART.NAME``; ``names`` are of the parameters."""
    return {
        f"{OPTIMISER}{part}.{names[weight]}": kept[part]
        for weight, kept in optimiser.state.items()
        for part in _PARTS
    }


def restore_optimiser(
    optimiser: torch.optim.Adam, names: Mapping[Any, str], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Give Adam back what :func:`optimiser_tensors` returned."""
    for weight, name in names.items():
        found = {part: tensors.get(f"{OPTIMISER}{part}.{name}") for part in _PARTS}
        if any(value is None for value in found.values()):
            continue  # a weight that never got a gradient
        optimiser.state[weight] = {
            # In the weight's own layout: then each later step does the very same sums.
            part: value if part == "step" else torch.empty_like(weight).copy_(value)
            for part, value in found.items()
        }


def weights_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the network's state dict out of a state's tensors."""
    return {
        key.removeprefix(NETWORK): tensor
        for key, tensor in tensors.items()
        if key.startswith(NETWORK)
    }
