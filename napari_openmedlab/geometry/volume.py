"""A grid in space (:class:`Geometry`) and an image on it (:class:`Volume`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry import frames
from napari_openmedlab.geometry.boxes import Box

__all__ = ["Frame", "Geometry", "Unit", "Volume"]

Unit = Literal["mm", "um", "pixel"]
Frame = Literal["patient", "image"]


@dataclass(frozen=True, eq=False)
class Geometry:
    """Shape and place of a voxel grid, without voxels.

    Attributes
    ----------
    shape : tuple of int
        Voxels along (z, y, x).
    affine : ndarray, shape (4, 4), float64, read-only
        Maps an index (z, y, x, 1) - voxel *centres* at integers - to (x, y, z, 1): LPS mm for
        a patient frame; plain image axes in ``unit`` for microscopy.
    unit : {"mm", "um", "pixel"}
        Length unit of the affine. ``"pixel"`` means the voxel size is not known.
    frame : {"patient", "image"}
        Whether the world axes are the patient's (LPS) or only the image's own.

    Raises
    ------
    GeometryError
        If the shape is not three positive integers or the affine has no inverse.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64] = field(repr=False)
    unit: Unit = "mm"
    frame: Frame = "patient"

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError(f"a volume has three axes of at least one voxel, got {shape}")
        affine = frames.as_affine(self.affine)
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_spacing(
        cls,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        *,
        unit: Unit = "mm",
        frame: Frame = "image",
    ) -> Geometry:
        """Return an axis-aligned grid whose world axes are the array axes reversed.

        World x, y, z grow with array axes 2, 1, 0; voxel (0, 0, 0) sits at the origin.
        """
        affine = np.zeros((4, 4))
        affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing, 1.0
        return cls(shape, affine, unit=unit, frame=frame)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centres along (z, y, x), in ``unit``."""
        return frames.spacing_of(self.affine)

    @property
    def codes(self) -> str:
        """Letters the array axes grow to, for example ``"IPL"``; ``"zyx"`` without patient."""
        return frames.axis_codes(self.affine) if self.frame == "patient" else "zyx"

    @property
    def obliquity(self) -> float:
        """Largest angle in degrees between an array axis and its patient axis."""
        return frames.obliquity(self.affine)

    @property
    def is_sheared(self) -> bool:
        """Whether the voxel axes are not at right angles."""
        return frames.is_sheared(self.affine)

    @property
    def voxel_volume(self) -> float:
        """Volume of one voxel in ``unit`` cubed (sheared voxels included)."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def to_world(self, index: ArrayLike) -> NDArray[np.float64]:
        """Return world points (..., 3) as (x, y, z) for index points (..., 3) as (z, y, x)."""
        points = np.asarray(index, dtype=np.float64)
        world: NDArray[np.float64] = points @ self.affine[:3, :3].T + self.affine[:3, 3]
        return world

    def to_index(self, world: ArrayLike) -> NDArray[np.float64]:
        """Return fractional index points (..., 3) as (z, y, x) for world points as (x, y, z)."""
        points = np.asarray(world, dtype=np.float64) - self.affine[:3, 3]
        solved = np.linalg.solve(self.affine[:3, :3], points.reshape(-1, 3).T).T
        index: NDArray[np.float64] = np.asarray(solved, dtype=np.float64).reshape(points.shape)
        return index

    def contains_index(self, index: ArrayLike) -> NDArray[np.bool_]:
        """Return for each index point (..., 3) whether its nearest voxel lies on the grid."""
        voxel = np.rint(np.asarray(index, dtype=np.float64))
        return np.asarray(((voxel >= 0) & (voxel < self.shape)).all(axis=-1))

    def crop(self, box: Box) -> Geometry:
        """Return the geometry of the sub-array cut out with ``box``."""
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(box.start)
        return replace(self, shape=box.shape, affine=affine)

    def reorient(self, move: frames.Reorientation) -> Geometry:
        """Return the geometry of ``move.apply(array)`` for an array on this grid."""
        affine = self.affine @ move.index_map(self.shape)
        return replace(self, shape=move.apply_shape(self.shape), affine=affine)

    def same_grid(self, other: Geometry, tolerance: float = 1e-3) -> bool:
        """Return whether both grids put every voxel in the same place.

        Parameters
        ----------
        tolerance : float
            Largest distance allowed between corresponding corner voxels, in voxels of the
            finer axis.
        """
        if self.shape != other.shape or self.unit != other.unit:
            return False
        corners = np.array(np.meshgrid(*((0, n - 1) for n in self.shape))).reshape(3, -1).T
        gap = np.linalg.norm(self.to_world(corners) - other.to_world(corners), axis=1).max()
        return bool(gap <= tolerance * min(self.spacing))

    def difference(self, other: Geometry) -> str:
        """Return a sentence on how ``other`` differs, or ``""`` if the grids agree."""
        if self.same_grid(other):
            return ""
        for name in ("shape", "unit"):
            if getattr(self, name) != getattr(other, name):
                return f"{name} {getattr(self, name)} against {getattr(other, name)}"
        if not np.allclose(self.spacing, other.spacing, rtol=1e-3):
            mine = " x ".join(f"{v:.4g}" for v in self.spacing)
            theirs = " x ".join(f"{v:.4g}" for v in other.spacing)
            return f"spacing (z, y, x) {mine} against {theirs} {self.unit}"
        gap = np.linalg.norm(self.to_world((0, 0, 0)) - other.to_world((0, 0, 0)))
        return f"position or orientation (first voxels {gap:.3g} {self.unit} apart)"


@dataclass(frozen=True, eq=False)
class Volume:
    """An image on a grid, as the rest of the package sees it.

    Attributes
    ----------
    array : array, shape (z, y, x)
        Voxels of any real dtype, in display order (nearest to I, P, L for a patient frame).
        May be lazy (dask, zarr) for images larger than memory: cut out what you need, then
        ``np.asarray`` it. Never written to.
    geometry : Geometry
        The grid of ``array``.
    source : object, optional
        What the reader knew of the file (``io.source.SourceGrid``): needed to write masks on
        the exact grid of the source file. ``None`` for arrays made in memory.
    name : str
        A short name for the user, without patient data.
    modality : str
        ``"CT"``, ``"MR"``, ``"LSFM"`` ... as far as known, else ``""``.
    notes : tuple of str
        What the user must know: gaps between slices, gantry tilt, a volume picked out of 4D.
    info : mapping
        Further facts for display (file format, number of files); no patient data.
    """

    array: Any = field(repr=False)
    geometry: Geometry
    source: Any = field(default=None, repr=False)
    name: str = "volume"
    modality: str = ""
    notes: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if tuple(self.array.shape) != self.geometry.shape:
            raise GeometryError(
                f"the array has shape {tuple(self.array.shape)}, its geometry says "
                f"{self.geometry.shape}"
            )

    def crop(self, box: Box) -> NDArray[Any]:
        """Return the voxels of ``box`` as a NumPy array (a view where the array is NumPy)."""
        return np.asarray(self.array[box.slices])
