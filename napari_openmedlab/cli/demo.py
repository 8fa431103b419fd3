"""``openmedlab demo``: a sample scan, from clicks to mask, session file and picture."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_openmedlab.errors import WriteError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_openmedlab.session.session import Session

__all__ = ["demo", "has_display"]

SAMPLE = "ct_torso"


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("out"),
    view: Annotated[
        bool,
        typer.Option("--view/--no-view", help="Open the result in napari if there is a display."),
    ] = True,
    cohort: Annotated[
        bool,
        typer.Option(
            "--cohort",
            help="Only write a sample cohort: a template scan with masks, a folder of scans.",
        ),
    ] = False,
) -> None:
    """Segment five organs of the CT-like sample from stored clicks with the built-in engine.

    Writes the mask, a session file and a picture, and prints volumes and Dice.
    """
    from rich.console import Console

    from napari_openmedlab import sample_data
    from napari_openmedlab.cli.segment import run_objects, summary
    from napari_openmedlab.session.export import export
    from napari_openmedlab.session.prompt_files import read_prompts
    from napari_openmedlab.session.session import Session
    from napari_openmedlab.session.store import save

    console = Console()
    _make_folder(out)
    if cohort:
        _make_cohort(out)
        return
    volume, reference, names = sample_data.load(SAMPLE)
    session = Session(volume)
    run_objects(session, read_prompts(sample_data.prompts_path(SAMPLE), volume))
    scores = _dice(session, reference, names)
    mask = out / f"{SAMPLE}_mask.nii.gz"
    written = [
        *export(session, mask),
        save(session, out / f"{SAMPLE}.omlsession"),
        _picture(session, scores, out / f"{SAMPLE}.png"),
    ]
    console.print(summary(session, {"Dice": {k: f"{v:.3f}" for k, v in scores.items()}}))
    console.print(f"Mean Dice against the reference: {sum(scores.values()) / len(scores):.3f}")
    for path in written:
        console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)
    if not view:
        return
    if has_display():
        _open_viewer(sample_data.image_path(SAMPLE), mask)
    else:
        console.print("No display here: napari is not opened. Look at the picture instead.")


def has_display() -> bool:
    """Return whether a window can be opened; Qt would end the process where it can't."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _make_cohort(out: Path) -> None:
    from rich.console import Console

    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.sample_data.cohort import make_cohort

    with working("making scans"):
        made = make_cohort(out)
    for title, path in (
        ("Template scan", made.template),
        ("Its masks", made.labels),
        ("Scans, one of them broken", made.scans),
        ("Their true masks", made.truth),
    ):
        Console().print(f"{title}: {path}", markup=False, highlight=False, soft_wrap=True)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"the folder {out} can't be made: {error.strerror}; choose another with -o", out
        ) from error


def _dice(session: Session, reference: NDArray[Any], names: Mapping[int, str]) -> dict[int, float]:
    """Return each object's Dice against the reference object of the same name."""
    from napari_openmedlab.evaluation.metrics import dice

    values = {name: value for value, name in names.items()}
    return {
        o.id: dice(session.labels == o.id, reference == values[o.name])
        for o in session.objects
        if o.name in values
    }


def _picture(session: Session, scores: Mapping[int, float], path: Path) -> Path:
    from napari_openmedlab.cli.picture import LegendRow, draw_picture, save_picture

    legend = [
        LegendRow(f"{o.name}: {session.volume_ml(o.id):.0f} ml, Dice {scores[o.id]:.2f}", o.colour)
        for o in session.objects
    ]
    colours = {o.id: o.colour for o in session.objects}
    save_picture(draw_picture(session.volume, session.labels, colours, legend), path)
    return path


def _open_viewer(image: Path, mask: Path) -> None:
    """Open scan and mask in a process of its own: a window that fails takes nothing along."""
    command = [sys.executable, "-m", "napari", str(image), str(mask)]
    command += ["--plugin", "napari-openmedlab", "-w", "napari-openmedlab", "Segment"]
    typer.echo("Opening napari; close its window to end the demo (--no-view leaves it out).")
    code = subprocess.run(command).returncode
    if code:
        typer.echo(
            f"napari could not be opened (exit code {code}). The results are written; to see them "
            f"in napari, check 'pip install \"napari[pyqt6]\"' and run: napari {image} {mask}",
            err=True,
        )
