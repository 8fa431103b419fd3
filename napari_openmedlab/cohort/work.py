"""One case: read, find, segment inside each box, and the masks as files."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from napari_openmedlab.cohort.cases import Case, read_case, stamp_of
from napari_openmedlab.cohort.handing_over import (
    cut,
    handed_box,
    prompts_for,
    with_locked_walls,
)
from napari_openmedlab.cohort.library_images import content_of
from napari_openmedlab.cohort.records import CaseRecord, StructureRecord
from napari_openmedlab.cohort.settings import Settings
from napari_openmedlab.cohort.signatures import case_signature
from napari_openmedlab.cohort.sub_patches import assembled, slabs_of
from napari_openmedlab.errors import Cancelled, EngineError, OpenMedLabError
from napari_openmedlab.evaluation.metrics import volume_of
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.localisation import Found, Localisation, Template
from napari_openmedlab.session.objects import EngineChoice, plain_values
from napari_openmedlab.session.session import Session
from napari_openmedlab.session.workbench import Workbench, run_once

__all__ = ["MASKS", "Delivery", "Outcome", "Task", "locate", "work_on", "write_masks"]

logger = logging.getLogger(__name__)

MASKS = "masks.nii.gz"


@dataclass(frozen=True)
class Task:
    """All that is needed to work on one case, besides the templates.

    Attributes
    ----------
    case : Case
    settings : Settings
    structures : tuple of str
        In the order of their label values, from 1.
    job : str
        Signature of the whole run.
    known : str
        Signature of the result that is there already; empty for none.
    walls : mapping
        Walls set by hand, by structure.
    title : str
        The scan's path as the record keeps it.
    """

    case: Case
    settings: Settings
    structures: tuple[str, ...]
    job: str
    known: str = ""
    walls: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came out of a case.

    Attributes
    ----------
    record : CaseRecord
        Without the names of files.
    session : Session or None
        Objects and labels to be written; ``None`` for boxes only, a failed case, and one whose
        result is there already.
    unchanged : bool
        The result that is there already stands.
    """

    record: CaseRecord
    session: Session | None = None
    unchanged: bool = False


@dataclass(frozen=True)
class Delivery:
    """A case as it comes from where it was worked on.

    Attributes
    ----------
    record : CaseRecord
    write : callable or None
        Writes its files into a folder and returns their names.
    unchanged : bool
        The result that is there already stands; only the scan's files look new.
    """

    record: CaseRecord
    write: Callable[[Path], Sequence[str]] | None = None
    unchanged: bool = False


def work_on(
    task: Task, templates: Sequence[Template], bench: Workbench, monitor: Monitor
) -> Outcome:
    """Work on one case. Whatever is wrong with it is in the record; nothing stops the others.

    Raises
    ------
    Cancelled
        After a cancel; only this passes.
    """
    began = time.monotonic()
    try:
        outcome = _worked(task, templates, bench, monitor)
    except Cancelled:
        raise
    except MemoryError:
        reason = "the scan needs more memory than is free; close other programs and run again"
        outcome = Outcome(_failed(task, reason))
    except OpenMedLabError as error:
        outcome = Outcome(_failed(task, str(error)))
    except Exception as error:
        logger.exception("case '%s' failed", task.case.id)
        outcome = Outcome(_failed(task, f"internal error: {type(error).__name__}: {error}"))
    finally:
        bench.drop_prepared()
    seconds = round(time.monotonic() - began, 3)
    return replace(outcome, record=replace(outcome.record, seconds=seconds))


def _failed(task: Task, reason: str) -> CaseRecord:
    return CaseRecord(task.case.id, task.title, "failed", task.case.series, reason)


def _worked(
    task: Task, templates: Sequence[Template], bench: Workbench, monitor: Monitor
) -> Outcome:
    monitor.step(0, 0, "reading")
    stamp = stamp_of(task.case)
    volume = read_case(task.case)
    monitor.step(0, 0, "looking for changes")
    content = content_of(volume)
    signature = case_signature(task.job, content, task.walls)
    record = CaseRecord(
        task.case.id, task.title, "done", task.case.series,
        signature=signature, job=task.job, content=content, stamp=stamp, geometry=volume.geometry,
    )  # fmt: skip
    if signature == task.known:
        return Outcome(record, unchanged=True)
    answer = locate(volume, templates, task.settings, task.structures, (bench, monitor))
    found = [
        with_locked_walls(each, task.walls.get(each.name, {}), volume.geometry.shape)
        for each in answer.found
    ]
    record = replace(
        record,
        notes=(*volume.notes, *_own_template(content, templates), *answer.notes),
        localizer=plain_values(answer.provenance),
        structures=tuple(_row(each, task.structures) for each in found),
    )
    if not task.settings.engine:
        return Outcome(record)
    return _segmented(record, found, volume, task.settings, (bench, monitor))


def _own_template(content: str, templates: Sequence[Template]) -> tuple[str, ...]:
    """Return a note if the scan is a template: its boxes say nothing about other scans."""
    same = [each.id for each in templates if each.content == content]
    return (f"this scan is template {same[0]} itself",) if same else ()


def locate(
    volume: Volume,
    templates: Sequence[Template],
    settings: Settings,
    structures: Sequence[str],
    at_work: tuple[Workbench, Monitor],
) -> Localisation:
    """Find structures in a volume with the localizer of the settings.

    Raises
    ------
    EngineError
        If the localizer fails, or answers with something else than was asked.
    """
    bench, monitor = at_work
    name = settings.localizer
    options = get_spec(name).check_options(settings.localizer_options)
    monitor.step(0, 0, "finding structures")
    asked = tuple(each for s in structures for each in (s, *slabs_of(s, templates)))
    answer = bench.use(
        name,
        "locate",
        lambda engine: engine.locate(volume, templates, options, monitor, asked),
    )
    if not isinstance(answer, Localisation) or [f.name for f in answer.found] != list(asked):
        raise EngineError(
            f"engine '{name}' did not answer for the structures asked for",
            engine=name,
            stage="locate",
        )
    for each in answer.found:
        if each.found and each.box.clip(volume.geometry.shape) != each.box:
            raise EngineError(
                f"engine '{name}' found '{each.name}' in {each.box}, which reaches beyond the scan",
                engine=name,
                stage="locate",
            )
    return replace(answer, found=assembled(answer.found, structures))


def _row(found: Found, structures: Sequence[str]) -> StructureRecord:
    there = found.found and not found.box.is_empty
    return StructureRecord(
        name=found.name,
        value=list(structures).index(found.name) + 1,
        status="boxed" if there else "not found",
        box=found.box if there else StructureRecord("", 0, "boxed").box,
        confidence=round(float(found.confidence), 4) if there else 0.0,
        points=found.points,
        parts=found.parts if there else (),
        templates=found.templates,
        checks={name: round(float(value), 4) for name, value in found.checks.items()},
        notes=found.notes,
    )


def _segmented(
    record: CaseRecord,
    found: Sequence[Found],
    volume: Volume,
    settings: Settings,
    at_work: tuple[Workbench, Monitor],
) -> Outcome:
    """Segment inside each box, the most certain first: it keeps what two of them want."""
    session = Session(volume)
    session.choice = EngineChoice(settings.engine, settings.engine_options)
    for row in record.structures:
        session.add_object(row.name)
    by_name = {each.name: each for each in found}
    order = sorted(record.structures, key=lambda row: (-row.confidence, row.value))
    for row in order:
        if row.found:
            record = record.with_structure(
                _segment_one(session, row, by_name[row.name], settings, at_work)
            )
    said = {}
    for made in session.objects:
        said.update({k: v for k, v in made.provenance.items() if k not in said})
    rows = tuple(
        replace(row, voxels=session.get(row.value).voxels, volume_ml=_ml(session, row.value))
        if row.status == "segmented"
        else row
        for row in record.structures
    )
    return Outcome(replace(record, structures=rows, engine=said), session)


def _segment_one(
    session: Session,
    row: StructureRecord,
    found: Found,
    settings: Settings,
    at_work: tuple[Workbench, Monitor],
) -> StructureRecord:
    bench, monitor = at_work
    grid = session.volume.geometry
    monitor.step(0, 0, f"segmenting {row.name}")
    row = replace(row, engine=settings.engine)
    try:
        session.set_active(row.value)
        session.set_prompts(prompts_for(found, grid, settings), row.value)
        request = session.request(row.value)
        answer = run_once(settings.engine, session.volume, request, monitor, bench=bench)
        limit = handed_box(found.box, grid, settings.margin_mm)
        session.apply(cut(answer, limit), request, row.value)
    except Cancelled:
        raise
    except (OpenMedLabError, MemoryError) as error:
        return replace(row, status="failed", reason=str(error) or "not enough memory")
    made = session.get(row.value)
    return replace(
        row,
        status="segmented" if made.voxels else "empty",
        score=None if math.isnan(made.score) else round(made.score, 4),
        seconds=round(made.seconds, 3),
        notes=(*row.notes, *made.notes),
        checkpoint=str(made.provenance.get("weights_sha256", "")),
    )


def _ml(session: Session, value: int) -> float | None:
    voxels, grid = session.get(value).voxels, session.volume.geometry
    amount, unit = volume_of(voxels, grid)
    return round(amount, 4) if unit == "ml" else None


def write_masks(outcome: Outcome, settings: Settings, folder: Path) -> tuple[str, ...]:
    """Write the masks of a case into a folder, on the grid of its file; return the names.

    Nothing is written where no structure has a voxel.

    Raises
    ------
    WriteError
        If it can't be written.
    """
    from napari_openmedlab.session.export import export

    session = outcome.session
    if session is None or not any(made.voxels for made in session.objects):
        return ()
    written = export(session, folder / MASKS, one_file_per_object=settings.one_file_per_structure)
    return tuple(path.name for path in written)
