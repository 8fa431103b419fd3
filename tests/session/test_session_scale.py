"""A scan of usual size: a click must not cost what the scan costs."""

import time
import tracemalloc

import numpy as np
import pytest

from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.contract import Prediction
from napari_openmedlab.session.label_map import LabelMap
from napari_openmedlab.session.session import Session
from napari_openmedlab.session.store import save

SHAPE = (300, 512, 512)


@pytest.fixture(scope="module")
def big():
    voxels = np.broadcast_to(np.int16(0), SHAPE)  # no memory of its own
    return Volume(voxels, Geometry.from_spacing(SHAPE, (1.5, 0.8, 0.8)))


def liver():
    z, y, x = np.ogrid[-1:1:100j, -1:1:200j, -1:1:200j]
    return z**2 + y**2 + x**2 < 1


def fastest(action, times=5):
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        spent.append(time.perf_counter() - began)
    return min(spent)


def test_a_liver_is_written_undone_and_saved_without_touching_the_rest(big, tmp_path):
    session = Session(big)
    session.add_object("liver")
    mask, box = liver(), Box((50, 100, 100), (150, 300, 300))
    masks = [np.roll(mask, n, axis=1) for n in range(5)]

    def write():
        session.apply(Prediction(box, masks.pop()), session.request())

    assert fastest(write) < 0.15  # measured 0.02 s on an idle core; generous for a busy one
    assert fastest(session.undo, 3) < 0.1
    assert session.history.nbytes < 1_000_000  # 2 million voxels, five times over
    assert fastest(lambda: save(session, tmp_path / "s"), 1) < 2.0
    tracemalloc.start()
    session.apply(Prediction(box, mask), session.request())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * box.size  # bytes: a few copies of the box, none of the scan


def test_the_whole_array_is_never_scanned_by_a_click(big, monkeypatch):
    session = Session(big)
    session.add_object()
    monkeypatch.setattr(LabelMap, "_scan", lambda self: pytest.fail("scanned"))
    box = Box((0, 0, 0), (2, 2, 2))
    session.apply(Prediction(box, np.ones(box.shape, dtype=bool)), session.request())
    assert fastest(lambda: session.mask_of(1), 3) < 0.02
