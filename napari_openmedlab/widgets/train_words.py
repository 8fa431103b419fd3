"""What the Train panel says of a run in numbers."""

from __future__ import annotations

from napari_openmedlab.training.events import Step
from napari_openmedlab.words import time_text

__all__ = ["progress_words"]


def progress_words(step: Step) -> str:
    """Return how far a run is and how long it takes."""
    return (
        f"Iteration {step.iteration} of {step.total}, loss {step.loss:.3f}, "
        f"{step.seconds:.2f} s each; about {time_text(step.left)} left"
    )
