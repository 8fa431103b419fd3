"""A whole cohort, case by case: whatever stops it, the next run goes on where it stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from napari_openmedlab.cohort.cases import Case, find_cases, stamp_of
from napari_openmedlab.cohort.records import CaseRecord
from napari_openmedlab.cohort.results import Job, Results
from napari_openmedlab.cohort.settings import Settings, structures_of
from napari_openmedlab.cohort.signatures import case_signature, job_signature
from napari_openmedlab.cohort.tables import write_tables
from napari_openmedlab.cohort.work import Delivery, Task, work_on, write_masks
from napari_openmedlab.errors import WriteError
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.localisation import Template
from napari_openmedlab.session.workbench import Workbench

__all__ = ["Plan", "Summary", "run_cohort"]

_TABLES_EVERY = 15.0  # seconds between two writings of the tables while a run goes on


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes
    ----------
    folder : Path
        With the scans; one file is a cohort of one.
    out : Path
        Folder for the results; one that holds results already is gone on with.
    templates : sequence of Template
    settings : Settings
    library : Path or None
        Where the templates come from; never searched for scans.
    scheduler : str
        Address of a Dask scheduler; empty: on this machine, one case after the other.
    bench : Workbench or None
        Keeps engines loaded between runs; without one they are released at the end.
    """

    folder: Path
    out: Path
    templates: Sequence[Template]
    settings: Settings
    library: Path | None = None
    scheduler: str = ""
    bench: Workbench | None = None


@dataclass
class Summary:
    """What a run did.

    Attributes
    ----------
    cases : int
        In the cohort.
    done : int
        Worked on now.
    skipped : int
        Finished before, with the same settings.
    kept : int
        Accepted or corrected in the review, so left alone.
    failed : mapping of str to str
        Case to reason, in the order of the list.
    """

    cases: int
    done: int = 0
    skipped: int = 0
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)


OnCase = Callable[[Case, CaseRecord], None]


def run_cohort(
    plan: Plan, monitor: Monitor | None = None, on_case: OnCase | None = None
) -> Summary:
    """Find the structures of the templates in every scan of a folder and segment them there.

    Cases finished with the same scan, templates, settings and weights are skipped; failed ones
    are tried again; accepted and corrected ones are left alone. Memory and disk hold one case at
    a time; the engines are loaded once.

    Parameters
    ----------
    plan : Plan
    monitor : Monitor, optional
        Steps are cases. After a cancel the case at work is left as if it had not begun.
    on_case : callable, optional
        Told of every case as soon as its result is in place, in this thread.

    Raises
    ------
    Cancelled
        After a cancel; what is finished stays.
    WriteError
        If the disk is full or can't be written; what is finished stays, run again to go on.
    ReadError
        If the folder holds no scan.
    SettingsError, EngineError, CheckpointError
        If settings, templates, engines or weights don't fit, before any case is read.
    """
    monitor = monitor or Monitor()
    plan.settings.check()
    structures = structures_of(plan.templates, plan.settings.structures)
    signature = job_signature(plan.settings, plan.templates)
    results = Results(plan.out)
    results.make()
    with results.locked():
        results.remove_leftovers()
        monitor.step(0, 0, "looking for scans")
        aside = [plan.out, *([plan.library] if plan.library else [])]
        cases = find_cases(plan.folder, aside)
        job = Job(plan.folder, plan.library, plan.settings, structures, cases)
        results.begin(job)
        run = _Run(plan, results, job, signature, on_case)
        return run.go(monitor)


class _Run:
    """One run, while it lasts."""

    def __init__(
        self, plan: Plan, results: Results, job: Job, signature: str, on_case: OnCase | None
    ) -> None:
        self._plan = plan
        self._results = results
        self._job = job
        self._signature = signature
        self._on_case = on_case
        self._written = 0.0
        self.summary = Summary(len(job.cases))

    def go(self, monitor: Monitor) -> Summary:
        """Work on all cases that need it."""
        try:
            with contextlib.closing(self._deliveries(self._tasks(monitor), monitor)) as arriving:
                for delivery in arriving:
                    self._take(delivery)
                    monitor.step(self._count, len(self._job.cases), delivery.record.case)
        except WriteError as error:
            with contextlib.suppress(WriteError):
                write_tables(self._results, self._job)
            raise WriteError(
                f"{error}. What is finished stays ({self.summary.done} in this run): run it again "
                "to go on",
                error.path,
            ) from error
        except BaseException:
            with contextlib.suppress(WriteError):
                write_tables(self._results, self._job)
            raise
        write_tables(self._results, self._job)
        return self.summary

    @property
    def _count(self) -> int:
        said = self.summary
        return said.done + said.skipped + said.kept + len(said.failed)

    def _deliveries(
        self, tasks: Iterator[Task], monitor: Monitor
    ) -> Generator[Delivery, None, None]:
        if self._plan.scheduler:
            from napari_openmedlab.cohort.cluster import deliveries

            return deliveries(self._plan.scheduler, tasks, self._plan.templates, monitor)
        return self._local(tasks, monitor)

    def _local(self, tasks: Iterator[Task], monitor: Monitor) -> Generator[Delivery, None, None]:
        """Work on the cases in this thread, one after the other."""
        bench = self._plan.bench or Workbench(limit=1)
        try:
            for task in tasks:
                own = _CaseMonitor(monitor, self._count, len(self._job.cases), task.case.title)
                outcome = work_on(task, self._plan.templates, bench, own)
                write = partial(write_masks, outcome, task.settings)
                yield Delivery(outcome.record, write, outcome.unchanged)
        finally:
            if bench is not self._plan.bench:
                bench.release()

    def _tasks(self, monitor: Monitor) -> Iterator[Task]:
        """Yield what there is to do, one by one; what is finished is counted on the way."""
        for case in self._job.cases:
            monitor.step(self._count, len(self._job.cases), case.title)
            task = self._task(case)
            if task is not None:
                yield task

    def _task(self, case: Case) -> Task | None:
        title = self._job.relative(case.path)
        if case.problem:
            self._take(Delivery(CaseRecord(case.id, title, "failed", case.series, case.problem)))
            return None
        ((_, record, review),) = self._results.rows([case])
        if review.kept and record is not None and record.status == "done":
            self.summary.kept += 1
            return None
        walls = {name: dict(sides) for name, sides in review.walls.items()}
        known = record.signature if record is not None and self._stands(record) else ""
        if known and record is not None and self._same(record, case, walls):
            self.summary.skipped += 1
            return None
        return Task(
            case, self._plan.settings, self._job.structures, self._signature, known, walls, title
        )

    def _stands(self, record: CaseRecord) -> bool:
        """Return whether a result is whole: nothing failed, its files are there."""
        whole = record.status == "done" and all(s.status != "failed" for s in record.structures)
        return whole and all(path.is_file() for path in self._results.masks(record))

    def _same(self, record: CaseRecord, case: Case, walls: Mapping[str, Mapping[str, int]]) -> bool:
        """Return whether a result is what this run would give, without reading the scan."""
        signature = case_signature(self._signature, record.content, walls)
        return (
            signature == record.signature and bool(record.stamp) and record.stamp == stamp_of(case)
        )

    def _take(self, delivery: Delivery) -> None:
        """Put a result in place and count it."""
        record = delivery.record
        if delivery.unchanged:
            old = self._results.record(record.case)
            if old is not None:
                self._results.keep(replace(old, stamp=record.stamp))
            self.summary.skipped += 1
            return
        record = self._results.keep(record, delivery.write if record.status == "done" else None)
        if record.status == "done":
            self.summary.done += 1
        else:
            self.summary.failed[record.case] = record.reason
        case = self._job.case(record.case)
        if self._on_case is not None and case is not None:
            self._on_case(case, record)
        if time.monotonic() - self._written > _TABLES_EVERY:
            write_tables(self._results, self._job)
            self._written = time.monotonic()


class _CaseMonitor(Monitor):
    """Passes on what an engine reports as a step of the whole run, and a cancel to the engine."""

    def __init__(self, whole: Monitor, done: int, total: int, title: str) -> None:
        super().__init__()
        self._whole, self._done, self._total, self._title = whole, done, total, title

    @property
    def cancelled(self) -> bool:
        """Whether a cancel of the whole run was asked for."""
        return self._whole.cancelled

    def step(self, done: int = 0, total: int = 0, text: str = "") -> None:
        """Report what is done in this case and raise after a cancel."""
        self._whole.step(self._done, self._total, f"{self._title}: {text}")
