"""The user's preferences (napari's Preferences dialog) as one frozen value."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["PLUGIN", "Preferences", "read_preferences"]

logger = logging.getLogger(__name__)

PLUGIN = "napari-openmedlab"


@dataclass(frozen=True)
class Preferences:
    """What the manifest's ``configurations`` offer; the defaults are the same there.

    Attributes
    ----------
    autosave : bool
        Whether every change is saved in the background.
    autosave_delay : float
        Seconds of quiet before an autosave is written.
    undo_megabytes : int
        Memory for undo, per image.
    engine : str
        Catalogue id of the engine a new session starts with.
    auto_run : bool
        Whether a new prompt starts a run at once.
    overlap : str
        ``"keep"`` or ``"overwrite"``: who keeps a voxel that two objects want.
    letters : bool
        Whether the letters R, L, A, P, S, I show at the edges of the view.
    """

    autosave: bool = True
    autosave_delay: float = 1.0
    undo_megabytes: int = 512
    engine: str = "built-in"
    auto_run: bool = True
    overlap: str = "keep"
    letters: bool = True


def read_preferences() -> Preferences:
    """Return the preferences in force; defaults where napari knows none for us.

    They are unknown when the plugin is not registered with napari (a script that imports the
    package from a checkout, a test).
    """
    from napari.settings import get_plugin_settings

    try:
        stored: Any = get_plugin_settings(PLUGIN)
    except (KeyError, ValueError, AttributeError) as error:
        logger.debug("no plugin settings, defaults are used: %s", error)
        return Preferences()
    groups = [getattr(stored, name, None) for name in ("session", "segment", "view")]
    defaults = asdict(Preferences())
    found = {
        name: type(default)(getattr(group, name))
        for name, default in defaults.items()
        for group in groups
        if group is not None and hasattr(group, name)
    }
    return Preferences(**found)
