"""What every engine promises, and the frozen objects that travel to it and back.

Nothing here imports torch, napari or Qt: sessions, the command line and tests speak to engines
through these names only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import Cancelled, EngineError, GeometryError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.blocks import BlockEngine
from napari_openmedlab.models.localisation import Localisation, Template

__all__ = [
    "Anticipating",
    "Automatic",
    "Hint",
    "Labelling",
    "Localizer",
    "Monitor",
    "Prediction",
    "Progress",
    "PromptKind",
    "Promptable",
    "Request",
    "Task",
    "check_engine",
]

Task = Literal["promptable", "automatic", "localizer", "blocks"]
PromptKind = Literal["extreme_points", "box", "click", "scribble", "mask"]


@dataclass(frozen=True)
class Progress:
    """One report: ``done`` of ``total`` steps (total 0 = unknown) and what is being done."""

    done: int
    total: int
    text: str = ""


class Monitor:
    """Carries progress out of a running engine and a cancel into it. Thread-safe.

    Parameters
    ----------
    on_progress : callable, optional
        Called with a :class:`Progress` in the engine's thread, at most ``1 / interval`` times
        a second (the last step is always reported).
    interval : float
        Seconds between two reports.
    """

    def __init__(
        self, on_progress: Callable[[Progress], None] | None = None, interval: float = 0.1
    ) -> None:
        self._on_progress = on_progress
        self._interval = interval
        self._last = 0.0
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask the engine to stop; it does at its next step."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether a cancel was asked for."""
        return self._cancelled.is_set()

    def step(self, done: int = 0, total: int = 0, text: str = "") -> None:
        """Report a step and raise :class:`~napari_openmedlab.errors.Cancelled` after a cancel."""
        if self.cancelled:
            raise Cancelled("cancelled")
        if self._on_progress is None:
            return
        now = time.monotonic()
        if now - self._last >= self._interval or (total and done >= total):
            self._last = now
            self._on_progress(Progress(done, total, text))


@dataclass(frozen=True)
class Request:
    """Everything an engine may know about one object to be segmented.

    Attributes
    ----------
    prompts : PromptSet
        All prompts of the object, oldest first within each kind.
    previous : MaskPatch or None
        The object's mask as it stands (perhaps edited by hand); ``None`` at the start.
    previous_prompts : PromptSet or None
        The prompts that stood when ``previous`` was made, so that an engine can tell which are
        new and answer a correction locally.
    obstacles : MaskPatch or None
        Voxels of finished neighbours that can't belong to the object.
    options : mapping
        Values of the engine's options (catalogue); missing ones take their default.
    """

    prompts: PromptSet
    previous: MaskPatch | None = None
    previous_prompts: PromptSet | None = None
    obstacles: MaskPatch | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Prediction:
    """An engine's answer: a sub-mask with its box; outside the box the mask is empty.

    Attributes
    ----------
    box : Box
        Inside the volume. Empty if nothing was found.
    mask : ndarray of bool, shape ``box.shape``
    score : float
        The engine's own estimate of the mask's quality in [0, 1]; NaN if it has none.
    seconds : float
        Time the engine needed.
    provenance : mapping
        Plain JSON values: engine, version, checkpoint hash, device, options.
    notes : tuple of str
        Sentences for the user ("Low confidence: ...").
    """

    box: Box
    mask: NDArray[np.bool_]
    score: float = float("nan")
    seconds: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mask.shape != self.box.shape:
            raise GeometryError(
                f"prediction mask of shape {self.mask.shape} in a box of shape {self.box.shape}"
            )

    @property
    def patch(self) -> MaskPatch:
        """The mask with its box."""
        return MaskPatch(self.box, self.mask)


@dataclass(frozen=True)
class Labelling:
    """An automatic engine's answer for a volume or a region of it.

    Attributes
    ----------
    box : Box
        The region, inside the volume.
    labels : ndarray of unsigned int, shape ``box.shape``
        0 is background.
    names : mapping of int to str
        Of every value that was looked for, found or not.
    seconds : float
        Time the engine needed.
    provenance : mapping
        Plain JSON values: engine, version, checkpoint hash, device, options.
    notes : tuple of str
        Sentences for the user.
    """

    box: Box
    labels: NDArray[Any]
    names: Mapping[int, str]
    seconds: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.labels.shape != self.box.shape:
            raise GeometryError(
                f"labels of shape {self.labels.shape} in a box of shape {self.box.shape}"
            )


@dataclass(frozen=True)
class Hint:
    """Where the user looks: what a prompt may soon ask for.

    Attributes
    ----------
    point : tuple of float
        World point (x, y, z) under the cursor, as in :class:`PromptSet`.
    normal : tuple of float or None
        World direction (unit length) across the slice shown, for engines that work by slice;
        ``None`` for those that work around a point.
    reach : float
        How far a prompt may lie from the point, or from the slice, for the work to be of use.
    options : mapping
        As in :class:`Request`.
    """

    point: tuple[float, float, float]
    normal: tuple[float, float, float] | None = None
    reach: float = 1e-3
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def serves(self, request: Request) -> bool:
        """Return whether work done for this hint is of use to a request."""
        points = request.prompts.world_points()
        if not len(points):
            return False
        away = points - np.asarray(self.point)
        distance = np.abs(away @ np.asarray(self.normal)) if self.normal is not None else None
        if distance is None:
            distance = np.linalg.norm(away, axis=1)
        return bool((distance <= self.reach).any())


@runtime_checkable
class Anticipating(Protocol):
    """An engine that can work ahead of a prompt; only the time of the answer changes."""

    def anticipate(self, prepared: Any, hint: Hint, monitor: Monitor) -> None:
        """Encode what a prompt at the hint would need; keep it for ``predict``."""


@runtime_checkable
class Promptable(Protocol):
    """An engine that turns prompts into a mask. Made without arguments; cheap to make."""

    def prepare(self, volume: Volume, monitor: Monitor) -> Any:
        """Do what can be done before the first prompt (encode, cache); return it."""

    def predict(self, prepared: Any, request: Request, monitor: Monitor) -> Prediction:
        """Answer a request on a prepared volume."""

    def unload(self) -> None:
        """Release networks, caches and device memory."""


@runtime_checkable
class Automatic(Protocol):
    """An engine that labels a volume or a region of it without prompts."""

    def segment(
        self, volume: Volume, region: Box, options: Mapping[str, Any], monitor: Monitor
    ) -> Labelling:
        """Return the labels of a region, and the name of each value."""

    def unload(self) -> None:
        """Release networks, caches and device memory."""


@runtime_checkable
class Localizer(Protocol):
    """An engine that finds structures of templates in another volume."""

    def locate(
        self,
        volume: Volume,
        templates: Sequence[Template],
        options: Mapping[str, Any],
        monitor: Monitor,
        structures: Sequence[str] = (),
    ) -> Localisation:
        """Find structures (all that any template has, or those named) in a volume."""

    def unload(self) -> None:
        """Release networks, caches and device memory."""


_PROTOCOLS: dict[Task, tuple[type, tuple[str, ...]]] = {
    "promptable": (Promptable, ("prepare", "predict", "unload")),
    "automatic": (Automatic, ("segment", "unload")),
    "localizer": (Localizer, ("locate", "unload")),
    "blocks": (BlockEngine, ("layout", "score", "provenance", "unload")),
}


def check_engine(engine: object, task: Task, name: str) -> None:
    """Raise :class:`EngineError` naming the methods that ``engine`` lacks for its task."""
    _, methods = _PROTOCOLS[task]
    missing = [m for m in methods if not callable(getattr(engine, m, None))]
    if missing:
        raise EngineError(
            f"engine '{name}' says it is {task} but lacks {', '.join(missing)}",
            engine=name,
            stage="load",
        )
