"""What a reader remembers of its file, so that a mask can be written on exactly that grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from napari_openmedlab.geometry.frames import Reorientation
from napari_openmedlab.geometry.volume import Geometry

__all__ = ["SourceGrid", "SourceKind"]

SourceKind = Literal["nifti", "dicom", "itk", "tiff", "ome-zarr", "array"]


@dataclass(frozen=True, eq=False)
class SourceGrid:
    """The grid of a file as the file has it, and how it became the displayed one.

    Attributes
    ----------
    kind : str
        Family of the file format.
    path : Path or None
        The file or folder that was read.
    geometry : Geometry
        Grid of the source array in *source order*: for NIfTI the array axes are (i, j, k) as
        stored, for the other formats (slice, row, column); its affine maps that index to LPS.
    move : Reorientation
        Brings a source-order array to display order; ``move.undo`` brings masks back.
    header : object
        What the writer of the same format needs to repeat (a NIfTI header with its codes, the
        DICOM frame of reference and instance UIDs ...). Never shown, never in a sidecar: it
        may hold patient data.
    """

    kind: SourceKind
    path: Path | None
    geometry: Geometry
    move: Reorientation
    header: Any = field(default=None, repr=False)

    @property
    def display_geometry(self) -> Geometry:
        """The grid after reordering: the geometry of the volume that was read."""
        return self.geometry.reorient(self.move)

    def to_source(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a view of a display-order array in the order of the file."""
        view: NDArray[Any] = self.move.undo(array)
        return view
