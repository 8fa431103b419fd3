"""The folder of a cohort's results: one folder a case, so that work can stop and go on anywhere.

``cohort.json`` (what was asked), ``cohort.csv`` and ``boxes.json`` (all cases), and in
``cases/NAME/`` the masks, ``case.json`` (the result) and ``review.json`` (the reviewer's word).
Every file is written whole or not at all. A case counts as done when its ``case.json`` is there,
which is written last.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from napari_openmedlab import __version__
from napari_openmedlab.cohort.cases import JOB_FILE, Case
from napari_openmedlab.cohort.records import CaseRecord, Review
from napari_openmedlab.cohort.settings import Settings
from napari_openmedlab.errors import ReadError, WriteError
from napari_openmedlab.io.atomic import sentence, staging

__all__ = ["Job", "Results", "write_text"]

logger = logging.getLogger(__name__)

_FORMAT = "napari-openmedlab cohort"
_RECORD, _REVIEW, _LOCK = "case.json", "review.json", ".openmedlab-cohort.lock"


@dataclass(frozen=True)
class Job:
    """What a cohort was asked for.

    Attributes
    ----------
    folder : Path
        Where the scans lie.
    library : Path or None
        Where the templates lie.
    settings : Settings
    structures : tuple of str
        In the order of their label values, from 1.
    cases : tuple of Case
    """

    folder: Path
    library: Path | None
    settings: Settings
    structures: tuple[str, ...]
    cases: tuple[Case, ...] = ()

    def case(self, case_id: str) -> Case | None:
        """Return the case of this id."""
        return next((case for case in self.cases if case.id == case_id), None)

    def relative(self, path: Path) -> str:
        """Return a path as it is kept: below the folder of the scans where it lies there."""
        root = self.folder if self.folder.is_dir() else self.folder.parent
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


class Results:
    """Reads and writes one folder of results.

    Parameters
    ----------
    folder : path
        Need not be there before :meth:`make`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    # -- the job ---------------------------------------------------------------------------

    def make(self) -> None:
        """Make the folder.

        Raises
        ------
        WriteError
            If it can't be made.
        ReadError
            If it holds a ``cohort.json`` that is not ours, or of a newer version: it would be
            overwritten.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(sentence(error, self.folder.parent), self.folder) from error
        if (self.folder / JOB_FILE).exists():
            self.job()

    def begin(self, job: Job) -> None:
        """Write down what is asked for.

        Raises
        ------
        WriteError
            If it can't be written.
        """
        values = {
            "format": _FORMAT,
            "version": 1,
            "software": __version__,
            "folder": str(job.folder.resolve()),
            "library": None if job.library is None else str(job.library.resolve()),
            "settings": job.settings.as_json(),
            "structures": list(job.structures),
            "cases": [
                {
                    "id": case.id,
                    "path": job.relative(case.path),
                    "series": case.series,
                    "title": case.title,
                    "problem": case.problem,
                }
                for case in job.cases
            ],
        }
        write_text(self.folder / JOB_FILE, json.dumps(values, indent=1, ensure_ascii=False))

    def job(self) -> Job:
        """Return what was asked for.

        Raises
        ------
        ReadError
            If the folder holds no results of a cohort, they are damaged, or of a newer version.
        """
        path = self.folder / JOB_FILE
        values = _load(path)
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise ReadError(
                f"{self.folder} holds no results of a cohort; choose the folder a cohort was "
                "written to",
                path,
            )
        if values.get("version") != 1:
            raise ReadError(
                f"{path} was written by a newer version of napari-openmedlab; update it here", path
            )
        try:
            folder = Path(values["folder"])
            root = folder if folder.suffix == "" or folder.is_dir() else folder.parent
            library = values["library"]
            return Job(
                folder,
                None if library is None else Path(library),
                Settings.from_json(values["settings"]),
                tuple(values["structures"]),
                tuple(_case_from_json(each, root) for each in values["cases"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ReadError(f"{path} is damaged: {error}", path) from error

    def locked(self) -> AbstractContextManager[None]:
        """Keep a second run out of this folder while the block runs."""
        from napari_openmedlab.models.checkpoints.locks import locked

        return locked(
            self.folder / _LOCK,
            f"another run is writing to {self.folder}; wait for it or choose another folder",
        )

    # -- one case --------------------------------------------------------------------------

    def case_folder(self, case_id: str) -> Path:
        """Return where the files of a case lie."""
        return self.folder / "cases" / case_id

    def record(self, case_id: str) -> CaseRecord | None:
        """Return the result of a case; ``None`` if there is none yet.

        Raises
        ------
        ReadError
            If it is damaged or of a newer version.
        """
        path = self.case_folder(case_id) / _RECORD
        if not path.exists():
            return None
        return CaseRecord.from_json(_load(path), str(path))

    def review(self, case_id: str) -> Review:
        """Return what the reviewer made of a case; a damaged note is an error, not "pending".

        Raises
        ------
        ReadError
            If it can't be read.
        """
        path = self.case_folder(case_id) / _REVIEW
        return Review.from_json(_load(path), str(path)) if path.exists() else Review()

    def keep_review(self, case_id: str, review: Review) -> None:
        """Write down what the reviewer made of a case, at once.

        Raises
        ------
        WriteError
            If it can't be written; the old note stays.
        """
        folder = self._made(case_id)
        write_text(folder / _REVIEW, json.dumps(review.as_json(), indent=1, ensure_ascii=False))

    def keep(
        self, record: CaseRecord, write: Callable[[Path], Sequence[str]] | None = None
    ) -> CaseRecord:
        """Put the result of a case in place.

        Parameters
        ----------
        record : CaseRecord
        write : callable, optional
            Writes the masks into the folder it is given and returns their names. Without it the
            files named in the record stay as they are.

        Returns
        -------
        CaseRecord
            With the names of its files.

        Raises
        ------
        WriteError
            If the disk is full or can't be written. Without its record the case counts as not
            done, so nothing false stands.
        """
        folder = self._made(record.case)
        before = self._files_before(record.case)
        if record.status == "failed":
            record = replace(record, files=before)  # masks of an earlier run are not thrown away
        if write is not None:
            with staging(folder) as staged:
                record = replace(record, files=tuple(write(staged)))
                # From here on until the new record stands, the case counts as not done.
                (folder / _RECORD).unlink(missing_ok=True)
        text = json.dumps(record.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_text(folder / _RECORD, text)
        for name in set(before) - set(record.files):
            (folder / name).unlink(missing_ok=True)
        return record

    def masks(self, record: CaseRecord) -> tuple[Path, ...]:
        """Return the mask files of a case, without their sidecars."""
        folder = self.case_folder(record.case)
        return tuple(folder / name for name in record.files if not name.endswith(".json"))

    def remove_leftovers(self) -> None:
        """Delete what a run that was killed left half written."""
        import shutil

        for path in (
            *self.folder.glob(".openmedlab-*.tmp"),
            *self.folder.glob("cases/*/.open*.tmp"),
        ):
            shutil.rmtree(path, ignore_errors=True)

    def rows(self, cases: Sequence[Case]) -> Iterator[tuple[Case, CaseRecord | None, Review]]:
        """Yield each case with its result and review; damaged notes count as missing."""
        for case in cases:
            yield case, self._tolerant(self.record, case.id), self._review_or_pending(case.id)

    def _review_or_pending(self, case_id: str) -> Review:
        return self._tolerant(self.review, case_id) or Review()

    def _tolerant(self, read: Callable[[str], Any], case_id: str) -> Any:
        try:
            return read(case_id)
        except ReadError as error:
            logger.warning("%s", error)
            return None

    def _files_before(self, case_id: str) -> tuple[str, ...]:
        old = self._tolerant(self.record, case_id)
        return () if old is None else tuple(name for name in old.files if Path(name).name == name)

    def _made(self, case_id: str) -> Path:
        folder = self.case_folder(case_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(sentence(error, self.folder), folder) from error
        return folder


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole or not at all.

    Raises
    ------
    WriteError
        If it can't be written; the old file stays.
    """
    with staging(path.parent) as folder:
        (folder / path.name).write_text(text, encoding="utf-8")
    return path


def _case_from_json(values: Mapping[str, Any], root: Path) -> Case:
    return Case(
        id=str(values["id"]),
        path=root / str(values["path"]),
        series=values["series"],
        title=str(values["title"]),
        problem=str(values["problem"]),
    )


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReadError(f"{path} can't be read: {error.strerror or error}", path) from error
    except ValueError as error:
        raise ReadError(f"{path} is damaged: {error}", path) from error
