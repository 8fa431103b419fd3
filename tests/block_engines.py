"""Small engines that score blocks, registered as another package would do it."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
from scipy.ndimage import uniform_filter

from napari_openmedlab.models import catalogue
from napari_openmedlab.models.blocks import BlockLayout
from napari_openmedlab.models.catalogue import EngineSpec, Option

CORE, HALO = 16, 3


class Smooth:
    """Mean of 5 x 5 x 5 normalised voxels as a probability: needs a halo of 2, has 3."""

    calls = 0
    gate: threading.Event | None = None

    def layout(self, options):
        return BlockLayout((CORE,) * 3, (HALO,) * 3, chunk=(CORE, CORE, CORE // 2))

    def score(self, block, context, options, monitor):
        type(self).calls += 1
        if options["fail_at"] == type(self).calls:
            raise OSError("the engine broke")
        monitor.step(0, 0, "smoothing")
        return smooth_score(context.intensity.apply(block))

    def provenance(self, options):
        return {"engine": "smooth"}

    def unload(self):
        pass


def smooth_score(values):
    mean = uniform_filter(values.astype(np.float64), 5, mode="nearest")
    return (1 / (1 + np.exp(-2 * mean))).astype(np.float32)


SPEC = EngineSpec(
    id="smooth",
    title="Smooth",
    entry="block_engines:Smooth",
    task="blocks",
    summary="For tests.",
    options=(Option("fail_at", 0, "Call at which it breaks; 0: never.", minimum=0),),
)


def register(monkeypatch, *specs):
    """Put engines into the catalogue for one test."""
    Smooth.calls = 0
    found = [SimpleNamespace(name=s.id, load=lambda s=s: s) for s in (specs or (SPEC,))]
    monkeypatch.setattr(catalogue, "entry_points", lambda group: found)
