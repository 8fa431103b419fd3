"""All cases in two files: ``cohort.csv`` for a spreadsheet, ``boxes.json`` for other programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from napari_openmedlab import __version__
from napari_openmedlab.cohort.records import CaseRecord, Review, StructureRecord
from napari_openmedlab.cohort.results import Job, Results, write_text
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.prompts import BoxPrompt
from napari_openmedlab.geometry.volume import Geometry

__all__ = ["BOXES", "COLUMNS", "TABLE", "box_values", "write_tables"]

TABLE, BOXES = "cohort.csv", "boxes.json"

COLUMNS = (
    "case", "structure", "label", "volume_ml", "confidence", "score", "localizer", "engine",
    "checkpoint", "seconds", "status", "review", "file", "reason",
)  # fmt: skip


def write_tables(results: Results, job: Job) -> None:
    """Write both files anew from the records of all cases.

    Raises
    ------
    WriteError
        If one can't be written; the old one stays.
    """
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    boxes = []
    for case, record, review in results.rows(job.cases):
        if record is None:
            reason = case.problem
            writer.writerow({"case": case.id, "status": "pending", "reason": reason})
            continue
        writer.writerows(_table_rows(record, review))
        boxes.append(_case_values(record, review))
    write_text(results.folder / TABLE, table.getvalue())
    content = {
        "format": "napari-openmedlab cohort boxes",
        "version": 1,
        "software": __version__,
        "coordinates": "LPS mm; indices (z, y, x) of the scan in display order, stop excluded",
        "cases": boxes,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(results.folder / BOXES, text)


def _table_rows(record: CaseRecord, review: Review) -> list[dict[str, Any]]:
    common = {"case": record.case, "review": review.state}
    if record.status == "failed":
        return [{**common, "seconds": record.seconds, "status": "failed", "reason": record.reason}]
    localizer = record.localizer.get("engine", "")
    return [
        {
            **common,
            "structure": row.name,
            "label": row.value,
            "volume_ml": "" if row.volume_ml is None else row.volume_ml,
            "confidence": row.confidence,
            "score": "" if row.score is None else row.score,
            "localizer": localizer,
            "engine": row.engine,
            "checkpoint": row.checkpoint,
            "seconds": row.seconds,
            "status": row.status,
            "file": _file_of(row, record),
            "reason": row.reason,
        }
        for row in record.structures
    ]


def _file_of(row: StructureRecord, record: CaseRecord) -> str:
    from napari_openmedlab.io.suffixes import safe_name

    masks = [name for name in record.files if not name.endswith(".json")]
    if not row.voxels or not masks:
        return ""
    if len(masks) == 1 and "_" not in masks[0]:
        return masks[0]
    own = [name for name in masks if f"_{safe_name(row.name)}." in name]
    return own[0] if own else ""


def _case_values(record: CaseRecord, review: Review) -> dict[str, Any]:
    grid = record.geometry
    return {
        "case": record.case,
        "path": record.path,
        "series": record.series,
        "status": record.status,
        "reason": record.reason,
        "review": review.state,
        "localizer": dict(record.localizer),
        "structures": [
            {
                "name": row.name,
                "label": row.value,
                "status": row.status,
                "confidence": row.confidence,
                "templates": row.templates,
                "set_by_hand": sorted(review.walls.get(row.name, ())),
                "checks": {k: v if math.isfinite(v) else None for k, v in row.checks.items()},
                "notes": list(row.notes),
                **({} if grid is None else box_values(row.box, row.points, row.parts, grid)),
            }
            for row in record.structures
        ],
    }


def box_values(
    box: Box, points: tuple[Any, ...], parts: tuple[Box, ...], grid: Geometry
) -> Mapping[str, Any]:
    """Return a box as plain values: voxel indices, and its outer corners in LPS mm.

    The corners are those of the voxels' faces, along the scan's own axes; ``None`` for a
    structure that was not found.
    """
    if box.is_empty:
        return {"box": None}
    faces = grid.to_world(np.array([box.start, box.stop]) - 0.5)
    centres = BoxPrompt.from_box(box, grid)
    return {
        "box": {"start": list(box.start), "stop": list(box.stop)},
        "corners_mm": [[round(float(v), 3) for v in corner] for corner in faces],
        "prompt_mm": [list(centres.corner), list(centres.opposite)],
        "extreme_points_mm": [[round(float(v), 3) for v in point] for point in points],
        "parts": [{"start": list(part.start), "stop": list(part.stop)} for part in parts],
    }
