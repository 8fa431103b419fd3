"""How much memory a network will need, told before it is loaded and before it runs.

The estimate follows a forward pass with tensors that have shapes and no numbers: it takes about
a second, whatever the network's size, and needs no weights.
"""

from __future__ import annotations

import json
import math
import struct
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models.device import Device, Precision, gib

__all__ = ["MARGIN", "MemoryNeed", "estimate", "shortage", "weights_in_file"]

#: In float32 on the CPU no measured peak exceeded the estimate times this.
MARGIN = 1.3

# Bytes that torch's allocator and maths libraries keep beside the tensors: 30 to 170 MB measured.
_BESIDE = 128 * 2**20
_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes a network needs.

    Attributes
    ----------
    weights : int
        From loading to the end.
    running : int
        On top of that, at the worst moment of a forward pass; inputs and outputs included.
    """

    weights: int
    running: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.running

    def __str__(self) -> str:
        return f"{gib(self.weights)} for the weights and {gib(self.running)} to run"


def weights_in_file(path: str | Path) -> int:
    """Return how many bytes the weights of a safetensors file take; only its header is read.

    Raises
    ------
    CheckpointError
        If the file can't be read as safetensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError("the header is too long")
            header = json.loads(file.read(length))
        entries = (entry for key, entry in header.items() if key != "__metadata__")
        return sum(int(end) - int(start) for start, end in (e["data_offsets"] for e in entries))
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}", path) from error
    except (struct.error, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path.name} is no safetensors file ({error})", path) from error


def estimate(
    build: Callable[[], Any], forward: Callable[[Any], Any], precision: Precision = "float32"
) -> MemoryNeed:
    """Follow a forward pass without numbers and return what it would need at its peak.

    Parameters
    ----------
    build : callable
        Returns the network, for example ``lambda: networks.build("medlam")``. Its parameters
        take no memory here; leave their layout as it is. A network in use must not be given: it
        might keep a tensor without numbers.
    forward : callable
        Takes the network, makes inputs of the true shapes (``torch.zeros``) and runs it.
    precision : {"float32", "bfloat16", "float16"}
        As in :func:`napari_openmedlab.models.device.autocast`. Half precision is followed as the
        CPU does it; cards keep a few more operations in float32.

    Returns
    -------
    MemoryNeed
        In float32 on the CPU no measured peak exceeded ``running`` by more than the factor
        :data:`MARGIN`; small runs need up to 128 MiB less. In bfloat16 on the CPU it was
        1.35 at most in the layout a network names as its ``memory_format``; in the other one
        oneDNN's copies of large outputs may double it. Not measured on cards, whose
        convolutions may take more working space.

    Notes
    -----
    Counted are all live tensors at every operation, and beside each convolution one reordered
    copy of its input and weights, which is what oneDNN makes; then a fixed amount for what
    torch keeps beside the tensors.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network = build()
        weights = sum(_size(t) for t in (*network.parameters(), *network.buffers()))
        half = precision != "float32"
        dtype = getattr(torch, precision) if half else torch.bfloat16
        # Without the cache of converted weights, as it is in inference_mode.
        with torch.autocast("cpu", dtype=dtype, enabled=half, cache_enabled=False):
            running = _peak_of(lambda: forward(network))
    return MemoryNeed(weights, running + _BESIDE)


def shortage(need: MemoryNeed, device: Device, loaded: bool = False) -> str:
    """Return a sentence for the user if a run will not fit or may not; else an empty text.

    Parameters
    ----------
    need : MemoryNeed
    device : Device
        With its free memory as it is now.
    loaded : bool
        Whether the weights are in its memory already.
    """
    wanted = need.running if loaded else need.total
    if wanted * MARGIN <= device.free:
        return ""
    sure = wanted > device.free * MARGIN
    last = (
        "Close other programs or take a smaller region."
        if device.kind == "cpu"
        else "Smaller batches, half precision and the CPU are tried in turn."
    )
    return (
        f"This {'will not' if sure else 'may not'} fit into the memory of {device.id}: about "
        f"{gib(wanted)} are needed, {gib(device.free)} are free. {last}"
    )


def _peak_of(run: Callable[[], Any]) -> int:
    """Return the most bytes that were alive at once in tensors made while ``run`` ran."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(
            self, operation: Any, _types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            ledger.note((args, kwargs), made=False)
            out = operation(*args, **(kwargs or {}))
            ledger.note(out, made=True)
            ledger.peak = max(ledger.peak, ledger.alive + _beside(operation, args))
            return out

    ledger = _Ledger()
    with Watch():
        run()
    return ledger.peak


class _Ledger:
    """Bytes of the storages alive; those that were there before count nothing."""

    def __init__(self) -> None:
        self.alive = self.peak = 0
        self._sizes: dict[int, int] = {}

    def note(self, value: Any, *, made: bool) -> None:
        for tensor in _tensors(value):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._sizes:
                continue
            self._sizes[key] = storage.nbytes() if made else 0
            self.alive += self._sizes[key]
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.alive -= self._sizes.pop(key, 0)


def _beside(operation: Any, args: Any) -> int:
    """Return the working space of an operation."""
    if "convolution" not in str(operation):
        return 0
    return _size(args[0]) + _size(args[1])


def _size(tensor: Any) -> int:
    return int(math.prod(tensor.shape) * tensor.element_size())


def _tensors(value: Any) -> list[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for item in value for tensor in _tensors(item)]
