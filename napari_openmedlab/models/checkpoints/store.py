"""The model folder: converted weights with their records, imported once, checked, loaded.

A model is a pair of files, ``NAME.json`` (the record) and ``NAME.HASH.safetensors``. Putting the
record in place is the one step that makes an import visible, so readers and other programs see
the old model or the new one, never a mixture. ``docs/models.md`` describes the folder.

Importing this module imports no torch; importing and loading weights does.
"""

from __future__ import annotations

import difflib
import os
import re
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from napari_openmedlab.errors import CheckpointError, ReadError, WriteError
from napari_openmedlab.io.atomic import sentence
from napari_openmedlab.models.catalogue import checkpoints
from napari_openmedlab.models.checkpoints.disk import hash_file, sweep, work_folder, write_json
from napari_openmedlab.models.checkpoints.locks import locked
from napari_openmedlab.models.checkpoints.published_files import (
    meaning,
    published_as,
    require_published,
)
from napari_openmedlab.models.checkpoints.records import Entry, Record, read_record, slug
from napari_openmedlab.models.checkpoints.settings import model_folder
from napari_openmedlab.models.contract import Monitor

__all__ = ["Entry", "ModelStore", "Record", "default_folder", "require_torch"]

_WEIGHTS = re.compile(r"(?P<name>[a-z0-9_-]+)\.[0-9a-f]{12}\.safetensors")
_LOCK_SECONDS = 20.0
_CLOCK_NS = 2_000_000_000  # FAT disks keep times to two seconds


def default_folder() -> Path:
    """Return the model folder in force; see :func:`.settings.model_folder`."""
    return model_folder()


def require_torch(path: Path | None = None) -> None:
    """Raise :class:`CheckpointError` if the packages that read weights are not installed."""
    lacking = [name for name in ("torch", "safetensors") if find_spec(name) is None]
    if lacking:
        raise CheckpointError(
            f"reading weights needs {' and '.join(lacking)}: "
            "pip install 'napari-openmedlab[models]'",
            path,
        )


class ModelStore:
    """The models in one folder.

    Nothing is kept in memory: each call looks at the folder, so several stores, threads and
    programs may use one folder at the same time.

    Parameters
    ----------
    folder : str or Path, optional
        Made at the first import; :func:`default_folder` if not given.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()

    # -- what there is ---------------------------------------------------------------------

    def entries(self) -> tuple[Entry, ...]:
        """Return all models by name, damaged ones too; a quick look, no file is read through.

        Raises
        ------
        ReadError
            If the folder can't be looked into.
        """
        try:
            files = [p.name for p in self.folder.iterdir()] if self.folder.exists() else []
        except OSError as error:
            raise ReadError(
                f"the model folder {self.folder} can't be read: {error.strerror or error}",
                self.folder,
            ) from error
        names = {file.removesuffix(".json") for file in files if file.endswith(".json")}
        names = {name for name in names if name == slug(name)}
        names |= {found["name"] for file in files if (found := _WEIGHTS.fullmatch(file))}
        return tuple(self._entry(name) for name in sorted(names))

    def records(self) -> tuple[Record, ...]:
        """Return the records of all models that are ready to be loaded, by name."""
        return tuple(entry.record for entry in self.entries() if entry.state == "ready")

    def models_of(self, network: str) -> tuple[Record, ...]:
        """Return the records of ready models of one network, by name."""
        return tuple(record for record in self.records() if record.network == network)

    def entry(self, name: str) -> Entry:
        """Return one model, sound or not.

        Raises
        ------
        CheckpointError
            If there is no such model.
        """
        if name == slug(name) and (self._record_path(name).exists() or self._weights_of(name)):
            return self._entry(name)
        raise self._unknown(name)

    def get(self, name: str) -> Record:
        """Return the record of a model that is ready to be loaded.

        Raises
        ------
        CheckpointError
            If there is no such model, or it is damaged.
        """
        entry = self.entry(name)
        if entry.state != "ready":
            raise CheckpointError(entry.problem, self._record_path(name))
        return entry.record

    def path(self, name: str) -> Path:
        """Return the file with a model's weights.

        Raises
        ------
        CheckpointError
            If there is no such model, or it is damaged.
        """
        return self.folder / self.get(name).file

    # -- bringing models in ----------------------------------------------------------------

    def import_file(
        self,
        path: str | Path,
        name: str | None = None,
        as_: str | None = None,
        monitor: Monitor | None = None,
        *,
        replace_old: bool = False,
    ) -> Record:
        """Convert a published file and keep the result. The file itself is only read.

        A file that is here already, sound and under the same name, is not converted again.

        Parameters
        ----------
        path : str or Path
            ``.pth``, ``.pt``, ``.model`` or ``.safetensors``; its content decides what it is.
        name : str, optional
            Name in the store. Otherwise the checkpoint's id, or the file's name.
        as_ : str, optional
            Id of a catalogue checkpoint, or name of a network, where the content fits several
            or the checkpoint should be known. Otherwise a file is taken as a published
            checkpoint if network and file name agree with the catalogue.
        monitor : Monitor, optional
            Hears of bytes done of bytes in all, and may cancel.
        replace_old : bool
            Whether other weights of that name may be replaced. Damaged ones always are.

        Returns
        -------
        Record

        Raises
        ------
        AmbiguousCheckpoint
            If several networks fit and ``as_`` names none.
        CheckpointError
            If the file is damaged, unsafe, of no known network or not of the one named, has
            another hash than the published one, or the name is taken.
        WriteError
            If the disk is full or the folder can't be written to.
        Cancelled
            After a cancel.
        """
        source = Path(path)
        require_torch(source)
        from napari_openmedlab.models.checkpoints.loading import convert

        spec, network = meaning(as_)
        wanted = slug(name) if name else spec.id if spec is not None else ""
        if wanted and (same := self._already(wanted, source, network, monitor)) is not None:
            return same
        if wanted and not replace_old:
            self.require_free(wanted)
        sweep(self.folder)
        with work_folder(self.folder) as work:
            weights = work / "weights.safetensors"
            done = convert(source, weights, network, monitor)
            spec = spec or (None if done.card else published_as(done.network, source.name))
            record = Record(
                name=wanted or (spec.id if spec is not None else slug(source.stem)),
                network=done.network,
                variant=done.variant,
                checkpoint=spec.id if spec is not None else "",
                source_name=source.name,
                source_sha256=done.source_sha256,
                sha256=done.sha256,
                size=done.size,
                imported=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
                licence=spec.weights_licence if spec is not None else "",
                notes=done.notes,
                card=done.card,
                facts=done.facts,
            )
            require_published(record, spec, source)
            return self.put(weights, record, replace_old=replace_old)

    def put(self, weights: Path, record: Record, *, replace_old: bool = False) -> Record:
        """Take converted weights, whose hash was checked, into the store.

        Parameters
        ----------
        weights : Path
            On the same disk, best in a :func:`.disk.work_folder`; is moved.
        record : Record
        replace_old : bool
            As for :meth:`import_file`.

        Returns
        -------
        Record
            As stored.

        Raises
        ------
        CheckpointError
            If other weights have the name.
        WriteError
            If the folder can't be written to.
        """
        with self._locked():
            if not replace_old:
                self.require_free(record.name, record.sha256)
            target = self.folder / record.file
            try:
                _synced(weights)
                os.replace(weights, target)
                stamped = replace(record, mtime_ns=target.stat().st_mtime_ns)
            except OSError as error:
                raise WriteError(sentence(error, self.folder), target) from error
            write_json(self._record_path(record.name), stamped.as_json())
            for old in self._weights_of(record.name):
                if old.name != record.file:
                    with suppress(OSError):  # in use (Windows): goes at the next import
                        old.unlink()
            return stamped

    def require_free(self, name: str, sha256: str = "") -> None:
        """Raise :class:`CheckpointError` if a sound model has the name and other weights."""
        entry = self._entry(name)
        if entry.state == "ready" and entry.record.sha256 != sha256:
            raise CheckpointError(
                f"there already is a model '{name}' (from {entry.record.source_name}) with other "
                "weights; remove it first or import under another name",
                self._record_path(name),
            )

    # -- looking after them ----------------------------------------------------------------

    def verify(self, name: str, monitor: Monitor | None = None) -> Record:
        """Read a model's weights through and compare them with their recorded hash.

        Returns
        -------
        Record

        Raises
        ------
        CheckpointError
            If there is no such model or its weights are not what was imported. From then on it
            is listed as damaged.
        Cancelled
            After a cancel.
        """
        entry = self.entry(name)
        record, path = entry.record, self.folder / entry.record.file
        if not record.sha256 or not path.exists():
            raise CheckpointError(entry.problem, self._record_path(name))
        since = path.stat().st_mtime_ns
        sound = hash_file(path, monitor, f"checking {name}") == record.sha256
        self._stamp(record, since if sound else 0)
        if not sound:
            raise CheckpointError(_damage(name), path)
        return record

    def remove(self, name: str) -> None:
        """Delete a model, sound or not. Programs that have it loaded keep it, except on Windows.

        Raises
        ------
        CheckpointError
            If there is no such model.
        WriteError
            If its files can't be deleted; on Windows also while it is loaded.
        """
        self.entry(name)
        with self._locked():
            for path in (*self._weights_of(name), self._record_path(name)):
                try:
                    path.unlink(missing_ok=True)
                except PermissionError as error:
                    raise WriteError(
                        f"{path} can't be deleted: it is in use or you may not. Close napari and "
                        "other programs that have the model loaded, then try again",
                        path,
                    ) from error
                except OSError as error:
                    raise WriteError(
                        f"{path} can't be deleted: {error.strerror or error}", path
                    ) from error

    def load(self, name: str) -> Any:
        """Return a model's network with its weights, mapped to memory.

        Size and time stamp of the file are compared with the record. Only if the stamp differs
        (the folder was copied, something wrote into the file) it is read through first.

        Returns
        -------
        torch.nn.Module
            In eval mode, float32, on the CPU.

        Raises
        ------
        CheckpointError
            If there is no such model or it is damaged.
        """
        record = self.get(name)
        path = self.folder / record.file
        require_torch(path)
        if abs(path.stat().st_mtime_ns - record.mtime_ns) > _CLOCK_NS:
            self.verify(name)
        return _loading().load_network(path, record.network, record.variant)

    # -- the files -------------------------------------------------------------------------

    def _record_path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _weights_of(self, name: str) -> list[Path]:
        """Return all files of weights under a name; more than one only for a moment."""
        found = self.folder.glob(f"{name}.*.safetensors") if self.folder.exists() else ()
        return [path for path in found if _WEIGHTS.fullmatch(path.name)]

    def _locked(self) -> Any:
        busy = f"another program is changing the models in {self.folder}; try again in a minute"
        with suppress(OSError):  # if it can't be made, the lock says why
            self.folder.mkdir(parents=True, exist_ok=True)
        return locked(self.folder / ".lock", busy, _LOCK_SECONDS)

    def _entry(self, name: str) -> Entry:
        path = self._record_path(name)
        if not path.exists():
            return Entry(
                Record(name, ""),
                "damaged",
                f"{name} has weights but no record; remove it and import the published file again",
            )
        try:
            record = read_record(path)
        except ReadError as error:
            return Entry(
                Record(name, ""),
                "damaged",
                f"{error}. Remove {name} and import the published file again",
            )
        try:
            size = (self.folder / record.file).stat().st_size
        except OSError:
            problem = f"the weights of {name} ({record.file}) are missing in {self.folder}"
            return Entry(record, "file missing", f"{problem}; import the published file again")
        if size != record.size or not record.mtime_ns:
            return Entry(record, "damaged", _damage(name))
        return Entry(record)

    def _stamp(self, record: Record, mtime_ns: int) -> None:
        """Note that the weights are sound since then, or damaged (0), if they still are those."""
        if record.mtime_ns == mtime_ns:
            return
        with suppress(OSError), self._locked():  # a folder on a read-only disk stays as it is
            if read_record(self._record_path(record.name)) == record:
                stamped = replace(record, mtime_ns=mtime_ns)
                write_json(self._record_path(record.name), stamped.as_json())

    def _already(
        self, name: str, source: Path, network: str | None, monitor: Monitor | None
    ) -> Record | None:
        """Return the sound record that a file was imported as before, or ``None``."""
        entry = self._entry(name)
        record = entry.record
        if entry.state != "ready" or network not in (None, record.network) or not source.is_file():
            return None
        same = hash_file(source, monitor) in (record.source_sha256, record.sha256)
        return record if same else None

    def _unknown(self, name: str) -> CheckpointError:
        if any(spec.id == name for spec in checkpoints()):
            return CheckpointError(
                f"the model '{name}' is not here yet; get it in the Models panel or with "
                f"'openmedlab models download {name}'"
            )
        names = [entry.record.name for entry in self.entries()]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names
        known = f"there are: {', '.join(near)}" if near else "the folder is empty"
        return CheckpointError(f"there is no model '{name}' in {self.folder}; {known}")


def _loading() -> ModuleType:
    """Import what needs torch."""
    from napari_openmedlab.models.checkpoints import loading

    return loading


def _damage(name: str) -> str:
    return (
        f"the weights of {name} are damaged: the file is not what was imported. Import the "
        "published file again; the damaged one is replaced"
    )


def _synced(path: Path) -> None:
    """Have the weights on the disk before a record says they are."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
