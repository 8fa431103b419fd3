"""Convert a published file once to safetensors, and load that in a moment.

After the conversion nothing but plain numbers is read: the header says of which network they
are, the weights are mapped to memory, and the network is built without random numbers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch

from napari_openmedlab import __version__
from napari_openmedlab.errors import CheckpointError, WriteError
from napari_openmedlab.io.atomic import resolved_target, staging
from napari_openmedlab.models.checkpoints.file_kinds import file_kind
from napari_openmedlab.models.checkpoints.identify import Match, differences, identify
from napari_openmedlab.models.checkpoints.reading import read_checkpoint
from napari_openmedlab.models.checkpoints.skeleton import skeleton
from napari_openmedlab.models.checkpoints.weight_files import (
    Steps,
    hash_with,
    refuse_non_finite,
    write_weights,
)
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.finetuned import ModelCard, card_metadata, read_card

__all__ = ["Conversion", "convert", "load_network"]

_SPARE = 16 * 2**20  # bytes left on the disk besides the weights
_NETWORK, _VARIANT, _SOURCE = "openmedlab.network", "openmedlab.variant", "openmedlab.source_sha256"


@dataclass(frozen=True)
class Conversion:
    """What became of a published file.

    Attributes
    ----------
    network : str
        Name for :func:`napari_openmedlab.models.networks.build`.
    variant : dict
        Its keywords; plain JSON values.
    source_sha256, sha256 : str
        Of the published file and of the converted one.
    size : int
        Bytes of the converted file.
    tensors_dtype : str
        Number types of the published weights, for example ``"float16"``; they are float32 now.
    dropped : tuple of str
        Keys left out as harmless, or because the network chosen does without.
    notes : tuple of str
        Sentences for the user on what the weights don't say (STU-Net's strides).
    card : dict
        JSON of the model card, for models trained here; empty for others.
    facts : dict
        What nnU-Net's plan says of input and classes; see :mod:`.nnunet_facts`.
    """

    network: str
    variant: dict[str, Any]
    source_sha256: str
    sha256: str
    size: int
    tensors_dtype: str
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    card: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def convert(
    source: str | Path,
    target: str | Path,
    as_network: str | None = None,
    monitor: Monitor | None = None,
) -> Conversion:
    """Read a published file safely and write its weights as float32 safetensors.

    The target appears complete or not at all: after an error, a cancel or a full disk what was
    there before is untouched.

    Parameters
    ----------
    source : str or Path
        Is only read; may lie on a read-only disk.
    target : str or Path
        A file in an existing folder.
    as_network : str, optional
        As for :func:`.identify.identify`.
    monitor : Monitor, optional
        Hears of bytes done of bytes in all, and may cancel.

    Returns
    -------
    Conversion

    Raises
    ------
    AmbiguousCheckpoint
        If several networks fit and ``as_network`` names none.
    CheckpointError
        If the source is damaged, unsafe, of no known network, or holds NaN.
    WriteError
        If the target can't be written or the disk is full.
    Cancelled
        After a cancel.
    """
    source, monitor = Path(source), monitor or Monitor()
    target = resolved_target(Path(target))
    file_kind(source)  # names a web page or an empty file before it is hashed
    raw = read_checkpoint(source)
    card = read_card(source)
    match = identify(raw, source, as_network, card)
    dtypes = {str(raw.tensors[key].dtype).removeprefix("torch.") for key in match.tensors}
    size = sum(tensor.numel() * tensor.element_size() for tensor in match.tensors.values())
    _require_space(target.parent, size)
    steps = Steps(monitor, source.stat().st_size + 2 * size)
    steps.step(0, f"reading {source.name}")
    source_sha256 = _hash(steps, source)
    refuse_non_finite(match.tensors, source, steps)
    with staging(target.parent) as folder:
        with (folder / target.name).open("wb") as file:
            metadata = _metadata(match, source_sha256, card)
            sha256 = write_weights(file, match.tensors, metadata, steps)
            written = file.tell()
        monitor.step(steps.total, steps.total, "done")
    return Conversion(
        match.network,
        match.variant,
        source_sha256,
        sha256,
        written,
        ", ".join(sorted(dtypes)),
        match.dropped,
        match.notes,
        {} if card is None else card.as_json(),
        match.facts,
    )


def load_network(path: str | Path, network: str, variant: Mapping[str, Any] | None = None) -> Any:
    """Return the network with the weights of a converted file.

    The weights are mapped to the file: they come into memory when they are used, once for all
    programs that use the file. Delete or replace the file only after the network is gone
    (Windows refuses otherwise).

    Parameters
    ----------
    path : str or Path
        Written by :func:`convert`.
    network : str
        Name for :func:`napari_openmedlab.models.networks.build`.
    variant : mapping, optional
        Its keywords.

    Returns
    -------
    torch.nn.Module
        In eval mode, float32, on the CPU; every tensor is from the file or a constant of the
        network.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or of another network or variant.
    """
    path, variant = Path(path), dict(variant or {})
    tensors, metadata = _mapped(path)
    _require_same(metadata, network, variant, path)
    try:
        module = skeleton(network, variant)
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path.name} is for a form of {network} that can't be built: {error}", path
        ) from error
    wrong = differences(tensors, module.state_dict())
    if wrong:
        raise CheckpointError(
            f"{path.name} does not fit {network}: {'; '.join(wrong[:3])}; import the published "
            "file again",
            path,
        )
    module.load_state_dict(tensors, strict=True, assign=True)
    left = [
        name
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if tensor.is_meta
    ]
    if left:
        raise CheckpointError(f"{network} has no values for {', '.join(left[:3])}", path)
    return module.eval()


def _hash(steps: Steps, source: Path) -> str:
    try:
        return hash_with(steps, source)
    except OSError as error:
        raise CheckpointError(
            f"{source} can't be read: {error.strerror or error}; is its disk still there?", source
        ) from error


def _mapped(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return all tensors, mapped to the file, and the header's own words."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; import the published file again", path)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path.name} is damaged ({error}); import the published file again", path
        ) from error
    return tensors, metadata


def _metadata(match: Match, source_sha256: str, card: ModelCard | None) -> dict[str, str]:
    return {
        **({} if card is None else card_metadata(card)),
        "format": "pt",
        _NETWORK: match.network,
        _VARIANT: json.dumps(match.variant, sort_keys=True),
        _SOURCE: source_sha256,
        "openmedlab.version": __version__,
    }


def _require_same(
    metadata: Mapping[str, str], network: str, variant: Mapping[str, Any], path: Path
) -> None:
    if _NETWORK not in metadata:
        raise CheckpointError(
            f"{path.name} was not written by this program; import it (it is read and checked then)",
            path,
        )
    if metadata[_NETWORK] != network:
        raise CheckpointError(
            f"{path.name} holds weights of {metadata[_NETWORK]}, not of {network}", path
        )
    wanted = json.dumps(dict(variant), sort_keys=True)
    if metadata.get(_VARIANT) != wanted:
        raise CheckpointError(
            f"{path.name} is of another variant of {network}: {metadata.get(_VARIANT)} instead of "
            f"{wanted}",
            path,
        )


def _require_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + _SPARE:
        raise WriteError(
            f"the disk is too full: the weights need {size / 1e9:.2f} GB in {folder}, "
            f"{free / 1e9:.2f} GB are free; free some space or choose another folder",
            folder,
        )
