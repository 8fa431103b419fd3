"""``openmedlab organs``: names all organs of a CT at once and measures them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_openmedlab.errors import EngineError, SessionError

if TYPE_CHECKING:
    from napari_openmedlab.geometry.boxes import Box
    from napari_openmedlab.geometry.volume import Volume
    from napari_openmedlab.models.contract import Labelling
    from napari_openmedlab.models.organ_table import OrganRow

__all__ = ["organs"]

ENGINE = "stu-net"


class Export(StrEnum):
    """The engine's ways back to the scan's grid, named here so that ``--help`` loads no engine."""

    exact = "exact"
    smooth = "smooth"
    nearest = "nearest"


def _print_list(wanted: bool) -> None:
    if not wanted:
        return
    from rich.console import Console
    from rich.tree import Tree

    from napari_openmedlab.models.organs import GROUPS, Group, title_of

    def grown(tree: Tree, group: Group) -> None:
        branch = tree.add(f"[bold]{group.id}[/]  {group.title}")
        for name in group.members:
            branch.add(f"{name}  [dim]{title_of(name)}[/]")
        for part in group.parts:
            grown(branch, part)

    tree = Tree("groups and structures of the published models")
    for group in GROUPS:
        grown(tree, group)
    Console().print(tree)
    raise typer.Exit


def organs(  # noqa: PLR0913  (a command has one parameter per option)
    image: Annotated[Path, typer.Argument(help="CT: a file or a DICOM folder.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Labels to write: .nii, .nii.gz, .nrrd, .mha, .mhd."),
    ],
    classes: Annotated[
        str,
        typer.Option(
            "--organs", help="Structures, groups, patterns with commas between (see --list)."
        ),
    ] = "",
    table: Annotated[
        Path | None,
        typer.Option("--csv", help="Also write the table (volume, mean HU, slices) as CSV."),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(help="Model, by its name in 'openmedlab models list'.")
    ] = "",
    spacing: Annotated[
        float, typer.Option(help="Network's voxel in mm; 0: as trained (1.5). 3: a fast preview.")
    ] = 0.0,
    step: Annotated[float, typer.Option(help="Window step: 0.5 as published, 0.8 faster.")] = 0.5,
    export: Annotated[Export, typer.Option(help="Way back to the scan's grid.")] = Export.exact,
    mirror: Annotated[
        bool, typer.Option(help="Eight mirrored passes; eight times slower.")
    ] = False,
    region: Annotated[
        str,
        typer.Option(
            help="Only this part: first and last voxel as 'z0:z1,y0:y1,x0:x1' in display order."
        ),
    ] = "",
    names: Annotated[
        Path | None, typer.Option(help="JSON with class names of a model of your own.")
    ] = None,
    orientation: Annotated[
        str, typer.Option(help="How training scans were stored: RAS, LAS, LPS or RPS.")
    ] = "RAS",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or half.")] = "auto",
    series: Annotated[
        str | None, typer.Option(help="Which image, if there are several (see 'openmedlab info').")
    ] = None,
    index: Annotated[
        int | None, typer.Option(min=0, help="Which volume of a 4D file, counted from 0.")
    ] = None,
    one_file_per_organ: Annotated[
        bool, typer.Option(help="Write one file per structure instead of one label map.")
    ] = False,
    _list: Annotated[
        bool,
        typer.Option("--list", callback=_print_list, is_eager=True, help="List all structures."),
    ] = False,
) -> None:
    """Name the organs of a CT at once, measure them, and write labels on the scan's own grid."""
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.cli.segment import check_target
    from napari_openmedlab.io.api import read
    from napari_openmedlab.models.organ_table import write_csv

    options = _checked(
        checkpoint=checkpoint,
        device=device,
        precision=precision,
        classes=classes,
        spacing=spacing,
        step=step,
        mirror=mirror,
        export=export.value,
        orientation=orientation,
        names=_names_text(names),
    )
    check_target(out)
    if table is not None and not table.parent.is_dir():
        raise typer.BadParameter(f"the folder {table.parent} for {table.name} does not exist")
    with working(f"reading {image.name or image}"):
        volume = read(image, series=series, index=index)
    found = _labelled(volume, _region(region, volume), options)
    rows = _measured(volume, found)
    if not any(row.voxels for row in rows):
        _show_notes(volume, found)
        raise SessionError(f"no structure was found, so {out} was not written")
    written = list(_write(out, volume, found, one_file_per_organ=one_file_per_organ))
    if table is not None:
        written.append(write_csv(table, rows))
    _show(volume, found, rows, written)


def _checked(**options: Any) -> dict[str, Any]:
    """Return all options of the engine, or refuse what does not fit."""
    from napari_openmedlab.models.catalogue import get_spec

    try:
        return get_spec(ENGINE).check_options(options)
    except EngineError as error:
        raise typer.BadParameter(str(error)) from error


def _names_text(path: Path | None) -> str:
    """Return the JSON itself: what is recorded of the run then needs no file."""
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} can't be read as text") from error


def _region(text: str, volume: Volume) -> Box:
    """Return the box that ``z0:z1,y0:y1,x0:x1`` means, last voxel included."""
    from napari_openmedlab.geometry.boxes import Box

    whole = Box.whole(volume.geometry.shape)
    if not text:
        return whole
    try:
        ends = [[int(end) for end in part.split(":")] for part in text.split(",")]
        (a, b), (c, d), (e, f) = ends
        box = Box((a, c, e), (b + 1, d + 1, f + 1))
    except ValueError as error:
        raise typer.BadParameter(f"a region reads 'z0:z1,y0:y1,x0:x1', got '{text}'") from error
    if box.is_empty or not whole.contains(box):
        shape = " x ".join(map(str, volume.geometry.shape))
        raise typer.BadParameter(f"the region {text} does not lie in the scan's {shape} voxels")
    return box


def _labelled(volume: Volume, region: Box, options: dict[str, Any]) -> Labelling:
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.models.catalogue import load_engine

    engine = load_engine(ENGINE)
    try:
        with working("naming organs") as monitor:
            found: Labelling = engine.segment(volume, region, options, monitor)
            return found
    finally:
        engine.unload()


def _measured(volume: Volume, found: Labelling) -> tuple[OrganRow, ...]:
    from napari_openmedlab.models.organ_table import measure

    return measure(volume, found.labels, found.names, found.box)


def _write(
    out: Path, volume: Volume, found: Labelling, *, one_file_per_organ: bool
) -> tuple[Path, ...]:
    import numpy as np

    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.io.api import write
    from napari_openmedlab.io.sidecar import LabelInfo
    from napari_openmedlab.models.organs import colour_of

    labels = found.labels
    if found.box.shape != volume.geometry.shape:
        labels = np.zeros(volume.geometry.shape, dtype=found.labels.dtype)
        labels[found.box.slices] = found.labels
    here = set(np.unique(found.labels).tolist())
    objects = {
        value: LabelInfo(name, colour_of(name))
        for value, name in found.names.items()
        if value in here
    }
    with working(f"writing {out.name}"):
        return write(
            out,
            labels,
            volume,
            objects=objects,
            provenance=dict(found.provenance),
            one_file_per_object=one_file_per_organ,
        )


def _show(volume: Volume, found: Labelling, rows: tuple[OrganRow, ...], files: list[Path]) -> None:
    from rich.console import Console
    from rich.table import Table

    unit = "HU" if volume.modality in ("", "CT") else ""
    table = Table("label", "structure")
    for head in ("volume ml", f"mean {unit}".strip(), "slices"):
        table.add_column(head, justify="right")
    table.add_column("notes")
    for row in rows:
        if row.slices is None:
            continue
        first, last = row.slices
        notes = [f"cut off: {', '.join(row.touches)}"] if row.touches else []
        notes += [row.side_check] if row.side_check else []
        numbers = (f"{row.volume_ml:.2f}", f"{row.mean:.0f}", f"{first} to {last}")
        table.add_row(str(row.value), row.name, *numbers, "; ".join(notes))
    _show_notes(volume, found)
    console = Console()
    console.print(table)
    missing = [row.name for row in rows if not row.voxels]
    if missing:
        shown = ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
        console.print(f"Not found: {shown}", markup=False, soft_wrap=True)
    console.print(f"Took {found.seconds:.0f} s.", markup=False)
    for path in files:
        console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)


def _show_notes(volume: Volume, found: Labelling) -> None:
    from rich.console import Console

    for note in (*volume.notes, *found.notes):
        Console().print(f"Note: {note}", markup=False, soft_wrap=True)
