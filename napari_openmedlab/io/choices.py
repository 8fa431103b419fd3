"""One image out of several in a file or folder, as the user chooses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_openmedlab.errors import ReadError

__all__ = ["ImageChoice", "position_of_choice"]

_SHOWN = 20  # choices named in an error message


@dataclass(frozen=True)
class ImageChoice:
    """One of the images in a file or folder.

    Attributes
    ----------
    key : str
        Chooses it, as the ``series`` argument of the readers.
    title : str
        For the user; no patient data.
    shape : tuple of int
        Voxels along (z, y, x).
    detail : str
        More for the user: data type, modality, axes.
    """

    key: str
    title: str
    shape: tuple[int, ...]
    detail: str = ""


def position_of_choice(
    choices: Sequence[ImageChoice], series: str | None, index: int | None, path: Path
) -> int:
    """Return which of several images in a file is meant.

    Parameters
    ----------
    choices : sequence of ImageChoice, not empty
    series : str, optional
        A key, or the part of it before a ``/`` that several share.
    index : int, optional
        Counts from 0 among the images that ``series`` leaves.
    path : Path
        Named in errors.

    Raises
    ------
    ReadError
        If there is no such image, or several and nothing chooses between them; it lists them.
    """
    left = list(range(len(choices)))
    if series is not None:
        left = [n for n in left if choices[n].key == series] or [
            n for n in left if choices[n].key.startswith(f"{series}/")
        ]
        if not left:
            raise ReadError(f"{path} has no image '{series}'; it has{_listed(choices)}", path)
    found = [choices[n] for n in left]
    if index is not None:
        if not 0 <= index < len(left):
            raise ReadError(
                f"image {index} was asked for, but {path} has images 0 to {len(left) - 1}:"
                f"{_listed(found)}",
                path,
            )
        return left[index]
    if len(left) > 1:
        raise ReadError(
            f"{path} holds {len(left)} images; choose one by its index (from 0):{_listed(found)}",
            path,
        )
    return left[0]


def _listed(choices: Sequence[ImageChoice]) -> str:
    lines = [
        f"\n  {n}: {c.title}, {' x '.join(map(str, c.shape))} (z, y, x) {c.detail}".rstrip()
        for n, c in enumerate(choices[:_SHOWN])
    ]
    rest = len(choices) - _SHOWN
    return "".join(lines) + (f"\n  and {rest} more" if rest > 0 else "")
