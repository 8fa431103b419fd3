"""What a training run tells while it works, and how it is told to pause or to end early.

Importing this module imports no torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Control", "Event", "Note", "OnEvent", "Paused", "Saved", "Step", "Validated"]


@dataclass(frozen=True)
class Step:
    """One iteration is done.

    Attributes
    ----------
    iteration, total : int
        Iterations done, and in all.
    loss : float
        Of this iteration's batch.
    rate : float
        Learning rate of the fresh weights.
    seconds : float
        Per iteration, a running mean.
    left : float
        Estimated seconds to the end, validations included.
    """

    iteration: int
    total: int
    loss: float
    rate: float
    seconds: float
    left: float


@dataclass(frozen=True)
class Validated:
    """The network was tried on what it is not trained on.

    Attributes
    ----------
    iteration : int
    dice : mapping of str to float
        Dice in [0, 1] by class name, over the held-out volumes; NaN for a class that none of
        them has.
    mean : float
        Of the classes that are there.
    best : bool
        Whether it is the best so far, and was kept.
    """

    iteration: int
    dice: Mapping[str, float]
    mean: float
    best: bool


@dataclass(frozen=True)
class Saved:
    """The state of this iteration is on the disk: a crash loses nothing before it."""

    iteration: int
    path: Path


@dataclass(frozen=True)
class Paused:
    """The run waits (``True``) or goes on (``False``)."""

    waiting: bool


@dataclass(frozen=True)
class Note:
    """A sentence for the user."""

    text: str


Event = Step | Validated | Saved | Paused | Note
OnEvent = Callable[[Event], None]


@dataclass
class Control:
    """Pauses a run or ends it early from another thread. A cancel goes through the monitor.

    A paused run has written its state, so the program may be closed. An early end keeps what
    was learnt and makes the model of it; a cancel keeps the state only.
    """

    _running: threading.Event = field(default_factory=threading.Event, repr=False)
    _end: threading.Event = field(default_factory=threading.Event, repr=False)

    def __post_init__(self) -> None:
        self._running.set()

    def pause(self) -> None:
        """Wait after the iteration that runs now."""
        self._running.clear()

    def go_on(self) -> None:
        """End a pause."""
        self._running.set()

    def end_early(self) -> None:
        """Stop after this iteration and make the model of what was learnt."""
        self._end.set()
        self._running.set()

    @property
    def paused(self) -> bool:
        """Whether a pause was asked for."""
        return not self._running.is_set()

    @property
    def ends(self) -> bool:
        """Whether an early end was asked for."""
        return self._end.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for the end of a pause; return whether it came."""
        return self._running.wait(seconds)
