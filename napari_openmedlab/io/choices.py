"""One image out of several in a file or folder, as the user chooses it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ImageChoice"]


@dataclass(frozen=True)
class ImageChoice:
    """One of the images in a file or folder."""

    key: str
    title: str
    shape: tuple[int, ...]
    detail: str = ""
