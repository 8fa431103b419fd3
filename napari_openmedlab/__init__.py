"""napari-openmedlab: from a scan to an exported 3D mask, in napari, Python and the shell.

Importing this package is instant; every public name loads its module on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_openmedlab.geometry.prompts import PromptSet
    from napari_openmedlab.geometry.volume import Geometry, Volume
    from napari_openmedlab.io.api import read, read_labels, write
    from napari_openmedlab.session.session import Session

__version__ = "0.1.0"

_LAZY = {
    "Geometry": "napari_openmedlab.geometry.volume",
    "PromptSet": "napari_openmedlab.geometry.prompts",
    "Session": "napari_openmedlab.session.session",
    "Volume": "napari_openmedlab.geometry.volume",
    "read": "napari_openmedlab.io.api",
    "read_labels": "napari_openmedlab.io.api",
    "write": "napari_openmedlab.io.api",
}

__all__ = [
    "Geometry",
    "PromptSet",
    "Session",
    "Volume",
    "__version__",
    "read",
    "read_labels",
    "write",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
