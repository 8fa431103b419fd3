"""How a template is written down: one JSON file a template, so that one damaged file hurts one.

No patient's name is in it: a template is called by the hash of its scan, and a file name is kept
only where the user asks to refer to the scan in its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from napari_openmedlab import __version__
from napari_openmedlab.cohort.marks import Origin, check_names, structure_name
from napari_openmedlab.errors import GeometryError, OpenMedLabError, ReadError
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.models.localisation import Landmarks
from napari_openmedlab.session.fingerprint import geometry_from_json, geometry_to_json

__all__ = [
    "HEAD",
    "TEMPLATE",
    "VERSION",
    "Entry",
    "Head",
    "Keep",
    "Stored",
    "entry_text",
    "head_text",
    "now",
    "read_entry",
    "read_head",
]

VERSION = 1
HEAD = "library.json"
TEMPLATE = "template.json"
_LIBRARY_FORMAT = "napari-openmedlab template library"
_TEMPLATE_FORMAT = "napari-openmedlab template"

Keep = Literal["copy", "path", "none"]
"""What a library keeps of a scan: a copy of its voxels, where it lies, or nothing."""


@dataclass(frozen=True)
class Head:
    """What a library says of itself: its name for the user, when and by what it was made."""

    name: str
    created: str
    software: str = f"napari-openmedlab {__version__}"


@dataclass(frozen=True)
class Stored:
    """A structure as it stands in a library.

    Attributes
    ----------
    landmarks : Landmarks
        Name and six points, LPS mm, order of ``WALLS``.
    origin : {"points", "mask"}
        How it was marked.
    mask : str
        File of its mask, ``""`` if none is kept.
    view : str
        File of its thumbnail, ``""`` without.
    made : str
        When it was marked, ISO 8601 in UTC.
    """

    landmarks: Landmarks
    origin: Origin = "points"
    mask: str = ""
    view: str = ""
    made: str = ""

    @property
    def name(self) -> str:
        """Name of the structure."""
        return self.landmarks.name


@dataclass(frozen=True, eq=False)
class Entry:
    """A template as it stands in a library, without its voxels.

    Attributes
    ----------
    id : str
        The first letters of ``content``.
    content : str
        Hash of the scan's voxels and grid.
    title : str
        Name for the user.
    geometry : Geometry
        Grid of the scan.
    modality : str
        ``"CT"``, ``"MR"`` ... or ``""``.
    keep : {"copy", "path", "none"}
        Where its image is.
    path : Path or None
        Of the scan, absolute, if ``keep`` is "path".
    structures : tuple of Stored
    created : str
        ISO 8601 in UTC.
    """

    id: str
    content: str
    title: str
    geometry: Geometry
    modality: str
    keep: Keep
    path: Path | None
    structures: tuple[Stored, ...]
    created: str

    def structure(self, name: str) -> Stored | None:
        """Return a structure by its name, case aside, if it is marked here."""
        key = name.casefold()
        return next((each for each in self.structures if each.name.casefold() == key), None)


def now() -> str:
    """Return the time as it is written down."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def head_text(head: Head) -> str:
    """Return a library's own JSON."""
    content = {
        "format": _LIBRARY_FORMAT,
        "version": VERSION,
        "name": head.name,
        "created": head.created,
        "software": head.software,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def read_head(path: Path) -> Head:
    """Read a library's own JSON.

    Raises
    ------
    ReadError
        If it is missing, damaged, of a newer version or none of ours.
    """
    content = _load(path, _LIBRARY_FORMAT, "template library")
    return Head(
        str(content.get("name") or path.parent.name),
        str(content.get("created", "")),
        str(content.get("software", "")),
    )


def entry_text(entry: Entry, path: str | None) -> str:
    """Return a template's JSON; ``path`` is the scan's, as it is to be written."""
    content = {
        "format": _TEMPLATE_FORMAT,
        "version": VERSION,
        "id": entry.id,
        "content": entry.content,
        "title": entry.title,
        "modality": entry.modality,
        "created": entry.created,
        "software": f"napari-openmedlab {__version__}",
        "geometry": geometry_to_json(entry.geometry),
        "image": {"keep": entry.keep, "path": path},
        "structures": [
            {
                "name": each.name,
                "points": [list(point) for point in each.landmarks.points],
                "origin": each.origin,
                "mask": each.mask,
                "view": each.view,
                "made": each.made,
            }
            for each in entry.structures
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_entry(path: Path, library: Path) -> Entry:
    """Read a template's JSON.

    Parameters
    ----------
    path : Path
        The ``template.json``.
    library : Path
        Folder of the library; paths to scans are relative to it.

    Raises
    ------
    ReadError
        If it is missing, damaged, of a newer version or none of ours.
    """
    content = _load(path, _TEMPLATE_FORMAT, "template")
    try:
        return _entry(content, path, library)
    except (OpenMedLabError, GeometryError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ReadError(
            f"the template {path.parent.name} is damaged ({type(error).__name__}: {error}); the "
            "others are not touched. Restore its folder from a copy, or remove the template",
            path,
        ) from error


def _entry(content: Mapping[str, Any], path: Path, library: Path) -> Entry:
    structures = tuple(_stored(each) for each in content["structures"])
    check_names(each.name for each in structures)
    keep, where = content["image"]["keep"], content["image"]["path"]
    if keep not in get_args(Keep):
        raise ValueError(f"unknown way '{keep}' of keeping the image")
    if content["id"] != path.parent.name:
        raise ValueError(f"its folder was renamed; it was called {content['id']}")
    return Entry(
        id=str(content["id"]),
        content=str(content["content"]),
        title=str(content["title"]),
        geometry=geometry_from_json(content["geometry"]),
        modality=str(content["modality"]),
        keep=keep,
        path=(library / where).resolve() if keep == "path" else None,
        structures=structures,
        created=str(content["created"]),
    )


def _stored(content: Mapping[str, Any]) -> Stored:
    origin = content["origin"]
    if origin not in get_args(Origin):
        raise ValueError(f"unknown origin '{origin}'")
    points = tuple((p[0], p[1], p[2]) for p in content["points"])
    landmarks = Landmarks(structure_name(content["name"]), points)
    files = [str(content.get(key) or "") for key in ("mask", "view")]
    if any(Path(name).name != name for name in files):
        raise ValueError("a file lies outside the template's folder")
    return Stored(landmarks, origin, files[0], files[1], str(content.get("made", "")))


def _load(path: Path, wanted: str, what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReadError(f"{path.parent} is no {what}: it has no {path.name}", path) from error
    except OSError as error:
        raise ReadError(f"{path} can't be read: {error.strerror or error}", path) from error
    except ValueError as error:
        raise ReadError(
            f"{path} is damaged, it is not JSON ({error}); restore it from a copy", path
        ) from error
    if not isinstance(content, dict) or content.get("format") != wanted:
        raise ReadError(f"{path} is not the file of a {what} of napari-openmedlab", path)
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ReadError(
            f"the {what} {path.parent} has format version {version}, this program knows up to "
            f"{VERSION}: update napari-openmedlab (it was written by {content.get('software')})",
            path,
        )
    return content
