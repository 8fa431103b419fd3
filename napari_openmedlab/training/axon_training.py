"""Training Axon-Seg's networks on cubes of one's own, from scratch or from weights that are there.

The loop (state on the disk, going on after a stop, fallbacks) is that of fine-tuning; patches come
from :mod:`.axon_samples`, the loss from :mod:`.axon_losses`, cubes to measure with from
:mod:`.axon_held_out`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_openmedlab.errors import SettingsError
from napari_openmedlab.models.checkpoints.records import Record, slug
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.device import AUTO
from napari_openmedlab.training.axon_samples import (
    AxonCubes,
    TrainingCube,
    read_cubes,
    require_room,
)
from napari_openmedlab.training.events import Control, OnEvent
from napari_openmedlab.training.loop import LoopResult, Task, run_loop
from napari_openmedlab.training.settings import LoopSettings

if TYPE_CHECKING:
    from napari_openmedlab.models.checkpoints.store import ModelStore

__all__ = ["NETWORK", "AxonTraining", "TrainedAxons", "axon_task", "train_axons"]

NETWORK = "axon-seg-plain"
NETWORKS = ("axon-seg", "axon-seg-plain")
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
    patch : tuple of int
        Voxels (z, y, x), multiples of 32, one above 32; 128 as published, and the only one that
        the network with axial attention takes.
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
    patch: tuple[int, int, int] = (128, 128, 128)
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
        if any(p % 32 or p < 32 for p in self.patch) or max(self.patch) < 64:
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
        Its Dice is that of the held-out cubes.
    measures : mapping of str to float
        More of them, by name; empty if none were held out.
    """

    record: Record
    weights: Path
    result: LoopResult
    measures: Mapping[str, float]


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
    from napari_openmedlab.training.axon_held_out import HeldOutCubes
    from napari_openmedlab.training.axon_losses import AxonLoss

    samples = AxonCubes(cubes, settings.patch, matching=settings.matching, mixing=settings.mixing)
    require_room(held_out, settings.patch)
    chosen = asdict(settings)
    told = ("patch", "batch", "cl_dice", "matching", "mixing", "seed")
    facts = {name: chosen[name] for name in told} | {
        "network": NETWORK,
        "cubes": [cube.name for cube in cubes],
        "held_out": [cube.name for cube in held_out],
    }
    return Task(
        network,
        samples,
        validate=HeldOutCubes(held_out, settings.patch) if held_out else None,
        facts=facts | dict(start or {}),
        loss=AxonLoss(settings.cl_dice),
    )


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

    Parameters
    ----------
    folder : str or Path
        With ``images/`` and ``labels/``, as :func:`axons.annotate.export_cubes` makes it.
    out : str or Path
        Folder of the run; the same call again goes on where it stopped.
    settings : AxonTraining, optional
    monitor, control, on_event
        As in :func:`.loop.run_loop`.

    Raises
    ------
    ReadError, SettingsError
        If the cubes can't be used, or ``init`` is of another network.
    Cancelled, EngineError, WriteError, CheckpointError
        As :func:`.loop.run_loop`; a name taken in the store shows before training.
    """
    from safetensors.torch import save_file

    from napari_openmedlab.io.atomic import staging
    from napari_openmedlab.models.checkpoints.disk import write_json
    from napari_openmedlab.models.checkpoints.store import ModelStore
    from napari_openmedlab.training.axon_held_out import HeldOutCubes, split_cubes

    settings, out = settings or AxonTraining(), Path(out)
    monitor, store = monitor or Monitor(), ModelStore()
    store.require_free(slug(settings.name))
    cubes, held_out = split_cubes(read_cubes(folder), settings.held_out, settings.seed)
    network, start = _start(settings, store)
    network.deep_supervision = True
    task = axon_task(network, cubes, settings, held_out, start)
    out.mkdir(parents=True, exist_ok=True)
    result = run_loop(task, settings.loop, out, monitor=monitor, control=control, on_event=on_event)
    measures: dict[str, float] = {}
    if held_out:
        measure = HeldOutCubes(held_out, settings.patch)
        measures = measure.measures(network, result.placement, monitor)
        names = [cube.name for cube in held_out]
        write_json(out / _HELD_OUT, {"cubes": names, "Dice": result.dice["axons"], **measures})
    weights = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
    with staging(out) as stage:
        save_file(weights, stage / _WEIGHTS)
    record = store.import_file(out / _WEIGHTS, name=settings.name, as_=start["network"])
    return TrainedAxons(record, out / _WEIGHTS, result, measures)


def _start(settings: AxonTraining, store: ModelStore) -> tuple[Any, dict[str, Any]]:
    """Return the network with its start weights, and what it is and comes from."""
    import torch

    from napari_openmedlab.models import networks

    if not settings.init:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return networks.build(NETWORK), {"network": NETWORK}
    record = store.get(settings.init)
    if record.network not in NETWORKS:
        raise SettingsError(
            f"'{record.name}' holds weights of {record.network}, which finds no axons; start from "
            "weights of Axon-Seg, or from scratch"
        )
    window = record.variant.get("patch_size")
    if window and settings.patch != (window,) * 3:
        raise SettingsError(
            f"the network of '{record.name}' takes patches of {window} x {window} x {window} "
            "voxels only; choose that patch"
        )
    network = networks.build(record.network, **record.variant)
    network.load_state_dict(store.load(record.name).state_dict())
    return network, {"network": record.network, "init": record.sha256}
