"""Models made here: the card that travels inside the file of weights, and the file itself.

A trained network is of use to a colleague only with what the weights don't say: what its classes
are called, how scans have to be prepared, and what it was trained on. All of that is one JSON
text in the header of the safetensors file (https://huggingface.co/docs/safetensors), so file and
card can't be separated. A card never names patients or files.

Importing this module imports no torch; writing a model does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from napari_openmedlab.errors import CheckpointError

__all__ = [
    "CARD_KEY",
    "FORMAT",
    "NETWORKS",
    "Intensity",
    "LabelClass",
    "ModelCard",
    "Preprocessing",
    "Provenance",
    "card_from_json",
    "card_metadata",
    "read_card",
    "start_only",
    "write_model",
]

FORMAT = 1
CARD_KEY = "openmedlab.card"
NETWORKS = ("fmunet", "pct-net")

_LARGEST_HEADER = 16 * 2**20
_LARGEST_CARD = 2**20
_MOST_CLASSES = 255

Kind = Literal["labels", "pretext"]
Index3 = tuple[int, int, int]


@dataclass(frozen=True)
class LabelClass:
    """One class of a model.

    Attributes
    ----------
    name : str
    value : int
        What it is in label maps, as in those it was trained on; from 1 on, each once.
    color : tuple of int or None
        Red, green, blue, 0 to 255.
    """

    name: str
    value: int
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Intensity:
    """How values become the network's input.

    Attributes
    ----------
    rule : {"z-score", "clip"}
        ``"z-score"``: mean 0 and deviation 1 over the whole volume, 1e-5 added to the deviation,
        as published for MR. ``"clip"``: limits ``low`` and ``high`` become -1 and 1, as
        published for CT.
    low, high : float
        In the scan's own values; used by ``"clip"`` only.
    """

    rule: Literal["z-score", "clip"] = "z-score"
    low: float = -1000.0
    high: float = 1000.0


@dataclass(frozen=True)
class Preprocessing:
    """How a scan is brought to the network. All axes are in display order (z, y, x).

    Patients' scans are turned to the display order (head, front and right first) without
    resampling; images without patient axes keep their own.

    Attributes
    ----------
    patch : tuple of int
        Voxels of a window.
    stride : tuple of int
        Distance between windows in voxels, at most the patch.
    spacing : tuple of float or None
        Of the network's grid in mm; ``None``: the scan's own voxels, whatever their size.
    intensity : Intensity
    """

    patch: Index3
    stride: Index3
    spacing: tuple[float, float, float] | None = None
    intensity: Intensity = field(default_factory=Intensity)


@dataclass(frozen=True)
class Provenance:
    """What a model was trained on, without a name of a patient or file.

    Attributes
    ----------
    cases, held_out : int
        Volumes trained on, and volumes kept apart to measure.
    init, init_sha256 : str
        Name and hash of the weights that training began with; empty: from scratch.
    iterations : int
        Steps taken until these weights.
    seed : int
    held_out_dice : mapping of str to float
        By class name, of these weights; empty if nothing was held out.
    finished : str
        When, UTC, for example ``"2025-11-30 12:34"``.
    versions : mapping of str to str
        Of this package and of torch.
    settings : mapping of str to plain JSON value
        Other settings of the training, for the record only.
    """

    cases: int = 0
    held_out: int = 0
    init: str = ""
    init_sha256: str = ""
    iterations: int = 0
    seed: int = 0
    held_out_dice: Mapping[str, float] = field(default_factory=dict)
    finished: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelCard:
    """Everything that has to be known beside the weights.

    Attributes
    ----------
    title : str
        What the user calls the model.
    network : {"fmunet", "pct-net"}
    variant : dict
        All keywords for ``networks.build``: channels, classes, resolution mode.
    preprocessing : Preprocessing
    classes : tuple of LabelClass
        Output 1 is the first, output 0 the background. Empty for ``kind="pretext"``.
    kind : {"labels", "pretext"}
        ``"pretext"``: pre-trained without labels, a start for training; it segments nothing.
    provenance : Provenance
    """

    title: str
    network: str
    variant: dict[str, Any]
    preprocessing: Preprocessing
    classes: tuple[LabelClass, ...] = ()
    kind: Kind = "labels"
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        wrong = _wrong(self)
        if wrong:
            raise CheckpointError(f"the model card can't be right: {wrong}")

    @property
    def names(self) -> dict[int, str]:
        """Class names by their value in label maps."""
        return {each.value: each.name for each in self.classes}

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values, as :func:`card_from_json` takes them."""
        found: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **asdict(self)}))
        return found


def card_from_json(found: Any, path: str | Path | None = None) -> ModelCard:
    """Return a card from JSON values, each of them checked.

    Parameters
    ----------
    found : object
        From :meth:`ModelCard.as_json`, or anything else.
    path : str or Path, optional
        Named in errors.

    Raises
    ------
    CheckpointError
        If a value is missing, of the wrong type or can't be, or the card was written by a newer
        version of this program.
    """
    name = Path(path).name if path is not None else "the model"
    if not isinstance(found, Mapping) or not _whole(found.get("format"), 1):
        raise CheckpointError(f"the card in {name} is damaged; ask for the file again", path)
    if found["format"] > FORMAT:
        raise CheckpointError(
            f"{name} was made by a newer version of napari-openmedlab; update it to use this model",
            path,
        )
    try:
        return _card(found)
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"the card in {name} is damaged ({why}); ask for the file again", path
        ) from error


def card_metadata(card: ModelCard) -> dict[str, str]:
    """Return what the header of a file has to say for :func:`read_card` to find the card."""
    return {CARD_KEY: json.dumps(card.as_json(), sort_keys=True, ensure_ascii=True)}


def read_card(path: str | Path) -> ModelCard | None:
    """Return the card of a file of weights, or ``None`` if it has none.

    Parameters
    ----------
    path : str or Path
        Any file; only the header of a safetensors file is read.

    Raises
    ------
    CheckpointError
        If there is a card but it is damaged or of a newer version, or the file can't be read.
    """
    path = Path(path)
    text = _header_value(path)
    if text is None:
        return None
    if len(text) > _LARGEST_CARD:
        raise CheckpointError(f"the card in {path.name} is far too long to be one", path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"the card in {path.name} is damaged ({error}); ask for the file again", path
        ) from error
    return card_from_json(found, path)


def start_only(network: str, card: Mapping[str, Any]) -> bool:
    """Return whether weights are only a start for training: they name nothing.

    Parameters
    ----------
    network : str
    card : mapping
        JSON of the card; empty if there is none.
    """
    return network in NETWORKS and card.get("kind") != "labels"


def write_model(path: str | Path, state_dict: Mapping[str, Any], card: ModelCard) -> str:
    """Write weights and card as one file, complete or not at all.

    Parameters
    ----------
    path : str or Path
        ``.safetensors``, in an existing folder; an existing file is replaced at the end.
    state_dict : mapping of str to torch.Tensor
        Of the network that the card names, from any device; kept as float32 (counts as int64).
    card : ModelCard

    Returns
    -------
    str
        sha256 of the file.

    Raises
    ------
    CheckpointError
        If the weights are not those of the network, or one is NaN or infinite.
    WriteError
        If the folder is missing, not writable, or the disk is full; what was there is untouched.
    """
    from napari_openmedlab.models.checkpoints.trained_files import write_trained

    return write_trained(Path(path), state_dict, card)


def _header_value(path: Path) -> str | None:
    """Return the card's text in the header of a safetensors file; ``None`` if there is none."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _LARGEST_HEADER:
                return None
            head = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}", path) from error
    if not head.startswith(b"{") or len(head) < length:
        return None
    try:
        found = json.loads(head)
    except (ValueError, RecursionError):
        return None
    metadata = found.get("__metadata__") if isinstance(found, dict) else None
    text = metadata.get(CARD_KEY) if isinstance(metadata, dict) else None
    return text if isinstance(text, str) else None


def _card(found: Mapping[str, Any]) -> ModelCard:
    prepared, made = found["preprocessing"], found.get("provenance", {})
    rule = prepared["intensity"]
    spacing = prepared["spacing"]
    known = Provenance.__dataclass_fields__
    return ModelCard(
        title=found["title"],
        network=found["network"],
        variant=dict(found["variant"]),
        preprocessing=Preprocessing(
            patch=_triple(prepared["patch"]),
            stride=_triple(prepared["stride"]),
            spacing=None if spacing is None else _triple(spacing),
            intensity=Intensity(rule["rule"], rule["low"], rule["high"]),
        ),
        classes=tuple(_class(each) for each in found["classes"]),
        kind=found["kind"],
        provenance=Provenance(**{key: value for key, value in made.items() if key in known}),
    )


def _class(found: Mapping[str, Any]) -> LabelClass:
    color = found.get("color")
    return LabelClass(found["name"], found["value"], None if color is None else _triple(color))


def _triple(found: Any) -> Any:
    if not isinstance(found, list) or len(found) != 3:
        raise ValueError(f"{found!r} is no triple of numbers")
    return tuple(found)


def _wrong(card: ModelCard) -> str:
    """Return what can't be in a card; empty if nothing."""
    if str(card.kind) not in ("labels", "pretext"):
        return f"its kind is {card.kind!r}"
    if card.network not in NETWORKS:
        return f"there is no network {card.network!r} among {', '.join(NETWORKS)}"
    if str(card.title) != card.title:
        return "its title is no text"
    outputs = card.variant.get("out_channels")
    if not _whole(outputs, 2) or not _whole(card.variant.get("in_channels"), 1):
        return "the network's channels and classes are not stated"
    return (
        _wrong_classes(card, int(outputs or 0))
        or _wrong_input(card.preprocessing)
        or _wrong_facts(card.provenance)
    )


def _wrong_classes(card: ModelCard, outputs: int) -> str:
    if card.kind == "pretext":
        return "a pre-trained network has no classes" if card.classes else ""
    if len(card.classes) != outputs - 1:
        return f"it names {len(card.classes)} classes, the network has {outputs - 1}"
    for each in card.classes:
        if not isinstance(each.name, str) or not each.name.strip():
            return "a class has no name"
        if not _whole(each.value, 1) or each.value > _MOST_CLASSES * 257:
            return f"class '{each.name}' has the value {each.value!r}"
        color = each.color
        if color is not None and not all(_whole(part, 0) and part <= 255 for part in color):
            return f"class '{each.name}' has no colour {color!r}"
    if len(card.names) != len(card.classes) or len(set(card.names.values())) != len(card.classes):
        return "two classes have one name or value"
    return ""


def _wrong_input(prepared: Preprocessing) -> str:
    if not all(_whole(edge, 1) and edge <= 1024 for edge in prepared.patch):
        return f"windows of {prepared.patch}"
    pairs = zip(prepared.stride, prepared.patch, strict=True)
    if not all(_whole(step, 1) and step <= edge for step, edge in pairs):
        return f"windows of {prepared.patch} every {prepared.stride}"
    if prepared.spacing is not None and not all(
        _number(each) and 0 < each < 1000 for each in prepared.spacing
    ):
        return f"voxels of {prepared.spacing} mm"
    rule = prepared.intensity
    if rule.rule not in ("z-score", "clip"):
        return f"no rule for intensities is called {rule.rule!r}"
    if not (_number(rule.low) and _number(rule.high) and rule.low < rule.high):
        return f"intensities from {rule.low!r} to {rule.high!r}"
    return ""


def _wrong_facts(made: Provenance) -> str:
    if not all(_whole(n, 0) for n in (made.cases, made.held_out, made.iterations)):
        return "a number of cases or iterations is no number"
    if not all(isinstance(t, str) for t in (made.init, made.init_sha256, made.finished)):
        return "what it was trained from is no text"
    tables = (made.held_out_dice, made.versions, made.settings)
    if not all(isinstance(table, Mapping) for table in tables) or not _whole(made.seed, None):
        return "its provenance"
    if not all(_number(value) and 0 <= value <= 1 for value in made.held_out_dice.values()):
        return "a Dice lies between 0 and 1"
    return ""


def _whole(value: Any, least: int | None) -> bool:
    return (
        isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)
    )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
