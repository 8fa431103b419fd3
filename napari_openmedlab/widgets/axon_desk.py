"""The work behind the Axons panel: previews, plans, runs and exports, one after the other."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari.layers import Layer
from qtpy.QtCore import QObject, Qt, Signal
from qtpy.QtWidgets import QWidget

from napari_openmedlab.axons.convert import convert
from napari_openmedlab.axons.opening import FillGaps, WhichImage, open_or_ask
from napari_openmedlab.axons.plan import Plan, Settings, make_plan
from napari_openmedlab.axons.preview import Preview, box_around, preview
from napari_openmedlab.axons.run import execute
from napari_openmedlab.axons.source import Source, open_source
from napari_openmedlab.axons.store import Results, relabel
from napari_openmedlab.axons.survey import Survey
from napari_openmedlab.bridge.axon_layers import image_of_run
from napari_openmedlab.errors import Cancelled, OpenMedLabError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.io.tiff_slices import Gaps
from napari_openmedlab.models.catalogue import load_engine
from napari_openmedlab.models.contract import Monitor, Progress
from napari_openmedlab.widgets.axon_results import cut_short
from napari_openmedlab.widgets.model_jobs import Job, ModelWorker
from napari_openmedlab.widgets.panel_end import PanelEnd
from napari_openmedlab.widgets.worker_bridge import ActivityEntry

__all__ = ["AxonDesk"]


@dataclass(eq=False)
class _Task(Job):
    """A job with a result, and what is to be done with it in the window's thread.

    After a cancel ``left`` is called there, and says what that leaves.
    """

    then: Callable[[Any], None] = field(default=lambda result: None)
    left: Callable[[], str] = field(default=lambda: "")
    result: Any = None


class AxonDesk(QObject):
    """Does the panel's work in one thread, and says in the window's thread what came of it.

    Attributes
    ----------
    previewed : Signal(Preview, Source, Layer)
        What was found, in which volume, shown by which layer.
    planned : Signal(Plan)
    finished : Signal(Results, Layer or None)
        A run, or results that were opened or given another threshold; and the layer that shows
        the volume they were made in.
    opened : Signal(Source)
    asked : Signal(WhichImage or FillGaps)
        What has to be answered before a volume opens.
    progressed : Signal(Progress)
    busy_changed : Signal(bool)
    said : Signal(str, str)
        A sentence and its severity.
    """

    previewed = Signal(object, object, object)
    planned = Signal(object)
    finished = Signal(object, object)
    opened = Signal(object)
    asked = Signal(object)
    progressed = Signal(object)
    busy_changed = Signal(bool)
    said = Signal(str, str)

    def __init__(self, panel: QWidget) -> None:
        super().__init__(panel)
        self._worker = ModelWorker()
        self.activity = ActivityEntry()
        self._engine: tuple[str, Any] | None = None
        self._survey: tuple[weakref.ref[Any], str, Survey] | None = None
        self._tasks: list[_Task] = []
        queued = Qt.ConnectionType.QueuedConnection
        self._worker.started.connect(self._on_started, queued)
        self._worker.progressed.connect(self._on_progress, queued)
        self._worker.finished.connect(self._on_finished, queued)
        self._worker.failed.connect(self._on_failed, queued)
        self.activity.cancelled.connect(self.cancel)
        self._end = PanelEnd()
        self._end.add(self.activity.end)
        self._end.add(self._worker.close)
        self._end.start(panel)

    @property
    def busy(self) -> bool:
        """Whether something runs or waits."""
        return bool(self._tasks)

    # -- work ------------------------------------------------------------------------------

    def open(self, path: Path, index: int | None = None, gaps: Gaps = "stop") -> None:
        """Open a volume lazily, or ask what :func:`.open_or_ask` asks."""

        def work(_: Monitor) -> tuple[Source | WhichImage | FillGaps, str]:
            found = open_or_ask(path, index=index, gaps=gaps)
            return found, _found_text(found)

        def then(found: Source | WhichImage | FillGaps) -> None:
            (self.opened if isinstance(found, Source) else self.asked).emit(found)

        self._submit("opening", path.name, work, then)

    def convert(self, source: Source, out: Path) -> None:
        """Write a volume as OME-Zarr, or go on with it, and open that."""

        def work(monitor: Monitor) -> tuple[Source, str]:
            written = convert(source, out, monitor)
            return open_source(written), f"Written: {written}"

        kept = "What is written is kept; converting into the same folder goes on."
        self._submit("converting", source.name, work, self.opened.emit, lambda: kept)

    def preview(
        self, source: Source, settings: Settings, where: tuple[float, ...] | Box, image: Layer
    ) -> None:
        """Score the block around a voxel of an image, or a box."""

        def work(monitor: Monitor) -> tuple[Preview, str]:
            engine = self._loaded(settings.engine)
            box = where
            if not isinstance(box, Box):
                box = box_around(source, settings, engine, box)
            known = self._known(source, settings)
            found = preview(source, settings, engine, box, monitor, known)
            array = weakref.ref(source.volume.array)
            self._survey = (array, settings.normalisation, found.survey)
            return found, f"Preview of {' x '.join(map(str, found.box.shape))} voxels in " \
                f"{found.seconds:.1f} s."  # fmt: skip

        def then(found: Preview) -> None:
            self.previewed.emit(found, source, image)

        self._submit("previewing", source.name, work, then)

    def plan(self, source: Source, settings: Settings) -> None:
        """Estimate what a run takes."""

        def work(monitor: Monitor) -> tuple[Plan, str]:
            plan = make_plan(source, settings, self._loaded(settings.engine), monitor)
            return plan, "Estimated from one block."

        self._submit("planning", source.name, work, self.planned.emit)

    def run(self, source: Source, settings: Settings, folder: Path, image: Layer) -> None:
        """Carry out a run in the volume of an image, or what is left of it."""

        def work(monitor: Monitor) -> tuple[Results, str]:
            engine = self._loaded(settings.engine)
            plan = make_plan(source, settings, engine, monitor, timed=False)
            results = execute(plan, folder, engine, monitor)
            voxels = sum(int(facts["voxels"]) for facts in results.done().values())
            return results, f"Done: {voxels / plan.region.size:.2%} of the voxels are axon."

        def then(results: Results) -> None:
            self.finished.emit(results, image)

        kept = "Finished blocks are kept; Run goes on."
        self._submit("finding axons", source.name, work, then, lambda: kept)

    def show(self, folder: Path, shown: Sequence[tuple[Layer, Source]]) -> None:
        """Open the results of a folder, and find their volume among the layers."""

        def work(_: Monitor) -> tuple[tuple[Results, Layer | None], str]:
            results = Results.open(folder)
            done = f"{len(results.done())} of {results.run['blocks']} blocks are done."
            text = f"{done} {cut_short(results)}".strip()
            return (results, image_of_run(results, shown)), text

        self._submit("opening", folder.name, work, lambda found: self.finished.emit(*found))

    def relabel(self, results: Results, threshold: float, image: Layer | None) -> None:
        """Make the labels of results anew."""

        def work(monitor: Monitor) -> tuple[Results, str]:
            made = relabel(results.folder, threshold, monitor)
            return made, f"Labels at the threshold {threshold:g}."

        def then(made: Results) -> None:
            self.finished.emit(made, image)

        def left() -> str:
            found = Results.open(results.folder)
            then(found)  # layers of before would read levels that are gone
            return cut_short(found)

        self._submit("labelling", results.folder.name, work, then, left)

    def export(
        self,
        doing: str,
        work: Callable[[Monitor], tuple[Any, str]],
        then: Callable[[Any], None] = lambda result: None,
    ) -> None:
        """Do other work with results."""
        self._submit(doing, "", work, then)

    def cancel(self) -> None:
        """Stop what runs, at its next step."""
        self._worker.cancel()

    def at_end(self, command: Callable[[], Any]) -> None:
        """Call this as well when the panel ends."""
        self._end.add(command)

    def close(self) -> None:
        """Stop for good."""
        self._end.call()

    # -- inside ----------------------------------------------------------------------------

    def _known(self, source: Source, settings: Settings) -> Survey | None:
        """Return what was found of the volume at the last preview, if it was this one."""
        if self._survey is None:
            return None
        array, mode, found = self._survey
        same = array() is source.volume.array and mode == settings.normalisation
        return found if same else None

    def _loaded(self, engine_id: str) -> Any:
        """Return the engine; the one used last stays loaded. Only in the worker's thread."""
        if self._engine is None or self._engine[0] != engine_id:
            if self._engine is not None:
                self._engine[1].unload()
            self._engine = (engine_id, load_engine(engine_id))
        return self._engine[1]

    def _submit(
        self,
        doing: str,
        title: str,
        work: Callable[[Monitor], tuple[Any, str]],
        then: Callable[[Any], None],
        left: Callable[[], str] = lambda: "",
    ) -> None:
        task = _Task("", doing, title, lambda _: "", then=then, left=left)

        def whole(monitor: Monitor) -> str:
            task.result, text = work(monitor)
            return text

        task.work = whole
        self._tasks.append(task)
        self.busy_changed.emit(True)
        self._worker.submit(task)

    def _on_started(self, task: _Task) -> None:
        self.activity.begin(f"{task.doing} {task.title}".strip())
        self.said.emit(f"{task.doing} {task.title}".strip().capitalize() + "…", "busy")

    def _on_progress(self, task: _Task, progress: Progress) -> None:
        if task in self._tasks:  # napari's progress bar lets events overtake each other
            self.progressed.emit(progress)
            self.activity.report(progress)

    def _on_finished(self, task: _Task, text: str) -> None:
        self._ended(task)
        task.then(task.result)
        self.said.emit(text, "done")

    def _on_failed(self, task: _Task, error: OpenMedLabError) -> None:
        self._ended(task)
        if not isinstance(error, Cancelled):
            self.said.emit(str(error), "error")
            return
        try:
            self.said.emit(f"Cancelled. {task.left()}".strip(), "unsure")
        except OpenMedLabError as broken:
            self.said.emit(str(broken), "error")

    def _ended(self, task: _Task) -> None:
        self._tasks.remove(task)
        if not self._tasks:
            self.activity.end()
            self.busy_changed.emit(False)


def _found_text(found: Source | WhichImage | FillGaps) -> str:
    if isinstance(found, FillGaps):
        return found.text
    if isinstance(found, WhichImage):
        return f"{found.path.name} holds {len(found.found)} images."
    notes = "".join(f" {note[:1].upper()}{note[1:]}." for note in found.volume.notes)
    return f"{found.name}: {' x '.join(map(str, found.shape))} voxels.{notes}"
