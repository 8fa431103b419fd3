"""Pre-train a network on scans without labels, go on after a crash, make the start weights.

Volume Fusion, see :mod:`.volume_fusion`; loop, state and pauses are those of fine-tuning. The
published schedule takes 80 000 iterations: hours to a night on a graphics card, out of the
question on a CPU but for trials. The result is a start for training; it segments nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from napari_openmedlab.errors import ReadError
from napari_openmedlab.models.checkpoints.records import slug
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.finetuned import ModelCard, write_model
from napari_openmedlab.training.cases import CasesFound
from napari_openmedlab.training.events import Control, Event, Note, OnEvent, Step
from napari_openmedlab.training.loop import LoopResult, Task, run_loop
from napari_openmedlab.training.plan import Plan, make_plan
from napari_openmedlab.training.prepared import drop_cases, open_cases
from napari_openmedlab.training.run import Finished, RunState
from napari_openmedlab.training.run_folder import PLAN, STATE, history_of, last_iteration
from napari_openmedlab.training.settings import TrainSettings
from napari_openmedlab.training.shared import (
    prepare_folder,
    provenance_of,
    read_plan,
    start_network,
    write_plan,
)

__all__ = [
    "PLAN",
    "PUBLISHED_ITERATIONS",
    "begin_pretraining",
    "look_pretraining",
    "plan_pretraining",
    "pretrain",
    "resume_pretraining",
    "until",
]

PUBLISHED_ITERATIONS = 80_000

_VALIDATE_EVERY, _PATIENCE = 1000, 20_000  # of the published lung demo


def plan_pretraining(found: CasesFound, settings: TrainSettings) -> Plan:
    """Return the plan of a run: settings for labels and their patches are not used.

    Parameters
    ----------
    found : CasesFound
        From :func:`.unlabelled.check_scans`.
    settings : TrainSettings
        ``iterations`` 0 takes the published 80 000.

    Raises
    ------
    SettingsError, CheckpointError, EngineError
        As :func:`.plan.make_plan`.
    """
    iterations = settings.iterations or PUBLISHED_ITERATIONS
    every = settings.validate_every or min(_VALIDATE_EVERY, max(1, iterations // 10))
    chosen = replace(settings, iterations=iterations, validate_every=every, flips="none")
    plan = make_plan(found, chosen)
    patience = _PATIENCE if iterations > _PATIENCE else 0
    notes = tuple(note for note in plan.notes if "held out" not in note)
    if not plan.held_out:
        notes = (*notes, "Below three scans nothing is held out; the last weights are kept.")
    return replace(plan, loop=replace(plan.loop, patience=patience), notes=notes)


def pretrain(
    found: CasesFound,
    settings: TrainSettings,
    folder: Path,
    *,
    monitor: Monitor | None = None,
    control: Control | None = None,
    on_event: OnEvent | None = None,
) -> Finished:
    """Prepare the scans, train, and write the start weights into ``folder``.

    Parameters
    ----------
    found : CasesFound
        From :func:`.unlabelled.check_scans`.
    settings : TrainSettings
        As for :func:`plan_pretraining`.
    folder : Path
        Of the run's own; made if missing. Must not hold another run.
    monitor, control, on_event
        As for :func:`.loop.run_loop`; see :func:`until` for an end at a given hour.

    Returns
    -------
    Finished

    Raises
    ------
    WriteError
        If the folder holds a run already, or can't be written.
    SettingsError, CheckpointError, EngineError, Cancelled
        As :func:`.run.train`. What was done is on the disk.
    """
    plan = begin_pretraining(found, settings, folder, monitor=monitor, on_event=on_event)
    return _go(folder, plan, monitor or Monitor(), control, on_event or (lambda _: None))


def begin_pretraining(
    found: CasesFound,
    settings: TrainSettings,
    folder: Path,
    *,
    monitor: Monitor | None = None,
    on_event: OnEvent | None = None,
) -> Plan:
    """Prepare a run and train nothing yet: :func:`resume_pretraining` does, elsewhere too.

    Parameters
    ----------
    found, settings, folder, monitor, on_event
        As for :func:`pretrain`.

    Raises
    ------
    WriteError, SettingsError, CheckpointError, EngineError, Cancelled
        As :func:`pretrain`.
    """
    monitor, tell = monitor or Monitor(), on_event or (lambda _: None)
    plan = prepare_folder(found, lambda: plan_pretraining(found, settings), folder, monitor, tell)
    write_plan(folder / PLAN, plan, finished=False)
    return plan


def resume_pretraining(
    folder: Path,
    *,
    monitor: Monitor | None = None,
    control: Control | None = None,
    on_event: OnEvent | None = None,
) -> Finished:
    """Go on with the run in a folder; the scans are not needed again.

    Parameters
    ----------
    folder : Path
    monitor, control, on_event
        As for :func:`pretrain`.

    Raises
    ------
    ReadError
        If there is no run in the folder, or it is finished.
    CheckpointError, EngineError, WriteError, Cancelled
        As :func:`pretrain`.
    """
    plan, finished = read_plan(folder / PLAN)
    if finished:
        raise ReadError(f"the pre-training in {folder} is finished already", folder)
    return _go(folder, plan, monitor or Monitor(), control, on_event or (lambda _: None))


def _go(
    folder: Path,
    plan: Plan,
    monitor: Monitor,
    control: Control | None,
    tell: OnEvent,
) -> Finished:
    task, plan = _task(folder, plan, tell)
    result = run_loop(task, plan.loop, folder, monitor=monitor, control=control, on_event=tell)
    path = folder / f"{slug(plan.title)}.safetensors"
    if path.name == STATE:
        path = folder / "model-state.safetensors"
    card = _card(plan, result)
    write_model(path, task.network.state_dict(), card)
    write_plan(folder / PLAN, plan, finished=True)
    drop_cases(folder)
    notes = (*plan.notes, *result.notes, f"Start weights of iteration {result.chosen}.")
    return Finished(path, card, result.dice, result.chosen, result.seconds, notes)


def _task(folder: Path, plan: Plan, tell: OnEvent) -> tuple[Task, Plan]:
    from napari_openmedlab.training.mixtures import HeldOutMixtures, Mixtures

    network, taken = start_network(plan, folder, tell)
    if taken is not None:
        plan = replace(plan, kept=taken)
        write_plan(folder / PLAN, plan, finished=False)
    cases = open_cases(folder)
    train, held_out = cases[: len(plan.train)], cases[len(plan.train) :]
    patch = plan.preprocessing.patch
    measure = HeldOutMixtures(held_out, patch, plan.loop.seed) if held_out else None
    facts: dict[str, Any] = {
        "pretraining": True,
        "network": plan.network,
        "variant": plan.variant,
        "scans": [*plan.train, "|", *plan.held_out],
        "seed": plan.loop.seed,
    }
    return Task(network, Mixtures(train, patch), frozenset(plan.kept), measure, facts), plan


def look_pretraining(folder: Path) -> RunState | None:
    """Return what lies in a run's folder; ``None`` if there is none. Loads no torch."""
    if not (folder / PLAN).exists():
        return None
    plan, finished = read_plan(folder / PLAN)
    losses, dice = history_of(folder)
    return RunState(plan, last_iteration(folder), losses, dice, finished)


def until(hours: float, control: Control, tell: OnEvent) -> OnEvent:
    """Return a listener that ends a run early after so many hours, and passes on what it hears.

    Parameters
    ----------
    hours : float
        From now; 0: no limit.
    control : Control
        The one that the run is given too.
    tell : callable
    """
    if hours <= 0:
        return tell
    end = time.monotonic() + 3600 * hours

    def listen(event: Event) -> None:
        if isinstance(event, Step):
            event = replace(event, left=min(event.left, max(0.0, end - time.monotonic())))
        tell(event)
        if time.monotonic() > end and not control.ends:
            tell(Note(f"The {hours:g} hours are over."))
            control.end_early()

    return listen


def _card(plan: Plan, result: LoopResult) -> ModelCard:
    settings = {"method": "Volume Fusion", **plan.as_json()["loop"]}
    provenance = provenance_of(plan, result.chosen, _rounded(result.dice), settings)
    return replace(plan.card(), kind="pretext", classes=(), provenance=provenance)


def _rounded(dice: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in dice.items()}
