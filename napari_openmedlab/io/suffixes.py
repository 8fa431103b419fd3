"""File names: double suffixes such as ``.nii.gz``, and names every system accepts."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

__all__ = ["safe_name", "stem_of", "suffix_of"]

_DOUBLE = (".nii.gz", ".hdr.gz", ".img.gz", ".ome.tif", ".ome.tiff", ".ome.zarr")
_RESERVED = {"con", "prn", "aux", "nul"} | {f"{p}{n}" for p in ("com", "lpt") for n in range(10)}
_LONGEST = 60  # characters of an object's name that go into a file name


def suffix_of(path: Path) -> str:
    """Return the suffix in lower case, ``.nii.gz`` and its like in one piece."""
    name = path.name.lower()
    return next((s for s in _DOUBLE if name.endswith(s)), path.suffix.lower())


def stem_of(path: Path) -> str:
    """Return the file name without its suffix, ``.nii.gz`` and its like in one piece."""
    suffix = suffix_of(path)
    return path.name[: len(path.name) - len(suffix)] if suffix else path.name


def safe_name(name: str) -> str:
    """Return an object's name as part of a file name that Windows, macOS and Linux accept.

    Letters and digits of any script stay; everything else becomes a single ``_``. Names that
    Windows keeps for devices get a ``_`` behind them; an empty rest becomes ``object``.
    """
    plain = unicodedata.normalize("NFC", name)
    plain = re.sub(r"[^\w.+-]+", "_", plain)[:_LONGEST].strip("._ ")
    if plain.split(".")[0].lower() in _RESERVED:
        return f"{plain}_"
    return plain or "object"
