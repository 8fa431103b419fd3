"""Files of the model folder: hashes, free space, small JSON files, work folders of their own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from napari_openmedlab.errors import CheckpointError, ReadError, WriteError
from napari_openmedlab.io.atomic import sentence
from napari_openmedlab.models.contract import Monitor

__all__ = [
    "CHUNK",
    "hash_file",
    "read_json",
    "require_space",
    "size_text",
    "sweep",
    "work_folder",
    "write_json",
]

CHUNK = 4 * 2**20
_SPARE = 64 * 2**20  # bytes left on the disk besides what is written
_LARGEST_JSON = 4 * 2**20
_WORK = ".openmedlab-work-"
_STALE_SECONDS = 2 * 86400.0
_UNITS = ("bytes", "kB", "MB", "GB")


def size_text(size: float) -> str:
    """Return a number of bytes in words, decimal units as file managers show them.

    Examples
    --------
    >>> size_text(402_000_000)
    '402 MB'
    """
    unit = 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size /= 1000
        unit += 1
    return f"{size:.0f} {_UNITS[unit]}" if size >= 100 or not unit else f"{size:.3g} {_UNITS[unit]}"


def hash_file(path: Path, monitor: Monitor | None = None, text: str = "") -> str:
    """Return the sha256 of a file as 64 hexadecimal digits.

    Parameters
    ----------
    path : Path
    monitor : Monitor, optional
        Hears of bytes done of bytes in all, and may cancel.
    text : str
        What to report; ``"checking NAME"`` if empty.

    Raises
    ------
    CheckpointError
        If the file can't be read.
    Cancelled
        After a cancel.
    """
    monitor, digest, done = monitor or Monitor(), hashlib.sha256(), 0
    try:
        total = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            while piece := file.read(CHUNK):
                digest.update(piece)
                done += len(piece)
                monitor.step(done, total, text or f"checking {path.name}")
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read: {error.strerror or error}; is its disk still there?", path
        ) from error
    return digest.hexdigest()


def require_space(folder: Path, size: int, what: str) -> None:
    """Raise unless ``size`` bytes and a reserve fit on the disk of ``folder``.

    Parameters
    ----------
    folder : Path
        Need not exist yet.
    size : int
    what : str
        Start of the sentence, for example ``"importing medlam.pth"``.

    Raises
    ------
    WriteError
    """
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        return  # some network disks don't say; a full one is noticed when it is
    if free < size + _SPARE:
        raise WriteError(
            f"the disk is too full: {what} needs {size_text(size + _SPARE)} in {folder}, "
            f"{size_text(free)} are free; free some space or choose another model folder",
            folder,
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return a small JSON object.

    Raises
    ------
    ReadError
        If the file is missing, no JSON object, or far too big for one.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ReadError(f"{path} is too big for what it should be", path)
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ReadError):
            raise
        said = error.strerror if isinstance(error, OSError) else "it is no JSON text"
        raise ReadError(f"{path} can't be read: {said or error}", path) from error
    if not isinstance(content, dict):
        raise ReadError(f"{path} can't be read: it holds no JSON object", path)
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON object so that readers see the old or the new one, never half of it.

    Raises
    ------
    WriteError
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise WriteError(sentence(error, path.parent), path) from error


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """Give a folder of one's own inside ``folder`` (made if missing), deleted at the end.

    Its name tells which process made it, so that :func:`sweep` can remove what a crash left.

    Raises
    ------
    WriteError
        For an :class:`OSError` in making it or in the block.
    """
    own = folder / f"{_WORK}{_host()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own.mkdir()
        yield own
    except OSError as error:
        # Errors that speak to the user are of this kind too, and stay as they are.
        if isinstance(error, (CheckpointError, ReadError, WriteError)):
            raise
        raise WriteError(sentence(error, folder), folder) from error
    finally:
        shutil.rmtree(own, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove work folders and temporary files whose process is gone, or that are days old."""
    with suppress(OSError):
        for path in list(folder.glob(f"{_WORK}*")):
            if _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)
        for path in list(folder.glob(".*.tmp")):
            if path.is_file() and _is_old(path):
                path.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    import psutil

    host, _, rest = path.name.removeprefix(_WORK).partition("-")
    number = rest.partition("-")[0]
    if host == _host() and number.isdigit():
        return not psutil.pid_exists(int(number))
    return _is_old(path)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _STALE_SECONDS
    except OSError:
        return False


def _host() -> str:
    """Return this machine's name as it can stand in a file name, without hyphens."""
    return "".join(c for c in socket.gethostname() if c.isalnum())[:24] or "host"
