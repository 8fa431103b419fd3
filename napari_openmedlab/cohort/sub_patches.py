"""MedLSAM's sub-patches: slabs of a structure, looked for one by one, become parts of its box.

The template library cuts a structure into slabs named ``NAME [1/n]`` ... ``NAME [n/n]`` from
inferior to superior; here they are put together again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.localisation import Found, Template

__all__ = ["assembled", "base_of", "slabs_of"]

_SLAB = re.compile(r"(?P<name>.+) \[(?P<number>\d+)/(?P<count>\d+)\]")


def base_of(name: str, known: Sequence[str]) -> str:
    """Return the structure that a slab's name belongs to; ``""`` for a whole structure."""
    match = _SLAB.fullmatch(name)
    return match["name"] if match and match["name"] in known else ""


def slabs_of(name: str, templates: Sequence[Template]) -> tuple[str, ...]:
    """Return the names of a structure's slabs, from inferior to superior."""
    found: dict[str, int] = {}
    for each in templates:
        for mark in each.structures:
            match = _SLAB.fullmatch(mark.name)
            if match and match["name"] == name:
                found[mark.name] = int(match["number"])
    return tuple(sorted(found, key=lambda slab: found[slab]))


def assembled(found: Sequence[Found], structures: Sequence[str]) -> tuple[Found, ...]:
    """Return the whole structures, with the boxes of their slabs as parts.

    The whole box grows to hold its parts. A structure whose slabs were not all found keeps its
    whole box alone. The confidence is the lowest of whole and parts.

    Parameters
    ----------
    found : sequence of Found
        Whole structures and slabs.
    structures : sequence of str
        The whole ones, in the order to return.
    """
    by_name = {each.name: each for each in found}
    return tuple(_with_parts(by_name[name], found) for name in structures)


def _with_parts(whole: Found, found: Sequence[Found]) -> Found:
    slabs = [each for each in found if base_of(each.name, [whole.name])]
    if not slabs or not whole.found or whole.box.is_empty:
        return whole
    lost = [each.name for each in slabs if not each.found or each.box.is_empty]
    if lost:
        note = f"whole box only: {len(lost)} of {len(slabs)} sub-patches were not found"
        return replace(whole, notes=(*whole.notes, note))
    box: Box = whole.box
    for each in slabs:
        box = box.union(each.box)
    confidence = min([whole.confidence, *(each.confidence for each in slabs)])
    return replace(whole, box=box, confidence=confidence, parts=tuple(each.box for each in slabs))
