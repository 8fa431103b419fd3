"""The parts of the Axons panel: inputs and buttons with their tooltips, no behaviour."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QSlider,
    QVBoxLayout,
)

from napari_openmedlab.widgets.engine_form import EngineForm
from napari_openmedlab.widgets.sections import StatusLine, button, combo, wrapped_label

__all__ = ["ExportSection", "FindSection", "MethodSection", "RunSection", "VolumeSection"]


class VolumeSection(QGroupBox):
    """The volume, its voxel size, and the part of it that is of interest."""

    def __init__(self) -> None:
        super().__init__("Volume")
        self.choice = combo("The image layer in which axons are looked for")
        self.open_folder = button(
            "Folder…", "Open OME-Zarr or a folder of TIFF slices without reading it into memory"
        )
        self.open_file = button("File…", "Open a TIFF stack without reading it into memory")
        self.convert = button(
            "Convert to OME-Zarr…",
            "Write the volume once as OME-Zarr: looking at it and runs are then far faster than "
            "with TIFF. You are told what it takes first; it can be cancelled and goes on",
        )
        self.size = QLineEdit()
        self.size.setPlaceholderText("z, y, x in um")
        self.size.setToolTip("Voxel size in um along z, y, x; leave empty to work in voxels")
        self.size_label = QLabel("Voxel size")
        self.region = combo("Where a run looks for axons")
        self.region.addItem("All of it", "whole")
        self.region.addItem("What the view shows (zoom in first)", "view")
        self.region.addItem("The drawn box (a Shapes layer)", "box")
        self.note = wrapped_label()
        self.note.hide()
        row = QHBoxLayout()
        row.addWidget(self.choice, 1)
        row.addWidget(self.open_folder)
        row.addWidget(self.open_file)
        form = QFormLayout(self)
        form.addRow("Image", row)
        form.addRow(self.size_label, self.size)
        form.addRow(self.note)
        form.addRow("", self.convert)
        form.addRow("Region", self.region)


class MethodSection(QGroupBox):
    """The engine, and how grey values are normalised."""

    def __init__(self) -> None:
        super().__init__("Method")
        self.engine = combo("What finds axons")
        self.get = button("Get models…", "Open the Models panel: import Axon-Seg's files")
        self.normalise = combo("How grey values are brought to what the engine knows")
        self.normalise.addItem("One rule for the whole volume", "volume")
        self.normalise.addItem("Each block by itself", "block")
        self.normalise.addItem("By one slice a block, as upstream does", "plane")
        self.skip = QCheckBox("Leave out background")
        self.skip.setChecked(True)
        self.skip.setToolTip("Blocks in which the coarse level shows nothing are not computed")
        self.more = button("Options", "Show the engine's options", checkable=True)
        self.form = EngineForm()
        self.form.hide()
        self.more.toggled.connect(self.form.setVisible)
        row = QHBoxLayout()
        row.addWidget(self.engine, 1)
        row.addWidget(self.get)
        bottom = QHBoxLayout()
        bottom.addWidget(self.skip, 1)
        bottom.addWidget(self.more)
        form = QFormLayout(self)
        form.addRow("Engine", row)
        form.addRow("Grey values", self.normalise)
        form.addRow(bottom)
        form.addRow(self.form)


class FindSection(QGroupBox):
    """Preview and threshold."""

    def __init__(self) -> None:
        super().__init__("Preview")
        self.pick = button(
            "Where I click", "Preview the block around every place you click on", checkable=True
        )
        self.middle = button("Middle of the view", "Preview the block in the middle of the view")
        self.box = button("Drawn box", "Preview the box drawn in a Shapes layer")
        self.threshold = QSlider(Qt.Orientation.Horizontal)
        self.threshold.setRange(1, 100)
        self.threshold.setValue(50)
        self.threshold.setToolTip("Probability from which a voxel is axon; nothing is run again")
        self.value = QLabel("0.50")
        self.apply = button(
            "Apply to the results", "Make the labels of the opened run anew at this threshold"
        )
        row = QHBoxLayout()
        for each in (self.pick, self.middle, self.box):
            row.addWidget(each)
        slide = QHBoxLayout()
        slide.addWidget(QLabel("Threshold"))
        slide.addWidget(self.threshold, 1)
        slide.addWidget(self.value)
        layout = QVBoxLayout(self)
        layout.addLayout(row)
        layout.addLayout(slide)
        layout.addWidget(self.apply)


class RunSection(QGroupBox):
    """The whole run: where it goes, what it takes, progress."""

    def __init__(self) -> None:
        super().__init__("Whole run")
        self.folder = QLineEdit()
        self.folder.setPlaceholderText("A folder for the results")
        self.folder.setToolTip("New, or of a run that shall go on")
        self.browse = button("…", "Choose the folder")
        self.estimate = button("Estimate", "What the run would take: time, memory, disk")
        self.run = button("Run", "Find axons block by block; a stopped run goes on")
        self.cancel = button("Cancel", "Stop within one block; finished blocks are kept")
        self.open = button("Open results…", "Show the results of a run's folder")
        self.takes = wrapped_label()
        self.takes.setToolTip("What the run takes")
        self.takes.hide()
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(6)
        self.bar.setToolTip("Blocks done")
        policy = self.bar.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        self.bar.setSizePolicy(policy)
        self.bar.hide()
        self.status = StatusLine()
        row = QHBoxLayout()
        row.addWidget(self.folder, 1)
        row.addWidget(self.browse)
        buttons = QHBoxLayout()
        for each in (self.estimate, self.run, self.cancel, self.open):
            buttons.addWidget(each)
        layout = QVBoxLayout(self)
        layout.addLayout(row)
        layout.addLayout(buttons)
        layout.addWidget(self.takes)
        layout.addWidget(self.bar)
        layout.addWidget(self.status)


class ExportSection(QGroupBox):
    """From the labels to what other programs open."""

    def __init__(self) -> None:
        super().__init__("From the results")
        self.swc = button("Skeleton (SWC)…", "Centre-lines with radii in um, as an SWC file")
        self.branches = button("Branches (CSV)…", "Length, radius and ends of every branch")
        self.density = button("Density…", "Axon per mm3 on a coarse grid, as NIfTI and a layer")
        row = QHBoxLayout(self)
        for each in (self.swc, self.branches, self.density):
            row.addWidget(each)
