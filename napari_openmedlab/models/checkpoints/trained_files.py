"""Write the weights of a network trained here, with its card, in the form a store imports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from napari_openmedlab import __version__
from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.io.atomic import resolved_target, staging
from napari_openmedlab.models.checkpoints.disk import require_space
from napari_openmedlab.models.checkpoints.identify import differences
from napari_openmedlab.models.checkpoints.skeleton import skeleton
from napari_openmedlab.models.checkpoints.weight_files import (
    Steps,
    refuse_non_finite,
    write_weights,
)
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.finetuned import ModelCard, card_metadata

__all__ = ["write_trained"]


def write_trained(path: Path, state_dict: Mapping[str, torch.Tensor], card: ModelCard) -> str:
    """Write weights and card; see :func:`napari_openmedlab.models.finetuned.write_model`."""
    target = resolved_target(path)
    wanted = _wanted(card, target)
    wrong = differences(state_dict, wanted)
    if wrong:
        raise CheckpointError(
            f"the weights are not those of {card.network} as its card says: {'; '.join(wrong[:3])}",
            target,
        )
    tensors = {
        key: state_dict[key].detach().to(device="cpu", dtype=like.dtype)
        for key, like in wanted.items()
    }
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    require_space(target.parent, size, f"writing {target.name}")
    steps = Steps(Monitor(), 2 * size)
    refuse_non_finite(tensors, target, steps)
    metadata = {"format": "pt", "openmedlab.version": __version__, **card_metadata(card)}
    with staging(target.parent) as folder, (folder / target.name).open("wb") as file:
        return write_weights(file, tensors, metadata, steps)


def _wanted(card: ModelCard, path: Path) -> dict[str, torch.Tensor]:
    """Return the network's state dict without memory for its values."""
    try:
        return dict(skeleton(card.network, card.variant).state_dict())
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"the network of the card can't be built: {error}", path) from error
