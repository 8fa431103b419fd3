"""``openmedlab pretrain``: start weights from your own scans, without any label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_openmedlab.cli.finetune import Telling, graceful, say
from napari_openmedlab.cli.numbers import three
from napari_openmedlab.errors import SettingsError

if TYPE_CHECKING:
    from napari_openmedlab.training.cases import CasesFound
    from napari_openmedlab.training.plan import Plan
    from napari_openmedlab.training.run import Finished

__all__ = ["pretrain"]


def pretrain(  # noqa: PLR0913  (a command has one parameter per option)
    scans: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of scans (NIfTI, NRRD, MetaImage, TIFF, DICOM), or files."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="New folder for the run and the finished weights."),
    ] = None,
    name: Annotated[str, typer.Option(help="What the weights shall be called.")] = "my start",
    network: Annotated[str, typer.Option(help="fmunet or pct-net.")] = "fmunet",
    init: Annotated[
        str, typer.Option(help="Go on from a model of the store, the published weights say.")
    ] = "",
    size: Annotated[str, typer.Option(help="auto, published or small.")] = "auto",
    iterations: Annotated[int, typer.Option(min=0, help="0: 80000 as published.")] = 0,
    hours: Annotated[
        float, typer.Option(min=0.0, help="End by then with what was learnt; 0: no limit.")
    ] = 0.0,
    batch: Annotated[int, typer.Option(min=0, help="Patches per iteration; 0: 2.")] = 0,
    patch: Annotated[str, typer.Option(help="Voxels seen at once, as '64,128,128'.")] = "",
    spacing: Annotated[
        str, typer.Option(help="Voxels in mm (z,y,x); auto: their median; keep: as published.")
    ] = "keep",
    intensity: Annotated[str, typer.Option(help="auto, ct or z-score.")] = "auto",
    mode: Annotated[
        int | None, typer.Option(min=0, max=2, help="Levels that work slice by slice.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="0: 0.001 as published.")] = 0.0,
    validate_every: Annotated[int, typer.Option(min=0, help="Iterations; 0: 1000.")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or half.")] = "auto",
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder; scans aren't needed.")
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Say what would be done, and stop.")
    ] = False,
    keep_out: Annotated[
        bool, typer.Option("--no-import", help="Don't put the weights into the model store.")
    ] = False,
) -> None:
    """Pre-train a network on scans without labels (Volume Fusion), overnight.

    The weights segment nothing: start 'openmedlab finetune --init NAME' from them. Ctrl-C stops
    after the iteration at hand; --resume FOLDER goes on from there.
    """
    if resume is not None:
        _run(resume, None, None, hours, store=not keep_out)
        return
    settings = _settings(
        name=name,
        network=network,
        init=init,
        size=size,
        iterations=iterations,
        batch=batch,
        patch=three(patch, "--patch", int, 0) if patch else None,
        spacing=spacing if spacing in ("auto", "keep") else three(spacing, "--spacing", float, 0.0),
        intensity=intensity,
        resolution_mode=mode,
        learning_rate=learning_rate,
        validate_every=validate_every,
        seed=seed,
        device=device,
        precision=precision,
    )
    found = _found(scans or [])
    from napari_openmedlab.training.pretrain import plan_pretraining

    _show(found, plan_pretraining(found, settings))
    if plan_only:
        return
    if out is None or not out.parent.is_dir():
        where = "give a new folder for the run: --out FOLDER"
        raise typer.BadParameter(where if out is None else f"{out.parent} does not exist")
    _run(out, found, settings, hours, store=not keep_out)


def _run(
    folder: Path, found: CasesFound | None, settings: Any, hours: float, *, store: bool
) -> None:
    from napari_openmedlab.training import pretrain as running
    from napari_openmedlab.training.events import Control

    control, telling = Control(), Telling()
    hear = running.until(hours, control, telling)
    with graceful("pre-training") as monitor:
        listening: dict[str, Any] = {"monitor": monitor, "control": control, "on_event": hear}
        if found is None:
            done = running.resume_pretraining(folder, **listening)
        else:
            done = running.pretrain(found, settings, folder, **listening)
    _end(done, telling, store=store)


def _end(done: Finished, telling: Telling, *, store: bool) -> None:
    for note in done.notes:
        telling.note(note)
    if done.dice:
        mean = sum(done.dice.values()) / len(done.dice)
        say(f"Mixing levels told apart on held-out scans: Dice {mean:.3f}.")
    say(f"Written: {done.path}")
    if store:
        from napari_openmedlab.models.checkpoints.adopting import adopt

        name = adopt(done.path, done.card.title).name
        say(f"In the model store as '{name}'; use it with 'openmedlab finetune --init {name}'.")


def _found(places: list[Path]) -> CasesFound:
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.training.unlabelled import check_scans, find_scans

    if not places:
        raise typer.BadParameter("give a folder of scans")
    with working("looking at the scans") as monitor:
        return check_scans(find_scans(places), monitor)


def _settings(**options: Any) -> Any:
    from napari_openmedlab.training.settings import TrainSettings

    try:
        return TrainSettings(**options)
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from error


def _show(found: CasesFound, plan: Plan) -> None:
    say(f"{len(found.cases)} scans to learn from, {len(plan.held_out)} of them held out")
    for name, reason in found.left_out:
        say(f"Left out: {name}: {reason}")
    edges = " x ".join(map(str, plan.preprocessing.patch))
    start = f"from '{plan.init}'" if plan.init else "from scratch"
    loop = plan.loop
    say(
        f"{plan.network} {start}, patches of {edges}, batch {loop.batch}, "
        f"{loop.iterations} iterations"
    )
    for note in plan.notes:
        say(f"Note: {note}")
