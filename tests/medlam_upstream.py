"""Upstream's rules that the engine leaves behind, for the reference numbers and the benchmark.

Written from the method's description, no upstream code.
"""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
from scipy import ndimage

from napari_openmedlab.geometry.frames import ras_lps
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.medlam.preparing import normalised, prepare

SWAP = np.eye(4)[[2, 1, 0, 3]]


def volume_of(path, modality="CT"):
    """Read a NIfTI file as it lies, axes (z, y, x) of the file."""
    image = nib.load(path)
    array = np.asarray(image.dataobj).transpose(2, 1, 0)
    return Volume(
        array, Geometry(array.shape, ras_lps(image.affine) @ SWAP), None, path.name, modality
    )


def prepared_as_upstream(path):
    """Return a scan with SciPy's own resampling: for some sizes its last plane is 0 HU.

    Rounding puts that plane's coordinate beyond the last voxel, where SciPy's zoom has zeros.
    """
    volume = volume_of(path)
    ours = prepare(volume, Monitor())
    array = np.asarray(ours.grid.order.apply(volume.array), dtype=np.float64)
    zoom = np.array(ours.grid.shape) / np.array(array.shape)
    padded = np.pad(normalised(ndimage.zoom(array, zoom, order=3)), 32)
    return replace(ours, padded=padded)


def file_index(working, zoom_zyx, codes, shape_xyz):
    """Return array indices (z, y, x) of working voxels by upstream's rule, and the box.

    index / zoom, rounded; then flips of LAS to the file's axes. Right for scans whose axes are in
    the order x, y, z; rows that are crossed in the file are swapped.
    """
    xyz = np.around(np.asarray(working, dtype=np.float64) / zoom_zyx)[..., ::-1]
    for axis, (own, las) in enumerate(zip(codes, "LAS", strict=True)):
        if own != las:
            xyz[..., axis] = shape_xyz[axis] - 1 - xyz[..., axis]
    points = xyz[..., ::-1].copy()
    for axis in range(3):
        low, high = points[..., axis, :].copy(), points[..., axis + 3, :].copy()
        crossed = low[..., axis] > high[..., axis]
        points[..., axis, :] = np.where(crossed[..., None], high, low)
        points[..., axis + 3, :] = np.where(crossed[..., None], low, high)
    low = np.stack([points[..., axis, axis] for axis in range(3)], axis=-1)
    high = np.stack([points[..., axis + 3, axis] for axis in range(3)], axis=-1)
    return points, np.stack([low, high], axis=-2)
