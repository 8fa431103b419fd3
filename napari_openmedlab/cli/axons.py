"""``openmedlab axons``: axons in a volume larger than memory, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from napari_openmedlab.cli import axon_results
from napari_openmedlab.cli.axon_volume import (
    GapChoice,
    GapOption,
    ImageArgument,
    IndexOption,
    SeriesOption,
    SizeOption,
    open_volume,
    say,
)
from napari_openmedlab.errors import EngineError

if TYPE_CHECKING:
    from napari_openmedlab.axons.plan import Plan, Settings
    from napari_openmedlab.axons.source import Source
    from napari_openmedlab.axons.store import Results
    from napari_openmedlab.geometry.boxes import Box

__all__ = ["app"]

_AGAIN = "what is done is kept, and the same command goes on"


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
app.command("skeleton")(axon_results.skeleton)
app.command("density")(axon_results.density)


class Normalise(StrEnum):
    """How grey values are normalised, named here so that ``--help`` loads no engine."""

    volume = "volume"
    block = "block"
    plane = "plane"


@app.command("run")
def run(  # noqa: PLR0913  (a command has one parameter per option)
    image: ImageArgument,
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
    voxel_size: SizeOption = "",
    normalise: Annotated[
        Normalise,
        typer.Option(
            help="Grey values: one rule for the volume, each block's own, or upstream's slice."
        ),
    ] = Normalise.volume,
    skip_background: Annotated[
        bool, typer.Option(help="Leave out blocks that hold nothing but background.")
    ] = True,
    series: SeriesOption = None,
    index: IndexOption = None,
    gaps: GapOption = GapChoice.stop,
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

    source = open_volume(image, series, index, gaps, voxel_size)
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
        with working("finding axons", _AGAIN) as monitor:
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

    with working("making labels", _AGAIN) as monitor:
        results = relabel(out, value, monitor)
    say(f"Labels at {results.threshold:g}: {results.label_image}")


@app.command("convert")
def convert(  # noqa: PLR0913  (a command has one parameter per option)
    image: ImageArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT.zarr", help="OME-Zarr to write.")],
    voxel_size: SizeOption = "",
    series: SeriesOption = None,
    index: IndexOption = None,
    gaps: GapOption = GapChoice.stop,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Print what it would take, and stop.")
    ] = False,
) -> None:
    """Convert a TIFF stack to OME-Zarr; the same command again goes on where it stopped."""
    from napari_openmedlab.axons.convert import convert as convert_volume
    from napari_openmedlab.axons.convert import plan_conversion
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.models.checkpoints.disk import size_text

    source = open_volume(image, series, index, gaps, voxel_size)
    planned = plan_conversion(source)
    say(f"{source.name}: {_shape(source.shape)} {source.dtype}, {_spacing(source)}")
    say(
        f"At most {size_text(planned.disk)} on the disk, {size_text(planned.memory)} of memory, "
        f"{len(planned.slabs)} slabs."
    )
    if plan_only:
        return
    with working("converting", _AGAIN) as monitor:
        written = convert_volume(source, out, monitor)
    say(f"Written: {written}")


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

    from napari_openmedlab.models.checkpoints.disk import size_text
    from napari_openmedlab.words import time_text

    settings: Settings = plan.settings
    say(f"{plan.source.name}: {_shape(plan.source.shape)} {plan.source.dtype}, "
         f"{_spacing(plan.source)}")  # fmt: skip
    work = len(plan.blocks) - len(plan.skipped)
    skipped = f", {len(plan.skipped)} more are background" if plan.skipped else ""
    say(f"{settings.engine}, threshold {settings.threshold:g}: {work} blocks{skipped}.")
    seconds = "" if math.isnan(plan.seconds) else f"About {time_text(plan.seconds)}; "
    say(
        f"{seconds}{size_text(plan.memory)} of memory, at most {size_text(plan.disk)} on the disk "
        f"({size_text(plan.free_disk(out))} free)."
    )


def _show_results(results: Results, plan: Plan) -> None:
    done = results.done()
    voxels = sum(int(facts["voxels"]) for facts in done.values())
    share = voxels / plan.region.size
    skipped = sum(bool(facts.get("skipped")) for facts in done.values())
    say(f"{voxels} of {plan.region.size} voxels are axon ({share:.2%}); {skipped} of "
         f"{len(done)} blocks were background.")  # fmt: skip
    say(f"Written: {results.image}")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _spacing(source: Source) -> str:
    if source.spacing is None:
        return "voxel size unknown"
    return " x ".join(f"{v:.4g}" for v in source.spacing) + " um"
