"""CT-like torsos with known organs: real anatomy where its labels are at hand, or one of our own.

An :class:`Anatomy` is a label volume; :func:`phantom` deforms it (scaling, rotation, a smooth
random field), draws an intensity for every organ, adds what a label volume lacks (skin, fat,
muscle, spine, ribs, pelvis, lungs, gut with gas), noise and blur, and stores it on any grid.
The real label volumes are not part of the repository; tests that need them skip without.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from napari_openmedlab.geometry.volume import Geometry, Volume

AMOS = {
    1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 5: "oesophagus",
    6: "liver", 7: "stomach", 8: "aorta", 9: "vena cava", 10: "pancreas", 11: "right adrenal",
    12: "left adrenal", 13: "duodenum", 14: "bladder", 15: "prostate or uterus",
}  # fmt: skip
# Hounsfield units in the portal phase, and how much they differ from scan to scan.
HU = {
    1: (115, 18), 2: (170, 25), 3: (170, 25), 4: (10, 8), 5: (40, 10), 6: (105, 15), 7: (35, 20),
    8: (150, 30), 9: (135, 25), 10: (90, 15), 11: (70, 12), 12: (70, 12), 13: (60, 20),
    14: (8, 8), 15: (60, 12),
}  # fmt: skip
_STEP = 2.5  # mm of the grid on which an anatomy is kept


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Labels on an upright grid: axes to superior, anterior, left; millimetres from its corner."""

    labels: np.ndarray
    names: dict[int, str]
    step: float = _STEP

    @property
    def extent(self) -> np.ndarray:
        return np.array(self.labels.shape) * self.step


@dataclass(frozen=True, eq=False)
class Phantom:
    """A scan and the labels of its organs on the same grid."""

    volume: Volume
    labels: np.ndarray
    names: dict[int, str]

    def mask(self, name: str) -> np.ndarray:
        return self.labels == next(v for v, n in self.names.items() if n == name)


def real_anatomy(path: Path) -> Anatomy:
    """Read one of the AMOS22 label volumes; kept between tests."""
    return _real(str(path))


@lru_cache(maxsize=4)
def _real(path: str) -> Anatomy:
    from napari_openmedlab.io.api import read

    volume = read(path)
    array = np.asarray(volume.array)[::-1, ::-1]  # I, P, L to S, A, L
    step = np.array(volume.geometry.spacing)
    shape = np.maximum(1, np.rint(np.array(array.shape) * step / _STEP)).astype(int)
    index = [
        np.minimum((np.arange(n) + 0.5) * _STEP / s, m - 1).astype(int)
        for n, s, m in zip(shape, step, array.shape, strict=True)
    ]
    return Anatomy(array[np.ix_(*index)].astype(np.uint8), AMOS)


@lru_cache(maxsize=2)
def own_anatomy() -> Anatomy:
    """A torso of ellipsoids, no patient's: seven organs where people have them, 450 mm high."""
    shape = (180, 112, 144)  # 450 x 280 x 360 mm
    grid = [np.arange(n, dtype=np.float32) * _STEP for n in shape]
    z, y, x = grid[0][:, None, None], grid[1][None, :, None], grid[2][None, None, :]
    labels = np.zeros(shape, np.uint8)
    organs = {  # centre and half axes in mm: (z, y, x), x to the left
        6: ((340, 150, 115), (75, 70, 85)),
        1: ((335, 100, 270), (50, 40, 30)),
        7: ((320, 175, 225), (45, 35, 45)),
        2: ((265, 90, 120), (52, 26, 27)),
        3: ((280, 90, 240), (55, 26, 27)),
        14: ((60, 160, 180), (35, 35, 42)),
    }
    for value, (centre, half) in organs.items():
        place = zip((z, y, x), centre, half, strict=True)
        inside = sum(((g - c) / h) ** 2 for g, c, h in place) <= 1
        labels[inside & (labels == 0)] = value
    aorta = ((y - 105) ** 2 + (x - 185) ** 2 <= 11**2) & (z > 150) & (z < 440)
    labels[aorta & (labels == 0)] = 8
    return Anatomy(labels, {v: AMOS[v] for v in (1, 2, 3, 6, 7, 8, 14)})


@dataclass(frozen=True)
class Variation:
    """How far phantoms of one anatomy lie apart."""

    degrees: float = 6.0
    scaling: float = 0.08
    bend_mm: float = 5.0
    bend_length_mm: float = 55.0
    noise_hu: float = 12.0


def phantom(
    anatomy: Anatomy,
    seed: int,
    *,
    spacing: tuple[float, float, float] = (4.0, 2.5, 2.5),
    codes: str = "IPL",
    span: tuple[float, float] = (0.0, 1.0),
    variation: Variation | None = None,
) -> Phantom:
    """Return a scan of somebody with this anatomy.

    Parameters
    ----------
    anatomy : Anatomy
    seed : int
        Decides everything drawn.
    spacing : tuple of float
        Millimetres along superior, anterior, left.
    codes : str
        Letters the array axes grow to.
    span : tuple of float
        Lowest and highest slice kept, as parts of the anatomy's height.
    variation : Variation, optional
    """
    change = variation or Variation()
    rng = np.random.default_rng(seed)
    extent = anatomy.extent
    low, high = extent[0] * span[0], extent[0] * span[1]
    size = np.array([high - low, extent[1] + 40, extent[2] + 40])
    shape = np.maximum(1, (size / spacing).astype(int))
    corner = np.array([low, -20.0, -20.0]) + rng.uniform(-6, 6, 3)
    place = _places(shape, spacing, corner)
    source = _deformed(place, extent, change, rng)
    index = source / anatomy.step - 0.5
    labels = ndimage.map_coordinates(anatomy.labels, index, order=0, mode="constant")
    image = _image(labels, source, anatomy, spacing, change, rng)
    return _stored(image, labels, (spacing, codes), anatomy.names, rng)


def _places(shape: np.ndarray, spacing: tuple[float, ...], corner: np.ndarray) -> np.ndarray:
    axes = [c + (np.arange(n) + 0.5) * s for n, s, c in zip(shape, spacing, corner, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _deformed(
    place: np.ndarray, extent: np.ndarray, change: Variation, rng: np.random.Generator
) -> np.ndarray:
    """Return where in the anatomy each voxel lies."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_euler("zyx", rng.uniform(-1, 1, 3) * change.degrees, degrees=True)
    matrix = turn.as_matrix() @ np.diag(1 + rng.uniform(-1, 1, 3) * change.scaling)
    middle = extent / 2
    flat = place.reshape(3, -1) - middle[:, None]
    moved = (matrix @ flat + middle[:, None]).reshape(place.shape).astype(np.float32)
    knots = np.maximum(4, np.ceil(extent / change.bend_length_mm)).astype(int) + 3
    at = (moved / change.bend_length_mm) + 1.0
    for axis in range(3):
        field = rng.normal(0, change.bend_mm, knots).astype(np.float32)
        moved[axis] += ndimage.map_coordinates(field, at, order=3, mode="nearest", prefilter=False)
    return moved


def _image(
    labels: np.ndarray,
    source: np.ndarray,
    anatomy: Anatomy,
    spacing: tuple[float, ...],
    change: Variation,
    rng: np.random.Generator,
) -> np.ndarray:
    organs = np.argwhere(anatomy.labels > 0) * anatomy.step
    (z0, y0, x0), (z1, y1, x1) = organs.min(0), organs.max(0)
    half = (np.array([y1 - y0, x1 - x0]) / 2 + 18) * np.array([1.05, 1.02])
    middle = np.array([(y0 + y1) / 2, (x0 + x1) / 2])
    z, y, x = source
    fat = rng.uniform(12, 30)
    outline = _ellipse(y, x, middle, half + fat)
    image = np.full(labels.shape, -1000.0, np.float32)
    image[outline <= 1] = -100  # subcutaneous fat
    inner = _ellipse(y, x, middle, half)
    image[inner <= 1] = rng.normal(50, 5)  # muscle
    cavity = _ellipse(y, x, middle, half - 14) <= 1
    soft = _smooth(rng, labels.shape, 18 / np.array(spacing))
    image[cavity] = np.where(soft > 0.2, rng.normal(30, 8), -95)[cavity]  # gut between fat
    gas = cavity & (_smooth(rng, labels.shape, 10 / np.array(spacing)) > 1.9)
    image[gas & (z < z0 + 0.7 * (z1 - z0))] = -700
    _lungs(image, source, anatomy, cavity, (z1, y1 - y0))
    bone = rng.normal(350, 40)
    spine = (y - (y0 + 4)) ** 2 + (x - middle[1]) ** 2 <= 20**2
    image[spine & (np.mod(z, 32.0) > 7)] = bone
    image[spine & (np.mod(z, 32.0) <= 7)] = 90
    ribs = (np.abs(inner - 0.86) < 0.05) & (np.mod(z + 0.4 * y, 26.0) < 10)
    image[ribs & (z > z0 + 0.55 * (z1 - z0))] = bone
    wings = (np.abs(inner - 0.72) < 0.06) & (z < z0 + 0.28 * (z1 - z0)) & (y < middle[0] + 25)
    image[wings & (np.abs(x - middle[1]) > 40)] = bone
    for value in anatomy.names:
        mean, spread = HU[value]
        image[labels == value] = rng.normal(mean, spread)
    table = (y < middle[0] - half[0] - fat - 4) & (y > middle[0] - half[0] - fat - 12)
    image[table & (np.abs(x - middle[1]) < 180)] = -300
    image = ndimage.gaussian_filter(image, 1.2 / np.array(spacing))
    image += _smooth(rng, labels.shape, 25 / np.array(spacing)).astype(np.float32) * 4
    return image + rng.normal(0, change.noise_hu, image.shape).astype(np.float32)


def _ellipse(y: np.ndarray, x: np.ndarray, middle: np.ndarray, half: np.ndarray) -> np.ndarray:
    power = 2.4  # between an ellipse and a rounded box, as trunks are
    return np.abs((y - middle[0]) / half[0]) ** power + np.abs((x - middle[1]) / half[1]) ** power


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma: np.ndarray) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.normal(0, 1, shape).astype(np.float32), sigma)
    return field / max(float(field.std()), 1e-6)


def _lungs(
    image: np.ndarray,
    source: np.ndarray,
    anatomy: Anatomy,
    cavity: np.ndarray,
    top: tuple[float, float],
) -> None:
    """Fill what lies above the domes of liver, spleen and stomach."""
    upper = np.isin(anatomy.labels, (1, 6, 7))
    height = np.where(
        upper.any(axis=0),
        (upper.shape[0] - np.argmax(upper[::-1], axis=0)) * anatomy.step,
        0.0,
    )
    floor = np.maximum(ndimage.gaussian_filter(height, 12), top[0] - 70) + 4
    index = source[1:] / anatomy.step - 0.5
    local = ndimage.map_coordinates(floor.astype(np.float32), index, order=1, mode="nearest")
    image[cavity & (source[0] > local)] = -850


def _stored(
    image: np.ndarray,
    labels: np.ndarray,
    grid: tuple[tuple[float, float, float], str],
    names: dict[int, str],
    rng: np.random.Generator,
) -> Phantom:
    """Put upright arrays (S, A, L) into an array of other axes, somewhere in the scanner."""
    spacing, codes = grid
    letters = {"S": (0, 1), "I": (0, -1), "A": (1, 1), "P": (1, -1), "L": (2, 1), "R": (2, -1)}
    order = [letters[c][0] for c in codes]
    flips = tuple(slice(None, None, letters[c][1]) for c in codes)
    towards = np.array([[0, 0, 1.0], [0, -1.0, 0], [1.0, 0, 0]])  # S, A, L in LPS
    affine = np.eye(4)
    first = rng.uniform(-300, 300, 3)
    for axis, code in enumerate(codes):
        source, sign = letters[code]
        affine[:3, axis] = towards[source] * spacing[source] * sign
        if sign < 0:
            first = first + towards[source] * spacing[source] * (image.shape[source] - 1)
    affine[:3, 3] = first
    array = np.rint(image).astype(np.int16).transpose(order)[flips]
    kept = np.ascontiguousarray(labels.transpose(order)[flips])
    volume = Volume(
        np.ascontiguousarray(array), Geometry(array.shape, affine), name="phantom", modality="CT"
    )
    return Phantom(volume, kept, names)
