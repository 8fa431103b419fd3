"""Train on labelled volumes, go on after a crash, and make the finished model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from napari_openmedlab.errors import ReadError, SettingsError
from napari_openmedlab.models.checkpoints.records import slug
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.finetuned import ModelCard, read_card, write_model
from napari_openmedlab.training.cases import CasesFound
from napari_openmedlab.training.events import Control, Note, OnEvent
from napari_openmedlab.training.loop import LoopResult, Task, run_loop
from napari_openmedlab.training.plan import Plan, make_plan
from napari_openmedlab.training.prepared import drop_cases, open_cases
from napari_openmedlab.training.run_folder import (
    BEST,
    RUN,
    STATE,
    history_of,
    last_iteration,
    state_facts,
)
from napari_openmedlab.training.settings import TrainSettings
from napari_openmedlab.training.shared import (
    prepare_folder,
    provenance_of,
    read_plan,
    start_network,
    write_plan,
)

__all__ = ["Finished", "RunState", "begin", "finish", "look", "resume", "train"]


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
    plan = begin(found, settings, folder, monitor=monitor, on_event=on_event)
    return _go(folder, plan, monitor or Monitor(), control, on_event or (lambda _: None))


def begin(
    found: CasesFound,
    settings: TrainSettings,
    folder: Path,
    *,
    monitor: Monitor | None = None,
    on_event: OnEvent | None = None,
) -> Plan:
    """Prepare a run and train nothing yet: :func:`resume` does, in another program too.

    Parameters
    ----------
    found, settings, folder, monitor, on_event
        As for :func:`train`.

    Returns
    -------
    Plan

    Raises
    ------
    WriteError, SettingsError, CheckpointError, EngineError, Cancelled
        As :func:`train`.
    """
    monitor, tell = monitor or Monitor(), on_event or (lambda _: None)
    plan = prepare_folder(found, lambda: make_plan(found, settings), folder, monitor, tell)
    write_plan(folder / RUN, plan, finished=False)
    return plan


def resume(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    monitor: Monitor | None = None,
    control: Control | None = None,
    on_event: OnEvent | None = None,
) -> Finished:
    """Go on with the run in a folder; the scans are not needed again.

    Parameters
    ----------
    folder : Path
    changes : mapping, optional
        Other values of ``iterations``, ``learning_rate``, ``device``, ``precision`` or
        ``accumulation``, from now on: a smaller rate after a loss that went astray, say.
    monitor, control, on_event
        As for :func:`train`.

    Raises
    ------
    ReadError
        If there is no run in the folder.
    SettingsError
        For a change that can't be.
    CheckpointError, EngineError, WriteError, Cancelled
        As :func:`train`.
    """
    monitor, tell = monitor or Monitor(), on_event or (lambda _: None)
    plan, finished = read_plan(folder / RUN)
    if finished:
        tell(Note("The run was finished already."))
        return _finished(folder, plan)
    if changes:
        plan = replace(plan, loop=_changed(plan, changes))
        write_plan(folder / RUN, plan, finished=False)
    return _go(folder, plan, monitor, control, tell)


def finish(folder: Path, which: Literal["best", "last"] = "best") -> Finished:
    """Make the model of what a stopped run has learnt so far, without training on.

    Raises
    ------
    ReadError
        If there is no run in the folder, or it has no state yet.
    """
    from napari_openmedlab.training.state import read_state, weights_of
    from napari_openmedlab.training.transfer import fresh_network

    plan, _ = read_plan(folder / RUN)
    path = folder / BEST
    if which == "last" or not path.exists():
        path = folder / STATE
    facts = state_facts(path)
    if not facts.get("iteration"):
        raise ReadError(f"nothing has been learnt yet in {folder}", folder)
    tensors, facts = read_state(path)
    network = fresh_network(plan.network, plan.variant, plan.loop.seed)
    network.load_state_dict(weights_of(tensors))
    iteration = int(facts["iteration"])
    dice = dict(facts["dice"]) if facts["best_iteration"] == iteration else {}
    return _model(folder, plan, network, (iteration, dice, float(facts["seconds"]), ()))


def look(folder: Path) -> RunState | None:
    """Return what lies in a run's folder; ``None`` if there is no run. Loads no torch."""
    if not (folder / RUN).exists():
        return None
    plan, finished = read_plan(folder / RUN)
    losses, dice = history_of(folder)
    return RunState(plan, last_iteration(folder), losses, dice, finished)


def _go(
    folder: Path, plan: Plan, monitor: Monitor, control: Control | None, tell: OnEvent
) -> Finished:
    """Train from the start, or from the state on the disk, to the finished model."""
    task = _task(folder, plan, tell)
    result = run_loop(task, plan.loop, folder, monitor=monitor, control=control, on_event=tell)
    told = (result.chosen, dict(result.dice), result.seconds, _notes(result, plan))
    done = _model(folder, plan, task.network, told)
    write_plan(folder / RUN, plan, finished=True)
    del task  # mapped files can't be deleted on Windows
    drop_cases(folder)
    return done


def _task(folder: Path, plan: Plan, tell: OnEvent) -> Task:
    from napari_openmedlab.training.sampling import Patches
    from napari_openmedlab.training.validation import HeldOut

    network, taken = start_network(plan, folder, tell)
    network.deep_supervision = True
    kept = plan.kept
    if taken is not None:
        kept = taken
        write_plan(folder / RUN, replace(plan, kept=kept), finished=False)
    cases = open_cases(folder)
    train, held_out = cases[: len(plan.train)], cases[len(plan.train) :]
    patches = Patches(train, plan.preprocessing.patch, plan.foreground, plan.flips, plan.contrast)
    measure = HeldOut(held_out, plan.preprocessing, plan.classes) if held_out else None
    return Task(network, patches, frozenset(kept), measure, _facts(plan))


def _facts(plan: Plan) -> dict[str, Any]:
    """Return what a state must agree with to be gone on from."""
    return {
        "network": plan.network,
        "variant": plan.variant,
        "classes": {each.name: each.value for each in plan.classes},
        "cases": [*plan.train, "|", *plan.held_out],
        "seed": plan.loop.seed,
    }


def _notes(result: LoopResult, plan: Plan) -> tuple[str, ...]:
    chosen = (
        f"The weights of iteration {result.chosen} did best on the held-out cases."
        if result.dice
        else f"The weights are those of the last iteration, {result.chosen}; nothing was held out."
    )
    return (*plan.notes, *result.notes, chosen)


def _model(
    folder: Path,
    plan: Plan,
    network: Any,
    told: tuple[int, dict[str, float], float, tuple[str, ...]],
) -> Finished:
    """Write weights and card; return the finished model."""
    iteration, dice, seconds, notes = told
    provenance = provenance_of(plan, iteration, dice, _for_the_record(plan))
    card = replace(plan.card(), provenance=provenance)
    path = _path(folder, plan)
    write_model(path, network.state_dict(), card)
    return Finished(path, card, dice, iteration, seconds, notes)


def _path(folder: Path, plan: Plan) -> Path:
    path = folder / f"{slug(plan.title)}.safetensors"
    return path if path.name not in (STATE, BEST) else folder / f"model-{path.name}"


def _finished(folder: Path, plan: Plan) -> Finished:
    """Return the model of a run that is done; made anew if its file is gone."""
    path = _path(folder, plan)
    card = read_card(path) if path.exists() else None
    if card is None:
        return finish(folder)
    made = card.provenance
    seconds = float(state_facts(folder / STATE).get("seconds", 0.0))
    return Finished(path, card, dict(made.held_out_dice), made.iterations, seconds)


def _for_the_record(plan: Plan) -> dict[str, Any]:
    found = plan.as_json()
    loop = {k: v for k, v in found["loop"].items() if k not in ("save_every", "save_seconds")}
    return {**loop, **{k: found[k] for k in ("foreground", "flips", "contrast")}}


def _changed(plan: Plan, changes: Mapping[str, Any]) -> Any:
    allowed = ("iterations", "learning_rate", "device", "precision", "accumulation")
    unknown = sorted(set(changes) - set(allowed))
    if unknown:
        raise SettingsError(
            f"{', '.join(unknown)} can't be changed in a run that has begun; {', '.join(allowed)} "
            "can"
        )
    loop = plan.loop
    wanted = dict(changes)
    if "learning_rate" in wanted:
        share = loop.trunk_rate / loop.learning_rate
        wanted["trunk_rate"] = wanted["learning_rate"] * share
    return replace(loop, **wanted)
