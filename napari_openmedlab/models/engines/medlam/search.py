"""The two stages on one scan: jumps from the starts, then a look around every place jumped to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from napari_openmedlab.models.engines.medlam.grid import HALF
from napari_openmedlab.models.engines.medlam.jumps import Jump, jump
from napari_openmedlab.models.engines.medlam.patches import Steps, embeddings, feature_maps
from napari_openmedlab.models.engines.medlam.preparing import AIR, Prepared
from napari_openmedlab.models.engines.medlam.similarity import Peak, peak_of, total_similarity
from napari_openmedlab.models.engines.medlam.templates import Known
from napari_openmedlab.models.engines.weights import Loaded

__all__ = ["Located", "Query", "look_at", "refine"]

_CORE = 4  # voxels on each side of a point that are compared
_TOGETHER = 4  # points whose maps are held at a time


@dataclass(frozen=True, eq=False)
class Query:
    """A scan whose start patches were embedded, once for all structures.

    Attributes
    ----------
    prepared : Prepared
    starts : ndarray of int, shape (S, 3)
        Padded voxels.
    embeddings : ndarray of float32, shape (S, 3)
    """

    prepared: Prepared
    starts: NDArray[np.int64]
    embeddings: NDArray[np.float32]

    def jump_to(self, known: Known) -> Jump:
        """Return where a structure's points should be."""
        padded = self.prepared.grid.padded_shape
        return jump(known.positions, self.embeddings, self.starts, padded)


@dataclass(frozen=True, eq=False)
class Located:
    """A structure's points after both stages.

    Attributes
    ----------
    jump : Jump
    peaks : tuple of Peak
        One a point.
    voxels : ndarray of int64, shape (P, 3)
        Working voxels (not padded), may lie beyond the scan.
    in_air : float
        Share of the points around which the scan is nothing but air.
    """

    jump: Jump
    peaks: tuple[Peak, ...]
    voxels: NDArray[np.int64]
    in_air: float


def look_at(loaded: Loaded, prepared: Prepared, starts: NDArray[np.int64], steps: Steps) -> Query:
    """Embed the patches around the starts; the decoder does not run."""
    steps.text = "looking where in the body the scan lies"
    return Query(prepared, starts, embeddings(loaded, prepared, starts, steps))


def refine(
    loaded: Loaded,
    query: Query,
    jumps: Mapping[str, Jump],
    known: Mapping[str, Known],
    scales: Sequence[int],
    steps: Steps,
) -> dict[str, Located]:
    """Look around every place jumped to; points on one voxel share the patch's features."""
    owners = [(name, point) for name, each in jumps.items() for point in range(len(each.clamped))]
    places = np.concatenate([each.clamped for each in jumps.values()])
    voxels, which = np.unique(places, axis=0, return_inverse=True)
    peaks: dict[tuple[str, int], Peak] = {}
    steps.text, steps.total = "looking around the places found", steps.done + len(voxels)
    maps = feature_maps(loaded, query.prepared, voxels, scales, steps)
    for number, features in enumerate(maps):
        here = [owners[each] for each in np.flatnonzero(which.ravel() == number)]
        peaks.update(zip(here, _peaks(features, here, known), strict=True))
    found = {}
    for name, each in jumps.items():
        own = tuple(peaks[name, point] for point in range(len(each.clamped)))
        padded = each.clamped + np.array([peak.shift for peak in own])
        air = np.mean([_is_air(query.prepared, voxel) for voxel in padded])
        found[name] = Located(each, own, padded - HALF, float(air))
    return found


def _peaks(
    features: Sequence[torch.Tensor],
    owners: Sequence[tuple[str, int]],
    known: Mapping[str, Known],
) -> list[Peak]:
    """Return the best place of each point in one patch; a few points at a time."""
    found = []
    for first in range(0, len(owners), _TOGETHER):
        part = owners[first : first + _TOGETHER]
        kernels = [
            torch.from_numpy(np.stack([known[name].kernels[number][point] for name, point in part]))
            for number in range(len(features))
        ]
        with torch.inference_mode():
            totals = total_similarity(features, kernels)
        found += [peak_of(total, len(features)) for total in totals]
    return found


def _is_air(prepared: Prepared, padded: NDArray[np.int64]) -> bool:
    low, high = np.maximum(padded - _CORE, 0), np.maximum(padded + _CORE, 0)
    core = prepared.padded[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return core.size == 0 or float(core.max()) < AIR
