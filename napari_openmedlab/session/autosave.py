"""Work survives a crash: every change is written to a file soon after, and offered again.

Beside each autosave lies a ``.lock`` file that names the process writing it. Only autosaves of
processes that are gone are offered, so a second viewer's live work is never taken.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from napari_openmedlab.errors import ReadError, WriteError
from napari_openmedlab.session.fingerprint import Fingerprint, fingerprint_of
from napari_openmedlab.session.session import Session
from napari_openmedlab.session.snapshot import Snapshot
from napari_openmedlab.session.store import saved_image, write_snapshot

__all__ = ["Autosave", "Recoverable", "default_folder", "discard", "find_recoverable"]

logger = logging.getLogger(__name__)

SUFFIX = ".autosave.omlsession"
_OTHER_HOST_HOURS = 24.0
_SAME_START_SECONDS = 2.0
_RETRY_SECONDS = 10.0


@dataclass(frozen=True)
class Recoverable:
    """Work that a crash left behind.

    Attributes
    ----------
    path : Path
        Open it with ``store.load``; then ``discard`` it.
    saved : datetime
        When it was last written, UTC.
    image_name : str
    image_path : Path or None
        Where the image was.
    objects : int
        How many objects it holds.
    """

    path: Path
    saved: datetime
    image_name: str
    image_path: Path | None
    objects: int


def default_folder() -> Path:
    """Return the folder in the user's data that takes autosaves no other folder can take."""
    from platformdirs import user_data_path

    return user_data_path("napari-openmedlab", appauthor=False) / "autosave"


class Autosave:
    """Writes a session to a file of its own after every change, in a background thread.

    Parameters
    ----------
    session : Session
    folder : Path, optional
        Where to; the user's data folder if ``None`` or if it can't be written to.
    delay : float
        Seconds of quiet to wait for before writing. A long row of changes is written at least
        every ten times this, and writing never takes more than a quarter of the time.
    on_notice : callable, optional
        Told each sentence the user should read (a fallback folder, a full disk), in the thread
        where it came up.

    Notes
    -----
    What is written is a snapshot taken in the thread that made the change, so the background
    thread never reads a session in the middle of a change.
    """

    def __init__(
        self,
        session: Session,
        folder: Path | None = None,
        *,
        delay: float = 0.5,
        on_notice: Callable[[str], None] | None = None,
    ) -> None:
        self._session = session
        self._folder = folder
        self._delay = delay
        self._on_notice = on_notice
        self._fingerprint: Fingerprint | None = None
        self._path: Path | None = None
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._pending: Snapshot | None = None
        self._stopped = False
        self._failed = False
        self._thread: threading.Thread | None = None

    @property
    def path(self) -> Path | None:
        """The file written to; ``None`` before :meth:`start`."""
        return self._path

    def start(self) -> Path:
        """Choose the file, mark it as ours and write after every change from now on.

        Returns
        -------
        Path
            The autosave file (written at the first change).

        Raises
        ------
        WriteError
            If not even the user's data folder can be written to.
        """
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", self._session.volume.name)[:40] or "image"
        name = f"{name}-{uuid.uuid4().hex[:8]}{SUFFIX}"
        self._path = self._claim(name)
        for signal in self._signals():
            signal.connect(self._note)
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="openmedlab-autosave", daemon=True)
        self._thread.start()
        return self._path

    def flush(self) -> None:
        """Write what is not written yet, now, in this thread."""
        with self._changed:
            snapshot, self._pending = self._pending, None
        if snapshot is not None and not self._write(snapshot):
            self._put_back(snapshot)

    def stop(self) -> None:
        """Write what is left and end the thread; the file stays and will be offered."""
        for signal in self._signals():
            signal.disconnect(self._note, missing_ok=True)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        self.flush()
        if self._path is not None:
            _lock_of(self._path).unlink(missing_ok=True)

    def discard(self) -> None:
        """Stop and delete the file: the work is saved elsewhere or not wanted."""
        with self._changed:
            self._pending = None
        self.stop()
        if self._path is not None:
            discard(self._path)

    def _signals(self) -> tuple[Any, ...]:
        session = self._session
        return session.history_changed, session.objects_changed, session.choice_changed

    def _claim(self, name: str) -> Path:
        fallback = default_folder()
        wanted = fallback if self._folder is None else Path(self._folder)
        try:
            return _claim_in(wanted, name)
        except OSError as error:
            if wanted == fallback:
                raise WriteError(f"work can't be autosaved to {wanted}: {error}", wanted) from error
        try:
            path = _claim_in(fallback, name)
        except OSError as error:
            raise WriteError(f"work can't be autosaved to {fallback}: {error}", fallback) from error
        self._say(f"{wanted} can't be written to; work is autosaved in {fallback} instead")
        return path

    def _note(self, *_args: object) -> None:
        snapshot = self._session.snapshot()
        with self._changed:
            self._pending = snapshot
            self._changed.notify_all()

    def _work(self) -> None:
        while self._wait_for_quiet():
            with self._changed:
                snapshot, self._pending = self._pending, None
            if snapshot is None:
                continue
            began = time.monotonic()
            written = self._write(snapshot)
            if not written:
                self._put_back(snapshot)
            del snapshot
            rest = 3 * (time.monotonic() - began) if written else _RETRY_SECONDS
            with self._changed:
                self._changed.wait_for(lambda: self._stopped, rest)

    def _put_back(self, snapshot: Snapshot) -> None:
        """Keep what could not be written for the next try, unless there is something newer."""
        with self._changed:
            if self._pending is None:
                self._pending = snapshot

    def _wait_for_quiet(self) -> bool:
        """Wait until changes have come and then stopped for a while; ``False`` at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending is not None or self._stopped)
            latest = time.monotonic() + 10 * self._delay
            while not self._stopped and time.monotonic() < latest:
                seen = self._pending
                self._changed.wait(self._delay)
                if self._pending is seen:
                    break
            return not self._stopped

    def _write(self, snapshot: Snapshot) -> bool:
        if self._path is None:
            return False
        with self._writing:
            try:
                if self._fingerprint is None:
                    self._fingerprint = fingerprint_of(snapshot.volume)
                write_snapshot(snapshot, self._path, self._fingerprint)
            except Exception as error:
                logger.debug("autosave failed", exc_info=True)
                if not self._failed:  # a defect too: work that is not saved must be known of
                    self._say(f"autosave failed and will be tried again: {error}")
                self._failed = True
                return False
            self._failed = False
            return True

    def _say(self, sentence: str) -> None:
        logger.warning(sentence)
        if self._on_notice is not None:
            self._on_notice(sentence)


def find_recoverable(*folders: Path) -> list[Recoverable]:
    """Return the autosaves whose writers are gone, newest first.

    Parameters
    ----------
    *folders : Path
        Where to look; the user's data folder if none is given. Missing folders and damaged
        files are passed over.
    """
    found = []
    for folder in dict.fromkeys(folders or (default_folder(),)):
        _sweep(Path(folder))
        for path in sorted(Path(folder).glob(f"*{SUFFIX}")):
            if _is_alive(path):
                continue
            try:
                image = saved_image(path)
            except ReadError as error:
                logger.warning("autosave passed over: %s", error)
                continue
            found.append(Recoverable(path, image.saved, image.name, image.path, image.objects))
    return sorted(found, key=lambda entry: entry.saved, reverse=True)


def _sweep(folder: Path) -> None:
    """Remove locks of gone processes that never wrote anything."""
    for lock in folder.glob(f"*{SUFFIX}.lock"):
        path = lock.with_name(lock.name.removesuffix(".lock"))
        if not path.exists() and not _is_alive(path):
            with suppress(OSError):
                lock.unlink()


def discard(path: Path) -> None:
    """Delete an autosave and its lock."""
    path.unlink(missing_ok=True)
    _lock_of(path).unlink(missing_ok=True)


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _claim_in(folder: Path, name: str) -> Path:
    """Write the lock file of a new autosave; raises ``OSError`` where that is not possible."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    process = psutil.Process()
    owner = {"pid": process.pid, "began": process.create_time(), "host": socket.gethostname()}
    with _lock_of(path).open("x", encoding="utf-8") as stream:
        json.dump(owner, stream)
    return path


def _is_alive(path: Path) -> bool:
    """Whether the process that writes this autosave still runs.

    A process number alone does not tell: numbers are used again, so the time at which the
    process began must agree. Another machine's processes can't be asked; its autosaves count as
    alive until nothing was written for a day.
    """
    try:
        owner = json.loads(_lock_of(path).read_text(encoding="utf-8"))
        host, pid, began = str(owner["host"]), int(owner["pid"]), float(owner["began"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if host != socket.gethostname():
        newest = path if path.exists() else _lock_of(path)
        return time.time() - os.path.getmtime(newest) < _OTHER_HOST_HOURS * 3600
    try:
        return bool(abs(psutil.Process(pid).create_time() - began) < _SAME_START_SECONDS)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
