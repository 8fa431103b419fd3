"""The parts of the Models panel: inputs and buttons with their tooltips, no behaviour."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLineEdit,
    QProgressBar,
    QSizePolicy,
    QSplitter,
    QTextBrowser,
    QVBoxLayout,
    QWidget,
)

from napari_openmedlab.widgets.model_asking import QuestionBar
from napari_openmedlab.widgets.model_table import ModelTable
from napari_openmedlab.widgets.sections import StatusLine, button, wrapped_label

__all__ = ["ActionSection", "FolderSection", "ListSection", "WorkSection"]

_CHANGE = "Keep the models somewhere else from now on; those that are here can move along"


class ListSection(QWidget):
    """Search, table and everything there is to know about the selected row."""

    def __init__(self) -> None:
        super().__init__()
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search: CT, axon, click, not here, Apache…")
        self.search.setToolTip("Shows the models in which every word occurs")
        self.search.setClearButtonEnabled(True)
        self.search.setAcceptDrops(False)  # a dropped file goes to the panel, not in here
        self.only_here = QCheckBox("On this computer")
        self.only_here.setToolTip("Hide what has not been downloaded or imported")
        self.only_here.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.table = ModelTable()
        self.details = QTextBrowser()
        self.details.setOpenExternalLinks(True)
        self.details.setAcceptDrops(False)
        self.details.setToolTip("")
        self.details.setPlaceholderText(
            "Select a model to read what it is for, on what terms it may be used, and where it "
            "comes from."
        )
        line = QHBoxLayout()
        line.addWidget(self.search, 1)
        line.addWidget(self.only_here)
        splitter = QSplitter(Qt.Orientation.Vertical)
        splitter.addWidget(self.table)
        splitter.addWidget(self.details)
        splitter.setStretchFactor(0, 3)
        splitter.setStretchFactor(1, 2)
        splitter.setChildrenCollapsible(False)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(line)
        layout.addWidget(splitter, 1)


class ActionSection(QWidget):
    """What can be done with the selected model, and with files."""

    def __init__(self) -> None:
        super().__init__()
        self.download = button(
            "Download…", "Fetch the selected model; its licence is shown and accepted first"
        )
        self.import_file = button(
            "Import file…",
            "Take a downloaded weight file, or a bundle, into the model folder. Files can also be "
            "dropped anywhere on this panel",
        )
        self.verify = button(
            "Verify", "Compare the stored file with the hash recorded when it was imported"
        )
        self.remove = button("Remove…", "Delete the selected model from this computer")
        self.bundle = button(
            "Pack a bundle…",
            "Write all models that are ready, with their hashes and terms, into one archive for "
            "a computer without a network; it is imported like a file",
        )
        first, second = QHBoxLayout(), QHBoxLayout()
        for made in (self.download, self.import_file):
            first.addWidget(made)
        for made in (self.verify, self.remove, self.bundle):
            second.addWidget(made)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        for row in (first, second):
            row.setSpacing(3)
            layout.addLayout(row)


class WorkSection(QWidget):
    """What is going on: questions, progress, what happened last."""

    def __init__(self) -> None:
        super().__init__()
        self.question = QuestionBar()
        self.bar = QProgressBar()
        self.bar.setToolTip("How far the running job is")
        self.bar.hide()
        self.cancel = button(
            "Cancel", "Stop what runs and drop what waits; a download can go on later"
        )
        self.cancel.hide()
        self.status = StatusLine()
        row = QHBoxLayout()
        row.addWidget(self.bar, 1)
        row.addWidget(self.cancel)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        layout.addWidget(self.question)
        layout.addLayout(row)
        layout.addWidget(self.status)


class FolderSection(QGroupBox):
    """Where the models lie, and how the network is reached."""

    def __init__(self) -> None:
        super().__init__("Model folder and network")
        self.folder = wrapped_label()
        self.folder.setToolTip("Where the models lie on this computer")
        self.open_folder = button("Open", "Show the folder in the file manager")
        self.change_folder = button("Change…", _CHANGE)
        self.mirror = QLineEdit()
        self.mirror.setPlaceholderText("none: straight from huggingface.co")
        self.mirror.setToolTip(
            "Address to take instead of https://huggingface.co, for networks that block it"
        )
        self.proxy = QLineEdit()
        self.proxy.setPlaceholderText("as the system has it")
        self.proxy.setToolTip("http://host:port; empty: what the environment (HTTPS_PROXY) says")
        for field in (self.mirror, self.proxy):
            field.setAcceptDrops(False)
            field.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        place = QHBoxLayout()
        place.setSpacing(3)
        place.addWidget(self.folder, 1)
        place.addWidget(self.open_folder)
        place.addWidget(self.change_folder)
        form = QFormLayout(self)
        form.addRow(place)
        form.addRow("Mirror", self.mirror)
        form.addRow("Proxy", self.proxy)

    def show_place(self, folder: Path, fixed_by: str) -> None:
        """Show the folder; ``fixed_by`` names the environment variable that sets it, if any."""
        self.folder.setText(str(folder))
        self.change_folder.setEnabled(not fixed_by)
        tip = f"Set by the environment variable {fixed_by}" if fixed_by else _CHANGE
        self.change_folder.setToolTip(tip)

    def show_network(self, mirror: str, proxy: str) -> None:
        """Show mirror and proxy, unless they are being typed."""
        for field, text in ((self.mirror, mirror), (self.proxy, proxy)):
            if not field.hasFocus():
                field.setText(text)
