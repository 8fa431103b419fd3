"""From a graphics card to the computer's memory while the card goes on computing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Download"]

_AHEAD = 2  # parts on their way while the next is computed


class Download:
    """Hands parts on to the CPU in their order; those of a card travel while it computes.

    A part of a card is copied to page-locked memory behind the work that makes it, without
    waiting for either; it is used two parts later, when it has long arrived. What is on the CPU
    already, or is wanted on another device, is handed on at once.

    Parameters
    ----------
    target : torch.device
        Where parts are wanted.
    """

    def __init__(self, target: torch.device) -> None:
        self._target = target
        self._waiting: deque[tuple[Any, torch.Tensor, Callable[[torch.Tensor], None]]] = deque()
        self._spare: list[torch.Tensor] = []

    def take(self, part: torch.Tensor, use: Callable[[torch.Tensor], None]) -> None:
        """Bring a part over and call ``use`` with it, at once or some parts later.

        What ``use`` gets is its own only during the call.
        """
        if part.device.type != "cuda" or self._target.type != "cpu":
            use(part.to(self._target))
            return
        while len(self._waiting) >= _AHEAD:
            self._use_next()
        buffer = self._buffer(part)
        buffer.copy_(part, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(part.device))
        self._waiting.append((arrived, buffer, use))

    def finish(self) -> None:
        """Wait for all parts and use them."""
        while self._waiting:
            self._use_next()

    def _use_next(self) -> None:
        arrived, buffer, use = self._waiting.popleft()
        arrived.synchronize()
        use(buffer)
        self._spare.append(buffer)

    def _buffer(self, part: torch.Tensor) -> torch.Tensor:
        """Return page-locked memory for a part, used again where it fits."""
        for number, spare in enumerate(self._spare):
            if spare.shape == part.shape and spare.dtype == part.dtype:
                return self._spare.pop(number)
        self._spare.clear()
        return torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
