"""Weights go from place to place, checked on the way; the move of a whole model folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models.checkpoints.disk import (
    CHUNK,
    require_space,
    sweep,
    work_folder,
)
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Monitor

__all__ = ["copy_weights", "move_models"]


def move_models(
    store: ModelStore, folder: str | Path, monitor: Monitor | None = None
) -> tuple[Record, ...]:
    """Move the sound models of a store to another folder; damaged ones stay behind.

    On one disk nothing is copied. To another disk each file is copied, checked against its
    hash, and only then deleted here. After a cancel or an error some models are here, some
    there, none is lost; call again to go on.

    Parameters
    ----------
    store : ModelStore
    folder : str or Path
        Made if missing. The settings are not changed.
    monitor : Monitor, optional
        Hears of bytes done of bytes in all, and may cancel.

    Returns
    -------
    tuple of Record
        Those moved.

    Raises
    ------
    CheckpointError
        If a file is damaged, or another model has its name there.
    WriteError
        If the disk is full or refuses.
    Cancelled
        After a cancel.
    """
    target, monitor = ModelStore(folder), monitor or Monitor()
    records = store.records()
    if not records or target.folder.resolve() == store.folder.resolve():
        return ()
    for record in records:
        target.require_free(record.name, record.sha256)
    total = sum(record.size for record in records)
    moved, done = [], 0
    sweep(target.folder)
    for record in records:
        monitor.step(done, total, f"moving {record.name}")
        with work_folder(target.folder) as work:
            weights = work / record.file
            _bring(store.folder / record.file, weights, record, (done, total), monitor)
            moved.append(target.put(weights, record))
        store.remove(record.name)
        done += record.size
    return tuple(moved)


def copy_weights(
    source: IO[bytes], target: IO[bytes], record: Record, count: tuple[int, int], monitor: Monitor
) -> int:
    """Copy a model's weights, checking size and hash on the way.

    Parameters
    ----------
    source, target : binary file
    record : Record
    count : tuple of int
        Bytes done before, and of all models in all.
    monitor : Monitor

    Returns
    -------
    int
        Bytes done by now.

    Raises
    ------
    CheckpointError
        If these are not the weights of the record; the target is then of no use.
    Cancelled
        After a cancel.
    """
    digest, (start, total), size = hashlib.sha256(), count, 0
    while piece := source.read(CHUNK):
        size += len(piece)
        if size > record.size:
            break
        digest.update(piece)
        target.write(piece)
        monitor.step(start + size, total, f"copying {record.name}")
    if size != record.size or digest.hexdigest() != record.sha256:
        raise CheckpointError(
            f"the weights of {record.name} are damaged: their hash is not the recorded one. Import "
            "the published file, or copy the bundle, again"
        )
    return start + size


def _bring(
    source: Path, weights: Path, record: Record, count: tuple[int, int], monitor: Monitor
) -> None:
    """Give the file a second name on the same disk, or copy it to the other one."""
    try:
        os.link(source, weights)
        return
    except OSError:  # another disk, or one without hard links
        require_space(weights.parent, record.size, f"moving {record.name}")
    with source.open("rb", buffering=0) as file, weights.open("wb") as copy:
        copy_weights(file, copy, record, count, monitor)
