"""One block at a time: what a run would find there, before it is started."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.axons.plan import Plan, Settings, blocks_of
from napari_openmedlab.axons.scoring import BlockWork
from napari_openmedlab.axons.source import Source
from napari_openmedlab.axons.store import label_level
from napari_openmedlab.axons.survey import Survey, survey
from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.blocks import BlockEngine
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.contract import Monitor

__all__ = ["LARGEST_PREVIEW", "Preview", "box_around", "preview"]

LARGEST_PREVIEW = 512**3
"""Voxels of a preview at most; more is a run."""

_EDGE = 128  # voxels along a preview, for engines without steps of their own
_GRID = 8  # previews begin at multiples of this, as blocks of a run do: filters bin voxels


@dataclass(frozen=True, eq=False)
class Preview:
    """A scored piece of a volume.

    Attributes
    ----------
    box : Box
        Voxels of the source.
    probability : ndarray of uint8, ``box.shape``
        255 stands for 1, as a run stores it.
    survey : Survey
        What the grey values were normalised with; pass it to the next preview.
    seconds : float
        Reading and scoring.
    """

    box: Box
    probability: NDArray[np.uint8]
    survey: Survey
    seconds: float

    def labels(self, threshold: float) -> NDArray[np.uint8]:
        """Return 1 where the probability reaches a threshold; nothing is computed again."""
        return (self.probability >= label_level(threshold)).view(np.uint8)


def box_around(source: Source, settings: Settings, engine: BlockEngine, at: Sequence[float]) -> Box:
    """Return the box of a preview around a voxel (z, y, x), inside the volume.

    Raises
    ------
    GeometryError
        If the voxel does not lie in the volume.
    """
    voxel = [round(float(v)) for v in at]
    if not source.whole.contains_index(voxel):
        raise GeometryError(
            f"the cursor is outside {source.name} (voxel {', '.join(map(str, voxel))}); point at "
            "the image"
        )
    step = engine.layout(get_spec(settings.engine).check_options(settings.options)).step
    low, high = [], []
    for v, n, s in zip(voxel, source.shape, step, strict=True):
        edge = min(s if s > 1 else _EDGE, n)
        start = max(0, min(v - edge // 2, n - edge))
        low.append(start // _GRID * _GRID)
        high.append(min(low[-1] + edge, n))
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def preview(
    source: Source,
    settings: Settings,
    engine: BlockEngine,
    box: Box,
    monitor: Monitor,
    known: Survey | None = None,
) -> Preview:
    """Score a box of a volume.

    Parameters
    ----------
    source : Source
    settings : Settings
    engine : BlockEngine
    box : Box
        Is cut to the volume.
    monitor : Monitor
    known : Survey, optional
        From an earlier preview with the same normalisation; saves the survey.

    Raises
    ------
    GeometryError
        If the box lies outside the volume or is too large.
    ReadError, EngineError, CheckpointError
        If voxels can't be read, or the engine can't run.
    """
    box = box.clip(source.shape)
    if box.is_empty:
        raise GeometryError(f"the box lies outside {source.name}")
    if box.size > LARGEST_PREVIEW:
        raise GeometryError(
            f"a preview of {' x '.join(map(str, box.shape))} voxels is too large; draw a smaller "
            "box, or start a run"
        )
    options = get_spec(settings.engine).check_options(settings.options)
    layout = engine.layout(options)
    if layout.slabs:  # a preview shows what is found, not upstream's seams
        layout = engine.layout({**options, "stitching": "cores"})
        options = {**options, "stitching": "cores"}
    found = known or survey(source, source.whole, settings.normalisation, monitor)
    settings = replace(
        settings, options=MappingProxyType(options), region=box, skip_background=False
    )
    plan = Plan(source, settings, layout, found, {}, blocks_of(box, layout))
    return _scored(plan, engine, monitor)


def _scored(plan: Plan, engine: BlockEngine, monitor: Monitor) -> Preview:
    began = time.perf_counter()
    work = BlockWork(plan, engine)
    found: NDArray[Any] = np.zeros(plan.region.shape, np.uint8)
    for number, block in enumerate(plan.blocks):
        monitor.step(number, len(plan.blocks), "preview")
        voxels = work.read(block)
        if voxels is not None:
            place = block.core.relative_to(plan.region).slices
            found[place] = work.stored(work.score(block, voxels, monitor))
    return Preview(plan.region, found, plan.survey, time.perf_counter() - began)
