"""Many structures at once become objects of a session: what that would change, computed ahead.

Finding out takes a second or two on a large scan, so it is done in the worker's thread, which
only reads; what came out is written by the session in one step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.geometry.boxes import Box, box_of_mask
from napari_openmedlab.geometry.labels import LabelPatch
from napari_openmedlab.models.contract import Labelling
from napari_openmedlab.models.organs import colour_of
from napari_openmedlab.session.history import LabelChange, Step
from napari_openmedlab.session.label_map import LabelMap
from napari_openmedlab.session.objects import (
    LARGEST_ID,
    OverlapRule,
    SegmentObject,
    SessionState,
    plain_values,
)

__all__ = ["Arrival", "arrival_of", "arrived", "still_holds"]

_VOXELS = "voxels"  # in an object's provenance: how many it had when the engine was done


@dataclass(frozen=True, eq=False)
class Arrival:
    """What a labelling changes in a session as it stood.

    Attributes
    ----------
    found : Labelling
    chosen : tuple of str
        Structures that were asked for.
    before : SessionState
    last : Step or None
        Last step of the history then: with ``before`` it tells whether this still holds.
    overlap : OverlapRule
    objects : tuple of SegmentObject
        All objects afterwards.
    ids : mapping of str to int
        Object of each structure that was found.
    left : tuple of str
        Structures whose objects are the user's own work by now (locked, refined or painted);
        they stay as they are.
    absent : tuple of str
        Structures that were looked for and not found.
    change : LabelChange or None
    boxes : mapping of int to Box
        Around the new voxels of each object.
    """

    found: Labelling
    chosen: tuple[str, ...]
    before: SessionState
    last: Step | None
    overlap: OverlapRule
    objects: tuple[SegmentObject, ...]
    ids: Mapping[str, int]
    left: tuple[str, ...]
    absent: tuple[str, ...]
    change: LabelChange | None
    boxes: Mapping[int, Box]


def arrival_of(
    labels: LabelMap,
    state: SessionState,
    last: Step | None,
    overlap: OverlapRule,
    found: Labelling,
    chosen: Collection[str],
) -> Arrival:
    """Return what a labelling would change; reads only.

    A structure gets its class number as id where that is free. An object of the same name that
    the same engine made and nobody touched since is made anew inside the region; one that is
    locked, was refined or painted stays, and the structure is left out.
    """
    engine = str(found.provenance.get("engine", ""))
    wanted = {value: name for value, name in sorted(found.names.items()) if name in chosen}
    own, left = _sorted_out(state, wanted.values(), engine)
    ids = _ids(state, {v: n for v, n in wanted.items() if n not in left}, own)
    numbers = {value: ids[name] for value, name in wanted.items() if name in ids}
    change, gained, boxes = _changed(labels, state, overlap, found, numbers, own.values())
    shared = plain_values(found.provenance)
    made: dict[int, SegmentObject] = {}
    for name, number in ids.items():
        old = state.find(number)
        voxels = gained.get(number, 0) + (old.voxels if old else 0)
        if voxels > 0:
            made[number] = SegmentObject(
                number,
                name,
                old.colour if old else colour_of(name),
                visible=old.visible if old else True,
                engine=engine,
                seconds=float(found.seconds),
                voxels=voxels,
                provenance=MappingProxyType({**shared, _VOXELS: voxels}),
            )
    ours = set(own.values())
    others = state.counted(gained).objects
    kept = tuple(made.get(o.id, o) for o in others if o.id in made or o.id not in ours)
    before = {o.id for o in state.objects}
    objects = (*kept, *(o for number, o in made.items() if number not in before))
    present = {name: number for name, number in ids.items() if number in made}
    absent = tuple(name for name in ids if name not in present)
    names = tuple(wanted.values())
    return Arrival(
        found, names, state, last, overlap, objects, present, left, absent, change, boxes
    )


def _sorted_out(
    state: SessionState, names: Iterable[str], engine: str
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the objects that may be made anew by name, and names whose objects stay."""
    own: dict[str, int] = {}
    left: list[str] = []
    for name in names:
        same = [o for o in state.objects if o.name == name]
        if any(not _untouched(o, engine) for o in same):
            left.append(name)
        elif same:
            own[name] = same[0].id
    return own, tuple(left)


def _untouched(found: SegmentObject, engine: str) -> bool:
    """Return whether an object is as this engine left it."""
    return (
        not found.locked
        and found.engine == engine
        and found.prompts.is_empty
        and found.provenance.get(_VOXELS) == found.voxels
    )


def _ids(state: SessionState, wanted: Mapping[int, str], own: Mapping[str, int]) -> dict[str, int]:
    taken = {o.id for o in state.objects}
    ids: dict[str, int] = {}
    for value, name in wanted.items():
        number = own.get(name, value)
        if name not in own and (number in taken or number > LARGEST_ID):
            number = state.free_id({*taken, *wanted})
        ids[name] = number
        taken.add(number)
    return ids


def _changed(
    labels: LabelMap,
    state: SessionState,
    overlap: OverlapRule,
    found: Labelling,
    numbers: Mapping[int, int],
    own: Iterable[int],
) -> tuple[LabelChange | None, dict[int, int], dict[int, Box]]:
    """Return the change of the labels, voxels gained by value, and boxes of the new voxels."""
    table = np.zeros(int(found.labels.max(initial=0)) + 1, dtype=np.uint16)
    for value, number in numbers.items():
        if value < len(table):
            table[value] = number
    renewed = np.zeros(LARGEST_ID + 1, dtype=bool)
    renewed[list(own)] = True
    box = _reach(labels, found, table, np.flatnonzero(renewed))
    if box.is_empty:
        return None, {}, {}
    before = labels.array[box.slices].copy()
    arriving = table[found.labels[box.relative_to(found.box).slices]]
    after = before.copy()
    after[renewed[before]] = 0
    if overlap is OverlapRule.KEEP:
        free = after == 0
    else:
        locked = np.zeros(LARGEST_ID + 1, dtype=bool)
        locked[[o.id for o in state.objects if o.locked]] = True
        free = ~locked[after]
    np.copyto(after, arriving, where=free & (arriving != 0))
    change, gained = LabelChange.of(LabelPatch(box, before, after))
    return change, gained, _boxes(after, box, set(numbers.values()))


def _reach(
    labels: LabelMap, found: Labelling, table: NDArray[np.uint16], renewed: NDArray[Any]
) -> Box:
    """Return the smallest part of the region in which something may change."""
    some = box_of_mask(table[found.labels] != 0).shift(found.box.start)
    for number in renewed:
        some = some.union(labels.box_of(int(number)).intersection(found.box))
    return some


def _boxes(after: NDArray[np.uint16], box: Box, wanted: set[int]) -> dict[int, Box]:
    from scipy import ndimage

    boxes = {}
    for number, where in enumerate(ndimage.find_objects(after), start=1):
        if where is not None and number in wanted:
            a, b, c = where
            inner = Box((a.start, b.start, c.start), (a.stop, b.stop, c.stop))
            boxes[number] = inner.shift(box.start)
    return boxes


def still_holds(
    arrival: Arrival, state: SessionState, last: Step | None, rule: OverlapRule
) -> bool:
    """Return whether nothing that matters changed since an arrival was computed."""
    same = state.objects is arrival.before.objects and last is arrival.last
    return same and rule is arrival.overlap


def arrived(arrival: Arrival, state: SessionState) -> SessionState:
    """Return the state afterwards; the active object stays, or it is the first that came."""
    first = min(arrival.ids.values(), default=None)
    kept = {o.id for o in arrival.objects}
    active = state.active_id if state.active_id in kept else first
    return replace(state, objects=arrival.objects, active_id=active)
