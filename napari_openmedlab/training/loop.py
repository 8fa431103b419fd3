"""The training loop: batches in, weights out; shared by fine-tuning and pre-training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.device import Placement
from napari_openmedlab.training.batches import Samples
from napari_openmedlab.training.events import Control, OnEvent
from napari_openmedlab.training.settings import LoopSettings

__all__ = ["LoopResult", "Outside", "Samples", "Task", "run_loop"]


@dataclass(frozen=True, eq=False)
class Task:
    """What is learnt.

    Attributes
    ----------
    network : torch.nn.Module
        With its start weights; ``deep_supervision`` is set as wanted. Trained in place.
    samples : Samples
    kept : frozenset of str
        Names of parameters taken over from pre-trained weights: they get ``trunk_rate``.
    validate : callable or None
        Takes the network (eval mode) and its placement, a monitor; returns Dice by class name.
        ``None``: nothing is held out, the last weights count.
    facts : mapping
        Plain JSON values that a state must agree with to be gone on from (classes, variant).
    loss : callable or None
        Takes logits (one output, or several scales) and classes; ``None``: the published loss of
        :func:`.losses.deep_loss`.
    engine : str
        Id of the engine that will run the network, for errors.
    smaller : str
        Advice where memory is short: "... or train a small network".
    """

    network: Any
    samples: Samples
    kept: frozenset[str] = frozenset()
    validate: Callable[[Any, Placement, Monitor], Mapping[str, float]] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    loss: Callable[[Any, Any], Any] | None = None
    engine: str = "mis-fm"
    smaller: str = "train a small network"


@dataclass(frozen=True, eq=False)
class LoopResult:
    """How a loop ended; the network then holds the weights that count (best, else last).

    Attributes
    ----------
    iteration : int
        Done in all, earlier parts of the run included.
    chosen : int
        Iteration whose weights the network holds.
    dice : mapping of str to float
        Held-out Dice of those weights; empty without validation.
    seconds : float
        Of computing, earlier parts included.
    placement : Placement
        Where it ran in the end.
    notes : tuple of str
        Sentences for the user: what it fell back to.
    """

    iteration: int
    chosen: int
    dice: Mapping[str, float]
    seconds: float
    placement: Placement
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Outside:
    """Who listens to a run and may stop it."""

    monitor: Monitor
    control: Control
    tell: OnEvent


def run_loop(
    task: Task,
    settings: LoopSettings,
    folder: Path,
    *,
    monitor: Monitor | None = None,
    control: Control | None = None,
    on_event: OnEvent | None = None,
) -> LoopResult:
    """Train until the last iteration; go on from ``folder`` if a state of this run lies there.

    Parameters
    ----------
    task : Task
    settings : LoopSettings
        On the CPU the same seed gives the same numbers bit by bit, in one go or in parts (with
        the same number of threads).
    folder : Path
        An existing folder of the run's own: ``state.safetensors`` (last weights, optimiser,
        iteration), ``best.safetensors`` and ``history.jsonl`` are kept there. Every file is
        complete at any moment.
    monitor : Monitor, optional
        Hears of each iteration; a cancel acts there, after the state was written.
    control : Control, optional
    on_event : callable, optional
        Is called in this thread.

    Returns
    -------
    LoopResult

    Raises
    ------
    Cancelled
        After a cancel; the state is on the disk.
    EngineError
        If the loss is no number any more (the last good state is on the disk), or memory is
        short everywhere.
    WriteError
        If the disk is full; the last complete state is untouched.
    CheckpointError
        If the state in the folder is damaged or of another run.
    """
    import torch

    from napari_openmedlab.training.trainer import Trainer

    outside = Outside(monitor or Monitor(), control or Control(), on_event or (lambda _: None))
    # Chance in the network (dropout) is seeded anew in each iteration; what the program around
    # drew from stays as it was.
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            cudnn.benchmark = True  # patches have one size: the fastest algorithm is worth a search
            return Trainer(task, settings, folder, outside).run()
        finally:
            cudnn.benchmark = before
