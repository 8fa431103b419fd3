"""A real checkpoint for tests of the model folder: MedLAM with stand-in weights, 60 MB."""

from __future__ import annotations

from pathlib import Path

import torch
from golden_networks import load_filled

from napari_openmedlab.models import networks
from napari_openmedlab.models.checkpoints.store import ModelStore


def save_medlam(path: Path, salt: str = "") -> Path:
    """Write a file as the publisher of MedLAM does; another salt, other weights."""
    network = load_filled(networks.build("medlam"), salt=salt)
    torch.save({"model_state_dict": network.state_dict(), "epoch": 3}, path)
    return path


def store_with_medlam(folder: Path) -> ModelStore:
    """Return a store in which MedLAM was imported."""
    folder.mkdir(parents=True)
    store = ModelStore(folder / "store")
    store.import_file(save_medlam(folder / "medlam.pth"))
    return store
