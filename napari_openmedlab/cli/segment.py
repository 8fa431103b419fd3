"""``openmedlab segment`` and ``openmedlab engines``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_openmedlab.cli.weights import choose_model, readiness, with_shortcuts
from napari_openmedlab.errors import EngineError, SessionError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from napari_openmedlab.geometry.volume import Volume
    from napari_openmedlab.models.catalogue import EngineSpec
    from napari_openmedlab.models.checkpoints.store import Record
    from napari_openmedlab.session.objects import EngineChoice
    from napari_openmedlab.session.prompt_files import NamedPrompts
    from napari_openmedlab.session.session import Session

__all__ = [
    "choose_engine",
    "engines",
    "parse_option",
    "run_objects",
    "segment",
    "summary",
    "with_model",
]


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
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            help="Weights: a model's name (see 'openmedlab models list') or a file, which is "
            "imported once. Without: the model imported last.",
        ),
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

    flags = {"checkpoint": checkpoint, "device": device, "precision": precision}
    choice = choose_engine(engine, option or [], avoid_neighbours, flags)
    check_target(out)
    choice = with_model(choice)
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


def choose_engine(
    engine: str,
    options: Sequence[str],
    avoid_neighbours: bool,
    flags: Mapping[str, str | None] | None = None,
) -> EngineChoice:
    """Return the engine and its options as the session wants them.

    Parameters
    ----------
    engine : str
    options : sequence of str
        ``NAME=VALUE`` each.
    avoid_neighbours : bool
    flags : mapping, optional
        Options given by a flag of their own; ``None`` where it was not given.

    Raises
    ------
    typer.BadParameter
        For an engine or option there is not, or a value that does not fit.
    """
    from napari_openmedlab.models.catalogue import get_spec
    from napari_openmedlab.session.objects import EngineChoice

    try:
        spec = get_spec(engine)
        values = dict(parse_option(spec, text) for text in options)
        values = with_shortcuts(values, flags or {})
        spec.check_options(values)
    except EngineError as error:
        raise typer.BadParameter(str(error)) from error
    if spec.task != "promptable":
        raise typer.BadParameter(f"engine '{engine}' takes no prompts, it is {spec.task}")
    return EngineChoice(engine, values, avoid_neighbours=avoid_neighbours)


def with_model(choice: EngineChoice) -> EngineChoice:
    """Return the choice with the model's name where a file of weights was named.

    Raises
    ------
    EngineError
        If a package the engine needs is not installed.
    CheckpointError
        If there are no weights, or they don't fit.
    """
    from napari_openmedlab.models.catalogue import get_spec

    spec = get_spec(choice.engine)
    if lacks := spec.missing():
        raise EngineError(lacks[0], engine=spec.id, stage="load")
    wanted = choice.options.get("checkpoint", "") if spec.networks else ""
    name = choose_model(spec, str(wanted))
    if name == wanted:
        return choice
    return replace(choice, options={**choice.options, "checkpoint": name})


def parse_option(spec: EngineSpec, text: str) -> tuple[str, Any]:
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


def engines(
    engine: Annotated[
        str | None, typer.Argument(help="Id of one engine: also its options and its paper.")
    ] = None,
) -> None:
    """List the engines: what they take, and whether they and their weights are ready here."""
    from rich.console import Console
    from rich.table import Table

    from napari_openmedlab.models.catalogue import engines as catalogue
    from napari_openmedlab.models.checkpoints.store import ModelStore

    console, records = Console(), ModelStore().records()
    if engine is not None:
        _show_engine(console, _spec(engine), records)
        return
    table = Table(show_lines=True)
    for head in ("id", "ready", "takes", "what for"):
        table.add_column(head, overflow="fold", no_wrap=head == "id")
    for spec in catalogue():
        takes = ", ".join(sorted(spec.prompts)) or f"no prompts ({spec.task})"
        table.add_row(spec.id, readiness(spec, records), takes, spec.summary)
    console.print(table)
    console.print("Options of one: openmedlab engines ID", markup=False, highlight=False)


def _spec(engine: str) -> EngineSpec:
    from napari_openmedlab.models.catalogue import get_spec

    try:
        return get_spec(engine)
    except EngineError as error:
        raise typer.BadParameter(str(error)) from error


def _show_engine(console: Console, spec: EngineSpec, records: Sequence[Record]) -> None:
    lines = [
        f"{spec.id}: {spec.title}",
        spec.summary,
        f"takes:  {', '.join(sorted(spec.prompts)) or 'no prompts'} ({spec.task})",
        f"ready:  {readiness(spec, records)}",
        f"method: {spec.paper or 'this package'}",
        "options (--option NAME=VALUE):" if spec.options else "options: none",
    ]
    for option in spec.options:
        shown = f'"{option.default}"' if option.default == "" else option.default
        choices = f" One of {', '.join(option.choices)}." if option.choices else ""
        lines.append(f"  {option.name}={shown}  {option.description}{choices}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
