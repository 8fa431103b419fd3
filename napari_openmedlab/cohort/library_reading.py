"""The looking side of a template library: its templates, scans, masks and kept features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from napari_openmedlab.cohort import library_images
from napari_openmedlab.cohort.library_features import FolderFeatures
from napari_openmedlab.cohort.library_format import TEMPLATE, Entry, Head, Stored, read_entry
from napari_openmedlab.cohort.marks import Mark, slab_count, slab_landmarks
from napari_openmedlab.errors import PromptError, ReadError
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.localisation import Landmarks, Template

__all__ = ["TEMPLATES", "Shelf", "structure_of"]

TEMPLATES = "templates"
_FEATURES = "features"


class Shelf:
    """Templates in a folder, to be looked at; :class:`~.library.Library` changes them too."""

    def __init__(self, folder: Path, head: Head) -> None:
        self._folder = folder
        self._head = head
        self._entries: dict[str, Entry] = {}
        self._problems: tuple[str, ...] = ()
        self.reload()

    def reload(self) -> None:
        """Read the folder again, after another program changed it."""
        entries, problems = {}, []
        for path in sorted((self._folder / TEMPLATES).glob(f"[!.]*/{TEMPLATE}")):
            try:
                entries[path.parent.name] = read_entry(path, self._folder)
            except ReadError as error:
                problems.append(str(error))
        found = sorted(entries.values(), key=lambda e: (e.created, e.id))
        self._entries = {each.id: each for each in found}
        self._problems = tuple(problems)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._folder

    @property
    def name(self) -> str:
        """Name for the user."""
        return self._head.name

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All templates, the oldest first."""
        return tuple(self._entries.values())

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences on templates that can't be read; they stay as they are on disk."""
        return self._problems

    @property
    def structures(self) -> dict[str, int]:
        """Names of all structures, sorted, and on how many templates each is marked."""
        counts: dict[str, int] = {}
        for entry in self.entries:
            for each in entry.structures:
                counts[each.name] = counts.get(each.name, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: item[0].casefold()))

    def entry(self, template: str) -> Entry:
        """Return a template by its id or title.

        Raises
        ------
        PromptError
            If there is none, or several share the title.
        """
        if template in self._entries:
            return self._entries[template]
        fits = [e for e in self.entries if e.title.casefold() == template.casefold()]
        fits = fits or [e for e in self.entries if len(template) > 3 and e.id.startswith(template)]
        if len(fits) == 1:
            return fits[0]
        known = ", ".join(f"{e.id} ({e.title})" for e in self.entries) or "none yet"
        what = "several templates are" if fits else "there is no template"
        raise PromptError(f"{what} called '{template}' in {self.name}; it has: {known}")

    def templates(
        self, structures: Iterable[str] = (), *, slab_interval: int = 0
    ) -> tuple[Template, ...]:
        """Return the templates as engines take them.

        Parameters
        ----------
        structures : iterable of str
            Only templates with one of these, and only these; empty: all.
        slab_interval : int
            Cut structures into sub-patches along z of so many 3 mm slices (2 as published for
            MedLSAM); they come as structures ``NAME [1/n]`` beside the whole one. 0: don't.

        Raises
        ------
        PromptError
            If a structure is marked on no template.
        """
        wanted = {name.casefold(): name for name in structures}
        known = {name.casefold() for name in self.structures}
        if lost := [name for key, name in wanted.items() if key not in known]:
            raise PromptError(
                f"no template of {self.name} has {', '.join(lost)}; it has "
                f"{', '.join(self.structures) or 'no structures yet'}"
            )
        counts = self._slab_counts(wanted, slab_interval) if slab_interval else {}
        made = []
        for entry in self.entries:
            chosen = [s for s in entry.structures if not wanted or s.name.casefold() in wanted]
            marks = [s.landmarks for s in chosen]
            for stored in chosen:
                if count := counts.get(stored.name.casefold(), 0):
                    mark = self._mark(entry, stored)
                    marks += slab_landmarks(mark, entry.geometry, count)
            if marks:
                made.append(self._template(entry, tuple(marks)))
        return tuple(made)

    def template(self, template: str) -> Template:
        """Return one template with all its structures, by id or title."""
        entry = self.entry(template)
        return self._template(entry, tuple(s.landmarks for s in entry.structures))

    def load(self, template: str) -> Volume:
        """Read a template's scan.

        Raises
        ------
        ReadError
            If the library keeps no image of it, or the scan is gone, damaged or another one.
        """
        entry = self.entry(template)
        if entry.keep == "none":
            raise ReadError(f"the library keeps no image of {entry.title}")
        if entry.keep == "copy":
            folder = self._place(entry.id)
            return library_images.read_scan(folder, entry.geometry, entry.title, entry.modality)
        return _read_in_place(entry)

    def mask(self, template: str, structure: str) -> MaskPatch | None:
        """Return the mask a structure was taken from, if it is kept and whole."""
        entry = self.entry(template)
        stored = structure_of(entry, structure)
        return (
            library_images.read_mask(self._place(entry.id) / stored.mask) if stored.mask else None
        )

    def view(self, template: str, structure: str = "") -> Path | None:
        """Return the PNG with a structure's three slices (the first structure's by default)."""
        entry = self.entry(template)
        chosen = [structure_of(entry, structure)] if structure else list(entry.structures)
        files = [self._place(entry.id) / each.view for each in chosen if each.view]
        return next((path for path in files if path.is_file()), None)

    @property
    def nbytes(self) -> int:
        """Bytes on disk, kept features included."""
        files = (path for path in self._folder.rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files)

    def features(self, template: str) -> FolderFeatures:
        """Return where engines keep what they computed of a template."""
        return FolderFeatures(self._place(self.entry(template).id) / _FEATURES)

    def _place(self, template: str) -> Path:
        return self._folder / TEMPLATES / template

    def _template(self, entry: Entry, structures: tuple[Landmarks, ...]) -> Template:
        load = None if entry.keep == "none" else partial(self.load, entry.id)
        return Template(entry.id, entry.content, structures, load, self.features(entry.id))

    def _mark(self, entry: Entry, stored: Stored) -> Mark:
        return Mark(stored.landmarks, stored.origin, self.mask(entry.id, stored.name))

    def _slab_counts(self, wanted: Iterable[str], interval: int) -> dict[str, int]:
        keys = set(wanted) or {name.casefold() for name in self.structures}
        counts = {}
        for key in keys:
            pairs = [(e, s) for e in self.entries if (s := e.structure(key)) is not None]
            counts[key] = slab_count([self._mark(e, s) for e, s in pairs], interval)
        return counts


def structure_of(entry: Entry, name: str) -> Stored:
    """Return a structure of a template, or raise :class:`PromptError` naming those it has."""
    stored = entry.structure(name)
    if stored is None:
        known = ", ".join(s.name for s in entry.structures)
        raise PromptError(f"{entry.title} has no structure '{name}'; it has: {known}")
    return stored


def _read_in_place(entry: Entry) -> Volume:
    from napari_openmedlab.io.api import read

    assert entry.path is not None
    try:
        volume = read(entry.path)
    except ReadError as error:
        raise ReadError(
            f"the scan of {entry.title} can't be read in its place: {error}", entry.path
        ) from error
    if library_images.content_of(volume) != entry.content:
        raise ReadError(
            f"{entry.path} is no longer the scan that {entry.title} was marked on; "
            "restore it, or mark the template anew",
            entry.path,
        )
    return replace(volume, name=entry.title)
