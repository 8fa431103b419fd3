"""The model part of the Organs panel: which models there are, what they name, how they are run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Qt, Signal
from qtpy.QtWidgets import QFileDialog

from napari_openmedlab.errors import OpenMedLabError
from napari_openmedlab.models.catalogue import EngineSpec, engines, get_spec
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.class_names import class_names
from napari_openmedlab.models.finetuned import NETWORKS, start_only
from napari_openmedlab.models.organs import TOTAL_SEGMENTATOR
from napari_openmedlab.widgets.local_models import LocalModels, Need
from napari_openmedlab.widgets.organ_sections import ModelSection

__all__ = ["OrganModels"]

_FIRST = "stu-net"  # offered where there is no model at all
_OWN_INPUTS = {"checkpoint", "classes", "names", "spacing"}
_LARGEST = 4 * 2**20


class OrganModels(QObject):
    """Keeps the inputs in step with the models on this computer.

    Parameters
    ----------
    section : ModelSection
    local : LocalModels

    Attributes
    ----------
    changed : Signal()
        Another model, or there are other models.
    names_changed : Signal()
        :attr:`class_names` changed.
    said : Signal(str, str)
    """

    changed = Signal()
    names_changed = Signal()
    said = Signal(str, str)

    def __init__(
        self, section: ModelSection, local: LocalModels, parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self._section = section
        self._local = local
        self._offers: list[tuple[EngineSpec, Record]] = []
        self._given: dict[str, str] = {}  # JSON of names by model
        self.class_names: tuple[str, ...] = TOTAL_SEGMENTATOR[1:]
        section.choice.activated.connect(lambda _: self._show())
        section.names.clicked.connect(self._on_names)
        local.changed.connect(self.look)

    @property
    def spec(self) -> EngineSpec:
        """The engine of the chosen model."""
        row = self._section.choice.currentIndex()
        return self._offers[row][0] if 0 <= row < len(self._offers) else get_spec(_FIRST)

    @property
    def record(self) -> Record | None:
        """The chosen model."""
        row = self._section.choice.currentIndex()
        return self._offers[row][1] if 0 <= row < len(self._offers) else None

    def look(self) -> None:
        """List the models there are; the chosen one stays chosen as long as it is there."""
        before = self.record
        self._offers = list(self._found())
        box = self._section.choice
        box.clear()
        for row, (spec, record) in enumerate(self._offers):
            box.addItem(record.name)
            tip = "\n".join((spec.title, *record.notes))
            box.setItemData(row, tip, Qt.ItemDataRole.ToolTipRole)
        if not self._offers:
            box.addItem("No model yet")
        names = [record.name for _, record in self._offers]
        box.setCurrentIndex(names.index(before.name) if before and before.name in names else 0)
        box.setEnabled(bool(self._offers))
        self._show()

    def choose(self, name: str) -> None:
        """Choose a model by its name in the store."""
        row = self._section.choice.findText(name)
        if row >= 0:
            self._section.choice.setCurrentIndex(row)
            self._show()

    def need(self) -> Need | None:
        """Return what the chosen model lacks to run; ``None``: it can."""
        record = self.record
        options = {"checkpoint": record.name} if record is not None else {}
        found = self._local.need(self.spec, options)
        if found is None or not found.models:
            return found
        return replace(found, text=found.text.replace("your prompts are kept", "nothing is lost"))

    def request(self, chosen: tuple[str, ...]) -> tuple[EngineSpec, dict[str, Any]]:
        """Return the engine and all its options for these structures.

        Raises
        ------
        EngineError
            If an option does not fit.
        """
        spec, record = self.spec, self.record
        known = {option.name for option in spec.options}
        name = "" if record is None else record.name
        asked: dict[str, Any] = {
            **self._section.form.values(),
            "checkpoint": name,
            "names": self._given.get(name, ""),
            "classes": "" if chosen == self.class_names else json.dumps(chosen),
        }
        if "spacing" in known:
            asked["spacing"] = self._section.grid.currentData()
            asked["step"] = self._section.step.currentData()
        return spec, spec.check_options({k: v for k, v in asked.items() if k in known})

    def use_names(self, path: Path) -> None:
        """Take class names of the chosen model from a JSON file."""
        record = self.record
        if record is None:
            return
        try:
            if path.stat().st_size > _LARGEST:
                raise OSError("too large")
            text = path.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError):
            self.said.emit(f"{path} can't be read as text.", "error")
            return
        try:
            class_names(record, text or "nothing")
        except OpenMedLabError as error:
            self.said.emit(str(error), "error")
            return
        self._given[record.name] = text
        self.said.emit(f"Class names from {path.name}.", "done")
        self._show()

    # -- inside ----------------------------------------------------------------------------

    def _found(self) -> Iterator[tuple[EngineSpec, Record]]:
        for spec in engines("automatic"):
            if _names_structures(spec):
                for record in self._local.fitting(spec):
                    if not start_only(record.network, record.card):
                        yield spec, record

    def _show(self) -> None:
        """Show what the chosen model offers."""
        spec, record, section = self.spec, self.record, self._section
        known = {option.name for option in spec.options}
        section.speed.setVisible("spacing" in known)
        section.names.setVisible("names" in known and record is not None)
        hidden = _OWN_INPUTS | ({"step"} if "spacing" in known else set())
        if section.form.spec is None or section.form.spec.id != spec.id:
            kept = tuple(option for option in spec.options if option.name not in hidden)
            section.form.show_spec(replace(spec, options=kept), {})
        names: tuple[str, ...] = TOTAL_SEGMENTATOR
        notes: tuple[str, ...] = ()
        if record is not None:
            try:
                names, notes = class_names(record, self._given.get(record.name, ""))
            except OpenMedLabError as error:
                self.said.emit(str(error), "error")
        for note in notes:
            self.said.emit(note, "unsure")
        if names[1:] != self.class_names:
            self.class_names = names[1:]
        self.names_changed.emit()
        self.changed.emit()

    def _on_names(self) -> None:
        chosen, _ = QFileDialog.getOpenFileName(
            self._section, "Class names", "", "JSON (*.json);;All files (*)"
        )
        if chosen:
            self.use_names(Path(chosen))


def _names_structures(spec: EngineSpec) -> bool:
    """Return whether an engine names structures of its own accord, whose names are known."""
    own = bool(spec.networks) and set(spec.networks) <= set(NETWORKS)
    return own or any(option.name == "classes" for option in spec.options)
