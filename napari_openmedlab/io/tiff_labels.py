"""Label maps to TIFF for microscopy: ImageJ stacks, or OME-TIFF where ImageJ's can't do it.

TIFF knows voxel sizes but no patient, so labels of a scan with patient axes are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import WriteError
from napari_openmedlab.geometry.volume import Geometry

__all__ = ["write_labels"]

_IMAGEJ_LIMIT = 2**32 - 2**25  # bytes; beyond it a classic TIFF can't point at its planes


def write_labels(path: Path, stored: NDArray[Any], geometry: Geometry) -> None:
    """Write a label map as a TIFF stack with voxel sizes and read it back.

    Parameters
    ----------
    path : Path
        ``.ome.tif``: OME-TIFF; ``.tif``: ImageJ (uint8, uint16, below 4 GB), else OME-TIFF.
    stored : ndarray of uint8, uint16 or uint32, shape (z, y, x)
    geometry : Geometry
        Grid of ``stored``; frame ``"image"``.

    Raises
    ------
    WriteError
        If the grid has patient axes, or the file reads back different.
    """
    import tifffile

    if geometry.frame == "patient":
        raise WriteError(
            "a TIFF file can't say where the patient's left is; write .nii.gz or .nrrd", path
        )
    ome = ".ome." in path.name.lower() or stored.dtype.itemsize > 2
    ome = ome or stored.nbytes > _IMAGEJ_LIMIT
    options = _ome(geometry) if ome else _imagej(geometry)
    tifffile.imwrite(
        path, stored, compression="zlib", compressionargs={"level": 1}, photometric="minisblack",
        bigtiff=stored.nbytes > _IMAGEJ_LIMIT, **options,
    )  # fmt: skip
    with tifffile.TiffFile(path) as file:
        again = file.asarray().reshape(stored.shape)
    if not (again.dtype == stored.dtype and np.array_equal(again, stored)):
        raise WriteError("the mask reads back different from what was written; try again", path)


def _imagej(geometry: Geometry) -> dict[str, Any]:
    z, y, x = geometry.spacing
    metadata: dict[str, Any] = {"axes": "ZYX", "spacing": z, "unit": geometry.unit}
    if geometry.unit == "pixel":
        metadata = {"axes": "ZYX"}
    return {"imagej": True, "resolution": (1 / x, 1 / y), "metadata": metadata}


def _ome(geometry: Geometry) -> dict[str, Any]:
    metadata: dict[str, Any] = {"axes": "ZYX"}
    if geometry.unit != "pixel":
        unit = {"um": "µm", "mm": "mm"}[geometry.unit]
        for axis, size in zip("ZYX", geometry.spacing, strict=True):
            metadata[f"PhysicalSize{axis}"] = size
            metadata[f"PhysicalSize{axis}Unit"] = unit
    return {"ome": True, "metadata": metadata}
