"""Entry point of the ``openmedlab`` command.

Nothing heavy is imported here: NumPy, readers and engines load when a command runs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from napari_openmedlab import __version__
from napari_openmedlab.cli import (
    axon_training,
    axons,
    cohort,
    demo,
    files,
    finetune,
    label,
    localize,
    models,
    organs,
    pretrain,
    segment,
    sessions,
    templates,
    train_run,
)
from napari_openmedlab.errors import (
    Cancelled,
    CheckpointError,
    DownloadError,
    GeometryError,
    OpenMedLabError,
    PromptError,
    ReadError,
    SettingsError,
)

__all__ = ["app", "run"]

BAD_INPUT, FAILED, STOPPED = 2, 1, 130

app = typer.Typer(
    name="openmedlab",
    help="Segment 3D scans from prompts, without a viewer. Files, prompts and results are those "
    "of the napari plugin.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 stopped. Research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("segment")(segment.segment)
app.command("organs")(organs.organs)
app.command("finetune")(finetune.finetune)
app.command("pretrain")(pretrain.pretrain)
app.command("label")(label.label)
app.command("train-run", hidden=True)(train_run.train_run)
app.command("localize")(localize.localize)
app.command("cohort")(cohort.cohort)
app.command("info")(files.info)
app.command("convert")(files.convert)
app.command("evaluate")(files.evaluate)
app.command("replay")(sessions.replay)
app.command("engines")(segment.engines)
app.command("demo")(demo.demo)
app.add_typer(models.app, name="models")
app.add_typer(templates.app, name="templates")
axons.app.command("annotate")(axon_training.annotate)
axons.app.command("train")(axon_training.train)
app.add_typer(axons.app, name="axons")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"openmedlab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an error and what happens inside."),
    ] = False,
) -> None:
    logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR, stream=sys.stderr)
    for noisy in ("PIL", "matplotlib", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 failed, 2 bad input, 130 stopped.

    Parameters
    ----------
    arguments : sequence of str, optional
        Instead of the process's own. ``--debug`` may stand anywhere.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    rest = [text for text in given if text != "--debug"]
    try:
        app(["--debug", *rest] if debug else rest, prog_name="openmedlab")
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except KeyboardInterrupt:
        return _stop(Cancelled("stopped"), STOPPED)
    except OpenMedLabError as error:
        if debug:
            raise
        return _stop(error, _code_of(error))
    return 0


def _code_of(error: OpenMedLabError) -> int:
    if isinstance(error, Cancelled):
        return STOPPED
    if isinstance(error, DownloadError):
        return FAILED  # the network's doing, not the user's
    given = (PromptError, ReadError, GeometryError, CheckpointError, SettingsError)
    return BAD_INPUT if isinstance(error, given) else FAILED


def _stop(error: OpenMedLabError, code: int) -> int:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text(f"openmedlab: {error}", style="bold red"))
    return code


if __name__ == "__main__":
    sys.exit(run())
