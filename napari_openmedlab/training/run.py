"""Train on labelled volumes, go on after a crash, and make the finished model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.finetuned import ModelCard
from napari_openmedlab.training.cases import CasesFound
from napari_openmedlab.training.events import Control, OnEvent
from napari_openmedlab.training.plan import Plan
from napari_openmedlab.training.settings import TrainSettings

__all__ = ["Finished", "RunState", "finish", "look", "resume", "train"]


@dataclass(frozen=True, eq=False)
class Finished:
    """A trained model.

    Attributes
    ----------
    path : Path
        The file with weights and card, in the run's folder; to be imported into the store.
    card : ModelCard
    dice : mapping of str to float
        Held-out Dice by class name; empty if nothing was held out.
    iteration : int
        Whose weights the file holds.
    seconds : float
        Of training.
    notes : tuple of str
        Sentences for the user.
    """

    path: Path
    card: ModelCard
    dice: Mapping[str, float]
    iteration: int
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class RunState:
    """A run as it lies in its folder.

    Attributes
    ----------
    plan : Plan
    iteration : int
        Of the state on the disk; 0 if there is none yet.
    losses : tuple of (int, float)
        Iteration and loss, for a plot.
    dice : tuple of (int, dict)
        Iteration and held-out Dice by class name.
    finished : bool
    """

    plan: Plan
    iteration: int
    losses: tuple[tuple[int, float], ...]
    dice: tuple[tuple[int, Mapping[str, float]], ...]
    finished: bool


def train(
    found: CasesFound,
    settings: TrainSettings,
    folder: Path,
    *,
    monitor: Monitor | None = None,
    control: Control | None = None,
    on_event: OnEvent | None = None,
) -> Finished:
    """Prepare the cases, train, and write the model into ``folder``.

    Parameters
    ----------
    found : CasesFound
    settings : TrainSettings
    folder : Path
        Of the run's own; made if missing. Must not hold another run.
    monitor, control, on_event
        As for :func:`.loop.run_loop`.

    Returns
    -------
    Finished

    Raises
    ------
    WriteError
        If the folder holds a run already (go on with :func:`resume`), or can't be written.
    SettingsError, CheckpointError, EngineError, Cancelled
        As :func:`.plan.make_plan` and :func:`.loop.run_loop`. What was done is on the disk.
    """
    raise NotImplementedError


def resume(
    folder: Path,
    *,
    monitor: Monitor | None = None,
    control: Control | None = None,
    on_event: OnEvent | None = None,
) -> Finished:
    """Go on with the run in a folder; the scans are not needed again.

    Raises
    ------
    ReadError
        If there is no run in the folder.
    CheckpointError, EngineError, WriteError, Cancelled
        As :func:`train`.
    """
    raise NotImplementedError


def finish(folder: Path, which: Literal["best", "last"] = "best") -> Finished:
    """Make the model of what a stopped run has learnt so far, without training on.

    Raises
    ------
    ReadError
        If there is no run in the folder, or it has no state yet.
    """
    raise NotImplementedError


def look(folder: Path) -> RunState | None:
    """Return what lies in a run's folder; ``None`` if there is no run. Loads no torch."""
    raise NotImplementedError
