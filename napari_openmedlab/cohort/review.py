"""Looking through a cohort: the least certain case first, every word kept at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.cohort.cases import Case, read_case
from napari_openmedlab.cohort.handing_over import with_locked_walls
from napari_openmedlab.cohort.library import Added, Library
from napari_openmedlab.cohort.marks import Mark, mark_from_mask
from napari_openmedlab.cohort.records import CaseRecord, Review, ReviewState, StructureRecord
from napari_openmedlab.cohort.results import Job, Results
from napari_openmedlab.cohort.signatures import case_signature
from napari_openmedlab.cohort.tables import write_tables
from napari_openmedlab.cohort.work import MASKS
from napari_openmedlab.errors import ReadError, SessionError
from napari_openmedlab.evaluation.metrics import volume_of
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.io.sidecar import LabelInfo
from napari_openmedlab.models.localisation import WALLS, Found
from napari_openmedlab.session.objects import SegmentObject, distinct_colour

__all__ = ["Corrected", "Reviewer", "Row"]


@dataclass(frozen=True, eq=False)
class Row:
    """A case with all that is known of it."""

    case: Case
    record: CaseRecord | None
    review: Review

    @property
    def status(self) -> str:
        """``pending`` (not worked on yet), ``failed``, or what the reviewer said of it."""
        if self.record is None:
            return "failed" if self.case.problem else "waiting"
        return "failed" if self.record.status == "failed" else self.review.state

    @property
    def certainty(self) -> float:
        """That of the least certain structure."""
        return 0.0 if self.record is None else self.record.certainty

    @property
    def reason(self) -> str:
        """Why it failed."""
        return self.case.problem or ("" if self.record is None else self.record.reason)


@dataclass(frozen=True, eq=False)
class Corrected:
    """Masks of a case as they stand in a session, taken off it so that it may go on.

    Attributes
    ----------
    labels : ndarray of uint16, shape (z, y, x)
    objects : tuple of SegmentObject
    changed : tuple of str
        Structures whose mask or box was changed in the review.
    """

    labels: NDArray[np.uint16]
    objects: tuple[SegmentObject, ...]
    changed: tuple[str, ...] = ()


class Reviewer:
    """Goes through the results in a folder.

    Parameters
    ----------
    folder : path
        Of :func:`.run_cohort`.

    Raises
    ------
    ReadError
        If it holds no results of a cohort.
    """

    def __init__(self, folder: str | Path) -> None:
        self.results = Results(folder)
        self.job: Job = self.results.job()
        self._rows: dict[str, Row] | None = None

    def reload(self) -> None:
        """Read everything again, after another run."""
        self.job = self.results.job()
        self._rows = None

    # -- looking ---------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Return all cases in the order of the list, as they were read last."""
        if self._rows is None:
            self._rows = {row[0].id: Row(*row) for row in self.results.rows(self.job.cases)}
        return list(self._rows.values())

    def row(self, case_id: str) -> Row:
        """Read one case anew.

        Raises
        ------
        SessionError
            If there is no such case.
        """
        case = self.job.case(case_id)
        if case is None:
            raise SessionError(f"the cohort has no case '{case_id}'")
        found = next(Row(*each) for each in self.results.rows([case]))
        if self._rows is not None:
            self._rows[case_id] = found
        return found

    def queue(self) -> list[str]:
        """Return the cases that wait for a word: the least certain first, skipped ones last."""
        waiting = [r for r in self.rows() if r.status in ("pending", "skipped")]
        waiting.sort(key=lambda r: (r.status == "skipped", r.certainty, -_lost(r)))
        return [row.case.id for row in waiting]

    def following(self, case_id: str | None = None) -> str | None:
        """Return the case to look at after this one; ``None`` if none waits."""
        waiting = [each for each in self.queue() if each != case_id]
        return waiting[0] if waiting else None

    def open(self, case_id: str) -> tuple[Volume, NDArray[np.uint16], dict[int, LabelInfo]]:
        """Return the scan of a case, its masks as one label map, and names and colours.

        Raises
        ------
        ReadError
            If the scan or a mask can't be read, or the scan is not the one that was worked on.
        """
        row = self.row(case_id)
        record = row.record
        if record is None or record.status == "failed" or record.geometry is None:
            raise ReadError(row.reason or f"case '{case_id}' was not worked on yet")
        volume = read_case(row.case)
        if difference := record.geometry.difference(volume.geometry):
            raise ReadError(
                f"{row.case.title} is no longer the scan that was worked on: {difference}; run "
                "the cohort again"
            )
        labels = np.zeros(volume.geometry.shape, np.uint16)
        for path in self.results.masks(record):
            self._add_masks(labels, path, volume, record)
        objects = {s.value: LabelInfo(s.name, distinct_colour(s.value)) for s in record.structures}
        return volume, labels, objects

    def _add_masks(
        self, labels: NDArray[np.uint16], path: Path, volume: Volume, record: CaseRecord
    ) -> None:
        from napari_openmedlab.io.api import read_labels

        found, objects = read_labels(path, like=volume)
        array = np.asarray(found.array)
        for value, info in objects.items():
            row = record.structure(info.name)
            if row is not None:
                labels[(array == value) & (labels == 0)] = row.value

    # -- the reviewer's word ---------------------------------------------------------------

    def say(self, case_id: str, state: ReviewState) -> None:
        """Accept, reject, skip or take back; kept at once.

        Raises
        ------
        WriteError
            If it can't be written; the old word stays.
        """
        self.results.keep_review(case_id, replace(self.results.review(case_id), state=state))
        self.row(case_id)

    def set_box(self, case_id: str, structure: str, walls: Mapping[str, int]) -> StructureRecord:
        """Put walls of a structure where the reviewer wants them; they are locked from now on.

        Parameters
        ----------
        case_id, structure : str
        walls : mapping of str to int
            Wall (see ``WALLS``) to voxel boundary, of those that were moved.

        Returns
        -------
        StructureRecord
            With its new box.

        Raises
        ------
        SessionError
            If there is no such structure, or a wall of no structure.
        WriteError
            If it can't be written.
        """
        record = self._record(case_id)
        row = record.structure(structure)
        if row is None or set(walls) - set(WALLS):
            raise SessionError(f"case '{case_id}' has no structure '{structure}', or no such wall")
        review = self.results.review(case_id)
        held = {**review.walls.get(structure, {}), **{w: int(v) for w, v in walls.items()}}
        grid = record.geometry
        assert grid is not None
        found = Found(row.name, row.box, row.points, row.confidence, row.found, parts=row.parts)  # type: ignore[arg-type]
        moved = with_locked_walls(found, held, grid.shape)
        status = row.status if moved.box.is_empty or row.status != "not found" else "boxed"
        changed = replace(
            row, box=moved.box, parts=moved.parts, confidence=moved.confidence, status=status
        )
        walls_now = {**review.walls, structure: held}
        self.results.keep_review(case_id, replace(review, walls=walls_now))
        self.results.keep(record.with_structure(changed))
        self.row(case_id)
        return changed

    def keep_masks(self, case_id: str, volume: Volume, masks: Corrected) -> CaseRecord:
        """Write corrected masks in the place of the old ones, on the grid of the scan's file.

        Raises
        ------
        WriteError
            If they can't be written.
        """
        from napari_openmedlab.io.api import write

        record = self._record(case_id)
        review = self.results.review(case_id)
        by_id = {made.id: made for made in masks.objects}
        rows = tuple(_as_made(s, by_id, volume, masks.changed) for s in record.structures)
        walls = {name: dict(sides) for name, sides in review.walls.items()}
        signature = case_signature(record.job, record.content, walls)
        record = replace(record, structures=rows, signature=signature)
        named = {
            s.value: LabelInfo(s.name, by_id[s.value].colour) for s in rows if s.value in by_id
        }
        extra = {n: LabelInfo(o.name, o.colour) for n, o in by_id.items() if n not in named}
        shown = {n: i for n, i in {**named, **extra}.items() if by_id[n].voxels}

        def put(folder: Path) -> tuple[str, ...]:
            if not shown:
                return ()
            written = write(
                folder / MASKS,
                masks.labels,
                volume,
                objects=shown,
                provenance={"reviewed": True, "corrected": list(masks.changed)},
                one_file_per_object=self.job.settings.one_file_per_structure,
            )
            return tuple(path.name for path in written)

        kept = self.results.keep(record, put)
        corrected = tuple(dict.fromkeys((*review.corrected, *masks.changed)))
        self.results.keep_review(case_id, replace(review, corrected=corrected))
        self.row(case_id)
        return kept

    def export(self) -> tuple[Path, ...]:
        """Write ``cohort.csv`` and ``boxes.json`` anew; return their paths.

        Raises
        ------
        WriteError
            If they can't be written.
        """
        from napari_openmedlab.cohort.tables import BOXES, TABLE

        write_tables(self.results, self.job)
        return self.results.folder / TABLE, self.results.folder / BOXES

    # -- what accepted cases are good for --------------------------------------------------

    def to_template(self, case_id: str, library: Library) -> Added:
        """Add a case with all its masks to a template library.

        Raises
        ------
        SessionError
            If no structure of the case has a mask.
        """
        volume, labels, objects = self.open(case_id)
        marks: list[Mark] = []
        for value, info in objects.items():
            patch = MaskPatch.of(labels == value)
            if not patch.is_empty:
                marks.append(mark_from_mask(info.name, patch, volume.geometry))
        if not marks:
            raise SessionError(f"case '{case_id}' has no mask to make a template of")
        return library.add(volume, marks)

    def _record(self, case_id: str) -> CaseRecord:
        record = self.results.record(case_id)
        if record is None or record.status == "failed" or record.geometry is None:
            raise SessionError(f"case '{case_id}' has no result to be changed")
        return record


def _lost(row: Row) -> int:
    return 0 if row.record is None else len(row.record.structures) - row.record.found


def _as_made(
    row: StructureRecord,
    objects: Mapping[int, SegmentObject],
    volume: Volume,
    changed: tuple[str, ...],
) -> StructureRecord:
    """Return what is known of a structure after the review."""
    made = objects.get(row.value)
    voxels = 0 if made is None else made.voxels
    amount, unit = volume_of(voxels, volume.geometry)
    status: Any = "segmented" if voxels else ("empty" if row.found else "not found")
    row = replace(
        row, voxels=voxels, volume_ml=round(amount, 4) if unit == "ml" else None, status=status
    )
    if made is None or row.name not in changed:
        return row
    return replace(
        row,
        score=None if math.isnan(made.score) else round(made.score, 4),
        engine=made.engine or "by hand",
        notes=tuple(made.notes),
        seconds=round(made.seconds, 3),
        checkpoint=str(made.provenance.get("weights_sha256", "")),
        reason="",
    )
