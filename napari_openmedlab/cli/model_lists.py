"""Catalogue and model folder, joined, as the ``models`` commands print them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models.catalogue import CheckpointSpec, checkpoints, get_checkpoint
from napari_openmedlab.models.checkpoints.disk import size_text
from napari_openmedlab.models.checkpoints.download import unfinished
from napari_openmedlab.models.checkpoints.store import Entry, ModelStore

__all__ = ["Row", "print_facts", "print_json", "print_table", "rows", "unknown"]


@dataclass(frozen=True)
class Row:
    """A published checkpoint, a model of the folder, or both in one.

    Attributes
    ----------
    spec : CheckpointSpec or None
    entry : Entry or None
    partly : int
        Bytes of a download that was cut off.
    """

    spec: CheckpointSpec | None
    entry: Entry | None
    partly: int = 0

    @property
    def name(self) -> str:
        """Name in the folder, else the id."""
        if self.entry is not None:
            return self.entry.record.name
        return self.spec.id if self.spec is not None else ""

    def is_called(self, name: str) -> bool:
        """Whether it has this name or id."""
        return name == self.name or (self.spec is not None and name == self.spec.id)

    @property
    def state(self) -> str:
        """Where it is: here and sound or not, or how to get it."""
        if self.entry is not None:
            return self.entry.state
        if self.partly:
            return f"partly ({size_text(self.partly)})"
        how = self.spec.how if self.spec is not None else ""
        return "download" if how == "direct" else "browser"

    @property
    def size(self) -> str:
        """Size here, or about right as the catalogue knows it."""
        if self.entry is not None:
            return size_text(self.entry.record.size) if self.entry.record.size else ""
        if self.spec is None:
            return ""
        if self.spec.size:
            return size_text(self.spec.size)
        return f"~ {size_text(self.spec.stored_size)}" if self.spec.stored_size else "not stated"

    @property
    def what(self) -> str:
        """Title of a published checkpoint; network of the user's own weights."""
        if self.spec is not None:
            return self.spec.title
        network = self.entry.record.network if self.entry is not None else ""
        return f"your own {network}".strip()

    @property
    def licence(self) -> str:
        """Licence of the weights."""
        if self.spec is not None:
            return self.spec.weights_licence
        return (self.entry.record.licence if self.entry is not None else "") or "your own"

    def as_json(self) -> dict[str, Any]:
        """Return the row of a list as plain values."""
        record = self.entry.record if self.entry is not None else None
        spec = self.spec
        return {
            "name": self.name,
            "checkpoint": spec.id if spec is not None else "",
            "title": spec.title if spec is not None else self.name,
            "engine": spec.engine if spec is not None else "",
            "network": record.network if record is not None else spec.network if spec else "",
            "state": self.state if self.entry is not None or not self.partly else "partly",
            "here": record is not None,
            "how": spec.how if spec is not None else "",
            "bytes": record.size if record is not None else spec.size if spec else 0,
            "licence": self.licence,
        }

    def details(self, store: ModelStore) -> dict[str, Any]:
        """Return all that is known as plain values."""
        stored = None
        if self.entry is not None:
            stored = {
                **self.entry.record.as_json(),
                "state": self.entry.state,
                "problem": self.entry.problem,
                "path": str(store.folder / self.entry.record.file),
            }
        catalogue = None if self.spec is None else asdict(self.spec)
        return {"catalogue": catalogue, "stored": stored, "partly": self.partly}


def rows(store: ModelStore) -> list[Row]:
    """Return the published checkpoints in the catalogue's order, then the other models."""
    entries = list(store.entries())
    parts = unfinished(store)
    found = []
    for spec in checkpoints():
        mine = [entry for entry in entries if entry.record.checkpoint == spec.id]
        found += [Row(spec, entry) for entry in mine] or [Row(spec, None, parts.get(spec.id, 0))]
    known = {row.name for row in found if row.entry is not None}
    return found + [Row(None, entry) for entry in entries if entry.record.name not in known]


def unknown(name: str, store: ModelStore) -> CheckpointError:
    """Return the error for a name that neither the folder nor the catalogue has."""
    try:
        get_checkpoint(name)
        store.entry(name)
    except CheckpointError as error:
        return error
    return CheckpointError(f"there is no '{name}'")


def print_json(content: Any) -> None:
    """Print plain values."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def print_table(found: Sequence[Row], folder: Path) -> None:
    """Print a list of rows, and what is wrong with those that are damaged."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)  # to be typed: never cut
    table.add_column("what")
    table.add_column("status", no_wrap=True)
    table.add_column("size", no_wrap=True)
    table.add_column("licence of weights")
    for row in found:
        cells = (row.name, row.what, row.state, row.size, row.licence.partition(":")[0])
        table.add_row(*(Text(text) for text in cells))
    console.print(table)
    for row in found:
        if row.entry is not None and row.entry.problem:
            console.print(Text(f"{row.name}: {row.entry.problem}"), soft_wrap=True)
    console.print(
        "download: with 'openmedlab models download NAME'. browser: get the file from its page "
        "('openmedlab models show NAME'), then import it.",
        markup=False,
        highlight=False,
    )
    console.print(Text(f"Model folder: {folder}"), soft_wrap=True)


def print_facts(row: Row, store: ModelStore) -> None:
    """Print all that is known about one row."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in {**_published(row), **_stored(row, store)}.items():
        if value:
            table.add_row(Text(key), Text(value))
    Console().print(table)


def _published(row: Row) -> dict[str, str]:
    spec = row.spec
    if spec is None:
        return {"name": row.name, "what": "weights of your own"}
    get = "openmedlab models download " + spec.id if spec.how == "direct" else "in a browser"
    return {
        "id": spec.id,
        "title": spec.title,
        "what for": spec.purpose,
        "engine": spec.engine,
        "network": spec.network,
        "input": spec.input,
        "classes": spec.classes,
        "licence of the weights": spec.weights_licence,
        "licence of the code": spec.code_licence,
        "commercial use": "take it as not allowed" if spec.non_commercial else "",
        "paper": spec.paper or "not stated",
        "project": spec.source,
        "page": spec.page,
        "file": spec.file or "not stated",
        "size": row.size,
        "published hash": spec.sha256 or "none",
        "how to get it": get,
        "note": spec.notes,
    }


def _stored(row: Row, store: ModelStore) -> dict[str, str]:
    if row.entry is None:
        return {"status": row.state}
    record = row.entry.record
    return {
        "status": row.entry.state,
        "problem": row.entry.problem,
        "kept as": record.name,
        "of network": f"{record.network} {record.variant or ''}".strip(),
        "imported": f"{record.imported} UTC from {record.source_name}" if record.imported else "",
        "sha256 of the source": record.source_sha256,
        "sha256": record.sha256,
        "weights": str(store.folder / record.file) if record.sha256 else "",
        "remark": " ".join(record.notes),
    }
