"""Volume Fusion: labels for pre-training made from unlabelled scans, exactly as published.

Two sub-volumes of one scan are mixed block by block in five degrees; the network learns to tell
the degree of each voxel. Wang et al., IEEE TIP 34:6041-6052, 2025, doi 10.1109/TIP.2025.3610249;
code PyMIC ``VolumeFusion`` and ``Crop4VolumeFusion``. All chance comes from a
:class:`random.Random`, in the published order, so the same seed gives the published numbers.
Axes are (z, y, x). Importing this module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import EngineError

__all__ = [
    "BLOCKS",
    "CLASSES",
    "Constant",
    "Crop",
    "Fusion",
    "brightness_curve",
    "contrast",
    "crop_pair",
    "fuse",
]

Index3 = tuple[int, int, int]

CLASSES = 5
BLOCKS: tuple[Index3, Index3] = ((5, 8, 8), (20, 32, 32))
"""Smallest and largest blocks of the published lung demo, for patches of 64 x 128 x 128."""

_SMALLEST_SCALE, _LARGEST_SCALE = 0.7, 1.5
_INVERTED = 0.25


class Constant(EngineError):
    """A crop without any contrast: nothing can be learnt from it; another has to be drawn."""


@dataclass(frozen=True)
class Fusion:
    """How two volumes are mixed.

    Attributes
    ----------
    classes : int
        K + 1: the degrees 0, 1/K ... 1; 5 as published.
    foreground : float
        Share of blocks that are mixed, 0.7 as published.
    smallest, largest : tuple of int
        Limits of a block's edges (z, y, x), both included.
    """

    classes: int = CLASSES
    foreground: float = 0.7
    smallest: Index3 = BLOCKS[0]
    largest: Index3 = BLOCKS[1]


@dataclass(frozen=True)
class Crop:
    """How the two sub-volumes are cut out of a scan.

    Attributes
    ----------
    size : tuple of int
        Voxels (z, y, x) of a patch.
    mode : {0, 1, 2, 3}
        0: crop only; 1: with changed contrast; 2: other scales and flips; 3: both, as published.
    """

    size: Index3
    mode: int = 3


def fuse(
    foreground: NDArray[np.float32],
    background: NDArray[np.float32],
    fusion: Fusion,
    chance: Random,
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Mix two volumes.

    Parameters
    ----------
    foreground, background : ndarray of float32, shape (z, y, x)
    fusion : Fusion
    chance : random.Random

    Returns
    -------
    fused : ndarray of float64, shape (z, y, x)
        ``a * foreground + (1 - a) * background`` with a = label / K.
    labels : ndarray of uint8, shape (z, y, x)
        0 to K.

    Raises
    ------
    EngineError
        If a block may be larger than the volume.
    """
    shape, top = foreground.shape, fusion.classes - 1
    if any(edge > size for edge, size in zip(fusion.largest, shape, strict=True)):
        raise EngineError(
            f"blocks of up to {fusion.largest} voxels don't fit patches of {shape}; choose larger "
            "patches"
        )
    limits = zip(fusion.smallest, fusion.largest, strict=True)
    block = [chance.randint(low, high) for low, high in limits]
    offset = [chance.randint(0, size % edge) for size, edge in zip(shape, block, strict=True)]
    grid = [size // edge for size, edge in zip(shape, block, strict=True)]
    count = grid[0] * grid[1] * grid[2]
    mixed = int(count * fusion.foreground)
    chosen = [1] * mixed + [0] * (count - mixed)
    chance.shuffle(chosen)
    classes = [chance.randint(1, top) if each else 0 for each in chosen]
    small = np.array(classes, dtype=np.uint8).reshape(grid)
    labels = np.zeros(shape, dtype=np.uint8)
    inner = tuple(
        slice(begin, begin + edge * blocks)
        for begin, edge, blocks in zip(offset, block, grid, strict=True)
    )
    labels[inner] = small.repeat(block[0], 0).repeat(block[1], 1).repeat(block[2], 2)
    alpha = labels / top
    return alpha * foreground + (1.0 - alpha) * background, labels


def crop_pair(
    volume: NDArray[np.float32], crop: Crop, chance: Random
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cut two sub-volumes out of a scan: stretched, flipped, with changed contrast.

    Parameters
    ----------
    volume : ndarray of float32, shape (z, y, x)
        May be smaller than the patch; it is stretched then.
    crop : Crop
    chance : random.Random

    Returns
    -------
    tuple of ndarray of float32, shape ``crop.size``
        In modes 1 and 3 with values from 0 to 1.

    Raises
    ------
    Constant
        If a sub-volume has no contrast.
    """
    patches = [_cut(volume, crop, chance) for _ in range(2)]
    if crop.mode in (2, 3):
        patches = [_flipped(patch, chance) for patch in patches]
    if crop.mode in (1, 3):
        changed = []
        for patch in patches:
            limits = chance.uniform(0.1, 2), chance.uniform(98, 99.9)
            gamma = 0.7 + 0.8 * chance.random()
            changed.append(brightness_curve(contrast(patch, limits), gamma))
        patches = changed
        if chance.random() < _INVERTED:
            patches = [1 - patch for patch in patches]
    elif any(patch.min() == patch.max() for patch in patches):
        raise Constant("this part of the scan has no contrast")
    first, second = (np.ascontiguousarray(patch, dtype=np.float32) for patch in patches)
    return first, second


def contrast(patch: NDArray[np.float32], limits: tuple[float, float]) -> NDArray[np.float32]:
    """Return values from 0 to 1: 0.1 and 0.9 at two percentiles, straight lines between.

    Raises
    ------
    Constant
        If the two percentiles are one value.
    """
    low, high = (np.float32(each) for each in np.percentile(patch, limits))
    least, most = patch.min(), patch.max()
    if high <= low:
        raise Constant("this part of the scan has no contrast")
    # The order of operations decides the last bit.
    out = (patch - low) / (high - low) * np.float32(0.8) + np.float32(0.1)
    below, above = patch < low, patch > high
    out[below] = (patch[below] - least) * np.float32(0.1) / (low - least)
    out[above] = np.float32(0.9) + (patch[above] - high) * np.float32(0.1) / (most - high)
    return out


def brightness_curve(patch: NDArray[np.float32], gamma: float) -> NDArray[np.float32]:
    """Return the patch with its values, brought to 0 to 1, raised to a power."""
    least, most = patch.min(), patch.max()
    if most <= least:
        raise Constant("this part of the scan has no contrast")
    # In float64, since float32 powers differ between processors.
    exponent = np.float64(np.float32(gamma))
    share = ((patch - least) / (most - least)).astype(np.float64)
    out: NDArray[np.float32] = np.asarray(share**exponent, dtype=np.float32)
    out *= most - least
    out += least
    return out


def _cut(volume: NDArray[np.float32], crop: Crop, chance: Random) -> NDArray[np.float32]:
    from scipy import ndimage

    stretch = crop.mode in (2, 3)
    scales = [
        _SMALLEST_SCALE + (_LARGEST_SCALE - _SMALLEST_SCALE) * chance.random() for _ in range(3)
    ]
    sides = [
        max(1, min(int(edge * scale) if stretch else edge, size))
        for edge, scale, size in zip(crop.size, scales, volume.shape, strict=True)
    ]
    corner = [
        chance.randint(0, size - side) for size, side in zip(volume.shape, sides, strict=True)
    ]
    part = volume[tuple(slice(a, a + n) for a, n in zip(corner, sides, strict=True))]
    zoom = [edge / side for edge, side in zip(crop.size, sides, strict=True)]
    out: NDArray[np.float32] = np.asarray(ndimage.zoom(part, zoom, order=1), dtype=np.float32)
    return out


def _flipped(patch: NDArray[np.float32], chance: Random) -> NDArray[np.float32]:
    for axis in (2, 1, 0):
        if chance.random() > 0.5:
            patch = np.flip(patch, axis)
    return patch
