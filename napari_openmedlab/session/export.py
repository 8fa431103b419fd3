"""A session's masks as files, with names, colours and how each was made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from napari_openmedlab.session.objects import SegmentObject
from napari_openmedlab.session.session import Session

__all__ = ["export", "provenance_of"]


def export(
    session: Session, path: str | Path, *, one_file_per_object: bool = False
) -> tuple[Path, ...]:
    """Write the objects that have a mask on the exact grid of the image's file.

    Parameters
    ----------
    path : path
        See :func:`napari_openmedlab.io.api.write` for the formats.
    one_file_per_object : bool
        One file of 0 and 1 per object instead of one file of label values.

    Returns
    -------
    tuple of Path
        The files written, sidecars included.

    Raises
    ------
    WriteError
        If a file can't be written; old files are then untouched.
    """
    from napari_openmedlab.io.api import write
    from napari_openmedlab.io.sidecar import LabelInfo

    return write(
        path,
        session.labels,
        session.volume,
        objects={o.id: LabelInfo(o.name, o.colour) for o in session.objects if o.voxels},
        provenance=provenance_of(session),
        one_file_per_object=one_file_per_object,
    )


def provenance_of(session: Session) -> dict[str, Any]:
    """Return how each object that has a mask came about, as JSON values without patient data."""
    return {"objects": [_how_made(o) for o in session.objects if o.voxels]}


def _how_made(made: SegmentObject) -> dict[str, Any]:
    prompts = made.prompts
    return {
        "value": made.id,
        "name": made.name,
        "engine": made.engine or "by hand",
        "score": None if math.isnan(made.score) else made.score,
        "notes": list(made.notes),
        "engine_says": dict(made.provenance),
        "prompts": {
            "extreme_points": [list(p) for p in prompts.extreme_points],
            "boxes": [[list(b.corner), list(b.opposite)] for b in prompts.boxes],
            "clicks": [{"point": list(c.point), "positive": c.positive} for c in prompts.clicks],
            "scribbles": [
                {"voxels": len(s.points), "positive": s.positive} for s in prompts.scribbles
            ],
            "mask": prompts.mask is not None,
        },
    }
