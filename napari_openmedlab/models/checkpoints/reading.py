"""Read a checkpoint's weights, whatever form its publisher gave it, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models.checkpoints.file_kinds import file_kind
from napari_openmedlab.models.checkpoints.torch_files import load_legacy, load_zip

__all__ = ["RawCheckpoint", "read_checkpoint"]

# Where publishers put the weights, in the order in which they are looked for.
_WRAPPERS = ("model_state_dict", "state_dict", "network_weights", "model")
_DEEPEST = 2  # wrappers within wrappers; a hostile file could hold itself
_PREFIX = "module."


@dataclass(frozen=True)
class RawCheckpoint:
    """The weights of a file, before it is known of which network.

    Attributes
    ----------
    tensors : dict of str to torch.Tensor
        On the CPU, without gradients, in the file's order and number type; ``module.`` in
        front of the keys is gone. Mapped to the file where the format allows, so that the
        memory is taken only by what is used.
    wrapper : str
        Where in the file the weights lay, for example ``"model_state_dict"``; "" if bare.
    ignored : tuple of str
        Names of what lay beside the weights.
    plans : dict or None
        nnU-Net's own description (v2 ``init_args``: plans, configuration, dataset_json).
    """

    tensors: dict[str, torch.Tensor]
    wrapper: str = ""
    ignored: tuple[str, ...] = ()
    plans: dict[str, Any] | None = None


def read_checkpoint(path: str | Path) -> RawCheckpoint:
    """Return the weights in a ``.pth``, ``.pt``, ``.model`` or ``.safetensors`` file.

    The content decides what it is, not the suffix. Optimizer state, arguments and NumPy numbers
    beside the weights are passed over. No code in the file is ever run: see
    :mod:`.pickle_survey`.

    Parameters
    ----------
    path : str or Path
        Is only read.

    Returns
    -------
    RawCheckpoint

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, no file of weights, or asks for more than weights. The
        text says which, and what to do.
    """
    path = Path(path)
    kind = file_kind(path)
    if kind == "safetensors":
        return RawCheckpoint(_plain(_read_safetensors(path), path))
    content = load_zip(path) if kind == "torch-zip" else load_legacy(path)
    weights, wrapper, ignored = _unwrapped(content, path)
    plans = content.get("init_args") if isinstance(content, dict) else None
    return RawCheckpoint(
        _plain(weights, path), wrapper, ignored, plans if isinstance(plans, dict) else None
    )


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path.name} is damaged or cut off ({error}); fetch it again", path
        ) from error


def _unwrapped(
    content: Any, path: Path, above: str = ""
) -> tuple[dict[Any, Any], str, tuple[str, ...]]:
    """Return the weights, where they lay, and the names of what lay beside them."""
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.name} holds {_kind_of(content)} instead of named weights; ask for the weights "
            "alone (a state_dict, or a .safetensors file)",
            path,
        )
    for wrapper in _WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, dict) and inner and above.count(".") < _DEEPEST:
            beside = tuple(f"{above}{key}" for key in content if key != wrapper)
            weights, where, more = _unwrapped(inner, path, f"{above}{wrapper}.")
            return weights, where or f"{above}{wrapper}", beside + more
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path.name} holds no weights; it holds {_listed(content)}. Choose the file with the "
            "network's weights",
            path,
        )
    beside = tuple(f"{above}{key}" for key in content if key not in tensors)
    return tensors, above.removesuffix("."), beside


def _plain(weights: Mapping[Any, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Return dense CPU tensors without gradients under keys without ``module.``."""
    plain: dict[str, torch.Tensor] = {}
    for key, tensor in weights.items():
        name = str(key)
        while name.startswith(_PREFIX):
            name = name[len(_PREFIX) :]
        if name in plain:
            raise CheckpointError(f"{path.name} holds '{name}' twice", path)
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(
                f"'{name}' in {path.name} is sparse, quantized or without values; only plain "
                "tensors can be read",
                path,
            )
        plain[name] = tensor.detach()
    if not plain:
        raise CheckpointError(f"{path.name} holds no tensors", path)
    return plain


def _kind_of(content: Any) -> str:
    if isinstance(content, torch.Tensor):
        return "a single tensor"
    if isinstance(content, list | tuple):
        return "a list"
    return "something"


def _listed(content: Mapping[Any, Any]) -> str:
    names = ", ".join(repr(str(key)[:40]) for key in list(content)[:5])
    return f"{names}{', ...' if len(content) > 5 else ''}" if content else "nothing"
