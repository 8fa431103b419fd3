"""What the Models panel asks of store, settings, download and bundle: as the command line does.

Methods that take a ``Monitor`` are for the worker thread: they take their time, and return the
sentence to show when they are done. The others only look, and are quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from napari_openmedlab.models.catalogue import CheckpointSpec, checkpoints
from napari_openmedlab.models.checkpoints.bundle import pack, unpack
from napari_openmedlab.models.checkpoints.disk import size_text
from napari_openmedlab.models.checkpoints.download import (
    Patience,
    discard,
    download,
    unfinished,
)
from napari_openmedlab.models.checkpoints.moving import move_models
from napari_openmedlab.models.checkpoints.records import Entry, Record
from napari_openmedlab.models.checkpoints.settings import (
    FOLDER_VARIABLE,
    ModelSettings,
    folder_source,
    read_settings,
    write_settings,
)
from napari_openmedlab.models.checkpoints.store import ModelStore, default_folder
from napari_openmedlab.models.contract import Monitor

__all__ = ["Shelf"]

_PLANS = ("plans.pkl", "plans.json", "dataset.json")
_PLAN_SUFFIX = ".model.pkl"


class Shelf:
    """The model folder in force. Nothing is kept here: folder and settings are read each time.

    Attributes
    ----------
    patience : Patience or None
        How often a download is tried.
    """

    def __init__(self) -> None:
        self.patience: Patience | None = None

    @property
    def folder(self) -> Path:
        """Where the models lie."""
        return default_folder()

    @property
    def store(self) -> ModelStore:
        """The models there."""
        return ModelStore(self.folder)

    @property
    def fixed_by(self) -> str:
        """The environment variable that sets the folder; ``""`` if none does."""
        return FOLDER_VARIABLE if folder_source() == "environment" else ""

    @property
    def settings(self) -> ModelSettings:
        """Folder, mirror and proxy as the user chose them."""
        return read_settings()

    def change(self, **settings: str) -> str:
        """Store settings; return the sentence to show, ``""`` if nothing changed."""
        before = read_settings()
        after = replace(before, **settings)
        if after == before:
            return ""
        path = write_settings(after)
        return f"Stored in {path}, for the command line too."

    def entries(self) -> tuple[Entry, ...]:
        """Return what is in the folder."""
        return self.store.entries()

    def partly(self) -> dict[str, int]:
        """Return the bytes of downloads that were cut off, by the checkpoint's id."""
        return unfinished(self.store)

    # -- for the worker thread ---------------------------------------------------------------

    def import_file(self, path: Path, as_: str | None, monitor: Monitor) -> str:
        """Take a weight file into the folder; ``as_`` is a checkpoint or network, if known."""
        return _imported(self.store.import_file(path, as_=as_, monitor=monitor))

    def fetch(self, spec: CheckpointSpec, monitor: Monitor) -> str:
        """Download a checkpoint and take it into the folder."""
        return _imported(download(spec, self.store, monitor=monitor, patience=self.patience))

    def verify(self, name: str, monitor: Monitor) -> str:
        """Read a model through and compare it with its recorded hash."""
        record = self.store.verify(name, monitor)
        return f"{_title(record)} is sound: its SHA-256 is the one recorded at the import."

    def remove(self, name: str, monitor: Monitor) -> str:
        """Delete a model."""
        monitor.step()
        self.store.remove(name)
        return f"{name} was deleted from this computer."

    def discard(self, spec: CheckpointSpec, monitor: Monitor) -> str:
        """Delete what came of a download that was cut off."""
        monitor.step()
        discard(spec.id, self.store)
        return f"What had come of {spec.title} was deleted."

    def move(self, origin: Path, monitor: Monitor) -> str:
        """Move the models of another folder into this one."""
        moved = move_models(ModelStore(origin), self.folder, monitor)
        return f"Moved to {self.folder}: {', '.join(map(_title, moved)) or 'nothing'}."

    def pack(self, target: Path, names: Sequence[str] | None, monitor: Monitor) -> str:
        """Write models, all that are ready if none are named, into one archive."""
        path = pack(target, self.store, names, monitor)
        return f"Packed: {path}, {size_text(path.stat().st_size)}. Drop it on the other computer."

    def unpack(self, path: Path, monitor: Monitor) -> str:
        """Take all models of a bundle into the folder."""
        records = unpack(path, self.store, monitor)
        return f"Ready from {path.name}: {', '.join(_title(record) for record in records)}."


def is_plan(path: Path) -> bool:
    """Whether a file is nnU-Net's plan, which is read with the weights beside it."""
    return path.name in _PLANS or path.name.endswith(_PLAN_SUFFIX)


def title_of(name: str) -> str:
    """Return the title of a checkpoint or network for the user."""
    titles = {spec.id: spec.title for spec in checkpoints()}
    return titles.get(name, name)


def _title(record: Record) -> str:
    return title_of(record.checkpoint) if record.checkpoint else record.name


def _imported(record: Record) -> str:
    """Return in a sentence what an import brought, with what the user has to know about it."""
    network = "" if record.checkpoint else f"{record.network}, "
    said = f"{_title(record)} is ready: {network}{size_text(record.size)}."
    return " ".join((said, *record.notes))
