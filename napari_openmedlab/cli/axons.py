"""``openmedlab axons``: axons in a volume larger than memory, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from napari_openmedlab.errors import EngineError

if TYPE_CHECKING:
    from napari_openmedlab.axons.plan import Plan, Settings
    from napari_openmedlab.axons.source import Source
    from napari_openmedlab.axons.store import Results
    from napari_openmedlab.geometry.boxes import Box

__all__ = ["app"]

_UNKNOWN = "unknown"


class _RunByDefault(TyperGroup):
    """``openmedlab axons IN OUT`` means ``openmedlab axons run IN OUT``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


app = typer.Typer(
    cls=_RunByDefault,
    help="Axons in a light-sheet volume larger than memory. 'openmedlab axons IN OUT' runs it, or "
    "goes on with it; the other commands work with what it found.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Normalise(StrEnum):
    """How grey values are normalised, named here so that ``--help`` loads no engine."""

    volume = "volume"
    block = "block"
    plane = "plane"


class GapChoice(StrEnum):
    """What to do about missing slices."""

    stop = "stop"
    fill = "fill"


_Image = Annotated[
    Path,
    typer.Argument(
        metavar="IN", help="OME-Zarr, a folder of TIFF slices, a TIFF stack, or a small NIfTI."
    ),
]
_VoxelSize = Annotated[
    str,
    typer.Option(
        "--voxel-size",
        help="'z,y,x' in um, where the file does not state it; 'unknown' works in voxels.",
    ),
]
_Gaps = Annotated[
    GapChoice,
    typer.Option(help="Missing or damaged slices of a folder: stop, or fill with the one before."),
]
_Series = Annotated[
    str | None, typer.Option(help="Which image, if there are several (see 'openmedlab info').")
]
_Index = Annotated[
    int | None, typer.Option(min=0, help="Which channel or time point, counted from 0.")
]


@app.command("run")
def run(  # noqa: PLR0913  (a command has one parameter per option)
    image: _Image,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results.")],
    engine: Annotated[
        str, typer.Option("--engine", "-e", help="axon-filter (no weights) or axon-seg.")
    ] = "axon-filter",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="An option of the engine, NAME=VALUE; may be repeated."),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Probability from which a voxel is axon.", min=0.004, max=1.0)
    ] = 0.5,
    region: Annotated[
        str, typer.Option(help="Only this part: first and last voxel as 'z0:z1,y0:y1,x0:x1'.")
    ] = "",
    voxel_size: _VoxelSize = "",
    normalise: Annotated[
        Normalise,
        typer.Option(
            help="Grey values: one rule for the volume, each block's own, or upstream's slice."
        ),
    ] = Normalise.volume,
    skip_background: Annotated[
        bool, typer.Option(help="Leave out blocks that hold nothing but background.")
    ] = True,
    series: _Series = None,
    index: _Index = None,
    gaps: _Gaps = GapChoice.stop,
    scheduler: Annotated[
        str, typer.Option(help="Address of a Dask scheduler whose workers do the blocks.")
    ] = "",
    workers: Annotated[
        int, typer.Option(min=0, help="Blocks at once (the filter); 0: one for each core.")
    ] = 0,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Print what it would take, and stop.")
    ] = False,
) -> None:
    """Find axons block by block; the same command again goes on where it stopped."""
    from napari_openmedlab.axons.plan import Settings, make_plan
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.models.catalogue import load_engine

    source = _opened(image, series, index, gaps, voxel_size)
    settings = Settings(
        engine=engine,
        options=_options(engine, option or []),
        region=_region(region, source),
        threshold=threshold,
        normalisation=normalise.value,
        skip_background=skip_background,
        workers=workers,
    )
    worker = load_engine(engine)
    try:
        with working("looking at the volume") as monitor:
            plan = make_plan(source, settings, worker, monitor, timed=not scheduler)
        _show_plan(plan, out)
        if plan_only:
            return
        with working("axons") as monitor:
            results = _executed(plan, out, worker, scheduler, monitor)
    finally:
        worker.unload()
    _show_results(results, plan)


@app.command("threshold")
def threshold(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of a run.")],
    value: Annotated[float, typer.Argument(min=0.004, max=1.0, help="New threshold.")],
) -> None:
    """Make the labels of a run anew at another threshold; no engine runs."""
    from napari_openmedlab.axons.store import relabel
    from napari_openmedlab.cli.progress import working

    with working("labels") as monitor:
        results = relabel(out, value, monitor)
    _say(f"Labels at {results.threshold:g}: {results.label_image}")


@app.command("skeleton")
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
    with working("skeleton") as monitor:
        thin = SkeletonSettings(halo=halo, smallest=smallest)
        forest = traced(results, monitor, thin, tracing)
        written = [
            write_skeleton(results, forest, swc or results.folder / "skeleton.swc"),
            write_branch_csv(results, forest, table or results.folder / "branches.csv"),
        ]
    trees = int(forest.trees.max()) + 1 if len(forest.trees) else 0
    unit = "um" if results.knows_spacing else "voxels"
    _say(f"{trees} trees, {float(forest.lengths.sum()):.0f} {unit} of axon.")
    for path in written:
        _say(f"Written: {path}")


class DensityKind(StrEnum):
    """What a density map counts."""

    length = "length"
    voxels = "voxels"


@app.command("density")
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
    with working("density") as monitor:
        found = density_of(results, edge, of.value, monitor)
        written = write_density_map(results, found, to or results.folder / "density.nii.gz")
    _say(f"{_shape(found.grid.bins)} bins of {edge:g} um, {found.unit}; total {found.total:.0f}.")
    for path in written:
        _say(f"Written: {path}")


@app.command("convert")
def convert(  # noqa: PLR0913  (a command has one parameter per option)
    image: _Image,
    out: Annotated[Path, typer.Argument(metavar="OUT.zarr", help="OME-Zarr to write.")],
    voxel_size: _VoxelSize = "",
    series: _Series = None,
    index: _Index = None,
    gaps: _Gaps = GapChoice.stop,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Print what it would take, and stop.")
    ] = False,
) -> None:
    """Convert a TIFF stack to OME-Zarr; the same command again goes on where it stopped."""
    from napari_openmedlab.axons.convert import convert as convert_volume
    from napari_openmedlab.axons.convert import plan_conversion
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.models.checkpoints.disk import size_text

    source = _opened(image, series, index, gaps, voxel_size)
    planned = plan_conversion(source)
    _say(f"{source.name}: {_shape(source.shape)} {source.dtype}, {_spacing(source)}")
    _say(
        f"At most {size_text(planned.disk)} on the disk, {size_text(planned.memory)} of memory, "
        f"{len(planned.slabs)} slabs."
    )
    if plan_only:
        return
    with working("converting") as monitor:
        written = convert_volume(source, out, monitor)
    _say(f"Written: {written}")


def _opened(
    image: Path, series: str | None, index: int | None, gaps: GapChoice, voxel_size: str
) -> Source:
    """Open the volume; ask for its voxel size if nobody states it."""
    from napari_openmedlab.axons.source import open_source
    from napari_openmedlab.cli.progress import working

    with working(f"opening {image.name or image}"):
        source = open_source(image, series=series, index=index, gaps=gaps.value)
    for note in source.volume.notes:
        if "voxel size" not in note or not voxel_size:
            _say(f"Note: {note}")
    if voxel_size and voxel_size != _UNKNOWN:
        return source.with_spacing(_three(voxel_size))
    if source.spacing is None and not voxel_size:
        raise typer.BadParameter(
            f"{image.name} does not state its voxel size. Give it as --voxel-size z,y,x in um, or "
            f"--voxel-size {_UNKNOWN} to work in voxels"
        )
    return source


def _three(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3 or min(values) <= 0:
        raise typer.BadParameter(f"a voxel size reads 'z,y,x' in um, got '{text}'")
    return values


def _options(engine: str, given: Sequence[str]) -> dict[str, Any]:
    from napari_openmedlab.cli.segment import parse_option
    from napari_openmedlab.models.catalogue import engines, get_spec

    try:
        spec = get_spec(engine)
        if spec.task != "blocks":
            usable = ", ".join(e.id for e in engines("blocks"))
            raise typer.BadParameter(f"engine '{engine}' finds no axons; take one of {usable}")
        return spec.check_options(dict(parse_option(spec, text) for text in given))
    except EngineError as error:
        raise typer.BadParameter(str(error)) from error


def _region(text: str, source: Source) -> Box | None:
    """Return the box that ``z0:z1,y0:y1,x0:x1`` means, last voxel included."""
    from napari_openmedlab.errors import GeometryError
    from napari_openmedlab.geometry.boxes import Box

    if not text:
        return None
    try:
        (a, b), (c, d), (e, f) = [[int(v) for v in part.split(":")] for part in text.split(",")]
        return Box((a, c, e), (b + 1, d + 1, f + 1))
    except (ValueError, GeometryError) as error:
        raise typer.BadParameter(
            f"a region reads 'z0:z1,y0:y1,x0:x1', got '{text}'; {source.name} has "
            f"{_shape(source.shape)} voxels"
        ) from error


def _executed(plan: Plan, out: Path, worker: Any, scheduler: str, monitor: Any) -> Results:
    if scheduler:
        from napari_openmedlab.axons.cluster import execute_on

        return execute_on(scheduler, plan, out, monitor)
    from napari_openmedlab.axons.run import execute

    return execute(plan, out, worker, monitor)


def _show_plan(plan: Plan, out: Path) -> None:
    import math

    from napari_openmedlab.axons.run import time_text
    from napari_openmedlab.models.checkpoints.disk import size_text

    settings: Settings = plan.settings
    _say(f"{plan.source.name}: {_shape(plan.source.shape)} {plan.source.dtype}, "
         f"{_spacing(plan.source)}")  # fmt: skip
    work = len(plan.blocks) - len(plan.skipped)
    skipped = f", {len(plan.skipped)} more are background" if plan.skipped else ""
    _say(f"{settings.engine}, threshold {settings.threshold:g}: {work} blocks{skipped}.")
    seconds = "" if math.isnan(plan.seconds) else f"About {time_text(plan.seconds)}; "
    _say(
        f"{seconds}{size_text(plan.memory)} of memory, at most {size_text(plan.disk)} on the disk "
        f"({size_text(plan.free_disk(out))} free)."
    )


def _show_results(results: Results, plan: Plan) -> None:
    done = results.done()
    voxels = sum(int(facts["voxels"]) for facts in done.values())
    share = voxels / plan.region.size
    skipped = sum(bool(facts.get("skipped")) for facts in done.values())
    _say(f"{voxels} of {plan.region.size} voxels are axon ({share:.2%}); {skipped} of "
         f"{len(done)} blocks were background.")  # fmt: skip
    _say(f"Written: {results.image}")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _spacing(source: Source) -> str:
    if source.spacing is None:
        return "voxel size unknown"
    return " x ".join(f"{v:.4g}" for v in source.spacing) + " um"


def _say(text: str) -> None:
    from rich.console import Console

    Console().print(text, markup=False, highlight=False, soft_wrap=True)
