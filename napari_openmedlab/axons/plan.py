"""What a run will do: which blocks, which grey values, how long, how much memory and disk."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import psutil

from napari_openmedlab.axons.source import Source
from napari_openmedlab.axons.survey import Background, Survey, survey
from napari_openmedlab.errors import EngineError, GeometryError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.blocks import (
    BlockContext,
    BlockEngine,
    BlockLayout,
    Intensity,
    Normalisation,
)
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.contract import Monitor

__all__ = ["IN_FLIGHT", "Block", "Plan", "Settings", "blocks_of", "make_plan", "statistics_of"]

IN_FLIGHT = 2
"""Blocks that are read ahead of the one being computed."""

_STORING = 3e-8  # seconds a voxel for writing it and the coarser levels, measured
_OVERHEAD = 300 * 2**20  # the program itself
_PYRAMID = 8 / 7


@dataclass(frozen=True)
class Settings:
    """What the user chose.

    Attributes
    ----------
    engine : str
        Id in the catalogue; its task is ``"blocks"``.
    options : mapping
        The engine's options; missing ones take their default.
    region : Box or None
        Voxels of the source; ``None``: all.
    threshold : float
        Probability from which a voxel is axon, above 0 and at most 1. No part of what is
        computed: labels are made from the stored probability at any time.
    normalisation : {"volume", "block", "plane"}
        See :class:`.Intensity`.
    skip_background : bool
        Leave out blocks in which the coarse level shows nothing.
    workers : int
        Blocks scored at once, by engines that can; 0: one for each core, as far as half of the
        free memory goes. No part of what is computed.
    """

    engine: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    region: Box | None = None
    threshold: float = 0.5
    normalisation: Normalisation = "volume"
    skip_background: bool = True
    workers: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold <= 1.0:
            raise EngineError(f"a threshold lies above 0 and at most at 1, got {self.threshold}")


@dataclass(frozen=True)
class Block:
    """One piece of the work.

    Attributes
    ----------
    number : int
    core : Box
        Voxels of the source that it decides.
    read : Box
        Voxels that are looked at; may reach beyond the volume.
    """

    number: int
    core: Box
    read: Box

    @property
    def keep(self) -> tuple[slice, slice, slice]:
        """The core in an array of the shape of ``read``."""
        return self.core.relative_to(self.read).slices


@dataclass(frozen=True, eq=False)
class Plan:
    """A run before it starts.

    Attributes
    ----------
    source : Source
    settings : Settings
        With the engine's options filled in, and a region.
    layout : BlockLayout
    survey : Survey
    provenance : mapping
        What the engine says decides its scores.
    blocks : tuple of Block
        In the order in which they are computed.
    skipped : frozenset of int
        Numbers of blocks that are background, as far as the coarse level tells.
    seconds : float
        Estimate for all blocks; NaN if nothing was timed.
    workers : int
        Blocks that are scored at once.
    memory : int
        Estimate of the largest memory in bytes, whatever the volume's size.
    disk : int
        Bytes the results take at most; compressed they are usually far smaller.
    """

    source: Source
    settings: Settings
    layout: BlockLayout
    survey: Survey
    provenance: Mapping[str, Any]
    blocks: tuple[Block, ...]
    skipped: frozenset[int] = frozenset()
    seconds: float = float("nan")
    workers: int = 1
    memory: int = 0
    disk: int = 0

    @property
    def region(self) -> Box:
        """Voxels of the source that are labelled."""
        assert self.settings.region is not None
        return self.settings.region

    @property
    def chunks(self) -> tuple[int, int, int]:
        """Chunks of the result."""
        wanted = self.layout.chunk or self.layout.core
        z, y, x = (min(c, n) for c, n in zip(wanted, self.region.shape, strict=True))
        return z, y, x

    @property
    def context(self) -> BlockContext:
        """What the engine is told of the volume, for every block but those of mode "plane"."""
        return BlockContext(self.survey.intensity, self.source.spacing or (1.0, 1.0, 1.0))

    def free_disk(self, folder: Path) -> int:
        """Return the free bytes where a folder is, or will be."""
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        return shutil.disk_usage(there).free


def blocks_of(region: Box, layout: BlockLayout) -> tuple[Block, ...]:
    """Return the blocks of a region, x fastest; see :class:`.BlockLayout`."""
    if layout.slabs:
        return _slabs(region, layout)
    cores = [
        [(a, min(a + core, stop)) for a in range(start, stop, core)]
        for start, stop, core in zip(region.start, region.stop, layout.core, strict=True)
    ]
    blocks = []
    for number, spans in enumerate(itertools.product(*cores)):
        (a, p), (b, q), (c, r) = spans
        core = Box((a, b, c), (p, q, r))
        size = [-(-n // s) * s for n, s in zip(core.shape, layout.step, strict=True)]
        reach = [n - m for n, m in zip(size, core.shape, strict=True)]
        if layout.anchored:
            z, y, x = (v + more for v, more in zip(core.stop, reach, strict=True))
            whole = Box(core.start, (z, y, x))
        else:
            z, y, x = (v - more for v, more in zip(core.start, reach, strict=True))
            whole = Box((z, y, x), core.stop)
        blocks.append(Block(number, core, whole.grow(layout.halo)))
    return tuple(blocks)


def _slabs(region: Box, layout: BlockLayout) -> tuple[Block, ...]:
    """Return upstream's blocks: z slabs of the whole region, the last flush with its end."""
    thick = layout.core[0]
    if min(region.shape) < thick:
        raise GeometryError(
            f"upstream's stitching needs a region of at least {thick} voxels along every axis, "
            f"this one has {' x '.join(map(str, region.shape))}; use the default stitching"
        )
    (z0, y0, x0), (z1, y1, x1) = region.start, region.stop
    starts = [*range(z0, z1 - thick, thick), z1 - thick]
    return tuple(
        Block(n, core, core.grow(layout.halo))
        for n, core in enumerate(Box((z, y0, x0), (z + thick, y1, x1)) for z in starts)
    )


def make_plan(
    source: Source,
    settings: Settings,
    engine: BlockEngine,
    monitor: Monitor,
    *,
    timed: bool = True,
    intensity: Intensity | None = None,
) -> Plan:
    """Look at the volume and plan a run.

    Parameters
    ----------
    source : Source
    settings : Settings
    engine : BlockEngine
        From ``load_engine(settings.engine)``.
    monitor : Monitor
    timed : bool
        Score one small block from the region's middle to estimate the time.
    intensity : Intensity, optional
        Instead of what the survey finds.

    Raises
    ------
    EngineError
        For options that don't fit, or an engine that scores no blocks.
    GeometryError
        If the region is empty or reaches beyond the volume.
    ReadError
        If voxels can't be read.
    """
    spec = get_spec(settings.engine)
    if spec.task != "blocks":
        raise EngineError(f"{spec.title} does not score blocks of a volume", engine=spec.id)
    options = spec.check_options(settings.options)
    region = _checked(settings.region or source.whole, source)
    provenance = dict(engine.provenance(options))
    if options.get("checkpoint") == "":
        # The model imported last, now: another one may come while the run goes on.
        options["checkpoint"] = provenance.get("model", "")
    settings = replace(settings, options=MappingProxyType(options), region=region)
    layout = engine.layout(options)
    # Of the whole volume, so that previews and runs of any region agree.
    found = survey(source, source.whole, settings.normalisation, monitor)
    if intensity is not None:
        found = replace(found, intensity=intensity)
    blocks = blocks_of(region, layout)
    count = _workers(layout, settings.workers, _share(source, layout, blocks))
    plan = Plan(
        source, settings, layout, found, provenance, blocks,
        _skipped(source, settings, layout, found, blocks),
        workers=count,
        memory=_memory(source, blocks, count * _share(source, layout, blocks)),
        disk=int(2 * region.size * _PYRAMID) + 2**20,
    )  # fmt: skip
    return replace(plan, seconds=_seconds(plan, engine, monitor)) if timed else plan


def statistics_of(source: Source, z: int) -> tuple[float, float]:
    """Return mean and standard deviation of a whole slice: upstream's normalisation."""
    (rows, columns) = source.shape[1:]
    plane = source.read(Box((z, 0, 0), (z + 1, rows, columns)))
    return float(plane.mean(dtype=np.float64)), float(plane.std(dtype=np.float64))


def _checked(region: Box, source: Source) -> Box:
    if region.is_empty or not source.whole.contains(region):
        shape = ", ".join(
            f"{axis} 0 to {n - 1}" for axis, n in zip("zyx", source.shape, strict=True)
        )
        asked = ", ".join(
            f"{axis} {a} to {b - 1}"
            for axis, a, b in zip("zyx", region.start, region.stop, strict=True)
        )
        raise GeometryError(f"the region {asked} does not lie in {source.name}: {shape}")
    return region


def _skipped(
    source: Source,
    settings: Settings,
    layout: BlockLayout,
    found: Survey,
    blocks: tuple[Block, ...],
) -> frozenset[int]:
    if not settings.skip_background or layout.slabs:
        return frozenset()
    background = Background(source, found)
    if not background.ahead:
        return frozenset()
    return frozenset(b.number for b in blocks if background.is_empty(b.read))


def _share(source: Source, layout: BlockLayout, blocks: tuple[Block, ...]) -> int:
    """Return the bytes one block takes while it is scored."""
    largest = max(block.read.size for block in blocks)
    full = prod(c + 2 * h for c, h in zip(layout.core, layout.halo, strict=True))
    part = layout.bytes if layout.slabs else layout.bytes * min(1.0, largest / full)
    return int(part + largest * (source.dtype.itemsize + 4))


def _workers(layout: BlockLayout, wanted: int, share: int) -> int:
    if not layout.parallel:
        return 1
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    room = psutil.virtual_memory().available // 2 // max(share, 1)
    return wanted or max(1, min(cores, room))


def _memory(source: Source, blocks: tuple[Block, ...], scoring: int) -> int:
    largest = max(block.read.size for block in blocks)
    core = max(block.core.size for block in blocks)
    waiting = (IN_FLIGHT + 1) * largest * source.dtype.itemsize + 3 * core
    return int(_OVERHEAD + waiting + scoring)


def _windows(layout: BlockLayout) -> bool:
    """Whether an engine's work is counted in windows of a network; else in voxels."""
    return layout.slabs or max(layout.step) > 1


def _units(block: Block, layout: BlockLayout) -> float:
    """Return how much work a block is."""
    if not _windows(layout):
        return float(block.read.size)
    if layout.slabs:  # upstream's, with a window more at the end of every row and column
        (_, rows, columns), (_, y, x) = block.core.shape, layout.core
        return float((rows // y + 1) * (columns // x + 1))
    more = 1 if layout.anchored else 0  # windows overlap: one begins before the core
    sizes = zip(block.core.shape, layout.step, strict=True)
    return float(prod(-(-n // s) + more for n, s in sizes))


def _trial(middle: Block, layout: BlockLayout) -> Block:
    """Return a block to be timed: one window of a network, else a block as it comes."""
    if not _windows(layout):
        return middle
    edge = layout.core if layout.slabs else layout.step
    spans = zip(middle.core.start, middle.core.stop, edge, strict=True)
    core = Box((0, 0, 0), edge).shift([(a + b - n) // 2 for a, b, n in spans])
    return Block(0, core, core.grow(layout.halo))


def _seconds(plan: Plan, engine: BlockEngine, monitor: Monitor) -> float:
    """Time a block twice, the first to warm up, so many at once as in the run; scale up."""
    todo = [b for b in plan.blocks if b.number not in plan.skipped]
    if not todo:
        return 0.0
    monitor.step(0, 0, "timing a block")
    trial = _trial(todo[len(todo) // 2], plan.layout)
    began = time.perf_counter()
    voxels = plan.source.read(trial.read)
    reading = time.perf_counter() - began
    at_once = min(plan.workers, len(todo))

    def score(_: int) -> None:
        engine.score(voxels, plan.context, plan.settings.options, monitor)

    with ThreadPoolExecutor(at_once) as pool:
        for _ in range(2):
            began = time.perf_counter()
            if at_once > 1:
                list(pool.map(score, range(at_once)))
            else:
                score(0)  # in this thread, as in the run
            scoring = time.perf_counter() - began
            if scoring > 10:
                break
    each = scoring / at_once + reading / 2  # one thread reads meanwhile
    units = sum(_units(b, plan.layout) for b in todo) / _units(trial, plan.layout)
    return each * units + _STORING * sum(b.core.size for b in todo)
