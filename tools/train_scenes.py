"""Make the screenshots of docs/training.md: the real panel, a small network that really learns.

Usage: as ``tools/make_screenshots.py``. Takes some minutes on a CPU. The three scans are the
made-up CT sample, moved and with noise: they show the panel, not what a network can do.
"""

from __future__ import annotations

import sys

import napari
import numpy as np
from make_screenshots import shoot
from qtpy.QtTest import QTest

from napari_openmedlab.bridge.layers import labels_to_layer_data, volume_to_layer_data
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.io.sidecar import LabelInfo
from napari_openmedlab.sample_data import load
from napari_openmedlab.training.settings import TrainSettings
from napari_openmedlab.widgets.train import TrainWidget

WANTED = ("liver", "spleen", "kidney left", "kidney right")
COLOURS = ((0.86, 0.45, 0.33), (0.48, 0.62, 0.89), (0.93, 0.78, 0.34), (0.56, 0.81, 0.47))
SETTINGS = TrainSettings(
    name="Four organs",
    size=(8, 16, 16, 32, 32),
    patch=(16, 48, 48),
    resolution_mode=0,
    intensity="ct",
    window=(-160.0, 240.0),
    iterations=400,
    batch=1,
    validate_every=40,
    learning_rate=3e-3,
    flips="none",
    device="cpu",
)


def cases(count: int) -> list[tuple[Volume, np.ndarray]]:
    """Return the sample at a third of its resolution, each time moved and with other noise."""
    volume, labels, names = load("ct_torso")
    numbers = [next(n for n, name in names.items() if name == wanted) for wanted in WANTED]
    kept = np.select([labels == number for number in numbers], range(1, len(WANTED) + 1))
    image, kept = volume.array[10:46, ::3, ::3], kept[10:46, ::3, ::3].astype(np.uint8)
    affine = volume.geometry.affine.copy()
    affine[:3, 1:3] *= 3
    affine[:3, 3] = volume.geometry.to_world((10, 1, 1))
    geometry = Geometry(image.shape, affine, frame="patient")
    made = []
    for number in range(count):
        rng = np.random.default_rng(number)
        moved = tuple(int(n) for n in rng.integers(-4, 5, 3))
        noisy = np.roll(image, moved, (0, 1, 2)) + rng.normal(0, 15, image.shape)
        scan = Volume(
            np.rint(noisy).astype(np.int16), geometry, name=f"torso {number + 1}", modality="CT"
        )
        made.append((scan, np.roll(kept, moved, (0, 1, 2))))
    return made


def opened() -> tuple[napari.Viewer, TrainWidget]:
    """Return a window with three labelled scans, a fourth without labels, and the panel."""
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1500, 1380)
    infos = {
        n: LabelInfo(name, c) for n, (name, c) in enumerate(zip(WANTED, COLOURS, strict=True), 1)
    }
    for number, (scan, labels) in enumerate(cases(4)):
        data, keywords, _ = volume_to_layer_data(scan)
        viewer.add_image(data, **keywords | {"visible": number == 3})
        if number < 3:
            data, keywords, _ = labels_to_layer_data(labels, scan, infos, f"organs {number + 1}")
            viewer.add_labels(data, **keywords)
    panel = TrainWidget(viewer)
    viewer.window.add_dock_widget(panel, name="Train (OpenMedLab)")
    panel.model.name.setText(SETTINGS.name)
    panel.settings = lambda: SETTINGS  # type: ignore[method-assign]
    QTest.qWait(500)
    return viewer, panel


def wait_until(panel: TrainWidget, ready: object, seconds: float = 1500) -> None:
    """Wait until a condition holds."""
    for _ in range(int(seconds * 5)):
        QTest.qWait(200)
        if ready():  # type: ignore[operator]
            return
    raise SystemExit(f"gave up: {panel.run.status.text()}")


def main() -> None:
    """Make all pictures."""
    viewer, panel = opened()
    panel.look()
    wait_until(panel, lambda: panel.found is not None)
    panel.train()
    wait_until(panel, lambda: len(panel.run.plot.dice) >= 7)
    shoot(viewer, "train_running")
    wait_until(panel, lambda: not panel.desk.busy)
    print(panel.run.status.text())
    for layer in viewer.layers:
        if layer.name.startswith("organs"):
            layer.visible = False
    viewer.layers.selection.active = viewer.layers["torso 4"]
    panel._chooser.choose(viewer.layers["torso 4"])
    panel.use()
    organs = next(d for n, d in viewer.window.dock_widgets.items() if n.startswith("Organs"))
    wait_until(panel, lambda: organs.results.table.rowCount() and not organs.desk.busy)
    QTest.qWait(1500)
    viewer.dims.set_point(0, viewer.dims.range[0].start + 64)
    shoot(viewer, "train_used")
    viewer.close()


if __name__ == "__main__":
    sys.exit(main())
