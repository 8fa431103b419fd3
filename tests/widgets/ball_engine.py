"""A small real engine for panel tests: the ellipsoid inside the prompts, at once or slowly."""

from __future__ import annotations

import time

import numpy as np

from napari_openmedlab.errors import EngineError, PromptError
from napari_openmedlab.geometry.boxes import Box, box_of_points
from napari_openmedlab.models.catalogue import EngineSpec, Option
from napari_openmedlab.models.contract import Prediction


class Ball:
    """Fills the ellipsoid of the prompts' box; negative clicks cut a ball out of it."""

    def prepare(self, volume, monitor):
        monitor.step(1, 1, "prepare")
        return volume

    def predict(self, volume, request, monitor):
        options, geometry = request.options, volume.geometry
        for step in range(options["steps"]):
            time.sleep(0.02)
            monitor.step(step + 1, options["steps"], "ball")
        if options["fail"] == "sentence":
            raise EngineError("the ball burst; try a smaller one", engine="ball")
        if options["fail"] == "defect":
            raise RuntimeError("CUDA error: device-side assert")
        if not request.prompts.has_positive:
            raise PromptError("ball needs a positive prompt")
        box = _box(request.prompts, geometry, options["radius"]).clip(geometry.shape)
        grid = np.moveaxis(np.indices(box.shape), 0, -1) + np.array(box.start)
        middle = (np.array(box.start) + np.array(box.stop) - 1) / 2
        half = np.array(box.shape) / 2
        mask = (((grid - middle) / half) ** 2).sum(axis=-1) <= 1
        away = [c.point for c in request.prompts.clicks if not c.positive]
        for point in geometry.to_index(away) if away else ():
            gap = (grid - point) * np.array(geometry.spacing)
            mask &= (gap**2).sum(axis=-1) > options["radius"] ** 2
        notes = ("Low confidence: look closely.",) if options["score"] < 0.5 else ()
        return Prediction(box, mask, score=options["score"], seconds=0.1, notes=notes)

    def unload(self):
        pass


HINTS = []
"""Hints the ``ahead`` engines were given, oldest first."""

OPTIONS_SEEN = []
"""Options of the requests they answered."""


class Ahead(Ball):
    """Notes where it was told to work ahead and which options it was given."""

    def anticipate(self, prepared, hint, monitor):
        HINTS.append(hint)

    def predict(self, volume, request, monitor):
        OPTIONS_SEEN.append(dict(request.options))
        return super().predict(volume, request, monitor)


def _box(prompts, geometry, radius):
    reach = np.ceil(radius / np.array(geometry.spacing)).astype(int)
    box = Box((0, 0, 0), (0, 0, 0))
    if prompts.extreme_points:
        box = box.union(box_of_points(geometry.to_index(prompts.extreme_points)))
    for each in prompts.boxes:
        box = box.union(each.to_box(geometry))
    for click in prompts.clicks:
        if click.positive:
            box = box.union(box_of_points(geometry.to_index(click.point)).grow(reach))
    for scribble in prompts.scribbles:
        if scribble.positive:
            box = box.union(box_of_points(geometry.to_index(scribble.points)))
    return box.union(prompts.mask.on_grid(geometry).box) if prompts.mask else box


SPEC = EngineSpec(
    id="ball",
    title="Ball (test)",
    entry="ball_engine:Ball",
    task="promptable",
    summary="For tests.",
    prompts=frozenset({"extreme_points", "box", "click", "scribble", "mask"}),
    options=(
        Option("steps", 0, "Steps of 20 ms", minimum=0, maximum=1000),
        Option("radius", 6.0, "Radius in mm", minimum=0.5, maximum=50.0),
        Option("score", 0.9, "What it says of itself", minimum=0.0, maximum=1.0),
        Option("fail", "", "How it fails", choices=("", "sentence", "defect")),
    ),
)

CLICKS_ONLY = EngineSpec(
    id="clicks",
    title="Clicks only (test)",
    entry="ball_engine:Ball",
    task="promptable",
    summary="For tests.",
    prompts=frozenset({"click"}),
    options=SPEC.options,
)

POINT = EngineSpec(
    id="point",
    title="Ahead of a click (test)",
    entry="ball_engine:Ahead",
    task="promptable",
    summary="For tests.",
    prompts=SPEC.prompts,
    options=SPEC.options,
    ahead="point",
)

SLICES = EngineSpec(
    id="slices",
    title="Slices (test)",
    entry="ball_engine:Ahead",
    task="promptable",
    summary="For tests.",
    prompts=SPEC.prompts,
    options=(
        *SPEC.options,
        Option("axis", 0, "Axis across the slices", minimum=0, maximum=2, source="view"),
        Option("plane", "z", "The same as a letter", choices=("z", "y", "x"), source="view"),
        Option("low", 0.0, "Lower contrast limit", source="contrast"),
        Option("high", 0.0, "Upper contrast limit", source="contrast"),
        Option("window", "", "Contrast as a text", source="contrast"),
        Option("propagate", False, "Carry on through the slices"),
    ),
    ahead="slice",
)

LACKS_PACKAGE = EngineSpec(
    id="lacks-package",
    title="Lacks a package (test)",
    entry="ball_engine:Ball",
    task="promptable",
    summary="For tests.",
    prompts=SPEC.prompts,
    options=SPEC.options,
    requires=("no_such_package_anywhere",),
)
