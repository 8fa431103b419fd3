"""``openmedlab segment`` and ``openmedlab engines``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_openmedlab.errors import EngineError, SessionError

if TYPE_CHECKING:
    from rich.table import Table

    from napari_openmedlab.geometry.volume import Volume
    from napari_openmedlab.models.catalogue import EngineSpec
    from napari_openmedlab.session.objects import EngineChoice
    from napari_openmedlab.session.prompt_files import NamedPrompts
    from napari_openmedlab.session.session import Session

__all__ = ["choose_engine", "engines", "run_objects", "segment", "summary"]


class Overlap(StrEnum):
    """The session's overlap rules, named here so that ``--help`` loads no session."""

    keep = "keep"
    overwrite = "overwrite"


def segment(  # noqa: PLR0913  (a command has one parameter per option)
    image: Annotated[Path, typer.Argument(help="Scan: a file or a DICOM folder.")],
    prompts: Annotated[
        Path,
        typer.Option("--prompts", "-p", help="Prompts JSON, or a .mrk.json of 3D Slicer."),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Mask to write: .nii, .nii.gz, .nrrd, .mha, .mhd, .tif."),
    ],
    engine: Annotated[
        str, typer.Option("--engine", "-e", help="Id of an engine (see 'openmedlab engines').")
    ] = "built-in",
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
    one_file_per_object: Annotated[
        bool, typer.Option(help="Write one file per object instead of one label map.")
    ] = False,
    session: Annotated[
        Path | None,
        typer.Option("--session", help="Also save the session, to go on in napari or replay."),
    ] = None,
    overlap: Annotated[
        Overlap,
        typer.Option(help="Who keeps a voxel two objects want: the earlier or the later one."),
    ] = Overlap.keep,
    avoid_neighbours: Annotated[
        bool, typer.Option(help="Let no object grow into those before it.")
    ] = False,
) -> None:
    """Segment the objects of a prompts file and write their masks on the scan's own grid."""
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.io.api import read
    from napari_openmedlab.session.export import export
    from napari_openmedlab.session.prompt_files import read_prompts
    from napari_openmedlab.session.session import Session
    from napari_openmedlab.session.store import save

    choice = choose_engine(engine, option or [], avoid_neighbours)
    check_target(out)
    with working(f"reading {image.name or image}"):
        volume = read(image, series=series, index=index)
    named = read_prompts(prompts, volume)
    work = Session(volume)
    work.choice = choice
    work.overlap = overlap.value
    run_objects(work, named)
    saved = () if session is None else (save(work, session),)
    if not any(found.voxels for found in work.objects):
        raise SessionError(f"no object was found, so {out} was not written; check the prompts")
    with working(f"writing {out.name}"):
        written = export(work, out, one_file_per_object=one_file_per_object)
    _show(volume, summary(work), (*written, *saved))


def choose_engine(engine: str, options: Sequence[str], avoid_neighbours: bool) -> EngineChoice:
    """Return the engine and its options as the session wants them.

    Raises
    ------
    typer.BadParameter
        For an engine or option there is not, or a value that does not fit.
    """
    from napari_openmedlab.models.catalogue import get_spec
    from napari_openmedlab.session.objects import EngineChoice

    try:
        spec = get_spec(engine)
        values = dict(_parse_option(spec, text) for text in options)
        spec.check_options(values)
    except EngineError as error:
        raise typer.BadParameter(str(error)) from error
    if spec.task != "promptable":
        raise typer.BadParameter(f"engine '{engine}' takes no prompts, it is {spec.task}")
    return EngineChoice(engine, values, avoid_neighbours=avoid_neighbours)


def _parse_option(spec: EngineSpec, text: str) -> tuple[str, Any]:
    """Return name and value of ``NAME=VALUE``, the value in the type of the option's default."""
    name, sign, value = text.partition("=")
    if not sign:
        raise typer.BadParameter(f"an option reads NAME=VALUE, got '{text}'")
    default = next((o.default for o in spec.options if o.name == name), None)
    if isinstance(default, bool):
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        return name, words.get(value.lower(), value)
    if isinstance(default, (int, float)):
        try:
            return name, type(default)(value)
        except ValueError:
            return name, value
    return name, value


def check_target(out: Path) -> None:
    """Refuse a target that can't be written before any time is spent on computing."""
    import os

    from napari_openmedlab.io.labels import WRITABLE
    from napari_openmedlab.io.suffixes import suffix_of

    if suffix_of(out) not in WRITABLE:
        raise typer.BadParameter(f"{out.name}: a mask's name ends in one of {', '.join(WRITABLE)}")
    folder = out.parent
    if not folder.is_dir():
        raise typer.BadParameter(f"the folder {folder} for {out.name} does not exist; create it")
    if not os.access(folder, os.W_OK):
        raise typer.BadParameter(f"the folder {folder} can't be written to; choose another one")


def run_objects(session: Session, named: Sequence[NamedPrompts]) -> None:
    """Add each object with its prompts, in order, and let the session's engine answer."""
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.session.workbench import Workbench, run_once

    bench = Workbench()
    try:
        for number, each in enumerate(named, start=1):
            session.add_object(each.name)
            session.set_prompts(each.prompts)
            request = session.request()
            title = f"segmenting {each.name} ({number} of {len(named)})"
            with working(title) as monitor:
                answer = run_once(
                    session.choice.engine, session.volume, request, monitor, bench=bench
                )
            session.apply(answer, request)
    finally:
        bench.release()


def summary(session: Session, extra: dict[str, dict[int, str]] | None = None) -> Table:
    """Return a table of the objects: value, name, volume, score, time, what the engine says.

    Parameters
    ----------
    extra : dict, optional
        Further columns: title to texts by object id.
    """
    from rich.table import Table

    from napari_openmedlab.evaluation.metrics import volume_of

    grid = session.volume.geometry
    table = Table("label", "name")
    heads = (f"volume {volume_of(0, grid)[1]}", "score", "seconds", *(extra or {}))
    for head in heads:
        table.add_column(head, justify="right")
    table.add_column("notes")
    for found in session.objects:
        score = "" if math.isnan(found.score) else f"{found.score:.2f}"
        size = f"{volume_of(found.voxels, grid)[0]:.2f}"
        cells = (texts.get(found.id, "") for texts in (extra or {}).values())
        notes = " ".join(found.notes) if found.voxels else "nothing found"
        seconds = f"{found.seconds:.2f}"
        table.add_row(str(found.id), found.name, size, score, seconds, *cells, notes)
    return table


def _show(volume: Volume, table: Table, files: Sequence[Path]) -> None:
    from rich.console import Console

    console = Console()
    for note in volume.notes:
        console.print(f"Note: {note}", markup=False, soft_wrap=True)
    console.print(table)
    for path in files:
        console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)


def engines() -> None:
    """List the engines: what they take, and whether they can run here."""
    from rich.console import Console
    from rich.table import Table

    from napari_openmedlab.models.catalogue import engines as catalogue

    table = Table("id", "task", "takes", "options", "ready", "what for", show_lines=True)
    for spec in catalogue():
        options = "\n".join(f"{o.name}={o.default} {o.description}" for o in spec.options)
        takes = ", ".join(sorted(spec.prompts)) or "no prompts"
        ready = "\n".join(spec.missing()) or "yes"
        table.add_row(spec.id, spec.task, takes, options or "none", ready, spec.summary)
    Console().print(table)
