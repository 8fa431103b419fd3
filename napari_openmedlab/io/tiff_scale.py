"""Voxel size of a TIFF file in um, from OME-XML or ImageJ's description; never invented."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from napari_openmedlab.geometry.volume import Unit

__all__ = ["LENGTH_UM", "VoxelSize", "voxel_size"]

LENGTH_UM = {
    "um": 1.0, "µm": 1.0, "μm": 1.0, "\\u00b5m": 1.0, "micron": 1.0, "microns": 1.0,
    "micrometer": 1.0, "micrometre": 1.0, "nm": 1e-3, "nanometer": 1e-3, "nanometre": 1e-3,
    "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3, "cm": 1e4, "centimeter": 1e4,
    "centimetre": 1e4, "m": 1e6, "meter": 1e6, "metre": 1e6, "inch": 25400.0, "inches": 25400.0,
    "in": 25400.0, "pm": 1e-6, "picometer": 1e-6, "angstrom": 1e-4, "å": 1e-4,
}  # fmt: skip
"""Length units by their names in OME-XML, ImageJ and OME-Zarr (lower case), in um."""


@dataclass(frozen=True)
class VoxelSize:
    """Size of a voxel along (z, y, x), and what the user must know of it."""

    spacing: tuple[float, float, float]
    unit: Unit
    notes: tuple[str, ...] = ()

    def without_z(self) -> VoxelSize:
        """Return the size for a stack of such slices, whose distance nobody states."""
        y, x = self.spacing[1:] if self.unit == "um" else (None, None)
        return _of(None, y, x, deep=True)


def voxel_size(file: Any, number: int, deep: bool) -> VoxelSize:
    """Return the voxel size of series ``number`` of an open ``tifffile.TiffFile``.

    Parameters
    ----------
    deep : bool
        Whether the image has more than one plane; if not, depth takes the pixel size.

    Notes
    -----
    OME-XML: PhysicalSizeX/Y/Z, unit um unless stated (OME schema 2016-06). ImageJ: ``unit`` and
    ``spacing`` in the description, X/YResolution in pixels per unit.
    """
    if file.is_ome and file.ome_metadata:
        z, y, x = _ome_sizes(str(file.ome_metadata), number)
    elif file.is_imagej and file.imagej_metadata:
        z, y, x = _imagej_sizes(file)
    else:
        z = y = x = None
    return _of(z, y, x, deep)


def _of(z: float | None, y: float | None, x: float | None, deep: bool) -> VoxelSize:
    if x is None or y is None:
        note = "the file doesn't state its voxel size: lengths and volumes are in voxels; set it"
        return VoxelSize((1.0, 1.0, 1.0), "pixel", (note,))
    if z is not None:
        return VoxelSize((z, y, x), "um")
    if not deep:
        note = f"a single plane: its depth is shown as the pixel size, {y:.4g} um"
        return VoxelSize((y, y, x), "um", (note,))
    note = (
        f"the file states a pixel size of {y:.4g} x {x:.4g} um but not the distance between "
        "slices: lengths and volumes are in voxels; set the voxel size"
    )
    return VoxelSize((1.0, 1.0, 1.0), "pixel", (note,))


def _ome_sizes(xml: str, number: int) -> tuple[float | None, float | None, float | None]:
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None, None, None
    pixels = [e for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"]
    if not pixels:
        return None, None, None
    chosen = pixels[min(number, len(pixels) - 1)]
    z, y, x = (
        _um(chosen.get(f"PhysicalSize{a}"), chosen.get(f"PhysicalSize{a}Unit", "µm")) for a in "ZYX"
    )
    return z, y, x


def _imagej_sizes(file: Any) -> tuple[float | None, float | None, float | None]:
    unit = str(file.imagej_metadata.get("unit", ""))
    tags = file.pages[0].tags
    y, x = (_um(_per_pixel(tags.get(f"{a}Resolution")), unit) for a in "YX")
    spacing = file.imagej_metadata.get("spacing")
    return _um(None if spacing is None else abs(float(spacing)), unit), y, x


def _per_pixel(tag: Any) -> float | None:
    """Return units per pixel of a resolution tag, a fraction of pixels per unit."""
    if tag is None:
        return None
    pixels, units = (float(v) for v in tag.value)
    return units / pixels if pixels > 0 else None


def _um(value: str | float | None, unit: str) -> float | None:
    factor = LENGTH_UM.get(unit.strip().lower())
    if value is None or factor is None:
        return None
    try:
        size = float(value) * factor
    except ValueError:
        return None
    return size if math.isfinite(size) and size > 0 else None
