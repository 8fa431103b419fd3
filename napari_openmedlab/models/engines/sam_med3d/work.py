"""One request at work: the network, the scan, the grid, and what there is to tell."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.embeddings import EmbeddingCache, signature
from napari_openmedlab.models.engines.sam_med3d.chain import Chain, CropState, advance
from napari_openmedlab.models.engines.sam_med3d.crops import Crop, WorkingGrid
from napari_openmedlab.models.engines.sam_med3d.intensity import CT_LIMITS, normalise
from napari_openmedlab.models.engines.sam_med3d.steps import Step
from napari_openmedlab.models.engines.weights import Loaded
from napari_openmedlab.models.networks.sam_med3d import upsample

__all__ = ["Encodings", "Prepared", "Work", "united"]

_PLACES = 4096  # crops whose signature is remembered, so that they need not be sampled again


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan as the engine keeps it between requests."""

    volume: Volume
    is_ct: bool
    token: object = field(default_factory=object)
    """Stands for this scan in what is remembered of it, without keeping it in memory."""


class Encodings:
    """Embeddings of crops, and which crop of which scan has which."""

    def __init__(self, memory_bytes: int) -> None:
        self.cache = EmbeddingCache(memory_bytes)
        self._places: OrderedDict[tuple[Any, ...], tuple[str, str]] = OrderedDict()

    def clear(self) -> None:
        """Forget everything in memory."""
        self.cache.clear()
        self._places.clear()

    def of(self, work: Work, crop: Crop) -> tuple[NDArray[np.float32], str]:
        """Return a crop's embedding and a sentence about its intensities, encoding if new."""
        place = (work.prepared.token, work.is_ct, crop.grid.spacing, crop.start, work.loaded.key)
        key, note = self._places.get(place, ("", ""))
        found = self.cache.get(key) if key else None
        if found is None:
            limits = CT_LIMITS if work.is_ct else None
            pixels, note = normalise(crop.sample(work.prepared.volume, limits), crop.inside())
            key = signature(pixels, *work.loaded.key)
            found = self.cache.get(key)
            if found is None:
                found = work.encode(pixels)
                self.cache.put(key, found)
        self._places[place] = (key, note)
        self._places.move_to_end(place)
        while len(self._places) > _PLACES:
            self._places.popitem(last=False)
        return found, note


@dataclass(eq=False)
class Work:
    """What one request needs, gathered; every call to the network goes through here."""

    encodings: Encodings
    loaded: Loaded
    prepared: Prepared
    grid: WorkingGrid
    options: dict[str, Any]
    monitor: Monitor
    notes: list[str] = field(default_factory=list)

    @property
    def is_ct(self) -> bool:
        """Whether intensities are clamped as CT."""
        word = self.options["ct"]
        return self.prepared.is_ct if word == "auto" else bool(word == "yes")

    def run(self, chain: Chain, steps: Sequence[Step | None]) -> Chain:
        """Return the chain after these steps; ``None`` stands for the mask alone."""
        history = self.options["points"] == "all"
        for number, step in enumerate(steps):
            self.monitor.step(number, len(steps), "decoding")
            if step is None:
                chain = Chain(tuple(self._from_mask(state) for state in chain.states))
            else:
                chain = advance(chain, step, self.grid, self.decode, history=history)
        return chain

    def embedding(self, crop: Crop) -> NDArray[np.float32]:
        """Return the embedding of a crop, kept or made now."""
        found, note = self.encodings.of(self, crop)
        if note and note not in self.notes:
            self.notes.append(note)
        return found

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the image encoder; a cancel acts between two of its blocks."""
        cube = torch.from_numpy(pixels)[None, None]
        network = self.loaded.network
        with _cancellable(network.image_encoder.blocks, self.monitor), self.loaded.running():
            found = network.encode(cube.to(self.loaded.device))
        result: NDArray[np.float32] = found[0].float().cpu().numpy()
        return result

    def decode(
        self,
        crop: Crop,
        points: NDArray[np.float32],
        labels: NDArray[np.int64],
        mask: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Run prompt encoder and mask decoder once."""
        return self._decoded(crop, (points, labels), mask)

    def _from_mask(self, state: CropState) -> CropState:
        return replace(state, logits=self._decoded(state.crop, None, state.logits))

    def _decoded(
        self,
        crop: Crop,
        clicks: tuple[NDArray[np.float32], NDArray[np.int64]] | None,
        mask: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        embedding = torch.from_numpy(self.embedding(crop))[None].to(self.loaded.device)
        given = [None, None]
        if clicks is not None:
            given = [torch.from_numpy(each)[None].to(self.loaded.device) for each in clicks]
        prompt = torch.from_numpy(mask)[None, None].to(self.loaded.device)
        with self.loaded.running():
            logits, _ = self.loaded.network.decode(embedding, *given, prompt)
        result: NDArray[np.float32] = logits[0, 0].float().cpu().numpy()
        return result

    def mask_of(self, chain: Chain) -> MaskPatch:
        """Return the voxels of the scan where any crop's logits are above 0."""
        patches = []
        for state in chain.states:
            self.monitor.step(0, 0, "back to the scan's grid")
            logits = upsample(torch.from_numpy(state.logits)[None, None])[0, 0].numpy()
            patches.append(state.crop.paste(logits, smooth=self.options["smooth"]))
        return united(patches)


@contextmanager
def _cancellable(blocks: Any, monitor: Monitor) -> Iterator[None]:
    """Report, and obey a cancel, before each block while the context is open."""
    count = len(blocks)

    def before(number: int) -> Any:
        return lambda _module, _inputs: monitor.step(number, count, "encoding")

    handles = [block.register_forward_pre_hook(before(n)) for n, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def united(patches: Sequence[MaskPatch]) -> MaskPatch:
    """Return the union of masks, in the smallest box that holds their boxes."""
    patches = [patch for patch in patches if not patch.is_empty]
    if len(patches) <= 1:
        return patches[0] if patches else MaskPatch.empty()
    box = patches[0].box
    for patch in patches[1:]:
        box = box.union(patch.box)
    mask = np.zeros(box.shape, dtype=bool)
    for patch in patches:
        mask[patch.box.relative_to(box).slices] |= patch.mask
    return MaskPatch(box, mask)
