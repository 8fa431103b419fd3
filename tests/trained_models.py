"""A model of one's own for tests: a card, weights in a store, a network that goes by brightness."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from napari_openmedlab.models import networks
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.finetuned import (
    Intensity,
    LabelClass,
    ModelCard,
    Preprocessing,
    Provenance,
    write_model,
)

VARIANT = {
    "in_channels": 1,
    "out_channels": 3,
    "channels": [2, 2, 4, 4, 4],
    "resolution_mode": 1,
}
CARD = ModelCard(
    "Blobs",
    "fmunet",
    VARIANT,
    Preprocessing((8, 32, 32), (4, 16, 16), None, Intensity("clip", 0.0, 200.0)),
    (LabelClass("dim", 7, (10, 200, 30)), LabelClass("bright", 3)),
    provenance=Provenance(cases=2, held_out=1, held_out_dice={"dim": 0.8, "bright": 0.9}),
)


def put(store: ModelStore, folder: Path, name: str, card: ModelCard = CARD) -> Record:
    """Write a model of random weights with this card, and import it."""
    torch.manual_seed(3)
    path = folder / f"{name}.safetensors"
    write_model(path, networks.build(card.network, **card.variant).state_dict(), card)
    return store.import_file(path, name)


def with_input(card: ModelCard = CARD, **changes: Any) -> ModelCard:
    """Return the card with another preparation."""
    return replace(card, preprocessing=replace(card.preprocessing, **changes))


def options(**given: Any) -> dict[str, Any]:
    """Return all options of the engine: defaults, float32 on the CPU, and what is given."""
    spec = get_spec("mis-fm")
    return spec.check_options({"device": "cpu", "precision": "float32", **given})


class ByBrightness(nn.Module):
    """Class ``n`` where the normalised value is nearest to the n-th of -1, 0 and 1."""

    memory_format = torch.contiguous_format

    def __init__(self, centres: tuple[float, ...] = (-1.0, 0.0, 1.0), lean: float = 0.0) -> None:
        super().__init__()
        self.centres, self.lean = centres, lean
        self.windows: list[tuple[int, ...]] = []

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes, z, y, x)."""
        self.windows.append(tuple(patches.shape))
        places = torch.tensor(self.centres).view(1, -1, 1, 1, 1)
        slope = self.lean * torch.arange(patches.shape[-1], dtype=torch.float32)
        return -((patches + slope - places) ** 2) * 10


def answer_with(monkeypatch: Any, network: nn.Module) -> None:
    """Have the model store load this network, whatever model is asked for."""
    monkeypatch.setattr(ModelStore, "load", lambda _store, _name: network.eval())
