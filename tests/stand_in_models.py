"""A model store with stand-in weights, filled once per test run with what is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from golden_networks import load_filled

from napari_openmedlab.models import networks
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.checkpoints.store import ModelStore


class StandIns:
    """Makes a network's stand-in checkpoint and imports it as a user would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ModelStore(folder)
        self._made: dict[str, Record] = {}

    def add(self, network: str, **variant: Any) -> Record:
        """Return the record of a network's stand-in weights, imported at the first call."""
        name = "-".join([network, *(f"{k}{v}" for k, v in sorted(variant.items()))])
        if name not in self._made:
            filled = load_filled(networks.build(network, device="meta", **variant))
            source = self.folder / f"{name}.pth"
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save({"model_state_dict": filled.state_dict()}, source)
            self._made[name] = self.store.import_file(source, name, as_=network)
            source.unlink()
        return self._made[name]
