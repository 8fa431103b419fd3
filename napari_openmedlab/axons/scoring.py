"""One block: from voxels to stored probability. The same here, in a preview and on a cluster."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.axons.plan import Block, Plan, statistics_of
from napari_openmedlab.axons.store import quantised
from napari_openmedlab.axons.survey import Background
from napari_openmedlab.errors import EngineError
from napari_openmedlab.models.blocks import BlockContext, BlockEngine
from napari_openmedlab.models.contract import Monitor

__all__ = ["BlockWork", "Voxels", "Within"]

Voxels = tuple[NDArray[np.generic], BlockContext]


class Within(Monitor):
    """What an engine reports of a block, as part of the whole run: the count stays the run's.

    Without a text it only carries the cancel inwards, and nothing out.
    """

    def __init__(self, outer: Monitor, done: int = 0, total: int = 0, text: str = "") -> None:
        super().__init__()
        self._outer, self._done, self._total, self._text = outer, done, total, text

    @property
    def cancelled(self) -> bool:
        """Whether the run was cancelled."""
        return self._outer.cancelled

    def cancel(self) -> None:
        """Cancel the run."""
        self._outer.cancel()

    def step(self, done: int = 0, total: int = 0, text: str = "") -> None:
        """Report the run's own count; raise after a cancel."""
        if not self._text:
            super().step()
            return
        words = f"{self._text}: {text}" if text else self._text
        self._outer.step(self._done, self._total, words)


class BlockWork:
    """Reads and scores the blocks of a plan. Reading and scoring may run in two threads.

    Parameters
    ----------
    plan : Plan
    engine : BlockEngine
    """

    def __init__(self, plan: Plan, engine: BlockEngine) -> None:
        self._plan = plan
        self._engine = engine
        self._planes: dict[int, tuple[float, float]] = {}
        self._background: Background | None = None
        if plan.settings.skip_background and not plan.layout.slabs:
            background = Background(plan.source, plan.survey)
            self._background = None if background.ahead else background

    def read(self, block: Block) -> Voxels | None:
        """Return a block's voxels and what the engine is told; ``None`` if it is background."""
        plan = self._plan
        if block.number in plan.skipped:
            return None
        voxels = plan.source.read(block.read, "zero" if plan.layout.slabs else "edge")
        if self._background is not None and self._background.looks_empty(voxels):
            return None
        return voxels, self._context(block)

    def score(self, block: Block, voxels: Voxels, monitor: Monitor) -> NDArray[np.float32]:
        """Return the probability of a block's core, float32.

        Raises
        ------
        EngineError
            If the engine returns another shape, or what is no number.
        """
        values, context = voxels
        score = self._engine.score(values, context, self._plan.settings.options, monitor)
        if score.shape != values.shape:
            raise EngineError(
                f"{self._plan.settings.engine} returned {score.shape} for {values.shape}"
            )
        core = score[block.keep]
        if not np.isfinite(core).all():
            raise EngineError(
                f"{self._plan.settings.engine} found values that are no numbers in block "
                f"{block.number}; its weights or the grey values there are broken"
            )
        return np.clip(core, 0.0, 1.0)

    def stored(self, score: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return a score as it is stored."""
        return quantised(score, truncate=self._plan.layout.slabs)

    def _context(self, block: Block) -> BlockContext:
        context = self._plan.context
        if context.intensity.mode != "plane":
            return context
        last = min(block.read.stop[0], self._plan.source.shape[0]) - 1
        if last not in self._planes:
            self._planes = {last: statistics_of(self._plan.source, last)}
        centre, spread = self._planes[last]
        return replace(
            context,
            intensity=replace(context.intensity, centre=centre, spread=max(spread, 1e-6)),
        )
