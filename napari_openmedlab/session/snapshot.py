"""A session at one moment as frozen parts, which another thread can write to a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.session.history import Step
from napari_openmedlab.session.objects import OverlapRule, SessionState

__all__ = ["Snapshot"]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything a session file holds; taken in microseconds, shares all large parts.

    Attributes
    ----------
    volume : Volume
    start_slices : mapping of int to bytes
        Compressed label slices before the first step.
    start_state : SessionState
    past, future : tuple of Step
        Oldest first; of ``future`` the next to redo comes last.
    dropped : int
        Steps given up before ``past`` begins.
    state : SessionState
        As it is now.
    overlap : OverlapRule
    """

    volume: Volume
    start_slices: Mapping[int, bytes]
    start_state: SessionState
    past: tuple[Step, ...]
    future: tuple[Step, ...]
    dropped: int
    state: SessionState
    overlap: OverlapRule
