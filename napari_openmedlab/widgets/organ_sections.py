"""The parts of the Organs panel: inputs and buttons with their tooltips, no behaviour."""

from __future__ import annotations

from qtpy.QtWidgets import (
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QVBoxLayout,
    QWidget,
)

from napari_openmedlab.widgets.engine_form import EngineForm
from napari_openmedlab.widgets.organ_results import OrganTable
from napari_openmedlab.widgets.organ_tree import OrganTree
from napari_openmedlab.widgets.sections import StatusLine, button, combo, wrapped_label

__all__ = ["GoSection", "ModelSection", "ResultSection", "ScanSection", "StructureSection"]


class ScanSection(QGroupBox):
    """The scan, and the part of it that is of interest."""

    def __init__(self) -> None:
        super().__init__("Scan")
        self.choice = combo("The image layer in which structures are named")
        self.region = combo("Where structures are named; the network sees a margin around it")
        self.region.addItem("All of it", "whole")
        self.region.addItem("What the view shows (zoom in first)", "view")
        self.note = wrapped_label()
        self.note.hide()
        form = QFormLayout(self)
        form.addRow("Image", self.choice)
        form.addRow("Region", self.region)
        form.addRow(self.note)


class ModelSection(QGroupBox):
    """The model and how thorough it is."""

    def __init__(self) -> None:
        super().__init__("Model")
        self.choice = combo("Models on this computer that name structures by themselves")
        self.get = button("Get models…", "Open the Models panel: download models or import files")
        self.names = button(
            "Names…", "A JSON file with the class names of a model of your own (dataset.json)"
        )
        self.grid = combo("Voxel size at which the network looks at the scan")
        self.grid.addItem("1.5 mm, as it was trained", 0.0)
        self.grid.addItem("3 mm, a fast preview", 3.0)
        self.step = combo("How far windows lie apart, as a part of their size")
        self.step.addItem("0.5, as published", 0.5)
        self.step.addItem("0.8, two to three times faster", 0.8)
        self.more = button("Options", "Show the engine's other options", checkable=True)
        self.form = EngineForm()
        self.form.hide()
        self.more.toggled.connect(self.form.setVisible)
        top = QHBoxLayout()
        top.addWidget(self.choice, 1)
        top.addWidget(self.get)
        layout = QVBoxLayout(self)
        layout.addLayout(top)
        self.speed = QWidget()
        speed = QFormLayout(self.speed)
        speed.setContentsMargins(0, 0, 0, 0)
        speed.addRow("Grid", self.grid)
        speed.addRow("Windows", self.step)
        layout.addWidget(self.speed)
        bottom = QHBoxLayout()
        bottom.addWidget(self.names)
        bottom.addWidget(self.more)
        layout.addLayout(bottom)
        layout.addWidget(self.form)


class StructureSection(QGroupBox):
    """The structures that are wanted."""

    def __init__(self) -> None:
        super().__init__("Structures")
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search: kidney, vertebrae L, ribs left…")
        self.search.setClearButtonEnabled(True)
        self.search.setToolTip("Show only structures and groups that these words are found in")
        self.tree = OrganTree()
        self.all = button("Tick all", "Tick all structures that the search shows")
        self.none = button("Tick none", "Take the ticks of all structures the search shows away")
        self.count = QLabel()
        row = QHBoxLayout()
        row.addWidget(self.count, 1)
        row.addWidget(self.all)
        row.addWidget(self.none)
        layout = QVBoxLayout(self)
        layout.addWidget(self.search)
        layout.addWidget(self.tree)
        layout.addLayout(row)


class GoSection(QWidget):
    """Run, cancel, undo and the status line."""

    def __init__(self) -> None:
        super().__init__()
        self.run = button("Name structures", "Name the ticked structures in the scan")
        self.cancel = button("Cancel", "Stop at the next window; nothing is changed")
        self.undo = button("Undo", "Take the last step back; a run is one step")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(6)
        self.bar.setToolTip("Windows done")
        policy = self.bar.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        self.bar.setSizePolicy(policy)
        self.bar.hide()
        self.status = StatusLine()
        self.notes = wrapped_label()
        self.notes.setToolTip("What has to be known about the last run")
        self.notes.hide()
        row = QHBoxLayout()
        row.addWidget(self.run, 2)
        row.addWidget(self.cancel, 1)
        row.addWidget(self.undo, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(row)
        layout.addWidget(self.bar)
        layout.addWidget(self.status)
        layout.addWidget(self.notes)


class ResultSection(QGroupBox):
    """The objects of the scan, measured."""

    def __init__(self) -> None:
        super().__init__("Measured")
        self.table = OrganTable()
        self.save = button("Save as CSV…", "Write the table to a file")
        layout = QVBoxLayout(self)
        layout.addWidget(self.table)
        layout.addWidget(self.save)
