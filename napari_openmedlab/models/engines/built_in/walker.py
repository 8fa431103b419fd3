"""Random walker with a prior: a sparse linear system solved without ever building its matrix.

Minimises ``sum_edges w (x_i - x_j)^2 + sum_i g_i (x_i - p_i)^2`` over the voxels of a block;
``g`` says how strongly each voxel holds on to its prior ``p`` [1]_.

References
----------
.. [1] L. Grady, "Multilabel random walker image segmentation using prior models", CVPR 2005.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi
from skimage.graph import MCP_Geometric

__all__ = ["edge_weights", "geodesic_distance", "solve_walker"]

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Slices = tuple[slice, slice, slice]

#: Distance given to voxels that no seed reaches.
UNREACHED = 1.0e3


def _neighbours(axis: int) -> tuple[Slices, Slices]:
    """Index expressions of all (voxel, next voxel along ``axis``) pairs."""
    first = [slice(None)] * 3
    second = [slice(None)] * 3
    first[axis], second[axis] = slice(None, -1), slice(1, None)
    return (first[0], first[1], first[2]), (second[0], second[1], second[2])


PAIRS = tuple(_neighbours(axis) for axis in range(3))


def edge_weights(
    values: Floats, spacing: NDArray[np.float64], scale: float, floor: float
) -> list[Floats]:
    """Return a weight for every pair of face neighbours, one array per axis.

    Parameters
    ----------
    values : ndarray of float32, shape (z, y, x)
    spacing : ndarray, shape (3,)
        Voxel size; longer steps couple less, by the square of their length.
    scale : float
        Difference of ``values`` at which the weight has dropped to exp(-1/2).
    floor : float
        Smallest weight, so that no voxel is cut off.
    """
    finest = float(spacing.min())
    weights = []
    for axis in range(3):
        step = np.diff(values, axis=axis) / np.float32(scale)
        weight = np.exp(np.float32(-0.5) * step * step) + np.float32(floor)
        weights.append(weight * np.float32((finest / spacing[axis]) ** 2))
    return weights


def solve_walker(
    weights: Sequence[Floats],
    hold: Floats,
    prior: Floats,
    *,
    tolerance: float = 3e-3,
    iterations: int = 150,
    check: Callable[[], None] = lambda: None,
) -> Floats:
    """Return the minimiser in [0, 1], by Jacobi-preconditioned conjugate gradients.

    Parameters
    ----------
    weights : three arrays of float32
        From :func:`edge_weights`.
    hold, prior : ndarray of float32, shape (z, y, x)
        ``hold`` > 0 somewhere.
    check : callable
        Called every few iterations; may raise to stop.
    """
    degree = hold.copy()
    for (a, b), w in zip(PAIRS, weights, strict=True):
        degree[a] += w
        degree[b] += w

    def apply(x: Floats) -> Floats:
        y = degree * x
        for (a, b), w in zip(PAIRS, weights, strict=True):
            y[a] -= w * x[b]
            y[b] -= w * x[a]
        return y

    target = hold * prior
    x = prior.copy()
    residual = target - apply(x)
    z = residual / degree
    direction = z.copy()
    energy = float(np.vdot(residual, z))
    stop = tolerance**2 * (float(np.vdot(target, target / degree)) + 1e-12)
    for step in range(iterations):
        if energy <= stop:
            break
        if step % 8 == 0:
            check()
        image = apply(direction)
        length = np.float32(energy / max(float(np.vdot(direction, image)), 1e-30))
        x += length * direction
        residual -= length * image
        z = residual / degree
        previous, energy = energy, float(np.vdot(residual, z))
        direction *= np.float32(energy / max(previous, 1e-30))
        direction += z
    return x


def geodesic_distance(
    cost: NDArray[np.float64], seeds: Bools, spacing: NDArray[np.float64]
) -> Floats:
    """Return the smallest cost of a path from any seed to each voxel (steps in finest voxels).

    Notes
    -----
    Only seeds that touch a voxel without one are starts; the ones behind them lie at distance
    0 and are walled off. The distances are the same and the search does not crawl through the
    seeds, most of which are the whole surroundings of the box.
    """
    if not seeds.any():
        return np.full(cost.shape, UNREACHED, np.float32)
    inner = ndi.binary_erosion(seeds, np.ones((3, 3, 3), bool), border_value=1)
    starts = np.argwhere(seeds & ~inner)
    if not len(starts):
        return np.zeros(cost.shape, np.float32)
    walled = np.where(inner, -1.0, cost)
    graph = MCP_Geometric(walled, fully_connected=True, sampling=tuple(spacing / spacing.min()))
    distance = np.asarray(graph.find_costs(starts)[0], dtype=np.float32)
    distance[inner] = 0.0
    return distance
