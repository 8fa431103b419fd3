"""The dialog that asks which images of a file or folder to open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QDialog,
    QDialogButtonBox,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_openmedlab.io.choices import ImageChoice

__all__ = ["ChoiceDialog", "ask"]


class ChoiceDialog(QDialog):
    """A list of images; one or several can be picked.

    Parameters
    ----------
    file : Path
    found : sequence of ImageChoice
        The largest is selected at first.
    """

    def __init__(
        self, file: Path, found: Sequence[ImageChoice], parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.setWindowTitle(f"Open {file.name}")
        self._found = tuple(found)
        self.list = QListWidget()
        self.list.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        for choice in self._found:
            size = " x ".join(str(n) for n in choice.shape)
            detail = f", {choice.detail}" if choice.detail else ""
            self.list.addItem(QListWidgetItem(f"{choice.title}   ({size}{detail})"))
        sizes = [_size(choice) for choice in self._found]
        self.list.setCurrentRow(sizes.index(max(sizes)))
        self.list.itemDoubleClicked.connect(lambda _item: self.accept())
        standard = QDialogButtonBox.StandardButton
        buttons = QDialogButtonBox(standard.Open | standard.Cancel)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.addWidget(QLabel(f"{file.name} holds {len(self._found)} images. Open which?"))
        layout.addWidget(self.list)
        layout.addWidget(buttons)
        self.resize(560, 320)

    def chosen(self) -> tuple[ImageChoice, ...]:
        """Return the images picked, in the order of the list."""
        return tuple(self._found[row.row()] for row in sorted(self.list.selectedIndexes()))


def ask(file: Path, found: Sequence[ImageChoice]) -> tuple[ImageChoice, ...]:
    """Return the images the user picks; none after a cancel."""
    dialog = ChoiceDialog(file, found, QApplication.activeWindow())
    dialog.setWindowModality(Qt.WindowModality.ApplicationModal)
    accepted = dialog.exec() == QDialog.DialogCode.Accepted
    return dialog.chosen() if accepted else ()


def _size(choice: ImageChoice) -> int:
    count = 1
    for n in choice.shape:
        count *= n
    return count
