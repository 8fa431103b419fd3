"""What the user has to know about an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from napari_openmedlab.models.engines.sam_slices.marks import Marks
from napari_openmedlab.models.engines.sam_slices.planes import Outline, Plane
from napari_openmedlab.models.engines.sam_slices.propagation import Ending, Spread

__all__ = ["LOW_SCORE", "flat_note", "missed_clicks", "score_note", "spread_notes", "unused_note"]

LOW_SCORE = 0.5


def score_note(scores: Mapping[Plane, float]) -> list[str]:
    """Return a sentence if the network trusts its own answer little."""
    low = {plane: score for plane, score in scores.items() if score < LOW_SCORE}
    if not low:
        return []
    worst = min(low, key=lambda plane: low[plane])
    if len(scores) == 1:
        return [
            f"Low confidence: the network expects an overlap of {max(0.0, low[worst]):.2f} with "
            "the true outline. Add a click, or draw a box."
        ]
    return [
        f"Low confidence on {len(low)} of {len(scores)} slices, least on slice {worst.number} "
        f"({max(0.0, low[worst]):.2f})."
    ]


def spread_notes(spreads: Sequence[Spread]) -> list[str]:
    """Return sentences on how far propagation came and why it ended."""
    notes = []
    slices = sorted(plane for spread in spreads for plane in spread.outlines)
    if slices:
        notes.append(
            f"Propagated to {len(slices)} slices, {slices[0].number} to {slices[-1].number}."
        )
    notes += [
        f"Propagation ended before slice {ending.plane.number}: {ending.why}. If the object goes "
        "on there, mark it on that slice."
        for ending in _early(spreads)
    ]
    guessed = sorted(plane.number for spread in spreads for plane in spread.interpolated)
    if guessed:
        notes.append(
            f"On {len(guessed)} slices between marked ones the network's answer did not fit, so "
            f"the outline was interpolated ({_some(guessed)})."
        )
    return notes


def flat_note(planes: Iterable[Plane]) -> list[str]:
    """Return a sentence on slices without contrast."""
    numbers = sorted({plane.number for plane in planes})
    if not numbers:
        return []
    return [
        f"There is no contrast on slice {_some(numbers)}: with one single grey level the answer "
        "there means nothing."
    ]


def unused_note(planes: Iterable[Plane], *, boxes_only: bool) -> list[str]:
    """Return a sentence on slices whose marks could not start anything."""
    numbers = sorted(plane.number for plane in planes)
    if not numbers:
        return []
    why = (
        "MedSAM takes boxes, not clicks"
        if boxes_only
        else "only points outside the object lie there, and no mask that they could correct"
    )
    return [f"Slice {_some(numbers)} was not answered: {why}."]


def missed_clicks(marks: Mapping[Plane, Marks], outlines: Mapping[Plane, Outline]) -> list[str]:
    """Return a sentence if the newest point of a slice was not obeyed."""
    missed = []
    for plane, outline in outlines.items():
        strokes = marks[plane].strokes if plane in marks else ()
        if not strokes:
            continue
        row, column = strokes[-1].places[0]
        row, column = row - outline.row, column - outline.column
        rows, columns = outline.mask.shape
        within = 0 <= row < rows and 0 <= column < columns
        if bool(within and outline.mask[row, column]) != strokes[-1].positive:
            missed.append(plane.number)
    if not missed:
        return []
    return [
        f"The last click on slice {_some(sorted(missed))} was not obeyed; click again nearby, or "
        "use the brush."
    ]


def _early(spreads: Sequence[Spread]) -> list[Ending]:
    endings = [ending for spread in spreads for ending in spread.endings if ending.why]
    return sorted(endings, key=lambda ending: ending.plane)


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:5])
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"
