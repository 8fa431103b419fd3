"""Many objects in one run: which is at work, which are done, what went wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from napari_openmedlab.models.contract import Progress

__all__ = ["Batch"]

_SHARES = 100  # steps of the bar for each object
_TOLD = 2  # failures told in full
_THEM = {True: "it", False: "their scores"}


@dataclass
class Batch:
    """Objects asked for together, worked off one after the other.

    Attributes
    ----------
    waiting : list of int
        Ids of the objects still to come.
    total : int
    current : int or None
        The object at work.
    done : int
        Objects with an answer.
    unsure : int
        How many of these answers the user has to look at.
    failed : dict
        Why others have none, by object name.
    """

    waiting: list[int]
    total: int = 0
    current: int | None = None
    done: int = 0
    unsure: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, object_ids: Iterable[int]) -> Batch:
        """Return a batch of these objects, each once, in this order."""
        ids = list(dict.fromkeys(object_ids))
        return cls(ids, len(ids))

    def take_next(self) -> int | None:
        """Make the next object the one at work; ``None`` if all had their turn."""
        self.current = self.waiting.pop(0) if self.waiting else None
        return self.current

    def drop(self, object_id: int) -> None:
        """Leave out an object that is not at work yet."""
        if object_id in self.waiting:
            self.waiting.remove(object_id)
            self.total -= 1

    @property
    def number(self) -> int:
        """Which object is at work, from 1."""
        return min(self.total, self.done + len(self.failed) + 1)

    def progress(self, within: Progress) -> Progress:
        """Return the progress of the whole batch from that of the object at work."""
        share = min(1.0, within.done / within.total) if within.total else 0.0
        step = (self.number - 1 + share) * _SHARES
        return Progress(int(step), self.total * _SHARES, within.text)

    def stopped(self) -> str:
        """Return the sentence for a batch that was cancelled."""
        return f"Cancelled after {self.done} of {self.total} objects; what is done stays."

    def summary(self) -> tuple[str, str]:
        """Return the sentence for the end of the batch, and its severity."""
        objects = "object" if self.total == 1 else "objects"
        text = f"{self.done} of {self.total} {objects} segmented."
        if self.unsure:
            one = self.unsure == 1
            text += f" {self.unsure} {'is' if one else 'are'} unsure: look at {_THEM[one]}."
        told = [f"{name}: {why}" for name, why in list(self.failed.items())[:_TOLD]]
        if told:
            more = len(self.failed) - len(told)
            text += f" Not: {' '.join(told)}" + (f" And {more} more." if more else "")
        return text, "unsure" if self.failed or self.unsure else "done"
