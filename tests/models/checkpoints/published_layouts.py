"""Keys and shapes of the published files, as tensors that take no memory."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path

import torch

_FILE = Path(__file__).resolve().parents[2] / "golden" / "checkpoints" / "keys.json.gz"


@functools.cache
def _lists() -> dict[str, list]:
    return json.loads(gzip.decompress(_FILE.read_bytes()))


def names() -> list[str]:
    return list(_lists())


def layout(name: str, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """A published state dict whose numbers are all zero and share one of them."""
    return {
        key.removeprefix("module."): torch.zeros((), dtype=_type(kind, dtype)).expand(shape)
        for key, shape, kind in _lists()[name]
    }


def _type(kind: str, dtype: torch.dtype | None) -> torch.dtype:
    known = getattr(torch, kind)
    return dtype if dtype is not None and known.is_floating_point else known
