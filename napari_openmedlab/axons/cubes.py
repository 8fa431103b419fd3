"""Training cubes from a volume of any size: rough labels by a threshold, fine by thinning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.axons.annotate import Cube, fine_label, high_pass, rough_label
from napari_openmedlab.axons.source import Source
from napari_openmedlab.geometry.boxes import Box

__all__ = ["Sketch", "sketch_of"]


@dataclass(frozen=True, eq=False)
class Sketch:
    """A cube before its label is settled; moving the threshold reads and filters nothing.

    Attributes
    ----------
    box : Box
        Voxels of the volume.
    image : ndarray, ``box.shape``
    passed : ndarray, ``box.shape``
        What is brighter than its surroundings, in grey values.
    """

    box: Box
    image: NDArray[Any]
    passed: NDArray[Any]

    def rough(self, threshold: float) -> NDArray[np.bool_]:
        """Return where the high-pass reaches a threshold (grey values)."""
        return rough_label(self.passed, threshold)

    @property
    def suggestion(self) -> float:
        """A threshold to begin with: the brightest two per cent."""
        return float(np.percentile(self.passed, 98))

    def axons(self, threshold: float, smallest: int = 10) -> Cube:
        """Return the cube with its published fine label: centre-lines grown by one voxel."""
        return Cube(self.image, fine_label(self.rough(threshold), smallest), "axon", self.box)

    def painted(self, label: NDArray[Any]) -> Cube:
        """Return the cube with a label made by hand, thinned as the published ones are."""
        return Cube(self.image, fine_label(np.asarray(label) != 0), "axon", self.box)

    def artefacts(self) -> Cube:
        """Return the cube as one of bright structures that are no axons."""
        return Cube(self.image, np.zeros(self.box.shape, bool), "artefact", self.box)


def sketch_of(source: Source, box: Box) -> Sketch:
    """Read a box of a volume and filter it.

    Raises
    ------
    ReadError
        If the voxels can't be read.
    """
    image = source.read(box)
    return Sketch(box, image, high_pass(image))
