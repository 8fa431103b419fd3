"""The Axons panel: axons in volumes larger than memory, from a preview to files.

The panel holds no work of its own: it asks :mod:`napari_openmedlab.axons` through its desk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
from napari.layers import Image, Layer, Shapes
from napari.utils.notifications import show_error
from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QFileDialog, QVBoxLayout, QWidget

from napari_openmedlab.axons.plan import Plan, Settings
from napari_openmedlab.axons.preview import Preview
from napari_openmedlab.axons.source import Source
from napari_openmedlab.axons.store import Results
from napari_openmedlab.bridge.axon_layers import (
    box_of_shape,
    image_layer,
    source_of_layer,
    voxel_size_of,
)
from napari_openmedlab.bridge.positions import visible_box
from napari_openmedlab.bridge.viewer import plain_viewer
from napari_openmedlab.errors import GeometryError, OpenMedLabError, SettingsError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.catalogue import EngineSpec, engines, get_spec
from napari_openmedlab.models.checkpoints.disk import size_text
from napari_openmedlab.models.contract import Progress
from napari_openmedlab.widgets.axon_cubes import AxonCubes
from napari_openmedlab.widgets.axon_desk import AxonDesk
from napari_openmedlab.widgets.axon_exports import AxonExports
from napari_openmedlab.widgets.axon_opening import AxonOpening
from napari_openmedlab.widgets.axon_previews import AxonPreviews
from napari_openmedlab.widgets.axon_results import AxonResults
from napari_openmedlab.widgets.axon_sections import (
    ExportSection,
    FindSection,
    MethodSection,
    RunSection,
    VolumeSection,
)
from napari_openmedlab.widgets.axon_training import AxonTrainingBox
from napari_openmedlab.widgets.image_chooser import LayerChooser
from napari_openmedlab.widgets.local_models import LocalModels
from napari_openmedlab.widgets.model_door import open_models
from napari_openmedlab.widgets.sections import scrolled
from napari_openmedlab.words import time_text

__all__ = ["AxonsWidget"]

_WIDTH = 360
_TRAINED = "axon-seg"  # the engine that runs what is trained here


class AxonsWidget(QWidget):
    """Find axons in a volume of any size.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer = plain_viewer(viewer)
        self._had_parent = False
        self._specs: tuple[EngineSpec, ...] = engines("blocks")
        self.desk = AxonDesk(self)
        self.shown = AxonResults(self._viewer)
        self.previews = AxonPreviews(
            self._viewer,
            lambda: self.image,
            lambda index: self._asked(lambda: self.preview_at(index)),
            self,
        )
        self._build()
        self._local = LocalModels(self)
        self.opening = AxonOpening(self.desk, self._measured, self.say, self)
        self.exports = AxonExports(self.desk, self.shown)
        self._chooser = LayerChooser(self._viewer, self.volume.choice, self._is_scan, parent=self)
        self._connect()
        self._on_engine()
        self._chooser.refresh()
        self._refresh()

    # -- building --------------------------------------------------------------------------

    def _build(self) -> None:
        self.setMinimumWidth(_WIDTH)
        self.volume = VolumeSection()
        self.method = MethodSection()
        self.find = FindSection()
        self.go = RunSection()
        self.files = ExportSection()
        for spec in self._specs:
            self.method.engine.addItem(spec.title, spec.id)
        self.cubes = AxonCubes(self.desk, self._viewer, self._previewed_block, self.say)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        self.training = AxonTrainingBox(self.desk, self._training_lacks)
        parts = (
            self.volume, self.method, self.find, self.go, self.files, self.cubes, self.training
        )  # fmt: skip
        outer.addWidget(scrolled(parts))

    def _connect(self) -> None:
        self._chooser.chosen.connect(self._on_image)
        self._local.changed.connect(self._show_models)
        self.method.engine.activated.connect(lambda _: self._on_engine())
        self.method.get.clicked.connect(lambda: open_models(self._viewer, self.spec))
        self.volume.open_folder.clicked.connect(lambda: self.opening.folder())
        self.volume.open_file.clicked.connect(lambda: self.opening.file())
        self.volume.convert.clicked.connect(lambda: self._asked(self.opening.convert))
        self.find.pick.toggled.connect(self._on_pick)
        self.find.middle.clicked.connect(lambda: self._asked(self.preview_middle))
        self.find.box.clicked.connect(lambda: self._asked(self.preview_box))
        self.find.threshold.valueChanged.connect(self._on_threshold)
        self.find.apply.clicked.connect(lambda: self._asked(self.apply_threshold))
        self.go.browse.clicked.connect(self._on_browse)
        self.go.estimate.clicked.connect(lambda: self._asked(self.estimate))
        self.go.run.clicked.connect(lambda: self._asked(self.run))
        self.go.cancel.clicked.connect(lambda: self.desk.cancel())
        self.go.open.clicked.connect(self._on_open_results)
        self.files.swc.clicked.connect(lambda: self.exports.ask("swc", self))
        self.files.branches.clicked.connect(lambda: self.exports.ask("branches", self))
        self.files.density.clicked.connect(lambda: self.exports.ask("density", self))
        desk = self.desk
        desk.said.connect(self.say)
        desk.busy_changed.connect(self._on_busy)
        desk.progressed.connect(self._on_progress)
        desk.previewed.connect(self._on_previewed)
        desk.planned.connect(self._on_planned)
        desk.finished.connect(self.show_results)
        desk.opened.connect(self.add_source)

    # -- what is chosen --------------------------------------------------------------------

    @property
    def spec(self) -> EngineSpec:
        """The chosen engine."""
        return self._specs[max(0, self.method.engine.currentIndex())]

    @property
    def image(self) -> Image | None:
        """The chosen image layer."""
        return self._chooser.layer

    @property
    def results(self) -> Results | None:
        """The results that are open."""
        return self.shown.results

    @property
    def threshold(self) -> float:
        """Probability from which a voxel is axon."""
        return self.find.threshold.value() / 100

    def source(self) -> Source:
        """Return the chosen image as a source, with the voxel size as it is typed in.

        Raises
        ------
        SettingsError
            If no image is chosen, or the voxel size makes no sense.
        """
        if self.image is None:
            raise SettingsError("Open a volume first: File > Open, or Folder… above.")
        text = self.volume.size.text().strip()
        if not text:
            return source_of_layer(self.image)
        try:
            z, y, x = (float(part) for part in text.replace(";", ",").split(","))
        except ValueError as error:
            raise SettingsError(
                f"A voxel size reads 'z, y, x' in um, for example '4, 2, 2'; got '{text}'."
            ) from error
        return source_of_layer(self.image, (z, y, x))

    def settings(self, source: Source, *, whole: bool = False) -> Settings:
        """Return what the panel's inputs say.

        Parameters
        ----------
        source : Source
        whole : bool
            Leave the region out, as previews do.
        """
        return Settings(
            engine=self.spec.id,
            options=self.spec.check_options(self.method.form.values()),
            region=None if whole else self._region(source),
            threshold=self.threshold,
            normalisation=self.method.normalise.currentData(),
            skip_background=self.method.skip.isChecked(),
        )

    def _region(self, source: Source) -> Box | None:
        chosen = self.volume.region.currentData()
        assert self.image is not None
        if chosen == "box":
            return box_of_shape(self._shapes(), self.image, source.shape)
        if chosen == "view":
            box = visible_box(self._viewer, self.image, source.shape)
            if box.is_empty:
                raise GeometryError("The view shows nothing of the volume; zoom out.")
            return box
        return None

    def _shapes(self) -> Shapes:
        layers = [each for each in self._viewer.layers if isinstance(each, Shapes)]
        active = self._viewer.layers.selection.active
        if isinstance(active, Shapes):
            return active
        if not layers:
            raise SettingsError("Add a Shapes layer and draw a rectangle in it first.")
        return layers[-1]

    # -- previews --------------------------------------------------------------------------

    def preview_at(self, index: Any) -> None:
        """Preview the block around a voxel (z, y, x) of the image."""
        source = self.source()
        assert self.image is not None
        at = tuple(float(v) for v in index)
        self.desk.preview(source, self.settings(source, whole=True), at, self.image)

    def preview_middle(self) -> None:
        """Preview the block in the middle of what the view shows."""
        self.preview_at(self.previews.middle(self.source().shape))

    def preview_box(self) -> None:
        """Preview the drawn box."""
        source = self.source()
        assert self.image is not None
        box = box_of_shape(self._shapes(), self.image, source.shape)
        self.desk.preview(source, self.settings(source, whole=True), box, self.image)

    def _on_pick(self, on: bool) -> None:
        self.previews.pick(on)
        if on:
            self.say("Click on the image to preview the block there.")

    def _previewed_block(self) -> tuple[Source, Layer, Box]:
        """Return the volume, its layer and the block that was previewed last."""
        source, image, box = self.previews.block()
        if image is self.image:  # its voxel size may have been typed in since
            source = self.source()
        return source, image, box

    def _on_previewed(self, found: Preview, source: Source, image: Image) -> None:
        self.previews.show(found, source, image, self.threshold)

    def _on_threshold(self, value: int) -> None:
        self.find.value.setText(f"{value / 100:.2f}")
        self.previews.threshold(self.threshold)
        self._refresh()

    # -- runs ------------------------------------------------------------------------------

    def estimate(self) -> None:
        """Ask what the run would take."""
        source = self._measured()
        self.desk.plan(source, self.settings(source))

    def run(self) -> None:
        """Start the run, or go on with it."""
        source, image = self._measured(), self.image
        assert image is not None
        folder = self.go.folder.text().strip()
        if not folder:
            raise SettingsError("Choose a folder for the results first.")
        if need := self._local.need(self.spec, self.method.form.values()):
            raise SettingsError(need.text.replace("your prompts are kept", "nothing is lost"))
        self.desk.run(source, self.settings(source), Path(folder), image)

    def apply_threshold(self) -> None:
        """Make the labels of the opened results anew."""
        if self.results is not None:
            self.desk.relabel(self.results, self.threshold, self.shown.image)

    def _measured(self) -> Source:
        """Return the chosen image; raise once if its voxel size is not known.

        Lengths in files would be wrong.
        """
        source = self.source()
        if source.spacing is None and self.volume.size.text().strip() == "":
            self.volume.size.setFocus()
            if not self.volume.size.property("asked"):
                self.volume.size.setProperty("asked", True)
                raise SettingsError(
                    "The voxel size is not known: type it in as 'z, y, x' in um. Press again to "
                    "go on in voxels."
                )
        return source

    def _on_planned(self, plan: Plan) -> None:
        work = len(plan.blocks) - len(plan.skipped)
        folder = Path(self.go.folder.text().strip() or Path.home())
        skipped = f" ({len(plan.skipped)} more are background)" if plan.skipped else ""
        self.go.takes.setText(
            f"{work} blocks{skipped}, about "
            f"{time_text(plan.seconds)}, {size_text(plan.memory)} of memory, at most "
            f"{size_text(plan.disk)} on the disk ({size_text(plan.free_disk(folder))} free)."
        )
        self.go.takes.show()

    def show_results(self, results: Results, image: Layer | None) -> None:
        """Show what a run found, over the layer that shows its volume."""
        try:
            self.shown.show(results, image)
        except OpenMedLabError as error:
            self.say(str(error), "error")
        self.find.threshold.setValue(round(results.threshold * 100))
        self.go.folder.setText(str(results.folder))
        self._refresh()

    # -- files -----------------------------------------------------------------------------

    def add_source(self, source: Source) -> None:
        """Show an opened volume as an image layer that reads as it is looked at."""
        data, arguments = image_layer(source)
        layer = self._viewer.add_image(data, **arguments)
        self._chooser.choose(layer)

    def _on_browse(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Folder for the results")
        if chosen:
            self.go.folder.setText(chosen)

    def _on_open_results(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Folder of a run")
        if chosen:
            scans = [layer for layer in self._viewer.layers if self._is_scan(layer)]
            scans.sort(key=lambda layer: layer is not self.image)
            shown = [(layer, source_of_layer(layer)) for layer in scans]
            self.desk.show(Path(chosen), shown)

    # -- what the user sees ----------------------------------------------------------------

    def say(self, text: str, severity: str = "info") -> None:
        """Show a sentence in the status line; errors also as napari notification."""
        self.go.status.say(text, severity)
        if severity == "error":
            show_error(text)

    def _asked(self, command: Callable[[], None]) -> None:
        try:
            command()
        except OpenMedLabError as error:
            self.say(str(error), "unsure")

    def _on_engine(self) -> None:
        self.method.form.show_spec(self.spec, {})
        self.method.get.setVisible(bool(self.spec.networks))
        self._show_models()

    def _show_models(self) -> None:
        self.method.form.show_models(self._local.fitting(self.spec))
        self.training.show_models(self._local.fitting(get_spec(_TRAINED)))

    def _training_lacks(self) -> str:
        return next(iter(get_spec(_TRAINED).missing()), "")

    def _on_image(self, image: Image | None) -> None:
        size = voxel_size_of(image) if image is not None and image.ndim == 3 else None
        self.volume.size.setProperty("asked", False)
        self.volume.size.setText(", ".join(f"{v:g}" for v in size) if size else "")
        note = "" if size or image is None else "The voxel size is not known: type it in."
        self.volume.note.setText(note)
        self.volume.note.setVisible(bool(note))
        if image is None:
            self.say("Open a volume to begin: File > Open, or Folder… above.")
        else:
            self.say("Preview a block, move the threshold, then run the whole volume.")
        self._refresh()

    def _on_busy(self, busy: bool) -> None:
        self.go.bar.setVisible(busy)
        if busy:
            self.go.bar.setRange(0, 0)
        else:
            self._asked(self.shown.look)
        self._refresh()

    def _on_progress(self, progress: Progress) -> None:
        self.go.bar.setRange(0, progress.total)
        self.go.bar.setValue(progress.done)
        if progress.text and progress.total:
            self.go.status.say(progress.text.capitalize() + ".", "busy")

    def _refresh(self) -> None:
        ready = self.image is not None and not self.desk.busy
        work = (self.find.middle, self.find.box, self.go.estimate, self.go.run)
        for each in (*work, self.volume.convert):
            each.setEnabled(ready)
        self.find.pick.setEnabled(self.image is not None)
        self.go.cancel.setEnabled(self.desk.busy)
        done = self.results is not None and not self.desk.busy
        for each in (self.files.swc, self.files.branches, self.files.density):
            each.setEnabled(done)
        moved = self.results is not None and abs(self.results.threshold - self.threshold) > 1e-6
        self.find.apply.setEnabled(done and (moved or self.shown.cut_short))

    def _is_scan(self, layer: Layer) -> bool:
        ours = self.previews.owns(layer) or "axons" in layer.metadata
        return isinstance(layer, Image) and not layer.rgb and layer.ndim == 3 and not ours

    def event(self, event: QEvent) -> bool:
        """Stop for good when the panel is taken out of the window."""
        if event.type() == QEvent.Type.ParentChange:
            if self.parent() is not None:
                self._had_parent = True
            elif self._had_parent:
                self.find.pick.setChecked(False)
                self._chooser.stop()
                self.desk.close()
        return bool(super().event(event))
