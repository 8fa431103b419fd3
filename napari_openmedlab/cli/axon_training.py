"""``openmedlab axons annotate`` and ``train``: cubes to train on, and a network trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_openmedlab.cli.axon_volume import (
    GapChoice,
    GapOption,
    ImageArgument,
    IndexOption,
    SeriesOption,
    SizeOption,
    open_volume,
    say,
)
from napari_openmedlab.cli.finetune import graceful, tell_progress
from napari_openmedlab.cli.numbers import three
from napari_openmedlab.errors import SettingsError

if TYPE_CHECKING:
    from napari_openmedlab.axons.annotate import Cube
    from napari_openmedlab.axons.source import Source

__all__ = ["annotate", "train"]


def annotate(  # noqa: PLR0913  (a command has one parameter per option)
    image: ImageArgument,
    out: Annotated[
        Path, typer.Argument(metavar="CUBES", help="Folder of cubes; more are added to it.")
    ],
    at: Annotated[
        list[str] | None,
        typer.Option("--at", help="Centre of a cube, 'z,y,x' in voxels from 0; may be repeated."),
    ] = None,
    points: Annotated[
        Path | None, typer.Option(help="ImageJ's table of points (X, Y, Slice) as CSV.")
    ] = None,
    size: Annotated[int, typer.Option(min=2, help="Edge of a cube in voxels.")] = 150,
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, help="Grey values above the surroundings from which it is axon."),
    ] = None,
    artefact: Annotated[
        bool,
        typer.Option(help="Cubes of bright structures that are no axons: nothing is labelled."),
    ] = False,
    rough: Annotated[
        bool, typer.Option(help="Keep the thresholded label; else its centre-lines grown by one.")
    ] = False,
    smallest: Annotated[int, typer.Option(min=0, help="Pieces of fewer voxels are left out.")] = 10,
    series: SeriesOption = None,
    index: IndexOption = None,
    gaps: GapOption = GapChoice.stop,
    voxel_size: SizeOption = "",
) -> None:
    """Cut cubes out of a volume and label their axons by threshold, ready for training.

    Labels made so are a start: open them beside their images and correct what is wrong.
    """
    from napari_openmedlab.axons.annotate import export_cubes
    from napari_openmedlab.cli.progress import working

    if artefact == (threshold is not None):
        raise typer.BadParameter("give either --threshold (cubes with axons) or --artefact")
    centres = _centres(at or [], points)
    source = open_volume(image, series, index, gaps, voxel_size)
    with working("labelling cubes") as monitor:
        cubes = []
        for number, centre in enumerate(centres):
            monitor.step(number, len(centres))
            cubes.append(_cube(source, centre, size, threshold, (rough, smallest)))
        facts = {"source": source.name, "threshold": threshold, "label": "rough" * rough or "fine"}
        written = export_cubes(out, cubes, source.spacing, facts)
    for path, cube in zip(written, cubes, strict=True):
        say(f"{path.name}: {int(cube.label.sum())} voxels of axon, from {cube.box.start}")
    say(f"Cubes for training: {out}")


def train(  # noqa: PLR0913  (a command has one parameter per option)
    cubes: Annotated[
        Path, typer.Argument(metavar="CUBES", help="Folder made by 'axons annotate'.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the run; the same again goes on.")
    ],
    name: Annotated[str, typer.Option(help="What the model shall be called.")] = "my axons",
    init: Annotated[
        str, typer.Option(help="Axon-Seg weights in the model store to start from, by name.")
    ] = "",
    held_out: Annotated[
        int | None,
        typer.Option(min=0, help="Cubes with axons to measure with. Default: one in five."),
    ] = None,
    iterations: Annotated[int, typer.Option(min=1)] = 5000,
    batch: Annotated[int, typer.Option(min=1, help="Patches per iteration.")] = 2,
    accumulation: Annotated[
        int, typer.Option(min=0, help="Compute a batch in so many parts; 0: by the memory.")
    ] = 0,
    learning_rate: Annotated[
        float, typer.Option(min=0.0, help="0: 0.0003 as published, 0.0001 with --init.")
    ] = 0.0,
    patch: Annotated[
        str, typer.Option(help="Voxels 'z,y,x' of a patch, multiples of 32; auto: by the cubes.")
    ] = "auto",
    cl_dice: Annotated[
        float, typer.Option(min=0.0, help="Weight of clDice in the loss; 0 as published.")
    ] = 0.0,
    mixing: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of patches with an artefact corner.")
    ] = 0.5,
    matching: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of patches with another's histogram.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Decides which cubes are held out too.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or half.")] = "auto",
) -> None:
    """Train Axon-Seg on your own cubes; the axon-seg engine then runs it.

    The plain network from scratch, or what --init names. Ctrl-C stops after the iteration at hand.
    """
    from napari_openmedlab.training.axon_plan import AxonTraining
    from napari_openmedlab.training.axon_training import train_axons

    settings = AxonTraining(
        name=name, init=init, iterations=iterations, batch=batch, held_out=held_out,
        patch=None if patch == "auto" else three(patch, "--patch", int, 0),
        cl_dice=cl_dice, mixing=mixing, matching=matching, device=device, precision=precision,
        accumulation=accumulation, learning_rate=learning_rate, seed=seed,
    )  # fmt: skip
    with graceful("training") as monitor:
        trained = train_axons(cubes, out, settings, monitor=monitor, on_event=tell_progress())
    say(f"{trained.result.iteration} iterations in {trained.result.seconds:.0f} s.")
    say(trained.sentence)
    name = trained.record.name
    say(f"openmedlab axons IN OUT --engine axon-seg --option checkpoint={name}")


def _centres(at: list[str], points: Path | None) -> list[tuple[int, int, int]]:
    from napari_openmedlab.axons.annotate import read_centres

    centres = [] if points is None else read_centres(points)
    centres += [three(text, "--at", int) for text in at]
    if not centres:
        raise typer.BadParameter("say where: --at z,y,x or --points TABLE.csv")
    return centres


def _cube(
    source: Source,
    centre: tuple[int, int, int],
    size: int,
    threshold: float | None,
    label: tuple[bool, int],
) -> Cube:
    """Return a cube with its label; a cube without any axon above the threshold is refused."""
    import numpy as np

    from napari_openmedlab.axons.annotate import (
        Cube,
        cube_box,
        fine_label,
        high_pass,
        rough_label,
        without_small,
    )

    box = cube_box(centre, source.shape, size)
    grey = source.read(box)
    if threshold is None:
        return Cube(grey, np.zeros(grey.shape, dtype=bool), "artefact", box)
    passed = high_pass(grey)
    rough = rough_label(passed, threshold)
    keep, smallest = label
    found = without_small(rough, smallest) if keep else fine_label(rough, smallest)
    if not found.any():
        raise SettingsError(
            f"nothing around (z, y, x) = {centre} reaches the threshold {threshold:g}: the "
            f"brightest voxel is {float(passed.max()):g} above its surroundings; nothing was "
            "written"
        )
    return Cube(grey, found, "axon", box)
