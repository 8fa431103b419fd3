"""What the Train panel says of a run in numbers."""

from __future__ import annotations

from napari_openmedlab.training.events import Step

__all__ = ["duration", "progress_words"]


def duration(seconds: float) -> str:
    """Return a time in words.

    Examples
    --------
    >>> duration(4000)
    '67 min'
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def progress_words(step: Step) -> str:
    """Return how far a run is and how long it takes."""
    return (
        f"Iteration {step.iteration} of {step.total}, loss {step.loss:.3f}, "
        f"{step.seconds:.2f} s each; about {duration(step.left)} left"
    )
