"""The Export panel: masks to files, on the exact grid of the scan they were made on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
from napari.layers import Labels, Layer
from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QObject, Qt, QTimer, Signal
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_openmedlab.bridge.exporting import (
    ExportJob,
    job_of_layer,
    job_of_session,
    marked_session,
    suggested_path,
    write_job,
)
from napari_openmedlab.bridge.viewer import plain_viewer
from napari_openmedlab.errors import OpenMedLabError
from napari_openmedlab.io.suffixes import stem_of, suffix_of
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.image_chooser import LayerChooser
from napari_openmedlab.widgets.panel_end import PanelEnd
from napari_openmedlab.widgets.sections import StatusLine, button, wrapped_label

__all__ = ["ExportWidget"]

logger = logging.getLogger(__name__)

_FORMATS = (
    (".nii.gz", "NIfTI, compressed (.nii.gz)"),
    (".nii", "NIfTI (.nii)"),
    (".nrrd", "NRRD, 3D Slicer (.nrrd)"),
    (".mha", "MetaImage, ITK (.mha)"),
    (".tif", "TIFF stack, microscopy (.tif)"),
)
_VALUE = Qt.ItemDataRole.UserRole


class _Writer(QObject):
    """Writes in a thread of its own, so that a large scan never freezes the viewer."""

    done = Signal(object)
    failed = Signal(str)

    def start(self, job: ExportJob, path: Path, chosen: list[int], *, separate: bool) -> None:
        """Begin; one of the signals follows. Not a daemon: a quit waits for the file."""
        work = threading.Thread(
            target=self._work, args=(job, path, chosen, separate), name="openmedlab-export"
        )
        work.start()

    def _work(self, job: ExportJob, path: Path, chosen: list[int], separate: bool) -> None:
        try:
            written = write_job(job, path, chosen, one_file_per_object=separate)
        except OpenMedLabError as error:
            self.failed.emit(str(error))
        except Exception as error:  # the worker boundary: nothing may get lost here
            logger.exception("export failed")
            self.failed.emit(f"{path} was not written: {type(error).__name__}: {error}")
        else:
            self.done.emit(written)


class _Follower:
    """Calls back when the objects of a session change, until told to follow another one."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._session: Session | None = None

    def follow(self, session: Session | None) -> None:
        if self._session is not None:
            self._session.objects_changed.disconnect(self._on_change, missing_ok=True)
        self._session = session
        if session is not None:
            session.objects_changed.connect(self._on_change)

    def stop(self) -> None:
        self.follow(None)

    def _on_change(self) -> None:
        self._changed()


class ExportWidget(QWidget):
    """Choose what to export, how and where; writes masks and a sidecar with names and colours.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        viewer = plain_viewer(viewer)
        self._viewer = viewer
        self._job: ExportJob | None = None
        self._writer = _Writer()
        self._writing = False
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._follower = _Follower(self._soon.start)
        self._end = PanelEnd()
        self._build()
        self._chooser = LayerChooser(
            viewer, self.source, _is_labels, preferred=_shows_session, parent=self
        )
        self._connect()
        self._chooser.refresh()
        self.refresh()

    def _build(self) -> None:
        self.setMinimumWidth(320)
        self._build_inputs()
        self._build_outputs()
        place = QHBoxLayout()
        place.addWidget(self.path, 1)
        place.addWidget(self.browse)
        inner = QWidget()
        layout = QVBoxLayout(inner)
        for made in (
            QLabel("Labels layer"),
            self.source,
            QLabel("Objects"),
            self.objects,
            QLabel("Format"),
            self.format,
            self.separate,
            QLabel("File"),
        ):
            layout.addWidget(made)
        layout.addLayout(place)
        for made in (self.warning, self.export, self.status):
            layout.addWidget(made)
        layout.addStretch()
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(inner)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(scroll)

    def _build_inputs(self) -> None:
        self.source = QComboBox()
        self.source.setToolTip("The labels layer to export: the objects of a session, or any other")
        self.source.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.objects = QListWidget()
        self.objects.setToolTip("Only objects with a tick are written")
        self.objects.setMinimumHeight(8 * self.objects.fontMetrics().height())
        self.objects.setMaximumHeight(16 * self.objects.fontMetrics().height())

    def _build_outputs(self) -> None:
        self.format = QComboBox()
        self.format.setToolTip("File format; NIfTI keeps the scan's grid bit for bit")
        for suffix, text in _FORMATS:
            self.format.addItem(text, suffix)
        self.separate = QCheckBox("One file per object")
        self.separate.setToolTip("Files of 0 and 1 named after the objects, instead of one file")
        self.path = QLineEdit()
        self.path.setToolTip("The file to write; with one file per object, how their names begin")
        self.browse = button("Browse…", "Choose folder and name")
        self.warning = wrapped_label()
        self.warning.setToolTip("What will happen to a file that is there already")
        self.warning.hide()
        self.export = button("Export", "Write the masks; an old file stays until the new is whole")
        self.status = StatusLine()
        self.status.say("Masks are written on the exact grid of the scan.")

    def _connect(self) -> None:
        queued = Qt.ConnectionType.QueuedConnection
        self._writer.done.connect(self._on_done, queued)
        self._writer.failed.connect(self._on_failed, queued)
        self._chooser.chosen.connect(self._on_layer)
        self._soon.timeout.connect(self.refresh)
        self.format.currentIndexChanged.connect(self._on_format)
        self.path.textEdited.connect(self._on_path)
        self.browse.clicked.connect(self._on_browse)
        self.export.clicked.connect(self.run)
        self._end.add(self._chooser.stop)
        self._end.add(self._follower.stop)
        self._end.start(self)

    # -- what there is to export -----------------------------------------------------------

    def refresh(self, *_: Any) -> None:
        """List the objects of the chosen layer as they are now."""
        layer = self._chooser.layer
        ticked = {v: self._is_ticked(row) for row, v in enumerate(self._values())}
        try:
            self._job = None if layer is None else _job_of(layer)
        except OpenMedLabError as error:
            self._job = None
            self.status.say(str(error), "error")
        self.objects.clear()
        job = self._job
        for value, info in job.objects.items() if job else ():
            item = QListWidgetItem(f"{info.name}  ({_size(job, value)})" if job else "")
            item.setData(_VALUE, value)
            on = ticked.get(value, True)
            item.setCheckState(Qt.CheckState.Checked if on else Qt.CheckState.Unchecked)
            red, green, blue = info.colour
            item.setIcon(_swatch(QColor.fromRgbF(red, green, blue)))
            self.objects.addItem(item)
        self.export.setEnabled(job is not None)

    def _on_layer(self, layer: Labels | None) -> None:
        """Follow the session that the chosen layer shows, and suggest a file name."""
        self._follower.follow(None if layer is None else marked_session(layer))
        self.refresh()
        if self._job is not None:
            self.path.setText(str(suggested_path(self._job.volume, self._suffix())))
        self._on_path()

    def chosen(self) -> list[int]:
        """Return the label values that have a tick."""
        return [v for row, v in enumerate(self._values()) if self._is_ticked(row)]

    def _values(self) -> list[int]:
        return [int(self.objects.item(r).data(_VALUE)) for r in range(self.objects.count())]

    def _is_ticked(self, row: int) -> bool:
        return bool(self.objects.item(row).checkState() == Qt.CheckState.Checked)

    # -- where to --------------------------------------------------------------------------

    def _suffix(self) -> str:
        return str(self.format.currentData())

    def _on_format(self, *_: Any) -> None:
        text = self.path.text().strip()
        if text:
            path = Path(text)
            self.path.setText(str(path.with_name(stem_of(path) + self._suffix())))
        self._on_path()

    def _on_path(self, *_: Any) -> None:
        """Follow the suffix that was typed, and say if a file is there already."""
        path = Path(self.path.text().strip())
        rows = [suffix for suffix, _ in _FORMATS]
        if suffix_of(path) in rows:
            self.format.blockSignals(True)
            self.format.setCurrentIndex(rows.index(suffix_of(path)))
            self.format.blockSignals(False)
        there = path.is_file() and not self.separate.isChecked()
        self.warning.setText(f"{path.name} exists and will be replaced." if there else "")
        self.warning.setVisible(there)

    def _on_browse(self) -> None:
        kinds = ";;".join(f"{text} (*{suffix})" for suffix, text in _FORMATS)
        wanted = next(k for k in kinds.split(";;") if k.endswith(f"(*{self._suffix()})"))
        chosen, _ = QFileDialog.getSaveFileName(
            self, "Export masks", self.path.text(), kinds, wanted
        )
        if chosen:
            path = Path(chosen)
            known = suffix_of(path) in [suffix for suffix, _ in _FORMATS]
            path = path if known else path.with_name(path.name + self._suffix())
            self.path.setText(str(path))
            self._on_path()

    # -- writing ---------------------------------------------------------------------------

    def run(self) -> None:
        """Write the chosen objects in a thread of its own."""
        self.refresh()
        chosen, text = self.chosen(), self.path.text().strip()
        if self._job is None or not chosen:
            self._on_failed("There is no object to export: tick one that has a mask.")
            return
        if not text:
            self._on_failed("Choose a file name first.")
            return
        path = Path(text)
        if suffix_of(path) not in [suffix for suffix, _ in _FORMATS]:
            path = path.with_name(path.name + self._suffix())
        self._set_writing(True)
        self.status.say(f"Writing {path.name}…", "busy")
        self._writer.start(self._job, path, chosen, separate=self.separate.isChecked())

    def _set_writing(self, writing: bool) -> None:
        self._writing = writing
        self.export.setEnabled(not writing)

    def _on_done(self, written: tuple[Path, ...]) -> None:
        self._set_writing(False)
        masks = [path for path in written if path.suffix != ".json"]
        text = str(masks[0]) if len(masks) == 1 else f"{len(masks)} masks in {masks[0].parent}"
        self.status.say(f"Written and checked: {text}, with names and colours in a JSON.", "done")
        show_info(f"Exported: {text}")
        self.warning.hide()

    def _on_failed(self, sentence: str) -> None:
        self._set_writing(False)
        self.status.say(sentence, "error")
        show_error(sentence)


def _is_labels(layer: Layer) -> bool:
    return isinstance(layer, Labels)


def _shows_session(layer: Labels) -> bool:
    return marked_session(layer) is not None


def _job_of(layer: Labels) -> ExportJob:
    session = marked_session(layer)
    return job_of_layer(layer) if session is None else job_of_session(session)


def _size(job: ExportJob, value: int) -> str:
    """Return an object's volume in words."""
    geometry = job.volume.geometry
    if geometry.unit == "pixel":
        return f"{job.voxels[value]} voxels"
    size = job.voxels[value] * geometry.voxel_volume
    return f"{size / 1000:.1f} ml" if geometry.unit == "mm" else f"{size:.3g} µm³"


def _swatch(colour: QColor) -> QIcon:
    picture = QPixmap(12, 12)
    picture.fill(colour)
    return QIcon(picture)
