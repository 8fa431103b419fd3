"""The tab on which structures are marked on template scans, and the library is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Image, Labels, Layer
from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QIcon
from qtpy.QtWidgets import (
    QComboBox,
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLineEdit,
    QSizePolicy,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_openmedlab.bridge.layers import tag_of, volume_of_layer
from napari_openmedlab.bridge.sessions import ViewerSessions
from napari_openmedlab.cohort.library import Added, Library
from napari_openmedlab.cohort.marks import Mark, mark_from_mask, mark_from_points
from napari_openmedlab.errors import OpenMedLabError, SessionError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.widgets.background import Background
from napari_openmedlab.widgets.cohort_inputs import FolderInput
from napari_openmedlab.widgets.image_chooser import LayerChooser
from napari_openmedlab.widgets.sections import button, wrapped_label
from napari_openmedlab.widgets.template_marks import TemplateMarks

__all__ = ["TemplatesTab"]

_WHERE = Qt.ItemDataRole.UserRole
_THUMBNAIL = QSize(96, 32)


class TemplatesTab(QWidget):
    """Marks structures on the open scan and puts them into the library.

    Attributes
    ----------
    said : Signal(str, str)
        A sentence and its severity.
    library_changed : Signal()
        Another library, or other templates in it.
    """

    said = Signal(str, str)
    library_changed = Signal()

    def __init__(self, viewer: Any, sessions: ViewerSessions, background: Background) -> None:
        super().__init__()
        self._viewer, self._sessions, self._background = viewer, sessions, background
        self.library: Library | None = None
        self.marks: TemplateMarks | None = None
        self._filling = self._adding = False
        self._build()
        self.chooser = LayerChooser(viewer, self.image, _is_scan, parent=self)
        self.masks = LayerChooser(viewer, self.mask, _is_labels, parent=self)
        self._connect()
        self.chooser.refresh()
        self.masks.refresh()
        self._refresh()

    def _build(self) -> None:
        self.folder = FolderInput(
            "Template library", "Folder of the template library; a new or empty one makes it"
        )
        self.image, self.mask, self.name = QComboBox(), QComboBox(), QLineEdit()
        self.image.setToolTip("The scan to mark structures on")
        self.mask.setToolTip("Labels layer with masks of structures on that scan")
        self.name.setPlaceholderText("left kidney")
        self.name.setToolTip("Name of the structure; the same name on every template")
        for box in (self.image, self.mask):
            box.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.mark = button(
            "Mark six points", "Click the structure's outermost point in each direction",
            checkable=True,
        )  # fmt: skip
        self.add = button("Add to library", "Add the six points as this structure")
        self.from_object = button(
            "From object", "Take the active object, or the selected label, as this structure"
        )
        self.from_all = button("From all objects", "Take every object of the labels layer")
        self.guide = wrapped_label()
        self.tree = QTreeWidget()
        self.tree.setHeaderLabels(("Template / structure", "Marked"))
        self.tree.setIconSize(_THUMBNAIL)
        self.tree.setToolTip("Double-click a name to change it")
        self.remove = button("Remove", "Take the selected template or structure out")
        form = QFormLayout()
        form.addRow("Library", self.folder)
        form.addRow("Scan", self.image)
        form.addRow("Structure", self.name)
        form.addRow("Masks", self.mask)
        marking = QGroupBox("Mark a structure")
        inner = QVBoxLayout(marking)
        inner.addLayout(form)
        inner.addLayout(_row(self.mark, self.add))
        inner.addLayout(_row(self.from_object, self.from_all))
        inner.addWidget(self.guide)
        layout = QVBoxLayout(self)
        layout.addWidget(marking)
        layout.addWidget(self.tree, 1)
        layout.addLayout(_row(self.remove))

    def _connect(self) -> None:
        self.folder.chosen.connect(self.open_library)
        self.mark.toggled.connect(self._on_mark)
        self.add.clicked.connect(self._on_add)
        self.from_object.clicked.connect(lambda: self._take(self._one_object))
        self.from_all.clicked.connect(lambda: self._take(self._all_objects))
        self.chooser.chosen.connect(self._on_image)
        self.masks.chosen.connect(lambda _layer: self._refresh())
        self.name.textChanged.connect(lambda _text: self._refresh())
        self.remove.clicked.connect(self._on_remove)
        self.tree.itemChanged.connect(self._on_renamed)
        self.tree.itemSelectionChanged.connect(self._refresh)

    def end(self, *, remove: bool) -> None:
        """Stop listening; take the points layer away if the viewer goes on."""
        if remove:
            self._end_marks()
        self.masks.stop()

    # -- the library -----------------------------------------------------------------------

    def open_library(self, path: Path | None) -> None:
        """Open the library in a folder, or make one there."""
        if path is None:
            self.library = None
        else:
            try:
                self.library = Library.open_or_create(path)
            except OpenMedLabError as error:
                self.library = None
                self.said.emit(str(error), "error")
            else:
                for problem in self.library.problems:
                    self.said.emit(problem, "unsure")
        self.show_library()
        self.library_changed.emit()

    def show_library(self) -> None:
        """List what the library holds now."""
        self._filling = True
        self.tree.clear()
        for entry in () if self.library is None else self.library.entries:
            top = QTreeWidgetItem((entry.title, entry.modality))
            top.setData(0, _WHERE, (entry.id, ""))
            top.setFlags(top.flags() | Qt.ItemFlag.ItemIsEditable)
            self.tree.addTopLevelItem(top)
            for stored in entry.structures:
                item = QTreeWidgetItem((stored.name, "by points" if not stored.mask else "mask"))
                item.setData(0, _WHERE, (entry.id, stored.name))
                item.setFlags(item.flags() | Qt.ItemFlag.ItemIsEditable)
                assert self.library is not None
                view = self.library.view(entry.id, stored.name)
                if view is not None:
                    item.setIcon(0, QIcon(str(view)))
                top.addChild(item)
        self.tree.expandAll()
        self.tree.resizeColumnToContents(0)
        self._filling = False
        self._refresh()

    def _on_renamed(self, item: QTreeWidgetItem, column: int) -> None:
        if self._filling or self.library is None or column != 0:
            return
        template, structure = item.data(0, _WHERE)
        try:
            if structure:
                self.library.rename_structure(structure, item.text(0), template)
            else:
                self.library.rename(template, item.text(0))
        except OpenMedLabError as error:
            self.said.emit(str(error), "error")
        self.show_library()
        self.library_changed.emit()

    def _on_remove(self) -> None:
        items = self.tree.selectedItems()
        if self.library is None or not items:
            return
        template, structure = items[0].data(0, _WHERE)
        try:
            if structure and len(self.library.entry(template).structures) > 1:
                self.library.remove_structure(template, structure)
            else:
                self.library.remove(template)
        except OpenMedLabError as error:
            self.said.emit(str(error), "error")
        self.show_library()
        self.library_changed.emit()

    # -- marking ---------------------------------------------------------------------------

    def _on_image(self, _layer: Layer | None) -> None:
        self._end_marks()
        self._refresh()

    def _on_mark(self, on: bool) -> None:
        self._end_marks()
        image = self.chooser.layer
        name = self.name.text().strip()
        if on and image is not None and name:
            try:
                volume = volume_of_layer(image)
            except OpenMedLabError as error:
                self.said.emit(str(error), "error")
            else:
                self.marks = TemplateMarks(self._viewer, image, volume, name)
                self.marks.changed.connect(self._refresh)
        self._refresh()

    def _end_marks(self) -> None:
        marks, self.marks = self.marks, None
        if marks is not None:
            marks.changed.disconnect(self._refresh)
            marks.close()
        self.mark.blockSignals(True)
        self.mark.setChecked(False)
        self.mark.blockSignals(False)

    def _on_add(self) -> None:
        marks = self.marks
        if marks is None:
            return

        def made(volume: Volume) -> Sequence[Mark]:
            return [mark_from_points(self.name.text(), marks.points, volume.geometry)]

        self._take(made)

    def _take(self, make: Callable[[Volume], Sequence[Mark]]) -> None:
        """Make marks of what the user chose and add them in the background."""
        library, image = self.library, self.chooser.layer
        if library is None or image is None:
            self.said.emit("Choose a library and open a scan first.", "error")
            return
        try:
            volume = volume_of_layer(image)
            marks = list(make(volume))
        except OpenMedLabError as error:
            self.said.emit(str(error), "error")
            return
        names = ", ".join(mark.name for mark in marks)
        self.said.emit(f"Adding {names} ...", "busy")
        self._adding = True
        self._refresh()
        self._background.run(
            lambda _bench, _monitor: library.add(volume, marks), self._on_added, self._on_failed
        )

    def _one_object(self, volume: Volume) -> Sequence[Mark]:
        layer = self._labels()
        session = self._sessions.session_of(layer)
        if session is not None:
            if session.active_id is None:
                raise SessionError("there is no object yet; segment one first")
            active = session.get(session.active_id)
            name = self.name.text().strip() or active.name
            return [mark_from_mask(name, session.mask_of(active.id), volume.geometry)]
        value = int(layer.selected_label)
        name = self.name.text().strip() or _names(layer).get(value, "")
        return [mark_from_mask(name, np.asarray(layer.data) == value, volume.geometry)]

    def _all_objects(self, volume: Volume) -> Sequence[Mark]:
        layer = self._labels()
        session = self._sessions.session_of(layer)
        if session is not None:
            found = [o for o in session.objects if o.voxels]
            return [mark_from_mask(o.name, session.mask_of(o.id), volume.geometry) for o in found]
        from napari_openmedlab.cohort.marks import marks_from_labels

        names = _names(layer)
        if not names:
            raise SessionError(
                f"the labels of '{layer.name}' have no names; enter one and use From object"
            )
        return marks_from_labels(np.asarray(layer.data), names, volume.geometry)

    def _labels(self) -> Labels:
        layer = self.masks.layer
        if not isinstance(layer, Labels):
            raise SessionError("open or make a labels layer with the structure's mask first")
        return layer

    def _on_added(self, added: Added) -> None:
        self._adding = False
        self._end_marks()  # not before: points of a failed try stay
        names = ", ".join(each.name for each in added.entry.structures)
        notes = " ".join(added.notes)
        said = f"{added.entry.title} has: {names}. {notes}".strip()
        self.said.emit(said, "unsure" if added.notes else "done")
        self.show_library()
        self.library_changed.emit()

    def _on_failed(self, error: OpenMedLabError) -> None:
        self._adding = False
        self._refresh()
        self.said.emit(str(error), "error")

    # -- what can be done now --------------------------------------------------------------

    def _refresh(self) -> None:
        there = self.library is not None and self.chooser.layer is not None
        ready = there and not self._adding
        named = bool(self.name.text().strip())
        self.mark.setEnabled(self.chooser.layer is not None and named)
        self.add.setEnabled(ready and self.marks is not None and self.marks.complete)
        self.from_object.setEnabled(ready and self.masks.layer is not None)
        self.from_all.setEnabled(ready and self.masks.layer is not None)
        self.remove.setEnabled(bool(self.tree.selectedItems()))
        self.guide.setText(self._guidance(there, named))

    def _guidance(self, ready: bool, named: bool) -> str:
        if self.marks is not None:
            return self.marks.guidance()
        if self.library is None:
            return "Choose a folder for the template library."
        if not ready:
            return "Open a scan to mark structures on."
        if not named:
            return "Name the structure, or take all objects of a labels layer."
        return "Mark six points on the scan, or take the mask of an object."


def _row(*widgets: QWidget) -> QHBoxLayout:
    layout = QHBoxLayout()
    for widget in widgets:
        layout.addWidget(widget)
    return layout


def _names(layer: Labels) -> dict[int, str]:
    """Return the names of a labels layer's values, as far as its file had them."""
    tag = tag_of(layer)
    return {} if tag is None else {value: info.name for value, info in tag.objects.items()}


def _is_scan(layer: Layer) -> bool:
    return isinstance(layer, Image) and not layer.rgb and layer.ndim == 3


def _is_labels(layer: Layer) -> bool:
    return isinstance(layer, Labels) and layer.ndim == 3
