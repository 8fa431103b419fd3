"""``openmedlab localize``: the structures of a template library, found in another scan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_openmedlab.cli.weights import choose_model, with_shortcuts
from napari_openmedlab.errors import EngineError

if TYPE_CHECKING:
    from napari_openmedlab.geometry.volume import Volume
    from napari_openmedlab.models.localisation import Localisation

__all__ = ["localize", "localizer_options", "names_in"]

FORMAT = "napari-openmedlab boxes"


def localize(  # noqa: PLR0913  (a command has one parameter per option)
    image: Annotated[Path, typer.Argument(help="Scan: a file or a DICOM folder.")],
    templates: Annotated[
        Path, typer.Option("--templates", "-t", help="Folder of a template library.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Boxes to write: a .json file.")],
    engine: Annotated[
        str,
        typer.Option(
            "--engine", "-e", help="Who finds them. Without: MedLAM if its weights are here."
        ),
    ] = "",
    structures: Annotated[
        str, typer.Option(help="Structures, with commas between. Without: all that are marked.")
    ] = "",
    sub_patches: Annotated[
        int,
        typer.Option(
            min=0, max=100, help="Also boxes of slabs of so many 3 mm slices (MedLSAM: 2); 0: none."
        ),
    ] = 0,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="Weights: a model's name or a file.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Where a network runs: auto, cpu, cuda:0, mps.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="Of a network: auto, float32, half.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="An option of the engine, NAME=VALUE; may be repeated."),
    ] = None,
    series: Annotated[
        str | None, typer.Option(help="Which image, if there are several (see 'openmedlab info').")
    ] = None,
    index: Annotated[
        int | None, typer.Option(min=0, help="Which volume of a 4D file, counted from 0.")
    ] = None,
) -> None:
    """Find the structures of a template library in a scan; write their boxes and confidence.

    The file also serves 'openmedlab segment --prompts'.
    """
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.cohort.library import Library
    from napari_openmedlab.cohort.settings import Settings, default_localizer, structures_of
    from napari_openmedlab.cohort.work import locate
    from napari_openmedlab.io.api import read
    from napari_openmedlab.session.workbench import Workbench

    flags = {"checkpoint": checkpoint, "device": device, "precision": precision}
    chosen = engine or default_localizer()
    settings = Settings(chosen, localizer_options(chosen, option or [], flags), engine="")
    _check_out(out)
    settings.check()
    library = Library.open(templates)
    for problem in library.problems:
        typer.echo(f"Note: {problem}", err=True)
    marked = library.templates(names_in(structures), slab_interval=sub_patches)
    wanted = structures_of(marked, names_in(structures))
    with working(f"reading {image.name or image}"):
        volume = read(image, series=series, index=index)
    bench = Workbench()
    try:
        with working("finding structures") as monitor:
            found = locate(volume, marked, settings, wanted, (bench, monitor))
    finally:
        bench.release()
    _write(out, volume, found)
    _show(volume, found, out)


def localizer_options(
    engine: str, options: Sequence[str], flags: dict[str, str | None]
) -> dict[str, Any]:
    """Return a localizer's options, checked, its weights imported where a file was named.

    Raises
    ------
    typer.BadParameter
        For an engine or option there is not, or a value that does not fit.
    CheckpointError
        If there are no weights, or they don't fit.
    """
    from napari_openmedlab.cli.segment import parse_option
    from napari_openmedlab.models.catalogue import engines, get_spec

    try:
        spec = get_spec(engine)
        values = with_shortcuts(dict(parse_option(spec, text) for text in options), flags)
        spec.check_options(values)
    except EngineError as error:
        raise typer.BadParameter(str(error)) from error
    if spec.task != "localizer":
        known = ", ".join(each.id for each in engines("localizer"))
        raise typer.BadParameter(f"engine '{engine}' finds no structures; these do: {known}")
    if spec.networks and not spec.missing():
        name = choose_model(spec, str(values.get("checkpoint", "")))
        values = {**values, **({"checkpoint": name} if name else {})}
    return values


def names_in(text: str) -> tuple[str, ...]:
    """Return the names in a text with commas between."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _check_out(out: Path) -> None:
    from napari_openmedlab.io.atomic import resolved_target

    if out.suffix.lower() != ".json":
        raise typer.BadParameter(f"{out.name}: the name of a file with boxes ends in .json")
    resolved_target(out)


def _write(out: Path, volume: Volume, found: Localisation) -> None:
    from napari_openmedlab import __version__
    from napari_openmedlab.cohort.results import write_text
    from napari_openmedlab.cohort.tables import box_values
    from napari_openmedlab.session.objects import plain_values

    rows: list[dict[str, Any]] = []
    for each in found.found:
        there = each.found and not each.box.is_empty
        values = box_values(each.box, each.points, each.parts, volume.geometry)
        rows.append(
            {
                "name": each.name,
                "found": there,
                "confidence": round(each.confidence, 4),
                "templates": each.templates,
                "checks": plain_values(each.checks),
                "notes": list(each.notes),
                **(values if there else {"box": None}),
            }
        )
    content = {
        "format": FORMAT,
        "version": 1,
        "software": __version__,
        "coordinate_system": "LPS",
        "objects": [{"name": r["name"], "box": r["prompt_mm"]} for r in rows if r["found"]],
        "structures": rows,
        "provenance": plain_values(found.provenance),
        "notes": list(found.notes),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(out.resolve(), text + "\n")


def _show(volume: Volume, found: Localisation, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    unit = volume.geometry.unit
    table = Table("structure")
    for head in ("confidence", f"size {unit} (z, y, x)", "templates"):
        table.add_column(head, justify="right")
    table.add_column("notes")
    for each in found.found:
        there = each.found and not each.box.is_empty
        lengths = zip(each.box.shape, volume.geometry.spacing, strict=True)
        size = " x ".join(f"{n * step:.0f}" for n, step in lengths) if there else ""
        sure = f"{each.confidence:.2f}" if there else "not found"
        table.add_row(each.name, sure, size, str(each.templates), " ".join(each.notes))
    console = Console()
    for note in (*volume.notes, *found.notes):
        console.print(f"Note: {note}", markup=False, soft_wrap=True)
    console.print(table)
    console.print(f"Written: {out}", markup=False, highlight=False, soft_wrap=True)
