"""The coarse grid of a density map.

Bins have their centres at whole multiples of their edge in the source's world, so the maps of two
parts of a volume fit together. Where a volume begins at the origin the first bin has its centre
where the first voxel has: programs that know no positions lay one over the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import SettingsError
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.session.fingerprint import geometry_from_json, geometry_to_json

__all__ = ["DensityGrid", "Patient", "own_axes"]

Floats = NDArray[np.float64]

_PER_MM3 = 1e-9  # mm3 of one um3


@dataclass(frozen=True, eq=False)
class Patient:
    """The axes of a patient, or of an animal that was laid down like one, in a source.

    Attributes
    ----------
    geometry : Geometry
        Of the source's voxels; frame ``"patient"``.
    code : int
        What NIfTI calls the coordinates: 1 scanner, 2 another file's, 3 Talairach, 4 MNI.
    """

    geometry: Geometry
    code: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"geometry": geometry_to_json(self.geometry), "code": self.code}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Patient:
        """Return what :meth:`to_json` wrote."""
        return cls(geometry_from_json(stored["geometry"]), int(stored["code"]))

    @classmethod
    def of(cls, volume: Volume) -> Patient | None:
        """Return the axes a volume's file states, ``None`` if it states none."""
        if volume.geometry.frame != "patient":
            return None
        if getattr(volume.source, "kind", "") != "nifti":
            return cls(volume.geometry)
        header = volume.source.header
        return cls(volume.geometry, int(header["sform_code"]) or int(header["qform_code"]) or 1)


@dataclass(frozen=True)
class DensityGrid:
    """A coarse grid over a volume, its bins centred at whole multiples of their edge.

    Attributes
    ----------
    shape : tuple of int
        Voxels (z, y, x) of the volume.
    spacing : tuple of float
        Voxel size (z, y, x) in um.
    edge : float
        Edge of a bin in um; 25 and 50 are usual (Allen atlas).
    origin : tuple of float
        World (z, y, x) in um of the centre of voxel (0, 0, 0). In a source with a patient's axes
        it counts from that source's first voxel.
    patient : Patient, optional
        If the source has such axes.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    edge: float = 25.0
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    patient: Patient | None = None

    def __post_init__(self) -> None:
        if not self.edge >= max(self.spacing) * (1 - 1e-9):
            size = " x ".join(f"{s:g}" for s in self.spacing)
            raise SettingsError(
                f"bins of {self.edge:g} um are smaller than the voxels ({size} um); choose larger "
                "ones"
            )

    def bins_of(self, axis: int) -> NDArray[np.int64]:
        """Return the bin of each voxel along an axis."""
        return self._multiples(axis) - self.first[axis]

    @property
    def first(self) -> tuple[int, int, int]:
        """Centre of the first bin (z, y, x) in multiples of the edge."""
        z, y, x = (int(self._multiples(axis)[0]) for axis in range(3))
        return z, y, x

    def _multiples(self, axis: int) -> NDArray[np.int64]:
        centres = self.origin[axis] + np.arange(self.shape[axis]) * self.spacing[axis]
        found: NDArray[np.int64] = np.floor(centres / self.edge + 0.5 + 1e-9).astype(np.int64)
        return found

    @property
    def bins(self) -> tuple[int, int, int]:
        """Bins along (z, y, x)."""
        z, y, x = (int(self.bins_of(axis)[-1]) + 1 for axis in range(3))
        return z, y, x

    @property
    def volumes(self) -> Floats:
        """Volume of each bin in mm3: that of the voxels it holds."""
        z, y, x = (
            np.bincount(self.bins_of(axis), minlength=self.bins[axis]) * self.spacing[axis]
            for axis in range(3)
        )
        volumes: Floats = z[:, None, None] * y[None, :, None] * x[None, None, :] * _PER_MM3
        return volumes

    @property
    def geometry(self) -> Geometry:
        """Grid of the bins in um along the source's own axes."""
        return own_axes(self.bins, self.first, self.edge)


def own_axes(bins: tuple[int, int, int], first: tuple[int, int, int], edge: float) -> Geometry:
    """Return a grid of bins in um, its first centre at a multiple of the edge on each axis."""
    affine = Geometry.from_spacing(bins, (edge,) * 3).affine.copy()
    affine[:3, 3] = np.array(first[::-1]) * edge
    return Geometry(bins, affine, unit="um", frame="image")
