"""A small real localizer and an engine for boxes, for tests.

Structures lie where they do in the templates' bodies: points are taken relative to the bounding
box of what is brighter than air, averaged over the templates. The confidence falls with their
disagreement; a box outside the scan is not found.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np

from napari_openmedlab.errors import EngineError
from napari_openmedlab.geometry.boxes import Box, box_of_mask
from napari_openmedlab.geometry.extreme_points import box_of_walls
from napari_openmedlab.models.catalogue import EngineSpec, Option
from napari_openmedlab.models.contract import Prediction
from napari_openmedlab.models.localisation import Found, Localisation


class Proportional:
    """Keeps nothing between two scans."""

    loaded = 0

    def __init__(self):
        type(self).loaded += 1

    def locate(self, volume, templates, options, monitor, structures=()):
        for step in range(options["steps"]):
            time.sleep(options["pause"])
            monitor.step(step + 1, options["steps"], "looking")
        if options["fail"] == "defect":
            raise ZeroDivisionError("half a scan")
        body = _body(volume)
        found = [_find(name, volume, body, templates) for name in structures]
        return Localisation(tuple(found), 0.1, {"engine": "proportional", "version": 1})

    def unload(self):
        pass


def _body(volume):
    box = box_of_mask(volume.crop(Box.whole(volume.geometry.shape)) > -500)
    if box.is_empty:
        raise EngineError("the scan shows nothing but air")
    corners = volume.geometry.to_world([box.start, np.array(box.stop) - 1])
    return np.sort(corners, axis=0)


def _find(name, volume, body, templates):
    marked = [t for t in templates if t.structure(name) is not None]
    guesses = []
    for template in marked:
        own = _body(template.load())
        share = (np.array(template.structure(name).points) - own[0]) / np.ptp(own, axis=0)
        guesses.append(body[0] + share * np.ptp(body, axis=0))
    points = np.mean(guesses, axis=0)
    spread = float(np.abs(guesses - points).max())
    low, high = body[0] - 1e-6, body[1] + 1e-6
    box = box_of_walls(points, volume.geometry).clip(volume.geometry.shape)
    inside = ((points.mean(axis=0) >= low) & (points.mean(axis=0) <= high)).all()
    if box.is_empty or not inside:
        return Found(name, Box((0, 0, 0), (0, 0, 0)), found=False, templates=len(marked))
    return Found(
        name, box, tuple(map(tuple, points)), 1 / (1 + spread / 10), True, len(marked),
        {"spread_mm": spread},
    )  # fmt: skip


SPEC = EngineSpec(
    id="proportional",
    title="Proportional",
    entry="proportional_localizer:Proportional",
    task="localizer",
    summary="For tests.",
    options=(
        Option("steps", 1, "Steps to take.", minimum=0),
        Option("pause", 0.0, "Seconds per step."),
        Option("fail", "no", "How to fail.", choices=("no", "defect")),
    ),
)


class Brittle:
    """Takes what is brighter than 60 in the boxes; runs out of memory in large ones."""

    def prepare(self, volume, monitor):
        return volume

    def predict(self, volume, request, monitor):
        boxes = [prompt.to_box(volume.geometry) for prompt in request.prompts.boxes]
        if sum(box.size for box in boxes) > request.options["largest"]:
            raise MemoryError
        box = boxes[0]
        for other in boxes[1:]:
            box = box.union(other)
        return Prediction(box, np.asarray(volume.crop(box) > 60), score=0.5)

    def unload(self):
        pass


BRITTLE = EngineSpec(
    id="brittle",
    title="Brittle",
    entry="proportional_localizer:Brittle",
    task="promptable",
    summary="For tests.",
    prompts=frozenset({"box"}),
    options=(Option("largest", 10**9, "Voxels of the largest box it bears.", minimum=0),),
)


def points(group):
    """Return entry points of both, as other packages would register them."""
    return [
        SimpleNamespace(name="proportional", load=lambda: SPEC),
        SimpleNamespace(name="brittle", load=lambda: BRITTLE),
    ]
