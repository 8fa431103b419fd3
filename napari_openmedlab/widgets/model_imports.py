"""Files that the user chose or dropped on the Models panel become import jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from qtpy.QtGui import QDropEvent

from napari_openmedlab.errors import OpenMedLabError
from napari_openmedlab.models.catalogue import checkpoints
from napari_openmedlab.models.checkpoints.bundle import is_bundle
from napari_openmedlab.widgets.model_jobs import Job
from napari_openmedlab.widgets.model_sections import WorkSection
from napari_openmedlab.widgets.model_shelf import Shelf, is_plan, title_of

__all__ = ["Importer", "dropped_files"]


class Importer:
    """Turns files into jobs, and asks which network a file is when its content can't tell.

    Parameters
    ----------
    shelf : Shelf
    work : WorkSection
        Where questions are asked and sentences said.
    submit : callable(Job)

    Attributes
    ----------
    awaited : set of str
        Ids of checkpoints whose page was opened and whose file is not here yet.
    """

    def __init__(self, shelf: Shelf, work: WorkSection, submit: Callable[[Job], None]) -> None:
        self._shelf = shelf
        self._work = work
        self._submit = submit
        self.awaited: set[str] = set()

    def take(self, paths: Sequence[Path], selected: str = "") -> None:
        """Import files, one after the other: weights of any published form, or bundles.

        A file whose page was opened from the panel is taken as that checkpoint if its name says
        so, or if it comes alone while the checkpoint's row is selected. The content is checked
        against it all the same.

        Parameters
        ----------
        paths : sequence of Path
        selected : str
            Key of the selected row.
        """
        weights = [path for path in paths if not is_plan(path)]
        if paths and not weights:
            self._work.status.say(
                f"{paths[0].name} is a plan, read with the weights beside it: drop those.", "unsure"
            )
        for path in weights:
            if is_bundle(path):
                self._submit(Job("", "unpacking", path.name, partial(self._shelf.unpack, path)))
            else:
                self._import(path, self._meant(path, selected if len(weights) == 1 else ""))

    def _meant(self, path: Path, selected: str) -> str | None:
        """Return the id of the checkpoint that a file is meant to be, if the user said so."""
        if selected in self.awaited:
            return selected
        named = [spec.id for spec in checkpoints() if spec.file and spec.file == path.name]
        return next((name for name in named if name in self.awaited), None)

    def _import(self, path: Path, as_: str | None) -> None:
        key = as_ if as_ in {spec.id for spec in checkpoints()} else ""
        job = Job(key or "", "importing", path.name, partial(self._shelf.import_file, path, as_))
        job.otherwise = lambda error: self._ask_which(path, error)
        self._submit(job)

    def _ask_which(self, path: Path, error: OpenMedLabError) -> bool:
        """Ask which of several networks of one layout a file is; ``False`` if that is no help."""
        candidates = tuple(getattr(error, "candidates", ()))
        if not candidates:
            return False

        def answered(number: int) -> None:
            if number < len(candidates):
                self._import(path, candidates[number])
            else:
                self._work.status.say(f"{path.name} was not imported.")

        self._work.question.ask(
            f"{path.name} fits more than one network, and its content can't tell which. What is "
            "it?",
            [*map(title_of, candidates), "Don't import"],
            answered,
        )
        return True


def dropped_files(event: QDropEvent) -> list[Path]:
    """Return the local files that are being dragged, folders opened one level."""
    found: list[Path] = []
    for url in event.mimeData().urls():
        if url.isLocalFile():
            path = Path(url.toLocalFile())
            found += sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return found
