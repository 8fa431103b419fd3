"""A library of templates in a folder: scans on which structures are marked.

::

    library = Library.open_or_create("templates")
    volume = read("scan.nii.gz")
    mark = mark_from_points("left kidney", six_points, volume.geometry)   # any order, LPS mm
    library.add(volume, [mark])
    engine.locate(other, library.templates(), {}, Monitor())

Everything is on disk as soon as a call returns, and a call that fails leaves the library as it
was. A template is called by the hash of its scan: adding the same scan again adds structures to
the template that is there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from napari_openmedlab.cohort import library_images
from napari_openmedlab.cohort.library_checks import advice
from napari_openmedlab.cohort.library_format import (
    HEAD,
    TEMPLATE,
    Entry,
    Head,
    Keep,
    Stored,
    entry_text,
    head_text,
    now,
    read_head,
)
from napari_openmedlab.cohort.library_reading import Shelf, structure_of
from napari_openmedlab.cohort.marks import (
    Mark,
    check_names,
    structure_name,
)
from napari_openmedlab.errors import PromptError, ReadError, WriteError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.io.atomic import sentence, staging
from napari_openmedlab.models.localisation import Landmarks

__all__ = ["Added", "Library", "Merged"]

_ID_LENGTH = 12  # letters of the hash: two scans in 10^7 alike would be chance


@dataclass(frozen=True, eq=False)
class Added:
    """What adding did: the template as it now stands, and what the user should know of it."""

    entry: Entry
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Merged:
    """What merging two libraries did.

    Attributes
    ----------
    added : tuple of str
        Ids of templates that are new here.
    extended : tuple of str
        Ids of templates that gained structures.
    kept : tuple of str
        Sentences on structures that were marked otherwise in the other library, and stayed.
    """

    added: tuple[str, ...] = ()
    extended: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


class Library(Shelf):
    """Templates in a folder; made by :meth:`create`, :meth:`open` or :meth:`open_or_create`."""

    # ------------------------------------------------------------------ making and opening

    @classmethod
    def create(cls, folder: str | Path, name: str = "") -> Library:
        """Make an empty library in a folder that is new or empty.

        Raises
        ------
        WriteError
            If something lies in the folder already, or it can't be written to.
        """
        path = Path(folder)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise WriteError(
                f"{path} is not empty; choose a new folder for the library, or open the one "
                "that is there",
                path,
            )
        head = Head(structure_name(name or path.resolve().name), now())
        _write_files(path, {HEAD: head_text(head)})
        return cls(path, head)

    @classmethod
    def open(cls, folder: str | Path) -> Library:
        """Open a library.

        Raises
        ------
        ReadError
            If there is none, it is damaged, or a newer version of this program wrote it. A
            damaged template doesn't: see :attr:`problems`.
        """
        path = Path(folder)
        if path.is_file():
            raise ReadError(
                f"{path} is a file; unpack a packed library into a folder first: openmedlab "
                f"templates unpack {path.name} FOLDER",
                path,
            )
        return cls(path, read_head(path / HEAD))

    @classmethod
    def open_or_create(cls, folder: str | Path, name: str = "") -> Library:
        """Open the library in a folder, or make one if the folder is new or empty."""
        if (Path(folder) / HEAD).exists():
            return cls.open(folder)
        return cls.create(folder, name)

    # ------------------------------------------------------------------ changing

    def add(
        self, volume: Volume, marks: Sequence[Mark], *, title: str = "", keep: Keep = "copy"
    ) -> Added:
        """Add a scan with its structures, or structures to the template that the scan is.

        Parameters
        ----------
        volume : Volume
        marks : sequence of Mark
            At least one. A structure marked before is replaced.
        title : str
            Name for the user; by default "template 1", "template 2" ... The scan's file name is
            never taken: it may hold the patient's.
        keep : {"copy", "path", "none"}
            Copy the voxels (nothing of the header) into the library, refer to the file in its
            place, or keep no image: then only features that an engine has kept can serve.

        Returns
        -------
        Added
            With advice: another modality than the rest, an odd orientation, marks that look odd.

        Raises
        ------
        PromptError
            If there is no mark, or two have one name.
        ReadError, WriteError
            If the scan can't be referred to, or the library can't be written. Nothing changed.
        """
        marks = tuple(marks)
        if not marks:
            raise PromptError("mark at least one structure on the scan before adding it")
        check_names(mark.name for mark in marks)
        content = library_images.content_of(volume)
        old = self._entries.get(content[:_ID_LENGTH])
        modality = library_images.guess_modality(volume)
        others = [each for each in self.entries if each is not old]
        notes = [*advice(volume, modality, others), *(n for mark in marks for n in mark.notes)]
        if old is None:
            path = _path_of(volume) if keep == "path" else None
            title = structure_name(title) if title else self._free_title()
            start = Entry(
                content[:_ID_LENGTH],
                content,
                title,
                volume.geometry,
                modality,
                keep,
                path,
                (),
                now(),
            )
        else:
            start = replace(old, title=structure_name(title)) if title else old
        entry = self._write_entry(start, marks, volume, new=old is None)
        return Added(entry, tuple(notes))

    def rename(self, template: str, title: str) -> None:
        """Give a template another title; its id stays."""
        entry = self.entry(template)
        self._save(replace(entry, title=structure_name(title)))

    def rename_structure(self, old: str, new: str, template: str = "") -> int:
        """Rename a structure on one template, or on all; return on how many.

        Raises
        ------
        PromptError
            If no template has it, or one has another structure of the new name already.
        """
        name = structure_name(new)
        entries = [self.entry(template)] if template else list(self.entries)
        changed = []
        for entry in entries:
            stored = entry.structure(old)
            if stored is None:
                continue
            marked = replace(stored, landmarks=Landmarks(name, stored.landmarks.points))
            kept = tuple(marked if s is stored else s for s in entry.structures)
            check_names(s.name for s in kept)
            changed.append(replace(entry, structures=kept))
        if not changed:
            raise PromptError(f"no template has a structure '{old}'")
        for entry in changed:
            self._save(entry)
        return len(changed)

    def remove_structure(self, template: str, structure: str) -> None:
        """Take a structure off a template.

        Raises
        ------
        PromptError
            If it is the template's last; remove the template instead.
        """
        entry = self.entry(template)
        stored = structure_of(entry, structure)
        kept = tuple(s for s in entry.structures if s is not stored)
        if not kept:
            raise PromptError(
                f"'{stored.name}' is the only structure of {entry.title}; remove the template"
            )
        self._save(replace(entry, structures=kept))
        for name in {stored.mask, stored.view} - {""}:
            (self._place(entry.id) / name).unlink(missing_ok=True)

    def remove(self, template: str) -> None:
        """Remove a template: its points, copy of the scan and kept features.

        Raises
        ------
        WriteError
            If the folder can't be changed; then the template stays whole.
        """
        entry = self.entry(template)
        place = self._place(entry.id)
        gone = place.with_name(f".removed-{entry.id}-{uuid.uuid4().hex[:6]}")
        try:
            os.replace(place, gone)  # out of sight in one step: never half a template
        except OSError as error:
            raise WriteError(sentence(error, place.parent), place) from error
        shutil.rmtree(gone, ignore_errors=True)
        del self._entries[entry.id]

    def merge(self, other: Library) -> Merged:
        """Take over the templates of another library; what is here already stays as it is.

        A scan in both gains the structures it lacked here. Features are taken along.
        """
        added, extended, kept = [], [], []
        for theirs in other.entries:
            mine = self._entries.get(theirs.id)
            if mine is None:
                self._take(other, theirs)
                added.append(theirs.id)
                continue
            new = [s for s in theirs.structures if mine.structure(s.name) is None]
            for stored in theirs.structures:
                own = mine.structure(stored.name)
                if own is not None and own.landmarks.points != stored.landmarks.points:
                    kept.append(
                        f"'{own.name}' of {mine.title} is marked otherwise in {other.name}; the "
                        "points of this library stay"
                    )
            if new:
                self._extend(mine, other, new)
                extended.append(mine.id)
        return Merged(tuple(added), tuple(extended), tuple(kept))

    # ------------------------------------------------------------------ what engines keep

    def drop_features(self, which: Callable[[str], bool] | None = None) -> int:
        """Delete kept features whose signature fits (all by default); return the bytes freed."""
        fits = which or (lambda _key: True)
        return sum(self.features(each.id).drop(fits) for each in self.entries)

    # ------------------------------------------------------------------ inside

    def _free_title(self) -> str:
        taken = {each.title.casefold() for each in self.entries}
        number = len(taken) + 1
        while f"template {number}" in taken:
            number += 1
        return f"template {number}"

    def _write_entry(
        self, entry: Entry, marks: Sequence[Mark], volume: Volume, *, new: bool
    ) -> Entry:
        """Write a template and the files of its new structures in one step."""
        place = self._place(entry.id)
        _make_folder(place)
        try:
            with staging(place) as stage:
                stored = [_write_mark(stage, mark, volume) for mark in marks]
                names = {each.name.casefold() for each in stored}
                before = tuple(s for s in entry.structures if s.name.casefold() not in names)
                entry = replace(entry, structures=(*before, *stored))
                if new and entry.keep == "copy":
                    library_images.write_scan(stage, volume)
                (stage / TEMPLATE).write_text(self._text(entry), encoding="utf-8")
        except BaseException:
            if new:
                shutil.rmtree(place, ignore_errors=True)
            raise
        self._entries[entry.id] = entry
        return entry

    def _save(self, entry: Entry) -> None:
        _write_files(self._place(entry.id), {TEMPLATE: self._text(entry)})
        self._entries[entry.id] = entry

    def _text(self, entry: Entry) -> str:
        if entry.path is None:
            return entry_text(entry, None)
        try:
            path = os.path.relpath(entry.path, self._folder.resolve())
        except ValueError:  # another drive on Windows
            path = str(entry.path)
        return entry_text(entry, Path(path).as_posix())

    def _take(self, other: Library, theirs: Entry) -> None:
        """Copy a whole template over."""
        place = self._place(theirs.id)
        _make_folder(place.parent)
        temporary = place.with_name(f".new-{theirs.id}-{uuid.uuid4().hex[:6]}")
        try:
            shutil.copytree(other._place(theirs.id), temporary)
            (temporary / TEMPLATE).write_text(self._text(theirs), encoding="utf-8")
            os.replace(temporary, place)
        except (OSError, shutil.Error) as error:
            reason = error if isinstance(error, OSError) else OSError(str(error))
            raise WriteError(sentence(reason, self._folder), self._folder) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._entries[theirs.id] = theirs

    def _extend(self, mine: Entry, other: Library, new: Sequence[Stored]) -> None:
        """Copy structures of the same scan over."""
        place = self._place(mine.id)
        with staging(place) as stage:
            for name in {f for s in new for f in (s.mask, s.view) if f}:
                source = other._place(mine.id) / name
                if source.is_file():
                    shutil.copyfile(source, stage / name)
            entry = replace(mine, structures=(*mine.structures, *new))
            (stage / TEMPLATE).write_text(self._text(entry), encoding="utf-8")
        self._entries[mine.id] = entry


def _write_mark(stage: Path, mark: Mark, volume: Volume) -> Stored:
    digest = hashlib.blake2b(mark.name.casefold().encode(), digest_size=6).hexdigest()
    mask, view = "", f"view-{digest}.png"
    if mark.mask is not None:
        mask = f"mask-{digest}.npz"
        library_images.write_mask(stage / mask, mark.mask)
    library_images.write_view(stage / view, volume, mark.landmarks)
    return Stored(mark.landmarks, mark.origin, mask, view, now())


def _path_of(volume: Volume) -> Path:
    """Return where a scan lies, if reading that path gives this scan."""
    path = getattr(volume.source, "path", None)
    if path is None:
        raise ReadError(
            f"{volume.name} was not read from a file, so the library can't refer to it; keep a copy"
        )
    from napari_openmedlab.io.api import list_images

    if len(list_images(path)) > 1:
        raise ReadError(
            f"{path} holds several images, so a reference would not say which; keep a copy", path
        )
    return Path(path).resolve()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(sentence(error, folder.parent), folder) from error


def _write_files(folder: Path, texts: dict[str, str]) -> None:
    _make_folder(folder)
    with staging(folder) as stage:
        for name, text in texts.items():
            (stage / name).write_text(text, encoding="utf-8")
