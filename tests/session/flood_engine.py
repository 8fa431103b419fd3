"""A small real engine for session tests: floods from positive prompts within a tolerance."""

from __future__ import annotations

import time

import numpy as np
from scipy import ndimage

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.models.catalogue import EngineSpec, Option
from napari_openmedlab.models.contract import Prediction


class Flood:
    """Takes voxels near the prompts' intensity that connect to them; negatives cut out."""

    loaded = 0
    unloaded = 0
    prepared = 0

    def __init__(self):
        type(self).loaded += 1

    def prepare(self, volume, monitor):
        type(self).prepared += 1
        monitor.step(1, 1, "prepare")
        return volume

    def predict(self, volume, request, monitor):
        for step in range(request.options["steps"]):
            time.sleep(request.options["pause"])
            monitor.step(step + 1, request.options["steps"], "flood")
        _fail(request.options["fail"])
        if not request.prompts.has_positive:
            raise PromptError("flood needs a positive prompt")
        mask = _flood(volume, request)
        patch = MaskPatch.of(mask)
        return Prediction(patch.box, patch.mask, score=0.5, seconds=0.25)

    def unload(self):
        type(self).unloaded += 1


def _flood(volume, request):
    geometry, prompts = volume.geometry, request.prompts
    image = volume.crop(Box.whole(geometry.shape)).astype(float)
    ups = [*prompts.extreme_points, *(c.point for c in prompts.clicks if c.positive)]
    downs = [c.point for c in prompts.clicks if not c.positive]
    seeds = np.rint(geometry.to_index(ups)).astype(int)
    near = np.abs(image - np.median(image[tuple(seeds.T)])) <= request.options["tolerance"]
    if request.obstacles is not None:
        near &= ~request.obstacles.to_full(geometry.shape)
    parts, _ = ndimage.label(near)
    mask = np.isin(parts, np.unique(parts[tuple(seeds.T)])) & near
    if request.previous is not None:
        mask |= request.previous.to_full(geometry.shape)
    for z, y, x in np.rint(geometry.to_index(downs)).astype(int) if downs else ():
        mask[max(0, z - 1) : z + 2, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = False
    return mask


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


def _fail(how):
    if how == "defect":
        raise ZeroDivisionError("half a voxel")
    if how == "memory":
        raise MemoryError
    if how == "gpu":
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
    if how == "interrupt":
        raise KeyboardInterrupt


SPEC = EngineSpec(
    id="flood",
    title="Flood",
    entry="flood_engine:Flood",
    task="promptable",
    summary="For tests.",
    prompts=frozenset({"extreme_points", "click"}),
    options=(
        Option("tolerance", 20.0, "Intensity range."),
        Option("steps", 1, "Steps to take.", minimum=0),
        Option("pause", 0.0, "Seconds per step."),
        Option(
            "fail", "no", "How to fail.", choices=("no", "defect", "memory", "gpu", "interrupt")
        ),
    ),
)
