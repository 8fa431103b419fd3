"""Session files: one file that holds every step, so work can go on, be undone and be replayed.

``NAME.omlsession`` is a zip with ``session.json`` and ``data.bin`` (see ``session_format``).
It holds no voxels of the image and nothing of its header: the image is named by a path relative
to the session file and recognised by grid and sampled content.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from napari_openmedlab import __version__
from napari_openmedlab.errors import OpenMedLabError, ReadError, SessionError, WriteError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.io.atomic import staging
from napari_openmedlab.session.fingerprint import (
    Fingerprint,
    fingerprint_of,
    geometry_from_json,
    geometry_to_json,
)
from napari_openmedlab.session.objects import OverlapRule
from napari_openmedlab.session.session import Session
from napari_openmedlab.session.session_format import Decoder, Encoder
from napari_openmedlab.session.snapshot import Snapshot

__all__ = ["SUFFIX", "AbsentImage", "SavedImage", "load", "save", "saved_image", "write_snapshot"]

SUFFIX = ".omlsession"
FORMAT = "napari-openmedlab session"
VERSION = 1


@dataclass(frozen=True, eq=False)
class SavedImage:
    """What a session file says of itself and of its image.

    Attributes
    ----------
    path : Path or None
        Where the image was; made absolute. ``None`` for an image that came from no file.
    name : str
    fingerprint : Fingerprint
    saved : datetime
        When the file was written, UTC.
    objects : int
        How many objects the session has.
    """

    path: Path | None
    name: str
    fingerprint: Fingerprint
    saved: datetime
    objects: int


class AbsentImage:
    """Stands in for the voxels of a session loaded without its image."""

    def __init__(self, saved: SavedImage) -> None:
        self.saved = saved
        self.shape = saved.fingerprint.geometry.shape
        self.ndim = 3

    def __getitem__(self, _key: object) -> Any:
        raise SessionError(
            f"the image '{self.saved.name}' of this session is not loaded; open it to "
            "go on segmenting"
        )

    def __array__(self, *_args: object, **_kwargs: object) -> Any:
        return self[...]


def save(session: Session, path: str | Path) -> Path:
    """Write a session to one file; the old file stays until the new one is complete.

    Returns
    -------
    Path
        The file, with the suffix ``.omlsession`` added if another or none was given.

    Raises
    ------
    WriteError
        If the folder can't be written to or the disk is full.
    """
    target = Path(path)
    if target.suffix != SUFFIX:
        target = target.with_name(target.name + SUFFIX)
    write_snapshot(session.snapshot(), target)
    return target


def write_snapshot(snapshot: Snapshot, path: Path, fingerprint: Fingerprint | None = None) -> Path:
    """Write a snapshot; thread-safe. ``fingerprint`` saves reading the image again."""
    encoder = Encoder()
    content = {
        "format": FORMAT,
        "version": VERSION,
        "software": f"napari-openmedlab {__version__}",
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        "image": _image_to_json(snapshot.volume, path, fingerprint),
        "overlap": snapshot.overlap.value,
        "start": {
            "state": encoder.state(snapshot.start_state),
            "slices": [[z, encoder.blob(b)] for z, b in sorted(snapshot.start_slices.items())],
        },
        "past": [encoder.step(step) for step in snapshot.past],
        "future": [encoder.step(step) for step in snapshot.future],
        "dropped": snapshot.dropped,
        "state": encoder.state(snapshot.state),
        "tables": encoder.tables,
    }
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
        archive.writestr("session.json", text, zipfile.ZIP_DEFLATED, 1)
        archive.writestr("data.bin", encoder.data, zipfile.ZIP_STORED)
    _replace_file(path, buffer.getbuffer())
    return path


def _replace_file(path: Path, content: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"the session could not be saved to {path}: {error.strerror or error}; choose "
            "another folder",
            path,
        ) from error
    with staging(path.parent) as folder:
        (folder / path.name).write_bytes(content)


def _image_to_json(volume: Volume, path: Path, known: Fingerprint | None) -> dict[str, Any]:
    source = getattr(volume.source, "path", None)
    if isinstance(volume.array, AbsentImage):
        known, source = volume.array.saved.fingerprint, volume.array.saved.path
    fingerprint = known or fingerprint_of(volume)
    return {
        "path": _relative(source, path),
        "name": volume.name,
        "modality": volume.modality,
        "geometry": geometry_to_json(fingerprint.geometry),
        "sampled_sha256": fingerprint.sampled_sha256,
    }


def _relative(image: Path | None, session_file: Path) -> str | None:
    if image is None:
        return None
    try:
        return Path(
            os.path.relpath(Path(image).resolve(), session_file.parent.resolve())
        ).as_posix()
    except ValueError:  # another drive on Windows
        return Path(image).resolve().as_posix()


def load(path: str | Path, volume: Volume | None = None) -> Session:
    """Read a session: objects, prompts, labels and all steps.

    Parameters
    ----------
    path : path
    volume : Volume, optional
        The image it was made on. Without one the session can be looked at, edited by hand and
        exported, but engines answer with an error.

    Raises
    ------
    ReadError
        If the file is missing, not a session, damaged, or of a newer version.
    SessionError
        If ``volume`` is another image than the session's.
    """
    path = Path(path)
    content, data = _read(path)
    with _damage(path):
        image = _saved_image(content, path)
        snapshot = _decode(content, data, image)
    if volume is not None:
        image.fingerprint.check(volume)
    with _damage(path):
        session = Session.resume(snapshot, volume)
    counted = {o.id: o.voxels for o in session.objects if o.voxels}
    if counted != session.count_voxels():
        raise ReadError(f"the session {path} is damaged: its steps and its labels disagree", path)
    return session


def saved_image(path: str | Path) -> SavedImage:
    """Return what a session file says of its image, without rebuilding the session."""
    path = Path(path)
    content, _ = _read(path)
    with _damage(path):
        return _saved_image(content, path)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn what damaged content raises into one error that names the file."""
    try:
        yield
    except (OpenMedLabError, KeyError, TypeError, ValueError, IndexError, zlib.error) as error:
        raise ReadError(
            f"the session {path} is damaged ({type(error).__name__}: {error}); use an older copy",
            path,
        ) from error


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            content = json.loads(archive.read("session.json"))
            data = archive.read("data.bin")
    except FileNotFoundError as error:
        raise ReadError(f"there is no session file {path}", path) from error
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, zlib.error) as error:
        raise ReadError(
            f"{path} is not a session file, or it is damaged or cut off ({error})", path
        ) from error
    except OSError as error:
        raise ReadError(f"the session {path} can't be read: {error.strerror}", path) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ReadError(f"{path} is not a session of napari-openmedlab", path)
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ReadError(
            f"the session {path} has format version {version}, this program knows up to "
            f"{VERSION}: update napari-openmedlab (it was written by {content.get('software')})",
            path,
        )
    return content, data


def _saved_image(content: dict[str, Any], path: Path) -> SavedImage:
    image = content["image"]
    stored = image["path"]
    absolute = None if stored is None else Path(os.path.normpath(path.resolve().parent / stored))
    return SavedImage(
        absolute,
        str(image["name"]),
        Fingerprint(geometry_from_json(image["geometry"]), str(image["sampled_sha256"])),
        datetime.fromisoformat(content["saved"]),
        len(content["state"]["objects"]),
    )


def _decode(content: dict[str, Any], data: bytes, image: SavedImage) -> Snapshot:
    decoder = Decoder(content["tables"], data)
    geometry = image.fingerprint.geometry
    absent = Volume(
        AbsentImage(image),
        geometry,
        name=image.name,
        modality=str(content["image"]["modality"]),
        notes=("The image of this session is not loaded.",),
    )
    return Snapshot(
        volume=absent,
        start_slices={int(z): decoder.blob(place) for z, place in content["start"]["slices"]},
        start_state=decoder.state(content["start"]["state"]),
        past=tuple(decoder.step(step) for step in content["past"]),
        future=tuple(decoder.step(step) for step in content["future"]),
        dropped=int(content["dropped"]),
        state=decoder.state(content["state"]),
        overlap=OverlapRule(content["overlap"]),
    )
