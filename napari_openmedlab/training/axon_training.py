"""Training Axon-Seg's plain network on cubes of one's own.

The loop (state on the disk, going on after a stop, fallbacks) is that of fine-tuning; patches come
from :mod:`.axon_samples`, the loss from :mod:`.axon_losses`. Nothing is held out: look at previews.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from napari_openmedlab.errors import SettingsError
from napari_openmedlab.models.checkpoints.records import Record, slug
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.device import AUTO
from napari_openmedlab.training.axon_samples import AxonCubes, TrainingCube, read_cubes
from napari_openmedlab.training.events import Control, OnEvent
from napari_openmedlab.training.loop import LoopResult, Task, run_loop
from napari_openmedlab.training.settings import LoopSettings

__all__ = ["NETWORK", "AxonTraining", "TrainedAxons", "axon_task", "train_axons"]

NETWORK = "axon-seg-plain"
_WEIGHTS = "axons.safetensors"


@dataclass(frozen=True)
class AxonTraining:
    """What may be chosen.

    Attributes
    ----------
    name : str
        Of the model in the store.
    patch : tuple of int
        Voxels (z, y, x), multiples of 32, one above 32; 128 as published.
    iterations : int
        Published: 550 x 250; a few thousand are a start.
    batch : int
    learning_rate, weight_decay : float
        Of Adam; as published.
    cl_dice : float
        Weight of the clDice term; 0 as published.
    matching, mixing : float
        As in :class:`.axon_samples.AxonCubes`.
    seed : int
    device, precision : str
        As in :class:`.settings.LoopSettings`.
    """

    name: str = "my axons"
    patch: tuple[int, int, int] = (128, 128, 128)
    iterations: int = 5000
    batch: int = 2
    learning_rate: float = 3e-4
    weight_decay: float = 3e-5
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
        return LoopSettings(
            iterations=self.iterations,
            batch=self.batch,
            learning_rate=self.learning_rate,
            trunk_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            rate_power=0.0,
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
    """

    record: Record
    weights: Path
    result: LoopResult


def axon_task(network: Any, cubes: tuple[TrainingCube, ...], settings: AxonTraining) -> Task:
    """Return what the training loop needs.

    Raises
    ------
    SettingsError
        If no cube holds an axon, or one is smaller than the patch.
    """
    from napari_openmedlab.training.axon_losses import AxonLoss

    samples = AxonCubes(cubes, settings.patch, matching=settings.matching, mixing=settings.mixing)
    chosen = asdict(settings)
    told = ("patch", "batch", "cl_dice", "matching", "mixing", "seed")
    facts = {name: chosen[name] for name in told} | {
        "network": NETWORK,
        "cubes": [cube.name for cube in cubes],
    }
    return Task(network, samples, facts=facts, loss=AxonLoss(settings.cl_dice))


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
        If the cubes can't be used.
    Cancelled, EngineError, WriteError, CheckpointError
        As :func:`.loop.run_loop`; a name taken in the store shows before training.
    """
    import torch
    from safetensors.torch import save_file

    from napari_openmedlab.io.atomic import staging
    from napari_openmedlab.models.checkpoints.store import ModelStore
    from napari_openmedlab.models.networks.axon_seg import build_plain

    settings, out = settings or AxonTraining(), Path(out)
    cubes, store = read_cubes(folder), ModelStore()
    store.require_free(slug(settings.name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build_plain()
    network.deep_supervision = True
    task = axon_task(network, cubes, settings)
    out.mkdir(parents=True, exist_ok=True)
    result = run_loop(task, settings.loop, out, monitor=monitor, control=control, on_event=on_event)
    weights = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
    with staging(out) as stage:
        save_file(weights, stage / _WEIGHTS)
    record = store.import_file(out / _WEIGHTS, name=settings.name, as_=NETWORK)
    return TrainedAxons(record, out / _WEIGHTS, result)
