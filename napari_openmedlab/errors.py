"""Errors that speak to the user: what is wrong, in which file or layer, what to do.

Every error raised on purpose derives from :class:`OpenMedLabError`, so the command line and the
viewer can show its text as it stands; anything else is a defect and keeps its traceback. None
of them is a :class:`RuntimeError`: superqt's generator workers swallow those without a word.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "Cancelled",
    "CheckpointError",
    "DownloadError",
    "EngineError",
    "GeometryError",
    "OpenMedLabError",
    "PromptError",
    "ReadError",
    "SessionError",
    "SettingsError",
    "WriteError",
]


class OpenMedLabError(Exception):
    """Base of all errors whose text is written for the user."""


class GeometryError(OpenMedLabError, ValueError):
    """A grid, affine or box that can't be what it claims to be, or two grids that differ."""


class PromptError(OpenMedLabError, ValueError):
    """Prompts that are missing, contradictory or outside the volume."""


class _FileError(OpenMedLabError, OSError):
    """An error about one file; ``path`` names it."""

    def __init__(self, message: str, path: str | Path | None = None) -> None:
        super().__init__(message)
        self.path = None if path is None else Path(path)

    def __str__(self) -> str:
        return str(self.args[0])


class ReadError(_FileError):
    """A file or folder that can't be read as a volume, labels, prompts or session."""


class WriteError(_FileError):
    """A file that could not be written; the old file, if any, is untouched."""


class CheckpointError(_FileError):
    """A checkpoint that is missing, unsafe, damaged or of another network."""


class DownloadError(CheckpointError):
    """A file that could not be fetched; what came so far is kept where it can be of use."""


class SettingsError(OpenMedLabError, ValueError):
    """A preference that can't be what was asked for."""


class SessionError(OpenMedLabError, ValueError):
    """A command the session can't carry out in its present state (for example: object locked)."""


class EngineError(OpenMedLabError):
    """An engine failed while it ran.

    Parameters
    ----------
    message : str
        The sentence shown to the user.
    engine : str, optional
        Id of the engine in the catalogue.
    stage : str, optional
        What it was doing, for example ``"prepare"`` or ``"predict"``.
    """

    def __init__(self, message: str, *, engine: str = "", stage: str = "") -> None:
        super().__init__(message)
        self.engine = engine
        self.stage = stage


class Cancelled(OpenMedLabError):
    """The user cancelled; raised by ``Monitor.step`` at the first step after the cancel."""
