"""From the labels of a run to files other programs open: skeleton, branches, density."""

from __future__ import annotations

from pathlib import Path

from napari_openmedlab.axons.density import (
    Density,
    DensityGrid,
    Kind,
    length_density,
    voxel_density,
    write_density,
)
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

__all__ = [
    "density_of",
    "traced",
    "unit_of",
    "write_branch_csv",
    "write_density_map",
    "write_skeleton",
]


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
        If the run or its labels are not finished, or it found no axon.
    """
    _check_finished(results)
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


def density_of(results: Results, edge: float, kind: Kind, monitor: Monitor) -> Density:
    """Return how much axon there is in each bin of a coarse grid.

    Parameters
    ----------
    results : Results
    edge : float
        Of a bin in um.
    kind : {"length", "voxels"}
        um of centre-line, or voxels, per mm3.
    monitor : Monitor

    Raises
    ------
    ReadError
        If the run or its labels are not finished, or its voxel size is not known.
    SettingsError
        If the bins are smaller than the voxels.
    """
    _check_finished(results)
    if not results.knows_spacing:
        raise ReadError(
            f"the voxel size of the run in {results.folder} is not known, so there is no density "
            "per mm3; run it with a voxel size",
            results.folder,
        )
    z, y, x = (int(n) for n in results.labels.shape)
    grid = DensityGrid((z, y, x), results.spacing, edge, results.origin, results.patient)
    if kind == "voxels":
        return voxel_density(results.labels, grid, monitor=monitor)
    return length_density(traced(results, monitor), grid)


def write_density_map(results: Results, density: Density, path: str | Path) -> tuple[Path, ...]:
    """Write a density map as NIfTI or OME-TIFF, with what it came from beside it."""
    facts = {
        "source": results.run["name"],
        "engine": results.run["engine"],
        "threshold": results.threshold,
    }
    return write_density(path, density, facts)


def _check_finished(results: Results) -> None:
    done, wanted = len(results.done()), results.run["blocks"]
    if done < wanted:
        raise ReadError(
            f"the run in {results.folder} is not finished: {done} of {wanted} blocks are done; "
            "let it go on first",
            results.folder,
        )
    if (threshold := results.relabelling) is not None:
        raise ReadError(
            f"the labels of the run in {results.folder} are only partly those of the threshold "
            f"of {threshold:g}: making them was cut short; make the labels at {threshold:g} (or "
            "another threshold) again first",
            results.folder,
        )
