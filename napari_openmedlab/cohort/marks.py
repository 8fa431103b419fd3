"""A structure marked on a scan: from six points placed by hand, or from a mask in one step."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.extreme_points import (
    assign_walls,
    box_of_walls,
    check_walls,
    slabs_of_mask,
    walls_of_mask,
)
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import as_point
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.models.localisation import Landmarks

__all__ = [
    "Mark",
    "Origin",
    "check_names",
    "mark_from_mask",
    "mark_from_points",
    "marks_from_labels",
    "slab_count",
    "slab_landmarks",
    "structure_name",
]

Origin = Literal["points", "mask"]

_LONGEST = 80  # characters of a name
_WORKING_MM = 3.0  # voxel of the grid on which MedLSAM counts the slices of a sub-patch
_MOST_SLABS = 6


@dataclass(frozen=True, eq=False)
class Mark:
    """One structure of a template.

    Attributes
    ----------
    landmarks : Landmarks
        Its name and six points, LPS mm, order of ``WALLS``.
    origin : {"points", "mask"}
        Placed by hand, or taken from a mask.
    mask : MaskPatch or None
        The mask on the scan's grid, if it is kept: sub-patches along z need it.
    notes : tuple of str
        What looks odd about it, in sentences for the user.
    """

    landmarks: Landmarks
    origin: Origin = "points"
    mask: MaskPatch | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the structure."""
        return self.landmarks.name

    def renamed(self, name: str) -> Mark:
        """Return the same structure under another name."""
        renamed = Landmarks(structure_name(name), self.landmarks.points)
        return replace(self, landmarks=renamed)

    def box(self, geometry: Geometry) -> Box:
        """Return the voxels between its walls on the scan's grid."""
        return box_of_walls(self.landmarks.points, geometry)


def structure_name(text: str) -> str:
    """Return a structure's name as it is kept: one line, no spaces at the ends.

    Raises
    ------
    PromptError
        If it is empty or longer than 80 characters.
    """
    name = " ".join(unicodedata.normalize("NFC", str(text)).split())
    name = "".join(c for c in name if unicodedata.category(c)[0] != "C")
    if not name:
        raise PromptError("a structure needs a name, 'left kidney' say")
    if len(name) > _LONGEST:
        raise PromptError(f"the name '{name[:30]}...' is too long: {_LONGEST} characters at most")
    return name


def check_names(names: Iterable[str]) -> None:
    """Raise :class:`PromptError` if two structures of one template share a name (case aside)."""
    seen: dict[str, str] = {}
    for name in names:
        if (key := name.casefold()) in seen:
            other = seen[key]
            both = f"'{name}'" if name == other else f"'{other}' and '{name}'"
            raise PromptError(
                f"two structures of one template are called {both}; rename one of them"
            )
        seen[key] = name


def mark_from_points(name: str, points: ArrayLike, geometry: Geometry) -> Mark:
    """Return a structure from six extreme points placed in any order.

    Parameters
    ----------
    name : str
    points : array-like, shape (6, 3)
        LPS mm. Each gets the wall it forms, in patient axes.
    geometry : Geometry
        Grid of the scan they were placed on.

    Raises
    ------
    PromptError
        If there are not six points, one lies outside the scan, or they aren't the extremes of
        one structure. The sentence names the point.
    """
    name = structure_name(name)
    walls = assign_walls(points, geometry)
    notes = check_walls(walls, geometry, name)
    return Mark(Landmarks(name, tuple(as_point(p) for p in walls)), "points", None, notes)


def mark_from_mask(
    name: str, mask: MaskPatch | NDArray[Any], geometry: Geometry, *, keep_mask: bool = True
) -> Mark:
    """Return a structure from a mask on the scan's grid: its extreme points by MedLAM's rule.

    Parameters
    ----------
    name : str
    mask : MaskPatch or ndarray of bool, shape ``geometry.shape``
    geometry : Geometry
    keep_mask : bool
        Keep the mask too, for boxes in sub-patches along z.

    Raises
    ------
    PromptError
        If the mask is empty or of another shape than the scan.
    """
    name = structure_name(name)
    if not isinstance(mask, MaskPatch):
        if tuple(mask.shape) != geometry.shape:
            raise PromptError(
                f"the mask of '{name}' has shape {tuple(mask.shape)}, the scan {geometry.shape}; "
                "choose a mask made on this scan"
            )
        mask = MaskPatch.of(np.asarray(mask, dtype=bool))
    patch = mask.clip(geometry.shape).trimmed()
    if patch.is_empty:
        raise PromptError(f"the mask of '{name}' is empty; draw or choose another")
    walls = walls_of_mask(patch, geometry)
    notes = check_walls(walls, geometry, name)
    landmarks = Landmarks(name, tuple(as_point(p) for p in walls))
    return Mark(landmarks, "mask", patch if keep_mask else None, notes)


def marks_from_labels(
    labels: NDArray[Any], names: dict[int, str], geometry: Geometry, *, keep_mask: bool = True
) -> tuple[Mark, ...]:
    """Return one structure for each named value of a label map that is present.

    Parameters
    ----------
    labels : ndarray of int, shape ``geometry.shape``
    names : dict of int to str
        By label value; other values are left out.
    geometry : Geometry
    keep_mask : bool

    Raises
    ------
    PromptError
        If two names are alike, or none of the values is present.
    """
    from scipy.ndimage import find_objects

    check_names(names.values())
    if tuple(labels.shape) != geometry.shape:
        raise PromptError(
            f"the labels have shape {tuple(labels.shape)}, the scan {geometry.shape}; choose "
            "labels made on this scan"
        )
    boxes = find_objects(np.asarray(labels).astype(np.int64, copy=False))
    marks = []
    for value, name in names.items():
        place = boxes[value - 1] if 0 < value <= len(boxes) else None
        if place is not None:
            box = Box(tuple(s.start for s in place), tuple(s.stop for s in place))
            patch = MaskPatch(box, np.asarray(labels[place] == value))
            marks.append(mark_from_mask(name, patch, geometry, keep_mask=keep_mask))
    if not marks:
        raise PromptError(
            f"the label map holds none of the values {', '.join(str(v) for v in names)}; choose "
            "another map or other values"
        )
    return tuple(marks)


def slab_count(marks: Sequence[Mark], interval: int = 2) -> int:
    """Return into how many sub-patches along z a structure is cut (MedLSAM's rule), or 0.

    Parameters
    ----------
    marks : sequence of Mark
        The same structure on all templates that serve.
    interval : int
        Slices of 3 mm a sub-patch should have; 2 as published, so that structures from 36 mm on
        are cut into six.

    Returns
    -------
    int
        0: leave it whole, for it is too low or a template lacks its mask.
    """
    if not marks or any(each.mask is None for each in marks):
        return 0
    heights = []
    for each in marks:
        low, high = np.array(each.landmarks.points)[[0, 3], 2]
        heights.append(round((high - low) / _WORKING_MM))
    lowest = min(heights)
    return min(lowest // interval, _MOST_SLABS) if lowest > interval else 0


def slab_landmarks(mark: Mark, geometry: Geometry, count: int) -> tuple[Landmarks, ...]:
    """Return the sub-patches of a structure as structures of their own, named ``NAME [1/n]``.

    From inferior to superior. Their boxes, found in another scan, cover the structure.

    Raises
    ------
    PromptError
        If the mark has no mask, or too few slices.
    """
    if mark.mask is None:
        raise PromptError(
            f"'{mark.name}' was marked without a mask; sub-patches along z need one: mark it "
            "from a mask"
        )
    points = slabs_of_mask(mark.mask, geometry, count)
    return tuple(
        Landmarks(f"{mark.name} [{number + 1}/{count}]", tuple(as_point(p) for p in six))
        for number, six in enumerate(points)
    )
