"""From the labels of a run to files other programs open: skeleton, branches, density."""

from __future__ import annotations

from pathlib import Path

from napari_openmedlab.axons.skeleton import SkeletonSettings, skeletonise
from napari_openmedlab.axons.store import Results
from napari_openmedlab.axons.swc import write_swc
from napari_openmedlab.axons.tracing import (
    Forest,
    TracingSettings,
    branch_table,
    trace,
    write_branches,
)
from napari_openmedlab.errors import ReadError
from napari_openmedlab.models.contract import Monitor

__all__ = ["traced", "unit_of", "write_branch_csv", "write_skeleton"]


def unit_of(results: Results) -> str:
    """Return the unit of lengths in a run's files: um, or voxels where nobody stated a size."""
    return "um" if results.knows_spacing else "voxel"


def traced(
    results: Results,
    monitor: Monitor,
    skeleton: SkeletonSettings | None = None,
    tracing: TracingSettings | None = None,
) -> Forest:
    """Return the centre-lines of a run's labels as trees, in um of the source's world.

    Parameters
    ----------
    results : Results
    monitor : Monitor
    skeleton : SkeletonSettings, optional
    tracing : TracingSettings, optional

    Raises
    ------
    ReadError
        If the run is not finished, or found no axon.
    """
    if len(results.done()) < results.run["blocks"]:
        raise ReadError(
            f"the run in {results.folder} is not finished: {len(results.done())} of "
            f"{results.run['blocks']} blocks are done; let it go on first",
            results.folder,
        )
    thin = skeletonise(results.labels, results.spacing, skeleton, monitor=monitor)
    if not len(thin.points):
        raise ReadError(
            f"the run in {results.folder} found no axon at its threshold of "
            f"{results.threshold:g}; try a lower one",
            results.folder,
        )
    monitor.step(0, 0, "tracing")
    return trace(thin, tracing, results.origin)


def write_skeleton(results: Results, forest: Forest, path: str | Path) -> Path:
    """Write trees as SWC, with what they came from in its header."""
    facts = {
        "source": results.run["name"],
        "engine": results.run["engine"],
        "threshold": results.threshold,
    }
    return write_swc(path, forest, unit=unit_of(results), provenance=facts)


def write_branch_csv(results: Results, forest: Forest, path: str | Path) -> Path:
    """Write a row for every branch."""
    return write_branches(path, branch_table(forest), unit=unit_of(results))
