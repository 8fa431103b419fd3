"""What the user may choose of a training run. Everything has a default that fits most.

Importing this module imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, Literal

from napari_openmedlab.errors import SettingsError
from napari_openmedlab.models.device import AUTO

__all__ = ["NETWORKS", "LoopSettings", "TrainSettings", "settings_from_json"]

NETWORKS = ("fmunet", "pct-net")
Index3 = tuple[int, int, int]


@dataclass(frozen=True)
class LoopSettings:
    """What the training loop itself needs; all of it concrete.

    Attributes
    ----------
    iterations : int
    batch : int
        Patches per iteration.
    accumulation : int
        In how many parts a batch is computed, one after the other, to save memory. Dice is then
        taken within each part.
    learning_rate : float
        At the start, of freshly initialised weights.
    trunk_rate : float
        At the start, of weights that were taken over from a pre-trained network.
    weight_decay : float
    rate_steps : int
        The rate falls in so many equal steps over the run: 24 as published (every 250 of 6000
        iterations), with the power ``rate_power``.
    rate_power : float
        0 keeps the rate as it is.
    validate_every, save_every : int
        Iterations.
    save_seconds : float
        The state is written at least this often too.
    patience : int
        Iterations without gain on held-out cases after which a run ends; 0: never.
    seed : int
    device : str
        As for :func:`napari_openmedlab.models.device.choose`.
    precision : str
        As for :func:`napari_openmedlab.models.device.precision_for`.
    """

    iterations: int
    batch: int = 2
    accumulation: int = 1
    learning_rate: float = 1e-3
    trunk_rate: float = 1e-3
    weight_decay: float = 1e-5
    rate_steps: int = 24
    rate_power: float = 0.8
    validate_every: int = 250
    save_every: int = 250
    save_seconds: float = 120.0
    patience: int = 0
    seed: int = 1
    device: str = AUTO
    precision: str = AUTO

    def __post_init__(self) -> None:
        least = {"iterations": 1, "batch": 1, "accumulation": 1, "validate_every": 1}
        for name, limit in (least | {"save_every": 1, "rate_steps": 1}).items():
            if getattr(self, name) < limit:
                raise SettingsError(f"{name} is at least {limit}, got {getattr(self, name)}")
        if self.accumulation > self.batch:
            raise SettingsError(
                f"a batch of {self.batch} can't be computed in {self.accumulation} parts"
            )
        if min(self.learning_rate, self.trunk_rate) <= 0:
            raise SettingsError("learning rates are above 0")


@dataclass(frozen=True)
class TrainSettings:
    """What the user chooses for training on labelled volumes; 0, "auto" or None: the default.

    Attributes
    ----------
    name : str
        What the model shall be called.
    network : {"fmunet", "pct-net"}
    init : str
        Name in the model store of pre-trained weights to start from; empty: from scratch.
    size : "auto", "published", "small" or tuple of 5 int
        Channels of a network from scratch, full resolution first. Auto: published on a graphics
        card, small on the CPU.
    resolution_mode : {None, 0, 1, 2}
        0: near-isotropic voxels; 1, 2: the first (two) levels work slice by slice. None: as the
        pre-trained weights, or by the voxels.
    patch : tuple of int or None
        Voxels (z, y, x) seen at once.
    spacing : "auto", "keep" or tuple of float
        Voxels (z, y, x) in mm all scans are brought to. Auto: their median; keep: none is
        resampled.
    intensity : {"auto", "ct", "z-score"}
        CT: ``window`` becomes -1 to 1. Auto: CT where the scans are.
    window : tuple of float
        Hounsfield units; -1000 to 1000 as published.
    iterations : int
        Auto: 1000 for one case, 2000 for two or three, 3000 below twenty, 6000 above.
    batch, accumulation : int
        As in :class:`LoopSettings`.
    learning_rate, trunk_rate : float
        As in :class:`LoopSettings`. Auto: 1e-3 as published; for weights taken over 3e-4 below
        ten cases.
    foreground : float
        Share of patches that are placed on a labelled voxel, classes in turn by chance; 0 as
        published.
    flips : str
        Axes along which patches are mirrored by chance: letters of "zyx", or "none". Auto:
        "yx" as published, without "x" where class names tell left from right.
    contrast : float
        Largest relative change of contrast, brightness and gamma by chance; 0: none.
    held_out : None, int or tuple of str
        How many cases, or which, are not trained on but measured. None: a fifth, at least one,
        from three cases on.
    validate_every : int
        Iterations. Auto: 24 times in a run, at most every 250.
    seed : int
    device, precision : str
        As in :class:`LoopSettings`.
    """

    name: str = "my model"
    network: str = "fmunet"
    init: str = ""
    size: Literal["auto", "published", "small"] | tuple[int, ...] = "auto"
    resolution_mode: int | None = None
    patch: Index3 | None = None
    spacing: Literal["auto", "keep"] | tuple[float, float, float] = "auto"
    intensity: Literal["auto", "ct", "z-score"] = "auto"
    window: tuple[float, float] = (-1000.0, 1000.0)
    iterations: int = 0
    batch: int = 0
    accumulation: int = 0
    learning_rate: float = 0.0
    trunk_rate: float = 0.0
    foreground: float = 0.5
    flips: str = AUTO
    contrast: float = 0.1
    held_out: int | tuple[str, ...] | None = None
    validate_every: int = 0
    seed: int = 1
    device: str = AUTO
    precision: str = AUTO

    def __post_init__(self) -> None:
        problem = _wrong(self)
        if problem:
            raise SettingsError(problem)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values, as :func:`settings_from_json` takes them."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found


def settings_from_json(found: Mapping[str, Any]) -> TrainSettings:
    """Return settings from JSON values.

    Raises
    ------
    SettingsError
        For an unknown name, or a value that can't be.
    """
    unknown = sorted(set(found) - set(TrainSettings.__dataclass_fields__))
    if unknown:
        raise SettingsError(f"there is no setting {', '.join(unknown)}")
    tuples = {key: tuple(value) for key, value in found.items() if isinstance(value, list)}
    return TrainSettings(**{**found, **tuples})


def _wrong(chosen: TrainSettings) -> str:
    """Return what can't be; empty if all can."""
    if not chosen.name.strip():
        return "the model needs a name"
    choices: dict[str, tuple[Any, ...]] = {
        "network": NETWORKS,
        "size": (AUTO, "published", "small", chosen.size if _five(chosen.size) else AUTO),
        "resolution_mode": (None, 0, 1, 2),
        "intensity": (AUTO, "ct", "z-score"),
    }
    for name, allowed in choices.items():
        if getattr(chosen, name) not in allowed:
            words = ", ".join(map(str, allowed))
            return f"{name.replace('_', ' ')} is one of {words}, got {getattr(chosen, name)!r}"
    counts = ("iterations", "batch", "accumulation", "validate_every", "learning_rate")
    for name in (*counts, "trunk_rate", "contrast"):
        if not 0 <= getattr(chosen, name) < inf:
            return f"{name.replace('_', ' ')} is 0 (auto) or more, got {getattr(chosen, name)}"
    return _wrong_values(chosen)


def _five(size: Any) -> bool:
    return isinstance(size, tuple) and len(size) == 5 and all(isinstance(n, int) for n in size)


def _wrong_values(chosen: TrainSettings) -> str:
    if not 0 <= chosen.foreground <= 1:
        return f"the share of foreground patches lies between 0 and 1, got {chosen.foreground}"
    if chosen.contrast > 0.5:
        return f"the change of contrast is at most 0.5, got {chosen.contrast}"
    if chosen.flips not in (AUTO, "none") and not set(chosen.flips) <= set("zyx"):
        return f"flips are letters of 'zyx', 'none' or 'auto', got {chosen.flips!r}"
    if not -inf < chosen.window[0] < chosen.window[1] < inf:
        return f"the window goes from low to high, got {chosen.window}"
    if chosen.patch is not None and (len(chosen.patch) != 3 or min(chosen.patch) < 1):
        return f"a patch has three edges of at least one voxel, got {chosen.patch}"
    if isinstance(chosen.spacing, str):
        if chosen.spacing not in (AUTO, "keep"):
            return f"the spacing is auto, keep or three lengths, got {chosen.spacing!r}"
    elif len(chosen.spacing) != 3 or not all(0 < size < inf for size in chosen.spacing):
        return f"a spacing has three lengths above 0 mm, got {chosen.spacing}"
    if isinstance(chosen.held_out, int) and chosen.held_out < 0:
        return f"the number of held-out cases is 0 or more, got {chosen.held_out}"
    return ""
