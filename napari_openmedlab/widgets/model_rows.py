"""What the table of models shows: the catalogue and the store, joined. No Qt."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_openmedlab.models.catalogue import CheckpointSpec
from napari_openmedlab.models.checkpoints.disk import size_text
from napari_openmedlab.models.checkpoints.records import Entry, Record

__all__ = ["ModelRow", "State", "about", "join", "link"]

_LINK = "#3b82f6"


class State:
    """The words of the status column, best first: the order in which it sorts."""

    READY = "ready"
    DAMAGED = "damaged"
    MISSING = "file missing"
    PARTLY = "partly here"
    AWAITED = "waiting for the file"
    ABSENT = "not here"
    ALL = (READY, DAMAGED, MISSING, PARTLY, AWAITED, ABSENT)


@dataclass(frozen=True)
class ModelRow:
    """A published checkpoint, a model of the store, or both in one.

    Attributes
    ----------
    key : str
        Stable name of the row: the catalogue id, or ``"store:NAME"``.
    spec : CheckpointSpec or None
        What the catalogue says; ``None`` for weights of the user's own.
    entry : Entry or None
        What the store says; ``None`` if it is not here.
    absent : str
        State to show if it is not here.
    partly : int
        Bytes of a download that was cut off.
    """

    key: str
    spec: CheckpointSpec | None
    entry: Entry | None
    absent: str = State.ABSENT
    partly: int = 0

    @property
    def record(self) -> Record | None:
        """What the store says about it; ``None`` if it is not here."""
        return None if self.entry is None else self.entry.record

    @property
    def state(self) -> str:
        """One of :class:`State`."""
        return self.absent if self.entry is None else self.entry.state

    @property
    def state_text(self) -> str:
        """The state, with how much of it is here."""
        if self.state == State.PARTLY:
            return f"{State.PARTLY}: {size_text(self.partly)}"
        return self.state

    @property
    def title(self) -> str:
        """Name for the user."""
        if self.spec is not None:
            return self.spec.title
        return self.record.name if self.record is not None else self.key

    @property
    def purpose(self) -> str:
        """One sentence: what it is good for."""
        if self.spec is not None:
            return self.spec.purpose
        source = self.record.source_name if self.record is not None else ""
        return f"Your own file, imported from {source}." if source else "Its record can't be read."

    @property
    def engine(self) -> str:
        """The engine it is made for; the network, where the catalogue doesn't know it."""
        if self.spec is not None:
            return self.spec.engine
        return self.record.network if self.record is not None else ""

    @property
    def licence(self) -> str:
        """Licence of the weights, short."""
        if self.spec is None:
            return (self.record.licence if self.record is not None else "") or "your own"
        if self.spec.non_commercial:
            return f"non-commercial ({self.spec.weights_licence.partition(':')[0]})"
        return self.spec.weights_licence

    @property
    def size(self) -> int:
        """Bytes in the store or to download; 0 if nobody says."""
        if self.record is not None:
            return self.record.size
        return 0 if self.spec is None else self.spec.size or self.spec.stored_size

    @property
    def size_text(self) -> str:
        """The size in words, with a mark where it is only about right."""
        if not self.size:
            return "not stated"
        exact = self.record is not None or (self.spec is not None and self.spec.size)
        return size_text(self.size) if exact else f"≈ {size_text(self.size)}"

    @property
    def haystack(self) -> str:
        """Everything a search looks at, in lower case."""
        parts = [self.title, self.purpose, self.engine, self.licence, self.state, self.key]
        if self.spec is not None:
            parts += [self.spec.network, self.spec.classes, self.spec.input, self.spec.file]
        return " ".join(parts).lower()


def join(
    specs: Sequence[CheckpointSpec],
    entries: Iterable[Entry],
    awaited: Iterable[str] = (),
    partly: Mapping[str, int] | None = None,
) -> list[ModelRow]:
    """Return one row per published checkpoint and one per other model of the store.

    Parameters
    ----------
    specs : sequence of CheckpointSpec
    entries : iterable of Entry
        What is in the store.
    awaited : iterable of str
        Ids of checkpoints whose file the user is getting in a browser.
    partly : mapping of str to int, optional
        Bytes of downloads that were cut off, by id.
    """
    begun = partly or {}
    left = {entry.record.name: entry for entry in entries}
    waiting = set(awaited)
    rows = []
    for spec in specs:
        mine = [name for name, entry in left.items() if entry.record.checkpoint == spec.id]
        name = spec.id if spec.id in mine else next(iter(mine), None)
        state = State.AWAITED if spec.id in waiting else State.ABSENT
        state = State.PARTLY if spec.id in begun else state
        entry = left.pop(name) if name else None
        rows.append(ModelRow(spec.id, spec, entry, state, begun.get(spec.id, 0)))
    rows += [ModelRow(f"store:{name}", None, entry) for name, entry in left.items()]
    return rows


def about(row: ModelRow, folder: Path) -> str:
    """Return all there is to know about a row as HTML.

    Parameters
    ----------
    row : ModelRow
    folder : Path
        The model folder.
    """
    lines: list[tuple[str, str]] = []
    if row.entry is not None and row.entry.problem:
        lines.append(("Problem", html.escape(row.entry.problem)))
    if row.spec is not None:
        lines += _published(row.spec)
    if row.record is not None and row.record.sha256:
        lines += _stored(row.record, folder)
    told = "".join(f"<p style='margin: 2px 0'><b>{n}:</b> {text}</p>" for n, text in lines if text)
    return f"<h3>{html.escape(row.title)}</h3><p>{html.escape(row.purpose)}</p>{told}"


def link(address: str) -> str:
    """Return an HTML link that can be read on a dark and on a light background."""
    escaped = html.escape(address, quote=True)
    return f"<a style='color: {_LINK}' href='{escaped}'>{escaped}</a>"


def _published(spec: CheckpointSpec) -> list[tuple[str, str]]:
    how = "fetched here, on your click" if spec.how == "direct" else "by hand, in a browser"
    return [
        ("Note", html.escape(spec.notes)),
        ("Input", html.escape(spec.input)),
        ("Marks", html.escape(spec.classes)),
        ("Licence of the weights", html.escape(spec.weights_licence)),
        ("Licence of the code", html.escape(spec.code_licence)),
        ("Paper", html.escape(spec.paper) or "see the project's page"),
        ("Project", link(spec.source)),
        ("Download", f"{how}: {link(spec.page)}"),
        ("File", html.escape(spec.file) or "name not stated"),
        ("Published hash", html.escape(spec.sha256) or "none"),
        ("Network", html.escape(spec.network)),
    ]


def _stored(record: Record, folder: Path) -> list[tuple[str, str]]:
    shown = {key: value for key, value in record.variant.items() if key != "strides"}
    variant = ", ".join(f"{key} {value}" for key, value in shown.items())
    return [
        ("Imported", html.escape(f"{record.imported} UTC from {record.source_name}")),
        ("How it was read", html.escape(" ".join(record.notes))),
        ("Network in the store", html.escape(f"{record.network} {variant}".strip())),
        ("Name in the store", html.escape(record.name)),
        ("SHA-256", f"<code>{html.escape(record.sha256)}</code>"),
        ("Stored file", html.escape(str(folder / record.file))),
    ]
