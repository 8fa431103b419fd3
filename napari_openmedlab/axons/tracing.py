"""From skeleton voxels to trees: a graph, its loops opened, spurs cut, lines smoothed, branches.

Everything is arrays and sparse matrices; no Python loop runs over voxels.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

from napari_openmedlab.axons.skeleton import Skeleton
from napari_openmedlab.errors import SettingsError
from napari_openmedlab.io.atomic import resolved_target, staging

__all__ = ["BranchTable", "Forest", "TracingSettings", "branch_table", "trace", "write_branches"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TracingSettings:
    """How voxels become trees.

    Attributes
    ----------
    smoothing : int
        Rounds in which a node between two others moves to the mean of itself and both. Voxel
        steps make a line up to 9 % too long; two rounds take most of that away.
    shortest_spur : float
        Side branches to a tip that are shorter than this (unit of the spacing) are cut off.
    shortest_tree : float
        Trees with less length (same unit) are left out.
    """

    smoothing: int = 2
    shortest_spur: float = 0.0
    shortest_tree: float = 0.0

    def __post_init__(self) -> None:
        if self.smoothing < 0 or self.shortest_spur < 0 or self.shortest_tree < 0:
            raise SettingsError("smoothing and shortest lengths of a tracing can't be below 0")


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees of nodes; a parent comes before its children and trees follow each other.

    Attributes
    ----------
    positions : ndarray of float64, shape (N, 3)
        World (z, y, x) in the unit of the spacing.
    radii : ndarray of float32, shape (N,)
    parents : ndarray of int64, shape (N,)
        Index of the parent; -1 for a root.
    trees : ndarray of int64, shape (N,)
        Number of the tree, from 0.
    """

    positions: Floats
    radii: NDArray[np.float32]
    parents: Ints
    trees: Ints

    @property
    def lengths(self) -> Floats:
        """Distance of each node to its parent; 0 for roots. Shape (N,)."""
        step = self.positions - self.positions[self.parents]
        lengths: Floats = np.where(self.parents < 0, 0.0, np.sqrt((step**2).sum(axis=1)))
        return lengths

    @property
    def degrees(self) -> Ints:
        """Neighbours of each node: 1 at a tip, 2 along a branch, 3 or more at a fork."""
        child = np.flatnonzero(self.parents >= 0)
        count = np.bincount(self.parents[child], minlength=len(self.parents))
        degrees: Ints = count + (self.parents >= 0)
        return degrees


def trace(
    skeleton: Skeleton,
    settings: TracingSettings | None = None,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Forest:
    """Return the trees of a skeleton.

    Parameters
    ----------
    skeleton : Skeleton
        With spacing in um, if um are wanted.
    settings : TracingSettings, optional
    origin : tuple of float
        World position (z, y, x) of the centre of voxel (0, 0, 0).

    Notes
    -----
    Voxels that touch (26 neighbours) are joined; of these joins the minimum spanning forest by
    length stays, so a loop opens at its longest step. A root is the first tip of its tree in
    the order of voxels.
    """
    settings = settings or TracingSettings()
    count = len(skeleton.points)
    spacing = np.array(skeleton.spacing)
    positions = skeleton.points * spacing
    ends, lengths = _touching(skeleton)
    graph = coo_array((lengths, (ends[:, 0], ends[:, 1])), shape=(count, count)).tocsr()
    tree = minimum_spanning_tree(graph).tocoo()
    edges = np.stack([tree.row, tree.col], axis=1).astype(np.int64)
    edges = _without_spurs(edges, positions, settings.shortest_spur, count)
    positions = _smoothed(positions, edges, settings.smoothing)
    alive = np.ones(count, dtype=bool)
    if settings.shortest_spur:
        alive = _alive(edges, ends, count)
    forest = _rooted(positions + np.array(origin), skeleton.radii, edges, alive)
    return _long_trees(forest, settings.shortest_tree) if settings.shortest_tree else forest


def _touching(skeleton: Skeleton) -> tuple[Ints, Floats]:
    """Return pairs of voxels that touch, lower index first, and their distance."""
    points = skeleton.points.astype(np.int64)
    # One voxel of margin: a step over the border must not land in the next row.
    shape = np.array(skeleton.shape, dtype=np.int64) + 2
    flat = np.ravel_multi_index(tuple((points + 1).T), tuple(shape))
    pairs, lengths = [], []
    for step in product((-1, 0, 1), repeat=3):
        shift = (step[0] * shape[1] + step[1]) * shape[2] + step[2]
        if shift <= 0:
            continue
        wanted = flat + shift
        place = np.minimum(np.searchsorted(flat, wanted), max(len(flat) - 1, 0))
        hit = np.flatnonzero(flat[place] == wanted) if len(flat) else place
        pairs.append(np.stack([hit, place[hit]], axis=1))
        distance = float(np.linalg.norm(np.array(step) * skeleton.spacing))
        lengths.append(np.full(len(hit), distance))
    return np.concatenate(pairs).astype(np.int64), np.concatenate(lengths)


def _graph(edges: Ints, count: int) -> Any:
    ones = np.ones(len(edges), dtype=np.int8)
    return coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(count, count)).tocsr()


def _without_spurs(edges: Ints, positions: Floats, shortest: float, count: int) -> Ints:
    """Return the edges without side branches to a tip that are too short; two rounds."""
    for _ in range(2 if shortest else 0):
        degrees = np.bincount(edges.ravel(), minlength=count)
        branches, number = _branches(edges, degrees)
        step = positions[edges[:, 0]] - positions[edges[:, 1]]
        length = np.bincount(branches, np.sqrt((step**2).sum(axis=1)), minlength=number)
        tips = np.bincount(branches, (degrees[edges] == 1).sum(axis=1), minlength=number)
        forks = np.bincount(branches, (degrees[edges] > 2).sum(axis=1), minlength=number)
        spur = (length < shortest) & (tips > 0) & (forks > 0)
        # A small tree of nothing but short branches stays as it is.
        trees = connected_components(_graph(edges, count), directed=False)[1][edges[:, 0]]
        spur &= np.bincount(branches, _has_more(trees, spur[branches])[trees], number) > 0
        if not spur.any():
            break
        edges = edges[~spur[branches]]
    return edges


def _has_more(trees: Ints, spur: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return for each tree whether it has an edge that belongs to no spur."""
    has: NDArray[np.bool_] = np.bincount(trees, ~spur) > 0
    return has


def _alive(edges: Ints, before: Ints, count: int) -> NDArray[np.bool_]:
    """Return which nodes stay: those with an edge, and those that never had one."""
    lonely = np.bincount(before.ravel(), minlength=count) == 0
    alive: NDArray[np.bool_] = (np.bincount(edges.ravel(), minlength=count) > 0) | lonely
    return alive


def _branches(edges: Ints, degrees: Ints) -> tuple[Ints, int]:
    """Return the number of the branch of each edge: a run between tips and forks."""
    inner = degrees[edges] == 2
    within = edges[inner.all(axis=1)]
    _, labels = connected_components(_graph(within, len(degrees)), directed=False)
    run = np.where(inner[:, 0], labels[edges[:, 0]], labels[edges[:, 1]]).astype(np.int64)
    direct = ~inner.any(axis=1)
    run[direct] = labels.max(initial=0) + 1 + np.arange(int(direct.sum()))
    names, numbers = np.unique(run, return_inverse=True)
    return numbers.astype(np.int64), len(names)


def _smoothed(positions: Floats, edges: Ints, rounds: int) -> Floats:
    """Return positions with nodes of two neighbours moved to the mean of the three."""
    if not rounds or not len(edges):
        return positions
    count = len(positions)
    both = np.concatenate([edges, edges[:, ::-1]])
    neighbours = _graph(both, count).astype(np.float64)
    inner = np.bincount(edges.ravel(), minlength=count) == 2
    smooth = positions.astype(np.float64)
    for _ in range(rounds):
        mean = (smooth + neighbours @ smooth) / 3.0
        smooth = np.where(inner[:, None], mean, smooth)
    return smooth


def _rooted(
    positions: Floats, radii: NDArray[np.float32], edges: Ints, alive: NDArray[np.bool_]
) -> Forest:
    """Return trees from edges without loops: parents first, tree by tree."""
    count = len(positions)
    if not count:
        none = np.zeros(0, dtype=np.int64)
        return Forest(np.zeros((0, 3)), np.zeros(0, np.float32), none, none)
    _, trees = connected_components(_graph(edges, count), directed=False)
    degrees = np.bincount(edges.ravel(), minlength=count)
    # The first tip of each tree, or its only node: sort tips before others, keep the order.
    order = np.lexsort((np.arange(count), degrees != 1, trees))
    roots = order[np.unique(trees[order], return_index=True)[1]]
    roots = roots[alive[roots]]
    # One more node joined to all roots lets a single search find every parent.
    links = np.stack([np.full(len(roots), count), roots], axis=1)
    graph = _graph(np.concatenate([edges, links]), count + 1)
    found, parents = breadth_first_order(graph, count, directed=False)
    found = found[1:]
    found = found[np.argsort(trees[found], kind="stable")]
    index = np.full(count + 1, -1, dtype=np.int64)
    index[found] = np.arange(len(found))
    numbers = np.unique(trees[found], return_inverse=True)[1].astype(np.int64)
    return Forest(positions[found], radii[found], index[parents[found]], numbers)


def _long_trees(forest: Forest, shortest: float) -> Forest:
    """Return the forest without trees of less length."""
    keep = (np.bincount(forest.trees, forest.lengths) >= shortest)[forest.trees]
    index = np.cumsum(keep) - 1
    parents = forest.parents[keep]
    parents = np.where(parents < 0, -1, index[parents])
    trees = np.unique(forest.trees[keep], return_inverse=True)[1].astype(np.int64)
    return Forest(forest.positions[keep], forest.radii[keep], parents, trees)


@dataclass(frozen=True, eq=False)
class BranchTable:
    """One row for each branch: a run of nodes between two tips or forks.

    Attributes
    ----------
    tree : ndarray of int64, shape (B,)
    length : ndarray of float64, shape (B,)
    start, end : ndarray of float64, shape (B, 3)
        World (z, y, x) of its ends.
    radius : ndarray of float64, shape (B,)
        Mean along its length.
    """

    tree: Ints
    length: Floats
    start: Floats
    end: Floats
    radius: Floats

    @property
    def distance(self) -> Floats:
        """Straight distance of the ends."""
        distance: Floats = np.sqrt(((self.end - self.start) ** 2).sum(axis=1))
        return distance

    @property
    def tortuosity(self) -> Floats:
        """Length over straight distance: 1 for a straight line."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.length / self.distance, dtype=np.float64)

    def rows(self) -> Iterator[tuple[float, ...]]:
        """Yield the columns of :func:`write_branches` row by row."""
        columns = (
            np.arange(1, len(self.tree) + 1), self.tree + 1, self.length, self.distance,
            self.tortuosity, self.radius, *self.start[:, ::-1].T, *self.end[:, ::-1].T,
        )  # fmt: skip
        yield from zip(*(c.tolist() for c in columns), strict=True)


def branch_table(forest: Forest) -> BranchTable:
    """Return the branches of a forest; single nodes have none."""
    child = np.flatnonzero(forest.parents >= 0)
    edges = np.stack([child, forest.parents[child]], axis=1)
    if not len(edges):
        none, nowhere = np.zeros(0), np.zeros((0, 3))
        return BranchTable(np.zeros(0, dtype=np.int64), none, nowhere, nowhere, none)
    degrees = forest.degrees
    branches, number = _branches(edges, degrees)
    step = forest.lengths[child]
    length: Floats = np.bincount(branches, step, minlength=number).astype(np.float64)
    middle = forest.radii[edges].mean(axis=1)
    radius = np.bincount(branches, step * middle, minlength=number) / np.maximum(length, 1e-12)
    # Each branch of a tree has exactly two nodes that are no inner ones.
    side = degrees[edges] != 2
    names = np.repeat(branches[:, None], 2, axis=1)[side]
    nodes = edges[side]
    order = np.lexsort((nodes, names))
    pairs = nodes[order].reshape(-1, 2)
    tree = forest.trees[pairs[:, 0]]
    return BranchTable(
        tree, length, forest.positions[pairs[:, 0]], forest.positions[pairs[:, 1]], radius
    )


_COLUMNS = (
    "branch", "tree", "length_um", "distance_um", "tortuosity", "mean_radius_um",
    "start_x_um", "start_y_um", "start_z_um", "end_x_um", "end_y_um", "end_z_um",
)  # fmt: skip


def write_branches(path: str | Path, table: BranchTable, unit: str = "um") -> Path:
    """Write the branches as CSV.

    Parameters
    ----------
    path : str or Path
    table : BranchTable
    unit : {"um", "voxel"}
        Named in the columns: say ``"voxel"`` where the voxel size is not known.

    Raises
    ------
    WriteError
        If the file can't be written; an old one is then untouched.
    """
    target = resolved_target(Path(path))
    columns = [name.replace("_um", f"_{unit}") for name in _COLUMNS]
    with (
        staging(target.parent) as folder,
        (folder / target.name).open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        for branch, tree, *numbers in table.rows():
            writer.writerow([branch, tree, *(f"{n:.4f}" for n in numbers)])
    return target
