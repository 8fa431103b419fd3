"""What an axon training is: its settings, its cubes, and the plan of it in its folder.

Importing this module imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_openmedlab.errors import ReadError, SettingsError, WriteError
from napari_openmedlab.io.atomic import sentence
from napari_openmedlab.models.checkpoints.locks import locked
from napari_openmedlab.models.checkpoints.records import slug
from napari_openmedlab.models.device import AUTO
from napari_openmedlab.training.axon_held_out import split_cubes
from napari_openmedlab.training.axon_samples import (
    AxonCubes,
    TrainingCube,
    fitting_patch,
    read_cubes,
    require_room,
)
from napari_openmedlab.training.run_folder import (
    BEST,
    HISTORY,
    LOCK,
    STATE,
    UNDER_WAY,
    last_iteration,
)
from napari_openmedlab.training.settings import LoopSettings

if TYPE_CHECKING:
    from napari_openmedlab.models.checkpoints.store import ModelStore

__all__ = [
    "AXONS",
    "NETWORK",
    "NETWORKS",
    "AxonPlan",
    "AxonTraining",
    "begin_axons",
    "patch_of",
    "read_plan",
]

NETWORK = "axon-seg-plain"
NETWORKS = ("axon-seg", "axon-seg-plain")
AXONS = "axon_training.json"
"""What a folder of a training says of it."""

_FORMAT = 2
_FREE = ("name", "iterations", "learning_rate", "accumulation", "device", "precision")
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
    accumulation : int
        In how many parts a batch is computed, one after the other; 0: as the memory asks for.
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
    accumulation: int = 0
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
        for name in ("learning_rate", "weight_decay", "cl_dice", "accumulation"):
            value = getattr(self, name)
            if not isfinite(value) or value < 0:
                raise SettingsError(f"{name.replace('_', ' ')} is 0 or more, got {value}")
        for name in ("matching", "mixing"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} is a share, 0 to 1, got {getattr(self, name)}")
        if self.held_out is not None and self.held_out < 0:
            raise SettingsError(f"0 cubes or more can be held out, got {self.held_out}")
        _ = self.loop  # checks the rest

    @property
    def loop(self) -> LoopSettings:
        """The schedule: one rate throughout, as published until the loss stays level."""
        rate = self.learning_rate or (_TAKEN_RATE if self.init else _FRESH_RATE)
        return LoopSettings(
            iterations=self.iterations,
            batch=self.batch,
            accumulation=max(1, self.accumulation),
            learning_rate=rate,
            trunk_rate=rate,
            weight_decay=self.weight_decay,
            rate_power=0.0,
            validate_every=max(1, min(250, self.iterations // _LEAST_TRIES)),
            seed=self.seed,
            device=self.device,
            precision=self.precision,
        )


@dataclass(frozen=True)
class AxonPlan:
    """A training that was begun.

    Attributes
    ----------
    folder : Path
        Of the cubes.
    cubes : mapping of str to str
        Name and hash of each, held-out ones too.
    settings : AxonTraining
        With a patch.
    """

    folder: Path
    cubes: Mapping[str, str]
    settings: AxonTraining

    def read(self) -> tuple[TrainingCube, ...]:
        """Return the cubes.

        Raises
        ------
        ReadError
            If one can't be read.
        SettingsError
            If they are not those the training began with.
        """
        cubes = read_cubes(self.folder)
        if differ := _differing_cubes(self.cubes, _hashes(cubes)):
            raise SettingsError(
                f"the cubes in {self.folder} changed after the training was begun: "
                f"{'; '.join(differ)}. Begin another one, under another name"
            )
        return cubes


def begin_axons(folder: str | Path, out: str | Path, settings: AxonTraining | None = None) -> None:
    """Prepare a training, or take up one that stopped, so that it can be trained.

    Parameters
    ----------
    folder : str or Path
        With ``images/`` and ``labels/``, as :func:`axons.annotate.export_cubes` makes it.
    out : str or Path
        Folder of the run, new or of the same training: the same cubes, wherever they lie now, and
        the same settings, save name, iterations, learning rate, accumulation, device, precision.
    settings : AxonTraining, optional

    Raises
    ------
    ReadError, SettingsError
        If the cubes can't be used, or ``init`` is of another network.
    CheckpointError
        If the name is taken in the store and nothing is left to learn, or there is no ``init``.
    WriteError
        If ``out`` is another training's, is under way, or can't be written.
    """
    from napari_openmedlab.models.checkpoints.disk import read_json, write_json
    from napari_openmedlab.models.checkpoints.store import ModelStore

    settings, folder, out = settings or AxonTraining(), Path(folder).absolute(), Path(out)
    store, plan = ModelStore(), out / AXONS
    if not 0 < last_iteration(out) < settings.iterations:  # else its end finds a free name
        store.require_free(slug(settings.name))
    every = read_cubes(folder)
    cubes, held_out = split_cubes(every, settings.held_out, settings.seed)
    patch = patch_of(settings, store) or fitting_patch(every)
    AxonCubes(cubes, patch)
    require_room(held_out, patch)
    wanted = {
        "format": _FORMAT,
        "folder": str(folder),
        "cubes": _hashes(every),
        "settings": json.loads(json.dumps(asdict(replace(settings, patch=patch)))),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(sentence(error, out.parent), out) from error
    with locked(out / LOCK, UNDER_WAY):
        if last_iteration(out):
            _refuse_another(read_json(plan), wanted, plan)
        else:  # nothing was learnt yet
            for name in (STATE, BEST, HISTORY):
                (out / name).unlink(missing_ok=True)
        write_json(plan, wanted)


def read_plan(out: Path) -> AxonPlan:
    """Return what :func:`begin_axons` prepared.

    Raises
    ------
    ReadError
        If there is nothing, or it is damaged or of another version.
    """
    from napari_openmedlab.models.checkpoints.disk import read_json

    found = read_json(out / AXONS)
    try:
        if found["format"] != _FORMAT:
            raise ValueError
        given = dict(found["settings"])
        given["patch"] = tuple(given["patch"])
        cubes = {str(name): str(digest) for name, digest in found["cubes"].items()}
        return AxonPlan(Path(found["folder"]), cubes, AxonTraining(**given))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ReadError(
            f"{out / AXONS} was written by another version, or is damaged", out
        ) from error


def patch_of(settings: AxonTraining, store: ModelStore) -> tuple[int, int, int] | None:
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


def _hashes(cubes: Sequence[TrainingCube]) -> dict[str, str]:
    return {cube.name: cube.sha256 for cube in cubes}


def _differing_cubes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return what became of cubes, in words."""
    found = {
        "added": now.keys() - before.keys(),
        "gone": before.keys() - now.keys(),
        "changed": {name for name in before.keys() & now.keys() if before[name] != now[name]},
    }
    return [f"{what}: {', '.join(sorted(names))}" for what, names in found.items() if names]


def _refuse_another(stored: Mapping[str, Any], wanted: Mapping[str, Any], plan: Path) -> None:
    """Raise :class:`WriteError` where something else would be learnt in an iteration."""
    differ = _differing_cubes(dict(stored.get("cubes", {})), wanted["cubes"])
    before, now = dict(stored.get("settings", {})), wanted["settings"]
    names = (name for name in now if name not in _FREE and before.get(name) != now[name])
    differ += [f"{name}: {now[name]} instead of {before.get(name)}" for name in names]
    if stored.get("format") != wanted["format"]:
        differ += ["it was written by another version"]
    if differ:
        raise WriteError(
            f"{plan.parent} holds another training ({'; '.join(differ)}); repeat its own "
            f"settings, which stand in {plan.name}, or choose another folder or name",
            plan.parent,
        )
