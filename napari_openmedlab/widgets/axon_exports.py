"""The Axons panel's files: skeleton, branches, density; each asks for a name and works aside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
from qtpy.QtWidgets import QFileDialog, QInputDialog, QWidget

from napari_openmedlab.axons.store import Results
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.widgets.axon_desk import AxonDesk

__all__ = ["AxonExports"]

_KINDS = {
    "swc": ("Save the skeleton", "skeleton.swc", "SWC (*.swc)"),
    "branches": ("Save the branches", "branches.csv", "CSV (*.csv)"),
    "density": ("Save the density map", "density.nii.gz", "NIfTI, OME-TIFF (*.nii.gz *.ome.tif)"),
}


class AxonExports:
    """Writes what is made of results.

    Parameters
    ----------
    desk : AxonDesk
    viewer : napari.Viewer
    results : callable() -> Results or None
    say : callable(str, str)
    """

    def __init__(
        self,
        desk: AxonDesk,
        viewer: napari.Viewer,
        results: Callable[[], Results | None],
        say: Callable[[str, str], None],
    ) -> None:
        self._desk = desk
        self._viewer = viewer
        self._results = results
        self._say = say

    def ask(self, kind: str, parent: QWidget) -> None:
        """Ask for a file name, then write ``"swc"``, ``"branches"`` or ``"density"``."""
        results = self._results()
        if results is None:
            return
        title, name, pattern = _KINDS[kind]
        chosen, _ = QFileDialog.getSaveFileName(parent, title, str(results.folder / name), pattern)
        if not chosen:
            return
        if kind != "density":
            self.write(kind, Path(chosen))
            return
        unit = "um" if results.knows_spacing else "voxels"
        bin_size, yes = QInputDialog.getDouble(
            parent, "Density map", f"Edge of a bin ({unit})", 25.0, 0.01, 10000.0, 2
        )
        if yes:
            self.write_density(Path(chosen), bin_size)

    def write(self, kind: str, path: Path) -> None:
        """Write the skeleton as SWC, or its branches as CSV."""
        from napari_openmedlab.axons.products import traced, write_branch_csv, write_skeleton

        results = self._results()
        if results is None:
            return
        writer = write_skeleton if kind == "swc" else write_branch_csv

        def work(monitor: Monitor) -> tuple[Any, str]:
            forest = traced(results, monitor)
            return None, f"Written: {writer(results, forest, path)}"

        self._desk.export(f"writing {path.name}", work)

    def write_density(self, path: Path, bin_size: float) -> None:
        """Write the density map and show it as a layer."""
        from napari_openmedlab.axons.products import write_density_map

        results = self._results()
        if results is None:
            return

        def work(monitor: Monitor) -> tuple[Any, str]:
            found = write_density_map(results, path, bin_size, monitor)
            return found, f"Written: {path}"

        self._desk.export(f"writing {path.name}", work, self._show_density)

    def _show_density(self, found: Any) -> None:
        from napari_openmedlab.bridge.layers import volume_to_layer_data

        data, arguments, _ = volume_to_layer_data(found)
        arguments.pop("metadata")
        self._viewer.add_image(
            data, **{**arguments, "colormap": "viridis", "metadata": {"axons": "density"}}
        )
