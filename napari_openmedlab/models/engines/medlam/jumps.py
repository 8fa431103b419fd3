"""The coarse stage: where in the body the query's patches lie, and the jump to each point.

The network gives every patch three numbers; R * tanh of their difference is the way in mm from one
patch to another. Several start patches are averaged before the tanh, as published; what each
start and each template says by itself tells how far they agree.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.models.engines.medlam.grid import HALF, SPACING_MM
from napari_openmedlab.models.engines.medlam.preparing import AIR, Prepared

__all__ = ["REACH_MM", "STARTS", "Jump", "jump", "start_voxels"]

REACH_MM = np.array([1500.0, 600.0, 600.0], dtype=np.float32)
"""The farthest the jump can go along (z, y, x)."""

STARTS = 10
_AROUND = 10  # voxels around the middle from which starts are drawn


@dataclass(frozen=True, eq=False)
class Jump:
    """Where the points of a structure should be, by the coarse stage. Axes (z, y, x).

    Attributes
    ----------
    offset_mm : ndarray of float32, shape (P, 3)
        From the mean start.
    place_mm : ndarray of float32, shape (P, 3)
        In the padded grid, 3 mm a voxel.
    voxel : ndarray of int64, shape (P, 3)
        Nearest padded voxel.
    clamped : ndarray of int64, shape (P, 3)
        The nearest one that lies in the scan.
    starts_mm : float
        Mean distance between what each start says and their mean.
    templates_mm : float or None
        The same for templates; ``None`` if there is only one.
    """

    offset_mm: NDArray[np.float32]
    place_mm: NDArray[np.float32]
    voxel: NDArray[np.int64]
    clamped: NDArray[np.int64]
    starts_mm: float
    templates_mm: float | None


def start_voxels(prepared: Prepared, seed: int, count: int = STARTS) -> NDArray[np.int64]:
    """Return padded voxels (count, 3) near the scan's middle, none of them air.

    Drawn as upstream draws them (evenly from the voxels within 30 mm of the middle along each
    axis, air left out), but by a generator of the scan's own: the same scan and seed give the
    same starts, whatever ran before. Where there is only air, the surroundings grow.
    """
    drawn = hashlib.blake2b(f"{prepared.digest}|{seed}".encode(), digest_size=8)
    rng = np.random.default_rng(int.from_bytes(drawn.digest(), "big"))
    middle = np.array(prepared.padded.shape) // 2
    reach = _AROUND
    while True:
        low = np.maximum(middle - reach, 0)
        part = prepared.padded[tuple(slice(a, m + reach) for a, m in zip(low, middle, strict=True))]
        places = np.argwhere(part >= AIR)
        if len(places):
            chosen: NDArray[np.int64] = low + places[rng.integers(len(places), size=count)]
            return chosen
        if reach > max(prepared.padded.shape):
            raise ValueError("there is nothing but air in the scan")
        reach *= 2


def jump(
    positions: NDArray[np.float32],
    query: NDArray[np.float32],
    starts: NDArray[np.int64],
    padded_shape: tuple[int, int, int],
) -> Jump:
    """Return where a structure's points should be.

    Parameters
    ----------
    positions : ndarray of float32, shape (K, P, 3)
        Embeddings of P points on K templates.
    query : ndarray of float32, shape (S, 3)
        Embeddings of the start patches.
    starts : ndarray of int, shape (S, 3)
        Their centres, padded voxels.
    padded_shape : tuple of int
    """
    wanted, here = positions.mean(axis=0), query.mean(axis=0)
    offset = REACH_MM * np.tanh(wanted - here)
    origin = (SPACING_MM * starts.mean(axis=0)).astype(np.float32)
    place = offset + origin
    voxel = np.rint(place / SPACING_MM).astype(np.int64)
    last = np.array(padded_shape) - HALF - 1
    by_start = REACH_MM * np.tanh(wanted - query[:, None]) + SPACING_MM * starts[:, None]
    by_template = REACH_MM * np.tanh(positions - here)
    return Jump(
        offset,
        place,
        voxel,
        np.clip(voxel, HALF, last),
        _spread(by_start),
        _spread(by_template) if len(positions) > 1 else None,
    )


def _spread(places: NDArray[np.floating]) -> float:
    """Return the mean distance (N, P, 3) from the mean over the first axis."""
    away = np.linalg.norm(places - places.mean(axis=0), axis=-1)
    return float(away.mean())
