"""Synthetic axons with known centre-lines: branching tubes among bright edges, blobs and noise.

Real light-sheet cubes come with machine-made labels only, which can't show whether a centre-line
is right. Here the truth is what was drawn. Same seed, same volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["TubeScene", "TubeTruth", "make_tubes"]

_STEP = 0.5  # voxels between two samples of a centre-line


@dataclass(frozen=True)
class TubeScene:
    """What to draw.

    Attributes
    ----------
    shape : tuple of int
        Voxels (z, y, x).
    axons : int
        Trees to start; each may branch.
    radius : tuple of float
        Smallest and largest radius in voxels: tubes are 2 to 4 voxels thick by default.
    brightness : tuple of float
        Smallest and largest signal above the background of 400.
    length : float
        Longest stretch of one branch, in voxels.
    branching : float
        Chance of a side branch per voxel of length.
    edge : bool
        A bright, curved tissue border across a corner of the volume.
    blobs : int
        Bright balls of radius 4 to 9 voxels (cell bodies).
    noise : float
        Standard deviation of the read-out noise; shot noise grows with brightness beside it.
    planes : int
        So many planes are seen as one, with one plane's noise: a coarse step in z.
    seed : int
    """

    shape: tuple[int, int, int] = (96, 128, 128)
    axons: int = 14
    radius: tuple[float, float] = (1.0, 2.0)
    brightness: tuple[float, float] = (180.0, 700.0)
    length: float = 120.0
    branching: float = 0.012
    edge: bool = True
    blobs: int = 10
    noise: float = 20.0
    planes: int = 1
    seed: int = 0


@dataclass(frozen=True)
class TubeTruth:
    """A drawn volume with its truth.

    Attributes
    ----------
    image : ndarray of uint16, shape (z, y, x)
    mask : ndarray of bool, shape (z, y, x)
        Voxels whose centre lies within a tube's radius of its centre-line.
    points : ndarray of float32, shape (N, 3)
        Centre-line samples (z, y, x) in voxels, at most half a voxel apart.
    radii : ndarray of float32, shape (N,)
        In voxels.
    artefacts : ndarray of bool, shape (z, y, x)
        The bright border's surface (2 voxels either side) and the blobs.
    length : float
        Sum of all centre-lines inside the volume, in voxels of the finest axis.
    spacing : tuple of float
        How long a voxel is along z, y and x.
    """

    image: NDArray[np.uint16]
    mask: NDArray[np.bool_]
    points: NDArray[np.float32]
    radii: NDArray[np.float32]
    artefacts: NDArray[np.bool_]
    length: float
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def centre_line(self) -> NDArray[np.bool_]:
        """The centre-lines as voxels."""
        line = np.zeros(self.mask.shape, dtype=bool)
        line[tuple(np.rint(self.points).astype(int).T)] = True
        return line


def make_tubes(scene: TubeScene | None = None) -> TubeTruth:
    """Draw a scene.

    Returns
    -------
    TubeTruth
        On the grid of the planes that are seen; a voxel is in the mask if half of it is.
    """
    scene = scene or TubeScene()
    rng = np.random.default_rng(scene.seed)
    branches = _forest(scene, rng)
    points = np.concatenate([b.points for b in branches]).astype(np.float32)
    radii = np.concatenate([b.radii for b in branches]).astype(np.float32)
    light = np.concatenate([b.light for b in branches]).astype(np.float32)
    signal, mask = _drawn(scene.shape, points, radii, light)
    tissue, artefacts = _surroundings(scene, rng)
    clean = ndimage.gaussian_filter(signal + tissue, 0.6).astype(np.float32)
    if scene.planes > 1:
        clean = _seen(clean, scene.planes)
        mask, artefacts = (_seen(array, scene.planes) >= 0.5 for array in (mask, artefacts))
        inside = points[:, 0] < len(clean) * scene.planes - 0.5
        points, radii = points[inside], radii[inside]
        points[:, 0] = (points[:, 0] + 0.5) / scene.planes - 0.5
    shot = np.sqrt(np.maximum(clean, 0.0))
    sigma = np.sqrt(scene.noise**2 + shot**2)
    noisy = clean + rng.standard_normal(clean.shape, dtype=np.float32) * sigma
    image = np.clip(np.rint(noisy), 0, 65535).astype(np.uint16)
    spacing = (float(scene.planes), 1.0, 1.0)
    return TubeTruth(image, mask, points, radii, artefacts, _STEP * len(points), spacing)


def _seen(array: NDArray[Any], planes: int) -> NDArray[np.float32]:
    """Return the means of so many planes each; what is left over at the end is dropped."""
    depth = len(array) // planes
    parts = array[: depth * planes].reshape(depth, planes, *array.shape[1:])
    return parts.mean(axis=1, dtype=np.float32)


@dataclass(frozen=True)
class _Branch:
    points: NDArray[np.float64]
    radii: NDArray[np.float64]
    light: NDArray[np.float64]


def _forest(scene: TubeScene, rng: np.random.Generator) -> list[_Branch]:
    size = np.array(scene.shape, dtype=float)
    branches: list[_Branch] = []
    for _ in range(scene.axons):
        waiting = [(rng.uniform(0.1, 0.9, 3) * size, _unit(rng.standard_normal(3)), 0)]
        radius = rng.uniform(*scene.radius)
        light = np.exp(rng.uniform(*np.log(scene.brightness)))
        while waiting:
            start, heading, depth = waiting.pop()
            branch, sides = _walk(scene, rng, (start, heading), (radius, light))
            if len(branch.points) < 8:
                continue
            branches.append(branch)
            if depth < 2:
                waiting += [(p, d, depth + 1) for p, d in sides]
    return branches


def _walk(
    scene: TubeScene,
    rng: np.random.Generator,
    pose: tuple[NDArray[np.float64], NDArray[np.float64]],
    looks: tuple[float, float],
) -> tuple[_Branch, list[tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """Walk with slowly turning heading until the border or the length is reached."""
    place, heading = pose
    turn = np.zeros(3)
    points, sides = [], []
    top = np.array(scene.shape) - 1.0
    steps = int(scene.length * rng.uniform(0.5, 1.0) / _STEP)
    for _ in range(steps):
        if (place < 0).any() or (place > top).any():
            break
        points.append(place)
        turn = 0.95 * turn + 0.012 * rng.standard_normal(3)
        heading = _unit(heading + _STEP * turn)
        if len(points) > 12 and rng.random() < scene.branching * _STEP:
            sides.append((place, _unit(heading + 0.9 * _unit(rng.standard_normal(3)))))
        place = place + _STEP * heading
    count = len(points)
    waves = np.linspace(0, count * _STEP / 25.0, count) + rng.uniform(0, 6.28)
    radius, light = looks
    radii = np.clip(radius * (1 + 0.15 * np.sin(1.7 * waves)), *scene.radius)
    bright = np.clip(light * (1 + 0.35 * np.sin(waves)), scene.brightness[0] * 0.7, None)
    return _Branch(np.array(points).reshape(-1, 3), radii, bright), sides


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9))


def _drawn(
    shape: tuple[int, int, int],
    points: NDArray[np.float32],
    radii: NDArray[np.float32],
    light: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the tubes' light with soft rims, and their voxels."""
    reach = int(np.ceil(radii.max() + 0.5))
    signal = np.zeros(shape, dtype=np.float32)
    inside = np.zeros(shape, dtype=bool)
    base = np.rint(points).astype(int)
    for offset in np.ndindex(*(3 * (2 * reach + 1,))):
        voxel = base + (np.array(offset) - reach)
        distance = np.linalg.norm(voxel - points, axis=1)
        fits = ((voxel >= 0) & (voxel < shape)).all(axis=1) & (distance < radii + 0.5)
        where = tuple(voxel[fits].T)
        share = np.clip(radii[fits] + 0.5 - distance[fits], 0.0, 1.0)
        np.maximum.at(signal, where, share * light[fits])
        core = fits & (distance <= radii)
        inside[tuple(voxel[core].T)] = True
    return signal, inside


def _surroundings(
    scene: TubeScene, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the tissue's own light, and where its border and blobs lie."""
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in scene.shape), indexing="ij")
    artefacts = np.zeros(scene.shape, dtype=bool)
    slow = ndimage.gaussian_filter(rng.standard_normal(scene.shape, dtype=np.float32), 18)
    tissue = 400.0 + 40.0 * slow / max(float(slow.std()), 1e-6)
    if scene.edge:
        depth, height, width = scene.shape
        wave = 4.0 * np.sin(z / depth * 5.0) + 3.0 * np.cos(y / height * 4.0)
        away = (x + 0.5 * y) - 0.24 * (width + 0.5 * height) + wave
        tissue = np.where(away < 0, tissue + 900.0, tissue)
        artefacts |= np.abs(away) < 2.5
    for _ in range(scene.blobs):
        centre = rng.uniform(0.1, 0.9, 3) * scene.shape
        radius = rng.uniform(4.0, 9.0)
        gap = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)
        tissue = np.where(gap < radius, np.maximum(tissue, rng.uniform(800, 1600)), tissue)
        artefacts |= gap < radius + 1.5
    return tissue.astype(np.float32), artefacts
