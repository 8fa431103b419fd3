"""A light-sheet cube: axons that branch, cell bodies, haze, and bright things that aren't axons."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from phantoms.canvas import Array, smooth_noise

NAMES = {1: "axon"}


def grow(rng: np.random.Generator, extent_um: Array, count: int) -> list[Array]:
    """Return the paths (points (z, y, x) in um, 0.8 um apart) of axons and their branches."""
    paths: list[Array] = []
    tips: list[tuple[Array, Array, int]] = []
    for _ in range(count):
        start = rng.uniform(0.05, 0.95, 3) * extent_um
        start[2] = 0.0
        tips.append((start, np.array([rng.normal(0, 0.3), rng.normal(0, 0.35), 1.0]), 0))
    while tips:
        point, way, depth = tips.pop()
        points = [point]
        turn = np.zeros(3)
        while len(points) < 700:
            turn = 0.92 * turn + rng.normal(0, 0.005, 3)
            way = way / np.linalg.norm(way) + turn
            point = point + 0.8 * way / np.linalg.norm(way)
            if (point < 0).any() or (point > extent_um).any():
                break
            points.append(point)
            if depth < 3 and rng.random() < 0.0042:
                aside = way / np.linalg.norm(way) + rng.normal(0, 0.5, 3)
                tips.append((point, aside, depth + 1))
        paths.append(np.array(points))
    return paths


def cover(paths: list[Array], shape: tuple[int, ...], spacing: Array, radius: float) -> Array:
    """Return the boolean tubes of this radius (um) round the paths."""
    seeds = np.ones(shape, dtype=bool)
    for path in paths:
        index = np.clip(np.rint(path / spacing).astype(int), 0, np.array(shape) - 1)
        seeds[tuple(index.T)] = False
    return ndimage.distance_transform_edt(seeds, sampling=spacing) <= radius


def draw(
    shape: tuple[int, int, int], spacing_um: tuple[float, float, float], seed: int
) -> tuple[Array, Array]:
    """Return image (float32 counts) and labels (uint8), axes (z, y, x)."""
    rng = np.random.default_rng(seed)
    spacing = np.array(spacing_um)
    extent = (np.array(shape) - 1) * spacing
    paths = grow(rng, extent, 11)
    light = np.zeros(shape, dtype=np.float32)
    labels = np.zeros(shape, dtype=np.uint8)
    for path in paths:
        tube = cover([path], shape, spacing, 2.2)
        labels[tube] = 1
        light = np.maximum(light, tube * np.float32(rng.uniform(450, 1500)))
    steps = tuple(spacing_um)
    haze = 260 + smooth_noise(rng, shape, steps, 90, 55) + smooth_noise(rng, shape, steps, 9, 18)
    image = haze + light * (1 + smooth_noise(rng, shape, steps, 14, 0.25))
    image += artefacts(rng, shape, spacing)
    # The sheet is thicker than a pixel is wide: the blur is longer along z.
    image = ndimage.gaussian_filter(image, np.array([4.5, 1.6, 1.6]) / spacing)
    depth = np.linspace(1.0, 0.72, shape[0], dtype=np.float32)[:, None, None]
    stripes = 1 + 0.05 * ndimage.gaussian_filter1d(rng.standard_normal(shape[1]), 1.5)
    image = image * depth * stripes[None, :, None].astype(np.float32)
    counts = rng.poisson(np.maximum(image, 0) / 4) * 4 + 100
    return np.rint(counts / 8).astype(np.float32) * 8, labels  # steps below the noise pack well


def artefacts(rng: np.random.Generator, shape: tuple[int, ...], spacing: Array) -> Array:
    """Return cell bodies, a vessel wall and bright debris: bright, but no axons."""
    light = np.zeros(shape, dtype=np.float32)
    grid = np.meshgrid(
        *(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij", sparse=True
    )
    extent = (np.array(shape) - 1) * spacing
    for count, radius, power in ((9, (7, 11), (350, 700)), (5, (3, 6), (2600, 4200))):
        for _ in range(count):
            centre, size = rng.uniform(0.05, 0.95, 3) * extent, rng.uniform(*radius)
            squash = rng.uniform(0.8, 1.3, 3)
            gap = sum(((g - c) * k) ** 2 for g, c, k in zip(grid, centre, squash, strict=True))
            light += np.float32(rng.uniform(*power)) * (gap < size * size)
    z, y, x = grid
    gap = np.hypot(y - 0.72 * extent[1] - 0.12 * x, z - 0.55 * extent[0] + 0.1 * x)
    light += 420 * np.exp(-(((gap - 17) / 2.4) ** 2))
    return light - 120 * (gap < 15)
