"""Training in the Axons panel: a folder of cubes becomes a model, in a program of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QFileDialog,
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLineEdit,
    QSpinBox,
    QVBoxLayout,
)

from napari_openmedlab.errors import OpenMedLabError
from napari_openmedlab.models.checkpoints.records import Record, slug
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.training.axon_plan import AxonTraining, begin_axons
from napari_openmedlab.training.events import Event, Note, Step, Validated
from napari_openmedlab.training.wire import Ended
from napari_openmedlab.widgets.axon_desk import AxonDesk
from napari_openmedlab.widgets.model_jobs import Job, ModelWorker
from napari_openmedlab.widgets.run_follower import RunFollower
from napari_openmedlab.widgets.sections import StatusLine, button, combo
from napari_openmedlab.words import time_text

__all__ = ["AxonTrainingBox"]

_SCRATCH = "Nothing (from scratch)"
_SEVERITY = {"finished": "done", "stopped": "unsure", "failed": "error"}


class AxonTrainingBox(QGroupBox):
    """Trains Axon-Seg on a folder of cubes; the run lies in that folder, named as the model.

    Parameters
    ----------
    desk : AxonDesk
        Its end is that of a training too. Its work is not waited for.
    lacks : callable() -> str
        A sentence on what keeps the network from running here; empty if nothing does.
    """

    def __init__(self, desk: AxonDesk, lacks: Callable[[], str]) -> None:
        super().__init__("Training")
        self._lacks = lacks
        self._held_out = ""
        self._notes: list[str] = []
        self._preparing = False
        self._worker = ModelWorker()
        queued = Qt.ConnectionType.QueuedConnection
        self._worker.finished.connect(self._on_prepared, queued)
        self._worker.failed.connect(self._on_unprepared, queued)
        desk.at_end(self._worker.close)
        self.follower = RunFollower()
        desk.at_end(self.follower.close)
        self.follower.heard.connect(self._on_heard)
        self.follower.ended.connect(self._on_ended)
        self._build()

    def _build(self) -> None:
        self.name = QLineEdit("my axons")
        self.name.setToolTip("What the model shall be called")
        self.start = combo("Weights to start from; the published ones need fewer cubes of yours")
        self.start.addItem(_SCRATCH, "")
        self.iterations = QSpinBox()
        self.iterations.setRange(1, 10**6)
        self.iterations.setValue(AxonTraining.iterations)
        self.iterations.setToolTip("A few thousand are a start; hours on a graphics card")
        self.train = button(
            "Train on a folder…",
            "A folder of training cubes; the same folder and name again go on after a stop",
        )
        self.stop = button("Stop", "Stop after the iteration at hand; what was learnt is kept")
        self.status = StatusLine()
        self.status.say("From five cubes on, one in five is held out to measure with.")
        form = QFormLayout()
        form.addRow("Name", self.name)
        form.addRow("Start from", self.start)
        form.addRow("Iterations", self.iterations)
        row = QHBoxLayout()
        row.addWidget(self.train)
        row.addWidget(self.stop)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addLayout(row)
        layout.addWidget(self.status)
        self.train.clicked.connect(self._on_train)
        self.stop.clicked.connect(self._on_stop)
        self._refresh()

    @property
    def settings(self) -> AxonTraining:
        """What is chosen."""
        return AxonTraining(
            name=self.name.text().strip() or "my axons",
            init=self.start.currentData(),
            iterations=self.iterations.value(),
        )

    def show_models(self, records: Sequence[Record]) -> None:
        """Offer models to start from; the choice stays, if it is still there."""
        chosen = self.start.currentData()
        self.start.clear()
        self.start.addItem(_SCRATCH, "")
        for record in records:
            self.start.addItem(record.name, record.name)
        self.start.setCurrentIndex(max(0, self.start.findData(chosen)))

    def begin(self, folder: Path) -> None:
        """Train on a folder of cubes, or go on with it."""
        if self.busy:
            return
        if lacks := self._lacks():
            self.status.say(lacks, "unsure")
            return
        settings = self.settings
        out = folder / f"training-{slug(settings.name)}"

        def work(_: Monitor) -> str:
            begin_axons(folder, out, settings)
            return str(out)

        self._preparing = True
        self.status.say(f"Reading the cubes in {folder.name}…", "busy")
        self._refresh()
        self._worker.submit(Job("", "preparing", "the training", work))

    @property
    def busy(self) -> bool:
        """Whether a training is prepared or under way."""
        return self._preparing or self.follower.process is not None

    # -- inside ----------------------------------------------------------------------------

    def _on_train(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Folder of training cubes")
        if chosen:
            self.begin(Path(chosen))

    def _on_stop(self) -> None:
        if self.follower.process is not None:
            self.follower.process.cancel()
            self.status.say("Stopping after the iteration at hand…", "busy")

    def _on_unprepared(self, _: Job, error: OpenMedLabError) -> None:
        self._preparing = False
        self.status.say(str(error), "error")
        self._refresh()

    def _on_prepared(self, _: Job, out: str) -> None:
        self._preparing = False
        self._held_out, self._notes = "", []
        self.status.setToolTip("")
        try:
            self.follower.follow(Path(out))
        except OpenMedLabError as error:
            self.status.say(str(error), "error")
        else:
            self.status.say("Starting…", "busy")
        self._refresh()

    def _on_heard(self, event: Event) -> None:
        if isinstance(event, Step):
            self.status.say(
                f"Iteration {event.iteration} of {event.total}, loss {event.loss:.3f}"
                f"{self._held_out}, {time_text(event.left)} left.",
                "busy",
            )
        elif isinstance(event, Validated):
            self._held_out = f", held-out Dice {event.mean:.3f}"
        elif isinstance(event, Note):
            self.status.say(event.text, "busy")
            self._notes.append(event.text)
            self.status.setToolTip("\n".join(self._notes))

    def _on_ended(self, ended: Ended) -> None:
        again = " The same folder and name go on." if ended.how == "stopped" else ""
        self.status.say(f"{ended.text[:1].upper()}{ended.text[1:]}{again}", _SEVERITY[ended.how])
        self._refresh()

    def _refresh(self) -> None:
        for each in (self.train, self.name, self.start, self.iterations):
            each.setEnabled(not self.busy)
        self.stop.setEnabled(self.follower.process is not None)
