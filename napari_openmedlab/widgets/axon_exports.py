"""The Axons panel's files: skeleton, branches, density; each asks for a name and works aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QFileDialog, QInputDialog, QWidget

from napari_openmedlab.axons.density import Density, Kind
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.widgets.axon_desk import AxonDesk
from napari_openmedlab.widgets.axon_results import AxonResults

__all__ = ["AxonExports"]

_KINDS = {
    "swc": ("Save the skeleton", "skeleton.swc", "SWC (*.swc)"),
    "branches": ("Save the branches", "branches.csv", "CSV (*.csv)"),
    "density": ("Save the density map", "density.nii.gz", "NIfTI, OME-TIFF (*.nii.gz *.ome.tif)"),
}
_COUNTED: dict[str, Kind] = {"um of centre-line": "length", "voxels": "voxels"}


class AxonExports:
    """Writes what is made of results.

    Parameters
    ----------
    desk : AxonDesk
    shown : AxonResults
        The results they are made of.
    """

    def __init__(self, desk: AxonDesk, shown: AxonResults) -> None:
        self._desk = desk
        self._shown = shown

    def ask(self, kind: str, parent: QWidget) -> None:
        """Ask for a file name, then write ``"swc"``, ``"branches"`` or ``"density"``."""
        results = self._shown.results
        if results is None:
            return
        title, name, pattern = _KINDS[kind]
        chosen, _ = QFileDialog.getSaveFileName(parent, title, str(results.folder / name), pattern)
        if not chosen:
            return
        if kind != "density":
            self.write(kind, Path(chosen))
            return
        edge, yes = QInputDialog.getDouble(
            parent, "Density map", "Edge of a bin (um)", 25.0, 0.01, 10000.0, 2
        )
        if not yes:
            return
        what, yes = QInputDialog.getItem(parent, "Density map", "Per mm3", [*_COUNTED], 0, False)
        if yes:
            self.write_density(Path(chosen), edge, _COUNTED[what])

    def write(self, kind: str, path: Path) -> None:
        """Write the skeleton as SWC, or its branches as CSV."""
        from napari_openmedlab.axons.products import traced, write_branch_csv, write_skeleton

        results = self._shown.results
        if results is None:
            return
        writer = write_skeleton if kind == "swc" else write_branch_csv

        def work(monitor: Monitor) -> tuple[Any, str]:
            forest = traced(results, monitor)
            return None, f"Written: {writer(results, forest, path)}"

        self._desk.export(f"writing {path.name}", work)

    def write_density(self, path: Path, edge: float, kind: Kind = "length") -> None:
        """Write the density map and show it as a layer."""
        from napari_openmedlab.axons.products import density_of, write_density_map

        results = self._shown.results
        if results is None:
            return

        def work(monitor: Monitor) -> tuple[Density, str]:
            found = density_of(results, edge, kind, monitor)
            write_density_map(results, found, path)
            return found, f"Written: {path}"

        def then(found: Density) -> None:
            self._shown.show_density(found, results)

        self._desk.export(f"writing {path.name}", work, then)
