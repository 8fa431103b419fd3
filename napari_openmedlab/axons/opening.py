"""Opening a volume of which not everything is said: what has to be asked first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from napari_openmedlab.axons.source import Source, open_source
from napari_openmedlab.errors import ReadError
from napari_openmedlab.io import api
from napari_openmedlab.io.choices import ImageChoice
from napari_openmedlab.io.tiff_slices import Gaps, is_folder_of_slices

__all__ = ["FillGaps", "WhichImage", "open_or_ask"]


@dataclass(frozen=True)
class WhichImage:
    """A file or folder holds several images: channels, time points, stacks of slices.

    Attributes
    ----------
    path : Path
    found : tuple of ImageChoice
        The position in it is the ``index`` that opens one.
    """

    path: Path
    found: tuple[ImageChoice, ...]


@dataclass(frozen=True)
class FillGaps:
    """Slices of a folder are missing or damaged, and it opens if they are filled.

    Attributes
    ----------
    path : Path
    index : int or None
    text : str
        Which slices.
    """

    path: Path
    index: int | None
    text: str


def open_or_ask(
    path: Path, *, index: int | None = None, gaps: Gaps = "stop"
) -> Source | WhichImage | FillGaps:
    """Open a volume without reading it, or return what has to be answered first.

    Parameters
    ----------
    path, index, gaps
        As :func:`.open_source` takes them: the answers, once they are known.

    Raises
    ------
    ReadError
        If no answer helps.
    """
    try:
        return open_source(path, index=index, gaps=gaps)
    except ReadError as error:
        found = _images(path) if index is None else ()
        if len(found) > 1:
            return WhichImage(path, found)
        if gaps == "stop" and is_folder_of_slices(path) and _opened(path, index) is not None:
            return FillGaps(path, index, str(error))
        raise


def _images(path: Path) -> tuple[ImageChoice, ...]:
    try:
        return api.list_images(path)
    except ReadError:  # of a damaged slice, say, and other stacks may be whole
        found: list[ImageChoice] = []
        while (source := _opened(path, len(found))) is not None:
            found.append(ImageChoice(str(len(found)), source.name, source.shape))
        return tuple(found)


def _opened(path: Path, index: int | None) -> Source | None:
    try:
        return open_source(path, index=index, gaps="fill")
    except ReadError:
        return None
