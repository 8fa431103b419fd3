"""Training Axon-Seg's networks on cubes of one's own, from scratch or from weights that are there.

What is trained is in :mod:`.axon_plan`. The loop (state on the disk, going on after a stop,
fallbacks) is that of fine-tuning; patches come from :mod:`.axon_samples`, the loss from
:mod:`.axon_losses`, cubes to measure with from :mod:`.axon_held_out`. Importing this module
imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models.checkpoints.locks import locked
from napari_openmedlab.models.checkpoints.records import Record, slug
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.training.axon_held_out import HeldOutCubes, split_cubes
from napari_openmedlab.training.axon_plan import NETWORK, AxonTraining, begin_axons, read_plan
from napari_openmedlab.training.axon_samples import (
    AxonCubes,
    TrainingCube,
    fitting_patch,
    require_room,
)
from napari_openmedlab.training.events import Control, Note, OnEvent
from napari_openmedlab.training.loop import LoopResult, Task, run_loop
from napari_openmedlab.training.run_folder import LOCK, UNDER_WAY
from napari_openmedlab.training.settings import LoopSettings

if TYPE_CHECKING:
    from napari_openmedlab.models.checkpoints.store import ModelStore

__all__ = ["TrainedAxons", "axon_task", "resume_axons", "train_axons"]

_WEIGHTS, _HELD_OUT = "axons.safetensors", "held_out.json"


@dataclass(frozen=True, eq=False)
class TrainedAxons:
    """What a training left.

    Attributes
    ----------
    record : Record
        Of the model in the store: the axon-seg engine runs it.
    weights : Path
    result : LoopResult
    measures : mapping of str to float
        Of the held-out cubes, by name; empty if there are none.
    """

    record: Record
    weights: Path
    result: LoopResult
    measures: Mapping[str, float]

    @property
    def sentence(self) -> str:
        """What came of it, for the user."""
        ready = f"The model '{self.record.name}' is ready"
        if not self.measures:
            return f"{ready}. Nothing was held out: look at previews before a run."
        words = ", ".join(f"{name} {value:.3f}" for name, value in self.measures.items())
        return f"{ready}. Held-out cubes, weights of iteration {self.result.chosen}: {words}."


def axon_task(
    network: Any,
    cubes: Sequence[TrainingCube],
    settings: AxonTraining,
    held_out: Sequence[TrainingCube] = (),
    start: Mapping[str, Any] | None = None,
) -> Task:
    """Return what the training loop needs.

    Parameters
    ----------
    network : torch.nn.Module
    cubes, held_out : sequence of TrainingCube
        To train on, and to measure with.
    settings : AxonTraining
    start : mapping, optional
        What the network is and started from; a run is gone on with only if it is the same.

    Raises
    ------
    SettingsError
        If no cube holds an axon, or one is smaller than the patch.
    """
    from napari_openmedlab.training.axon_losses import AxonLoss

    patch = settings.patch or fitting_patch([*cubes, *held_out])
    samples = AxonCubes(cubes, patch, matching=settings.matching, mixing=settings.mixing)
    require_room(held_out, patch)
    chosen = asdict(settings)
    told = ("batch", "cl_dice", "matching", "mixing", "seed")
    facts = {name: chosen[name] for name in told} | {
        "network": NETWORK,
        "patch": patch,
        "cubes": {cube.name: cube.sha256 for cube in cubes},
        "held_out": {cube.name: cube.sha256 for cube in held_out},
    }
    return Task(
        network,
        samples,
        validate=HeldOutCubes(held_out, patch) if held_out else None,
        facts=facts | dict(start or {}),
        loss=AxonLoss(settings.cl_dice),
        engine="axon-seg",
        smaller="take smaller patches",
    )


def resume_axons(
    out: str | Path,
    *,
    monitor: Monitor | None = None,
    control: Control | None = None,
    on_event: OnEvent | None = None,
) -> TrainedAxons:
    """Train what :func:`.begin_axons` prepared, from where it stopped, and store the model.

    Where its name was taken meanwhile, the model gets a number: ``my-axons-2``.

    Parameters
    ----------
    out : str or Path
        Its lock is held by the caller, as by :func:`train_axons` and :func:`.child.serve`.
    monitor, control, on_event
        As in :func:`.loop.run_loop`; memory and what it means is told first.

    Raises
    ------
    ReadError, SettingsError
        If the plan can't be used any more, or the cubes changed.
    Cancelled, EngineError, WriteError, CheckpointError
        As :func:`.loop.run_loop`.
    """
    from napari_openmedlab.models.checkpoints.disk import write_json
    from napari_openmedlab.models.checkpoints.store import ModelStore

    out = Path(out)
    plan = read_plan(out)
    settings, monitor, store = plan.settings, monitor or Monitor(), ModelStore()
    cubes, held_out = split_cubes(plan.read(), settings.held_out, settings.seed)
    network, start = _start(settings, store)
    network.deep_supervision = True
    task = axon_task(network, cubes, settings, held_out, start)
    loop, notes = _fitted(settings, start)
    if on_event is not None:
        for note in notes:
            on_event(Note(note))
    result = run_loop(task, loop, out, monitor=monitor, control=control, on_event=on_event)
    measures: dict[str, float] = {}
    if isinstance(task.validate, HeldOutCubes):
        measures = task.validate.measures(network, result.placement, monitor)
        names = [cube.name for cube in held_out]
        write_json(out / _HELD_OUT, {"cubes": names, **measures})
    _write_weights(out / _WEIGHTS, network)
    name = _free_name(store, settings.name)
    record = store.import_file(out / _WEIGHTS, name=name, as_=start["network"])
    return TrainedAxons(record, out / _WEIGHTS, result, measures)


def train_axons(
    folder: str | Path,
    out: str | Path,
    settings: AxonTraining | None = None,
    *,
    monitor: Monitor | None = None,
    control: Control | None = None,
    on_event: OnEvent | None = None,
) -> TrainedAxons:
    """Train on a folder of cubes and put the model into the store.

    The same call again goes on where it stopped. See :func:`.begin_axons` and
    :func:`resume_axons`.
    """
    begin_axons(folder, out, settings)
    with locked(Path(out) / LOCK, UNDER_WAY):
        return resume_axons(out, monitor=monitor, control=control, on_event=on_event)


def _fitted(
    settings: AxonTraining, start: Mapping[str, Any]
) -> tuple[LoopSettings, tuple[str, ...]]:
    """Return a loop whose batches fit the device's memory, and sentences on what it takes."""
    from napari_openmedlab.models.checkpoints.disk import size_text
    from napari_openmedlab.models.device import choose
    from napari_openmedlab.training.need import fitted

    assert settings.patch is not None
    device = choose(settings.device).device
    loop, memory, short = fitted(
        settings.loop, start["network"], start["variant"], settings.patch, device
    )
    if settings.accumulation:
        loop = settings.loop
    told = f"Training takes about {size_text(memory)} of the memory of {device.name}."
    return loop, (told, short) if short else (told,)


def _write_weights(path: Path, network: Any) -> None:
    from napari_openmedlab.io.atomic import staging
    from napari_openmedlab.models.checkpoints.disk import require_space
    from napari_openmedlab.models.checkpoints.weight_files import Steps, write_weights

    weights = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
    size = sum(value.numel() * value.element_size() for value in weights.values())
    require_space(path.parent, size, f"keeping the weights in {path.name}")
    with staging(path.parent) as stage, (stage / path.name).open("wb") as file:
        write_weights(file, weights, {"format": "pt"}, Steps(Monitor(), size))


def _free_name(store: ModelStore, wanted: str) -> str:
    """Return the name, or the name with a number, that no other model has."""
    for number in count(2):
        try:
            store.require_free(slug(wanted))
            return wanted
        except CheckpointError:
            wanted = f"{wanted.removesuffix(f' {number - 1}')} {number}"
    raise AssertionError


def _start(settings: AxonTraining, store: ModelStore) -> tuple[Any, dict[str, Any]]:
    """Return the network with its start weights, and what it is and comes from."""
    import torch

    from napari_openmedlab.models import networks

    if not settings.init:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return networks.build(NETWORK), {"network": NETWORK, "variant": {}}
    record = store.get(settings.init)
    network = networks.build(record.network, **record.variant)
    network.load_state_dict(store.load(record.name).state_dict())
    facts = {"network": record.network, "variant": dict(record.variant), "init": record.sha256}
    return network, facts
