"""The network behind an engine: found in the model store, loaded once, placed, released."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from napari_openmedlab import __version__
from napari_openmedlab.errors import CheckpointError, EngineError
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.device import (
    Device,
    Half,
    Placement,
    autocast,
    choose,
    free_memory,
    precision_for,
)
from napari_openmedlab.models.fallback import fallbacks, run_with_fallback
from napari_openmedlab.models.memory import MemoryNeed, shortage, weights_in_file

__all__ = ["Loaded", "Weights", "choose_record"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network ready to run.

    Attributes
    ----------
    network : torch.nn.Module
        In eval mode, on its device.
    record : Record
        What the store says of its weights.
    placement : Placement
        Device, precision it computes in (weights and results are float32), and batch.
    notes : tuple of str
        Sentences for the user about where it runs.
    """

    network: Any
    record: Record
    placement: Placement
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where its inputs belong."""
        return torch.device(self.placement.device)

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
        return (self.record.network, self.record.sha256, self.placement.precision)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the network inside this: no gradients, autocast where half precision is used."""
        with torch.inference_mode(), autocast(self.placement):
            yield

    def provenance(self) -> dict[str, Any]:
        """Return what a result says of the network, as plain JSON values."""
        return {
            "version": __version__,
            "network": self.record.network,
            "checkpoint": self.record.checkpoint or self.record.name,
            "checkpoint_sha256": self.record.source_sha256,
            "weights_sha256": self.record.sha256,
            "device": self.placement.device,
            "precision": self.placement.precision,
            "torch": torch.__version__,
        }


class Weights:
    """Keeps one network of an engine loaded: that of the checkpoint and device asked for last.

    Parameters
    ----------
    engine_id : str
        Id in the catalogue; its entry names the networks it runs.
    batch : int
        How much the engine computes at a time where there is memory.
    half : {"bfloat16", "float16"}, optional
        The half precision its networks need; by default what the device does best.
    steady : bool
        Where memory runs out, only the batch is made smaller: device and precision stay, for
        results that are put together from many calls.
    """

    def __init__(
        self, engine_id: str, batch: int = 1, half: Half | None = None, *, steady: bool = False
    ) -> None:
        self._engine_id = engine_id
        self._batch = batch
        self._half = half
        self._steady = steady
        self._asked: tuple[Any, ...] = ()
        self._loaded: Loaded | None = None
        self._steps: tuple[Placement, ...] = ()

    def run(
        self, options: Mapping[str, Any], monitor: Monitor, attempt: Callable[[Loaded], T]
    ) -> T:
        """Return ``attempt(loaded)``; where memory runs out, try again with less, then the CPU.

        What was stepped down to is kept for the next runs, until other options are asked for.

        Parameters
        ----------
        options : mapping
            ``checkpoint``, ``device`` and ``precision``, as the catalogue describes them.
        monitor : Monitor
        attempt : callable
            Is called again from its start after a step down, so it must leave nothing half done.

        Raises
        ------
        EngineError
            If the device is not there, or memory is short everywhere.
        CheckpointError
            If no checkpoint fits, or it is damaged or gone.
        """
        loaded = self._use(options, monitor)
        remaining = self._steps[self._steps.index(loaded.placement) :]
        notes = list(loaded.notes)

        def on(placement: Placement) -> T:
            self._place(placement, tuple(notes))
            assert self._loaded is not None
            return attempt(self._loaded)

        return run_with_fallback(on, remaining, notes.append).value

    def unload(self) -> None:
        """Let go of the network and of what its device keeps for it."""
        loaded, self._loaded, self._asked = self._loaded, None, ()
        if loaded is not None:
            device = loaded.placement.device
            del loaded
            free_memory(device)

    def _use(self, options: Mapping[str, Any], monitor: Monitor) -> Loaded:
        """Return the network for these options, loading it if it is not the one at hand."""
        store = ModelStore()
        record = choose_record(store, self._engine_id, options["checkpoint"])
        asked = (store.folder, record.name, record.sha256, options["device"], options["precision"])
        if self._loaded is not None and asked == self._asked:
            return self._loaded
        monitor.step(0, 0, f"loading {record.name}")
        self.unload()
        choice = choose(options["device"])
        precision = precision_for(choice.device, options["precision"], self._half)
        first = Placement(choice.device.id, precision, self._batch)
        steps = fallbacks(first, self._half_of(choice.device))
        self._steps = tuple(s for s in steps if not self._steady or _alike(s, first))
        weights = weights_in_file(store.path(record.name))
        warning = shortage(MemoryNeed(weights, 0), choice.device)
        network = store.load(record.name)
        self._loaded = Loaded(network, record, Placement(batch=self._batch))
        self._place(self._steps[0], (warning,) if warning else ())
        self._asked = asked
        return self._loaded

    def _half_of(self, device: Device) -> Half | None:
        if self._half is not None:
            return self._half if self._half in device.halves else None
        return device.halves[0] if device.halves else None

    def _place(self, placement: Placement, notes: tuple[str, ...]) -> None:
        """Bring the network to a device, if it is not there."""
        loaded = self._loaded
        if loaded is None or (loaded.placement == placement and loaded.notes == notes):
            return
        network = loaded.network
        if loaded.placement.device != placement.device:
            network = network.to(placement.device)
        self._loaded = replace(loaded, network=network, placement=placement, notes=notes)


def _alike(one: Placement, other: Placement) -> bool:
    return (one.device, one.precision) == (other.device, other.precision)


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
