"""Embeddings kept for the next click: in memory, and on disk where the user allows it.

The key is a signature of what the network was given (the normalised pixels themselves), of the
weights and of the code's version, so a kept embedding can never belong to another scan, grid,
contrast or checkpoint. A run that was cut short goes on with what it had kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["EmbeddingCache", "signature"]

_VERSION = 1  # raise when an engine's encoding changes at equal input
_SUFFIX = ".embedding.npy"


def signature(pixels: NDArray[Any], *parts: str) -> str:
    """Return a name for the embedding of ``pixels``.

    Parameters
    ----------
    pixels : ndarray
        What goes into the network; dtype and shape count.
    *parts : str
        What else decides the numbers: checkpoint sha256, network, precision.
    """
    digest = hashlib.blake2b(digest_size=20)
    head = "|".join((str(_VERSION), str(pixels.dtype), str(pixels.shape), *parts))
    digest.update(head.encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


class EmbeddingCache:
    """Arrays by signature; the least recently used ones go first. Thread-safe.

    Parameters
    ----------
    memory_bytes : int
        Limit of what is kept in memory.
    folder : path, optional
        Also keep them here, across runs of the program. Made when first needed.
    disk_bytes : int
        Limit of the folder. A full or failing disk only ends the keeping.
    """

    def __init__(
        self, memory_bytes: int, folder: str | Path | None = None, disk_bytes: int = 0
    ) -> None:
        self._limit = memory_bytes
        self._folder = Path(folder) if folder is not None and disk_bytes > 0 else None
        self._disk_limit = disk_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes kept in memory."""
        return self._bytes

    def get(self, key: str) -> NDArray[np.float32] | None:
        """Return the embedding of this signature, or ``None``."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = self._read(key)
        if found is not None:
            self._keep(key, found)
        return found

    def __contains__(self, key: str) -> bool:
        with self._lock:
            if key in self._kept:
                return True
        return self._folder is not None and self._path(key).is_file()

    def put(self, key: str, embedding: NDArray[np.float32]) -> None:
        """Keep an embedding (float32) under its signature."""
        self._keep(key, embedding)
        if self._folder is not None:
            # What can't be written is computed again next time: no reason to fail a click.
            with contextlib.suppress(OSError):
                self._write(key, embedding)

    def clear(self) -> None:
        """Forget what is in memory; the folder stays."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _keep(self, key: str, embedding: NDArray[np.float32]) -> None:
        with self._lock:
            old = self._kept.pop(key, None)
            self._bytes -= 0 if old is None else old.nbytes
            self._kept[key] = embedding
            self._bytes += embedding.nbytes
            while self._bytes > self._limit and len(self._kept) > 1:
                _, gone = self._kept.popitem(last=False)
                self._bytes -= gone.nbytes

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{key}{_SUFFIX}"

    def _read(self, key: str) -> NDArray[np.float32] | None:
        if self._folder is None:
            return None
        path = self._path(key)
        try:
            found = np.load(path, allow_pickle=False)
            os.utime(path)  # used now: the last to go
        except (OSError, ValueError, EOFError):
            return None
        return found if found.dtype == np.float32 else None

    def _write(self, key: str, embedding: NDArray[np.float32]) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{key}-{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("wb") as file:
                np.save(file, np.ascontiguousarray(embedding))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        self._trim()

    def _trim(self) -> None:
        """Delete the files used longest ago until the folder is within its limit."""
        assert self._folder is not None
        files = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):  # another process may be trimming too
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files, key=lambda f: f[0])[:-1]:
            if total <= self._disk_limit:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
