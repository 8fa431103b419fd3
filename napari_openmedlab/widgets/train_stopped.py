"""Runs that stopped before their end: listed, gone on with, or deleted."""

from __future__ import annotations

from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QMessageBox

from napari_openmedlab.errors import OpenMedLabError
from napari_openmedlab.training.process import StoppedRun, forget_run, stopped_runs
from napari_openmedlab.widgets.train_plot import TrainPlot
from napari_openmedlab.widgets.train_sections import RunSection

__all__ = ["StoppedRuns", "draw_run"]


class StoppedRuns(QObject):
    """Keeps the list of the Train panel in step with the runs on the disk.

    Parameters
    ----------
    section : RunSection

    Attributes
    ----------
    wanted : Signal(StoppedRun)
        The user wants to go on with this one.
    said : Signal(str, str)
        A sentence and its severity.
    """

    wanted = Signal(object)
    said = Signal(str, str)

    def __init__(self, section: RunSection, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._section = section
        self._runs: tuple[StoppedRun, ...] = ()
        section.resume.clicked.connect(lambda _=False: self._on_resume())
        section.forget.clicked.connect(lambda _=False: self._on_forget())
        self.look()

    @property
    def chosen(self) -> StoppedRun | None:
        """The run that is shown."""
        row = self._section.stopped.currentIndex()
        return self._runs[row] if 0 <= row < len(self._runs) else None

    def look(self) -> None:
        """List the runs there are."""
        self._runs = stopped_runs()
        box = self._section.stopped
        box.clear()
        for each in self._runs:
            total = each.state.plan.loop.iterations
            box.addItem(f"{each.folder.name}: {each.state.iteration} of {total}")
        for shown in (box, self._section.resume, self._section.forget):
            shown.setVisible(bool(self._runs))

    def _on_resume(self) -> None:
        if (run := self.chosen) is not None:
            self.wanted.emit(run)

    def _on_forget(self) -> None:
        run = self.chosen
        if run is None:
            return
        question = f"Delete the run {run.folder.name} and all it has learnt?"
        answer = QMessageBox.question(self._section, "Delete a run", question)
        if answer != QMessageBox.StandardButton.Yes:
            return
        try:
            forget_run(run.folder)
            self.said.emit(f"The run {run.folder.name} is deleted.", "done")
        except OpenMedLabError as error:
            self.said.emit(str(error), "error")
        self.look()


def draw_run(plot: TrainPlot, run: StoppedRun) -> None:
    """Show what a run has learnt so far."""
    for number, (iteration, loss) in enumerate(run.state.losses, 1):
        plot.add_loss(iteration, loss, draw=number == len(run.state.losses))
    for iteration, dice in run.state.dice:
        plot.add_dice(iteration, dice)
