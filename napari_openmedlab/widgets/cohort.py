"""The Cohort panel: mark a few templates, run a folder of scans, look through the results."""

from __future__ import annotations

import napari
from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QTabWidget, QVBoxLayout, QWidget

from napari_openmedlab.bridge.viewer import plain_viewer
from napari_openmedlab.cohort.library import Library
from napari_openmedlab.widgets.background import Background
from napari_openmedlab.widgets.cohort_review import ReviewTab
from napari_openmedlab.widgets.cohort_run import RunTab
from napari_openmedlab.widgets.cohort_templates import TemplatesTab
from napari_openmedlab.widgets.panel_life import PanelLife
from napari_openmedlab.widgets.sections import StatusLine, scrolled
from napari_openmedlab.widgets.workplace import Workplace

__all__ = ["CohortWidget"]

_WIDTH = 380


class CohortWidget(QWidget):
    """Three tabs: Templates, Cohort, Review. The work is done below; this puts it together.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        viewer = plain_viewer(viewer)
        self.workplace = Workplace.of(viewer)
        self._life = PanelLife(self.workplace)
        self._had_parent = self._taken_out = False
        self._background = Background(self.workplace.worker, self)
        self.templates = TemplatesTab(viewer, self.workplace.sessions, self._background)
        self.run = RunTab(self._library)
        self.review = ReviewTab(viewer, self.workplace, self._library)
        self.status = StatusLine()
        self.status.say("Choose or make a template library.")
        self.tabs = QTabWidget()
        for tab, title in (
            (self.templates, "Templates"),
            (self.run, "Cohort"),
            (self.review, "Review"),
        ):
            self.tabs.addTab(scrolled((tab,)), title)
            tab.said.connect(self.status.say)
        self.setMinimumWidth(_WIDTH)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 4)
        layout.addWidget(self.tabs, 1)
        layout.addWidget(self.status)
        self.run.results_changed.connect(self.review.results_changed)
        self.run.case_done.connect(self.review.case_done)
        self.run.picked.connect(self._on_picked)
        self.review.library_changed.connect(self._on_library)
        self._life.at_end(self._end)
        self._life.start(self, self.templates.chooser)

    def _library(self) -> Library | None:
        return self.templates.library

    def _end(self) -> None:
        """Stop everything; a window that is closing takes the layers with it."""
        goes_on = self._taken_out
        self.templates.end(remove=goes_on)
        self.run.end()
        self.review.end(remove=goes_on)
        self._background.close()

    def _on_library(self) -> None:
        library = self.templates.library
        if library is not None:
            library.reload()
            self.templates.show_library()

    def _on_picked(self, case: str) -> None:
        self.tabs.setCurrentIndex(2)
        self.review.desk.open(case)

    def event(self, event: QEvent) -> bool:
        """Stop for good when the panel is taken out of the window."""
        if event.type() == QEvent.Type.ParentChange:
            if self.parent() is not None:
                self._had_parent = True
            elif self._had_parent:
                self._taken_out = True
                self._life.end(remove_layers=True)
        return bool(super().event(event))
