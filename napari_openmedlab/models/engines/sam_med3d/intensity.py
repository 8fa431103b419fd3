"""Intensities as SAM-Med3D saw them in training: CT clamped, z-scores of what lies above zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["CT_LIMITS", "normalise"]

CT_LIMITS = (-1000.0, 1000.0)  # HU; training clips CT to these before everything else


def normalise(
    raw: NDArray[np.float32], inside: tuple[slice, ...] | None = None
) -> tuple[NDArray[np.float32], str]:
    """Return z-scores of a raw crop, and a sentence where the usual statistics don't exist.

    Mean and standard deviation (n - 1) are those of the voxels above 0; both apply to all
    voxels, those beyond the scan (0) included. Without enough voxels above 0, or if those are
    all the same, all voxels count; a constant crop becomes zeros.

    Parameters
    ----------
    raw : ndarray of float32
        May hold NaN or infinity, which count as 0.
    inside : tuple of slice, optional
        The part of the crop that lies in the scan; by default all of it.
    """
    if not np.isfinite(raw).all():
        raw = np.nan_to_num(raw, nan=0.0, posinf=0.0, neginf=0.0)
    chosen = raw[raw > 0]
    dark = chosen.size < 2
    note = ""
    if dark or float(chosen.max()) == float(chosen.min()):
        chosen = raw.ravel()
        scan = raw if inside is None else raw[inside]
        note = _note(dark, scan.size == 0 or float(scan.max()) == float(scan.min()))
    mean = float(chosen.mean(dtype=np.float64))
    spread = float(chosen.std(dtype=np.float64, ddof=1))
    if spread == 0.0:
        return np.zeros_like(raw), note
    return ((raw - np.float32(mean)) / np.float32(spread)).astype(np.float32), note


def _note(dark: bool, constant: bool) -> str:
    if constant:
        return (
            "The image is constant around the prompt: with one single grey level the answer "
            "means nothing."
        )
    if dark:
        return (
            "Nothing around the prompt has an intensity above 0, as SAM-Med3D was trained with; "
            "all voxels there were used instead."
        )
    return (
        "All voxels above 0 around the prompt have the same intensity; SAM-Med3D was trained on "
        "grey levels."
    )
