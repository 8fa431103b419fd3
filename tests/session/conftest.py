from types import SimpleNamespace

import flood_engine
import pytest
from blocks import two_blocks

from napari_openmedlab.models import catalogue
from napari_openmedlab.session.objects import EngineChoice
from napari_openmedlab.session.session import Session


@pytest.fixture
def flood(monkeypatch):
    """The flood engine in the catalogue, as another package would register it."""
    point = SimpleNamespace(name="flood", load=lambda: flood_engine.SPEC)
    monkeypatch.setattr(catalogue, "entry_points", lambda group: [point])
    for counter in ("loaded", "unloaded", "prepared"):
        monkeypatch.setattr(flood_engine.Flood, counter, 0)
    return flood_engine.Flood


@pytest.fixture
def volume():
    return two_blocks()


@pytest.fixture
def session(volume, flood):
    made = Session(volume)
    made.choice = EngineChoice("flood")
    return made


@pytest.fixture
def at(volume):
    """World point of a voxel index (z, y, x)."""
    return lambda *index: tuple(volume.geometry.to_world(index))
