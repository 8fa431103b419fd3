"""What fine-tuning and pre-training share: a run's folder and plan, the network it starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from napari_openmedlab import __version__
from napari_openmedlab.errors import ReadError, WriteError
from napari_openmedlab.io.atomic import sentence
from napari_openmedlab.models.checkpoints.disk import read_json, write_json
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.finetuned import Provenance
from napari_openmedlab.training.cases import CasesFound
from napari_openmedlab.training.events import Note, OnEvent
from napari_openmedlab.training.plan import Plan, plan_from_json
from napari_openmedlab.training.prepared import prepare_cases
from napari_openmedlab.training.run_folder import PLAN, RUN, STATE

__all__ = ["prepare_folder", "provenance_of", "read_plan", "start_network", "write_plan"]

_FORMAT = 1
_WHAT = {RUN: "training run", PLAN: "pre-training"}


def prepare_folder(
    found: CasesFound,
    make_plan: Callable[[], Plan],
    folder: Path,
    monitor: Monitor,
    tell: OnEvent,
) -> Plan:
    """Plan a run and put the scans, as the network sees them, into its folder.

    Raises
    ------
    WriteError
        If the folder holds a run already, or can't be written.
    """
    if any((folder / name).exists() for name in _WHAT):
        raise WriteError(
            f"there is a run in {folder} already: go on with it, or choose another folder", folder
        )
    plan = make_plan()
    for note in plan.notes:
        tell(Note(note))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(sentence(error, folder.parent), folder) from error
    by_name = {checked.case.name: checked for checked in found.cases}
    ordered = [by_name[name] for name in (*plan.train, *plan.held_out)]
    prepare_cases(ordered, plan.preprocessing, plan.classes, folder, monitor)
    return plan


def start_network(plan: Plan, folder: Path, tell: OnEvent) -> tuple[Any, tuple[str, ...] | None]:
    """Return the network to train, and what it took over from other weights.

    Returns
    -------
    network : torch.nn.Module
    kept : tuple of str or None
        Names of tensors taken over just now; ``None`` for a start from scratch, and where a state
        on the disk will be gone on from.
    """
    from napari_openmedlab.training.transfer import fresh_network, take_over

    network = fresh_network(plan.network, plan.variant, plan.loop.seed)
    if not plan.init or (folder / STATE).exists():
        return network, None
    from napari_openmedlab.models.checkpoints.store import ModelStore

    start = take_over(network, plan.network, ModelStore().load(plan.init).state_dict(), plan.init)
    tell(Note(f"Started from '{plan.init}': {start}."))
    return network, start.kept


def provenance_of(
    plan: Plan, iterations: int, dice: Mapping[str, float], settings: Mapping[str, Any]
) -> Provenance:
    """Return what a model's card says of how it was made; finished now."""
    import torch

    return Provenance(
        cases=len(plan.train),
        held_out=len(plan.held_out),
        init=plan.init,
        init_sha256=plan.init_sha256,
        iterations=iterations,
        seed=plan.loop.seed,
        held_out_dice=dict(dice),
        finished=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        versions={"napari-openmedlab": __version__, "torch": torch.__version__},
        settings=dict(settings),
    )


def write_plan(path: Path, plan: Plan, *, finished: bool) -> None:
    """Write the plan of a run, ``run.json`` or ``pretraining.json``."""
    write_json(path, {"format": _FORMAT, "finished": finished, "plan": plan.as_json()})


def read_plan(path: Path) -> tuple[Plan, bool]:
    """Return the plan of a run, and whether the run is finished.

    Raises
    ------
    ReadError
        If there is none, or it is a newer version's.
    """
    what = _WHAT[path.name]
    if not path.exists():
        raise ReadError(f"there is no {what} in {path.parent}", path.parent)
    found = read_json(path)
    if found.get("format") != _FORMAT or not isinstance(found.get("plan"), dict):
        raise ReadError(f"{path} was written by a newer version, or is no {what}", path)
    return plan_from_json(found["plan"]), bool(found.get("finished"))
