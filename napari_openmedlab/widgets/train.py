"""The Train panel: a model of one's own from labelled layers or folders, watched while it learns.

The panel holds no work of its own: cases are looked at in the viewer's worker thread, training
runs in a program of its own, and the finished model is an engine like any other.
"""

from __future__ import annotations

from typing import Any

import napari
from napari.layers import Image, Layer
from napari.utils.notifications import show_error
from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_openmedlab.bridge.preferences import PLUGIN
from napari_openmedlab.bridge.training_data import layer_cases
from napari_openmedlab.bridge.viewer import plain_viewer
from napari_openmedlab.errors import OpenMedLabError
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.training.cases import CasesFound
from napari_openmedlab.training.events import Event, Note, Paused, Step, Validated
from napari_openmedlab.training.jobs import Begun, Source
from napari_openmedlab.training.process import StoppedRun, new_run_folder
from napari_openmedlab.training.settings import TrainSettings
from napari_openmedlab.training.wire import Ended
from napari_openmedlab.widgets.image_chooser import LayerChooser
from napari_openmedlab.widgets.local_models import LocalModels
from napari_openmedlab.widgets.model_door import open_models
from napari_openmedlab.widgets.panel_life import PanelLife
from napari_openmedlab.widgets.sections import scrolled
from napari_openmedlab.widgets.train_desk import TrainDesk
from napari_openmedlab.widgets.train_sections import (
    LAYERS,
    NOTHING,
    TICKED,
    UNLABELLED,
    CaseSection,
    ModelSection,
    RunSection,
    SourceSection,
)
from napari_openmedlab.widgets.train_stopped import StoppedRuns, draw_run
from napari_openmedlab.widgets.train_words import progress_words
from napari_openmedlab.widgets.workplace import Workplace

__all__ = ["TrainWidget"]

_WIDTH = 360
_ENGINE = "mis-fm"


class TrainWidget(QWidget):
    """Train a network on labelled scans, and use it at once.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        viewer = plain_viewer(viewer)
        self._viewer = viewer
        self.workplace = Workplace.of(viewer)
        self._life = PanelLife(self.workplace)
        self._had_parent = False
        self._model = ""
        self._paused = False
        self.found: CasesFound | None = None
        self._build()
        self._local = LocalModels(self)
        self.stopped = StoppedRuns(self.run, self)
        self.desk = TrainDesk(self._life.worker, self)
        self._life.at_end(self.desk.close)
        self._chooser = LayerChooser(viewer, self.run.image, _is_image, parent=self)
        self._connect()
        self._chooser.refresh()
        self._show_starts()
        self._on_busy("")
        self.say("Label some scans, or choose folders, then press Train.")

    # -- building --------------------------------------------------------------------------

    def _build(self) -> None:
        self.setMinimumWidth(_WIDTH)
        self.source = SourceSection()
        self.cases = CaseSection()
        self.model = ModelSection()
        self.run = RunSection()
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(scrolled((self.source, self.cases, self.model, self.run)))

    def _connect(self) -> None:
        source, model, run, desk = self.source, self.model, self.run, self.desk
        source.choice.currentIndexChanged.connect(lambda _: self._forget())
        source.images.changed.connect(self._forget)
        source.labels.changed.connect(self._forget)
        source.look.clicked.connect(lambda _=False: self.look())
        model.network.currentIndexChanged.connect(lambda _: self._show_starts())
        model.get.clicked.connect(lambda _=False: open_models(self._viewer, get_spec(_ENGINE)))
        self._local.changed.connect(self._show_starts)
        run.start.clicked.connect(lambda _=False: self.train())
        run.pause.clicked.connect(lambda _=False: self._on_pause())
        run.end.clicked.connect(lambda _=False: self._on_end_now())
        run.cancel.clicked.connect(lambda _=False: self._on_cancel())
        self.stopped.wanted.connect(self.resume)
        self.stopped.said.connect(self.say)
        run.use.clicked.connect(lambda _=False: self.use())
        desk.busy_changed.connect(self._on_busy)
        desk.progressed.connect(self._on_progress)
        desk.looked.connect(self._on_looked)
        desk.begun.connect(self._on_begun)
        desk.heard.connect(self._on_event)
        desk.ended.connect(self._on_ended)
        desk.failed.connect(lambda text: self.say(text, "error"))
        self._life.activity.cancelled.connect(self._on_cancel)
        self._life.start(self, self._chooser)

    # -- cases -----------------------------------------------------------------------------

    def look(self) -> None:
        """Look at the cases there are, and show what can be learnt from them."""
        if self.desk.busy:
            return
        source = self._source()
        if source is not None:
            self.say("Looking at the cases…", "busy")
            self.desk.look(source)

    def _source(self) -> Source | None:
        """Return where cases come from; ``None`` if that was not said yet."""
        if (wanted := self.source.choice.currentData()) != LAYERS:
            images = self.source.images.path()
            if images is None:
                self.say("Choose a folder of scans, or a list.", "unsure")
                return None
            if wanted == UNLABELLED:
                return Source(images=images, unlabelled=True)
            return Source(images=images, labels=self.source.labels.path())
        cases, left_out = layer_cases(self._viewer, self.workplace.sessions)
        return Source(tuple(cases), tuple(left_out))

    def _on_looked(self, found: CasesFound) -> None:
        self._show_found(found)
        count, left_out = len(found.cases), len(found.left_out)
        text = f"{count} case{'' if count == 1 else 's'} to learn from"
        text += f", {left_out} left out." if left_out else "."
        self.say(text, "done")

    def _show_found(self, found: CasesFound | None) -> None:
        self.found = found
        self.cases.cases.show_found(found)
        labelled = self.source.choice.currentData() != UNLABELLED
        self.cases.classes.show_found(found if labelled else None)
        notes = list(found.notes) if found else []
        if found and labelled and len(found.cases) < 3:
            notes.append(
                f"With {len(found.cases)} case{'s' if len(found.cases) > 1 else ''} nothing is "
                "held out by itself, so there will be no honest figure for how well the model does "
                "on other scans. Label three or more to get one."
            )
        self.cases.note.setText("\n".join(notes))
        self.cases.note.setVisible(bool(notes))

    def _forget(self) -> None:
        """Show no cases any more: they come from elsewhere now."""
        if self.found is not None:
            self._show_found(None)

    # -- a run -----------------------------------------------------------------------------

    def settings(self) -> TrainSettings:
        """Return what was chosen.

        Raises
        ------
        SettingsError
            If it can't be.
        """
        model = self.model
        held_out: int | tuple[str, ...] | None = None
        wanted = self.cases.held_out.currentData()
        if wanted == NOTHING:
            held_out = 0
        elif wanted == TICKED:
            held_out = self.cases.cases.held_out()
        return TrainSettings(
            name=model.name.text().strip(),
            network=str(model.network.currentData()),
            init=str(model.start.currentData() or ""),
            iterations=model.count(),
            held_out=held_out,
            seed=model.seed.value(),
            device=str(model.device.currentData()),
        )

    def train(self) -> None:
        """Prepare a run and train it."""
        if self.desk.busy:
            return
        source = self._source()
        if source is None:
            return
        try:
            settings = self.settings()
            labelled = self.found is not None and not source.unlabelled
            classes = self.cases.classes.chosen() if labelled else None
            if classes is not None and not classes:
                self.say("Tick at least one class.", "unsure")
                return
            self._begin_run()
            self.desk.begin(source, classes, settings, new_run_folder(settings.name))
        except OpenMedLabError as error:
            self.say(str(error), "error")

    def resume(self, run: StoppedRun) -> None:
        """Go on with a run that stopped."""
        if self.desk.busy:
            return
        self._begin_run()
        draw_run(self.run.plot, run)
        try:
            self.desk.follow(run.folder)
        except OpenMedLabError as error:
            self.say(str(error), "error")
            return
        self.say(f"Going on from iteration {run.state.iteration}…", "busy")

    def _begin_run(self) -> None:
        self._model, self._paused = "", False
        self.run.plot.clear_run()
        self.run.use.hide()
        self.run.image.hide()
        self._note(())
        self.run.numbers.setText("")
        self.say("Preparing the cases…", "busy")

    def _on_begun(self, begun: Begun) -> None:
        plan = begun.plan
        edges = " x ".join(map(str, plan.preprocessing.patch))
        self._note((
            f"{plan.network} {f'from {plan.init}' if plan.init else 'from scratch'}, patches of "
            f"{edges} voxels. Held out: {', '.join(plan.held_out) or 'nothing'}.",
            *begun.notes,
        ))  # fmt: skip
        self.say("Starting the training program…", "busy")

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Step):
            run = self.run
            run.bar.setRange(0, event.total)
            run.bar.setValue(event.iteration)
            run.numbers.setText(progress_words(event))
            run.plot.add_loss(event.iteration, event.loss)
            if not self._paused:
                self.say("Training…", "busy")
        elif isinstance(event, Validated):
            self.run.plot.add_dice(event.iteration, event.dice)
            best = ", the best so far" if event.best else ""
            self.say(f"Held-out Dice {event.mean:.2f}{best}.", "busy")
        elif isinstance(event, Paused):
            self._paused = event.waiting
            self.run.pause.setText("Go on" if event.waiting else "Pause")
            self.say(
                "Paused; the state is on the disk, so napari may be closed."
                if event.waiting
                else "Training…",
                "info" if event.waiting else "busy",
            )
        elif isinstance(event, Note):
            self._note((self.run.notes.text(), event.text))

    def _on_pause(self) -> None:
        process = self.desk.process
        if process is None:
            return
        if self._paused:
            process.go_on()
        else:
            process.pause()
            self.say("Pauses after the iteration at hand…", "busy")

    def _on_end_now(self) -> None:
        if self.desk.process is not None:
            self.desk.process.end_early()
            self.say("Ends after the iteration at hand, then makes the model…", "busy")

    def _on_cancel(self) -> None:
        training = self.desk.process is not None
        self.desk.cancel()
        text = "Stops after the iteration at hand…" if training else "Cancelled."
        self.say(text, "busy" if training else "info")

    def _on_ended(self, ended: Ended) -> None:
        severity = {"finished": "done", "stopped": "info", "failed": "error"}[ended.how]
        self.say(_sentence(ended), severity)
        if ended.how == "finished":
            self._model = ended.model
            self._chooser.choose(self._current_image())
            record = self._record(ended.model)
            for shown in (self.run.use, self.run.image):
                shown.setVisible(record is not None)
        self._local.look()
        self.stopped.look()

    def _current_image(self) -> Layer | None:
        """Return the image the user works on: the selected layer, else the one chosen here."""
        active = self._viewer.layers.selection.active
        return active if isinstance(active, Image) else self._chooser.layer

    def _record(self, name: str) -> Any:
        """Return the record of a model that segments; ``None`` if it is gone."""
        fitting = self._local.fitting(get_spec(_ENGINE))
        return next((r for r in fitting if r.name == name and r.card.get("classes")), None)

    # -- the model -------------------------------------------------------------------------

    def use(self) -> None:
        """Label the chosen image with the model that was just trained, in the Organs panel."""
        image = self._chooser.layer
        if image is None or not self._model:
            self.say("Open an image to use the model on.", "unsure")
            return
        dock, panel = self._viewer.window.add_plugin_dock_widget(PLUGIN, "Organs", tabify=True)
        dock.show()
        dock.raise_()
        row = panel.scan.choice.findText(image.name)
        if row >= 0:
            panel.scan.choice.setCurrentIndex(row)
            panel.scan.choice.activated.emit(row)
        panel.models.look()
        panel.models.choose(self._model)
        panel.structures.tree.choose(panel.models.class_names)
        panel.run()

    def _show_starts(self) -> None:
        """Offer the weights of the chosen network to start from."""
        box, network = self.model.start, self.model.network.currentData()
        before = box.currentData()
        box.clear()
        box.addItem("Scratch", "")
        fitting = self._local.fitting(get_spec(_ENGINE))
        for record in (each for each in fitting if each.network == network):
            kind = "your own" if record.card.get("kind") == "labels" else "pre-trained"
            box.addItem(f"{record.name} ({kind})", record.name)
        row = box.findData(before)
        published = [r for r in range(1, box.count()) if "pre-trained" in box.itemText(r)]
        box.setCurrentIndex(row if row > 0 else (published[0] if published else 0))

    # -- what the user sees ----------------------------------------------------------------

    def say(self, text: str, severity: str = "info") -> None:
        """Show a sentence in the status line; errors also as napari notification."""
        self.run.status.say(text, severity)
        if severity == "error":
            show_error(text)

    def _note(self, notes: tuple[str, ...]) -> None:
        text = "\n".join(note for note in notes if note)
        self.run.notes.setText(text)
        self.run.notes.setVisible(bool(text))

    def _on_busy(self, what: str) -> None:
        run, training = self.run, what == "training"
        run.start.setEnabled(not what)
        run.resume.setEnabled(not what)
        run.forget.setEnabled(not what)
        self.source.look.setEnabled(not what)
        run.cancel.setEnabled(bool(what))
        run.pause.setEnabled(training)
        run.end.setEnabled(training)
        run.pause.setText("Pause")
        run.bar.setRange(0, 0 if what else 1)
        run.bar.reset()
        if what in ("looking", "preparing"):
            self._life.activity.begin(f"{what} (Train)")
        else:
            self._life.activity.end()

    def _on_progress(self, progress: Any) -> None:
        self.run.bar.setRange(0, progress.total)
        self.run.bar.setValue(progress.done)
        if progress.text:
            self.say(f"{progress.text[:1].upper()}{progress.text[1:]}…", "busy")
        self._life.activity.report(progress)

    def event(self, event: QEvent) -> bool:
        """Stop for good when the panel is taken out of the window."""
        if event.type() == QEvent.Type.ParentChange:
            if self.parent() is not None:
                self._had_parent = True
            elif self._had_parent:
                self._life.end()
        return bool(super().event(event))


def _is_image(layer: Layer) -> bool:
    return isinstance(layer, Image)


def _sentence(ended: Ended) -> str:
    text = ended.text[:1].upper() + ended.text[1:]
    return text if text.endswith(".") else f"{text}."
