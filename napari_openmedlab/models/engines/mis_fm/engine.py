"""MIS-FM: a scan in, the structures that the user's own model was taught out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box, box_of_mask
from napari_openmedlab.geometry.labels import smallest_label_dtype
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Labelling, Monitor
from napari_openmedlab.models.device import choose as choose_device
from napari_openmedlab.models.engines.mis_fm.choosing import ID, choose_trained
from napari_openmedlab.models.engines.mis_fm.working import Working, work_on
from napari_openmedlab.models.engines.weights import Loaded, Weights
from napari_openmedlab.models.finetuned import ModelCard, Preprocessing
from napari_openmedlab.models.tiling.interpolated import InterpolateLabels
from napari_openmedlab.models.tiling.placement import Windows
from napari_openmedlab.models.tiling.run import PlainScores, Report, Tiling, run
from napari_openmedlab.models.tiling.sinks import KeepLabels

__all__ = ["MisFm"]

_BATCH = 4  # windows at a time on a graphics card
_SMALLEST_STEP = 0.25


class MisFm:
    """Runs FMUNet or PCT-Net as they were fine-tuned here.

    Notes
    -----
    PyMIC's procedure: windows every stride, those beyond the end moved back, logits averaged
    with its Gaussian, then the largest. PyMIC runs the windows moved back to one place again and
    again; here each runs once and counts as often, which gives the same values. Volumes thinner
    than a window are mirrored up to it, as its ``Pad`` does.
    """

    def __init__(self) -> None:
        self._weights = Weights(ID, batch=_BATCH)

    def segment(
        self, volume: Volume, region: Box, options: Mapping[str, Any], monitor: Monitor
    ) -> Labelling:
        """Label a volume or a region of it.

        Parameters
        ----------
        volume : Volume
            Like those the model was trained on; with a voxel size if its card states one.
        region : Box
            Inside the volume; half a window around it is seen but not labelled.
        options : mapping
            All options of the catalogue's entry.
        monitor : Monitor
            Hears of every window; a cancel acts at the next one.

        Returns
        -------
        Labelling
            With the label values and names of the model's card.

        Raises
        ------
        EngineError
            If the model segments nothing, or the scan is constant.
        CheckpointError
            If no model fits, or it is damaged or gone.
        GeometryError
            If the region does not lie in the volume, or a voxel size is missing.
        """
        began = time.perf_counter()
        if region.is_empty or not Box.whole(volume.geometry.shape).contains(region):
            raise GeometryError(f"the region {region} does not lie in '{volume.name}'")
        record, card = choose_trained(ModelStore(), options["checkpoint"])
        options = {**options, "checkpoint": record.name}
        working = work_on(volume, region, card.preprocessing, monitor)
        network = _Network(self._weights, options, monitor)
        with torch.inference_mode():
            found, report = _classes(working, card, network, options, monitor)
        if options["largest_piece"]:
            monitor.step(0, 0, "keeping the largest pieces")
            _keep_largest(found, len(card.classes))
        labels = _with_values(found, card)
        provenance: dict[str, Any] = {
            "engine": ID,
            **(network.loaded.provenance() if network.loaded else {}),
            "model": record.name,
            "model_title": card.title,
            "options": {name: options[name] for name in sorted(options)},
            "windows": report.windows,
        }
        seconds = time.perf_counter() - began
        notes = _notes(card, working, network)
        return Labelling(region, labels, card.names, seconds, provenance, notes)

    def unload(self) -> None:
        """Let go of the network."""
        self._weights.unload()


class _Network:
    """Runs batches of windows, with less at a time or on the CPU where memory runs out."""

    def __init__(self, weights: Weights, options: Mapping[str, Any], monitor: Monitor) -> None:
        self._weights, self._options, self._monitor = weights, options, monitor
        self.loaded: Loaded | None = None

    def __call__(self, patches: torch.Tensor) -> PlainScores:
        def attempt(loaded: Loaded) -> PlainScores:
            self.loaded = loaded
            network = loaded.network.to(memory_format=loaded.network.memory_format)
            size = 1 if loaded.device.type == "cpu" else loaded.placement.batch
            with loaded.running():
                found = [network(part.to(loaded.device)) for part in patches.split(size)]
            return PlainScores(torch.cat(found))

        return self._weights.run(self._options, self._monitor, attempt)


def _classes(
    working: Working,
    card: ModelCard,
    network: _Network,
    options: Mapping[str, Any],
    monitor: Monitor,
) -> tuple[NDArray[Any], Report]:
    """Return the class number of every voxel of the region."""
    z, y, x = working.data.shape[1:]
    on_card = choose_device(options["device"]).device.kind == "cuda"
    prepared, outputs = card.preprocessing, card.variant["out_channels"]
    tiling = Tiling(
        Windows.pymic((z, y, x), prepared.patch, _stride(prepared, options["step"])),
        "logits",
        (1, 2) if options["mirror"] else (),
        batch=_BATCH if on_card else 1,
    )
    if working.resampled:
        sink = InterpolateLabels(working.maps(), (z, y, x), outputs)
        report = run(working.data, tiling, network, sink, monitor)
        return sink.labels, report
    kept = KeepLabels((z, y, x), outputs)
    report = run(working.data, tiling, network, kept, monitor)
    return np.ascontiguousarray(kept.labels[working.inner()]), report


def _stride(prepared: Preprocessing, step: float) -> tuple[int, int, int]:
    """Return the voxels between windows: the card's, or a part of the patch."""
    if step == 0:
        return prepared.stride
    z, y, x = (max(1, int(edge * max(step, _SMALLEST_STEP))) for edge in prepared.patch)
    return z, y, x


def _with_values(found: NDArray[Any], card: ModelCard) -> NDArray[Any]:
    """Return label values for class numbers, plane by plane."""
    values = [0, *(each.value for each in card.classes)]
    if values == list(range(len(values))):
        return found
    table = np.array(values, dtype=smallest_label_dtype(max(values)))
    out = np.empty(found.shape, dtype=table.dtype)
    for number, plane in enumerate(found):
        out[number] = table[plane]
    return out


def _keep_largest(found: NDArray[Any], classes: int) -> None:
    """Keep of each class its largest piece (faces touch), in place."""
    from scipy import ndimage

    for number in range(1, classes + 1):
        mask = found == number
        box = box_of_mask(mask)
        if box.is_empty:
            continue
        inside = mask[box.slices]
        pieces, count = ndimage.label(inside)
        if count > 1:
            largest = int(np.bincount(pieces.ravel())[1:].argmax()) + 1
            found[box.slices][inside & (pieces != largest)] = 0


def _notes(card: ModelCard, working: Working, network: _Network) -> tuple[str, ...]:
    notes = list(network.loaded.notes) if network.loaded is not None else []
    made, dice = card.provenance, card.provenance.held_out_dice
    cases = f"{made.cases} case{'' if made.cases == 1 else 's'}"
    if dice:
        mean = sum(dice.values()) / len(dice)
        apart = f"{made.held_out} held-out case{'' if made.held_out == 1 else 's'}"
        notes.append(f"'{card.title}' learnt from {cases}; Dice {mean:.2f} on {apart}.")
    else:
        notes.append(
            f"'{card.title}' learnt from {cases} and was never tried on others: check its labels."
        )
    if working.padded:
        notes.append("The scan is smaller than a window, so the network saw it mirrored.")
    return tuple(notes)
