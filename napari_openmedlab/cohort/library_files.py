"""A template library as one file to keep or share: a zip, checked before it is trusted."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from napari_openmedlab.cohort.library import Library
from napari_openmedlab.cohort.library_format import HEAD, TEMPLATE, entry_text
from napari_openmedlab.cohort.library_images import SCAN
from napari_openmedlab.errors import ReadError, WriteError
from napari_openmedlab.io.atomic import resolved_target, sentence, staging

__all__ = ["SUFFIX", "pack", "unpack"]

SUFFIX = ".omltemplates"
_FEATURES = "features"
_STORED = {".npz", ".png"}  # compressed already, or numbers that hardly compress
_FILES = {HEAD, TEMPLATE, SCAN}
_MOST_FILES = 200_000
_LARGEST = 1 << 40  # bytes; a zip may claim anything


def pack(library: Library, path: str | Path, *, images: bool = True, features: bool = True) -> Path:
    """Write a library as one file.

    Parameters
    ----------
    library : Library
    path : path
        ``.omltemplates`` is added if it ends otherwise.
    images : bool
        With the copies of the scans. Paths to scans on this computer are never written: such
        templates, and all without ``images``, serve by their features alone.
    features : bool
        With what engines have computed.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    WriteError
        If it can't be written; an older file stays.
    """
    target = Path(path)
    if target.suffix != SUFFIX:
        target = target.with_name(target.name + SUFFIX)
    resolved = resolved_target(target)
    with staging(resolved.parent) as stage, zipfile.ZipFile(stage / resolved.name, "w") as archive:
        archive.write(library.folder / HEAD, HEAD, zipfile.ZIP_DEFLATED)
        for entry in library.entries:
            _pack_one(archive, library, entry.id, images=images, features=features)
    return target


def _pack_one(
    archive: zipfile.ZipFile, library: Library, template: str, *, images: bool, features: bool
) -> None:
    from dataclasses import replace

    entry = library.entry(template)
    folder = library.folder / "templates" / template
    keep = "copy" if images and entry.keep == "copy" else "none"
    shared = replace(entry, keep=keep, path=None)  # type: ignore[arg-type]
    base = f"templates/{template}"
    archive.writestr(f"{base}/{TEMPLATE}", entry_text(shared, None), zipfile.ZIP_DEFLATED)
    names = [f for each in entry.structures for f in (each.mask, each.view) if f]
    names += [SCAN] if keep == "copy" else []
    files = [folder / name for name in names]
    if not images:  # thumbnails show the scan
        files = [f for f in files if f.suffix != ".png"]
    if features:
        files += sorted((folder / _FEATURES).glob("[!.]*.npz"))
    for file in files:
        if file.is_file():
            kind = zipfile.ZIP_STORED if file.suffix in _STORED else zipfile.ZIP_DEFLATED
            archive.write(file, f"{base}/{file.relative_to(folder).as_posix()}", kind)


def unpack(path: str | Path, folder: str | Path) -> Library:
    """Unpack a library into a folder that is new or empty, and open it.

    Raises
    ------
    ReadError
        If the file is no packed library, damaged, written by a newer version, or holds files
        that don't belong to one. Nothing is left behind.
    WriteError
        If the folder is not empty or can't be written to.
    """
    path, folder = Path(path), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WriteError(f"{folder} is not empty; choose a new folder to unpack into", folder)
    parent = folder.resolve().parent
    temporary: Path | None = None
    with _damage(path), zipfile.ZipFile(path) as archive:
        members = _checked(archive, path)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".openmedlab-", suffix=".tmp", dir=parent))
            for member in members:
                place = temporary / member.filename
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, place.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            opened = Library.open(temporary)  # refuses newer versions before anything stays
            if opened.problems:
                raise ReadError(f"{path} is damaged: {opened.problems[0]}", path)
            if folder.exists():
                folder.rmdir()
            os.replace(temporary, folder)
        except ReadError:
            raise
        except OSError as error:
            raise WriteError(sentence(error, parent), folder) from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
    return Library.open(folder)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ReadError(f"there is no file {path}", path) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ReadError(
            f"{path} is no packed template library, or it is damaged or cut off ({error})", path
        ) from error


def _checked(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """Return the members of a library, and refuse a zip with any other."""
    members = [each for each in archive.infolist() if not each.is_dir()]
    if HEAD not in {each.filename for each in members}:
        raise ReadError(f"{path} is no packed template library: it has no {HEAD}", path)
    total = sum(each.file_size for each in members)
    if len(members) > _MOST_FILES or total > _LARGEST:
        raise ReadError(f"{path} claims to hold {total} bytes; it is not unpacked", path)
    for each in members:
        if not _belongs(PurePosixPath(each.filename), each.filename):
            raise ReadError(
                f"{path} holds '{each.filename}', which is no part of a template library; it is "
                "not unpacked",
                path,
            )
    return members


def _belongs(name: PurePosixPath, raw: str) -> bool:
    parts = name.parts
    if "\\" in raw or ":" in raw or name.is_absolute() or any(p.startswith(".") for p in parts):
        return False
    if parts == (HEAD,):
        return True
    if not parts or parts[0] != "templates" or len(parts) not in (3, 4):
        return False
    if len(parts) == 4:
        return parts[2] == _FEATURES and name.suffix == ".npz"
    return parts[2] in _FILES or name.suffix in (".npz", ".png")
