"""A case's result as a session that corrections go on from, with nothing yet to undo."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.cohort.handing_over import prompts_for
from napari_openmedlab.cohort.records import CaseRecord, StructureRecord
from napari_openmedlab.cohort.settings import Settings
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.localisation import Found
from napari_openmedlab.session.objects import EngineChoice, SegmentObject, distinct_colour
from napari_openmedlab.session.session import Session

__all__ = ["as_session", "box_prompts"]


def as_session(
    volume: Volume, labels: NDArray[np.uint16], record: CaseRecord, settings: Settings
) -> Session:
    """Return a session with one object for every structure of a case.

    Each object has the prompts its mask was made from, as answered ones: a click is then a
    correction of that mask, for every engine.

    Parameters
    ----------
    volume : Volume
    labels : ndarray of uint16, shape of the volume
        Copied.
    record : CaseRecord
    settings : Settings
        Of the run.
    """
    made = Session(volume, labels=labels.copy())
    for row in sorted(record.structures, key=lambda each: each.value):
        if made.state.find(row.value) is None:
            made.add_object(row.name)  # takes the smallest free value, which is this one
    state = made.state
    for row in record.structures:
        plain = state.find(row.value)
        if plain is not None:
            state = state.with_object(_as_answered(plain, row, volume.geometry, settings))
    choice = EngineChoice(settings.engine, settings.engine_options) if settings.engine else None
    state = replace(
        state,
        choice=choice or state.choice,
        active_id=state.objects[0].id if state.objects else None,
    )
    start = replace(made.snapshot(), past=(), future=(), start_state=state, state=state)
    return Session.resume(start, volume)


def box_prompts(row: StructureRecord, geometry: Geometry, settings: Settings) -> PromptSet:
    """Return what an engine is told about a structure of a record; nothing if it has no box."""
    if not row.found:
        return PromptSet()
    points: Any = row.points
    return prompts_for(Found(row.name, row.box, points, parts=row.parts), geometry, settings)


def _as_answered(
    plain: SegmentObject, row: StructureRecord, geometry: Geometry, settings: Settings
) -> SegmentObject:
    prompts = box_prompts(row, geometry, settings)
    return replace(
        plain,
        name=row.name,
        colour=distinct_colour(row.value),
        prompts=prompts,
        answered=prompts if plain.voxels else None,
        score=math.nan if row.score is None else row.score,
        engine=row.engine if plain.voxels else "",
        seconds=row.seconds,
        notes=row.notes,
    )
