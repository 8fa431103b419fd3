"""A scan as the atlas engine sees it: coarse, upright in the patient's axes, 0 to 1.

Coordinates ``upright`` are millimetres (superior, anterior, left), so that scans of any axis
order, tilt and spacing are compared in one frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import EngineError
from napari_openmedlab.geometry.extreme_points import wall_directions
from napari_openmedlab.geometry.volume import Volume

__all__ = ["STEP_MM", "Worked", "coarser", "to_upright", "to_world", "work"]

STEP_MM = 4.0
"""Voxel of the working grid; finer gained nothing on phantoms and costs the cube of it."""

_CT = ((-1000.0, 0.0), (-200.0, 0.2), (-150.0, 0.25), (250.0, 0.85), (1000.0, 1.0))
_LARGEST_MM = 2500.0
_TO_UPRIGHT = wall_directions()


@dataclass(frozen=True, eq=False)
class Worked:
    """A coarse image.

    Attributes
    ----------
    image : ndarray of float32, shape (s, a, l)
        0 (air, darkest) to 1; 0 outside the field of view.
    seen : ndarray of bool, same shape
        Where the scan has voxels.
    origin : ndarray of float64, shape (3,)
        Upright mm of the first voxel's centre.
    step : float
        Distance of voxels, mm.
    """

    image: NDArray[np.float32]
    seen: NDArray[np.bool_]
    origin: NDArray[np.float64]
    step: float

    def index(self, upright: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return fractional voxels of upright points (..., 3)."""
        found: NDArray[np.float64] = (upright - self.origin) / self.step
        return found


def to_upright(world: Any) -> NDArray[np.float64]:
    """Return (superior, anterior, left) of LPS points (..., 3)."""
    found: NDArray[np.float64] = np.asarray(world, dtype=np.float64) @ _TO_UPRIGHT.T
    return found


def to_world(upright: Any) -> NDArray[np.float64]:
    """Return LPS points (..., 3) of upright ones."""
    found: NDArray[np.float64] = np.asarray(upright, dtype=np.float64) @ _TO_UPRIGHT
    return found


def work(volume: Volume, ct: bool, step: float = STEP_MM) -> Worked:
    """Bring a scan to the working grid.

    Parameters
    ----------
    volume : Volume
        In mm. Lazy arrays are read in slabs.
    ct : bool
        Values are Hounsfield units; else they are stretched between their percentiles.
    step : float
        Voxel of the working grid in mm.

    Raises
    ------
    EngineError
        If the scan is not measured in mm, larger than 2.5 m, or shows one value only.
    """
    from scipy import ndimage

    geometry = volume.geometry
    if geometry.unit != "mm":
        raise EngineError(
            f"{volume.name} is measured in {geometry.unit}, not in mm: structures of patients "
            "can't be looked for in it",
            engine="atlas",
        )
    faces = [(-0.5, n - 0.5) for n in geometry.shape]
    corners = to_upright(geometry.to_world(np.array(np.meshgrid(*faces)).reshape(3, -1).T))
    low, high = corners.min(axis=0), corners.max(axis=0)
    if (high - low).max() > _LARGEST_MM:
        raise EngineError(
            f"{volume.name} is {(high - low).max() / 1000:.1f} m long: its voxel size must be "
            "wrong",
            engine="atlas",
        )
    shape = np.maximum(1, np.ceil((high - low) / step - 1e-6)).astype(int)
    origin = (low + high) / 2 - (shape - 1) / 2 * step
    coarse, factor = _reduced(volume, step)
    # index of the reduced array <- index of the working grid
    to_index = np.linalg.inv(geometry.affine[:3, :3]) @ _TO_UPRIGHT.T
    start = geometry.to_index(to_world(origin))
    matrix = to_index * step / factor[:, None]
    offset = (start - (factor - 1) / 2) / factor
    values = ndimage.affine_transform(
        coarse, matrix, offset, tuple(shape), order=1, mode="nearest", output=np.float32
    )
    seen = _inside(matrix, offset, tuple(int(n) for n in shape), coarse.shape)
    values = _stretched(values, seen, ct, volume.name)
    values[~seen] = 0.0
    return Worked(values, seen, origin, step)


def _reduced(volume: Volume, step: float) -> tuple[NDArray[np.float32], NDArray[np.int_]]:
    """Return means over whole blocks of voxels, at most as large as the working voxel."""
    spacing = np.array(volume.geometry.spacing)
    shape = np.array(volume.geometry.shape)
    factor = np.clip((step / spacing + 1e-6).astype(int), 1, shape)
    count = shape // factor
    out = np.empty(tuple(count), dtype=np.float32)
    inner = tuple(slice(0, int(n * f)) for n, f in zip(count[1:], factor[1:], strict=True))
    for row in range(int(count[0])):
        slab = slice(int(row * factor[0]), int((row + 1) * factor[0]))
        block = np.nan_to_num(np.asarray(volume.array[(slab, *inner)], dtype=np.float32))
        parts = block.reshape(factor[0], count[1], factor[1], count[2], factor[2])
        out[row] = parts.mean(axis=(0, 2, 4))
    return out, factor


def _inside(
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64],
    shape: tuple[int, ...],
    limits: tuple[int, ...],
) -> NDArray[np.bool_]:
    seen = np.ones(shape, dtype=bool)
    axes = np.ix_(*(np.arange(n, dtype=np.float32) for n in shape))
    for row in range(3):
        place = sum((matrix[row, k] * axes[k] for k in range(3)), start=offset[row])
        seen &= (place > -0.75) & (place < limits[row] - 0.25)
    return seen


def _stretched(
    values: NDArray[np.float32], seen: NDArray[np.bool_], ct: bool, name: str
) -> NDArray[np.float32]:
    if ct:
        hu, shown = zip(*_CT, strict=True)
        stretched = np.interp(values, hu, shown).astype(np.float32)
    else:
        inside = values[seen]
        low, high = np.percentile(inside, (1, 99)) if inside.size else (0.0, 0.0)
        stretched = np.clip((values - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)
    if not seen.any() or np.ptp(stretched[seen]) < 1e-3:
        raise EngineError(
            f"{name} shows nothing: all of it has one value. Choose another scan", engine="atlas"
        )
    return stretched


def coarser(worked: Worked, factor: int) -> Worked:
    """Return means over blocks of ``factor`` voxels along each axis."""
    shape = np.array(worked.image.shape)
    count = -(-shape // factor)
    pad = [(0, int(c * factor - n)) for c, n in zip(count, shape, strict=True)]
    blocks = [v for c in count for v in (int(c), factor)]
    weight = np.pad(worked.seen.astype(np.float32), pad).reshape(blocks).mean(axis=(1, 3, 5))
    image = np.pad(worked.image, pad).reshape(blocks).mean(axis=(1, 3, 5))
    image = np.divide(image, weight, out=np.zeros_like(image), where=weight > 0)
    return Worked(
        image, weight > 0.3, worked.origin + (factor - 1) / 2 * worked.step, worked.step * factor
    )
