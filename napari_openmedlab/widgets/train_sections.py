"""The parts of the Train panel: inputs and buttons with their tooltips, no behaviour."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QFileDialog,
    QFormLayout,
    QGridLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_openmedlab.widgets.engine_inputs import ChoiceInput
from napari_openmedlab.widgets.sections import StatusLine, button, combo, wrapped_label
from napari_openmedlab.widgets.train_plot import TrainPlot
from napari_openmedlab.widgets.train_tables import CaseTable, ClassTable

__all__ = ["CaseSection", "ModelSection", "RunSection", "SourceSection"]

LAYERS, FOLDERS, UNLABELLED = "layers", "folders", "unlabelled"
BY_ITSELF, NOTHING, TICKED = "auto", "none", "ticked"
_TIMES = (
    ("As long as it takes (by the number of cases)", 0),
    ("100 iterations, a first try", 100),
    ("500 iterations", 500),
    ("1000 iterations", 1000),
    ("3000 iterations", 3000),
    ("6000 iterations, as published", 6000),
    ("Another number", -1),
)


class FolderInput(QWidget):
    """A line with a path and a button that asks for one.

    Attributes
    ----------
    changed : Signal()
    """

    changed = Signal()

    def __init__(self, tooltip: str, *, files: bool = False) -> None:
        super().__init__()
        self.line = QLineEdit()
        self.line.setToolTip(tooltip)
        self.pick = button("…", "Choose a folder")
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.line, 1)
        row.addWidget(self.pick)
        self.list = button("List…", "Choose a JSON or CSV file that lists scans and labels")
        self.list.setVisible(files)
        row.addWidget(self.list)
        self.pick.clicked.connect(lambda _=False: self._ask_folder())
        self.list.clicked.connect(lambda _=False: self._ask_file())
        self.line.textChanged.connect(lambda _: self.changed.emit())

    def path(self) -> Path | None:
        """Return what is entered."""
        text = self.line.text().strip()
        return Path(text).expanduser() if text else None

    def _ask_folder(self) -> None:
        if found := QFileDialog.getExistingDirectory(self, "Folder", self.line.text()):
            self.line.setText(found)

    def _ask_file(self) -> None:
        found, _ = QFileDialog.getOpenFileName(
            self, "List of cases", self.line.text(), "Lists (*.json *.csv);;All files (*)"
        )
        if found:
            self.line.setText(found)


class SourceSection(QGroupBox):
    """Where labelled scans come from."""

    def __init__(self) -> None:
        super().__init__("Learn from")
        self.choice = combo("Scans that are open here with their labels, or files")
        self.choice.addItem("Labelled layers open now", LAYERS)
        self.choice.addItem("Folders of scans and labels", FOLDERS)
        self.choice.addItem("Scans without labels (pre-train overnight)", UNLABELLED)
        self.images = FolderInput("Folder of scans, or a list (JSON, CSV)", files=True)
        self.labels = FolderInput("Folder of label files with the names of the scans")
        self.look = button("Look at the cases", "See what can be learnt from, and what can't")
        self.form = QFormLayout(self)
        self.form.addRow("Source", self.choice)
        self.form.addRow("Scans", self.images)
        self.form.addRow("Labels", self.labels)
        self.form.addRow(self.look)
        self.choice.currentIndexChanged.connect(lambda _: self._show())
        self._show()

    def _show(self) -> None:
        source = self.choice.currentData()
        wanted = {self.images: source != LAYERS, self.labels: source == FOLDERS}
        for field, shown in wanted.items():
            field.setVisible(shown)
            self.form.labelForField(field).setVisible(shown)


class CaseSection(QGroupBox):
    """What was found: cases, classes, what is left out."""

    def __init__(self) -> None:
        super().__init__("Cases and classes")
        self.cases = CaseTable()
        self.classes = ClassTable()
        self.held_out = combo("Held-out cases are not trained on: they measure the model honestly")
        self.held_out.addItem("Chosen by itself (a fifth, from 3 cases on)", BY_ITSELF)
        self.held_out.addItem("None", NOTHING)
        self.held_out.addItem("Those ticked", TICKED)
        self.note = wrapped_label()
        self.note.hide()
        layout = QVBoxLayout(self)
        layout.addWidget(self.cases)
        row = QHBoxLayout()
        row.addWidget(QLabel("Hold out"))
        row.addWidget(self.held_out, 1)
        layout.addLayout(row)
        layout.addWidget(self.classes)
        layout.addWidget(self.note)


class ModelSection(QGroupBox):
    """What is trained, from what, for how long."""

    def __init__(self) -> None:
        super().__init__("Model")
        self.name = QLineEdit("my model")
        self.name.setToolTip("What the model shall be called")
        self.network = combo("FMUNet needs half the memory of PCT-Net and is simpler")
        self.network.addItem("FMUNet", "fmunet")
        self.network.addItem("PCT-Net", "pct-net")
        self.start = combo("Pre-trained weights learn faster from few labels")
        self.get = button("Get models…", "Open the Models panel: import pre-trained weights")
        self.time = combo("How long to train; a run can be ended at any time and keeps its best")
        for text, count in _TIMES:
            self.time.addItem(text, count)
        self.iterations = QSpinBox()
        self.iterations.setRange(1, 1_000_000)
        self.iterations.setValue(2000)
        self.iterations.setToolTip("Iterations: each takes a batch of two patches")
        self.device = ChoiceInput([("auto", "auto"), ("cpu", "cpu")])
        self.device.setToolTip("Where it trains; auto takes a graphics card if there is one")
        self.seed = QSpinBox()
        self.seed.setRange(0, 1_000_000)
        self.seed.setValue(1)
        self.seed.setToolTip("On the CPU the same seed gives the same model")
        start = QWidget()
        row = QHBoxLayout(start)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.start, 1)
        row.addWidget(self.get)
        self._form = QFormLayout(self)
        self._form.addRow("Name", self.name)
        self._form.addRow("Network", self.network)
        self._form.addRow("Start from", start)
        self._form.addRow("Time", self.time)
        self._form.addRow("Iterations", self.iterations)
        self._form.addRow("Device", self.device)
        self._form.addRow("Seed", self.seed)
        self.time.currentIndexChanged.connect(lambda _: self._show())
        self._show()

    def count(self) -> int:
        """Return the iterations asked for; 0: by the number of cases."""
        chosen = int(self.time.currentData())
        return self.iterations.value() if chosen < 0 else chosen

    def _show(self) -> None:
        own = self.time.currentData() < 0
        self.iterations.setVisible(own)
        self._form.labelForField(self.iterations).setVisible(own)


class RunSection(QGroupBox):
    """The run: its buttons, how far it is, its diagrams."""

    def __init__(self) -> None:
        super().__init__("Run")
        self.start = button("Train", "Prepare the cases and train in a program of its own")
        self.pause = button("Pause", "Wait after the iteration at hand; the state is kept")
        self.end = button("End now", "Stop training and make the model of what was learnt")
        self.cancel = button("Stop", "Stop after the iteration at hand; go on some other time")
        self.stopped = combo("Runs that stopped before their end, by a crash perhaps")
        self.resume = button("Go on", "Go on with this run; its scans need not be open")
        self.forget = button("Delete…", "Delete this run with all it has learnt")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(6)
        self.bar.setToolTip("How far the run is")
        self.numbers = wrapped_label()
        self.numbers.setToolTip("Iteration, loss, time")
        self.status = StatusLine()
        self.notes = wrapped_label()
        self.notes.setToolTip("What has to be known about the run")
        self.notes.hide()
        self.use = button("Use it now", "Label the chosen image with this model (Organs panel)")
        self.use.hide()
        self.image = combo("The image that the model is used on")
        self.image.hide()
        self.plot = TrainPlot()
        grid = QGridLayout()
        grid.setSpacing(3)
        for column, made in enumerate((self.start, self.pause, self.end, self.cancel)):
            grid.addWidget(made, 0, column)
        grid.addWidget(self.stopped, 1, 0, 1, 2)
        grid.addWidget(self.resume, 1, 2)
        grid.addWidget(self.forget, 1, 3)
        layout = QVBoxLayout(self)
        layout.addLayout(grid)
        layout.addWidget(self.bar)
        layout.addWidget(self.status)
        row = QHBoxLayout()
        row.addWidget(self.use, 1)
        row.addWidget(self.image, 1)
        layout.addLayout(row)
        layout.addWidget(self.numbers)
        layout.addWidget(self.plot)
        layout.addWidget(self.notes)
