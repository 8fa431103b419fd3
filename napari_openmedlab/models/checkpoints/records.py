"""What the store knows about one model: a small JSON file beside its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from napari_openmedlab.errors import CheckpointError, ReadError
from napari_openmedlab.models.checkpoints.disk import read_json
from napari_openmedlab.models.checkpoints.nnunet_facts import fits_facts
from napari_openmedlab.models.finetuned import ModelCard, card_from_json

__all__ = ["Entry", "Record", "read_record", "record_from_json", "slug"]

FORMAT = 1
_LONGEST_NAME = 60
# Names that Windows gives to devices, whatever the folder.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}
_HASH = re.compile(r"[0-9a-f]{64}")

State = Literal["ready", "damaged", "file missing"]


@dataclass(frozen=True)
class Record:
    """One model of the store.

    Attributes
    ----------
    name : str
        Its name in the store: small letters, digits, ``-`` and ``_``.
    network : str
        For ``networks.build``.
    variant : dict
        Keywords for it; plain JSON values.
    checkpoint : str
        Id in the catalogue; ``""`` for the user's own weights.
    source_name, source_sha256 : str
        The file it was imported from.
    sha256 : str
        Of the stored weights.
    size : int
        Bytes of the stored weights.
    imported : str
        When, UTC, for example ``"2025-11-30 12:34"``.
    licence : str
        Of the weights, as the catalogue states it; ``""`` for the user's own.
    notes : tuple of str
        Sentences for the user on what the weights don't say.
    mtime_ns : int
        Time stamp of the weights when their hash was last known to be right.
    card : dict
        JSON of the :class:`.finetuned.ModelCard` of a model trained here; empty for others.
    facts : dict
        What nnU-Net's plan beside the weights says of input and classes (names, spacing, patch,
        form, intensity); see :mod:`.nnunet_facts`. Empty without a plan.
    """

    name: str
    network: str
    variant: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    source_name: str = ""
    source_sha256: str = ""
    sha256: str = ""
    size: int = 0
    imported: str = ""
    licence: str = ""
    notes: tuple[str, ...] = ()
    mtime_ns: int = 0
    card: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def model_card(self) -> ModelCard | None:
        """The card of a model trained here."""
        return card_from_json(self.card, self.name) if self.card else None

    @property
    def file(self) -> str:
        """Name of the weights in the model folder.

        The hash is part of it, so that a new import never writes into a file in use, and two
        imports at once never mix weights and record.
        """
        return f"{self.name}.{self.sha256[:12]}.safetensors"

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values, as :func:`record_from_json` takes them."""
        return {"format": FORMAT, **asdict(self), "notes": list(self.notes)}


@dataclass(frozen=True)
class Entry:
    """A model as it is found in the folder, sound or not.

    Attributes
    ----------
    record : Record
        Of a record that can't be read only ``name`` is filled in.
    state : {"ready", "damaged", "file missing"}
        By a quick look; ``ModelStore.verify`` reads the whole file.
    problem : str
        What is wrong and what to do; ``""`` if ready.
    """

    record: Record
    state: State = "ready"
    problem: str = ""


def slug(text: str) -> str:
    """Return a name that is safe as a file name everywhere, never a path.

    Examples
    --------
    >>> slug("../My MedLAM (v2).pth")
    'my-medlam-v2-pth'
    """
    name = re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")[:_LONGEST_NAME].rstrip("-")
    if name in _DEVICES:
        name = f"model-{name}"
    return name or "model"


def read_record(path: Path) -> Record:
    """Return the record in ``NAME.json``.

    Raises
    ------
    ReadError
        If it is no record, or not that of ``NAME``.
    """
    record = record_from_json(read_json(path), path)
    if record.name != path.stem:
        raise ReadError(f"{path} is the record of another model, '{record.name}'", path)
    return record


def record_from_json(found: Mapping[str, Any], path: Path) -> Record:
    """Return a record from JSON values, checking each; ``path`` is named in errors.

    Raises
    ------
    ReadError
        If a value is missing, of the wrong type, or can't be.
    """
    if not isinstance(found.get("format"), int) or found["format"] > FORMAT:
        raise ReadError(f"{path} was written by a newer version, or is no record of a model", path)
    values = {name: found[name] for name in Record.__dataclass_fields__ if name in found}
    wrong = [name for name in ("name", "network", "sha256", "size") if name not in values]
    wrong += [name for name, value in values.items() if not _fits(name, value)]
    if wrong:
        raise ReadError(f"{path} is damaged: {', '.join(wrong)} can't be right", path)
    return Record(**{**values, "notes": tuple(values.get("notes", ()))})


def _fits(name: str, value: Any) -> bool:
    """Return whether a value can stand under this name of a record."""
    if name in ("size", "mtime_ns"):
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if name == "facts":
        return fits_facts(value)
    if name == "notes":
        return isinstance(value, list) and all(isinstance(note, str) for note in value)
    if name == "variant":
        return isinstance(value, dict)
    if name == "card":
        return _is_card(value)
    if not isinstance(value, str):
        return False
    if name == "name":
        return value == slug(value)
    if name == "sha256":
        return _HASH.fullmatch(value) is not None
    return True


def _is_card(value: Any) -> bool:
    """Return whether a value is no card, or one that can be used."""
    if value == {}:
        return True
    try:
        card_from_json(value)
    except CheckpointError:
        return False
    return True
