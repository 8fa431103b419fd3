"""What a training program tells the program that started it: events as lines of JSON in a file.

A file, not a pipe: a viewer can look when it likes, needs no thread that waits, and after a crash
of either program what was told is still there. Importing this module imports no torch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from napari_openmedlab.training.events import Event, Note, Paused, Saved, Step, Validated

__all__ = ["EVENTS", "Ended", "EventReader", "EventWriter"]

EVENTS = "events.jsonl"

_STEP_SECONDS = 0.1  # at most so often a step is written


@dataclass(frozen=True)
class Ended:
    """The last event of a training program.

    Attributes
    ----------
    how : {"finished", "stopped", "failed"}
        Stopped and failed runs can be gone on with.
    text : str
        A sentence for the user.
    model : str
        Name of the model in the store, if finished.
    """

    how: Literal["finished", "stopped", "failed"]
    text: str
    model: str = ""


class EventWriter:
    """Appends events to a file.

    Parameters
    ----------
    folder : Path
        Of the run; the file is begun anew.
    """

    def __init__(self, folder: Path) -> None:
        self._file = (folder / EVENTS).open("w", encoding="utf-8")
        self._last = -math.inf

    def __call__(self, event: Event | Ended) -> None:
        """Write an event; of steps in quick succession only some."""
        now = time.monotonic()
        if isinstance(event, Step):
            if now - self._last < _STEP_SECONDS and event.iteration < event.total:
                return
            self._last = now
        self._file.write(f"{json.dumps(_plain(event))}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class EventReader:
    """Reads the events that came since the last look.

    Parameters
    ----------
    folder : Path
        Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS
        self._place = 0

    def read(self) -> list[Event | Ended]:
        """Return new events; half a line is left for the next time."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._place)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._place += len(whole)
        found = (_event(line) for line in whole.splitlines())
        return [event for event in found if event is not None]


def _plain(event: Event | Ended) -> dict[str, Any]:
    fields = dict(vars(event))
    if isinstance(event, Saved):
        fields["path"] = str(event.path)
    if isinstance(event, Validated):
        fields["dice"] = {k: None if math.isnan(v) else v for k, v in event.dice.items()}
        fields["mean"] = None if math.isnan(event.mean) else event.mean
    return {"event": type(event).__name__, **fields}


def _event(line: bytes) -> Event | Ended | None:
    """Return an event, or ``None`` for a line that is none."""
    kinds: Mapping[str, Any] = {
        kind.__name__: kind for kind in (Step, Validated, Saved, Paused, Note, Ended)
    }
    try:
        found = json.loads(line)
        kind = kinds[found.pop("event")]
        if kind is Saved:
            found["path"] = Path(found["path"])
        if kind is Validated:
            found["dice"] = {k: math.nan if v is None else v for k, v in found["dice"].items()}
            found["mean"] = math.nan if found["mean"] is None else found["mean"]
        made: Event | Ended = kind(**found)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return made
