"""The catalogue: one entry per engine and per published checkpoint, pure data.

Panels, help texts and tests grow from it.

Engines are named by import path, so listing them imports none of them (``torch`` takes
seconds). Other packages add entries through the entry point group
``napari_openmedlab.engines``, each pointing to an :class:`EngineSpec`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from napari_openmedlab.errors import CheckpointError, EngineError
from napari_openmedlab.models.checkpoint_spec import NOT_STATED, CheckpointSpec
from napari_openmedlab.models.contract import PromptKind, Task, check_engine
from napari_openmedlab.models.published import PUBLISHED

__all__ = [
    "NOT_STATED",
    "CheckpointSpec",
    "EngineSpec",
    "Option",
    "checkpoints",
    "engines",
    "get_checkpoint",
    "get_spec",
    "load_engine",
]

_log = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "napari_openmedlab.engines"


@dataclass(frozen=True)
class Option:
    """One typed setting of an engine; forms and command-line checks are built from it.

    Attributes
    ----------
    name : str
        Key in ``Request.options``.
    default : bool, int, float or str
        Its type is the option's type.
    description : str
        One sentence for the tooltip, units included.
    minimum, maximum : number, optional
        Inclusive limits of a number.
    choices : tuple of str
        The allowed values of a text.
    """

    name: str
    default: bool | int | float | str
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> bool | int | float | str:
        """Return ``value`` in the option's type, or raise :class:`EngineError` saying why not."""
        kind = type(self.default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise EngineError(f"option '{self.name}' takes a {kind.__name__}, got {value!r}")
        if self.choices and value not in self.choices:
            raise EngineError(
                f"option '{self.name}' is one of {', '.join(self.choices)}, got {value!r}"
            )
        too_low = self.minimum is not None and value < self.minimum  # type: ignore[operator]
        too_high = self.maximum is not None and value > self.maximum  # type: ignore[operator]
        if too_low or too_high:
            raise EngineError(
                f"option '{self.name}' lies between {self.minimum} and {self.maximum}, got {value}"
            )
        return value


@dataclass(frozen=True)
class EngineSpec:
    """One engine as the rest of the program sees it before it is loaded.

    Attributes
    ----------
    id : str
        Stable short name, used in sessions and on the command line.
    title : str
        Name in menus.
    entry : str
        ``"package.module:Class"``; the class takes no arguments.
    task : {"promptable", "automatic", "localizer"}
    summary : str
        One sentence: what it is good at.
    prompts : frozenset of str
        Prompt kinds it accepts (promptable engines).
    options : tuple of Option
    checkpoints : tuple of CheckpointSpec
        Empty for an engine that needs no weights.
    requires : tuple of str
        Import names of optional packages it needs, for example ``("torch",)``.
    paper : str
        Where the method is described.
    """

    id: str
    title: str
    entry: str
    task: Task
    summary: str
    prompts: frozenset[PromptKind] = frozenset()
    options: tuple[Option, ...] = ()
    checkpoints: tuple[CheckpointSpec, ...] = ()
    requires: tuple[str, ...] = ()
    paper: str = ""

    def missing(self) -> tuple[str, ...]:
        """Return sentences on what keeps the engine from running here (empty: ready)."""
        absent = [name for name in self.requires if importlib.util.find_spec(name) is None]
        if not absent:
            return ()
        return (f"{self.title} needs {', '.join(absent)}: pip install 'napari-openmedlab[models]'",)

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options with defaults filled in and values checked.

        Raises
        ------
        EngineError
            For an unknown name or a value of the wrong type or out of range.
        """
        known = {option.name: option for option in self.options}
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise EngineError(
                f"{self.title} has no option {', '.join(unknown)}; it has "
                f"{', '.join(known) or 'none'}",
                engine=self.id,
            )
        return {name: o.check(options.get(name, o.default)) for name, o in known.items()}


_ALL_PROMPTS: frozenset[PromptKind] = frozenset(
    {"extreme_points", "box", "click", "scribble", "mask"}
)

_OWN: tuple[EngineSpec, ...] = (
    EngineSpec(
        id="built-in",
        title="Built-in (no training, CPU)",
        entry="napari_openmedlab.models.engines.built_in:BuiltIn",
        task="promptable",
        summary="Training-free: works at once, offline, on any contrast. Best with extreme points.",
        prompts=_ALL_PROMPTS,
        options=(
            Option(
                "tolerance",
                3.0,
                "Millimetres by which extreme points may be off; 0 takes them as exact. Without a "
                "unit in mm at most one voxel.",
                minimum=0.0,
                maximum=10.0,
            ),
            Option(
                "local_corrections",
                True,
                "A click or scribble changes only its surroundings; the rest of the mask stays.",
            ),
        ),
    ),
)


def engines(task: Task | None = None) -> tuple[EngineSpec, ...]:
    """Return all entries, ours first, then those other packages registered.

    Parameters
    ----------
    task : str, optional
        Only engines of this task.
    """
    return tuple(spec for spec in _all() if task is None or spec.task == task)


def _all() -> Iterable[EngineSpec]:
    """Yield ours, then the others': who finds what it wants early asks no other package."""
    yield from _OWN
    yield from _registered()


def _registered() -> Iterable[EngineSpec]:
    """Yield other packages' entries; a faulty one is left out with a warning, not ours to end."""
    taken = {spec.id for spec in _OWN}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            spec = point.load()
        except (ImportError, AttributeError) as error:
            _log.warning("engine '%s' is left out, it can't be imported: %s", point.name, error)
            continue
        if not isinstance(spec, EngineSpec):
            _log.warning("engine '%s' is left out, it is no EngineSpec", point.name)
        elif spec.id in taken:
            _log.warning("engine '%s' is left out, its id '%s' is taken", point.name, spec.id)
        else:
            taken.add(spec.id)
            yield spec


def get_spec(engine_id: str) -> EngineSpec:
    """Return the entry with this id, or raise :class:`EngineError` listing the known ids."""
    for spec in _all():
        if spec.id == engine_id:
            return spec
    known = ", ".join(spec.id for spec in engines())
    raise EngineError(f"there is no engine '{engine_id}'; there are: {known}", engine=engine_id)


def load_engine(engine_id: str) -> Any:
    """Import and construct an engine and check that it keeps its contract.

    Raises
    ------
    EngineError
        If the id is unknown, a package it needs is missing, its module can't be imported, or
        it lacks methods of its task.
    """
    spec = get_spec(engine_id)
    if lacks := spec.missing():
        raise EngineError(lacks[0], engine=engine_id, stage="load")
    module, _, name = spec.entry.partition(":")
    try:
        engine = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise EngineError(
            f"engine '{engine_id}' can't be loaded from {spec.entry}: {error}",
            engine=engine_id,
            stage="load",
        ) from error
    check_engine(engine, spec.task, engine_id)
    return engine


def checkpoints(
    engine: str | None = None, network: str | None = None
) -> tuple[CheckpointSpec, ...]:
    """Return the published checkpoints.

    Parameters
    ----------
    engine : str, optional
        Only those made for this engine.
    network : str, optional
        Only those that fit this network.
    """
    return tuple(
        spec
        for spec in PUBLISHED
        if engine in (None, spec.engine) and network in (None, spec.network)
    )


def get_checkpoint(checkpoint_id: str) -> CheckpointSpec:
    """Return the published checkpoint with this id.

    Raises
    ------
    CheckpointError
        If there is none; the text lists the ids that come nearest.
    """
    known = {spec.id: spec for spec in PUBLISHED}
    if checkpoint_id not in known:
        near = difflib.get_close_matches(checkpoint_id, known, n=3, cutoff=0.4) or sorted(known)
        raise CheckpointError(
            f"there is no published checkpoint '{checkpoint_id}'; did you mean {', '.join(near)}?"
        )
    return known[checkpoint_id]
