"""``openmedlab label``: a model of your own labels scans, one or many."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_openmedlab.errors import (
    Cancelled,
    CheckpointError,
    EngineError,
    OpenMedLabError,
    WriteError,
)

if TYPE_CHECKING:
    from napari_openmedlab.geometry.volume import Volume
    from napari_openmedlab.models.contract import Labelling

__all__ = ["label"]

ENGINE = "mis-fm"


def label(  # noqa: PLR0913  (a command has one parameter per option)
    images: Annotated[list[Path], typer.Argument(help="Scans: files or DICOM folders.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Labels to write; for several scans an existing folder."),
    ],
    checkpoint: Annotated[
        str,
        typer.Option("--model", help="Its name in the store, or its file; else the newest."),
    ] = "",
    step: Annotated[
        float, typer.Option(help="Window step: 0 as in the model's card (0.5), 0.8 faster.")
    ] = 0.0,
    mirror: Annotated[bool, typer.Option(help="Four mirrored passes; four times slower.")] = False,
    largest_piece: Annotated[
        bool, typer.Option(help="Keep only the largest piece of each structure.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or half.")] = "auto",
    series: Annotated[
        str | None, typer.Option(help="Which image, if there are several (see 'openmedlab info').")
    ] = None,
    index: Annotated[
        int | None, typer.Option(min=0, help="Which volume of a 4D file, counted from 0.")
    ] = None,
) -> None:
    """Label scans with a model of your own (from 'openmedlab finetune' or the Train panel).

    Of several scans, one that fails is told and left out; the others are labelled all the same.
    """
    from napari_openmedlab.cli.weights import choose_model
    from napari_openmedlab.models.catalogue import get_spec, load_engine

    targets = _targets(images, out)
    spec = get_spec(ENGINE)
    try:
        options = spec.check_options({
            "checkpoint": choose_model(spec, checkpoint),
            "step": step,
            "mirror": mirror,
            "largest_piece": largest_piece,
            "device": device,
            "precision": precision,
        })  # fmt: skip
    except EngineError as error:
        raise typer.BadParameter(str(error)) from error
    engine = load_engine(ENGINE)
    failed: list[tuple[Path, OpenMedLabError]] = []
    try:
        for image, target in targets:
            try:
                _one(engine, options, image, target, (series, index))
            except (Cancelled, CheckpointError, WriteError):
                raise  # the next scan would fail the same way
            except OpenMedLabError as error:
                if len(targets) == 1:
                    raise
                failed.append((image, error))
    finally:
        engine.unload()
    _tell_failed(failed, len(targets))


def _targets(images: list[Path], out: Path) -> list[tuple[Path, Path]]:
    """Return each scan with the file for its labels."""
    from napari_openmedlab.cli.segment import check_target
    from napari_openmedlab.io.suffixes import stem_of

    if len(images) == 1 and not out.is_dir():
        check_target(out)
        return [(images[0], out)]
    if not out.is_dir():
        raise typer.BadParameter(f"{out} is no folder; several scans need an existing one")
    pairs = [(image, out / f"{stem_of(image)}.nii.gz") for image in images]
    names = [target.name for _, target in pairs]
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise typer.BadParameter(f"two scans would be written to {twice}; label them one by one")
    same = next((image for image, target in pairs if image.resolve() == target.resolve()), None)
    if same is not None:
        raise typer.BadParameter(f"{same} would be overwritten; choose another folder")
    return pairs


def _one(
    engine: Any,
    options: Mapping[str, Any],
    image: Path,
    target: Path,
    which: tuple[str | None, int | None],
) -> None:
    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.geometry.boxes import Box
    from napari_openmedlab.io.api import read

    with working(f"reading {image.name or image}"):
        volume = read(image, series=which[0], index=which[1])
    with working(f"labelling {image.name or image}") as monitor:
        found = engine.segment(volume, Box.whole(volume.geometry.shape), options, monitor)
    _tell(volume, found, _write(target, volume, found))


def _write(target: Path, volume: Volume, found: Labelling) -> tuple[Path, ...]:
    from napari_openmedlab.io.api import write
    from napari_openmedlab.io.sidecar import LabelInfo

    colours = _colours(str(found.provenance["model"]))
    objects = {value: LabelInfo(name, colours[name]) for value, name in found.names.items()}
    return write(target, found.labels, volume, objects=objects, provenance=dict(found.provenance))


def _colours(model: str) -> dict[str, tuple[float, float, float]]:
    """Return the colours of a model's classes: its card's, else those of the organs."""
    from napari_openmedlab.models.checkpoints.store import ModelStore
    from napari_openmedlab.models.organs import colour_of

    card = ModelStore().get(model).model_card
    found = {}
    for each in card.classes if card is not None else ():
        if each.color is None:
            found[each.name] = colour_of(each.name)
        else:
            red, green, blue = each.color
            found[each.name] = (red / 255, green / 255, blue / 255)
    return found


def _tell(volume: Volume, found: Labelling, files: tuple[Path, ...]) -> None:
    import numpy as np
    from rich.console import Console

    console = Console()
    counts = np.bincount(found.labels.ravel(), minlength=max(found.names) + 1)
    per_ml = volume.geometry.voxel_volume / 1000 if volume.geometry.unit == "mm" else 0.0
    for value, name in found.names.items():
        size = f"{counts[value] * per_ml:.2f} ml" if per_ml else f"{counts[value]} voxels"
        console.print(f"{value} {name}: {size}", markup=False, highlight=False, soft_wrap=True)
    for note in (*volume.notes, *found.notes):
        console.print(f"Note: {note}", markup=False, soft_wrap=True)
    console.print(f"Took {found.seconds:.0f} s.", markup=False)
    for path in files:
        console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)


def _tell_failed(failed: list[tuple[Path, OpenMedLabError]], count: int) -> None:
    from rich.console import Console

    for path, error in failed:
        Console(stderr=True, soft_wrap=True).print(f"{path}: {error}", markup=False)
    if failed:
        raise EngineError(f"{len(failed)} of {count} scans could not be labelled; see above")
