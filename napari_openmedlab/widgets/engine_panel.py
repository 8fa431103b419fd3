"""The engine part of the Segment panel: a form for whatever the catalogue offers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qtpy.QtCore import QObject, Qt, Signal

from napari_openmedlab.models import device
from napari_openmedlab.models.catalogue import EngineSpec, engines
from napari_openmedlab.session.objects import EngineChoice
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.local_models import LocalModels, Need
from napari_openmedlab.widgets.sections import EngineSection

__all__ = ["EnginePanel"]


class EnginePanel(QObject):
    """Shows a session's engine choice and sends out what the user chooses.

    Parameters
    ----------
    section : EngineSection
    models : LocalModels

    Attributes
    ----------
    chosen : Signal(EngineChoice)
    overlap_chosen : Signal(OverlapRule)
    """

    chosen = Signal(object)
    overlap_chosen = Signal(object)

    def __init__(
        self, section: EngineSection, models: LocalModels, parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self._section = section
        self._models = models
        self._specs: tuple[EngineSpec, ...] = engines("promptable")
        self._choice = EngineChoice()
        self._knows_devices = False
        self._kept: dict[str, Mapping[str, Any]] = {}
        for row, spec in enumerate(self._specs):
            section.choice.addItem(spec.title)
            section.choice.setItemData(row, _about(spec), Qt.ItemDataRole.ToolTipRole)
        section.choice.activated.connect(self._on_engine)
        section.form.changed.connect(self._on_options)
        section.avoid.clicked.connect(self._on_avoid)
        section.overlap.activated.connect(self._on_overlap)
        models.changed.connect(self._show_models)

    def show(self, session: Session) -> None:
        """Show the session's choice."""
        section = self._section
        self._choice = session.choice
        spec = self.spec(session)
        if spec is not None:
            section.choice.setCurrentIndex(self._specs.index(spec))
            section.choice.setToolTip(_about(spec))
            new = spec is not section.form.spec
            section.form.show_spec(spec, session.choice.options)
            section.more.setVisible(bool(spec.options))
            section.form.setVisible(bool(spec.options) and section.more.isChecked())
            if new:
                self._show_models()
        section.avoid.setChecked(session.choice.avoid_neighbours)
        section.overlap.setCurrentIndex(section.overlap.findData(session.overlap))

    def spec(self, session: Session) -> EngineSpec | None:
        """Return the catalogue entry of the session's engine, if it has one."""
        return next((spec for spec in self._specs if spec.id == session.choice.engine), None)

    def need(self, session: Session, *, fresh: bool = True) -> Need | None:
        """Return what the session's engine lacks to run; see :meth:`LocalModels.need`."""
        spec = self.spec(session)
        if spec is None:
            return None
        return self._models.need(spec, session.choice.options, fresh=fresh)

    def accepted(self, session: Session) -> frozenset[str]:
        """Return the prompt kinds that the session's engine takes."""
        spec = self.spec(session)
        return frozenset() if spec is None else frozenset(spec.prompts)

    def with_auto_run(self, choice: EngineChoice, on: bool) -> EngineChoice:
        """Return the choice with automatic runs switched on or off."""
        return replace(choice, auto_run=on)

    def note_answer(self, provenance: Mapping[str, Any]) -> None:
        """Offer this computer's devices once an engine has run on one.

        Listing them imports torch and starts graphics drivers: seconds that only the worker may
        take. After an answer both is done, unless the CPU was asked for by name.
        """
        by_name = self._choice.options.get("device") == "cpu"
        if by_name or self._knows_devices or "torch" not in sys.modules:
            return
        if "device" in provenance:
            self._knows_devices = True
            found = [(d.id, f"{d.id} ({d.problem or d.name})") for d in device.devices()]
            self._section.form.show_devices([(device.AUTO, "auto"), *found])

    def _show_models(self) -> None:
        spec = self._section.form.spec
        if spec is not None and spec.networks:
            self._section.form.show_models(self._models.fitting(spec))

    def _on_engine(self, row: int) -> None:
        """Switch the engine; each keeps the options it had."""
        self._kept[self._choice.engine] = self._choice.options
        engine = self._specs[row].id
        self._models.look()
        self._choose(engine=engine, options=self._kept.get(engine, {}))

    def _on_options(self, values: dict[str, Any]) -> None:
        self._choose(options=values)

    def _on_avoid(self, on: bool) -> None:
        self._choose(avoid_neighbours=on)

    def _choose(self, **fields: Any) -> None:
        self._choice = replace(self._choice, **fields)
        self.chosen.emit(self._choice)

    def _on_overlap(self, row: int) -> None:
        self.overlap_chosen.emit(self._section.overlap.itemData(row))


def _about(spec: EngineSpec) -> str:
    """Return the tooltip of an engine: what it is good at and what it still needs."""
    return "\n".join((spec.summary, *spec.missing()))
