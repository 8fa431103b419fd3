"""How densely axons lie: voxels and length per mm3 on a coarse grid.

A bin holds the voxels whose centres lie in it, and its volume is theirs, so a bin cut off by the
volume's end is not too dark, and density times volume, summed over all bins, is the exact total.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.axons.density_grid import DensityGrid, Patient, own_axes
from napari_openmedlab.axons.skeleton import LazyMask, block_grid
from napari_openmedlab.axons.tracing import Forest
from napari_openmedlab.errors import GeometryError, SettingsError, WriteError
from napari_openmedlab.geometry import frames
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.io.atomic import resolved_target, staging
from napari_openmedlab.models.contract import Monitor

__all__ = ["Density", "DensityGrid", "Patient", "length_density", "voxel_density", "write_density"]

Floats = NDArray[np.float64]
Kind = Literal["voxels", "length"]

_CLASSIC_TIFF = 2**32 - 2**25  # bytes; a file of more needs longer pointers
_MOST_BINS = 2**27  # of a file that begins at the world's origin: 512 MB before it is packed
_NIFTI = (".nii.gz", ".nii")
_TIFF = (".ome.tif", ".ome.tiff", ".tif", ".tiff")
_UNITS = {"voxels": "axon voxels per mm3", "length": "um of centre-line per mm3"}


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

    def lying_in(self, patient: Patient | None) -> Density:
        """Return the map with the axes its source states."""
        return replace(self, grid=replace(self.grid, patient=patient))


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
        ``.nii``, ``.nii.gz``: sizes in mm, as registration programs want them (25 um are 0.025),
        or in the unit of the patient's axes. ``.ome.tif``, ``.tif``: OME-TIFF, sizes in um.
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
    A file lies over its source when one program opens both.

    * Sources that state a patient's axes (NIfTI): NIfTI keeps their world, its sform and qform
      have the source's code.
    * All others, microscopy above all: nobody said where left is, so NIfTI has voxel sizes and
      codes 0 and no position. The file begins at the source's origin therefore, with empty bins
      up to where the volume begins; OME-TIFF as well, as few programs heed the position of its
      planes. Where that is impossible - the volume begins before the origin, or so far behind it
      that the file had more than 2^27 bins - the file begins with the volume.
    * OME-TIFF always states the position of each plane's first bin, the JSON that of the file's.
    """
    target = resolved_target(Path(path))
    stem, is_nifti = _format(target)
    grid = density.grid
    patient = grid.patient if is_nifti else None
    empty = (0, 0, 0) if patient else _empty_before(grid)
    values = np.pad(density.values.astype(np.float32), [(n, 0) for n in empty])
    z, y, x = (a - n for a, n in zip(grid.first, empty, strict=True))
    place = own_axes(values.shape, (z, y, x), grid.edge)
    with staging(target.parent) as folder:
        if is_nifti:
            _write_nifti(folder / target.name, values, grid)
        else:
            _write_ome_tiff(folder / target.name, values, place)
        facts = _facts(density, place, is_nifti) | {"provenance": dict(provenance or {})}
        text = json.dumps(facts, indent=1)
        (folder / f"{stem}.json").write_text(text, encoding="utf-8")
    return target, target.with_name(f"{stem}.json")


def _format(target: Path) -> tuple[str, bool]:
    """Return a file's name without its ending, and whether it is NIfTI."""
    name = target.name
    for ending in (*_NIFTI, *_TIFF):
        if name.lower().endswith(ending):
            return name[: -len(ending)], ending in _NIFTI
    raise SettingsError(f"a density map is written as .nii.gz, .nii, .ome.tif or .tif, not {name}")


def _empty_before(grid: DensityGrid) -> tuple[int, int, int]:
    """Return the empty bins by which a file begins at the origin; none if it can't."""
    whole = prod(n + more for n, more in zip(grid.bins, grid.first, strict=True))
    return grid.first if min(grid.first) >= 0 and whole <= _MOST_BINS else (0, 0, 0)


def _write_nifti(path: Path, values: NDArray[np.float32], grid: DensityGrid) -> None:
    from napari_openmedlab.io.nifti_labels import write_labels

    if grid.patient is None:
        edge = grid.edge * 1e-3
        plain = Geometry.from_spacing(values.shape, (edge, edge, edge), unit="mm")
        write_labels(path, values, plain)  # which gets codes 0
        return
    source, size = grid.patient.geometry, grid.edge / np.array(grid.spacing)
    to_voxels = np.diag([*size, 1.0])
    to_voxels[:3, 3] = size * grid.first
    place = replace(source, shape=values.shape, affine=source.affine @ to_voxels)
    write_labels(path, values, place, _header(place, grid.patient.code))


def _header(place: Geometry, code: int) -> Any:
    """Return a NIfTI header of a patient's axes; without it every code would be 1."""
    from nibabel import Nifti1Header

    header = Nifti1Header()
    affine = frames.ras_lps(place.affine)[:, [2, 1, 0, 3]]
    header["pixdim"][1:4] = place.spacing[::-1]
    header.set_xyzt_units({"mm": "mm", "um": "micron", "pixel": "unknown"}[place.unit])
    header.set_sform(affine, code)
    if not place.is_sheared:
        header.set_qform(affine, code)
    return header


def _write_ome_tiff(path: Path, values: NDArray[np.float32], place: Geometry) -> None:
    """Write float32 planes, the centre of whose first bin is their position."""
    import tifffile

    planes = [place.to_world((n, 0, 0)) for n in range(len(values))]
    metadata: dict[str, Any] = {"axes": "ZYX", "Plane": {}}
    for axis, name in enumerate("XYZ"):
        metadata[f"PhysicalSize{name}"] = place.spacing[2 - axis]
        metadata[f"PhysicalSize{name}Unit"] = "µm"
        metadata["Plane"][f"Position{name}"] = [float(plane[axis]) for plane in planes]
        metadata["Plane"][f"Position{name}Unit"] = ["µm"] * len(planes)
    tifffile.imwrite(
        path, values, ome=True, bigtiff=values.nbytes > _CLASSIC_TIFF, photometric="minisblack",
        compression="zlib", compressionargs={"level": 1}, metadata=metadata,
    )  # fmt: skip
    with tifffile.TiffFile(path) as file:
        again = file.asarray().reshape(values.shape)
    if not np.array_equal(again, values):
        raise WriteError("the map reads back different from what was written; try again", path)


def _facts(density: Density, place: Geometry, is_nifti: bool) -> dict[str, Any]:
    grid = density.grid
    unit = "um"
    if is_nifti:
        unit = grid.patient.geometry.unit if grid.patient else "mm"
    return {
        "values": density.unit,
        "total": density.total,
        "total unit": "voxels" if density.kind == "voxels" else "um",
        "bin edge um": grid.edge,
        "file unit": unit,
        "note": "a bin cut off by the volume's end is divided by the volume that is left of it",
        "first bin centre um (z, y, x)": [float(v) for v in place.affine[2::-1, 3]],
        "volume um (z, y, x)": [
            [float(a), float(a + (n - 1) * s)]
            for a, n, s in zip(grid.origin, grid.shape, grid.spacing, strict=True)
        ],
    }
