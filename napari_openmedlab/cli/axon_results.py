"""``openmedlab axons skeleton`` and ``density``: from labels to files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from napari_openmedlab.cli.axon_volume import say

__all__ = ["density", "skeleton"]


def skeleton(  # noqa: PLR0913  (a command has one parameter per option)
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of a finished run.")],
    swc: Annotated[
        Path | None, typer.Option("--swc", help="Where to; OUT/skeleton.swc if not given.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--csv", help="Branches; OUT/branches.csv if not given.")
    ] = None,
    smallest: Annotated[int, typer.Option(min=0, help="Pieces of fewer voxels are left out.")] = 10,
    halo: Annotated[
        int, typer.Option(min=1, help="Voxels read around a block: twice the largest radius.")
    ] = 24,
    spur: Annotated[
        float, typer.Option(min=0.0, help="Side branches shorter than this (um) are cut off.")
    ] = 0.0,
    shortest: Annotated[
        float, typer.Option(min=0.0, help="Trees shorter than this (um) are left out.")
    ] = 0.0,
) -> None:
    """Centre-lines of the labels as SWC (a forest, um) and a table of branches."""
    from napari_openmedlab.axons.products import traced, write_branch_csv, write_skeleton
    from napari_openmedlab.axons.skeleton import SkeletonSettings
    from napari_openmedlab.axons.store import Results
    from napari_openmedlab.axons.tracing import TracingSettings
    from napari_openmedlab.cli.progress import working

    results = Results.open(out)
    tracing = TracingSettings(shortest_spur=spur, shortest_tree=shortest)
    with working("making the skeleton") as monitor:
        thin = SkeletonSettings(halo=halo, smallest=smallest)
        forest = traced(results, monitor, thin, tracing)
        written = [
            write_skeleton(results, forest, swc or results.folder / "skeleton.swc"),
            write_branch_csv(results, forest, table or results.folder / "branches.csv"),
        ]
    trees = int(forest.trees.max()) + 1 if len(forest.trees) else 0
    unit = "um" if results.knows_spacing else "voxels"
    say(f"{trees} trees, {float(forest.lengths.sum()):.0f} {unit} of axon.")
    for path in written:
        say(f"Written: {path}")


class DensityKind(StrEnum):
    """What a density map counts."""

    length = "length"
    voxels = "voxels"


def density(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of a finished run.")],
    edge: Annotated[float, typer.Option(help="Edge of a bin in um; 25 and 50 are usual.")] = 25.0,
    of: Annotated[
        DensityKind, typer.Option(help="um of centre-line, or voxels, per mm3.")
    ] = DensityKind.length,
    to: Annotated[
        Path | None,
        typer.Option(help=".nii.gz or .ome.tif; OUT/density.nii.gz if not given."),
    ] = None,
) -> None:
    """How much axon there is on a coarse grid, for registration to an atlas."""
    from napari_openmedlab.axons.products import density_of, write_density_map
    from napari_openmedlab.axons.store import Results
    from napari_openmedlab.cli.progress import working

    results = Results.open(out)
    with working("making the density map") as monitor:
        found = density_of(results, edge, of.value, monitor)
        written = write_density_map(results, found, to or results.folder / "density.nii.gz")
    bins = " x ".join(map(str, found.grid.bins))
    say(f"{bins} bins of {edge:g} um, {found.unit}; total {found.total:.0f}.")
    for path in written:
        say(f"Written: {path}")
