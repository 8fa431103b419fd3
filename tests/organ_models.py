"""STU-Net's engine in the catalogue, and a network for it that answers as a trained one might."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from napari_openmedlab.models import catalogue
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.organ_engines import organ_engines
from napari_openmedlab.models.own_engines import _WEIGHTS


def register(monkeypatch: Any) -> None:
    """Put the engine into the catalogue, as another package would, if it is not there."""
    if any(spec.id == "stu-net" for spec in catalogue.OWN_ENGINES):
        return
    spec = organ_engines(_WEIGHTS)[0]
    point = SimpleNamespace(name="stu-net", load=lambda: spec)
    monkeypatch.setattr(catalogue, "entry_points", lambda group: [point])


def options(**given: Any) -> dict[str, Any]:
    """Return all options of the engine: defaults, float32 on the CPU, and what is given."""
    spec = organ_engines(_WEIGHTS)[0]
    return spec.check_options({"device": "cpu", "precision": "float32", **given})


class Stub(nn.Module):
    """Class ``n`` is the likeliest where the normalised value is nearest to ``centres[n]``.

    ``lean`` adds so much a voxel along the last axis, to the patient's right, so that the answer
    tells one order of axes from another.
    """

    memory_format = torch.contiguous_format

    def __init__(self, centres: Sequence[float], lean: float = 0.0, sharp: float = 20.0) -> None:
        super().__init__()
        place = torch.tensor(centres, dtype=torch.float32)
        head = nn.Conv3d(1, len(place), 1)
        with torch.no_grad():
            head.weight[:] = (2 * sharp * place).view(-1, 1, 1, 1, 1)
            head.bias[:] = -sharp * place**2
        self.seg_outputs = nn.ModuleList([head])
        self.lean, self.batches, self.fail = lean, [], []

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the values themselves, or raise what stands first in ``fail``."""
        self.batches.append(len(patches))
        if self.fail and (error := self.fail.pop(0)) is not None:
            raise error
        return patches + self.lean * torch.arange(patches.shape[-1], dtype=torch.float32)


def answer_with(monkeypatch: Any, network: nn.Module) -> None:
    """Have the model store load this network, whatever model is asked for."""
    monkeypatch.setattr(ModelStore, "load", lambda _store, _name: network.eval())
