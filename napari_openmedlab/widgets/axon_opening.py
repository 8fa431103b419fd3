"""The Axons panel's volumes: opened, with the questions their files leave, and converted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from qtpy.QtCore import QObject, Qt
from qtpy.QtWidgets import QFileDialog, QMessageBox, QWidget

from napari_openmedlab.axons.convert import plan_conversion
from napari_openmedlab.axons.opening import FillGaps, WhichImage
from napari_openmedlab.axons.source import Source
from napari_openmedlab.bridge import choosing
from napari_openmedlab.io.suffixes import safe_name
from napari_openmedlab.models.checkpoints.disk import size_text
from napari_openmedlab.widgets.axon_desk import AxonDesk

__all__ = ["AxonOpening"]


class AxonOpening(QObject):
    """Opens volumes, and converts them.

    Parameters
    ----------
    desk : AxonDesk
    source : callable() -> Source
        The chosen volume with its voxel size; raises a sentence if there is none.
    say : callable(str, str)
    panel : QWidget
    """

    def __init__(
        self,
        desk: AxonDesk,
        source: Callable[[], Source],
        say: Callable[[str, str], None],
        panel: QWidget,
    ) -> None:
        super().__init__(panel)
        self._desk, self._source, self._say, self._panel = desk, source, say, panel
        # Queued: the dialog opens when the work before it has ended and said so.
        desk.asked.connect(self._ask, Qt.ConnectionType.QueuedConnection)

    def folder(self) -> None:
        """Ask for a folder and open it."""
        title = "OME-Zarr or folder of TIFF slices"
        if chosen := QFileDialog.getExistingDirectory(self._panel, title):
            self._desk.open(Path(chosen))

    def file(self) -> None:
        """Ask for a file and open it."""
        pattern = "TIFF (*.tif *.tiff)"
        chosen, _ = QFileDialog.getOpenFileName(self._panel, "TIFF stack", "", pattern)
        if chosen:
            self._desk.open(Path(chosen))

    def convert(self) -> None:
        """Ask where to, say what it takes, and convert the chosen volume to OME-Zarr.

        It goes into a folder under the volume's name, so the same folder goes on after a stop.
        """
        source = self._source()
        title = f"Folder for the OME-Zarr of {source.name}"
        chosen = QFileDialog.getExistingDirectory(self._panel, title)
        if not chosen:
            return
        out = Path(chosen) / f"{safe_name(source.name)}.zarr"
        buttons = QMessageBox.StandardButton
        text = _what_it_takes(source, out)
        answer = QMessageBox.question(
            self._panel, "Convert to OME-Zarr", text, buttons.Ok | buttons.Cancel
        )
        if answer == buttons.Ok:
            self._desk.convert(source, out)

    def _ask(self, question: WhichImage | FillGaps) -> None:
        if isinstance(question, FillGaps):
            if self._fills(question):
                self._desk.open(question.path, question.index, "fill")
                return
        elif chosen := choosing.ask(question.path, question.found):
            for image in chosen:
                self._desk.open(question.path, question.found.index(image))
            return
        self._say(f"{question.path.name} was not opened.", "unsure")

    def _fills(self, question: FillGaps) -> bool:
        box = QMessageBox(self._panel)
        box.setWindowTitle(f"Open {question.path.name}")
        box.setText(question.text)
        roles = QMessageBox.ButtonRole
        fill = box.addButton("Fill with neighbours", roles.AcceptRole)
        box.setDefaultButton(box.addButton("Stop", roles.RejectRole))
        box.exec()
        return box.clickedButton() is fill


def _what_it_takes(source: Source, out: Path) -> str:
    planned = plan_conversion(source)
    free = shutil.disk_usage(out.parent).free
    size = " x ".join(f"{v:.4g}" for v in source.spacing) + " um" if source.spacing else "unknown"
    there = (
        "\n\nThere is something of that name already. If it is the beginning of this conversion, "
        "it goes on; anything else is left alone."
        if out.exists()
        else ""
    )
    return (
        f"{source.name}: {' x '.join(map(str, source.shape))} voxels of {source.dtype}, voxel size "
        f"{size}, is written to {out}.\n\n"
        f"At most {size_text(planned.disk)} on the disk ({size_text(free)} free), "
        f"{size_text(planned.memory)} of memory, {len(planned.slabs)} slabs.{there}"
    )
