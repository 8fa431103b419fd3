"""SAM-Med2D, SAM and MedSAM as promptable engines: one shared core, three catalogue entries."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.contract import Hint, Monitor, Prediction, Request
from napari_openmedlab.models.engines.sam_slices.answering import answer_request
from napari_openmedlab.models.engines.sam_slices.encodings import Encodings
from napari_openmedlab.models.engines.sam_slices.marks import axis_of
from napari_openmedlab.models.engines.sam_slices.planes import Plane
from napari_openmedlab.models.engines.sam_slices.protocols import (
    MedLsamProtocol,
    MedSamProtocol,
    PaddedProtocol,
    Protocol,
    SamMed2DProtocol,
    SamProtocol,
)
from napari_openmedlab.models.engines.sam_slices.work import Memory, Prepared, Work
from napari_openmedlab.models.engines.weights import Loaded, Weights
from napari_openmedlab.models.modality import looks_like_ct

__all__ = ["MedSam", "Sam", "SamMed2D", "SliceEngine"]

_MEMORY = 2**30  # bytes of embeddings kept: 4096 slices at 256 pixels, 256 at 1024


class SliceEngine:
    """The core of all engines that work slice by slice.

    Parameters
    ----------
    memory_bytes : int
        Limit of the embeddings kept in memory.
    folder : path, optional
        Where embeddings go that are kept on disk (option ``disk``); by default the user's cache
        folder, or ``OPENMEDLAB_EMBEDDINGS``.
    """

    ID: ClassVar[str] = ""
    BATCH: ClassVar[int] = 8
    """Slices a graphics card encodes at a time while its memory allows."""

    def __init__(self, memory_bytes: int = _MEMORY, folder: str | Path | None = None) -> None:
        self._weights = Weights(self.ID, batch=self.BATCH)
        self._encodings = Encodings(memory_bytes, folder)
        self._memory = Memory()

    def protocol(self, options: Mapping[str, Any]) -> Protocol:
        """Return the published way of feeding the network that the options ask for."""
        raise NotImplementedError

    def prepare(self, volume: Volume, monitor: Monitor) -> Prepared:
        """Look at the scan; slices are encoded when a prompt (or a hint) says which."""
        monitor.step(0, 1, "looking at the scan")
        return Prepared(volume, looks_like_ct(volume))

    def anticipate(self, prepared: Prepared, hint: Hint, monitor: Monitor) -> None:
        """Encode the slice shown, then its neighbours, nearest first."""
        options = get_spec(self.ID).check_options(hint.options)
        planes = _planes_near(hint, prepared.volume.geometry, self.protocol(options).ahead, options)

        def encode(loaded: Loaded) -> None:
            work = self._work(loaded, prepared, options, monitor)
            for plane in planes:
                work.encode([plane])

        self._weights.run(options, monitor, encode)

    def predict(self, prepared: Prepared, request: Request, monitor: Monitor) -> Prediction:
        """Answer a request; see :class:`~napari_openmedlab.models.contract.Promptable`."""
        started = time.perf_counter()
        options = get_spec(self.ID).check_options(request.options)

        def answer(loaded: Loaded) -> Prediction:
            work = self._work(loaded, prepared, options, monitor)
            result = answer_request(work, request)
            facts = {"axis": result.axis, "protocol": work.protocol.name}
            return Prediction(
                result.mask.box,
                result.mask.mask,
                score=result.score,
                provenance=loaded.provenance() | facts,
                notes=tuple(dict.fromkeys((*loaded.notes, *result.notes))),
            )

        found = self._weights.run(options, monitor, answer)
        return replace(found, seconds=time.perf_counter() - started)

    def unload(self) -> None:
        """Release the network, and what is kept in memory."""
        self._weights.unload()
        self._encodings.clear()
        self._memory.clear()

    def _work(
        self, loaded: Loaded, prepared: Prepared, options: dict[str, Any], monitor: Monitor
    ) -> Work:
        self._encodings.limit_disk(options["disk"])
        protocol = self.protocol(options)
        return Work(self._encodings, self._memory, loaded, protocol, prepared, options, monitor)


class SamMed2D(SliceEngine):
    """SAM-Med2D and FT-SAM: medical images at 256 pixels; quick, corrected by clicks."""

    ID = "sam-med2d"
    BATCH = 16

    def protocol(self, options: Mapping[str, Any]) -> Protocol:
        """Resize every slice as the published predictor, or pad small ones as its evaluation."""
        return PaddedProtocol() if options["small_slices"] == "pad" else SamMed2DProtocol()


class Sam(SliceEngine):
    """SAM (ViT-B, L, H): photographs at 1024 pixels."""

    ID = "sam"
    BATCH = 4

    def protocol(self, options: Mapping[str, Any]) -> Protocol:
        """Return SAM's own predictor's way."""
        return SamProtocol()


class MedSam(SliceEngine):
    """MedSAM: medical images at 1024 pixels, marked by boxes."""

    ID = "medsam"
    BATCH = 4

    def protocol(self, options: Mapping[str, Any]) -> Protocol:
        """Return MedSAM's way, or MedLSAM's with the same weights."""
        return MedLsamProtocol() if options["protocol"] == "medlsam" else MedSamProtocol()


def _planes_near(
    hint: Hint, geometry: Geometry, count: int, options: Mapping[str, Any]
) -> list[Plane]:
    """Return the slice that a hint is on and those up to ``count`` away, nearest first."""
    from napari_openmedlab.geometry.prompts import PromptSet

    axis = axis_of(options["axis"], PromptSet(), geometry)
    if hint.normal is not None and min(geometry.shape) > 1:
        steps = geometry.affine[:3, :3] / np.linalg.norm(geometry.affine[:3, :3], axis=0)
        axis = int(np.abs(np.asarray(hint.normal) @ steps).argmax())
    middle = int(np.rint(geometry.to_index(hint.point)[axis]))
    offsets = sorted(range(-count, count + 1), key=abs)
    numbers = [middle + offset for offset in offsets]
    return [Plane(axis, n) for n in numbers if 0 <= n < geometry.shape[axis]]
