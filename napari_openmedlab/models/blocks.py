"""What travels to an engine that scores a volume larger than memory, block by block.

A block engine never sees the volume: whoever runs it (``napari_openmedlab.axons``) cuts cores out
of the volume, each with a halo around it, and keeps the core of what comes back. A score must
therefore depend on the block and its :class:`BlockContext` alone, so that a block computed again
after a crash, or on another machine, is bit-identical.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import EngineError

__all__ = ["BlockContext", "BlockEngine", "BlockLayout", "Intensity", "Normalisation"]

Normalisation = Literal["volume", "block", "plane"]


@dataclass(frozen=True)
class Intensity:
    """How grey values of one volume relate to what an engine sees; chosen once for a run.

    Attributes
    ----------
    mode : {"volume", "block", "plane"}
        ``"volume"``: ``centre`` and ``spread`` below hold for every block, so neighbours agree.
        ``"block"``: mean and standard deviation of each block with its halo, as in training.
        ``"plane"``: as upstream, ``centre`` and ``spread`` come from one slice (the runner puts
        them in for each block).
    centre, spread : float
        Grey values; the engine sees ``(value - centre) / spread``. Spread is above 0.
    dark : float
        Grey level of empty background (camera offset), at most ``centre``.
    low, high : float
        Grey values between which a viewer shows the volume.
    noise : float
        Standard deviation from voxel to voxel, in grey values; 0 where it is not known.
    """

    mode: Normalisation = "volume"
    centre: float = 0.0
    spread: float = 1.0
    dark: float = 0.0
    low: float = 0.0
    high: float = 1.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        values = (self.centre, self.spread, self.dark, self.low, self.high, self.noise)
        if not np.isfinite(values).all() or self.spread <= 0:
            raise EngineError(
                f"grey values can't be normalised with centre {self.centre} and spread "
                f"{self.spread}: both must be numbers, the spread above 0"
            )

    def apply(self, block: NDArray[Any]) -> NDArray[np.float32]:
        """Return the block as float32, centred and scaled.

        Parameters
        ----------
        block : ndarray of any real dtype
            Grey values.
        """
        values = block.astype(np.float32)
        centre, spread = self.centre, self.spread
        if self.mode == "block":
            centre, spread = float(values.mean()), float(values.std())
        values -= np.float32(centre)
        values /= np.float32(spread + 1e-8)
        return values

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Intensity:
        """Return what :meth:`to_json` wrote."""
        names = ("centre", "spread", "dark", "low", "high", "noise")
        numbers = {name: float(stored[name]) for name in names}
        return cls(cast("Normalisation", str(stored["mode"])), **numbers)


@dataclass(frozen=True)
class BlockLayout:
    """How an engine wants a volume cut up.

    Attributes
    ----------
    core : tuple of int
        Voxels (z, y, x) of a core at most; cores tile the region from its first voxel on.
    halo : tuple of int
        Voxels (z, y, x) that a block reaches beyond its core on each side. Beyond the volume
        they repeat its edge.
    step : tuple of int
        A core that is cut off by the region's end is scored as part of a block whose size less
        its halo is a multiple of this. The block then reaches back into the volume.
    bytes : int
        Memory one full block takes while it is scored, its own voxels aside; 0 if not known.
    chunk : tuple of int
        Chunks (z, y, x) of the output; they divide the core. Empty: the core itself.
    slabs : bool
        Cut up as upstream does it: ``core[0]`` slices of the whole region at a time, the last
        slab moved back to the region's end, zeros above the first slice and below the last.
    anchored : bool
        A short core reaches forward instead of back, so that the windows of all blocks lie on
        one lattice.
    parallel : bool
        Whether several blocks may be scored at once, in threads: the engine then keeps nothing
        between blocks.
    """

    core: tuple[int, int, int]
    halo: tuple[int, int, int]
    step: tuple[int, int, int] = (1, 1, 1)
    bytes: int = 0
    chunk: tuple[int, ...] = ()
    slabs: bool = False
    anchored: bool = False
    parallel: bool = False


@dataclass(frozen=True)
class BlockContext:
    """What an engine knows of the volume around a block.

    Attributes
    ----------
    intensity : Intensity
    spacing : tuple of float
        Voxel size (z, y, x) in um; (1, 1, 1) where it is not known.
    """

    intensity: Intensity
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)


@runtime_checkable
class BlockEngine(Protocol):
    """An engine that scores blocks of a volume. Made without arguments; cheap to make."""

    def layout(self, options: Mapping[str, Any]) -> BlockLayout:
        """Return how the volume is to be cut up for these (checked) options."""

    def score(
        self,
        block: NDArray[Any],
        context: BlockContext,
        options: Mapping[str, Any],
        monitor: Any,
    ) -> NDArray[np.float32]:
        """Return the probability of the structure, 0 to 1, for every voxel of a block.

        Parameters
        ----------
        block : ndarray of any real dtype, shape (z, y, x)
            Grey values of a core with its halo. Never written to.
        context : BlockContext
        options : mapping
            All options of the catalogue's entry.
        monitor : Monitor
            Hears of steps inside the block; a cancel acts at the next one.

        Returns
        -------
        ndarray of float32, the block's shape
            What lies in the halo is thrown away. 0.5 is the engine's own threshold.
        """

    def provenance(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what decides the scores besides block and context, as plain JSON values.

        Engine, version, hash of the weights, device, precision. A resumed run must agree in it.
        """

    def unload(self) -> None:
        """Release networks and device memory."""
