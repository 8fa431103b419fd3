"""The JSON file beside a mask: names, colours and where the labels came from."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from napari_openmedlab import __version__
from napari_openmedlab.errors import WriteError
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.io.suffixes import stem_of

__all__ = ["LabelInfo", "ObjectRow", "read_objects", "sidecar_path", "text"]

_FORMAT = "napari-openmedlab labels"
_LIBRARIES = ("numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "tifffile")


@dataclass(frozen=True)
class LabelInfo:
    """Name and colour (red, green, blue in 0..1) of one label value."""

    name: str
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class ObjectRow:
    """One object as the sidecar lists it: its value in the file, and its voxel count."""

    value: int
    info: LabelInfo
    voxels: int


def sidecar_path(mask: Path) -> Path:
    """Return the name of the sidecar to write beside a mask.

    ``NAME.json``; or ``NAME.labels.json`` if a ``NAME.json`` that isn't ours is there already
    (a converter's acquisition parameters, say), which is never overwritten.
    """
    plain, second = _names(mask)
    return second if plain.exists() and _load(plain) is None else plain


def _names(mask: Path) -> tuple[Path, Path]:
    stem = stem_of(mask)
    return mask.with_name(f"{stem}.json"), mask.with_name(f"{stem}.labels.json")


def text(
    mask: Path,
    geometry: Geometry,
    rows: Iterable[ObjectRow],
    provenance: Mapping[str, Any] | None,
) -> str:
    """Return the sidecar of a mask as JSON text.

    Parameters
    ----------
    geometry : Geometry
        Grid of the file in stored order, slowest axis first.
    provenance : mapping, optional
        JSON values; whoever calls keeps patient data out.

    Raises
    ------
    WriteError
        If the provenance holds something JSON can't.
    """
    content = {
        "format": _FORMAT,
        "version": 1,
        "file": mask.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": _software(),
        "geometry": {
            "shape": list(geometry.shape),
            "spacing": list(geometry.spacing),
            "unit": geometry.unit,
            "world": "LPS" if geometry.frame == "patient" else "image",
            "affine": geometry.affine.tolist(),
        },
        "objects": [_object(row, geometry) for row in rows],
        "provenance": dict(provenance or {}),
    }
    try:
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise WriteError(
            f"the provenance of {mask.name} can't be written as JSON: {error}", mask
        ) from error


def _object(row: ObjectRow, geometry: Geometry) -> dict[str, Any]:
    return {
        "value": row.value,
        "name": row.info.name,
        "colour": [round(float(c), 6) for c in row.info.colour],
        "voxels": row.voxels,
        "volume": row.voxels * geometry.voxel_volume,
        "volume_unit": f"{geometry.unit}^3",
    }


def _software() -> dict[str, str]:
    versions = {"napari-openmedlab": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _load(path: Path) -> dict[str, Any] | None:
    """Return the content of one of our sidecars, ``None`` for any other file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if isinstance(content, dict) and content.get("format") == _FORMAT:
        return content
    return None


def read_objects(mask: Path) -> dict[int, LabelInfo]:
    """Return names and colours by label value from the sidecar of a mask.

    Empty if there is no sidecar of ours; rows that don't make sense (edited
    by hand) are passed over: names are a help, the mask is what counts.
    """
    for path in _names(mask):
        content = _load(path) if path.exists() else None
        if content is not None:
            rows = content.get("objects")
            found = (_info(row) for row in (rows if isinstance(rows, list) else []))
            return dict(item for item in found if item is not None)
    return {}


def _info(row: Any) -> tuple[int, LabelInfo] | None:
    try:
        red, green, blue = (min(1.0, max(0.0, float(c))) for c in row["colour"])
        return int(row["value"]), LabelInfo(str(row["name"]), (red, green, blue))
    except (KeyError, TypeError, ValueError):
        return None
