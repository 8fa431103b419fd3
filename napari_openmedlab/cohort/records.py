"""What is known of one case: the result of the run, and what the reviewer made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args

from napari_openmedlab.errors import ReadError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.models.localisation import WALLS
from napari_openmedlab.session.fingerprint import geometry_from_json, geometry_to_json

__all__ = [
    "CaseRecord",
    "CaseStatus",
    "Review",
    "ReviewState",
    "StructureRecord",
    "StructureStatus",
    "wall_of",
    "with_wall",
]

CaseStatus = Literal["done", "failed"]
StructureStatus = Literal["segmented", "boxed", "not found", "empty", "failed"]
ReviewState = Literal["pending", "accepted", "rejected", "skipped"]

T = TypeVar("T")

_FORMAT = "napari-openmedlab cohort case"
_SIDES = {"superior": (0, 0), "inferior": (0, 1), "anterior": (1, 0), "posterior": (1, 1)}
_SIDES |= {"right": (2, 0), "left": (2, 1)}


@dataclass(frozen=True)
class StructureRecord:
    """One structure in one case.

    Attributes
    ----------
    name : str
    value : int
        Its label value in the mask file, the same in every case of the cohort.
    status : str
        ``segmented``; ``boxed`` (no mask was asked for); ``not found``; ``empty`` (the engine
        found nothing in the box); ``failed`` (``reason`` says why).
    box : Box
        As it was found, or set by hand, in voxels of the scan as displayed. Empty if not found.
    confidence : float
        Of the box, in [0, 1].
    score : float or None
        The engine's own estimate of the mask's quality, if it gives one.
    points : tuple of points
        Extreme points, LPS mm.
    parts : tuple of Box
        Sub-boxes, if the localizer gave them.
    voxels : int
    volume_ml : float or None
        ``None`` for a scan without a length unit.
    seconds : float
        Of the segmentation.
    templates : int
        Templates it was looked for with.
    checks : mapping
        What the confidence was made of.
    notes : tuple of str
    reason : str
        Why it failed.
    checkpoint : str
        sha256 of the weights that made the mask; empty for an engine without.
    engine : str
        What made the mask.
    """

    name: str
    value: int
    status: StructureStatus
    box: Box = field(default_factory=lambda: Box((0, 0, 0), (0, 0, 0)))
    confidence: float = 0.0
    score: float | None = None
    points: tuple[tuple[float, ...], ...] = ()
    parts: tuple[Box, ...] = ()
    voxels: int = 0
    volume_ml: float | None = None
    seconds: float = 0.0
    templates: int = 0
    checks: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    reason: str = ""
    checkpoint: str = ""
    engine: str = ""

    @property
    def found(self) -> bool:
        """Whether there is a box."""
        return not self.box.is_empty

    @property
    def certainty(self) -> float:
        """The lower one of the box's confidence and the mask's score; 0 where nothing came out."""
        if self.status in ("failed", "empty"):
            return 0.0
        return self.confidence if self.score is None else min(self.confidence, self.score)


@dataclass(frozen=True)
class CaseRecord:
    """The result of one case, as it lies in its folder.

    Attributes
    ----------
    case : str
        Its id.
    path : str
        The scan.
    series : str or None
    status : {"done", "failed"}
    reason : str
        Why it failed, for the user.
    signature : str
        What the result stands for; see :mod:`.signatures`.
    job : str
        The part of it that all cases of the run share.
    content, stamp : str
        Hash of the scan, and of its files' names, sizes and times.
    geometry : Geometry or None
        Grid of the scan as displayed.
    structures : tuple of StructureRecord
    files : tuple of str
        Names of the mask files beside the record.
    seconds : float
        For the whole case.
    notes : tuple of str
    localizer, engine : mapping
        What the engines said of themselves.
    """

    case: str
    path: str
    status: CaseStatus
    series: str | None = None
    reason: str = ""
    signature: str = ""
    job: str = ""
    content: str = ""
    stamp: str = ""
    geometry: Geometry | None = None
    structures: tuple[StructureRecord, ...] = ()
    files: tuple[str, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    localizer: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def certainty(self) -> float:
        """That of the least certain structure; 0 for a failed case or one where none was found."""
        known = [s.certainty for s in self.structures if s.status != "not found"]
        return min(known, default=0.0) if self.status == "done" else 0.0

    @property
    def found(self) -> int:
        """How many structures have a box."""
        return sum(s.found for s in self.structures)

    def structure(self, name: str) -> StructureRecord | None:
        """Return the structure of this name."""
        return next((each for each in self.structures if each.name == name), None)

    def with_structure(self, changed: StructureRecord) -> CaseRecord:
        """Return the record with the structure of the same name replaced."""
        rows = tuple(changed if s.name == changed.name else s for s in self.structures)
        return replace(self, structures=rows)

    def as_json(self) -> dict[str, Any]:
        """Return all values as JSON has them."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["geometry"] = None if self.geometry is None else geometry_to_json(self.geometry)
        values["structures"] = [_structure_to_json(s) for s in self.structures]
        return {"format": _FORMAT, "version": 1, **values}

    @classmethod
    def from_json(cls, values: Any, where: str) -> CaseRecord:
        """Return the record that :meth:`as_json` gave.

        Raises
        ------
        ReadError
            If it is none, or of a newer version.
        """
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise ReadError(f"{where} is no record of a cohort's case")
        if values.get("version") != 1:
            raise ReadError(
                f"{where} was written by a newer version of napari-openmedlab; update it here"
            )

        def read() -> CaseRecord:
            given = _known(cls, values)
            grid = given.get("geometry")
            given["geometry"] = None if grid is None else geometry_from_json(grid)
            given["structures"] = tuple(_structure_from_json(s) for s in given["structures"])
            for name in ("files", "notes"):
                given[name] = tuple(str(each) for each in given[name])
            return cls(**given)

        return _checked(read, where)


@dataclass(frozen=True)
class Review:
    """What the reviewer made of a case.

    Attributes
    ----------
    state : {"pending", "accepted", "rejected", "skipped"}
    walls : mapping
        Walls set by hand: structure to wall (see ``WALLS``) to voxel boundary on its axis.
        They are locked: a new run keeps them.
    corrected : tuple of str
        Structures whose mask was changed in the review.
    """

    state: ReviewState = "pending"
    walls: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    corrected: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether a run leaves the case alone: accepted, or corrected by hand."""
        return self.state == "accepted" or bool(self.corrected)

    def as_json(self) -> dict[str, Any]:
        """Return all values as JSON has them."""
        return {"version": 1, **asdict(self)}

    @classmethod
    def from_json(cls, values: Any, where: str) -> Review:
        """Return the review that :meth:`as_json` gave, or raise :class:`ReadError`."""

        def read() -> Review:
            state = values["state"]
            if state not in get_args(ReviewState):
                raise ValueError(f"state '{state}'")
            walls = {
                str(name): {str(w): int(v) for w, v in sides.items() if w in WALLS}
                for name, sides in values["walls"].items()
            }
            return cls(state, walls, tuple(str(name) for name in values["corrected"]))

        return _checked(read, where)


def wall_of(box: Box, wall: str) -> int:
    """Return the voxel boundary of a box on one side, in a scan in display order (I, P, L)."""
    axis, end = _SIDES[wall]
    return (box.stop if end else box.start)[axis]


def with_wall(box: Box, wall: str, boundary: int) -> Box:
    """Return the box with one wall moved; the opposite wall gives way, one voxel always stays."""
    axis, end = _SIDES[wall]
    start, stop = list(box.start), list(box.stop)
    if end:
        stop[axis] = boundary
        start[axis] = min(start[axis], boundary - 1)
    else:
        start[axis] = boundary
        stop[axis] = max(stop[axis], boundary + 1)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _structure_to_json(row: StructureRecord) -> dict[str, Any]:
    values = {item.name: getattr(row, item.name) for item in fields(row)}
    values["box"] = _box_to_json(row.box)
    values["parts"] = [_box_to_json(part) for part in row.parts]
    values["checks"] = {k: v if math.isfinite(v) else None for k, v in row.checks.items()}
    return values


def _structure_from_json(values: Mapping[str, Any]) -> StructureRecord:
    given = _known(StructureRecord, values)
    if given["status"] not in get_args(StructureStatus):
        raise ValueError(f"status '{given['status']}'")
    given["box"] = _box_from_json(given["box"])
    given["parts"] = tuple(_box_from_json(part) for part in given["parts"])
    given["points"] = tuple(tuple(float(v) for v in point) for point in given["points"])
    given["notes"] = tuple(str(note) for note in given["notes"])
    given["checks"] = {
        k: float("nan") if v is None else float(v) for k, v in given["checks"].items()
    }
    return StructureRecord(**given)


def _box_to_json(box: Box) -> dict[str, list[int]]:
    return {"start": list(box.start), "stop": list(box.stop)}


def _box_from_json(values: Mapping[str, Any]) -> Box:
    (a, b, c), (d, e, f) = values["start"], values["stop"]
    return Box((a, b, c), (d, e, f))


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def _checked(read: Callable[[], T], where: str) -> T:
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReadError(f"{where} is damaged: {error}") from error
