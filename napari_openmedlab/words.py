"""Numbers in words for people."""

from __future__ import annotations

__all__ = ["time_text"]


def time_text(seconds: float) -> str:
    """Return a duration in the unit that suits it.

    Examples
    --------
    >>> time_text(200.0)
    '3 min'
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
