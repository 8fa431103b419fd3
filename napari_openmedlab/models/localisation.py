"""What travels to an engine that finds structures of templates in another volume, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.prompts import Point, as_point
from napari_openmedlab.geometry.volume import Volume

__all__ = ["WALLS", "Features", "Found", "Landmarks", "Localisation", "Template"]

WALLS = ("inferior", "posterior", "right", "superior", "anterior", "left")
"""Roles of six extreme points, in the order in which they are kept everywhere."""


@dataclass(frozen=True)
class Landmarks:
    """A structure marked on a template by its six extreme points.

    Attributes
    ----------
    name : str
    points : tuple of six points
        LPS (x, y, z) in mm, in the order of :data:`WALLS`.
    """

    name: str
    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        if len(self.points) != len(WALLS):
            raise PromptError(
                f"'{self.name}' needs six extreme points, one for each of {', '.join(WALLS)}; it "
                f"has {len(self.points)}"
            )
        object.__setattr__(self, "points", tuple(as_point(point) for point in self.points))


class Features(Protocol):
    """Where an engine keeps what it computed of a template; a kept entry is never changed."""

    def get(self, key: str) -> Mapping[str, NDArray[Any]] | None:
        """Return the arrays kept under a signature, or ``None``."""

    def put(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays under a signature."""


@dataclass(frozen=True, eq=False)
class Template:
    """A scan on which structures are marked.

    Attributes
    ----------
    id : str
        Stable name inside its library.
    content : str
        Hash of the scan's voxels and grid; part of every signature.
    structures : tuple of Landmarks
    load : callable or None
        Reads the scan; ``None`` if the library holds no image, so that only kept features serve.
    features : Features or None
        Where computed features are kept.
    """

    id: str
    content: str
    structures: tuple[Landmarks, ...]
    load: Callable[[], Volume] | None = None
    features: Features | None = None

    def structure(self, name: str) -> Landmarks | None:
        """Return the structure of this name, if it is marked here."""
        return next((each for each in self.structures if each.name == name), None)


@dataclass(frozen=True)
class Found:
    """One structure as it was found, or not found, in a volume.

    Attributes
    ----------
    name : str
    box : Box
        Inside the volume, in its voxels; empty if not found.
    points : tuple of points
        The six extreme points, LPS mm, order of :data:`WALLS`; may lie outside the volume;
        empty for an engine that finds boxes only.
    confidence : float
        In [0, 1]; 0 if not found.
    found : bool
        False if the structure seems to lie outside the field of view, or nothing was like it.
    templates : int
        How many templates it was looked for with.
    checks : mapping of str to float
        What the confidence was made of, in mm where a name ends so.
    notes : tuple of str
        Sentences for the user.
    parts : tuple of Box
        Sub-boxes from inferior to superior, each around the part of the structure in its slices
        (MedLSAM's sub-patches); they may share slices. Empty for a whole box only.
    """

    name: str
    box: Box
    points: tuple[Point, ...] = ()
    confidence: float = 0.0
    found: bool = True
    templates: int = 0
    checks: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    parts: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Localisation:
    """A localizer's answer for one volume.

    Attributes
    ----------
    found : tuple of Found
        One for every structure asked for, in the order asked.
    seconds : float
    provenance : mapping
        Plain JSON values: engine, version, checkpoint hash, device, options, template ids.
    notes : tuple of str
        Sentences for the user, about the scan as a whole.
    """

    found: tuple[Found, ...]
    seconds: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
