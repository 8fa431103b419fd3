"""The steps a network takes to answer the marks on one slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from napari_openmedlab.models.engines.sam_slices.boxes import grown
from napari_openmedlab.models.engines.sam_slices.marks import Marks, Stroke
from napari_openmedlab.models.engines.sam_slices.planes import Outline, Rectangle
from napari_openmedlab.models.engines.sam_slices.protocols import Protocol

__all__ = ["Chain", "Prompt", "chain_of", "margin_of"]


@dataclass(frozen=True)
class Prompt:
    """One call of the decoder: a box, points, both or (after a mask) neither.

    Attributes
    ----------
    box : Rectangle or None
    points : tuple of (int, int)
        Rows and columns.
    labels : tuple of int
        1 inside the object, 0 outside.
    """

    box: Rectangle | None = None
    points: tuple[tuple[int, int], ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Chain:
    """All calls for one slice, each fed with the mask of the one before.

    Attributes
    ----------
    start : Outline or None
        The mask fed to the first call.
    prompts : tuple of Prompt
        Empty if the marks say nothing the model can use.
    """

    start: Outline | None
    prompts: tuple[Prompt, ...]


def chain_of(
    marks: Marks, start: Outline | None, protocol: Protocol, shape: tuple[int, int]
) -> Chain:
    """Return the calls for the marks on a slice.

    Parameters
    ----------
    start : Outline, optional
        The slice's mask as it stands, where it came from elsewhere (painted, propagated, of
        another engine): all points then correct it in one call.
    shape : tuple of int
        Rows and columns of the slice.
    """
    if not protocol.takes_points:
        return _by_box(marks, start, protocol, shape)
    if start is not None:
        points, labels = _points(marks.strokes)
        box = marks.box if protocol.keeps_box or not points else None
        if box is None and not points and protocol.mask_needs_box:
            box = _around(start, protocol, shape)
        return Chain(start, (Prompt(box, points, labels),))
    if not marks.has_positive:
        return Chain(None, ())
    return Chain(marks.mask, _one_by_one(marks, protocol, shape))


def _one_by_one(marks: Marks, protocol: Protocol, shape: tuple[int, int]) -> tuple[Prompt, ...]:
    """Box first, then each stroke with all points so far."""
    prompts = []
    if marks.box is not None:
        prompts.append(Prompt(box=marks.box))
    elif marks.mask is not None and not marks.strokes:
        box = _around(marks.mask, protocol, shape) if protocol.mask_needs_box else None
        prompts.append(Prompt(box))
    strokes = list(marks.strokes)
    if marks.box is None and marks.mask is None:
        first = next(n for n, stroke in enumerate(strokes) if stroke.positive)
        strokes.insert(0, strokes.pop(first))  # a point outside alone starts nothing
    box = marks.box if protocol.keeps_box else None
    prompts += [Prompt(box, *_points(strokes[:n])) for n in range(1, len(strokes) + 1)]
    return tuple(prompts)


def _by_box(
    marks: Marks, start: Outline | None, protocol: Protocol, shape: tuple[int, int]
) -> Chain:
    """One call with one box around all that is known to be inside."""
    parts = [stroke.extent for stroke in marks.strokes if stroke.positive]
    if marks.box is not None:
        parts.append(marks.box)
    else:
        parts += [_around(each, protocol, shape) for each in (start, marks.mask) if each]
    sides = np.array(parts).reshape(-1, 4)
    low = sides[:, :2].min(axis=0, initial=np.inf)
    high = sides[:, 2:].max(axis=0, initial=-np.inf)
    if not (high - low > 1).any():
        return Chain(None, ())  # a click does not say how large the object is
    box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    return Chain(None, (Prompt(box=box),))


def _points(
    strokes: Sequence[Stroke],
) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    places = tuple(place for stroke in strokes for place in stroke.places)
    labels = tuple(int(stroke.positive) for stroke in strokes for _ in stroke.places)
    return places, labels


def margin_of(protocol: Protocol, shape: tuple[int, int]) -> tuple[float, float]:
    """Return the protocol's margin in rows and columns of a slice, at least one pixel."""
    pixels = (n * protocol.margin / protocol.size for n in shape)
    rows, columns = (max(1.0, each) for each in pixels)
    return rows, columns


def _around(outline: Outline, protocol: Protocol, shape: tuple[int, int]) -> Rectangle:
    return grown(outline.rectangle, margin_of(protocol, shape), shape)
