"""Trees as SWC, the text format of neuron tracing: one node a line, in um.

Columns: id, type, x, y, z, radius, parent; ids from 1, parents before children, -1 for a root
(Cannon et al., "An on-line archive of reconstructed hippocampal neurons", 1998).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from napari_openmedlab import __version__
from napari_openmedlab.axons.tracing import Forest
from napari_openmedlab.errors import WriteError
from napari_openmedlab.io.atomic import resolved_target, staging

__all__ = ["write_swc"]

AXON = 2
"""SWC's number for an axon."""

_LINES = 50_000  # written at a time


def write_swc(
    path: str | Path,
    forest: Forest,
    *,
    unit: str = "um",
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write all trees of a forest into one file.

    Parameters
    ----------
    path : str or Path
        Ends in ``.swc``.
    forest : Forest
        Positions in um.
    unit : {"um", "voxel"}
        Said in the header: programs take SWC for um, so a file in voxels must say so.
    provenance : mapping, optional
        JSON values for the header.

    Raises
    ------
    WriteError
        If there is no node, or the file can't be written; an old file is then untouched.
    """
    target = resolved_target(Path(path))
    if not len(forest.parents):
        raise WriteError(f"there is no centre-line to write, so {target} was not written", target)
    with (
        staging(target.parent) as folder,
        (folder / target.name).open("w", encoding="utf-8", newline="\n") as file,
    ):
        file.write(_header(forest, unit, provenance or {}))
        for start in range(0, len(forest.parents), _LINES):
            file.write(_lines(forest, start, min(start + _LINES, len(forest.parents))))
    return target


def _header(forest: Forest, unit: str, provenance: Mapping[str, Any]) -> str:
    trees = int(forest.trees.max()) + 1
    facts = {"nodes": len(forest.parents), "trees": trees, **provenance}
    lines = [
        f"napari-openmedlab {__version__}",
        f"positions and radii in {unit}, (x, y, z); type {AXON} = axon",
        *(f"{name}: {json.dumps(value)}" for name, value in facts.items()),
        "id type x y z radius parent",
    ]
    return "".join(f"# {line}\n" for line in lines)


def _lines(forest: Forest, start: int, stop: int) -> str:
    some = slice(start, stop)
    count = stop - start
    parents = forest.parents[some]
    table = np.empty((count, 6), dtype=object)
    table[:, 0] = range(start + 1, stop + 1)
    table[:, 1:4] = forest.positions[some, ::-1]
    table[:, 4] = forest.radii[some].astype(np.float64)
    table[:, 5] = np.where(parents < 0, -1, parents + 1)
    text = f"%d {AXON} %.3f %.3f %.3f %.3f %d\n" * count
    return text % tuple(table.ravel())
