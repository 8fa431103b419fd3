"""What engines computed of a template, kept in its folder; numbers only, never a pickle."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import WriteError
from napari_openmedlab.io.atomic import staging

__all__ = ["FolderFeatures", "read_arrays", "write_arrays"]

_SUFFIX = ".npz"
_LONGEST = 180  # letters of a file name that every file system takes


class FolderFeatures:
    """Arrays by signature, one ``.npz`` file each; implements ``localisation.Features``.

    A signature may read ``WHAT@STATE``: then keeping a new state of the same thing drops the old
    ones, as when the checkpoint changes. Without an ``@`` nothing is dropped by itself.
    What can't be written (a read-only library, a full disk) is computed again next time; what
    can't be read counts as absent.

    Parameters
    ----------
    folder : Path
        Made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> Mapping[str, NDArray[Any]] | None:
        """Return the arrays kept under a signature, or ``None``."""
        return read_arrays(self._path(key))

    def put(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays under a signature; one that is kept already stays as it is."""
        path = self._path(key)
        if read_arrays(path) is not None:
            return
        with contextlib.suppress(OSError):  # WriteError is one
            self._folder.mkdir(parents=True, exist_ok=True)
            with staging(self._folder) as stage:
                write_arrays(stage / path.name, arrays)
            what, mark, _ = key.partition("@")
            if mark:
                self.drop(lambda other: other.startswith(what + mark) and other != key)

    def keys(self) -> tuple[str, ...]:
        """Return the signatures kept; long ones by the hash that stands for them."""
        return tuple(unquote(path.stem) for path in self._files())

    def drop(self, which: Callable[[str], bool]) -> int:
        """Delete the entries whose signature fits; return how many bytes that freed."""
        freed = 0
        for path in self._files():
            if which(unquote(path.stem)):
                with contextlib.suppress(OSError):
                    size = path.stat().st_size
                    path.unlink()
                    freed += size
        return freed

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self._files())

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"[!.]*{_SUFFIX}"))

    def _path(self, key: str) -> Path:
        name = quote(key, safe="@,=+ ").replace(".", "%2E")
        if len(name) > _LONGEST:
            what, mark, _ = name.partition("@")
            digest = hashlib.blake2b(key.encode(), digest_size=20).hexdigest()
            name = f"{what}{mark}{digest}" if mark and len(what) < _LONGEST // 2 else digest
        return self._folder / f"{name}{_SUFFIX}"


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], *, compress: bool = False) -> None:
    """Write arrays as NumPy's ``.npz``; refuses what would need a pickle.

    Raises
    ------
    WriteError
        If an array holds objects.
    """
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    level = 3 if compress else None  # masks and scans: nearly as small as 9, many times faster
    with zipfile.ZipFile(path, "w", kind, compresslevel=level) as archive:
        for name, array in arrays.items():
            array = np.asarray(array)
            if array.dtype.hasobject:
                raise WriteError(f"'{name}' holds objects, not numbers; it is not written", path)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def read_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """Return the arrays of a ``.npz`` file, ``None`` if there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        return None
