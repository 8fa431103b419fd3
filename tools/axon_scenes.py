"""Make the screenshots of docs/axons.md and its tutorial: the real panel on the sample volume.

Usage: as ``tools/make_screenshots.py``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import napari
from make_screenshots import shoot
from qtpy.QtTest import QTest

from napari_openmedlab.bridge.layers import volume_to_layer_data
from napari_openmedlab.sample_data import load
from napari_openmedlab.widgets.axons import AxonsWidget


def wait(panel: AxonsWidget) -> None:
    """Wait until the desk has nothing to do."""
    for _ in range(900):
        QTest.qWait(100)
        if not panel.desk.busy:
            QTest.qWait(300)
            return
    raise SystemExit(f"no end: {panel.go.status.text()}")


def main() -> None:
    """Show a preview, an estimate, and the results with their density in 3D."""
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1500, 1000)
    data, keywords, _ = volume_to_layer_data(load("light_sheet_axons")[0])
    viewer.add_image(data, **keywords)
    panel = AxonsWidget(viewer)
    viewer.window.add_dock_widget(panel, name="Axons (OpenMedLab)")
    QTest.qWait(500)
    panel.preview_at((28, 88, 88))
    wait(panel)
    shoot(viewer, "axons_preview")
    with tempfile.TemporaryDirectory() as folder:
        panel.go.folder.setText("brain_axons")
        panel.method.form.input_of("block").setValue(64)
        panel.go.estimate.click()
        wait(panel)
        panel.go.folder.setText(str(Path(folder) / "brain_axons"))
        panel.go.run.click()
        wait(panel)
        panel.go.folder.setText("brain_axons")
        for layer in list(viewer.layers):
            if layer.name.startswith("preview"):
                viewer.layers.remove(layer)
        viewer.dims.ndisplay = 3
        viewer.scene.camera.angles = (8, -28, 62)
        shoot(viewer, "axons_results")
        viewer.close()


if __name__ == "__main__":
    main()
