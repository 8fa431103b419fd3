"""Which network a checkpoint belongs to: decided by its content, checked strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models import networks
from napari_openmedlab.models.checkpoints.detectors import (
    HARMLESS_EXTRAS,
    Candidate,
    adapter_keys,
    candidates,
)
from napari_openmedlab.models.checkpoints.nnunet_plans import Plan, find_plan, plan_of_checkpoint
from napari_openmedlab.models.checkpoints.reading import RawCheckpoint
from napari_openmedlab.models.checkpoints.skeleton import skeleton
from napari_openmedlab.models.finetuned import ModelCard

__all__ = ["AmbiguousCheckpoint", "Match", "differences", "identify"]

_SHOWN = 3
_UNKNOWN = 0.2  # less of a network's tensors than this is no resemblance
_WITHOUT_ADAPTERS = {"ft-sam": "sam-med2d"}


class AmbiguousCheckpoint(CheckpointError):
    """Weights that fit several networks equally; ``candidates`` names them."""

    def __init__(self, message: str, path: str | Path | None, candidates: Sequence[str]) -> None:
        super().__init__(message, path)
        self.candidates = tuple(candidates)


@dataclass(frozen=True)
class Match:
    """The network that weights belong to, and the weights in its order.

    Attributes
    ----------
    network : str
        Name for :func:`napari_openmedlab.models.networks.build`.
    variant : dict
        Its keywords; plain JSON values.
    tensors : dict of str to torch.Tensor
        Every entry of the network's state dict, in its order; float32, buffers that count
        stay int64.
    dropped : tuple of str
        Keys left out: harmless extras, or adapters that the chosen network does without.
    notes : tuple of str
        Sentences for the user on what the weights themselves don't say.
    facts : dict
        What nnU-Net's plan says of input and classes; see :mod:`.nnunet_facts`.
    """

    network: str
    variant: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    facts: dict[str, Any] = field(default_factory=dict)


def identify(
    raw: RawCheckpoint,
    path: str | Path,
    as_network: str | None = None,
    card: ModelCard | None = None,
) -> Match:
    """Return the network that the weights belong to.

    Parameters
    ----------
    raw : RawCheckpoint
    path : str or Path
        Where it was read: nnU-Net's plan is looked for beside it, and errors name it.
    as_network : str, optional
        Which of several networks that fit is meant (SAM ViT-B and MedSAM are alike), or
        ``"ft-sam"`` to take SAM-Med2D weights without their adapters, a published setting.
    card : ModelCard, optional
        Of a model trained here: it says what network this is, so nothing has to be guessed.

    Returns
    -------
    Match

    Raises
    ------
    AmbiguousCheckpoint
        If several networks fit and ``as_network`` names none of them.
    CheckpointError
        If a tensor is missing, too much or of another shape; the text gives the first
        differences from the network that comes nearest. Also for weights of another network
        than asked for.
    """
    path = Path(path)
    if as_network is not None and as_network not in networks.names():
        raise CheckpointError(
            f"there is no network '{as_network}'; there are: {', '.join(networks.names())}", path
        )
    if card is not None:
        return _as_its_card_says(raw, card, path, as_network)
    shapes = {key: tuple(tensor.shape) for key, tensor in raw.tensors.items()}
    found = candidates(shapes, lambda: _plan(raw, path))
    if not found:
        raise _unknown(raw.tensors, path)
    chosen, dropped = _chosen(found, as_network, path)
    left_out = adapter_keys(shapes) if dropped else ()
    tensors = {key: value for key, value in raw.tensors.items() if key not in left_out}
    match = _checked(chosen, tensors, path)
    if len(found) > 1 and as_network is None:
        names = [candidate.network for candidate in found]
        raise AmbiguousCheckpoint(
            f"{path.name} fits {' and '.join(names)}, which have the same layout; say which it is",
            path,
            names,
        )
    return replace(match, dropped=left_out + match.dropped)


def differences(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> list[str]:
    """Return in words what keeps tensors from being a network's state dict; empty if nothing.

    Parameters
    ----------
    found, wanted : mapping of str to torch.Tensor
        Shapes and kinds of number are compared (float or whole), not values or order.
    """
    texts = []
    for key, tensor in wanted.items():
        other = found.get(key)
        if other is None:
            texts.append(f"'{key}' {tuple(tensor.shape)} is missing")
        elif other.shape != tensor.shape:
            texts.append(f"'{key}' is {tuple(other.shape)} instead of {tuple(tensor.shape)}")
        elif _kind(other) != _kind(tensor):
            texts.append(f"'{key}' holds {other.dtype} instead of {tensor.dtype} numbers")
    texts += [f"'{key}' is too much" for key in found if key not in wanted]
    return texts


def _as_its_card_says(
    raw: RawCheckpoint, card: ModelCard, path: Path, as_network: str | None
) -> Match:
    if as_network not in (None, card.network):
        raise CheckpointError(
            f"{path.name} holds weights of {card.network}, not of {as_network}", path
        )
    return _checked(Candidate(card.network, dict(card.variant)), raw.tensors, path)


def _plan(raw: RawCheckpoint, path: Path) -> Plan | None:
    inside = plan_of_checkpoint(raw.plans, "the checkpoint itself") if raw.plans else None
    return inside if inside is not None else find_plan(path)


def _chosen(
    found: tuple[Candidate, ...], as_network: str | None, path: Path
) -> tuple[Candidate, bool]:
    """Return the candidate to check and whether its adapters are to be left out."""
    if as_network is None:
        return found[0], False
    for candidate in found:
        if candidate.network == as_network:
            return candidate, False
    looks = " or ".join(candidate.network for candidate in found)
    if _WITHOUT_ADAPTERS.get(as_network) == looks:
        note = "SAM-Med2D's weights without their adapters (published as SAM-Med2D*)."
        return Candidate(as_network, {}, (note,)), True
    raise CheckpointError(f"{path.name} holds weights of {looks}, not of {as_network}", path)


def _checked(candidate: Candidate, tensors: Mapping[str, torch.Tensor], path: Path) -> Match:
    wanted = _state(candidate.network, candidate.variant, path)
    extras = HARMLESS_EXTRAS.get(candidate.network, frozenset())
    dropped = tuple(key for key in tensors if key in extras and key not in wanted)
    kept = {key: tensor for key, tensor in tensors.items() if key not in dropped}
    wrong = differences(kept, wanted)
    if wrong:
        raise _refusal(path, candidate, wrong)
    ordered = {key: _as_wanted(kept[key], wanted[key]) for key in wanted}
    return Match(
        candidate.network, candidate.variant, ordered, dropped, candidate.notes, candidate.facts
    )


def _state(network: str, variant: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """Return the network's state dict without memory for its values."""
    try:
        state = skeleton(network, variant).state_dict()
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"{path.name} looks like {network}, but not in a form that can be built: {error}", path
        ) from error
    return dict(state)


def _kind(tensor: torch.Tensor) -> str:
    if tensor.dtype.is_complex:
        return "complex"
    if tensor.dtype.is_floating_point:
        return "float"
    return "truth" if tensor.dtype == torch.bool else "whole"


def _as_wanted(tensor: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the tensor in the network's number type; itself if it has it already."""
    return tensor.to(wanted.dtype)


def _refusal(path: Path, candidate: Candidate, wrong: list[str]) -> CheckpointError:
    given = {key: value for key, value in candidate.variant.items() if key != "strides"}
    variant = ", ".join(f"{key} {value}" for key, value in given.items())
    name = f"{candidate.network} ({variant})" if variant else candidate.network
    shown = "; ".join(wrong[:_SHOWN])
    more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return CheckpointError(
        f"{path.name} does not fit: it comes nearest to {name}, but {shown}{more}. Choose the "
        "published file, or one fine-tuned from it without changes to the network",
        path,
    )


def _unknown(tensors: Mapping[str, torch.Tensor], path: Path) -> CheckpointError:
    """Return the error for weights that no detector knows: with the nearest network, if any."""
    nearest, share, wrong = "", 0.0, [""]
    for name in networks.names():
        wanted = _state(name, {}, path)
        same = sum(k in tensors and tensors[k].shape == v.shape for k, v in wanted.items())
        if same / len(wanted) > share:
            nearest, share = name, same / len(wanted)
            wrong = differences(tensors, wanted)
    if share >= _UNKNOWN:
        return _refusal(path, Candidate(nearest), wrong)
    first = ", ".join(f"'{key}'" for key in list(tensors)[:_SHOWN])
    return CheckpointError(
        f"{path.name} holds weights of no network known here (its first names: {first}). Known "
        f"are {', '.join(networks.names())}",
        path,
    )
