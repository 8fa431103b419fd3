"""Weights and device of an engine, as the command line is told of them.

Importing this module imports no torch: only taking in a new file does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from napari_openmedlab.errors import CheckpointError

if TYPE_CHECKING:
    from napari_openmedlab.models.catalogue import EngineSpec
    from napari_openmedlab.models.checkpoints.store import ModelStore, Record

__all__ = ["choose_model", "readiness", "with_shortcuts"]


def with_shortcuts(
    options: Mapping[str, Any], shortcuts: Mapping[str, str | None]
) -> dict[str, Any]:
    """Return an engine's options with those that have a flag of their own added.

    Raises
    ------
    typer.BadParameter
        If one is given both ways.
    """
    given = {name: value for name, value in shortcuts.items() if value is not None}
    if twice := sorted(set(given) & set(options)):
        raise typer.BadParameter(
            f"'{twice[0]}' is given twice: by --{twice[0]} and by --option; leave one out"
        )
    return {**options, **given}


def choose_model(spec: EngineSpec, wanted: str) -> str:
    """Return the name of the model an engine shall run; a file is imported first, once.

    Parameters
    ----------
    spec : EngineSpec
    wanted : str
        A model's name, a file of weights, or ``""`` for the model imported last that fits.

    Returns
    -------
    str
        ``""`` stays ``""``, as the viewer asks; then it is certain that a model fits.

    Raises
    ------
    CheckpointError
        If there is no such model or file, it is damaged, or of another network.
    """
    from napari_openmedlab.models.checkpoints.store import ModelStore

    store = ModelStore()
    if not wanted:
        if spec.networks and not _fitting(store, spec):
            bad = [entry.problem for entry in store.entries() if entry.problem]
            damaged = f" ({'; '.join(bad)})" if bad else ""
            raise CheckpointError(f"{spec.title} has {_absent(spec)}{damaged}", store.folder)
        return ""
    # A file's name has a dot or a folder in it, which a model's never has.
    known = any(entry.record.name == wanted for entry in store.entries())
    file = Path(wanted).expanduser()
    named = known or not file.is_file()
    record = _model(store, wanted, file) if named else _imported(store, spec, file)
    if record.network not in spec.networks:
        raise CheckpointError(
            f"{wanted} holds weights of {record.network}, which {spec.title} can't use; it takes "
            f"{', '.join(spec.networks)}",
            file,
        )
    return record.name


def readiness(spec: EngineSpec, records: Sequence[Record]) -> str:
    """Return what keeps an engine from running, or "yes" and the models it would find."""
    from napari_openmedlab.models.finetuned import start_only

    if lacks := spec.missing():
        return "; ".join(lacks)
    if not spec.networks:
        return "yes"
    fitting = [record for record in records if record.network in spec.networks]
    names = [r.name for r in fitting if not start_only(r.network, r.card)]
    if fitting and not names:
        return f"{', '.join(r.name for r in fitting)} must be trained first (openmedlab finetune)"
    return f"yes, with {', '.join(names)}" if names else _absent(spec)


def _model(store: ModelStore, wanted: str, file: Path) -> Record:
    """Return a sound model by its name."""
    if file.suffix or len(file.parts) > 1:
        problem = "is a folder" if file.is_dir() else "does not exist"
        raise CheckpointError(f"{file} {problem}; give a file of weights or a model's name", file)
    return store.get(wanted)


def _imported(store: ModelStore, spec: EngineSpec, file: Path) -> Record:
    """Return the model that a file was imported as, before or now."""
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.models.checkpoints.disk import hash_file

    with working(f"looking at {file.name}") as monitor:
        sha256 = hash_file(file, monitor)
    same = [r for r in store.records() if sha256 in (r.source_sha256, r.sha256)]
    fitting = [record for record in same if record.network in spec.networks]
    if fitting:
        return fitting[0]
    with working(f"importing {file.name}") as monitor:
        try:
            return store.import_file(file, monitor=monitor)
        except CheckpointError as error:
            # SAM's and MedSAM's files are alike: the engine asked for says which is meant.
            meant = [n for n in getattr(error, "candidates", ()) if n in spec.networks]
            if len(meant) > 1:
                raise CheckpointError(
                    f"{error}: 'openmedlab models import {file} --as {meant[0]}', or "
                    f"{' or '.join(meant[1:])}",
                    file,
                ) from error
            if not meant:
                raise
        return store.import_file(file, as_=meant[0], monitor=monitor)


def _fitting(store: ModelStore, spec: EngineSpec) -> list[Record]:
    return [record for network in spec.networks for record in store.models_of(network)]


def _absent(spec: EngineSpec) -> str:
    """Return a sentence on how the weights of an engine are got."""
    from napari_openmedlab.models.catalogue import checkpoints

    names = [c.id for network in spec.networks for c in checkpoints(network=network)]
    first = f"'openmedlab models download {names[0]}'" if names else "'openmedlab models list'"
    return f"no weights here yet: {first}, or --checkpoint FILE"
