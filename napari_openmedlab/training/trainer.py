"""One training run: its state, an iteration, what is kept and told."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_openmedlab.errors import Cancelled, CheckpointError, EngineError
from napari_openmedlab.models.device import (
    Device,
    Half,
    Placement,
    autocast,
    choose,
    is_out_of_memory,
)
from napari_openmedlab.models.fallback import fallbacks, run_with_fallback
from napari_openmedlab.training.batches import Batches
from napari_openmedlab.training.events import Note, Paused, Saved, Step, Validated
from napari_openmedlab.training.loop import LoopResult, Outside, Task
from napari_openmedlab.training.losses import deep_loss
from napari_openmedlab.training.need import training_precision
from napari_openmedlab.training.run_folder import BEST, HISTORY, STATE, History
from napari_openmedlab.training.schedule import factor
from napari_openmedlab.training.settings import LoopSettings
from napari_openmedlab.training.state import (
    NETWORK,
    optimiser_tensors,
    read_state,
    restore_optimiser,
    write_state,
)

__all__ = ["Trainer"]

_PAUSE = 0.2  # seconds between two looks for a cancel in a pause
_SMOOTHING = 0.1  # of the running mean of seconds per iteration


class Trainer:
    """Runs a task; see :func:`.loop.run_loop`.

    Parameters
    ----------
    task : Task
    settings : LoopSettings
    folder : Path
    outside : Outside
    """

    def __init__(self, task: Task, settings: LoopSettings, folder: Path, outside: Outside) -> None:
        self.task, self.settings, self.folder, self.outside = task, settings, folder, outside
        self.network: Any = task.network
        self.history = History(folder / HISTORY)
        self.iteration = self.saved = self.best_iteration = 0
        self.best, self.dice = -1.0, dict[str, float]()
        self.seconds = self.waited = self.pace = self.validation_seconds = 0.0
        self.validated = 0
        self.facts: dict[str, Any] = json.loads(json.dumps(dict(task.facts)))
        self.notes: list[str] = []
        device = choose(settings.device).device
        self.half: Half | None = device.halves[0] if device.halves else None
        self.placement = self._first_placement(device)
        self.names = {weight: name for name, weight in self.network.named_parameters()}
        self.optimiser = self._optimiser()
        self.scaler = torch.amp.GradScaler(
            self.placement.device.partition(":")[0], enabled=self.placement.precision == "float16"
        )

    # -- from start to end -----------------------------------------------------------------

    def run(self) -> LoopResult:
        """Train to the end and leave the weights that count in the network."""
        self._prepare()
        started = time.monotonic()
        begun = self.seconds
        try:
            self._iterate(lambda: begun + time.monotonic() - started - self.waited)
        except Cancelled:
            self._keep_before_leaving()
            raise Cancelled(
                f"training stopped after iteration {self.iteration} of {self.settings.iterations}; "
                f"it can be gone on with from {self.folder}"
            ) from None
        self.save()
        chosen = self._choose_weights()
        return LoopResult(
            self.iteration,
            chosen,
            dict(self.dice),
            self.seconds,
            self.placement,
            tuple(self.notes),
        )

    def _prepare(self) -> None:
        """Place the network; take up the state on the disk, or write the first one."""
        self._place(self.placement)
        path = self.folder / STATE
        if path.exists():
            self._load(path)
            self.history.cut(self.iteration)
        else:
            self.save()  # a full disk or a wrong folder shows now, not after an hour

    def _iterate(self, clock: Any) -> None:
        settings, last_save = self.settings, time.monotonic()
        self._validate()  # a run may have stopped in the middle of it
        size = (settings.batch, self.iteration, settings.iterations)
        with Batches(self.task.samples, settings.seed, *size) as batches:
            for images, classes in batches:
                self._pause()
                self.outside.monitor.step(self.iteration, settings.iterations, self._text())
                self._one(images, classes)
                self.seconds = clock()
                validated = self._validate()
                due = not self.iteration % settings.save_every or validated
                if due or time.monotonic() - last_save > settings.save_seconds:
                    self.save()
                    last_save = time.monotonic()
                if self._ends():
                    return

    def _ends(self) -> bool:
        """Return whether the run ends before its last iteration."""
        if self.outside.control.ends:
            return True
        patience = self.settings.patience
        if patience and self.best_iteration and self.iteration - self.best_iteration >= patience:
            self._note(
                f"Stopped at iteration {self.iteration}: no gain on the held-out cases since "
                f"iteration {self.best_iteration}."
            )
            return True
        return False

    def _pause(self) -> None:
        control = self.outside.control
        if not control.paused:
            return
        self.save()
        self.outside.tell(Paused(True))
        begin = time.monotonic()
        while not control.wait(_PAUSE):
            self.outside.monitor.step(self.iteration, self.settings.iterations, "paused")
        self.waited += time.monotonic() - begin
        self.outside.tell(Paused(False))

    def _text(self) -> str:
        return f"iteration {self.iteration + 1}, {self.placement.device}"

    # -- one iteration ---------------------------------------------------------------------

    def _one(self, images: NDArray[np.float32], classes: NDArray[np.uint8]) -> None:
        begin, rate = time.monotonic(), factor(self.iteration, self.settings)
        for group in self.optimiser.param_groups:
            group["lr"] = group["start"] * rate
        loss = self._gradients(images, classes)
        if not math.isfinite(loss):
            raise self._astray(loss)
        self._step()
        self.iteration += 1
        seconds = time.monotonic() - begin
        first = not self.pace
        self.pace = seconds if first else self.pace + _SMOOTHING * (seconds - self.pace)
        entry = {"iteration": self.iteration, "loss": loss, "rate": self._rate()}
        self.history.add(**entry)
        left = self._left()
        total = self.settings.iterations
        self.outside.tell(Step(self.iteration, total, loss, self._rate(), self.pace, left))

    def _step(self) -> None:
        try:
            self.scaler.step(self.optimiser)
            self.scaler.update()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise EngineError(
                f"The memory of {self.placement.device} is too small to train this network. The "
                f"state of iteration {self.saved} is kept in {self.folder}; go on with the CPU, or "
                f"{self.task.smaller}.",
                engine=self.task.engine,
                stage="memory",
            ) from error

    def _gradients(self, images: NDArray[np.float32], classes: NDArray[np.uint8]) -> float:
        """Return the loss of a batch; where memory runs out, go on with smaller parts."""
        steps = fallbacks(self.placement, self.half)
        patches, targets = torch.from_numpy(images), torch.from_numpy(classes)

        def on(placement: Placement) -> float:
            self._place(placement)
            return self._backward(patches, targets)

        return run_with_fallback(on, steps, self._note).value

    def _backward(self, patches: torch.Tensor, targets: torch.Tensor) -> float:
        torch.manual_seed(_mixed(self.settings.seed, self.iteration))
        self.optimiser.zero_grad(set_to_none=True)
        device, size, total = self.placement.device, self.placement.batch, 0.0
        for part in range(0, len(patches), size):
            some = patches[part : part + size].to(device, non_blocking=True)
            wanted = targets[part : part + size].to(device, non_blocking=True)
            with autocast(self.placement):
                logits = self.network(some)
            loss = (self.task.loss or deep_loss)(logits, wanted) * (len(some) / len(patches))
            self.scaler.scale(loss).backward()
            total += float(loss.detach())
        return total

    def _astray(self, loss: float) -> EngineError:
        self.history.flush()
        hint = "" if self.placement.precision == "float32" else ", or float32 precision"
        kept = f"best weights (iteration {self.best_iteration})" if self.best_iteration else ""
        state = f"state of iteration {self.saved}"
        return EngineError(
            f"The loss became {loss} at iteration {self.iteration + 1}: the numbers ran out of "
            f"range. The {' and the '.join(filter(None, (kept, state)))} are kept in "
            f"{self.folder}; go on from there with a smaller learning rate{hint}.",
            engine=self.task.engine,
            stage="train",
        )

    def _rate(self) -> float:
        return float(max(group["lr"] for group in self.optimiser.param_groups))

    def _left(self) -> float:
        rest = self.settings.iterations - self.iteration
        tries = rest / self.settings.validate_every if self.task.validate else 0
        return rest * self.pace + tries * self.validation_seconds

    # -- validation ------------------------------------------------------------------------

    def _validate(self) -> bool:
        """Try the network on what is held out, if it is time; return whether it was."""
        settings = self.settings
        last = self.iteration == settings.iterations or self.outside.control.ends
        done = self.task.validate is None or self.validated == self.iteration
        if done or (self.iteration % settings.validate_every and not last):
            return False
        begin = time.monotonic()
        self.network.eval()
        deep, self.network.deep_supervision = self.network.deep_supervision, False
        try:
            assert self.task.validate is not None
            found = self.task.validate(self.network, self.placement, self.outside.monitor)
        finally:
            self.network.deep_supervision = deep
            self.network.train()
        self.validation_seconds = time.monotonic() - begin
        there = [value for value in found.values() if not math.isnan(value)]
        mean = sum(there) / len(there) if there else math.nan
        better = mean > self.best
        if better:
            self.best, self.best_iteration = mean, self.iteration
            self.dice = {key: value for key, value in found.items() if not math.isnan(value)}
            write_state(self.folder / BEST, self._weights(), self._facts())
        plain = {key: None if math.isnan(value) else value for key, value in found.items()}
        self.validated = self.iteration
        self.history.add(iteration=self.iteration, dice=plain)
        self.outside.tell(Validated(self.iteration, dict(found), mean, better))
        return True

    def _choose_weights(self) -> int:
        """Leave the best weights in the network, else the last; return their iteration."""
        self.network.eval()
        self.network.deep_supervision = False
        if not self.best_iteration or self.best_iteration == self.iteration:
            return self.iteration
        tensors, _ = read_state(self.folder / BEST)
        self._load_weights(tensors, self.folder / BEST)
        return self.best_iteration

    # -- the state on the disk -------------------------------------------------------------

    def save(self) -> None:
        """Write the state, if it is not there yet."""
        if self.iteration and self.saved == self.iteration:
            return
        weights = self._weights()
        if not all(bool(torch.isfinite(t).all()) for t in weights.values()):
            raise self._astray(math.nan)
        self.history.flush()
        tensors = weights | optimiser_tensors(self.optimiser, self.names)
        write_state(self.folder / STATE, tensors, self._facts())
        self.saved = self.iteration
        self.outside.tell(Saved(self.iteration, self.folder / STATE))

    def _keep_before_leaving(self) -> None:
        if self.saved != self.iteration:
            self.save()

    def _facts(self) -> dict[str, Any]:
        return {
            "task": self.facts,
            "iteration": self.iteration,
            "validated": self.validated,
            "best": self.best,
            "best_iteration": self.best_iteration,
            "dice": self.dice,
            "seconds": self.seconds,
            "scaler": self.scaler.state_dict(),
            "device": self.placement.device,
            "micro_batch": self.placement.batch,
        }

    def _load(self, path: Path) -> None:
        tensors, facts = read_state(path)
        if facts.get("task") != self.facts:
            raise CheckpointError(
                f"{path} is the state of another run (other classes, network or cases); choose "
                "another folder",
                path,
            )
        self._load_weights(tensors, path)
        restore_optimiser(self.optimiser, self.names, tensors)
        self.iteration = self.saved = int(facts["iteration"])
        self.validated = int(facts["validated"])
        self.best, self.best_iteration = float(facts["best"]), int(facts["best_iteration"])
        self.dice, self.seconds = dict(facts["dice"]), float(facts["seconds"])
        if self.scaler.is_enabled() and facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])
        if facts["device"] == self.placement.device:  # what was too much then is too much now
            batch = min(self.placement.batch, int(facts["micro_batch"]))
            self.placement = replace(self.placement, batch=batch)

    def _load_weights(self, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
        own = self.network.state_dict()
        with torch.no_grad():
            for key, tensor in own.items():
                found = tensors.get(NETWORK + key)
                if found is None or found.shape != tensor.shape:
                    raise CheckpointError(f"{path} does not fit the network at '{key}'", path)
                tensor.copy_(found)

    def _weights(self) -> dict[str, torch.Tensor]:
        return {NETWORK + key: tensor for key, tensor in self.network.state_dict().items()}

    # -- where it runs ---------------------------------------------------------------------

    def _first_placement(self, device: Device) -> Placement:
        settings = self.settings
        precision = training_precision(device, settings.precision)
        return Placement(device.id, precision, -(-settings.batch // settings.accumulation))

    def _place(self, placement: Placement) -> None:
        """Bring network and optimiser to a device."""
        self.network.train()
        if next(self.network.parameters()).device != torch.device(placement.device):
            self.network.to(placement.device)
            for kept in self.optimiser.state.values():
                for part in ("exp_avg", "exp_avg_sq"):
                    kept[part] = kept[part].to(placement.device)
        if placement.precision != self.placement.precision:
            kind = placement.device.partition(":")[0]
            enabled = placement.precision == "float16"
            self.scaler = torch.amp.GradScaler(kind, enabled=enabled)
        self.placement = placement

    def _optimiser(self) -> torch.optim.Adam:
        """Return Adam with a rate of its own for weights that were taken over."""
        settings, kept = self.settings, self.task.kept
        groups = []
        for start, taken in ((settings.learning_rate, False), (settings.trunk_rate, True)):
            weights = [w for w, name in self.names.items() if (name in kept) == taken]
            if weights:
                groups.append({"params": weights, "lr": start, "start": start})
        return torch.optim.Adam(groups, weight_decay=settings.weight_decay)

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.outside.tell(Note(text))


def _mixed(seed: int, iteration: int) -> int:
    """Return a seed for the chance in one iteration (dropout)."""
    mixed: int = int(np.random.SeedSequence((abs(seed), iteration, 1 << 20)).generate_state(1)[0])
    return mixed
