"""A small volume and a folder for tests that can't use fixtures (state machines)."""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from napari_openmedlab.geometry.volume import Geometry, Volume


def volume(shape):
    array = np.random.default_rng(1).integers(0, 100, shape).astype(np.int16)
    return Volume(array, Geometry.from_spacing(shape, (3.0, 1.0, 1.0), frame="patient"))


@contextmanager
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
