"""Which models are on this computer, and what an engine still lacks; quick, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtpy.QtCore import QFileSystemWatcher, QObject, QTimer, Signal

from napari_openmedlab.errors import OpenMedLabError
from napari_openmedlab.models.catalogue import EngineSpec
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.checkpoints.settings import settings_file
from napari_openmedlab.models.checkpoints.store import ModelStore

__all__ = ["LocalModels", "Need", "newest_first"]

_SETTLE_MS = 200  # an import touches the folder several times


@dataclass(frozen=True)
class Need:
    """What keeps an engine from running.

    Attributes
    ----------
    text : str
        A sentence for the user: what is missing and what to do.
    models : bool
        Whether the Models panel can help.
    """

    text: str
    models: bool


class LocalModels(QObject):
    """Looks into the model folder, and notices when it changes, whoever changes it.

    Attributes
    ----------
    changed : Signal()
        A model came or went, or another folder is in force.
    """

    changed = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._watcher = QFileSystemWatcher(self)
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(_SETTLE_MS)
        self._settle.timeout.connect(self.look)
        self._watcher.directoryChanged.connect(lambda _: self._settle.start())
        self._known: tuple[Record, ...] = ()
        self._problem = ""
        self._read()
        self._told: tuple[Record, ...] = self._known
        self._watch()

    def fitting(self, spec: EngineSpec) -> tuple[Record, ...]:
        """Return the models an engine can use, the one imported last first."""
        self._read()
        return newest_first(self._known, spec.networks)

    def need(
        self, spec: EngineSpec, options: Mapping[str, Any], *, fresh: bool = True
    ) -> Need | None:
        """Return what an engine lacks to run with these options; ``None``: it can run.

        Parameters
        ----------
        fresh : bool
            Look into the folder; otherwise what was seen there last will do.
        """
        if lacks := spec.missing():
            return Need(lacks[0], models=False)
        if not spec.networks:
            return None
        if fresh:
            self._read()
        if self._problem:
            return Need(self._problem, models=True)
        here = newest_first(self._known, spec.networks)
        named = next((options.get(o.name, "") for o in spec.options if o.source == "models"), "")
        if named and named not in {record.name for record in here}:
            return Need(
                f"The model '{named}' is not on this computer. Get it, or choose another one "
                "under Options; your prompts are kept.",
                models=True,
            )
        if here:
            return None
        return Need(
            f"{spec.title} has no model on this computer yet. Get one, and the run goes on by "
            "itself; your prompts are kept.",
            models=True,
        )

    def look(self) -> None:
        """Look into the folder now, and say so if something changed."""
        self._read()
        self._watch()
        if self._told != self._known:
            self._told = self._known
            self.changed.emit()

    def _read(self) -> None:
        try:
            self._known = ModelStore().records()
            self._problem = ""
        except OpenMedLabError as error:
            self._known = ()
            self._problem = str(error)

    def _watch(self) -> None:
        """Watch the folders as they are now, or where they will appear."""
        try:
            wanted = {_existing(ModelStore().folder), _existing(settings_file().parent)}
        except OpenMedLabError:
            wanted = {_existing(settings_file().parent)}
        wanted.discard("")
        watched = set(self._watcher.directories())
        if gone := sorted(watched - wanted):
            self._watcher.removePaths(gone)
        if new := sorted(wanted - watched):
            self._watcher.addPaths(new)


def newest_first(records: Iterable[Record], networks: Iterable[str]) -> tuple[Record, ...]:
    """Return the records of these networks, the one imported last first, as engines choose."""
    fitting = [record for record in records if record.network in set(networks)]
    return tuple(sorted(fitting, key=lambda r: (r.imported, r.name), reverse=True))


def _existing(folder: Path) -> str:
    """Return the folder, or the nearest one above it that exists; ``""`` if there is none."""
    return next((str(path) for path in (folder, *folder.parents) if path.is_dir()), "")
