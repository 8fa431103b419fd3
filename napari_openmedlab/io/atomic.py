"""Writing that never leaves half a file: stage beside the target, check, then take its place."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from napari_openmedlab.errors import WriteError

__all__ = ["resolved_target", "sentence", "staging"]

_ENDS_LAST = (".mhd", ".nhdr", ".json")  # headers that point at data files, put in place last


def resolved_target(path: Path) -> Path:
    """Return where a file will really lie, or say why it can't be written there.

    Raises
    ------
    WriteError
        If the folder is missing, the path is a folder, or the file is write-protected.
    """
    if path.is_dir():
        raise WriteError(f"{path} is a folder; add a file name such as mask.nii.gz", path)
    if not path.parent.is_dir():
        raise WriteError(
            f"{path} can't be written: the folder {path.parent} does not exist; make it or "
            "choose another",
            path,
        )
    if path.exists() and not os.access(path, os.W_OK):
        raise WriteError(
            f"{path} is write-protected; choose another name or remove the protection", path
        )
    return path.resolve()  # a link stays a link: what it points at is replaced


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Give a temporary folder inside ``folder``; its files move up when the block ends well.

    Files carry their final names inside, so formats that spread over two files (MHD + RAW)
    refer to each other rightly. When the block raises, ``folder`` is as it was.

    Raises
    ------
    WriteError
        For every :class:`OSError`, in the block too: full disk, no permission, a file that
        another program holds open.
    """
    temporary: Path | None = None
    done: list[str] = []
    try:
        temporary = Path(tempfile.mkdtemp(prefix=".openmedlab-", suffix=".tmp", dir=folder))
        yield temporary
        staged = sorted(temporary.iterdir(), key=lambda p: (p.suffix in _ENDS_LAST, p.name))
        for path in staged:
            _sync(path)
        for path in staged:
            os.replace(path, folder / path.name)
            done.append(path.name)
    except WriteError:
        raise
    except OSError as error:
        already = f" (already in place: {', '.join(done)})" if done else ""
        raise WriteError(sentence(error, folder) + already, folder) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the file's content on the disk before its name is."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sentence(error: OSError, folder: Path) -> str:
    """Return why writing in ``folder`` failed and what to do, for the user."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return (
            f"the disk is full: nothing more could be written in {folder}; free some space or "
            "choose another folder"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"no permission to write in {folder}, or the file is open in another program; close "
            "it there or choose another folder"
        )
    return f"writing in {folder} failed: {error.strerror or error}; try another folder"
