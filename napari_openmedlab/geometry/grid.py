"""Plans that bring a crop to another sampling and back; the same object does both ways.

An engine's :class:`GridPlan` is made once from the source geometry and then used twice: its
``apply`` samples the image on the engine's grid (cropped, padded and resampled in one go, never
touching voxels outside the region), its ``restore`` brings a result back to the source grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box, box_of_points
from napari_openmedlab.geometry.volume import Geometry, Volume

__all__ = ["GridPlan"]

_BLOCK = 8_000_000  # voxels sampled at once; bounds the coordinate arrays to a few hundred MB


@dataclass(frozen=True, eq=False)
class GridPlan:
    """How to go from a source grid to a target grid and back.

    Attributes
    ----------
    source, target : Geometry
        Both in the same world frame. The target may be a crop, padded, coarser or turned.
    """

    source: Geometry
    target: Geometry

    def __post_init__(self) -> None:
        if self.source.unit != self.target.unit:
            raise GeometryError(
                f"the two grids use different units: {self.source.unit} and {self.target.unit}"
            )

    @classmethod
    def crop_to_spacing(
        cls, source: Geometry, box: Box, spacing: tuple[float, float, float]
    ) -> GridPlan:
        """Return the plan that samples ``box`` at another spacing, the outer faces kept.

        The target has ``max(1, round(extent / spacing))`` voxels along each axis, so its real
        spacing may differ slightly from the one asked for; its faces are the box's faces.
        """
        crop = source.crop(box)
        extent = np.array(crop.shape) * np.array(crop.spacing)
        shape = np.maximum(1, np.rint(extent / np.array(spacing))).astype(int)
        factor = np.array(crop.shape) / shape
        affine = crop.affine.copy()
        affine[:3, :3] *= factor
        affine[:3, 3] = crop.to_world((factor - 1) / 2)
        target = Geometry(tuple(shape), affine, unit=source.unit, frame=source.frame)
        return cls(source, target)

    def apply(self, volume: Volume, *, order: int = 1, fill: float = 0.0) -> NDArray[np.float32]:
        """Sample the volume on the target grid.

        Parameters
        ----------
        volume : Volume
            Must lie on ``source``; only the voxels that the target needs are read.
        order : int
            Spline order of :func:`scipy.ndimage.map_coordinates`; 0 nearest, 1 linear.
        fill : float
            Value beyond the volume.

        Returns
        -------
        ndarray of float32, shape ``target.shape``
        """
        if volume.geometry.shape != self.source.shape:
            raise GeometryError("the plan was made for a grid of another shape")
        reach = self._reach(self.source, self.target, margin=order + 1)
        if reach.is_empty:
            return np.full(self.target.shape, fill, dtype=np.float32)
        values = np.asarray(volume.crop(reach), dtype=np.float32)
        return _sample(values, self.source.crop(reach), self.target, order, fill)

    def restore(self, result: NDArray[Any], *, order: int = 1) -> tuple[Box, NDArray[np.float32]]:
        """Bring values on the target grid back to the source grid.

        Parameters
        ----------
        result : ndarray, shape ``target.shape``
            Logits, probabilities or (with ``order=0``) labels.

        Returns
        -------
        box : Box
            The part of the source grid that the target covers.
        values : ndarray of float32, shape ``box.shape``
            Source voxels whose centre lies beyond the target's edge take the edge value if
            they are within half a target voxel, else 0.
        """
        if result.shape != self.target.shape:
            raise GeometryError(
                f"the result has shape {result.shape}, the plan's target {self.target.shape}"
            )
        box = self._reach(self.target, self.target, onto=self.source)
        values = np.asarray(result, dtype=np.float32)
        return box, _sample(values, self.target, self.source.crop(box), order, 0.0)

    @staticmethod
    def _reach(
        grid: Geometry, other: Geometry, *, margin: int = 0, onto: Geometry | None = None
    ) -> Box:
        """Return the voxels of ``onto`` (default ``grid``) that ``other`` overlaps."""
        onto = onto or grid
        faces = np.array(np.meshgrid(*((-0.5, n - 0.5) for n in other.shape))).reshape(3, -1).T
        corners = onto.to_index(other.to_world(faces))
        # voxels whose centre lies inside, a rounding error of the matrices allowed for
        low, high = np.ceil(corners.min(axis=0) - 1e-6), np.floor(corners.max(axis=0) + 1e-6)
        high = np.maximum(low, high)
        return box_of_points([low, high]).grow(margin).clip(onto.shape)


def _sample(
    values: NDArray[np.float32], grid: Geometry, target: Geometry, order: int, fill: float
) -> NDArray[np.float32]:
    """Sample ``values`` (on ``grid``) at the voxel centres of ``target``, slab by slab."""
    from scipy import ndimage

    matrix: NDArray[np.float64] = np.asarray(np.linalg.solve(grid.affine, target.affine))
    matrix[np.abs(matrix) < 1e-12] = 0.0
    out = np.empty(target.shape, dtype=np.float32)
    rows = max(1, _BLOCK // max(1, target.shape[1] * target.shape[2]))
    limits = np.array(grid.shape)
    for first in range(0, target.shape[0], rows):
        last = min(first + rows, target.shape[0])
        offset = matrix[:3, 0] * float(first) + matrix[:3, 3]
        shape = (last - first, *target.shape[1:])
        ndimage.affine_transform(
            values, matrix[:3, :3], offset, shape, out[first:last], order=order, mode="nearest"
        )
        _fill_beyond(out[first:last], matrix[:3, :3], offset, limits, fill)
    return out


def _fill_beyond(
    block: NDArray[np.float32],
    linear: NDArray[np.float64],
    offset: NDArray[np.float64],
    limits: NDArray[np.int_],
    fill: float,
) -> None:
    """Overwrite samples more than half a voxel beyond the grid with ``fill``.

    ``mode="nearest"`` repeats the edge for ever and ``mode="constant"`` cuts half a voxel too
    early; an image ends at the outer faces of its voxels, so we decide it from coordinates.
    """
    axes = [np.arange(n, dtype=np.float64) for n in block.shape]
    for row in range(3):
        position = (
            linear[row, 0] * axes[0][:, None, None]
            + linear[row, 1] * axes[1][None, :, None]
            + linear[row, 2] * axes[2][None, None, :]
            + offset[row]
        )
        beyond = (position < -0.5 - 1e-6) | (position > limits[row] - 0.5 + 1e-6)
        block[np.broadcast_to(beyond, block.shape)] = fill
