"""Where in a patch of the query the surroundings of a template's point are found again.

Cosine similarity of features at up to three scales, summed. Upstream slides the template's 8^3
cube of 96 channels over the patch as a convolution; the same sums come from Fourier transforms,
in float32 on every device (upstream's float16 has ties that the first voxel wins). The patch is
transformed once for all points that are looked for in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from napari_openmedlab.models.engines.medlam.grid import PATCH

__all__ = ["CENTRE", "Peak", "correlate", "peak_of", "total_similarity"]

CENTRE = 31
"""Index in the map of 64 that stands for "no shift": the peak lies between 31 and 32."""

_APART = 4  # voxels: a second peak nearer than this is the same one
_CHUNK = 16  # channels transformed at a time on the CPU: the spectra of all take 150 MB


@dataclass(frozen=True)
class Peak:
    """The best place for a point.

    Attributes
    ----------
    shift : tuple of int
        Working voxels (z, y, x) from the patch's centre.
    similarity : float
        Mean cosine over the scales there, in [0, 1].
    margin : float
        How much less the best place further than 12 mm away has.
    at_edge : bool
        Whether the best place is the last one that was looked at.
    """

    shift: tuple[int, int, int]
    similarity: float
    margin: float
    at_edge: bool


def correlate(features: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Slide kernels over a feature map.

    Parameters
    ----------
    features : torch.Tensor
        (C, n, n, n), float32.
    kernels : torch.Tensor
        (P, C, k, k, k), float32, k even.

    Returns
    -------
    torch.Tensor
        (P, n + 1, n + 1, n + 1): the products' sum over channels and cube, divided by k^3, for
        every place of the cube with half of it beyond the map (zeros there).
    """
    channels, n = features.shape[0], features.shape[-1]
    count, k = kernels.shape[0], kernels.shape[-1]
    m = n + k  # 18, 36, 72: quick sizes, and nothing wraps around into what is kept
    spectra = torch.zeros((count, m, m, m // 2 + 1), dtype=torch.complex64, device=features.device)
    chunk = channels if features.device.type != "cpu" else _CHUNK
    for first in range(0, channels, chunk):
        part = slice(first, first + chunk)
        query = _spectrum(features[part], m)
        for number in range(count):
            template = _spectrum(kernels[number, part], m)
            spectra[number] += (query * template.conj()).sum(dim=0)
    found = torch.fft.irfftn(spectra, s=(m, m, m), dim=(1, 2, 3))
    found = torch.roll(found, (k // 2,) * 3, dims=(1, 2, 3))
    return found[:, : n + 1, : n + 1, : n + 1] / k**3


def _spectrum(values: torch.Tensor, size: int) -> torch.Tensor:
    """Transform (C, a, a, a) padded to ``size``; axis by axis, so that zeros cost nothing."""
    found = torch.fft.rfft(values, n=size, dim=3)
    found = torch.fft.fft(found, n=size, dim=2)
    return torch.fft.fft(found, n=size, dim=1)


def total_similarity(maps: Sequence[torch.Tensor], kernels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return 1 + the sum over scales of similarity maps, each brought to 64^3.

    Parameters
    ----------
    maps : sequence of torch.Tensor
        (C, n, n, n) of one patch, one a scale, as from :func:`.patches.feature_maps`.
    kernels : sequence of torch.Tensor
        (P, C, k, k, k) of the points looked for in it, one a scale.

    Returns
    -------
    torch.Tensor
        (P, 64, 64, 64), float32.
    """
    size = (PATCH,) * 3
    total = torch.ones((kernels[0].shape[0], *size), device=maps[0].device)
    for features, kernel in zip(maps, kernels, strict=True):
        found = correlate(features, kernel.to(features.device))[None]
        total += functional.interpolate(found, size=size, mode="trilinear", align_corners=False)[0]
    return total


def peak_of(total: torch.Tensor, scales: int) -> Peak:
    """Return the best place in a map (64, 64, 64) of :func:`total_similarity`.

    Of several that are equally good the first in array order, as upstream.
    """
    values = total.cpu().numpy()
    place = np.unravel_index(int(values.argmax()), values.shape)
    best = float(values[place])
    others = values.copy()
    others[tuple(slice(max(0, int(p) - _APART), int(p) + _APART + 1) for p in place)] = -np.inf
    z, y, x = (int(p) - CENTRE for p in place)
    return Peak(
        (z, y, x),
        (best - 1.0) / scales,
        (best - float(others.max())) / scales,
        any(p in (0, PATCH - 1) for p in place),
    )
