"""Opened results of the Axons panel, and their layers over the image they were made in."""

from __future__ import annotations

from typing import Any

import napari
from napari.layers import Layer

from napari_openmedlab.axons.density import Density
from napari_openmedlab.axons.store import Results
from napari_openmedlab.bridge.axon_layers import density_layer, result_layers

__all__ = ["AxonResults", "cut_short"]


def cut_short(results: Results) -> str:
    """Return a sentence on labels that were not made to the end; empty if they were."""
    if results.complete:
        return ""
    if results.relabelling is not None:
        return "The labels are of two thresholds; Apply makes them anew."
    if len(results.done()) == results.run["blocks"]:
        return "The labels' coarser levels are missing; Apply makes them."
    return ""  # the run itself goes on


class AxonResults:
    """Keeps the results that are open, and shows them.

    The user's image keeps its place, whatever voxel size was typed in: layers of results are laid
    over it, and true lengths are in the files.

    Attributes
    ----------
    results : Results or None
    cut_short : bool
        Whether making their labels was; see :func:`cut_short`.
    """

    def __init__(self, viewer: napari.Viewer) -> None:
        self._viewer = viewer
        self._image: Layer | None = None
        self.results: Results | None = None
        self.cut_short = False

    def look(self) -> None:
        """See what became of the labels."""
        self.cut_short = self.results is not None and bool(cut_short(self.results))

    @property
    def image(self) -> Layer | None:
        """The layer that shows the volume they were made in, if one does."""
        there = self._image is not None and self._image in self._viewer.layers
        return self._image if there else None

    def show(self, results: Results, image: Layer | None) -> None:
        """Show probability and labels in all resolutions, in place of older ones of the run.

        Parameters
        ----------
        results : Results
        image : Layer or None
            Shows the volume they were made in.
        """
        folder = str(results.folder)
        for layer in [each for each in self._viewer.layers if _run_of(each) == folder]:
            self._viewer.layers.remove(layer)
        self.results, self._image = results, image
        self.look()
        for kind, data, arguments in result_layers(results, self.image):
            self._viewer.add_layer(kind(data, **arguments))

    def show_density(self, found: Density, results: Results) -> None:
        """Show a density map of results, which may no longer be the opened ones."""
        same = self.results is not None and self.results.folder == results.folder
        over = self.image if same else None
        data, arguments = density_layer(found, results, over)
        self._viewer.add_image(data, **arguments)


def _run_of(layer: Layer) -> Any:
    return layer.metadata.get("axons")
