"""How far a structure's place can be trusted; numbers in, a confidence and sentences out.

Limits are set by reasoning from the method's published errors (walls right to 3 mm in the head, 10
in the abdomen, on a grid of 3 mm) and its geometry; no published weights or figures were at hand
to fit them to. A confidence is for ranking what to review first, not a probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.models.engines.medlam.grid import HALF, SPACING_MM
from napari_openmedlab.models.engines.medlam.search import Located

__all__ = ["LEAST_CONFIDENCE", "Limit", "Verdict", "checks_of", "judge", "walls_of"]

LEAST_CONFIDENCE = 0.05
"""Below this a structure counts as not found."""


@dataclass(frozen=True)
class Limit:
    """How a check bears on the confidence.

    Attributes
    ----------
    good, bad : float
        Up to ``good`` (from it on, if it is the larger one) the factor is 1; it falls in a
        straight line to ``least`` at ``bad``.
    least : float
        0 if the check alone can say "not found".
    says : str
        Sentence for the user where the factor is below one half; ``{}`` takes the value.
    """

    good: float
    bad: float
    least: float
    says: str

    def factor(self, value: float) -> float:
        """Return the part of the confidence that a value leaves, in [least, 1]."""
        if not np.isfinite(value):
            return self.least
        share = float(np.clip((value - self.bad) / (self.good - self.bad), 0.0, 1.0))
        return self.least + (1.0 - self.least) * share


LIMITS: Mapping[str, Limit] = {
    "inside": Limit(
        0.8,
        0.25,
        0.0,
        "Only {:.0%} of where it should be lies in the scan: it is outside the field of view or "
        "cut off.",
    ),
    "beyond_mm": Limit(
        15.0, 150.0, 0.2, "The first estimate lies up to {:.0f} mm outside the scan."
    ),
    "outside_mm": Limit(6.0, 60.0, 0.2, "A wall was found {:.0f} mm outside the scan."),
    "air": Limit(0.2, 1.0, 0.0, "{:.0%} of its points ended in air."),
    "starts_mm": Limit(
        20.0, 120.0, 0.1, "Estimates from different starts lie {:.0f} mm apart on average."
    ),
    "templates_mm": Limit(
        20.0, 120.0, 0.1, "Estimates from different templates lie {:.0f} mm apart on average."
    ),
    "stages_mm": Limit(
        25.0, 110.0, 0.2, "The second stage moved the points by {:.0f} mm, against the first."
    ),
    "shifts_mm": Limit(
        15.0, 75.0, 0.2, "The second stage moved the points {:.0f} mm apart from each other."
    ),
    "edge": Limit(
        0.0, 1.0, 0.2, "{:.0%} of its points were found at the edge of what was searched."
    ),
    "similarity": Limit(0.5, 0.1, 0.0, "Its surroundings look unlike the templates ({:.2f} of 1)."),
    "margin": Limit(
        0.02, 0.0, 0.5, "Another place looks nearly the same (it lacks only {:.3f} of 1)."
    ),
    "crossed": Limit(0.0, 2.0, 0.0, "{:.0f} of 3 pairs of opposite walls were found crossed."),
    "size_ratio": Limit(
        1.4, 4.0, 0.0, "Its size differs by a factor of {:.1f} from that in the templates."
    ),
}


@dataclass(frozen=True)
class Verdict:
    """What the checks say.

    Attributes
    ----------
    confidence : float
        Product of the checks' factors, in [0, 1]; 0 if not found.
    found : bool
    notes : tuple of str
    """

    confidence: float
    found: bool
    notes: tuple[str, ...]


def judge(checks: Mapping[str, float]) -> Verdict:
    """Return the verdict on a structure's checks (any of :data:`LIMITS`)."""
    confidence, notes = 1.0, []
    for name, limit in LIMITS.items():
        if name not in checks:
            continue
        factor = limit.factor(checks[name])
        confidence *= factor
        if factor < 0.5:
            notes.append(limit.says.format(checks[name]))
    found = confidence >= LEAST_CONFIDENCE
    return Verdict(confidence if found else 0.0, found, tuple(notes))


def walls_of(voxels: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Return the low and high walls (z, y, x) of six points (6, 3), each from its own point."""
    low = np.array([voxels[axis, axis] for axis in range(3)])
    high = np.array([voxels[axis + 3, axis] for axis in range(3)])
    return low, high


def checks_of(
    located: Located, extents_mm: NDArray[np.float64], shape: tuple[int, int, int]
) -> dict[str, float]:
    """Return the numbers the verdict is made of.

    Parameters
    ----------
    located : Located
        Six points.
    extents_mm : ndarray, shape (K, 3)
        Size of the structure in the templates (z, y, x).
    shape : tuple of int
        Working voxels of the scan, not padded.

    Returns
    -------
    dict of str to float
        ``inside``: share of the structure, placed by the coarse stage with the templates' size,
        that lies in the scan; ``beyond_mm``: how far the coarse stage jumped out of the scan at
        most; ``outside_mm``: how far the found walls lie out of it; ``air``: share of points
        with nothing but air around; ``starts_mm``, ``templates_mm``: agreement of the coarse
        stage; ``stages_mm``: median shift of the fine stage; ``shifts_mm``: how much the shifts
        of the six points differ; ``edge``: share of points at the edge of the search;
        ``similarity``, ``margin``: means over the points; ``crossed``: pairs of walls the wrong
        way round; ``size_ratio``: largest factor between the box and the templates' mean.
    """
    coarse = located.jump.place_mm.astype(np.float64) / SPACING_MM - HALF
    last = np.array(shape) - 1.0
    shifts = np.array([peak.shift for peak in located.peaks], dtype=np.float64) * SPACING_MM
    low, high = walls_of(located.voxels)
    typical = extents_mm.mean(axis=0)
    checks = {
        "inside": _share_inside(coarse.mean(axis=0), typical / SPACING_MM, last),
        "beyond_mm": SPACING_MM * _out_of(coarse, last),
        "outside_mm": SPACING_MM * _out_of(_own_walls(located.voxels), last),
        "air": located.in_air,
        "starts_mm": located.jump.starts_mm,
        "stages_mm": float(np.median(np.linalg.norm(shifts, axis=1))),
        "shifts_mm": float(np.linalg.norm(shifts - np.median(shifts, axis=0), axis=1).mean()),
        "edge": float(np.mean([peak.at_edge for peak in located.peaks])),
        "similarity": float(np.mean([peak.similarity for peak in located.peaks])),
        "margin": float(np.mean([peak.margin for peak in located.peaks])),
        "crossed": float(np.count_nonzero(low > high)),
        "size_ratio": _size_ratio(np.abs(high - low) * SPACING_MM, typical),
    }
    if located.jump.templates_mm is not None:
        checks["templates_mm"] = located.jump.templates_mm
    return checks


def _share_inside(
    middle: NDArray[np.float64], size: NDArray[np.float64], last: NDArray[np.float64]
) -> float:
    """Return which part of a box lies between the outer faces of the scan's voxels."""
    size = np.maximum(size, 1.0)
    low = np.maximum(middle - size / 2, -0.5)
    high = np.minimum(middle + size / 2, last + 0.5)
    return float(np.prod(np.maximum(high - low, 0.0) / size))


def _own_walls(voxels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the points as two corners (2, 3): the walls, without the other coordinates."""
    low, high = walls_of(voxels)
    return np.array([low, high], dtype=np.float64)


def _out_of(places: NDArray[np.float64], last: NDArray[np.float64]) -> float:
    """Return the largest distance, along an axis, of any place from the scan (0 inside)."""
    return float(np.maximum(np.maximum(-places, places - last), 0.0).max())


def _size_ratio(found_mm: NDArray[np.float64], typical_mm: NDArray[np.float64]) -> float:
    """Return the largest factor between two sizes; two voxels more or less don't count."""
    slack = 2 * SPACING_MM
    larger = np.maximum(found_mm - slack, slack) / np.maximum(typical_mm, slack)
    smaller = np.maximum(typical_mm - slack, slack) / np.maximum(found_mm, slack)
    return float(max(1.0, larger.max(), smaller.max()))
