"""STU-Net: a CT in, named structures out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import smallest_label_dtype
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Labelling, Monitor
from napari_openmedlab.models.device import choose as choose_device
from napari_openmedlab.models.engines.stu_net.plan import Plan, plan_of
from napari_openmedlab.models.engines.stu_net.preparing import Working, prepare
from napari_openmedlab.models.engines.stu_net.scoring import Network
from napari_openmedlab.models.engines.weights import Weights, choose_record
from napari_openmedlab.models.organs import choose
from napari_openmedlab.models.tiling.interpolated import InterpolateLabels
from napari_openmedlab.models.tiling.placement import Window, Windows
from napari_openmedlab.models.tiling.resampling import resize_labels
from napari_openmedlab.models.tiling.run import Report, Tiling, run
from napari_openmedlab.models.tiling.sinks import KeepLabels

__all__ = ["ID", "StuNet"]

ID = "stu-net"
_BATCH = 4  # windows at a time on a graphics card


class StuNet:
    """Names structures in a CT: 104 with the published weights.

    Notes
    -----
    Procedure of the published direct inference: non-zero crop, cubic resampling to 1.5 mm, mean 0
    and deviation 1 over the scan without a window, windows of 128 voxels spread evenly, mean of
    probabilities with a Gaussian, interpolation back, largest. Golden files hold each step.
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
            In Hounsfield units, with a voxel size.
        region : Box
            Inside the volume; what lies around is seen but not labelled.
        options : mapping
            All options of the catalogue's entry.
        monitor : Monitor
            Hears of every window; a cancel acts at the next one.

        Returns
        -------
        Labelling
            Values are the model's class numbers whatever is chosen, uint8 or uint16.

        Raises
        ------
        EngineError
            If the scan has no voxel size or is empty, or the model can't be run on one image.
        CheckpointError
            If no model fits, or it is damaged or gone.
        GeometryError
            If the region does not lie in the volume.
        """
        began = time.perf_counter()
        if region.is_empty or not Box.whole(volume.geometry.shape).contains(region):
            raise GeometryError(f"the region {region} does not lie in '{volume.name}'")
        record = choose_record(ModelStore(), ID, options["checkpoint"])
        options = {**options, "checkpoint": record.name}
        plan = plan_of(record, options["names"])
        chosen = choose(options["classes"], plan.names)
        working = prepare(
            volume,
            region,
            plan,
            spacing=options["spacing"],
            orientation=options["orientation"],
            monitor=monitor,
        )
        prepared = time.perf_counter()
        network = Network(self._weights, options, monitor)
        if working is None:
            labels = np.zeros(region.shape, dtype=smallest_label_dtype(len(plan.names) - 1))
            report = Report()
        else:
            with torch.inference_mode():
                labels, report = _labels(working, plan, network, options, monitor)
            labels = working.placed(_only(labels, plan.names, chosen))
        ended = time.perf_counter()
        provenance: dict[str, Any] = {
            "engine": ID,
            **(network.loaded.provenance() if network.loaded else {}),
            "model": record.name,
            "options": {name: options[name] for name in sorted(options)},
            "windows": report.windows,
            "windows_skipped": report.skipped,
            "sums": report.storage,
            "prepare_seconds": round(prepared - began, 3),
        }
        notes = _notes(plan, working, options, network, report)
        names = {plan.names.index(name): name for name in chosen}
        return Labelling(region, labels, names, ended - began, provenance, notes)

    def unload(self) -> None:
        """Let go of the network."""
        self._weights.unload()


def _labels(
    working: Working,
    plan: Plan,
    network: Network,
    options: Mapping[str, Any],
    monitor: Monitor,
) -> tuple[NDArray[Any], Report]:
    """Return the labels of ``working.inside`` in the network's order."""
    shape = working.data.shape[1:]
    z, y, x = shape
    card = choose_device(options["device"]).device.kind == "cuda"
    tiling = Tiling(
        Windows.nnunet((z, y, x), plan.patch, options["step"]),
        "probabilities" if plan.form == "v1" else "logits",
        (0, 1, 2) if options["mirror"] else (),
        batch=_BATCH if card else 1,
    )
    skip = _all_air(working, tiling.windows) if options["skip_air"] else None
    classes, export = len(plan.names), options["export"]
    if export == "exact":
        sink = InterpolateLabels(working.maps(linear=True), (z, y, x), classes)
        report = run(working.data, tiling, network, sink, monitor, skip)
        return sink.labels, report
    kept = KeepLabels((z, y, x), classes)
    report = run(working.data, tiling, network, kept, monitor, skip)
    monitor.step(0, 0, "back to the scan's grid")
    linear = export == "smooth"
    return resize_labels(kept.labels, working.maps(linear=linear), linear=linear), report


def _all_air(working: Working, windows: Windows) -> Any:
    """Return what says of a window whether it holds nothing but air; ``None`` if not a CT."""
    air = working.air
    if air is None:
        return None

    def empty(window: Window) -> bool:
        inner = []
        for start, axis in zip(window.start, windows.axes, strict=True):
            low = start - axis.low
            inner.append(slice(max(low, 0), low + axis.patch))
        z, y, x = inner
        return bool(working.data[0, z, y, x].max() < air)

    return empty


def _only(labels: NDArray[Any], names: Sequence[str], chosen: Sequence[str]) -> NDArray[Any]:
    """Return the labels with classes that were not asked for set to background."""
    if len(chosen) == len(names) - 1:
        return labels
    table = np.zeros(len(names), dtype=labels.dtype)
    for name in chosen:
        table[names.index(name)] = names.index(name)
    for number, plane in enumerate(labels):
        labels[number] = table[plane]
    return labels


def _notes(
    plan: Plan,
    working: Working | None,
    options: Mapping[str, Any],
    network: Network,
    report: Report,
) -> tuple[str, ...]:
    notes = list(plan.notes)
    if network.loaded is not None:
        notes += network.loaded.notes
    if working is None:
        notes.append("The region is empty (0), so nothing was looked for.")
        return tuple(notes)
    if working.air is None:
        notes.append("This does not look like a CT in Hounsfield units; STU-Net was trained on CT.")
    spacing = options["spacing"] or plan.spacing[0]
    if spacing > plan.spacing[0] * 1.01:
        notes.append(
            f"The network saw the scan at {spacing:g} mm, but was trained at "
            f"{plan.spacing[0]:g} mm: take this as a preview."
        )
    if options["mirror"]:
        notes.append("Mirrored passes can confuse left and right; check paired structures.")
    if min(working.data.shape[1:]) < 16:
        notes.append("The scan is very thin, so the network saw mostly padding.")
    if report.skipped:
        notes.append(
            f"{report.skipped} of {report.windows} windows hold only air and were skipped."
        )
    return tuple(notes)
