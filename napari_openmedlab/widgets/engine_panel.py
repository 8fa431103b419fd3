"""The engine part of the Segment panel: a form for whatever the catalogue offers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qtpy.QtCore import QObject, Qt, Signal

from napari_openmedlab.models.catalogue import EngineSpec, engines
from napari_openmedlab.session.objects import EngineChoice
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.sections import EngineSection

__all__ = ["EnginePanel"]


class EnginePanel(QObject):
    """Shows a session's engine choice and sends out what the user chooses.

    Attributes
    ----------
    chosen : Signal(EngineChoice)
    overlap_chosen : Signal(OverlapRule)
    """

    chosen = Signal(object)
    overlap_chosen = Signal(object)

    def __init__(self, section: EngineSection, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._section = section
        self._specs: tuple[EngineSpec, ...] = engines("promptable")
        self._choice = EngineChoice()
        for row, spec in enumerate(self._specs):
            section.choice.addItem(spec.title)
            section.choice.setItemData(row, _about(spec), Qt.ItemDataRole.ToolTipRole)
        section.choice.activated.connect(self._on_engine)
        section.form.changed.connect(self._on_options)
        section.avoid.clicked.connect(self._on_avoid)
        section.overlap.activated.connect(self._on_overlap)

    def show(self, session: Session) -> None:
        """Show the session's choice."""
        section = self._section
        self._choice = session.choice
        spec = self._spec(session.choice.engine)
        if spec is not None:
            section.choice.setCurrentIndex(self._specs.index(spec))
            section.choice.setToolTip(_about(spec))
            section.form.show_spec(spec, session.choice.options)
            section.more.setVisible(bool(spec.options))
            section.form.setVisible(bool(spec.options) and section.more.isChecked())
        section.avoid.setChecked(session.choice.avoid_neighbours)
        section.overlap.setCurrentIndex(section.overlap.findData(session.overlap))

    def accepted(self, session: Session) -> frozenset[str]:
        """Return the prompt kinds that the session's engine takes."""
        spec = self._spec(session.choice.engine)
        return frozenset() if spec is None else frozenset(spec.prompts)

    def with_auto_run(self, choice: EngineChoice, on: bool) -> EngineChoice:
        """Return the choice with automatic runs switched on or off."""
        return replace(choice, auto_run=on)

    def _spec(self, engine_id: str) -> EngineSpec | None:
        return next((spec for spec in self._specs if spec.id == engine_id), None)

    def _on_engine(self, row: int) -> None:
        self.chosen.emit(replace(self._choice, engine=self._specs[row].id, options={}))

    def _on_options(self, values: dict[str, Any]) -> None:
        self.chosen.emit(replace(self._choice, options=values))

    def _on_avoid(self, on: bool) -> None:
        self.chosen.emit(replace(self._choice, avoid_neighbours=on))

    def _on_overlap(self, row: int) -> None:
        self.overlap_chosen.emit(self._section.overlap.itemData(row))


def _about(spec: EngineSpec) -> str:
    """Return the tooltip of an engine: what it is good at and what it still needs."""
    return "\n".join((spec.summary, *spec.missing()))
