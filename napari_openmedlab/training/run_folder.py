"""What lies in a run's folder, as far as it can be read without torch.

``run.json`` (``pretraining.json``) is the plan, ``state.safetensors`` the last state,
``best.safetensors`` the best weights so far, ``history.jsonl`` losses and held-out Dice,
``prepared/`` the scans as the network sees them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from napari_openmedlab.errors import WriteError
from napari_openmedlab.io.atomic import sentence, staging

__all__ = [
    "BEST",
    "FACTS_KEY",
    "HISTORY",
    "LOCK",
    "PLAN",
    "RUN",
    "STATE",
    "UNDER_WAY",
    "History",
    "history_of",
    "last_iteration",
    "state_facts",
]

RUN, PLAN = "run.json", "pretraining.json"  # of fine-tuning and of pre-training
STATE, BEST, HISTORY = "state.safetensors", "best.safetensors", "history.jsonl"
FACTS_KEY = "openmedlab.training"
LOCK = ".lock"
UNDER_WAY = "this run is under way in another program; wait for it, or stop it there"
_LARGEST_HEADER = 64 * 2**20

Loss = tuple[int, float]
Dice = tuple[int, Mapping[str, float]]


def state_facts(path: Path) -> dict[str, Any]:
    """Return what the header of a state says; empty if there is none or it is damaged."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _LARGEST_HEADER:
                return {}
            found = json.loads(json.loads(file.read(length))["__metadata__"][FACTS_KEY])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def last_iteration(folder: Path) -> int:
    """Return the iteration of the state on the disk; 0 if there is none yet."""
    return int(state_facts(folder / STATE).get("iteration", 0))


def history_of(folder: Path) -> tuple[tuple[Loss, ...], tuple[Dice, ...]]:
    """Return losses, and held-out Dice by class name, each with its iteration, for plots."""
    losses: list[Loss] = []
    dice: list[Dice] = []
    for entry in History(folder / HISTORY).entries():
        if isinstance(entry.get("loss"), float):
            losses.append((entry["iteration"], entry["loss"]))
        elif isinstance(entry.get("dice"), dict):
            known = {k: v for k, v in entry["dice"].items() if isinstance(v, float)}
            dice.append((entry["iteration"], known))
    return tuple(losses), tuple(dice)


class History:
    """Losses and held-out Dice of a run, a JSON text a line, for plots.

    Parameters
    ----------
    path : Path
        Is appended to by :meth:`flush`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[str] = []

    def add(self, **entry: Any) -> None:
        """Keep an entry for the next flush."""
        self._waiting.append(json.dumps(entry))

    def flush(self) -> None:
        """Write what waits.

        Raises
        ------
        WriteError
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in self._waiting)
        except OSError as error:
            raise WriteError(sentence(error, self.path.parent), self.path) from error
        self._waiting = []

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield what is on the disk; half a line, left by a crash, is passed over."""
        if not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and isinstance(found.get("iteration"), int):
                yield found

    def cut(self, iteration: int) -> None:
        """Forget what came after an iteration: it is done again."""
        kept = [json.dumps(e) for e in self.entries() if e["iteration"] <= iteration]
        with staging(self.path.parent) as folder:
            text = "".join(f"{line}\n" for line in kept)
            (folder / self.path.name).write_text(text, encoding="utf-8")
