"""Prompts checked against the volume they are meant for, before an engine sees them."""

from __future__ import annotations

from typing import Any

import numpy as np

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.geometry.volume import Geometry

__all__ = ["check_prompts", "describe_change", "extends"]


def check_prompts(prompts: PromptSet, geometry: Geometry) -> None:
    """Raise :class:`PromptError` with a sentence for prompts that can't be meant.

    Parameters
    ----------
    prompts : PromptSet
    geometry : Geometry
        Grid of the volume.

    Raises
    ------
    PromptError
        If an extreme point, click, box, scribble or mask lies outside the volume, or two
        extreme points name the same voxel. Fewer than six extreme points are legal: the engine
        decides what it needs.
    """
    prompts.check_inside(geometry)
    _check_duplicates(prompts, geometry)
    for box in prompts.boxes:
        box.to_box(geometry)
    for number, scribble in enumerate(prompts.scribbles, start=1):
        inside = geometry.contains_index(geometry.to_index(scribble.points))
        if not inside.all():
            raise PromptError(
                f"scribble {number} has {np.count_nonzero(~inside)} of {inside.size} points "
                "outside the volume; paint it on the image itself"
            )
    if prompts.mask is not None and prompts.mask.on_grid(geometry).is_empty:
        raise PromptError("the mask prompt has no voxel inside the volume; choose another mask")


def _check_duplicates(prompts: PromptSet, geometry: Geometry) -> None:
    seen: dict[tuple[int, ...], int] = {}
    for number, point in enumerate(prompts.extreme_points, start=1):
        voxel = tuple(int(v) for v in np.rint(geometry.to_index(point)))
        if voxel in seen:
            raise PromptError(
                f"extreme points {seen[voxel]} and {number} are the same voxel {voxel} "
                "(z, y, x); place one of them elsewhere on the surface or leave it out"
            )
        seen[voxel] = number


def extends(now: PromptSet, asked: PromptSet) -> bool:
    """Return whether ``now`` holds all prompts of ``asked``, perhaps with newer ones behind."""
    pairs = (
        (now.extreme_points, asked.extreme_points),
        (now.boxes, asked.boxes),
        (now.clicks, asked.clicks),
        (now.scribbles, asked.scribbles),
    )
    kept = all(tuple(new[: len(old)]) == tuple(old) for new, old in pairs)
    return kept and (asked.mask is None or now.mask == asked.mask)


def describe_change(before: PromptSet, after: PromptSet) -> str:
    """Return the words for an undo menu: ``"click"``, ``"remove box"``, ``"change prompts"``."""
    words: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...]], ...] = (
        ("extreme point", before.extreme_points, after.extreme_points),
        ("box", before.boxes, after.boxes),
        ("click", before.clicks, after.clicks),
        ("scribble", before.scribbles, after.scribbles),
        ("mask prompt", _as_tuple(before), _as_tuple(after)),
    )
    changed = [(word, old, new) for word, old, new in words if old != new]
    if len(changed) != 1:
        return "change prompts"
    word, old, new = changed[0]
    if len(new) < len(old):
        return f"remove {word}"
    return f"move {word}" if len(new) == len(old) else word


def _as_tuple(prompts: PromptSet) -> tuple[Any, ...]:
    return () if prompts.mask is None else (prompts.mask,)
