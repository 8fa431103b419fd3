"""Batches are the same whatever the number of helper threads, and come in their order."""

from __future__ import annotations

import time

import numpy as np
import pytest

from napari_openmedlab.training import batches
from napari_openmedlab.training.batches import Batches


class Slow:
    """Later patches are drawn sooner."""

    def draw(self, rng):
        value = rng.random()
        time.sleep(0.01 * value)
        patch = np.full((2, 2, 2), value, np.float32)
        return patch[None], np.zeros((2, 2, 2), np.uint8)


def drawn(monkeypatch, cores):
    monkeypatch.setattr(batches.os, "cpu_count", lambda: cores)
    with Batches(Slow(), 1, 2, 3, 15) as found:
        return np.stack([images for images, _ in found])


def test_the_number_of_helpers_changes_nothing(monkeypatch):
    one, four = drawn(monkeypatch, 2), drawn(monkeypatch, 16)
    assert one.shape == (12, 2, 1, 2, 2, 2)
    np.testing.assert_array_equal(one, four)
    assert len(np.unique(one)) == 24


def test_an_error_comes_out_where_its_batch_is_taken(monkeypatch):
    class Faulty(Slow):
        def draw(self, rng):
            raise ValueError("no contrast")

    with Batches(Faulty(), 1, 1, 0, 4) as found, pytest.raises(ValueError, match="no contrast"):
        next(iter(found))
