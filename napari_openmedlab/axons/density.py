"""How densely axons lie: voxels and length per mm3 on a coarse grid.

A bin holds the voxels whose centres lie in it, and its volume is theirs, so a bin cut off by the
volume's end is not too dark, and density times volume, summed over all bins, is the exact total.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.axons.skeleton import LazyMask, block_grid
from napari_openmedlab.axons.tracing import Forest
from napari_openmedlab.errors import GeometryError, SettingsError
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.io.atomic import resolved_target, staging
from napari_openmedlab.models.contract import Monitor

__all__ = ["Density", "DensityGrid", "length_density", "voxel_density", "write_density"]

Floats = NDArray[np.float64]
Kind = Literal["voxels", "length"]

_PER_MM3 = 1e-9  # mm3 of one um3
_UNITS = {"voxels": "axon voxels per mm3", "length": "um of centre-line per mm3"}


@dataclass(frozen=True)
class DensityGrid:
    """A coarse grid over a volume; the first bin begins at the volume's first voxel's outer face.

    Attributes
    ----------
    shape : tuple of int
        Voxels (z, y, x) of the volume.
    spacing : tuple of float
        Voxel size (z, y, x) in um.
    edge : float
        Edge of a bin in um; 25 and 50 are usual (Allen atlas).
    origin : tuple of float
        World (z, y, x) in um of the centre of voxel (0, 0, 0).
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    edge: float = 25.0
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if not self.edge >= max(self.spacing) * (1 - 1e-9):
            size = " x ".join(f"{s:g}" for s in self.spacing)
            raise SettingsError(
                f"bins of {self.edge:g} um are smaller than the voxels ({size} um); choose larger "
                "ones"
            )

    def bins_of(self, axis: int) -> NDArray[np.int64]:
        """Return the bin of each voxel along an axis."""
        centres = (np.arange(self.shape[axis]) + 0.5) * self.spacing[axis]
        bins: NDArray[np.int64] = np.floor(centres / self.edge + 1e-9).astype(np.int64)
        return bins

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
        """Grid of the bins in um."""
        return self._placed(1.0, "um")

    @property
    def geometry_mm(self) -> Geometry:
        """Grid of the bins in mm, for NIfTI."""
        return self._placed(1e-3, "mm")

    def _placed(self, scale: float, unit: Any) -> Geometry:
        plain = Geometry.from_spacing(self.bins, (self.edge * scale,) * 3, unit=unit)
        affine = plain.affine.copy()
        first = [o - s / 2 + self.edge / 2 for o, s in zip(self.origin, self.spacing, strict=True)]
        affine[:3, 3] = np.array(first[::-1]) * scale
        return Geometry(self.bins, affine, unit=unit, frame="image")


@dataclass(frozen=True, eq=False)
class Density:
    """Density on a grid.

    Attributes
    ----------
    grid : DensityGrid
    values : ndarray of float64, shape ``grid.bins``
        Axon voxels, or um of centre-line, per mm3.
    kind : {"voxels", "length"}
    """

    grid: DensityGrid
    values: Floats
    kind: Kind

    @property
    def total(self) -> float:
        """Voxels, or um, in the whole volume."""
        return float((self.values * self.grid.volumes).sum())

    @property
    def unit(self) -> str:
        """What a value means."""
        return _UNITS[self.kind]


def voxel_density(
    mask: LazyMask,
    grid: DensityGrid,
    core: tuple[int, int, int] = (256, 256, 256),
    monitor: Monitor | None = None,
) -> Density:
    """Return the density of the voxels of a mask, read block by block.

    Parameters
    ----------
    mask : array-like, shape ``grid.shape``
        0 is background.
    grid : DensityGrid
    core : tuple of int
        Voxels of a block.
    monitor : Monitor, optional

    Raises
    ------
    GeometryError
        If the mask has another shape than the grid's volume.
    """
    if tuple(mask.shape) != grid.shape:
        raise GeometryError(f"the mask has shape {tuple(mask.shape)}, the grid {grid.shape}")
    monitor = monitor or Monitor()
    counts = np.zeros(grid.bins, dtype=np.int64)
    bins = [grid.bins_of(axis) for axis in range(3)]
    boxes = list(block_grid(grid.shape, core))
    for number, box in enumerate(boxes):
        monitor.step(number, len(boxes), "counting")
        part = (np.asarray(mask[box.slices]) != 0).astype(np.int32)
        into = []
        for axis in range(3):
            mine = bins[axis][box.start[axis] : box.stop[axis]]
            first = np.flatnonzero(np.diff(mine, prepend=-1))
            part = np.add.reduceat(part, first, axis=axis)
            into.append(mine[first])
        counts[np.ix_(*into)] += part
    return Density(grid, counts / grid.volumes, "voxels")


def length_density(forest: Forest, grid: DensityGrid) -> Density:
    """Return the density of centre-lines: half of each step belongs to each of its ends.

    Parameters
    ----------
    forest : Forest
        Traced with the grid's origin.
    grid : DensityGrid
    """
    index = (forest.positions - np.array(grid.origin)) / np.array(grid.spacing)
    voxel = np.clip(np.rint(index).astype(np.int64), 0, np.array(grid.shape) - 1)
    bins = [grid.bins_of(axis)[voxel[:, axis]] for axis in range(3)]
    flat = np.ravel_multi_index(tuple(bins), grid.bins)
    child = np.flatnonzero(forest.parents >= 0)
    half = forest.lengths[child] / 2.0
    size = int(np.prod(grid.bins))
    sums = np.bincount(flat[child], half, minlength=size)
    sums = sums + np.bincount(flat[forest.parents[child]], half, minlength=size)
    return Density(grid, sums.reshape(grid.bins) / grid.volumes, "length")


def write_density(
    path: str | Path, density: Density, provenance: Mapping[str, Any] | None = None
) -> tuple[Path, ...]:
    """Write a density map as float32, and what its numbers mean beside it.

    Parameters
    ----------
    path : str or Path
        ``.nii``, ``.nii.gz``: sizes in mm, as registration programs want them (25 um are 0.025).
        ``.ome.tif``, ``.tif``: OME-TIFF, sizes in um.
    density : Density
    provenance : mapping, optional
        JSON values for the file beside it.

    Returns
    -------
    tuple of Path
        The image and ``NAME.json``.

    Raises
    ------
    SettingsError
        If the file's ending is another one.
    WriteError
        If it can't be written; old files are then untouched.

    Notes
    -----
    A grid that begins at the world's origin gets voxel sizes only, which claims nothing about a
    patient's axes; any other also gets an sform of code 2.
    """
    target = resolved_target(Path(path))
    stem, writer, grid = _format(target, density.grid)
    values = np.ascontiguousarray(density.values, dtype=np.float32)
    with staging(target.parent) as folder:
        writer(folder / target.name, values, grid)
        facts = _facts(density, grid) | {"provenance": dict(provenance or {})}
        text = json.dumps(facts, indent=1)
        (folder / f"{stem}.json").write_text(text, encoding="utf-8")
    return target, target.with_name(f"{stem}.json")


def _format(target: Path, grid: DensityGrid) -> tuple[str, Any, Geometry]:
    from napari_openmedlab.io import nifti_labels, tiff_labels

    name = target.name
    for ending in (".nii.gz", ".nii", ".ome.tif", ".ome.tiff", ".tif", ".tiff"):
        if name.lower().endswith(ending):
            stem = name[: -len(ending)]
            if ending.startswith(".nii"):
                return stem, nifti_labels.write_labels, grid.geometry_mm
            return stem, tiff_labels.write_labels, grid.geometry
    raise SettingsError(f"a density map is written as .nii.gz, .nii, .ome.tif or .tif, not {name}")


def _facts(density: Density, grid: Geometry) -> dict[str, Any]:
    edge = density.grid.edge
    size = " x ".join(f"{s:g}" for s in grid.spacing)
    return {
        "values": density.unit,
        "total": density.total,
        "total unit": "voxels" if density.kind == "voxels" else "um",
        "bin edge um": edge,
        "file unit": grid.unit,
        "note": f"bins of {edge:g} um, stored as {size} {grid.unit}; a bin cut off by the volume's "
        "end is divided by the volume that is left of it",
        "first bin centre um (z, y, x)": [float(v) for v in density.grid.geometry.affine[2::-1, 3]],
    }
