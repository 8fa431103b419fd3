"""Write weights as safetensors tensor by tensor, hashed on the way.

The format is eight bytes of header length, a JSON header, then the numbers of all tensors
without gaps (https://huggingface.co/docs/safetensors). Writing it here keeps the memory at one
tensor beyond what is there, and lets a cancel come through.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models.contract import Monitor

__all__ = ["Steps", "hash_with", "refuse_non_finite", "write_weights"]

_CHUNK = 8 * 2**20
_NAMES = {torch.float32: "F32", torch.int64: "I64"}


@dataclass
class Steps:
    """Counts bytes over several passes and reports them as one."""

    monitor: Monitor
    total: int
    done: int = 0

    def step(self, amount: int, text: str) -> None:
        """Report ``amount`` more bytes; raises ``Cancelled`` after a cancel."""
        self.done += amount
        self.monitor.step(min(self.done, self.total), self.total, text)


def hash_with(steps: Steps, path: Path) -> str:
    """Return the sha256 of a file, reporting to ``steps``."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            steps.step(len(piece), f"checking {path.name}")
    return digest.hexdigest()


def refuse_non_finite(tensors: Mapping[str, torch.Tensor], path: Path, steps: Steps) -> None:
    """Raise :class:`CheckpointError` if a weight is NaN or infinite: every mask would be empty."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{path.name} is of no use: '{key}' holds numbers that are none (NaN or infinite), "
                "so the file is damaged or its training went astray; fetch it again",
                path,
            )
        steps.step(_size(tensor), f"checking {path.name}")


def write_weights(
    file: BinaryIO, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], steps: Steps
) -> str:
    """Write tensors in the safetensors format.

    Parameters
    ----------
    file : binary file
        Open for writing, at its start.
    tensors : mapping of str to torch.Tensor
        float32 or int64.
    metadata : mapping of str to str
        For the header.
    steps : Steps
        Hears of the bytes written.

    Returns
    -------
    str
        sha256 of what was written.
    """
    digest = hashlib.sha256()
    # Wide numbers first, so that each tensor starts at a multiple of its own number's size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    parts: Iterable[bytes | memoryview] = _pieces(ordered)
    for piece in itertools.chain([_header(ordered, metadata)], parts):
        digest.update(piece)
        file.write(piece)
        steps.step(len(piece), "writing")
    return digest.hexdigest()


def _header(ordered: list[tuple[str, torch.Tensor]], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for key, tensor in ordered:
        end = start + _size(tensor)
        entries[key] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(ordered: list[tuple[str, torch.Tensor]]) -> Iterator[memoryview]:
    """Yield the bytes of tensors one after the other, with one tensor copied at most."""
    for _, tensor in ordered:
        numbers = tensor.contiguous().reshape(-1).numpy()
        little = numbers.astype(numbers.dtype.newbyteorder("<"), copy=False)
        data = memoryview(little).cast("B") if little.size else memoryview(b"")
        for start in range(0, len(data), _CHUNK):
            yield data[start : start + _CHUNK]


def _size(tensor: torch.Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())
