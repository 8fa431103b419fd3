"""``openmedlab templates``: a library of marked scans, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_openmedlab.errors import PromptError

if TYPE_CHECKING:
    from napari_openmedlab.cohort.library import Library
    from napari_openmedlab.cohort.marks import Mark
    from napari_openmedlab.geometry.volume import Volume

__all__ = ["app"]

app = typer.Typer(
    help="Template libraries: scans on which structures are marked, to find them in other scans.",
    no_args_is_help=True,
)

_Folder = Annotated[Path, typer.Argument(help="Folder of the template library.")]
_KEEPS = ("copy", "path", "none")


@app.command("add")
def add(  # noqa: PLR0913  (a command has one parameter per option)
    library: _Folder,
    scan: Annotated[Path, typer.Argument(help="Scan to mark: a file or DICOM folder.")],
    labels: Annotated[
        Path | None, typer.Option(help="Label map on the scan's grid; each label is a structure.")
    ] = None,
    structure: Annotated[
        list[str] | None,
        typer.Option(
            "--structure",
            "-s",
            help="VALUE=NAME of a label, or only the NAME if a sidecar names it. May be repeated.",
        ),
    ] = None,
    points: Annotated[
        list[str] | None,
        typer.Option(
            "--points",
            "-p",
            help="NAME=x,y,z;x,y,z;... six extreme points in LPS mm, any order. May be repeated.",
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Name of the template; never the file's name.")] = "",
    keep: Annotated[
        str, typer.Option(help="copy the voxels, refer to the scan by its path, or none.")
    ] = "copy",
) -> None:
    """Mark structures on a scan and add it; makes the library if there is none.

    Adding the same scan again adds to its template. No file name, header or patient's name is
    stored, unless --keep path asks for the path.
    """
    from rich.console import Console

    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.cohort.library import Library
    from napari_openmedlab.io.api import read

    if keep not in _KEEPS:
        raise PromptError(f"--keep is one of {', '.join(_KEEPS)}, got '{keep}'")
    if labels is None and not points:
        raise PromptError("say what to mark: --labels FILE, or --points NAME=x,y,z;... six times")
    with working("reading"):
        volume = read(scan)
        marks = [_parse_points(text, volume) for text in points or ()]
        if labels is not None:
            marks += _from_labels(labels, structure or (), volume)
    with working("adding"):
        opened = Library.open_or_create(library)
        added = opened.add(volume, marks, title=title, keep=keep)  # type: ignore[arg-type]
    console = Console(highlight=False)
    names = ", ".join(each.name for each in added.entry.structures)
    console.print(f"{added.entry.title} ({added.entry.id}): {names}", markup=False)
    for note in added.notes:
        console.print(f"Note: {note}", markup=False)


@app.command("list")
def show(
    library: _Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List templates and their structures."""
    from rich.console import Console
    from rich.table import Table

    from napari_openmedlab.cohort.library import Library

    opened = Library.open(library)
    if as_json:
        import json

        typer.echo(json.dumps(_as_json(opened), indent=2))
        return
    table = Table("id", "title", "modality", "voxels", "mm", "image", "structures", "marked from")
    for entry in opened.entries:
        table.add_row(
            entry.id,
            entry.title,
            entry.modality or "?",
            " x ".join(str(n) for n in entry.geometry.shape),
            " x ".join(f"{s:.3g}" for s in entry.geometry.spacing),
            entry.keep,
            "\n".join(each.name for each in entry.structures),
            "\n".join(each.origin for each in entry.structures),
        )
    console = Console()
    table.title = f"{opened.name}: {len(opened.entries)} template(s), {opened.nbytes / 1e6:.1f} MB"
    console.print(table)
    for problem in opened.problems:
        console.print(f"Problem: {problem}", markup=False, highlight=False)


@app.command("remove")
def remove(
    library: _Folder,
    template: Annotated[str, typer.Argument(help="Id or title of a template.")],
    structure: Annotated[
        str, typer.Option("--structure", "-s", help="Only this structure of it.")
    ] = "",
) -> None:
    """Remove a template, or a structure of it."""
    from napari_openmedlab.cohort.library import Library

    opened = Library.open(library)
    entry = opened.entry(template)
    if structure:
        opened.remove_structure(entry.id, structure)
        typer.echo(f"Removed '{structure}' of {entry.title}")
    else:
        opened.remove(entry.id)
        typer.echo(f"Removed {entry.title}; {len(opened.entries)} template(s) left")


@app.command("rename")
def rename(
    library: _Folder,
    old: Annotated[str, typer.Argument(help="Id or title of a template, or a structure.")],
    new: Annotated[str, typer.Argument(help="Its new name.")],
    structure: Annotated[
        bool, typer.Option("--structure", "-s", help="Rename a structure, on all templates.")
    ] = False,
) -> None:
    """Rename a template, or a structure on all templates."""
    from napari_openmedlab.cohort.library import Library

    opened = Library.open(library)
    if structure:
        typer.echo(f"Renamed on {opened.rename_structure(old, new)} template(s)")
    else:
        opened.rename(old, new)
        typer.echo(f"Renamed to {new}")


@app.command("merge")
def merge(
    library: _Folder,
    others: Annotated[list[Path], typer.Argument(help="Libraries to take templates from.")],
) -> None:
    """Take over the templates of other libraries; what is here already stays."""
    from napari_openmedlab.cohort.library import Library

    opened = Library.open_or_create(library)
    for path in others:
        done = opened.merge(Library.open(path))
        typer.echo(f"{path}: {len(done.added)} new, {len(done.extended)} with more structures")
        for sentence in done.kept:
            typer.echo(f"Note: {sentence}")


@app.command("pack")
def pack(
    library: _Folder,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write (.omltemplates).")],
    images: Annotated[bool, typer.Option(help="With the copies of the scans.")] = True,
    features: Annotated[bool, typer.Option(help="With what engines have computed.")] = True,
) -> None:
    """Write a library as one file to share. Paths to scans are left out."""
    from napari_openmedlab.cohort.library import Library
    from napari_openmedlab.cohort.library_files import pack as write

    path = write(Library.open(library), out, images=images, features=features)
    typer.echo(f"Written: {path} ({path.stat().st_size / 1e6:.1f} MB)")


@app.command("unpack")
def unpack(
    file: Annotated[Path, typer.Argument(help="Packed library (.omltemplates).")],
    folder: Annotated[Path, typer.Argument(help="New folder for it.")],
) -> None:
    """Unpack a library into a new folder."""
    from napari_openmedlab.cohort.library_files import unpack as take

    opened = take(file, folder)
    typer.echo(f"{opened.name}: {len(opened.entries)} template(s) in {folder}")


def _parse_points(text: str, volume: Volume) -> Mark:
    from napari_openmedlab.cohort.marks import mark_from_points

    name, _, rest = text.partition("=")
    try:
        given = [[float(v) for v in point.split(",")] for point in rest.split(";") if point.strip()]
    except ValueError:
        given = []
    if not given or any(len(point) != 3 for point in given):
        raise PromptError(
            f"'{text}' is not NAME=x,y,z;x,y,z;... with six points in LPS mm (quote it: the "
            "shell takes ; for itself)"
        )
    return mark_from_points(name, given, volume.geometry)


def _from_labels(path: Path, wanted: list[str] | tuple[()], volume: Volume) -> list[Mark]:
    from napari_openmedlab.cohort.marks import marks_from_labels
    from napari_openmedlab.io.api import read_labels

    found, objects = read_labels(path, like=volume)
    known = {value: info.name for value, info in objects.items()}
    names = _chosen(wanted, known, path) if wanted else known
    if not names:
        raise PromptError(
            f"{path} has no sidecar that names its labels; name them: --structure 1=liver"
        )
    return list(marks_from_labels(found.array, names, volume.geometry))


def _chosen(wanted: list[str] | tuple[()], known: dict[int, str], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for text in wanted:
        value, equals, name = text.partition("=")
        if equals and value.strip().isdigit():
            names[int(value)] = name
            continue
        fits = [v for v, n in known.items() if n.casefold() == text.strip().casefold()]
        if not fits:
            raise PromptError(
                f"{path} has no label called '{text}'; it has {', '.join(known.values()) or 'no '}"
                "names. Say VALUE=NAME"
            )
        names[fits[0]] = known[fits[0]]
    return names


def _as_json(library: Library) -> dict[str, object]:
    return {
        "name": library.name,
        "templates": [
            {
                "id": entry.id,
                "title": entry.title,
                "modality": entry.modality,
                "image": entry.keep,
                "shape": list(entry.geometry.shape),
                "spacing_mm": list(entry.geometry.spacing),
                "structures": [each.name for each in entry.structures],
            }
            for entry in library.entries
        ],
        "problems": list(library.problems),
    }
