"""Seeds inside the object: links between extreme points, and the intensities found at points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.graph import MCP_Geometric

__all__ = ["PointModel", "inward_steps", "link_points", "point_model"]

Floats = NDArray[np.float32]
Ints = NDArray[np.intp]

#: Rounds of pointer doubling that follow any path of up to 2**32 voxels to its source.
DOUBLINGS = 32


@dataclass(frozen=True)
class PointModel:
    """Intensities of an object as a mean of Gaussians, one per point.

    Attributes
    ----------
    centre, spread : ndarray of float64, shape (N,)
    """

    centre: NDArray[np.float64]
    spread: NDArray[np.float64]

    def unlikeliness(self, image: Floats) -> Floats:
        """Return ``-log`` of the density over its maximum, between 0 and about 9."""
        low, high = float(image.min()), float(image.max())
        table = np.linspace(low, high + 1e-3 * max(1.0, high - low), 1024)
        step = (table[:, None] - self.centre) / self.spread
        density = (np.exp(-0.5 * step**2) / self.spread).mean(axis=1)
        cost = -np.log(density / max(float(density.max()), 1e-30) + 1e-4)
        return np.asarray(np.interp(image, table, cost), dtype=np.float32)


def inward_steps(points: Ints) -> Ints:
    """Return for each extreme point the steps (-1, 0, 1) per axis that lead into the object.

    The first and last point along an axis look inward along it; a point may be extreme along
    several axes, or (with duplicates) along none.
    """
    steps = np.zeros_like(points)
    for axis in range(3):
        first, last = int(points[:, axis].argmin()), int(points[:, axis].argmax())
        if points[last, axis] - points[first, axis] >= 2:
            steps[first, axis], steps[last, axis] = 1, -1
    return steps


def point_model(image: Floats, points: Ints, steps: Ints, noise: float) -> PointModel:
    """Describe the object's intensities by those just inside each point.

    Of the 3x3x3 patch one voxel inward of a point, the half closest to the point's own value
    counts: the other half often lies across the border.

    Parameters
    ----------
    image : ndarray of float32, shape (z, y, x)
    points, steps : ndarray of int, shape (N, 3)
    noise : float
        Noise level of the image; no Gaussian gets narrower than 1.5 times this.
    """
    centre, spread = [], []
    top = np.array(image.shape) - 1
    for point, step in zip(points, steps, strict=True):
        inside = np.clip(point + step, 0, top)
        patch = image[tuple(slice(max(0, c - 1), c + 2) for c in inside)].ravel()
        near = np.argsort(np.abs(patch - image[tuple(point)]), kind="stable")
        kept = patch[near[: max(3, len(near) // 2)]].astype(float)
        middle = float(np.median(kept))
        centre.append(middle)
        spread.append(max(1.5 * noise, 1.4826 * float(np.median(np.abs(kept - middle)))))
    return PointModel(np.array(centre), np.array(spread))


def link_points(cost: NDArray[np.float64], points: Ints, spacing: NDArray[np.float64]) -> Ints:
    """Join points by the minimum spanning tree of their cheapest paths.

    One multi-source search gives every voxel its nearest point; the cheapest crossing between
    two such territories is the cheapest path between their points [1]_.

    Parameters
    ----------
    cost : ndarray of float64, shape (z, y, x)
        Cost per unit length, > 0.
    points : ndarray of int, shape (N, 3)
    spacing : ndarray, shape (3,)

    Returns
    -------
    ndarray of int, shape (M, 3)
        Voxels on the tree, the points included.

    References
    ----------
    .. [1] K. Mehlhorn, "A faster approximation algorithm for the Steiner problem in graphs",
       Information Processing Letters 27, 1988.
    """
    sources = np.unique(points, axis=0)
    if len(sources) < 2:
        return sources
    graph = MCP_Geometric(cost, fully_connected=True, sampling=tuple(spacing / spacing.min()))
    reach, step = graph.find_costs([tuple(int(v) for v in s) for s in sources])
    owner = _territories(np.asarray(graph.offsets), np.asarray(step), sources)
    crossings = _crossings(reach, cost, owner, len(sources))
    tree = list(range(len(sources)))
    voxels = [sources]
    for _, key, first, second in sorted(crossings):
        a, b = divmod(key, len(sources))
        if tree[a] == tree[b]:
            continue
        tree = [tree[a] if t == tree[b] else t for t in tree]
        voxels += [
            np.array(graph.traceback(np.unravel_index(end, cost.shape))) for end in (first, second)
        ]
    return np.unique(np.concatenate(voxels), axis=0)


def _territories(
    offsets: NDArray[np.int_], step: NDArray[np.int_], sources: Ints
) -> NDArray[np.intp]:
    """Return the number of the source that each voxel's cheapest path starts from, else -1."""
    shape = step.shape
    flat = step.ravel()
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    parent = np.arange(flat.size)
    has_parent = flat >= 0
    parent[has_parent] -= (offsets @ strides)[flat[has_parent]]
    for _ in range(DOUBLINGS):
        above = parent[parent]
        if np.array_equal(above, parent):
            break
        parent = above
    number = np.full(flat.size, -1, dtype=np.intp)
    number[np.ravel_multi_index(tuple(sources.T), shape)] = np.arange(len(sources))
    return number[parent].reshape(shape)


def _crossings(
    reach: NDArray[np.float64], cost: NDArray[np.float64], owner: NDArray[np.intp], count: int
) -> list[tuple[float, int, int, int]]:
    """Cheapest crossing between each two territories: (cost, pair key, voxel, voxel)."""
    index = np.arange(cost.size).reshape(cost.shape)
    best: dict[int, tuple[float, int, int, int]] = {}
    for axis in range(3):
        n = cost.shape[axis]
        a, b = (
            tuple(s if k == axis else slice(None) for k in range(3))
            for s in (slice(0, n - 1), slice(1, n))
        )
        border = (owner[a] != owner[b]) & (owner[a] >= 0) & (owner[b] >= 0)
        if not border.any():
            continue
        price = (reach[a] + reach[b] + 0.5 * (cost[a] + cost[b]))[border]
        low, high = np.minimum(owner[a], owner[b])[border], np.maximum(owner[a], owner[b])[border]
        pair, first, second = low * count + high, index[a][border], index[b][border]
        order = np.lexsort((price, pair))
        heads = order[np.r_[True, np.diff(pair[order]) > 0]]
        for j in heads:
            found = (float(price[j]), int(pair[j]), int(first[j]), int(second[j]))
            best[found[1]] = min(found, best.get(found[1], found))
    return list(best.values())
