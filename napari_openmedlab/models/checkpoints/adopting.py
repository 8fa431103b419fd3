"""A model that was trained here goes into the store under its own name, or the next free one."""

from __future__ import annotations

from pathlib import Path

from napari_openmedlab.models.checkpoints.disk import hash_file
from napari_openmedlab.models.checkpoints.records import Record, slug
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Monitor

__all__ = ["adopt", "free_name"]


def adopt(path: Path, title: str, monitor: Monitor | None = None) -> Record:
    """Import a finished model; never in the place of another.

    Parameters
    ----------
    path : Path
        Written by :func:`napari_openmedlab.models.finetuned.write_model`.
    title : str
        What the user calls it.
    monitor : Monitor, optional

    Returns
    -------
    Record
        If the very same file is in the store already, its record.

    Raises
    ------
    CheckpointError, WriteError, Cancelled
        As :meth:`.store.ModelStore.import_file`.
    """
    store, sha256 = ModelStore(), hash_file(path)
    for record in store.records():
        if sha256 in (record.source_sha256, record.sha256):
            return record
    return store.import_file(path, free_name(store, title), monitor=monitor)


def free_name(store: ModelStore, title: str) -> str:
    """Return the title as a name in the store, with the next number if it is taken."""
    taken, name, number = {entry.record.name for entry in store.entries()}, slug(title), 1
    while name in taken:
        number += 1
        name = f"{slug(title)}-{number}"
    return name
