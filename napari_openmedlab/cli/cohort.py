"""``openmedlab cohort``: find and segment the structures of a template library in many scans."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_openmedlab.errors import OpenMedLabError

if TYPE_CHECKING:
    from napari_openmedlab.cohort.run import Summary
    from napari_openmedlab.cohort.settings import Settings

__all__ = ["cohort"]

NO_ENGINE = "none"


class Prompts(StrEnum):
    """What an engine is given, named here so that ``--help`` loads nothing."""

    box = "box"
    extreme_points = "extreme_points"


def cohort(  # noqa: PLR0913  (a command has one parameter per option)
    folder: Annotated[
        Path, typer.Argument(help="Folder with scans: DICOM folders and files mixed.")
    ],
    templates: Annotated[
        Path, typer.Option("--templates", "-t", help="Folder of a template library.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder for the results. The same one again: goes on."),
    ],
    engine: Annotated[
        str,
        typer.Option("--engine", "-e", help="Who segments in the boxes; 'none': boxes only."),
    ] = "built-in",
    localizer: Annotated[
        str,
        typer.Option(
            "--localizer", help="Who finds them. Without: MedLAM if its weights are here."
        ),
    ] = "",
    structures: Annotated[
        str, typer.Option(help="Structures, with commas between. Without: all that are marked.")
    ] = "",
    margin: Annotated[
        float, typer.Option(help="Millimetres added to each side of a box; masks end there.")
    ] = 0.0,
    prompts: Annotated[
        Prompts, typer.Option(help="What the engine is given: the box, or the points found.")
    ] = Prompts.box,
    sub_patches: Annotated[
        int,
        typer.Option(
            min=0,
            max=100,
            help="Boxes of slabs of so many 3 mm slices, for structures marked from masks "
            "(MedLSAM: 2); 0: whole boxes.",
        ),
    ] = 0,
    one_file_per_structure: Annotated[
        bool, typer.Option(help="Write one file per structure instead of one label map.")
    ] = False,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="Weights of --engine: a name or a file.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Where networks run: auto, cpu, cuda:0, mps.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="Of networks: auto, float32, half.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="An option of --engine, NAME=VALUE; may be repeated."),
    ] = None,
    localizer_option: Annotated[
        list[str] | None,
        typer.Option(
            "--localizer-option", help="An option of --localizer, NAME=VALUE; may be repeated."
        ),
    ] = None,
    scheduler: Annotated[
        str,
        typer.Option("--scheduler", help="Run on a Dask cluster: address of its scheduler."),
    ] = "",
) -> None:
    """Find marked structures in every scan of a folder, and segment them there.

    Writes masks on each scan's own grid, cohort.csv and boxes.json. Stop it at any time: the
    same command goes on where it stopped, finished cases are skipped. Review the results in
    napari: Plugins > OpenMedLab > Cohort.
    """
    from napari_openmedlab.cli.localize import localizer_options, names_in
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.cohort.library import Library
    from napari_openmedlab.cohort.run import Plan, run_cohort
    from napari_openmedlab.cohort.settings import Settings, default_localizer

    found_by = localizer or default_localizer()
    where = {"device": device, "precision": precision}
    chosen, values = _engine(engine, option or [], {"checkpoint": checkpoint, **where})
    settings = Settings(
        localizer=found_by,
        localizer_options=localizer_options(
            found_by, localizer_option or [], _taken(found_by, where)
        ),
        engine=chosen,
        engine_options=values,
        structures=names_in(structures),
        margin_mm=margin,
        prompts=prompts.value,
        slab_interval=sub_patches,
        one_file_per_structure=one_file_per_structure,
    )
    library = Library.open(templates)
    for problem in library.problems:
        typer.echo(f"Note: {problem}", err=True)
    marked = library.templates(settings.structures, slab_interval=sub_patches)
    plan = Plan(folder, out, marked, settings, templates, scheduler)
    with working(f"cohort {folder.name or folder}") as monitor:
        summary = run_cohort(plan, monitor)
    _show(out, summary, settings)
    if not (summary.done or summary.skipped or summary.kept):
        raise OpenMedLabError("no case could be finished; the table above says why")


def _taken(engine: str, flags: dict[str, str | None]) -> dict[str, str | None]:
    """Return the flags that an engine has an option for: one of two engines may have none."""
    from napari_openmedlab.errors import EngineError
    from napari_openmedlab.models.catalogue import get_spec

    try:
        known = {each.name for each in get_spec(engine).options}
    except EngineError as error:
        raise typer.BadParameter(str(error)) from error
    return {name: value for name, value in flags.items() if name in known}


def _engine(
    engine: str, options: list[str], flags: dict[str, str | None]
) -> tuple[str, dict[str, Any]]:
    """Return the engine that segments and its options; an empty name for boxes only."""
    from napari_openmedlab.cli.segment import choose_engine, with_model

    if engine == NO_ENGINE:
        if options:
            raise typer.BadParameter("with --engine none there is no engine for --option")
        return "", {}
    asked = {"checkpoint": flags.pop("checkpoint"), **_taken(engine, flags)}
    choice = with_model(choose_engine(engine, options, avoid_neighbours=False, flags=asked))
    return choice.engine, dict(choice.options)


def _show(out: Path, summary: Summary, settings: Settings) -> None:
    from rich.console import Console
    from rich.table import Table

    from napari_openmedlab.cohort.results import Results

    results = Results(out)
    job = results.job()
    table = Table("case", "status")
    for head in ("found", "least certain"):
        table.add_column(head, justify="right")
    table.add_column("review")
    table.add_column("notes")
    for case, record, review in results.rows(job.cases):
        if record is None or record.status == "failed":
            reason = case.problem if record is None else record.reason
            table.add_row(case.id, "failed" if record else "pending", "", "", review.state, reason)
            continue
        lost = [s.name for s in record.structures if not s.found]
        said = [f"not found: {', '.join(lost)}"] if lost else []
        said += [f"{s.name}: {s.reason or s.status}" for s in record.structures if s.status in
                 ("failed", "empty")]  # fmt: skip
        found = f"{record.found} of {len(record.structures)}"
        table.add_row(
            case.id, "done", found, f"{record.certainty:.2f}", review.state, "; ".join(said)
        )
    console = Console()
    console.print(table)
    counts = {
        "done now": summary.done,
        "finished before": summary.skipped,
        "kept as reviewed": summary.kept,
        "failed": len(summary.failed),
    }
    text = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
    what = f"{settings.localizer}, then {settings.engine}" if settings.engine else "boxes only"
    console.print(f"{summary.cases} cases ({what}): {text}.", markup=False, soft_wrap=True)
    console.print(f"Written: {out}", markup=False, highlight=False, soft_wrap=True)
