"""``openmedlab finetune``: train a network on your own labelled scans."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_openmedlab.errors import SettingsError
from napari_openmedlab.words import time_text

if TYPE_CHECKING:
    from napari_openmedlab.models.contract import Monitor
    from napari_openmedlab.training.cases import CasesFound
    from napari_openmedlab.training.events import Event
    from napari_openmedlab.training.plan import Plan
    from napari_openmedlab.training.run import Finished

__all__ = ["Telling", "finetune", "graceful", "say", "tell_progress"]

ENGINE = "mis-fm"
_LINES = 20  # about so many lines tell of a run's iterations


def finetune(  # noqa: PLR0913  (a command has one parameter per option)
    images: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of scans, one scan, or a JSON or CSV file that lists scans and labels."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Argument(help="Folder of label files of the same names, or one label file."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="New folder for the run and the finished model."),
    ] = None,
    name: Annotated[str, typer.Option(help="What the model shall be called.")] = "my model",
    network: Annotated[
        str, typer.Option(help="fmunet or pct-net; by default that of --init, else fmunet.")
    ] = "",
    init: Annotated[
        str, typer.Option(help="Pre-trained weights: a model's name or a file. None: from scratch.")
    ] = "",
    size: Annotated[
        str, typer.Option(help="Channels from scratch: auto, published, small, or five numbers.")
    ] = "auto",
    classes: Annotated[
        str, typer.Option(help="What to learn, as '1=liver,5=spleen'; by default all labels.")
    ] = "",
    others_as_background: Annotated[
        bool, typer.Option(help="Take labels outside of --classes as background.")
    ] = False,
    hold_out: Annotated[
        str,
        typer.Option(help="How many cases, or which (names with commas), only measure the model."),
    ] = "",
    iterations: Annotated[int, typer.Option(min=0, help="0: by the number of cases.")] = 0,
    batch: Annotated[int, typer.Option(min=0, help="Patches per iteration; 0: 2.")] = 0,
    accumulation: Annotated[
        int, typer.Option(min=0, help="Compute a batch in so many parts; 0: by the memory.")
    ] = 0,
    patch: Annotated[str, typer.Option(help="Voxels seen at once, as '64,128,128'.")] = "",
    spacing: Annotated[
        str, typer.Option(help="Voxels in mm (z,y,x); auto: their median; keep: as they are.")
    ] = "auto",
    mode: Annotated[
        int | None, typer.Option(min=0, max=2, help="Levels that work slice by slice.")
    ] = None,
    intensity: Annotated[str, typer.Option(help="auto, ct or z-score.")] = "auto",
    window: Annotated[str, typer.Option(help="Hounsfield units of a CT.")] = "-1000,1000",
    learning_rate: Annotated[
        float, typer.Option(min=0.0, help="At the start; 0: 0.001 as published.")
    ] = 0.0,
    foreground: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of patches placed on a label.")
    ] = 0.5,
    flips: Annotated[str, typer.Option(help="Axes to mirror: letters of zyx, none or auto.")] = (
        "auto"
    ),
    contrast: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Change of contrast and brightness by chance.")
    ] = 0.1,
    validate_every: Annotated[
        int, typer.Option(min=0, help="Iterations between two measurements; 0: 24 times.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or half.")] = "auto",
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder; scans aren't needed.")
    ] = None,
    finish: Annotated[
        Path | None, typer.Option(help="Make the model of what the run in this folder learnt.")
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Say what would be done, and stop.")
    ] = False,
    keep_out: Annotated[
        bool, typer.Option("--no-import", help="Don't put the model into the model store.")
    ] = False,
) -> None:
    """Train a network on your own labelled scans; the model then runs like any other engine.

    Ctrl-C stops after the iteration at hand; --resume FOLDER goes on from there.
    """
    store = not keep_out
    if finish is not None:
        from napari_openmedlab.training.run import finish as make_model

        _end(make_model(finish), Telling(), store=store)
        return
    if resume is not None:
        changes = {
            "iterations": iterations,
            "learning_rate": learning_rate,
            "accumulation": accumulation,
            "device": "" if device == "auto" else device,
            "precision": "" if precision == "auto" else precision,
        }
        _go_on(resume, {key: value for key, value in changes.items() if value}, store=store)
        return
    chosen = _settings(
        name=name,
        network=network,
        init=init,
        size=size if size in ("auto", "published", "small") else _numbers(size, 5, int),
        resolution_mode=mode,
        patch=_numbers(patch, 3, int) if patch else None,
        spacing=spacing if spacing in ("auto", "keep") else _numbers(spacing, 3, float),
        intensity=intensity,
        window=_numbers(window, 2, float),
        iterations=iterations,
        batch=batch,
        accumulation=accumulation,
        learning_rate=learning_rate,
        foreground=foreground,
        flips=flips,
        contrast=contrast,
        held_out=_held_out(hold_out),
        validate_every=validate_every,
        seed=seed,
        device=device,
        precision=precision,
    )
    found = _found(images, labels, _classes(classes), others_as_background)
    _begin(found, chosen, None if plan_only else _folder(out), store=store)


def _begin(found: CasesFound, settings: Any, out: Path | None, *, store: bool) -> None:
    from napari_openmedlab.training.plan import make_plan
    from napari_openmedlab.training.run import train

    _show_cases(found)
    plan, telling = make_plan(found, settings), Telling()
    _show_plan(plan)
    if out is None:
        for note in plan.notes:
            telling.note(note)
        return
    with graceful("training") as monitor:
        done = train(found, settings, out, monitor=monitor, on_event=telling)
    _end(done, telling, store=store)


def _go_on(folder: Path, changes: dict[str, Any], *, store: bool) -> None:
    from napari_openmedlab.training.run import look, resume

    state = look(folder)
    if state is not None and not state.finished:
        say(f"Going on from iteration {state.iteration} of {state.plan.loop.iterations}.")
    telling = Telling()
    with graceful("training") as monitor:
        done = resume(folder, changes, monitor=monitor, on_event=telling)
    _end(done, telling, store=store)


def _end(done: Finished, telling: Telling, *, store: bool) -> None:
    for note in done.notes:
        telling.note(note)
    if done.dice:
        mean = sum(done.dice.values()) / len(done.dice)
        say(f"Held-out Dice: {_words(done.dice)}; mean {mean:.3f}.")
    say(f"Written: {done.path}")
    if store:
        say(f"In the model store as '{_imported(done)}'.")


def _imported(done: Finished) -> str:
    """Put the model into the store under its name, or the next free one; return the name."""
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.models.checkpoints.adopting import adopt

    with working(f"importing {done.path.name}") as monitor:
        return str(adopt(done.path, done.card.title, monitor).name)


# -- what is asked for -------------------------------------------------------------------------


def _settings(**options: Any) -> Any:
    from napari_openmedlab.training.settings import TrainSettings

    if options["init"]:
        options["init"], of_network = _start(options["init"])
        options["network"] = options["network"] or of_network
    options["network"] = options["network"] or "fmunet"
    try:
        return TrainSettings(**options)
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from error


def _start(wanted: str) -> tuple[str, str]:
    """Return name and network of pre-trained weights; a file is imported first."""
    from napari_openmedlab.cli.weights import choose_model
    from napari_openmedlab.models.catalogue import get_spec
    from napari_openmedlab.models.checkpoints.store import ModelStore

    name = choose_model(get_spec(ENGINE), wanted)
    return name, ModelStore().get(name).network


def _found(
    images: Path | None, labels: Path | None, classes: dict[int, str], others: bool
) -> CasesFound:
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.io.suffixes import stem_of
    from napari_openmedlab.training.cases import Case, check_cases
    from napari_openmedlab.training.pairs import pair_folders, pairs_in_file

    if images is None:
        raise typer.BadParameter("give a folder of scans and one of labels, or a list of both")
    left_out: list[tuple[str, str]] = []
    if images.is_dir():
        cases, left_out = pair_folders(images, labels or images)
    elif labels is not None:
        cases = [Case(stem_of(images), images, labels)]
    else:
        cases, listed = pairs_in_file(images)
        classes = classes or listed
    with working("looking at the scans") as monitor:
        return check_cases(
            cases,
            classes or None,
            others_as_background=others,
            left_out=left_out,
            monitor=monitor,
        )


def _folder(out: Path | None) -> Path:
    if out is None:
        raise typer.BadParameter("give a new folder for the run: --out FOLDER")
    if not out.parent.is_dir():
        raise typer.BadParameter(f"the folder {out.parent} does not exist")
    return out


def _classes(text: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        value, equals, name = part.partition("=")
        if not equals or not value.strip().isdigit() or not name.strip():
            raise typer.BadParameter(f"classes read '1=liver,5=spleen', got '{part}'")
        found[int(value)] = name.strip()
    return found


def _held_out(text: str) -> int | tuple[str, ...] | None:
    if not text.strip():
        return None
    if text.strip().isdigit():
        return int(text)
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(text: str, count: int, kind: type) -> tuple[Any, ...]:
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count:
        raise typer.BadParameter(f"'{text}' should be {count} numbers with commas")
    return values


# -- what is told ------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print a line, with no markup in it."""
    from rich.console import Console

    Console().print(text, markup=False, highlight=False, soft_wrap=True)


class Telling:
    """Prints what a run tells: some twenty lines of losses, each measurement, each note once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Take an event."""
        from napari_openmedlab.training.events import Note, Step, Validated

        if isinstance(event, Step):
            every = max(1, event.total // _LINES)
            if event.iteration % every == 0 or event.iteration == 1:
                say(
                    f"iteration {event.iteration} of {event.total}: loss {event.loss:.4f}, "
                    f"{event.seconds:.2f} s each, {time_text(event.left)} left"
                )
        elif isinstance(event, Validated):
            best = ", best so far" if event.best else ""
            say(
                f"iteration {event.iteration}: held-out Dice {_words(event.dice)}; mean "
                f"{event.mean:.4f}{best}"
            )
        elif isinstance(event, Note):
            self.note(event.text)

    def note(self, text: str) -> None:
        """Print a sentence, if it is new."""
        if text not in self._told:
            self._told.add(text)
            say(f"Note: {text}")


def tell_progress() -> Telling:
    """Return a listener for a run's events."""
    return Telling()


@contextmanager
def graceful(title: str) -> Iterator[Monitor]:
    """Show a bar; at the first Ctrl-C stop after the step at hand, at the second at once.

    Raises
    ------
    Cancelled
        After a Ctrl-C.
    """
    from napari_openmedlab.cli.progress import working

    before: Any = None
    here = threading.current_thread() is threading.main_thread()
    with working(title) as monitor:

        def stop(*_: Any) -> None:
            if monitor.cancelled:
                raise KeyboardInterrupt
            monitor.cancel()

        if here:
            before = signal.signal(signal.SIGINT, stop)
        try:
            yield monitor
        finally:
            if here:
                signal.signal(signal.SIGINT, before)


def _show_cases(found: CasesFound) -> None:
    names = ", ".join(f"{value} {name}" for value, name in found.classes.items())
    count = f"{len(found.cases)} case{'s' if len(found.cases) > 1 else ''}"
    say(f"{count} to learn from; classes: {names}")
    for name, reason in found.left_out:
        say(f"Left out: {name}: {reason}")


def _show_plan(plan: Plan) -> None:
    from napari_openmedlab.models.device import gib

    edges = " x ".join(map(str, plan.preprocessing.patch))
    start = f"from '{plan.init}'" if plan.init else "from scratch"
    say(
        f"{plan.network} {start}, patches of {edges}, batch {plan.loop.batch}, "
        f"{plan.loop.iterations} iterations; about {gib(plan.memory)} of memory"
    )
    say(f"Held out: {', '.join(plan.held_out) or 'nothing'}")


def _words(dice: Any) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in dice.items())
