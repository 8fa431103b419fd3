"""Training cubes in the Axons panel: a rough label by a threshold, corrected by hand, exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
from napari.layers import Labels, Layer
from qtpy.QtWidgets import (
    QCheckBox,
    QDoubleSpinBox,
    QFileDialog,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QVBoxLayout,
)

from napari_openmedlab.axons.annotate import export_cubes
from napari_openmedlab.axons.cubes import Sketch, sketch_of
from napari_openmedlab.axons.source import Source
from napari_openmedlab.bridge.axon_layers import label_arguments
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.widgets.axon_desk import AxonDesk
from napari_openmedlab.widgets.sections import button

__all__ = ["AxonCubes"]

_NAME = "training: rough label"


class AxonCubes(QGroupBox):
    """Makes cubes for training out of the block that was previewed last.

    Parameters
    ----------
    desk : AxonDesk
    viewer : napari.Viewer
    block : callable() -> (Source, Layer, Box)
        The volume, its layer and the block; raises a sentence if there is none.
    say : callable(str, str)
    """

    def __init__(
        self,
        desk: AxonDesk,
        viewer: napari.Viewer,
        block: Callable[[], tuple[Source, Layer, Box]],
        say: Callable[[str, str], None],
    ) -> None:
        super().__init__("Training cubes")
        self._desk, self._viewer, self._block, self._say = desk, viewer, block, say
        self._sketch: Sketch | None = None
        self._source: Source | None = None
        self._layer: Labels | None = None
        self._build()

    def _build(self) -> None:
        self.sketch = button(
            "Label the previewed block", "A rough label: what is brighter than its surroundings"
        )
        self.threshold = QDoubleSpinBox()
        self.threshold.setRange(0.0, 1e6)
        self.threshold.setDecimals(1)
        self.threshold.setToolTip("Grey values above the surroundings from which a voxel is axon")
        self.artefacts = QCheckBox("No axons here")
        self.artefacts.setToolTip("An artefact cube: bright structures that are no axons")
        self.add = button(
            "Add to a folder…",
            "Thin the label as published and add image and label, to be trained on below",
        )
        row = QHBoxLayout()
        row.addWidget(QLabel("Threshold"))
        row.addWidget(self.threshold, 1)
        row.addWidget(self.artefacts)
        layout = QVBoxLayout(self)
        layout.addWidget(self.sketch)
        layout.addLayout(row)
        layout.addWidget(self.add)
        self.sketch.clicked.connect(lambda: self.begin())
        self.threshold.valueChanged.connect(self._on_threshold)
        self.add.clicked.connect(self._on_add)
        self.add.setEnabled(False)

    def begin(self) -> None:
        """Read the block that was previewed last and label it roughly."""
        from napari_openmedlab.errors import OpenMedLabError

        try:
            source, image, box = self._block()
        except OpenMedLabError as error:
            self._say(str(error), "unsure")
            return

        def work(_: Monitor) -> tuple[Sketch, str]:
            return sketch_of(source, box), "Move the threshold, paint what is wrong, then add it."

        def then(found: Sketch) -> None:
            self._show(found, source, image)

        self._desk.export("labelling the block", work, then)

    def save(self, folder: Path) -> None:
        """Add the cube to a folder of cubes."""
        sketch, source, layer = self._sketch, self._source, self._layer
        if sketch is None or source is None or layer is None:
            return
        label = np.array(layer.data)
        artefacts, threshold = self.artefacts.isChecked(), self.threshold.value()

        def work(_: Monitor) -> tuple[Any, str]:
            cube = sketch.artefacts() if artefacts else sketch.painted(label)
            facts = {"source": source.name, "threshold": threshold}
            (written,) = export_cubes(folder, [cube], source.spacing, facts)
            return None, f"Written: {written} ({int(cube.label.sum())} voxels of axon)."

        self._desk.export("writing the cube", work)

    def _show(self, sketch: Sketch, source: Source, image: Layer) -> None:
        if self._layer is not None and self._layer in self._viewer.layers:
            self._viewer.layers.remove(self._layer)
        self._sketch, self._source = sketch, source
        self.threshold.blockSignals(True)
        self.threshold.setSingleStep(max(1.0, sketch.suggestion / 50))
        self.threshold.setValue(sketch.suggestion)
        self.threshold.blockSignals(False)
        label = sketch.rough(self.threshold.value()).astype(np.uint8)
        arguments = label_arguments(image, sketch.box)
        self._layer = self._viewer.add_labels(label, **arguments, name=_NAME)
        self.add.setEnabled(True)

    def _on_threshold(self, value: float) -> None:
        if self._sketch is not None and self._layer is not None:
            self._layer.data = self._sketch.rough(value).astype(np.uint8)

    def _on_add(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Folder of training cubes")
        if chosen:
            self.save(Path(chosen))
