"""A prepared run trained in a program of its own, steered by the one that started it.

Commands come line by line: ``pause``, ``go on``, ``end`` (make the model of what was learnt) and
``cancel``. When there is nobody left to send any, because the other program ended or crashed, the
run stops after the iteration at hand; its state is on the disk.
"""

from __future__ import annotations

import threading
import traceback
from pathlib import Path
from typing import IO

from napari_openmedlab.errors import Cancelled, OpenMedLabError
from napari_openmedlab.models.checkpoints.adopting import adopt
from napari_openmedlab.models.checkpoints.locks import locked
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.training.axon_plan import AXONS
from napari_openmedlab.training.axon_training import resume_axons
from napari_openmedlab.training.events import Control
from napari_openmedlab.training.pretrain import PLAN, resume_pretraining
from napari_openmedlab.training.run import Finished, resume
from napari_openmedlab.training.run_folder import LOCK, UNDER_WAY
from napari_openmedlab.training.wire import Ended, EventWriter

__all__ = ["CANCEL", "END", "GO_ON", "PAUSE", "serve"]

PAUSE, GO_ON, END, CANCEL = "pause", "go on", "end", "cancel"


def serve(folder: Path, commands: IO[str]) -> Ended:
    """Train the run in a folder and put its model into the store.

    Parameters
    ----------
    folder : Path
        From :func:`.run.begin` or :func:`.axon_plan.begin_axons`, or of a run that stopped;
        events are written into it.
    commands : text file
        Is read in a thread of its own.

    Returns
    -------
    Ended
        Also the last event written.

    Raises
    ------
    WriteError
        If the run is under way in another program, or the folder can't be written to.
    """
    with locked(folder / LOCK, UNDER_WAY, patience=1.0):
        return _serve(folder, commands)


def _serve(folder: Path, commands: IO[str]) -> Ended:
    monitor, control = Monitor(), Control()
    tell = EventWriter(folder)
    listener = threading.Thread(
        target=_obey, args=(commands, monitor, control), name="training-commands", daemon=True
    )
    listener.start()
    try:
        ended = _ended(folder, monitor, control, tell)
        tell(ended)
    finally:
        tell.close()
    return ended


def _ended(folder: Path, monitor: Monitor, control: Control, tell: EventWriter) -> Ended:
    try:
        if (folder / AXONS).exists():
            trained = resume_axons(folder, monitor=monitor, control=control, on_event=tell)
            return Ended("finished", trained.sentence, trained.record.name)
        go = resume_pretraining if (folder / PLAN).exists() else resume
        done = go(folder, monitor=monitor, control=control, on_event=tell)
        name = adopt(done.path, done.card.title).name
        return Ended("finished", _sentence(done, name), name)
    except Cancelled as error:
        return Ended("stopped", str(error))
    except OpenMedLabError as error:
        return Ended("failed", str(error))
    except Exception as error:  # noqa: BLE001  (the end of the program: all has to be told)
        traceback.print_exc()
        return Ended(
            "failed", f"training failed by a fault of the program: {type(error).__name__}: {error}"
        )


def _sentence(done: Finished, name: str) -> str:
    text = f"The model '{name}' is ready"
    if done.dice and done.card.kind == "labels":
        mean = sum(done.dice.values()) / len(done.dice)
        return f"{text}: held-out Dice {mean:.2f} at iteration {done.iteration}."
    if done.card.kind == "pretext":
        return f"{text}: start a training on labels from it."
    return f"{text}. Nothing was held out, so look at its results yourself."


def _obey(commands: IO[str], monitor: Monitor, control: Control) -> None:
    """Do what comes; at the end of the commands stop."""
    try:
        for line in commands:
            command = line.strip()
            if command == PAUSE:
                control.pause()
            elif command == GO_ON:
                control.go_on()
            elif command == END:
                control.end_early()
            elif command == CANCEL:
                break
    except (OSError, ValueError):
        pass
    monitor.cancel()
    control.go_on()
