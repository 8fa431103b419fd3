"""What the commands of ``openmedlab axons`` share: opening a volume, and its arguments."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_openmedlab.cli.numbers import three

if TYPE_CHECKING:
    from napari_openmedlab.axons.source import Source

__all__ = [
    "GapChoice",
    "GapOption",
    "ImageArgument",
    "IndexOption",
    "SeriesOption",
    "SizeOption",
    "open_volume",
    "say",
]

_UNKNOWN = "unknown"


class GapChoice(StrEnum):
    """What to do about missing slices."""

    stop = "stop"
    fill = "fill"


ImageArgument = Annotated[
    Path,
    typer.Argument(
        metavar="IN", help="OME-Zarr, a folder of TIFF slices, a TIFF stack, or a small NIfTI."
    ),
]
SizeOption = Annotated[
    str,
    typer.Option(
        "--voxel-size",
        help="'z,y,x' in um, where the file does not state it; 'unknown' works in voxels.",
    ),
]
GapOption = Annotated[
    GapChoice,
    typer.Option(help="Missing or damaged slices of a folder: stop, or fill with the one before."),
]
SeriesOption = Annotated[
    str | None, typer.Option(help="Which image, if there are several (see 'openmedlab info').")
]
IndexOption = Annotated[
    int | None,
    typer.Option(min=0, help="Which channel, time point or stack of a folder, counted from 0."),
]


def open_volume(
    image: Path, series: str | None, index: int | None, gaps: GapChoice, voxel_size: str
) -> Source:
    """Open a volume lazily; ask for its voxel size if nobody states it.

    Raises
    ------
    typer.BadParameter
        If the voxel size is not known and was not given, or makes no sense.
    """
    from napari_openmedlab.axons.source import open_source
    from napari_openmedlab.cli.progress import working

    with working(f"opening {image.name or image}"):
        source = open_source(image, series=series, index=index, gaps=gaps.value)
    for note in source.volume.notes:
        if "voxel size" not in note or not voxel_size:
            say(f"Note: {note}")
    if voxel_size and voxel_size != _UNKNOWN:
        return source.with_spacing(three(voxel_size, "--voxel-size (um)", float, 0.0))
    if source.spacing is None and not voxel_size:
        raise typer.BadParameter(
            f"{image.name} does not state its voxel size. Give it as --voxel-size z,y,x in um, or "
            f"--voxel-size {_UNKNOWN} to work in voxels"
        )
    return source


def say(text: str) -> None:
    """Print a line as it stands."""
    from rich.console import Console

    Console().print(text, markup=False, highlight=False, soft_wrap=True)
