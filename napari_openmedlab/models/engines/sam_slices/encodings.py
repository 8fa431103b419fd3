"""Embeddings of slices: kept by content, in memory and, if asked, on disk."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.models.embeddings import EmbeddingCache

__all__ = ["Encodings", "default_folder"]

_PLACES = 2**15  # slices whose signature is remembered, so that they need not be read again
_GIB = 2**30


def default_folder() -> Path:
    """Return where embeddings are kept: ``OPENMEDLAB_EMBEDDINGS`` or the user's cache folder."""
    given = os.environ.get("OPENMEDLAB_EMBEDDINGS")
    if given:
        return Path(given)
    from platformdirs import user_cache_path

    return user_cache_path("napari-openmedlab") / "embeddings"


class Encodings:
    """The embeddings an engine keeps, and which slice of which scan has which.

    Parameters
    ----------
    memory_bytes : int
        Limit in memory.
    folder : path, optional
        Where those on disk go; :func:`default_folder` by default.
    """

    def __init__(self, memory_bytes: int, folder: str | Path | None = None) -> None:
        self._memory = memory_bytes
        self._folder = folder
        self._disk = 0
        self.cache = EmbeddingCache(memory_bytes)
        self._places: OrderedDict[tuple[Any, ...], tuple[str, bool]] = OrderedDict()

    def limit_disk(self, gib: float) -> None:
        """Keep up to this much on disk as well; 0 keeps nothing there."""
        size = int(gib * _GIB)
        if size == self._disk:
            return
        self._disk = size
        folder = None if size == 0 else Path(self._folder or default_folder())
        old, self.cache = self.cache, EmbeddingCache(self._memory, folder, size)
        old.clear()

    def clear(self) -> None:
        """Forget everything in memory."""
        self.cache.clear()
        self._places.clear()

    def known(self, place: tuple[Any, ...]) -> tuple[str, bool] | None:
        """Return a slice's signature and whether it has no contrast, if it was read before."""
        found = self._places.get(place)
        if found is not None:
            self._places.move_to_end(place)
        return found

    def remember(self, place: tuple[Any, ...], key: str, *, flat: bool) -> None:
        """Remember the signature of a slice."""
        self._places[place] = (key, flat)
        while len(self._places) > _PLACES:
            self._places.popitem(last=False)

    def get(self, key: str) -> NDArray[np.float32] | None:
        """Return an embedding (256, grid, grid)."""
        return self.cache.get(key)
