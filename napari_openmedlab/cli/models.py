"""``openmedlab models``: get, keep and pass on the weights of the published networks."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_openmedlab.errors import CheckpointError, DownloadError, WriteError

if TYPE_CHECKING:
    from napari_openmedlab.models.catalogue import CheckpointSpec
    from napari_openmedlab.models.checkpoints.store import ModelStore, Record

__all__ = ["app"]

app = typer.Typer(
    help="Download, import, check and pass on weights. The Models panel in napari does the same.",
    no_args_is_help=True,
)

_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _store() -> ModelStore:
    from napari_openmedlab.models.checkpoints.store import ModelStore

    return ModelStore()


def _say(text: str, *, error: bool = False) -> None:
    from rich.console import Console

    Console(stderr=error).print(text, markup=False, highlight=False, soft_wrap=True)


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


@app.command("list")
def list_models(
    here: Annotated[bool, typer.Option("--here", help="Only what is on this computer.")] = False,
    as_json: _AsJson = False,
) -> None:
    """List the published checkpoints and your own models: what for, and whether they are here."""
    from napari_openmedlab.cli import model_lists

    rows = model_lists.rows(_store())
    if here:
        rows = [row for row in rows if row.entry is not None]
    if as_json:
        model_lists.print_json([row.as_json() for row in rows])
    else:
        model_lists.print_table(rows, _store().folder)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Id of a checkpoint, or name of a model.")],
    as_json: _AsJson = False,
) -> None:
    """Say all there is to know about one: input, classes, licences, source, and what is here."""
    from napari_openmedlab.cli import model_lists

    store = _store()
    found = [row for row in model_lists.rows(store) if row.is_called(name)]
    if not found:
        raise model_lists.unknown(name, store)
    if as_json:
        model_lists.print_json([row.details(store) for row in found])
    else:
        for row in found:
            model_lists.print_facts(row, store)


@app.command()
def download(
    ids: Annotated[list[str], typer.Argument(help="Ids of checkpoints (see 'list').")],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="You have read the licence and accept it.")
    ] = False,
    mirror: Annotated[
        str | None,
        typer.Option(help="This time, get Hugging Face's files from this address instead."),
    ] = None,
    proxy: Annotated[
        str | None, typer.Option(help="This time, go through this proxy: http://host:port.")
    ] = None,
) -> None:
    """Fetch checkpoints with a direct link and import them; for others, say how to get them.

    A download that was cut off goes on where it ended. Ctrl-C keeps what came so far.
    """
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.models.catalogue import get_checkpoint
    from napari_openmedlab.models.checkpoints import download as downloads
    from napari_openmedlab.models.checkpoints.settings import read_settings

    specs = [get_checkpoint(name) for name in ids]
    settings = read_settings()
    settings = replace(
        settings,
        mirror=settings.mirror if mirror is None else mirror,
        proxy=settings.proxy if proxy is None else proxy,
    )
    store, left = _store(), 0
    for spec in specs:
        _show_licence(spec)
        if spec.how != "direct":
            _say(downloads.by_hand(spec))
            left += 1
            continue
        _require_accepted(spec, accept_licence)
        with working(f"downloading {spec.title}") as monitor:
            record = downloads.download(spec, store, settings, monitor)
        _report("Ready", record, store)
    if left:
        raise typer.Exit(1)


def _show_licence(spec: CheckpointSpec) -> None:
    lines = [
        f"{spec.title} ({spec.source})",
        f"  licence of the weights: {spec.weights_licence}",
        f"  licence of the code:    {spec.code_licence}",
    ]
    if spec.non_commercial:
        lines.append("  Take it as not for commercial use.")
    if spec.notes:
        lines.append(f"  {spec.notes}")
    _say("\n".join(lines))


def _require_accepted(spec: CheckpointSpec, accepted: bool) -> None:
    if accepted:
        return
    if not _can_ask():
        raise typer.BadParameter(
            f"nobody can be asked here: add --accept-licence if you accept the licence of "
            f"{spec.title}"
        )
    if not typer.confirm("Do you accept the licence?"):
        raise DownloadError(f"{spec.title} was not downloaded: its licence was not accepted")


@app.command("import")
def import_files(
    files: Annotated[
        list[Path],
        typer.Argument(help="Weights (.pth, .pt, .model, .safetensors), or a bundle."),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name to keep it under (one file of weights only).")
    ] = None,
    as_: Annotated[
        str | None,
        typer.Option("--as", help="Checkpoint or network it is, where the content can't tell."),
    ] = None,
    replace_old: Annotated[
        bool, typer.Option("--replace", help="Replace other weights of the same name.")
    ] = False,
) -> None:
    """Take files into the model folder. They are converted once and checked; no code in them runs.

    What a file is, is told by its content. Keep nnU-Net's plans (plans.pkl) beside the weights.
    """
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.models.checkpoints.bundle import is_bundle, unpack

    if name is not None and (len(files) > 1 or is_bundle(files[0])):
        raise typer.BadParameter("--name is for one file of weights")
    store = _store()
    for file in files:
        with working(f"importing {file.name}") as monitor:
            if is_bundle(file):
                records = unpack(file, store, monitor, replace_old=replace_old)
            else:
                with _asking_for_as():
                    records = (
                        store.import_file(file, name, as_, monitor, replace_old=replace_old),
                    )
        for record in records:
            _report("Imported", record, store)


class _asking_for_as:
    """Tell how the command line says which of several networks a file is."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        candidates = getattr(error, "candidates", ())
        if isinstance(error, CheckpointError) and candidates:
            options = " or ".join(f"--as {candidate}" for candidate in candidates)
            raise CheckpointError(f"{error}. Say which it is: {options}", error.path) from error


def _report(what: str, record: Record, store: ModelStore) -> None:
    _say(f"{what}: {record.name} ({record.network}), {store.folder / record.file}")
    for note in record.notes:
        _say(f"Note: {note}")


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of models; all if none is given.")
    ] = None,
) -> None:
    """Read weights through and compare them with their recorded hash. Exit code 1: damaged."""
    from napari_openmedlab.cli.progress import working

    store = _store()
    bad = 0
    wanted = list(dict.fromkeys(names or [entry.record.name for entry in store.entries()]))
    if not wanted:
        _say(f"no models in {store.folder}")
    for name in wanted:
        store.entry(name)  # a wrong name is a wrong input, not damage
        try:
            with working(f"checking {name}") as monitor:
                store.verify(name, monitor)
        except CheckpointError as error:
            _say(f"damaged  {name}: {error}", error=True)
            bad += 1
        else:
            _say(f"sound    {name}")
    if bad:
        raise typer.Exit(1)


@app.command()
def remove(
    names: Annotated[list[str], typer.Argument(help="Names of models (see 'list --here').")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Delete models, or what came of a download that was cut off, from this computer."""
    from napari_openmedlab.models.checkpoints.download import discard, unfinished

    store, names = _store(), list(dict.fromkeys(names))
    parts = unfinished(store)
    for name in names:
        if name not in parts:
            store.entry(name)
    if not yes:
        if not _can_ask():
            raise typer.BadParameter("nobody can be asked here: add --yes to delete")
        typer.confirm(f"Delete {', '.join(names)} from this computer?", abort=True)
    present = {entry.record.name for entry in store.entries()}
    for name in names:
        discard(name, store)
        if name in present:
            store.remove(name)
        _say(f"Deleted: {name}")


@app.command()
def path(
    name: Annotated[
        str | None, typer.Argument(help="Name of a model; without, the folder is printed.")
    ] = None,
) -> None:
    """Print where the models lie, or the file with one model's weights."""
    store = _store()
    typer.echo(str(store.folder if name is None else store.path(name)))


@app.command()
def bundle(
    out: Annotated[Path, typer.Argument(help="Archive to write (.zip).")],
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of models; all if none is given.")
    ] = None,
) -> None:
    """Pack models with hashes, licences and catalogue into one file for an offline machine.

    There: 'openmedlab models import FILE'. Passing weights on is subject to their licences.
    """
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.models.checkpoints.bundle import contents, pack

    with working(f"packing {out.name}") as monitor:
        written = pack(out, _store(), names or None, monitor)
    for record in contents(written):
        _say(f"  {record.name}: licence {record.licence or 'your own'}")
    _say(f"Written: {written}")


@app.command()
def settings(
    folder: Annotated[
        str | None, typer.Option(help="Keep models in this folder; '' for the default.")
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(help="Address in place of https://huggingface.co; '' for none.")
    ] = None,
    proxy: Annotated[
        str | None, typer.Option(help="Proxy, http://host:port; '' for the environment's.")
    ] = None,
    move: Annotated[
        bool, typer.Option("--move", help="With --folder: move the models there too.")
    ] = False,
) -> None:
    """Show or change folder, mirror and proxy, for the Models panel too."""
    from napari_openmedlab.models.checkpoints.settings import (
        FOLDER_VARIABLE,
        folder_source,
        read_settings,
        settings_file,
        write_settings,
    )

    if move and folder is None:
        raise typer.BadParameter("--move needs --folder")
    before, store = read_settings(), _store()
    full = folder and str(Path(folder).expanduser().absolute())
    given = {"folder": full, "mirror": mirror, "proxy": proxy}
    after = replace(before, **{key: value for key, value in given.items() if value is not None})
    if after != before:
        write_settings(after)
    if move:
        _move(store)
    _say(f"folder:  {_store().folder} (by {folder_source()})")
    if folder is not None and folder_source() == "environment":
        _say(f"Note: {FOLDER_VARIABLE} in the environment goes before the folder chosen here.")
    _say(f"mirror:  {after.mirror or 'none'}")
    _say(f"proxy:   {after.proxy or 'as the environment says'}")
    _say(f"kept in: {settings_file()}")


def _move(store: ModelStore) -> None:
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.models.checkpoints.moving import move_models

    target = _store().folder
    try:
        with working(f"moving to {target}") as monitor:
            moved = move_models(store, target, monitor)
    except (CheckpointError, WriteError) as error:
        raise WriteError(
            f"{error}. The new folder is set; models that were not moved are still in "
            f"{store.folder}"
        ) from error
    _say(f"Moved: {', '.join(record.name for record in moved) or 'nothing'}")
