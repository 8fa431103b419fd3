"""The network behind an engine: found in the model store, loaded once, placed, released."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from napari_openmedlab import __version__
from napari_openmedlab.errors import CheckpointError, EngineError
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Monitor

__all__ = ["Loaded", "Weights", "choose_record"]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network ready to run.

    Attributes
    ----------
    network : torch.nn.Module
        In eval mode, on its device.
    record : Record
        What the store says of its weights.
    device : torch.device
    precision : {"float32", "bfloat16", "float16"}
        What it computes in; weights and results are float32.
    notes : tuple of str
        Sentences for the user about where it runs.
    """

    network: Any
    record: Record
    device: torch.device
    precision: str
    notes: tuple[str, ...] = ()

    @property
    def model_network(self) -> str:
        """Name of the network, for example ``"sam-med2d"``."""
        return self.record.network

    @property
    def sha256(self) -> str:
        """Hash of the weights."""
        return self.record.sha256

    @property
    def key(self) -> tuple[str, ...]:
        """What decides an embedding besides its input; see :func:`.embeddings.signature`."""
        return (self.record.network, self.record.sha256, self.precision)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the network inside this: no gradients, autocast where half precision is used."""
        half = self.precision != "float32"
        dtype = getattr(torch, self.precision)
        with torch.inference_mode():
            if not half:
                yield
                return
            with torch.autocast(self.device.type, dtype=dtype):
                yield

    def provenance(self) -> dict[str, Any]:
        """Return what a result says of the network, as plain JSON values."""
        return {
            "version": __version__,
            "network": self.record.network,
            "checkpoint": self.record.checkpoint or self.record.name,
            "checkpoint_sha256": self.record.source_sha256,
            "weights_sha256": self.record.sha256,
            "device": str(self.device),
            "precision": self.precision,
            "torch": torch.__version__,
        }


class Weights:
    """Keeps one network of an engine loaded: that of the checkpoint and device asked for last.

    Parameters
    ----------
    engine_id : str
        Id in the catalogue; its entry names the networks it runs.
    """

    def __init__(self, engine_id: str) -> None:
        self._engine_id = engine_id
        self._asked: tuple[Any, ...] = ()
        self._loaded: Loaded | None = None

    def use(self, options: Mapping[str, Any], monitor: Monitor) -> Loaded:
        """Return the network for these options, loading it if it is not the one at hand.

        Parameters
        ----------
        options : mapping
            ``checkpoint``, ``device`` and ``precision``, as the catalogue describes them.

        Raises
        ------
        EngineError
            If no checkpoint fits, or the device is not there.
        CheckpointError
            If the checkpoint is damaged or gone.
        """
        store = ModelStore()
        record = choose_record(store, self._engine_id, options["checkpoint"])
        asked = (store.folder, record.name, record.sha256, options["device"], options["precision"])
        if self._loaded is None or asked != self._asked:
            monitor.step(0, 0, f"loading {record.name}")
            self.unload()
            self._loaded = self._load(store, record, options)
            self._asked = asked
        return self._loaded

    def unload(self) -> None:
        """Let go of the network and of what its device keeps for it."""
        self._loaded, self._asked = None, ()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self, store: ModelStore, record: Record, options: Mapping[str, Any]) -> Loaded:
        network = store.load(record.name)
        device = torch.device("cpu")
        return Loaded(network.to(device), record, device, "float32")


def choose_record(store: ModelStore, engine_id: str, name: str) -> Record:
    """Return the model an engine shall use.

    Parameters
    ----------
    store : ModelStore
    engine_id : str
    name : str
        A model of the store; ``""`` takes the one imported last among those that fit.

    Raises
    ------
    EngineError
        If nothing fits, or the model is one of another engine's.
    CheckpointError
        If there is no such model, or it is damaged.
    """
    spec = get_spec(engine_id)
    if name:
        record = store.get(name)
        if record.network not in spec.networks:
            raise EngineError(
                f"model '{name}' is a {record.network}, which {spec.title} can't use; it takes "
                f"{', '.join(spec.networks)}",
                engine=engine_id,
                stage="load",
            )
        return record
    fitting = [record for network in spec.networks for record in store.models_of(network)]
    if not fitting:
        damaged = [e.record.name for e in store.entries() if e.problem]
        hint = f" ({', '.join(damaged)} can't be used; see there)" if damaged else ""
        raise CheckpointError(
            f"{spec.title} has no weights here yet{hint}. Open Plugins > OpenMedLab > Models, or "
            "run 'openmedlab models list', to download or import them",
            store.folder,
        )
    return max(fitting, key=lambda record: (record.imported, record.name))
