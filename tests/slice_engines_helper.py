"""What all tests of the slice engines share: their catalogue entries, and a small phantom."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models import catalogue
from napari_openmedlab.models.engine_spec import Option
from napari_openmedlab.models.slice_engines import slice_engines

WEIGHTS = (
    Option("checkpoint", "", "Model."),
    Option("device", "auto", "Device."),
    Option("precision", "auto", "Precision.", choices=("auto", "float32", "half")),
)


def register(monkeypatch):
    """Put the entries into the catalogue, unless they are there."""
    own = {spec.id for spec in catalogue.OWN_ENGINES}
    points = [
        SimpleNamespace(name=spec.id, load=lambda spec=spec: spec)
        for spec in slice_engines(WEIGHTS)
        if spec.id not in own
    ]
    monkeypatch.setattr(catalogue, "entry_points", lambda group: points)


def phantom(shape=(12, 60, 70), seed=1):
    """A bright ellipsoid in noise on an anisotropic, turned grid, and its mask."""
    turn = np.radians(15)
    affine = np.eye(4)
    affine[:3, :3] = [
        [0.0, -np.sin(turn) * 0.9, np.cos(turn) * 0.8],
        [0.0, np.cos(turn) * 0.9, np.sin(turn) * 0.8],
        [-4.0, 0.0, 0.0],
    ]
    affine[:3, 3] = (-60.0, 20.0, 300.0)
    z, y, x = np.indices(shape)
    mid, radius = np.array(shape) * (0.5, 0.45, 0.55), np.array(shape) * (0.35, 0.25, 0.3)
    truth = ((z - mid[0]) / radius[0]) ** 2
    truth = truth + ((y - mid[1]) / radius[1]) ** 2 + ((x - mid[2]) / radius[2]) ** 2 <= 1
    noise = np.random.default_rng(seed).normal(0.0, 15.0, shape)
    array = (truth * 150.0 + noise).round().astype(np.int16)
    return Volume(array, Geometry(shape, affine), name="ellipsoid", modality="MR"), truth


def click(volume, *index, positive=True, prompts=None):
    """Prompts with one click more."""
    return (prompts or PromptSet()).with_click(volume.geometry.to_world(index), positive)


def dice(found, truth):
    """Dice of a 3D MaskPatch and a full-size mask."""
    mask = found.to_full(truth.shape)
    return 2 * np.count_nonzero(mask & truth) / (np.count_nonzero(mask) + np.count_nonzero(truth))
