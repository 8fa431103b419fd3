"""The built-in axon filter as a block engine: no weights, a laptop will do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab import __version__
from napari_openmedlab.models.blocks import BlockContext, BlockLayout
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.axon_filter.filtering import (
    ALIGNMENT,
    BYTES_PER_VOXEL,
    HALO,
    FilterSettings,
    relative_sizes,
    score_block,
)

__all__ = ["ID", "AxonFilter"]

ID = "axon-filter"
_CHUNK = 128
_NOISES = 8.0  # score 0.5 is then five standard deviations of what smoothing leaves of the noise


class AxonFilter:
    """Scores bright thin tubes against their background; see :mod:`.filtering`."""

    def layout(self, options: Mapping[str, Any]) -> BlockLayout:
        """Return cores as large as the option says, with a halo of 24."""
        core = max(1, int(options["block"]) // ALIGNMENT) * ALIGNMENT
        halves = 2 if core > _CHUNK and core % (2 * ALIGNMENT) == 0 else 1
        return BlockLayout(
            core=(core,) * 3,
            halo=(HALO,) * 3,
            bytes=BYTES_PER_VOXEL * (core + 2 * HALO) ** 3,
            chunk=(core // halves,) * 3,
            parallel=True,
        )

    def score(
        self,
        block: NDArray[Any],
        context: BlockContext,
        options: Mapping[str, Any],
        monitor: Monitor,
    ) -> NDArray[np.float32]:
        """Return the filter's score, 0 to 1, for every voxel of a block."""
        monitor.step(0, 0, "filtering")
        intensity = context.intensity
        settings = FilterSettings(
            shape=options["tubes_only"],
            dark=intensity.dark if options["subtract_dark"] else 0.0,
            floor=options["floor"] or _NOISES * intensity.noise or 1.0,
            sizes=relative_sizes(context.spacing),
        )
        return score_block(block, settings)

    def provenance(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the version: nothing else decides."""
        return {"engine": ID, "version": __version__}

    def unload(self) -> None:
        """Do nothing: there is nothing to let go of."""
