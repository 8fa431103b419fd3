"""The journal of a run: one line of JSON for each finished block, in order of finishing.

Other lines say what happened to all labels: ``relabel`` and ``relabelled`` stand around the making
of labels at another threshold, ``levels`` after the coarser levels; each with the threshold.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from napari_openmedlab.errors import OpenMedLabError, ReadError, WriteError
from napari_openmedlab.io.atomic import sentence

__all__ = ["NAME", "add_line", "disk_errors_said", "lines_since", "read_lines"]

NAME = "journal.jsonl"


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the journal's lines; one that was cut off by a crash does not count."""
    path = folder / NAME
    if not path.exists():
        return []
    entries = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ReadError(f"{path} can't be read: {error}", path) from error
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def lines_since(key: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines after the last one with a key; all of them if none has it."""
    last = max((number for number, line in enumerate(lines) if key in line), default=-1)
    return lines[last + 1 :]


def add_line(folder: Path, facts: Mapping[str, Any]) -> None:
    """Add a line and see it on the disk.

    Raises
    ------
    WriteError
        If the disk is full or can't be written.
    """
    path = folder / NAME
    with disk_errors_said(folder), path.open("ab") as file:
        # A crash may have left half a line: begin a new one.
        file.write(b"\n" if file.tell() and not _ends_line(path) else b"")
        file.write(json.dumps(facts).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


@contextmanager
def disk_errors_said(folder: Path) -> Iterator[None]:
    """Turn what the system says of a disk into a sentence."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OpenMedLabError):
            raise
        raise WriteError(f"{sentence(error, folder)}; finished blocks are kept", folder) from error
