"""What the status line says of an answer, and what a run still waits for."""

from __future__ import annotations

import math

from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.models.contract import Prediction
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.object_table import volume_text
from napari_openmedlab.widgets.tools import Tool

__all__ = ["answer_text", "waits_for"]

_SURE = 0.7  # scores below this are called unsure


def answer_text(session: Session, object_id: int, prediction: Prediction) -> tuple[str, str]:
    """Return the sentence on an answer that was written, and its severity.

    Returns
    -------
    tuple of str
        Text; ``"done"``, or ``"unsure"`` for a low score, a note or an empty mask.
    """
    found = session.get(object_id)
    notes = " ".join(prediction.notes)
    if not found.voxels:
        text = f"{found.name}: nothing was found there. Set more prompts, or undo."
        return f"{text} {notes}".strip(), "unsure"
    volume = volume_text(session, found)
    size = f"{volume[:-3]} voxels" if volume.endswith(" vx") else f"{volume} ml"
    sure = math.isnan(prediction.score) or prediction.score >= _SURE
    score = f" Score {prediction.score:.2f} ({'sure' if sure else 'unsure'})."
    if math.isnan(prediction.score) or "confidence" in notes.lower():
        score = ""  # the engine has none, or says it in its own words
    text = f"{found.name}: {size} in {prediction.seconds:.1f} s.{score} {notes}".strip()
    return text, "done" if sure and not notes else "unsure"


def waits_for(
    prompts: PromptSet, tool: Tool | None, geometry: Geometry, *, by_slice: bool = False
) -> str:
    """Return why an automatic run should wait for more prompts; ``""`` if it should not.

    Run on the user's own demand is never held back.

    Parameters
    ----------
    by_slice : bool
        Whether the engine works on slices, so that a flat box is all it needs.
    """
    count = len(prompts.extreme_points)
    if tool is Tool.EXTREME and 0 < count < 6:
        return f"{count} of 6 extreme points set. Run [Enter] if that is all you can see."
    if tool is Tool.BOX and not by_slice and prompts.boxes and prompts.kinds() == {"box"}:
        shape = prompts.boxes[0].to_box(geometry).shape
        if any(n == 1 and full > 1 for n, full in zip(shape, geometry.shape, strict=True)):
            return (
                "The box is one slice deep. Scroll to the object's first and last slice and click "
                "to deepen it, or press Run [Enter]."
            )
    if not prompts.has_positive:
        return "Now mark where the object is: the prompts so far only say where it is not."
    return ""
