"""Where a network runs: the devices of this computer, the choice of one, and its precision.

Importing this module imports no torch; its functions do. The number of CPU threads stays as the
user or the surrounding program set it.
"""

from __future__ import annotations

import errno
import gc
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, cast

import psutil

from napari_openmedlab.errors import EngineError

__all__ = [
    "AUTO",
    "Choice",
    "Device",
    "Half",
    "Placement",
    "Precision",
    "autocast",
    "choose",
    "devices",
    "free_memory",
    "gib",
    "is_out_of_memory",
    "precision_for",
]

Half = Literal["bfloat16", "float16"]
Precision = Literal["float32", "bfloat16", "float16"]

AUTO = "auto"

# What torch and the libraries below it say when memory is short, in lower case. cuDNN's two
# "unable to find" are its way of saying that no algorithm's working space fitted.
_SIGNS = (
    "out of memory",
    "outofmemory",
    "defaultcpuallocator",
    "not enough memory",
    "insufficient memory",
    "cannot allocate memory",
    "can't allocate memory",
    "invalid buffer size",
    "bad_alloc",
    "bad allocation",
    "alloc_failed",
    "allocation_failed",
    "unable to find a valid cudnn algorithm",
    "find was unable to find an engine",
)


@dataclass(frozen=True)
class Device:
    """One device of this computer.

    Attributes
    ----------
    id : str
        As torch writes it: ``"cpu"``, ``"cuda:0"``, ``"mps"``.
    name : str
        For people.
    free, total : int
        Bytes of memory. ``free`` counts what torch holds in reserve for itself as free.
    halves : tuple of {"bfloat16", "float16"}
        Half precisions it computes in, the better one first.
    prefers_half : bool
        Whether networks run in half precision here unless asked otherwise.
    problem : str
        Why it can't be used; empty if it can.
    """

    id: str
    name: str
    free: int
    total: int
    halves: tuple[Half, ...] = ()
    prefers_half: bool = False
    problem: str = ""

    @property
    def kind(self) -> str:
        """``"cpu"``, ``"cuda"`` or ``"mps"``."""
        return self.id.partition(":")[0]

    @property
    def label(self) -> str:
        """One line for a list of choices."""
        state = self.problem or f"{gib(self.free)} of {gib(self.total)} free"
        return f"{self.id} ({self.name}, {state})"


@dataclass(frozen=True)
class Choice:
    """A device and one sentence for the user on why it was taken."""

    device: Device
    why: str


@dataclass(frozen=True)
class Placement:
    """Where and how a network runs.

    Attributes
    ----------
    device : str
        ``Device.id``.
    precision : {"float32", "bfloat16", "float16"}
    batch : int
        Patches, slices or prompts at a time.
    """

    device: str = "cpu"
    precision: Precision = "float32"
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.device} in {self.precision}, {self.batch} at a time"


def gib(size: float) -> str:
    """Return a number of bytes for people: ``"7.5 GiB"``, below one GiB ``"312 MiB"``."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def devices() -> tuple[Device, ...]:
    """Return all devices, graphics cards first, the CPU last; those with a problem too.

    The first call in a program starts the graphics driver, which may take seconds: ask in a
    worker thread.
    """
    import torch

    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    found = [_cuda(index) for index in cards]
    if torch.backends.mps.is_available():
        found.append(_mps())
    return (*found, _cpu())


def choose(wanted: str = AUTO) -> Choice:
    """Choose a device.

    Parameters
    ----------
    wanted : str
        ``"auto"``: the graphics card with the most free memory, else Apple's GPU, else the CPU.
        ``"cuda"``: the card with the most free memory. Otherwise a ``Device.id``.

    Returns
    -------
    Choice

    Raises
    ------
    EngineError
        If there is no such device or it can't be used; the message lists what there is.
    """
    found = devices()
    wanted = wanted.strip().lower()
    usable = [device for device in found if not device.problem]
    cards = [device for device in usable if device.kind == "cuda"]
    if wanted == AUTO:
        return _best(found, usable)
    if wanted == "cuda" and cards:
        return _most_free(cards)
    for device in found:
        if device.id == wanted and not device.problem:
            return Choice(device, f"{device.id} ({device.name}), as chosen.")
        if device.id == wanted:
            raise EngineError(
                f"{device.id} ({device.name}) can't be used: {device.problem}. {_listed(usable)}"
            )
    why = "" if cards or not wanted.startswith("cuda") else f" ({_no_card(found)})"
    raise EngineError(f"There is no device '{wanted}' here{why}. {_listed(usable)}")


def precision_for(device: Device, wanted: str = AUTO, half: Half | None = None) -> Precision:
    """Return the precision a network computes in.

    Parameters
    ----------
    device : Device
    wanted : str
        ``"auto"``: float32 on the CPU, where results are to be reproducible; on a GPU half
        precision if that is fast there. ``"half"``: half precision. Or the precision itself.
        In float32 CUDA keeps torch's default, which lets convolutions round as TF32 does.
    half : {"bfloat16", "float16"}, optional
        The half precision the network needs; by default bfloat16 where the card has it.

    Raises
    ------
    EngineError
        For a precision the device does not have.
    """
    choices: tuple[Precision, ...] = ("float32", *device.halves)
    best = half if half in device.halves else device.halves[0] if device.halves else None
    if wanted == AUTO:
        return best if best and device.prefers_half else "float32"
    if wanted == "half" and best:
        return best
    for precision in choices:
        if precision == wanted:
            return precision
    raise EngineError(
        f"{device.id} ({device.name}) does not compute in '{wanted}'; choose "
        f"{', '.join((AUTO, *choices))}"
    )


def autocast(placement: Placement) -> AbstractContextManager[Any]:
    """Return a context in which a float32 network computes in the placement's precision.

    Use it within ``torch.inference_mode()``: outside of it torch keeps a second copy of the
    weights in half precision while the context is open.
    """
    import torch

    kind = placement.device.partition(":")[0]
    if placement.precision == "float32":
        return cast("AbstractContextManager[Any]", torch.autocast(kind, enabled=False))
    dtype = getattr(torch, placement.precision)
    return cast("AbstractContextManager[Any]", torch.autocast(kind, dtype=dtype))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or the one it was raised from, says that memory ran out."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, MemoryError):
            return True
        if isinstance(current, OSError) and current.errno == errno.ENOMEM:
            return True
        words = str(current).lower()
        if isinstance(current, RuntimeError) and any(sign in words for sign in _SIGNS):
            return True
        current = current.__cause__
    return False


def free_memory(device: str) -> None:
    """Give memory that torch holds in reserve back to the device."""
    gc.collect()
    import torch

    kind = device.partition(":")[0]
    if kind == "cuda" and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    elif kind == "mps":
        torch.mps.empty_cache()


def _cuda(index: int) -> Device:
    import torch

    card = f"cuda:{index}"
    facts = torch.cuda.get_device_properties(index)
    problem, free = "", 0
    try:
        _try_out(card)
        free = torch.cuda.mem_get_info(index)[0]
        free += torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
    except RuntimeError as error:
        problem = _problem(error)
    # Ampere (8.0) and later, and AMD's cards, compute in bfloat16; Volta (7.0) was the first to
    # be faster in float16.
    amd = torch.version.hip is not None
    new = amd or facts.major >= 8
    halves: tuple[Half, ...] = ("bfloat16", "float16") if new else ("float16",)
    fast = amd or facts.major >= 7
    return Device(card, facts.name, free, facts.total_memory, halves, fast, problem)


def _mps() -> Device:
    import torch

    total = psutil.virtual_memory().total
    problem, free = "", 0
    try:
        _try_out("mps")
        total = torch.mps.recommended_max_memory()
        # The memory is the computer's own: other programs may have taken it.
        left = max(0, total - torch.mps.current_allocated_memory())
        free = min(left, psutil.virtual_memory().available)
    except RuntimeError as error:
        problem = _problem(error)
    new = torch.backends.mps.is_macos_or_newer(14, 0)
    halves: tuple[Half, ...] = ("float16", "bfloat16") if new else ("float16",)
    return Device("mps", "Apple GPU", free, total, halves, True, problem)


def _cpu() -> Device:
    import torch

    memory, threads = psutil.virtual_memory(), torch.get_num_threads()
    name = f"CPU, {threads} thread{'' if threads == 1 else 's'}"
    return Device("cpu", name, memory.available, memory.total, ("bfloat16",))


def _try_out(device: str) -> None:
    """Compute one number there: a card may be listed and yet be unusable."""
    import torch

    torch.ones(1, device=device).add_(1).item()


def _problem(error: RuntimeError) -> str:
    if is_out_of_memory(error):
        return "its memory is full"
    words = str(error).partition("\n")[0].rstrip(". ")
    if "no kernel image" in words:
        return "the installed torch was built without code for it; another torch build may have it"
    return words


def _best(found: tuple[Device, ...], usable: list[Device]) -> Choice:
    cards = [device for device in usable if device.kind == "cuda"]
    if cards:
        return _most_free(cards)
    for device in usable:
        if device.kind == "mps":
            return Choice(device, "mps (Apple GPU), faster than the CPU.")
    return Choice(found[-1], f"cpu ({found[-1].name}): {_no_card(found)}.")


def _most_free(cards: list[Device]) -> Choice:
    best = max(cards, key=lambda device: device.free)
    reason = "the only graphics card" if len(cards) == 1 else "the card with most free memory"
    return Choice(best, f"{best.label}: {reason}.")


def _no_card(found: tuple[Device, ...]) -> str:
    """Return why no graphics card can be used."""
    import torch

    broken = [f"{d.id} ({d.name}): {d.problem}" for d in found if d.problem]
    if broken:
        return f"no graphics card can be used; {'; '.join(broken)}"
    if torch.version.cuda is None and torch.version.hip is None:
        return "the installed torch is built without support for graphics cards"
    return "torch finds no graphics card; its driver may be missing or too old"


def _listed(usable: list[Device]) -> str:
    return f"Choose {AUTO} or one of: {', '.join(device.label for device in usable)}."
