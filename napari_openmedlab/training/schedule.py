"""The learning rate over a run: polynomial, in steps, as published."""

from __future__ import annotations

from napari_openmedlab.training.settings import LoopSettings

__all__ = ["factor"]


def factor(iteration: int, settings: LoopSettings) -> float:
    """Return what learning rates are multiplied with in an iteration, counted from 0.

    ``(1 - step / steps) ** power``: 24 steps and 0.8 as published, where 6000 iterations make a
    step last 250.
    """
    steps = min(settings.rate_steps, settings.iterations)
    step = iteration * steps // settings.iterations
    return float((1 - step / steps) ** settings.rate_power)
