"""What to do when memory runs out: smaller batches, half precision, the CPU; and tell the user."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from napari_openmedlab.errors import EngineError
from napari_openmedlab.models.device import Half, Placement, free_memory, is_out_of_memory

__all__ = ["Outcome", "fallbacks", "run_with_fallback"]

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What an attempt returned, where it ran in the end, and what the user was told."""

    value: T
    placement: Placement
    notes: tuple[str, ...] = ()


def fallbacks(first: Placement, half: Half | None = None) -> tuple[Placement, ...]:
    """Return the placements to try in turn: smaller batches, half precision, the CPU.

    Parameters
    ----------
    first : Placement
        Is tried first.
    half : {"bfloat16", "float16"}, optional
        The device's half precision, from ``precision_for(device, "half")``; ``None`` leaves that
        step out. A network that ends on the CPU computes in float32.
    """
    steps = [first]
    while steps[-1].batch > 1:
        steps.append(replace(steps[-1], batch=steps[-1].batch // 2))
    if first.device == "cpu":
        return tuple(steps)
    if half is not None and first.precision == "float32":
        steps.append(replace(steps[-1], precision=half))
    return (*steps, Placement("cpu", "float32", 1))


def run_with_fallback(
    attempt: Callable[[Placement], T],
    placements: Iterable[Placement],
    tell: Callable[[str], None] | None = None,
) -> Outcome[T]:
    """Try placements in turn until one has enough memory.

    A run of many tiles calls this for each batch of tiles and goes on with
    ``fallbacks(outcome.placement)``, so that finished tiles are not computed again.

    Parameters
    ----------
    attempt : callable
        Takes a placement, moves the network there and computes. It is called again from its
        start, so it must leave nothing half done. A cancel and every other error pass through.
    placements : iterable of Placement
        From :func:`fallbacks`.
    tell : callable, optional
        Gets each sentence for the user at once; all are in ``Outcome.notes`` too.

    Returns
    -------
    Outcome

    Raises
    ------
    EngineError
        If none had enough memory.
    """
    notes: list[str] = []
    short: Placement | None = None
    for placement in placements:
        if short is not None:
            notes.append(_step(short, placement))
            if tell is not None:
                tell(notes[-1])
        try:
            return Outcome(attempt(placement), placement, tuple(notes))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _log.info("out of memory on %s: %s", placement, str(error).partition("\n")[0])
        # Out of the handler: the error and with it the frames that hold tensors are gone.
        short = placement
        free_memory(placement.device)
    if short is None:
        raise ValueError("there are no placements to try")
    raise EngineError(
        f"There is not enough memory, even on {short}. Close other programs, or take a smaller "
        "region or a smaller network.",
        stage="memory",
    )


def _step(short: Placement, now: Placement) -> str:
    """Return what the user is told about one step down."""
    full = f"The memory of {short.device} is full"
    if now.device != short.device:
        return f"{full}: going on with the CPU, which is slower."
    if now.precision != short.precision:
        return f"{full}: going on in half precision ({now.precision})."
    return f"{full}: going on with {now.batch} at a time instead of {short.batch}."
