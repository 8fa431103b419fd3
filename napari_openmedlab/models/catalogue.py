"""The catalogue: one entry per engine and per published checkpoint, pure data.

Panels, help texts and tests grow from it.

Engines are named by import path, so listing them imports none of them (``torch`` takes
seconds). Other packages add entries through the entry point group
``napari_openmedlab.engines``, each pointing to an :class:`EngineSpec`.
"""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

from napari_openmedlab.errors import CheckpointError, EngineError
from napari_openmedlab.models.checkpoint_spec import NOT_STATED, CheckpointSpec
from napari_openmedlab.models.contract import Task, check_engine
from napari_openmedlab.models.engine_spec import EngineSpec, Option
from napari_openmedlab.models.own_engines import OWN_ENGINES
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
    yield from OWN_ENGINES
    yield from _registered()


def _registered() -> Iterable[EngineSpec]:
    """Yield other packages' entries; a faulty one is left out with a warning, not ours to end."""
    taken = {spec.id for spec in OWN_ENGINES}
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
