"""Held-out cases: labelled by the network as it will be used, compared with their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.device import Placement, autocast
from napari_openmedlab.models.fallback import fallbacks, run_with_fallback
from napari_openmedlab.models.finetuned import LabelClass, Preprocessing
from napari_openmedlab.models.tiling.placement import Windows
from napari_openmedlab.models.tiling.run import PlainScores, Tiling, run
from napari_openmedlab.models.tiling.sinks import KeepLabels
from napari_openmedlab.training.prepared import Prepared

__all__ = ["HeldOut", "Relay", "segment"]

_BATCH = 4  # windows at once on a graphics card


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Measures a network on cases it is not trained on; for ``Task.validate``.

    Attributes
    ----------
    cases : sequence of Prepared
    preprocessing : Preprocessing
        Windows and their distance.
    classes : sequence of LabelClass
    """

    cases: Sequence[Prepared]
    preprocessing: Preprocessing
    classes: Sequence[LabelClass]

    def __call__(self, network: Any, placement: Placement, monitor: Monitor) -> dict[str, float]:
        """Return Dice by class name: the mean over the cases that have the class, else NaN.

        On the network's grid, without what was added around a scan.
        """
        found: list[list[float]] = [[] for _ in self.classes]
        for number, case in enumerate(self.cases):
            text = f"held-out case {number + 1} of {len(self.cases)}"
            listening = Relay(monitor, text)
            z, y, x = case.image.shape
            windows = Windows.pymic((z, y, x), self.preprocessing.patch, self.preprocessing.stride)
            outputs = len(self.classes) + 1
            labels = segment(network, case.image, windows, outputs, placement, listening)
            mine, true = labels[case.inside], np.asarray(case.labels[case.inside])
            for index in range(len(self.classes)):
                value = _dice(mine, true, index + 1)
                if not math.isnan(value):
                    found[index].append(value)
        return {
            each.name: sum(values) / len(values) if values else math.nan
            for each, values in zip(self.classes, found, strict=True)
        }


class Relay(Monitor):
    """Passes a cancel on, and says which case is at hand."""

    def __init__(self, outer: Monitor, text: str) -> None:
        super().__init__()
        self._outer, self._what = outer, text

    def step(self, done: int = 0, total: int = 0, text: str = "") -> None:
        """Report to the outer monitor."""
        self._outer.step(done, total, f"{self._what}, {text}")


def segment(
    network: Any,
    image: NDArray[np.float32],
    windows: Windows,
    outputs: int,
    placement: Placement,
    monitor: Monitor,
) -> NDArray[Any]:
    """Return class numbers (z, y, x) of a prepared image, window by window.

    Parameters
    ----------
    network : torch.nn.Module
        In eval mode, on the placement's device; returns (B, K, z, y, x) logits.
    image : ndarray of float32, shape (z, y, x)
        At least one window large.
    windows : Windows
        Of the image.
    outputs : int
        Classes with the background.
    placement : Placement
    monitor : Monitor
        Hears of each window; a cancel acts there.
    """
    batch = _BATCH if placement.device != "cpu" else 1
    steps = [Placement(placement.device, placement.precision, batch)]

    def on_one(patches: torch.Tensor, place: Placement) -> torch.Tensor:
        with torch.inference_mode(), autocast(place):
            parts = [network(part.to(place.device)) for part in patches.split(place.batch)]
            return torch.cat([part.float() for part in parts])

    def scores(patches: torch.Tensor) -> PlainScores:
        # Never to the CPU from here: the network stays where it is trained.
        tries = [p for p in fallbacks(steps[0]) if p.device == placement.device]
        outcome = run_with_fallback(lambda place: on_one(patches, place), tries)
        steps[0] = outcome.placement
        return PlainScores(outcome.value)

    z, y, x = image.shape
    sink = KeepLabels((z, y, x), outputs)
    tiling = Tiling(windows, average="logits", batch=batch)
    run(np.ascontiguousarray(image)[None], tiling, scores, sink, monitor)
    return sink.labels


def _dice(mine: NDArray[Any], true: NDArray[Any], value: int) -> float:
    there = true == value
    size = int(there.sum())
    if not size:
        return math.nan
    said = mine == value
    return 2 * int((said & there).sum()) / (size + int(said.sum()))
