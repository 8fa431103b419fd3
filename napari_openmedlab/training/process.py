"""Starts a training program and follows it. No Qt; importing this module imports no torch.

Training takes a program of its own: it runs for hours with all cores or the whole graphics card,
while the viewer's one worker thread has prompts to answer, and its loop would fight with the
window for Python's interpreter lock. If the viewer crashes, the run stops by itself and can be
gone on with; if the run crashes, the viewer does not.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from napari_openmedlab.errors import EngineError, OpenMedLabError, WriteError
from napari_openmedlab.io.atomic import sentence
from napari_openmedlab.models.checkpoints.locks import locked
from napari_openmedlab.models.checkpoints.records import slug
from napari_openmedlab.training.child import CANCEL, END, GO_ON, PAUSE
from napari_openmedlab.training.events import Event
from napari_openmedlab.training.pretrain import look_pretraining
from napari_openmedlab.training.run import RunState, look
from napari_openmedlab.training.run_folder import LOCK, UNDER_WAY
from napari_openmedlab.training.wire import EVENTS, Ended, EventReader

__all__ = [
    "StoppedRun",
    "TrainingProcess",
    "forget_run",
    "new_run_folder",
    "runs_folder",
    "stopped_runs",
]

LOG = "log.txt"
_COMMAND = ("-m", "napari_openmedlab.cli.main", "train-run")
_LAST_LINES = 3


@dataclass(frozen=True, eq=False)
class StoppedRun:
    """A run that can be gone on with."""

    folder: Path
    state: RunState


def runs_folder() -> Path:
    """Return where runs of the Train panel lie: in the user's data folder."""
    from platformdirs import user_data_path

    return user_data_path("napari-openmedlab", appauthor=False) / "training"


def new_run_folder(name: str, parent: Path | None = None) -> Path:
    """Return a folder for a new run that is not there yet."""
    parent = parent or runs_folder()
    first = parent / f"{slug(name)}-{datetime.now():%Y%m%d-%H%M%S}"
    folder, number = first, 1
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


def stopped_runs(parent: Path | None = None) -> tuple[StoppedRun, ...]:
    """Return the runs that were begun and not finished, the newest first; damaged ones are not."""
    parent = parent or runs_folder()
    found = []
    try:
        folders = sorted(parent.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
    except OSError:
        return ()
    for folder in folders:
        try:
            state = look(folder) or look_pretraining(folder)
        except OpenMedLabError:
            continue
        if state is not None and not state.finished:
            found.append(StoppedRun(folder, state))
    return tuple(found)


def forget_run(folder: Path) -> None:
    """Delete a run that stopped, with all it has learnt.

    Raises
    ------
    WriteError
        If it is under way, or can't be deleted.
    """
    with locked(folder / LOCK, UNDER_WAY):
        pass  # nobody trains it
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise WriteError(f"{folder} can't be deleted: {error.strerror or error}", folder) from error


class TrainingProcess:
    """A run in a program of its own.

    Parameters
    ----------
    folder : Path
        From :func:`.run.begin`, or of a run that stopped.

    Raises
    ------
    WriteError
        If the folder can't be written to, or the run is under way in another program.
    EngineError
        If the program can't be started.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ended: Ended | None = None
        with locked(folder / LOCK, UNDER_WAY):
            pass  # nobody else trains it
        try:
            (folder / EVENTS).unlink(missing_ok=True)
            log = (folder / LOG).open("w", encoding="utf-8")
        except OSError as error:
            raise WriteError(sentence(error, folder), folder) from error
        self._reader = EventReader(folder)
        try:
            with log:
                self._process = subprocess.Popen(
                    [sys.executable, *_COMMAND, str(folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    text=True,
                    # Ctrl-C in a terminal is for the viewer; the run then ends with it.
                    start_new_session=True,
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                )
        except OSError as error:
            raise EngineError(f"training can't be started: {error}", stage="train") from error

    @property
    def running(self) -> bool:
        """Whether the program runs."""
        return self._process.poll() is None

    def events(self) -> list[Event | Ended]:
        """Return what came since the last look; the last of all events is :class:`.wire.Ended`."""
        gone = not self.running  # before the look, so that nothing is missed
        found = self._reader.read()
        for event in found:
            if isinstance(event, Ended):
                self._ended = event
        if gone and self._ended is None:
            self._ended = Ended("failed", self._last_words())
            found.append(self._ended)
        return found

    def pause(self) -> None:
        """Wait after the iteration at hand; the state is written."""
        self._send(PAUSE)

    def go_on(self) -> None:
        """End a pause."""
        self._send(GO_ON)

    def end_early(self) -> None:
        """Stop after the iteration at hand and make the model of what was learnt."""
        self._send(END)

    def cancel(self) -> None:
        """Stop after the iteration at hand; the run can be gone on with."""
        self._send(CANCEL)

    def close(self, seconds: float = 0.0) -> None:
        """Let the run stop by itself, and wait for that so long at most."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def _send(self, command: str) -> None:
        if self._process.stdin is not None:
            with suppress(OSError, ValueError):  # it ended just now
                self._process.stdin.write(f"{command}\n")
                self._process.stdin.flush()

    def _last_words(self) -> str:
        code = self._process.returncode
        try:
            lines = (self.folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        said = " ".join(line.strip() for line in lines[-_LAST_LINES:] if line.strip())
        why = f": {said}" if said else " (out of memory, or ended by the system)"
        return (
            f"the training program ended with code {code}{why}. What was kept last is in "
            f"{self.folder}; go on from there"
        )
