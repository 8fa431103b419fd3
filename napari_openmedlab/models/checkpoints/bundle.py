"""Bundles: models with records, hashes, licences and catalogue entries in one archive.

For machines without a network. A bundle is a zip archive, stored uncompressed (weights don't
shrink), so any program can look into it. What comes out of one is trusted no more than a
download: names, sizes and hashes are checked, and nothing in it is ever run.
"""

from __future__ import annotations

import json
import os
import stat
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from napari_openmedlab import __version__
from napari_openmedlab.errors import CheckpointError, ReadError, WriteError
from napari_openmedlab.io.atomic import resolved_target, sentence
from napari_openmedlab.models.catalogue import CheckpointSpec, checkpoints
from napari_openmedlab.models.checkpoints.disk import require_space, sweep, work_folder
from napari_openmedlab.models.checkpoints.moving import copy_weights
from napari_openmedlab.models.checkpoints.records import Record, record_from_json
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Monitor

__all__ = ["SUFFIX", "contents", "is_bundle", "pack", "unpack"]

SUFFIX = ".zip"
_INDEX, _README = "bundle.json", "README.txt"
_KIND, _FORMAT = "napari-openmedlab models", 1
_LARGEST_INDEX = 8 * 2**20
_MOST_MODELS = 1000


def is_bundle(path: str | Path) -> bool:
    """Return whether a file is a bundle, by its content; damaged ones count if that can be seen."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(30 + len(_INDEX))
    except OSError:
        return False
    # The first entry of the archive: a zip header of 30 bytes, then the name.
    return head.startswith(b"PK\x03\x04") and head[30:] == _INDEX.encode()


def pack(
    target: str | Path,
    store: ModelStore,
    names: Iterable[str] | None = None,
    monitor: Monitor | None = None,
) -> Path:
    """Write models of a store into one archive; each is checked against its hash on the way.

    Parameters
    ----------
    target : str or Path
        An existing file is replaced, when the new one is complete.
    store : ModelStore
    names : iterable of str, optional
        Which models; all that are ready if not given.
    monitor : Monitor, optional
        Hears of bytes done of bytes in all, and may cancel.

    Returns
    -------
    Path
        The archive.

    Raises
    ------
    CheckpointError
        If a model is missing or damaged, or there is none.
    WriteError
        If the archive can't be written; nothing is left of it.
    Cancelled
        After a cancel.
    """
    monitor = monitor or Monitor()
    records = (
        list(store.records()) if names is None else [store.get(n) for n in dict.fromkeys(names)]
    )
    if not records:
        raise CheckpointError(
            f"there is no model in {store.folder} to be packed; download or import one first",
            store.folder,
        )
    target = resolved_target(Path(target))
    total = sum(record.size for record in records)
    require_space(target.parent, total, f"packing {target.name}")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            archive.writestr(_INDEX, json.dumps(_index(records), indent=2, ensure_ascii=False))
            archive.writestr(_README, _readme(records))
            done = 0
            for record in records:
                with (
                    (store.folder / record.file).open("rb", buffering=0) as source,
                    archive.open(record.file, "w", force_zip64=True) as member,
                ):
                    done = copy_weights(source, member, record, (done, total), monitor)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except (CheckpointError, WriteError):
        raise
    except OSError as error:
        raise WriteError(sentence(error, target.parent), target) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target


def contents(path: str | Path) -> tuple[Record, ...]:
    """Return the records of the models in a bundle, before anything is taken out of it.

    Raises
    ------
    CheckpointError
        If it is no bundle, damaged, of a newer version, or made to do harm.
    """
    path = Path(path)
    with _opened(path) as archive:
        return _checked(archive, path)


def unpack(
    path: str | Path,
    store: ModelStore,
    monitor: Monitor | None = None,
    *,
    replace_old: bool = False,
) -> tuple[Record, ...]:
    """Take all models of a bundle into a store; all of them are checked before the first is.

    Parameters
    ----------
    path : str or Path
    store : ModelStore
    monitor : Monitor, optional
        Hears of bytes done of bytes in all, and may cancel.
    replace_old : bool
        Whether models of the same names with other weights may be replaced.

    Returns
    -------
    tuple of Record
        All models of the bundle; those that were here already, sound, are left as they are.

    Raises
    ------
    CheckpointError
        If the bundle is damaged or made to do harm, or a name is taken.
    WriteError
        If the disk is full or the folder can't be written to.
    Cancelled
        After a cancel; the store is as it was.
    """
    path, monitor = Path(path), monitor or Monitor()
    with _opened(path) as archive:
        records = _checked(archive, path)
        here = {record.name: record for record in store.records()}
        new = [r for r in records if r.name not in here or here[r.name].sha256 != r.sha256]
        if not replace_old:
            for record in new:
                store.require_free(record.name)
        total = sum(record.size for record in new)
        require_space(store.folder, total, f"unpacking {path.name}")
        sweep(store.folder)
        with work_folder(store.folder) as work:
            done = 0
            for record in new:
                with (
                    archive.open(record.file) as source,
                    (work / record.file).open("wb") as to,
                ):
                    done = copy_weights(source, to, record, (done, total), monitor)
            for record in new:
                store.put(work / record.file, record, replace_old=replace_old)
    return tuple(store.get(record.name) for record in records)


def _index(records: Iterable[Record]) -> dict[str, Any]:
    known = {spec.id: spec for spec in checkpoints()}
    return {
        "kind": _KIND,
        "format": _FORMAT,
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "made_by": f"napari-openmedlab {__version__}",
        "models": [
            {
                "file": record.file,
                "record": record.as_json(),
                "catalogue": asdict(known[record.checkpoint])
                if record.checkpoint in known
                else None,
            }
            for record in records
        ],
    }


def _readme(records: Iterable[Record]) -> str:
    known = {spec.id: spec for spec in checkpoints()}
    lines = [
        "Models for napari-openmedlab. Import this archive as it is, in the Models panel or with",
        "'openmedlab models import FILE'. bundle.json holds records, hashes and catalogue entries.",
        "Passing it on is subject to the licences of the weights. Research use only.",
        "",
    ]
    for record in records:
        lines += [*_facts(record, known.get(record.checkpoint)), ""]
    return "\n".join(lines)


def _facts(record: Record, spec: CheckpointSpec | None) -> list[str]:
    told = {
        "title": spec.title if spec else "",
        "from": record.source_name,
        "sha256 of the weights": record.sha256,
        "sha256 of the file they came from": record.source_sha256,
        "licence of the weights": spec.weights_licence if spec else record.licence or "your own",
        "licence of the code": spec.code_licence if spec else "",
        "page": spec.page if spec else "",
        "paper": spec.paper if spec else "",
        "note": spec.notes if spec else "",
    }
    return [record.name, *(f"  {key}: {value}" for key, value in told.items() if value)]


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the archive; what can be wrong with a zip file becomes a sentence."""
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", path) from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise _broken(path, str(error)) from error
    with archive:
        try:
            yield archive
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise _broken(path, str(error)) from error


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is damaged or incomplete ({why}); copy the bundle again", path
    )


def _checked(archive: zipfile.ZipFile, path: Path) -> tuple[Record, ...]:
    """Return the records of a bundle in which everything is as it should be."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(set(names)) != len(names) or len(names) > _MOST_MODELS:
        raise _refused(path, "it names a file twice or holds far too many")
    for member in members:
        _require_plain(member, path)
    if _INDEX not in names:
        raise CheckpointError(
            f"{path.name} is an archive, but no bundle of models ({_INDEX} is missing); unpack it "
            "and import the file of weights inside",
            path,
        )
    records = _records(_read_index(archive, path), path)
    allowed = {_INDEX, _README, *(record.file for record in records)}
    if extra := sorted(set(names) - allowed):
        raise _refused(path, f"it holds '{extra[0]}', which no bundle does")
    sizes = {member.filename: member.file_size for member in members}
    for record in records:
        if sizes.get(record.file) != record.size:
            raise _broken(path, f"the weights of {record.name} are missing or not complete")
    return records


def _require_plain(member: zipfile.ZipInfo, path: Path) -> None:
    """Raise unless a member is a plain, uncompressed file at the top of the archive."""
    name, mode = member.filename, member.external_attr >> 16
    if name != Path(name).name or any(c in name for c in "/\\:\0") or name in ("", ".", ".."):
        raise _refused(path, f"'{name}' would lie outside of the model folder")
    if member.is_dir() or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
        raise _refused(path, f"'{name}' is a link or no plain file")
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise _refused(path, f"'{name}' is compressed, which no bundle's files are")
    if member.flag_bits & 0x1:
        raise _refused(path, f"'{name}' is encrypted")


def _read_index(archive: zipfile.ZipFile, path: Path) -> Mapping[str, Any]:
    if archive.getinfo(_INDEX).file_size > _LARGEST_INDEX:
        raise _refused(path, f"its {_INDEX} is far too big")
    try:
        found = json.loads(archive.read(_INDEX).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"{_INDEX} is no JSON text") from error
    if not isinstance(found, dict) or found.get("kind") != _KIND:
        raise _refused(path, f"its {_INDEX} is not that of a bundle")
    if not isinstance(found.get("format"), int) or found["format"] > _FORMAT:
        raise CheckpointError(
            f"{path.name} was made by a newer version ({found.get('made_by')}); update "
            "napari-openmedlab",
            path,
        )
    return found


def _records(index: Mapping[str, Any], path: Path) -> tuple[Record, ...]:
    models = index.get("models")
    if not isinstance(models, list) or not all(isinstance(m, dict) for m in models):
        raise _broken(path, f"{_INDEX} lists no models")
    try:
        records = tuple(
            record_from_json(found, path)
            for found in (m.get("record") for m in models)
            if isinstance(found, dict)
        )
    except ReadError as error:
        raise CheckpointError(str(error), path) from error
    if not records or len(records) != len(models) or len({r.name for r in records}) != len(records):
        raise _broken(path, f"{_INDEX} lists no models, or one twice")
    return records


def _refused(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path.name} is not imported: {why}", path)
