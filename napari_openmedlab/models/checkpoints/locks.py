"""A lock between programs: the system lets go of it when its holder ends, crashed or not."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from napari_openmedlab.errors import WriteError
from napari_openmedlab.io.atomic import sentence

__all__ = ["locked"]

_HELD = {errno.EACCES, errno.EAGAIN, errno.EDEADLK, getattr(errno, "EDEADLOCK", errno.EDEADLK)}
_PAUSE = 0.05


@contextmanager
def locked(path: Path, busy: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file (made if missing, kept afterwards) while the block runs.

    Disks that know no locks (some network shares) let the block run without.

    Parameters
    ----------
    path : Path
        In an existing folder.
    busy : str
        What to say if another holds it.
    patience : float
        Seconds to wait for it.

    Raises
    ------
    WriteError
        If another thread or program holds it for longer, or the file can't be made.
    """
    try:
        file = path.open("a+b")
    except OSError as error:
        raise WriteError(sentence(error, path.parent), path) from error
    with file:
        deadline = time.monotonic() + patience
        while not _take(file):
            if time.monotonic() >= deadline:
                raise WriteError(busy, path)
            time.sleep(_PAUSE)
        try:
            yield
        finally:
            _release(file)


if sys.platform == "win32":
    import msvcrt

    def _take(file: IO[bytes]) -> bool:
        file.seek(0)
        return _tried(lambda: msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1))

    def _release(file: IO[bytes]) -> None:
        file.seek(0)
        _tried(lambda: msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1))

else:
    import fcntl

    def _take(file: IO[bytes]) -> bool:
        return _tried(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB))

    def _release(file: IO[bytes]) -> None:
        _tried(lambda: fcntl.flock(file, fcntl.LOCK_UN))


def _tried(action: Callable[[], None]) -> bool:
    """Return whether the lock was free; a disk without locks counts as free."""
    try:
        action()
    except OSError as error:
        return error.errno not in _HELD
    return True
