"""Training Axon-Seg's networks on cubes of one's own, from scratch or from weights that are there.

The loop (state on the disk, going on after a stop, fallbacks) is that of fine-tuning; patches come
from :mod:`.axon_samples`, the loss from :mod:`.axon_losses`, cubes to measure with from
:mod:`.axon_held_out`. Importing this module imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_openmedlab.errors import ReadError, SettingsError, WriteError
from napari_openmedlab.io.atomic import sentence
from napari_openmedlab.models.checkpoints.records import Record, slug
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.device import AUTO
from napari_openmedlab.training.axon_held_out import HeldOutCubes, split_cubes
from napari_openmedlab.training.axon_samples import (
    AxonCubes,
    TrainingCube,
    fitting_patch,
    read_cubes,
    require_room,
)
from napari_openmedlab.training.events import Control, OnEvent
from napari_openmedlab.training.loop import LoopResult, Task, run_loop
from napari_openmedlab.training.settings import LoopSettings

if TYPE_CHECKING:
    from napari_openmedlab.models.checkpoints.store import ModelStore

__all__ = [
    "AXONS",
    "NETWORK",
    "NETWORKS",
    "AxonTraining",
    "TrainedAxons",
    "axon_task",
    "begin_axons",
    "resume_axons",
    "train_axons",
]

NETWORK = "axon-seg-plain"
NETWORKS = ("axon-seg", "axon-seg-plain")
AXONS = "axon_training.json"
"""What a folder of a training says of it."""

_FORMAT = 1
_FREE = ("name", "iterations", "device", "precision")  # may change when a training goes on
_WEIGHTS, _HELD_OUT = "axons.safetensors", "held_out.json"
_FRESH_RATE, _TAKEN_RATE = 3e-4, 1e-4  # published; and for weights that know axons already
_LEAST_TRIES = 24  # measurements on held-out cubes in a run


@dataclass(frozen=True)
class AxonTraining:
    """What may be chosen.

    Attributes
    ----------
    name : str
        Of the model in the store.
    init : str
        Name in the model store of weights of an Axon-Seg network to start from, which decides the
        network. Empty: the plain network from scratch.
    patch : tuple of int or None
        Voxels (z, y, x), multiples of 32, one above 32. ``None``: the network's own where it
        takes no other (axial attention: 128), else as large as the cubes allow, 128 at most.
    iterations : int
        Published: 550 x 250; a few thousand are a start.
    batch : int
    learning_rate, weight_decay : float
        Of Adam; as published. A rate of 0: 3e-4 as published, 1e-4 from ``init``.
    held_out : int or None
        Cubes with axons that are not trained on but measured; see
        :func:`.axon_held_out.split_cubes`.
    cl_dice : float
        Weight of the clDice term; 0 as published.
    matching, mixing : float
        As in :class:`.axon_samples.AxonCubes`.
    seed : int
    device, precision : str
        As in :class:`.settings.LoopSettings`.
    """

    name: str = "my axons"
    init: str = ""
    patch: tuple[int, int, int] | None = None
    iterations: int = 5000
    batch: int = 2
    learning_rate: float = 0.0
    weight_decay: float = 3e-5
    held_out: int | None = None
    cl_dice: float = 0.0
    matching: float = 0.5
    mixing: float = 0.5
    seed: int = 1
    device: str = AUTO
    precision: str = AUTO

    def __post_init__(self) -> None:
        patch = self.patch
        if patch and (any(p % 32 or p < 32 for p in patch) or max(patch) < 64):
            raise SettingsError(
                f"a patch of {self.patch} does not suit the network: its edges are multiples of "
                "32, one of them above 32"
            )

    @property
    def loop(self) -> LoopSettings:
        """The schedule: one rate throughout, as published until the loss stays level."""
        rate = self.learning_rate or (_TAKEN_RATE if self.init else _FRESH_RATE)
        return LoopSettings(
            iterations=self.iterations,
            batch=self.batch,
            learning_rate=rate,
            trunk_rate=rate,
            weight_decay=self.weight_decay,
            rate_power=0.0,
            validate_every=max(1, min(250, self.iterations // _LEAST_TRIES)),
            seed=self.seed,
            device=self.device,
            precision=self.precision,
        )


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
        "cubes": [cube.name for cube in cubes],
        "held_out": [cube.name for cube in held_out],
    }
    return Task(
        network,
        samples,
        validate=HeldOutCubes(held_out, patch) if held_out else None,
        facts=facts | dict(start or {}),
        loss=AxonLoss(settings.cl_dice),
    )


def begin_axons(folder: str | Path, out: str | Path, settings: AxonTraining | None = None) -> None:
    """Prepare a training, or take up one that stopped, so that :func:`resume_axons` can train it.

    Parameters
    ----------
    folder : str or Path
        With ``images/`` and ``labels/``, as :func:`axons.annotate.export_cubes` makes it.
    out : str or Path
        Folder of the run, new or of the same training, whose name, iterations, device and
        precision may be others now.
    settings : AxonTraining, optional

    Raises
    ------
    ReadError, SettingsError
        If the cubes can't be used, or ``init`` is of another network.
    CheckpointError
        If the name is taken in the store, or there is no ``init``.
    WriteError
        If ``out`` is another training's, or can't be written.
    """
    from napari_openmedlab.models.checkpoints.disk import read_json, write_json
    from napari_openmedlab.models.checkpoints.store import ModelStore

    settings, folder, out = settings or AxonTraining(), Path(folder).absolute(), Path(out)
    store = ModelStore()
    store.require_free(slug(settings.name))
    cubes, held_out = split_cubes(read_cubes(folder), settings.held_out, settings.seed)
    patch = _patch_of(settings, store) or fitting_patch([*cubes, *held_out])
    AxonCubes(cubes, patch)
    require_room(held_out, patch)
    wanted = {
        "format": _FORMAT,
        "cubes": str(folder),
        "settings": json.loads(json.dumps(asdict(replace(settings, patch=patch)))),
    }
    plan = out / AXONS
    if plan.exists() and _learnt(read_json(plan)) != _learnt(wanted):
        raise WriteError(
            f"{out} holds another training (other cubes or settings); repeat its own, which "
            f"stand in {plan.name}, or choose another folder or name",
            out,
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(sentence(error, out.parent), out) from error
    write_json(plan, wanted)


def resume_axons(
    out: str | Path,
    *,
    monitor: Monitor | None = None,
    control: Control | None = None,
    on_event: OnEvent | None = None,
) -> TrainedAxons:
    """Train what :func:`begin_axons` prepared, from where it stopped, and store the model.

    Parameters
    ----------
    out : str or Path
    monitor, control, on_event
        As in :func:`.loop.run_loop`.

    Raises
    ------
    ReadError, SettingsError
        If the cubes or the plan can't be used any more.
    Cancelled, EngineError, WriteError, CheckpointError
        As :func:`.loop.run_loop`; a name taken in the store shows before training.
    """
    from safetensors.torch import save_file

    from napari_openmedlab.io.atomic import staging
    from napari_openmedlab.models.checkpoints.disk import write_json
    from napari_openmedlab.models.checkpoints.store import ModelStore

    out = Path(out)
    folder, settings = _plan_of(out)
    monitor, store = monitor or Monitor(), ModelStore()
    store.require_free(slug(settings.name))
    cubes, held_out = split_cubes(read_cubes(folder), settings.held_out, settings.seed)
    network, start = _start(settings, store)
    network.deep_supervision = True
    task = axon_task(network, cubes, settings, held_out, start)
    result = run_loop(task, settings.loop, out, monitor=monitor, control=control, on_event=on_event)
    measures: dict[str, float] = {}
    if isinstance(task.validate, HeldOutCubes):
        measures = task.validate.measures(network, result.placement, monitor)
        names = [cube.name for cube in held_out]
        write_json(out / _HELD_OUT, {"cubes": names, **measures})
    weights = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
    with staging(out) as stage:
        save_file(weights, stage / _WEIGHTS)
    record = store.import_file(out / _WEIGHTS, name=settings.name, as_=start["network"])
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

    The same call again goes on where it stopped. See :func:`begin_axons` and :func:`resume_axons`.
    """
    begin_axons(folder, out, settings)
    return resume_axons(out, monitor=monitor, control=control, on_event=on_event)


def _learnt(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a plan decides what is learnt in an iteration."""
    chosen = dict(plan.get("settings", {}))
    return {**plan, "settings": {k: v for k, v in chosen.items() if k not in _FREE}}


def _plan_of(out: Path) -> tuple[Path, AxonTraining]:
    from napari_openmedlab.models.checkpoints.disk import read_json

    found = read_json(out / AXONS)
    try:
        if found["format"] != _FORMAT:
            raise ValueError
        given = dict(found["settings"])
        given["patch"] = tuple(given["patch"])
        return Path(found["cubes"]), AxonTraining(**given)
    except (KeyError, TypeError, ValueError) as error:
        raise ReadError(
            f"{out / AXONS} was written by a newer version, or is damaged", out
        ) from error


def _patch_of(settings: AxonTraining, store: ModelStore) -> tuple[int, int, int] | None:
    """Return the patch asked for, or the only one the start weights' network takes.

    Raises
    ------
    SettingsError
        If the start weights find no axons, or take another patch.
    """
    if not settings.init:
        return settings.patch
    record = store.get(settings.init)
    if record.network not in NETWORKS:
        raise SettingsError(
            f"'{record.name}' holds weights of {record.network}, which finds no axons; start from "
            "weights of Axon-Seg, or from scratch"
        )
    window = record.variant.get("patch_size")
    if not window:
        return settings.patch
    if settings.patch not in (None, (window,) * 3):
        raise SettingsError(
            f"the network of '{record.name}' takes patches of {window} x {window} x {window} "
            "voxels only; choose that patch"
        )
    return (window, window, window)


def _start(settings: AxonTraining, store: ModelStore) -> tuple[Any, dict[str, Any]]:
    """Return the network with its start weights, and what it is and comes from."""
    import torch

    from napari_openmedlab.models import networks

    if not settings.init:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return networks.build(NETWORK), {"network": NETWORK}
    record = store.get(settings.init)
    network = networks.build(record.network, **record.variant)
    network.load_state_dict(store.load(record.name).state_dict())
    return network, {"network": record.network, "init": record.sha256}
