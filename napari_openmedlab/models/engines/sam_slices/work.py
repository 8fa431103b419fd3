"""One request at work: slices read, encoded and decoded in batches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.embeddings import signature
from napari_openmedlab.models.engines.sam_slices import intensity
from napari_openmedlab.models.engines.sam_slices.encodings import Encodings
from napari_openmedlab.models.engines.sam_slices.planes import (
    Outline,
    Plane,
    box_around,
    cut,
    plane_shape,
)
from napari_openmedlab.models.engines.sam_slices.protocols import Protocol
from napari_openmedlab.models.engines.sam_slices.steps import Chain, Prompt
from napari_openmedlab.models.engines.weights import Loaded

__all__ = ["Answer", "Memory", "Prepared", "Work"]

_REMEMBERED = 128 * 2**20  # bytes of low-resolution logits kept between requests


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan as the engine keeps it between requests."""

    volume: Volume
    is_ct: bool
    token: object = field(default_factory=object)
    """Stands for this scan in what is remembered of it, without keeping it in memory."""
    greys: dict[tuple[Any, ...], intensity.Grey] = field(default_factory=dict)
    """Grey levels of the whole volume, found once for each way of finding them."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What the network said about one slice.

    Attributes
    ----------
    outline : Outline
    score : float
        Its own estimate of the intersection over union; not limited to 0..1.
    """

    outline: Outline
    score: float


class Memory:
    """Low-resolution answers by slice and prompts: the next click goes on from the last."""

    def __init__(self, limit: int = _REMEMBERED) -> None:
        self._limit = limit
        self._kept: OrderedDict[tuple[Any, ...], tuple[NDArray[np.float32], float]] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[Any, ...]) -> tuple[NDArray[np.float32], float] | None:
        """Return logits and score."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: tuple[Any, ...], logits: NDArray[np.float32], score: float) -> None:
        """Keep logits and score; those used longest ago go when the limit is reached."""
        if key not in self._kept:
            self._bytes += logits.nbytes
        self._kept[key] = (logits, score)
        while self._bytes > self._limit and len(self._kept) > 1:
            _, (gone, _) = self._kept.popitem(last=False)
            self._bytes -= gone.nbytes

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
        self._bytes = 0


@dataclass(eq=False)
class _State:
    """A slice on its way through its chain."""

    plane: Plane
    chain: Chain
    done: int = 0
    logits: NDArray[np.float32] | None = None
    score: float = float("nan")

    @property
    def next(self) -> Prompt:
        return self.chain.prompts[self.done]


@dataclass(eq=False)
class Work:
    """What one request needs, gathered; every call to the network goes through here."""

    encodings: Encodings
    memory: Memory
    loaded: Loaded
    protocol: Protocol
    prepared: Prepared
    options: Mapping[str, Any]
    monitor: Monitor
    flat: set[Plane] = field(default_factory=set)
    """Slices met that have no contrast."""
    done: int = 0
    total: int = 0
    """Slices answered and to be answered, for the progress bar; total 0 is unknown."""

    @property
    def batch(self) -> int:
        """Slices at a time: one on the CPU, where results are to be the same to the bit."""
        placement = self.loaded.placement
        return 1 if placement.device == "cpu" else max(1, placement.batch)

    def shape(self, axis: int) -> tuple[int, int]:
        """Return rows and columns of slices along an axis."""
        return plane_shape(self.prepared.volume.geometry.shape, axis)

    def inside(self, plane: Plane) -> bool:
        """Return whether the volume has this slice."""
        return 0 <= plane.number < self.prepared.volume.geometry.shape[plane.axis]

    # -- answers ---------------------------------------------------------------------------

    def ask(self, chains: Mapping[Plane, Chain]) -> dict[Plane, Answer]:
        """Answer slices, a batch at a time; those whose chain is empty are left out."""
        found: dict[Plane, Answer] = {}
        planes = sorted(plane for plane, chain in chains.items() if chain.prompts)
        for axis in sorted({plane.axis for plane in planes}):
            same = [plane for plane in planes if plane.axis == axis]
            for start in range(0, len(same), self.batch):
                states = [_State(p, chains[p]) for p in same[start : start + self.batch]]
                found |= self._answered(states)
        return found

    def _answered(self, states: Sequence[_State]) -> dict[Plane, Answer]:
        for state in states:
            self._recall(state)
        ready = [s for s in states if s.done == len(s.chain.prompts)]
        waiting = [s for s in states if s not in ready]
        if waiting:
            embedded = self._embeddings([s.plane for s in waiting])
        while active := [s for s in waiting if s.done < len(s.chain.prompts)]:
            for group in _alike(active):
                places = [waiting.index(state) for state in group]
                self._decode(embedded[places], group)
        shape = self.shape(states[0].plane.axis)
        logits = np.stack([s.logits for s in states if s.logits is not None])
        with torch.inference_mode():
            on_device = torch.from_numpy(logits).to(self.loaded.device)
            masks = self.protocol.masks(on_device, shape).cpu().numpy()
        self.done += len(states)
        self._report(states[-1].plane)
        return {
            state.plane: Answer(Outline.of(mask), state.score)
            for state, mask in zip(states, masks, strict=True)
        }

    def _decode(self, embeddings: Any, group: Sequence[_State]) -> None:
        """Take the next step of slices whose prompts have one form."""
        device, shape = self.loaded.device, self.shape(group[0].plane.axis)
        prompts = [state.next for state in group]
        points = labels = boxes = masks = None
        if prompts[0].points:
            points = np.stack([self.protocol.to_model(p.points, shape) for p in prompts])
            labels = np.array([p.labels for p in prompts], dtype=np.int64)
        if prompts[0].box is not None:
            boxes = np.stack([self.protocol.box_to_model(p.box or (), shape) for p in prompts])
        if _is_fed(group[0]):
            masks = torch.stack([self._fed(state, shape) for state in group]).to(device)
        given = [
            None if each is None else torch.from_numpy(each).to(device)
            for each in (points, labels, boxes)
        ]
        with self.loaded.running():
            every, scores = self.loaded.network.decode(embeddings, *given, masks)
        with torch.inference_mode():
            single = self._single(prompts[0], fed=masks is not None)
            logits, best = self.protocol.choose(every.float(), scores.float(), single=single)
        for state, answer, score in zip(group, logits.cpu().numpy(), best.tolist(), strict=True):
            state.logits, state.score, state.done = answer, float(score), state.done + 1
            self.memory.put(self._key(state), answer, state.score)

    def _single(self, prompt: Prompt, *, fed: bool) -> bool:
        """Whether the single mask is the answer: always, or where nothing is ambiguous."""
        which = self.options.get("candidates", "single")
        if which == "auto":
            return fed or prompt.box is not None or len(prompt.points) != 1
        return bool(which == "single")

    def _fed(self, state: _State, shape: tuple[int, int]) -> Any:
        """Return the mask prompt (1, size/4, size/4) of a slice's next step."""
        if state.logits is not None:
            return self.protocol.feedback(torch.from_numpy(state.logits))[None]
        assert state.chain.start is not None
        return self.protocol.from_mask(state.chain.start.on(shape))

    def _recall(self, state: _State) -> None:
        """Take over what is remembered of the longest beginning of a chain."""
        for done in range(len(state.chain.prompts), 0, -1):
            state.done = done
            known = self.memory.get(self._key(state))
            if known is not None:
                state.logits, state.score = known
                return
        state.done = 0

    def _key(self, state: _State) -> tuple[Any, ...]:
        so_far = state.chain.prompts[: state.done]
        which = self.options.get("candidates", "single")
        return (self._place(state.plane), state.chain.start, so_far, which)

    # -- slices ----------------------------------------------------------------------------

    def encode(self, planes: Sequence[Plane]) -> None:
        """Encode slices ahead; they are kept for :meth:`ask`."""
        for start in range(0, len(planes), self.batch):
            self._embeddings(planes[start : start + self.batch])

    def is_kept(self, plane: Plane) -> bool:
        """Return whether a slice's embedding is at hand."""
        known = self.encodings.known(self._place(plane))
        return known is not None and known[0] in self.encodings.cache

    def tone(self, plane: Plane, outline: Outline) -> tuple[float, float]:
        """Return median and spread (robust standard deviation) of the voxels in an outline.

        The spread is at least 1 % of the outline's surroundings' range, so that an image
        without noise has one too.
        """
        box = box_around(plane, outline)
        raw = self.prepared.volume.crop(box).reshape(outline.mask.shape)
        values = raw.astype(np.float64)[outline.mask]
        values = values[np.isfinite(values)]
        if not values.size:
            return 0.0, float("inf")
        middle = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(values - middle)))
        finite = raw[np.isfinite(raw)]
        return middle, max(spread, 0.01 * float(np.ptp(finite.astype(np.float64))), 1e-12)

    def _embeddings(self, planes: Sequence[Plane]) -> Any:
        """Return embeddings (B, 256, grid, grid) on the device, kept ones or new ones."""
        device = self.loaded.device
        found: list[Any] = [None] * len(planes)
        fresh: dict[str, tuple[NDArray[np.uint8], list[int]]] = {}
        for number, plane in enumerate(planes):
            key, kept, picture = self._look_up(plane)
            if kept is not None:
                found[number] = torch.from_numpy(kept).to(device)
            elif picture is not None:
                fresh.setdefault(key, (picture, []))[1].append(number)
        if fresh:
            self._report(planes[0])
            pictures = np.stack([picture for picture, _ in fresh.values()])
            encoded = self._encoded(pictures)
            kept = encoded.cpu().numpy()
            for place, (key, (_, numbers)) in enumerate(fresh.items()):
                self.encodings.cache.put(key, kept[place].copy())
                for number in numbers:
                    found[number] = encoded[place]
        return torch.stack(found)

    def _look_up(
        self, plane: Plane
    ) -> tuple[str, NDArray[np.float32] | None, NDArray[np.uint8] | None]:
        """Return a slice's signature and its embedding, or else the picture to encode."""
        place = self._place(plane)
        known = self.encodings.known(place)
        if known is not None:
            key, is_flat = known
            if is_flat:
                self.flat.add(plane)
            kept = self.encodings.get(key)
            if kept is not None:
                return key, kept, None
        pixels = cut(self.prepared.volume, plane)
        grey = self._grey(pixels)
        picture = self.protocol.picture(pixels, grey)
        is_flat = not (picture.max(initial=0) > picture.min(initial=255))
        if is_flat:
            self.flat.add(plane)
        key = signature(picture, self.protocol.name, *self.loaded.key)
        self.encodings.remember(place, key, flat=is_flat)
        return key, self.encodings.get(key), picture

    def _encoded(self, pictures: NDArray[np.uint8]) -> Any:
        network = self.loaded.network
        with _cancellable(network.image_encoder.blocks, self), self.loaded.running():
            images = torch.from_numpy(pictures).to(self.loaded.device)
            return network.encode(self.protocol.to_input(images, network)).float()

    def _grey(self, pixels: NDArray[Any]) -> intensity.Grey:
        contrast = self.options["contrast"]
        if contrast == "slice":
            return intensity.of_slice(pixels)
        if contrast == "window":
            return intensity.of_window(self.options["window_low"], self.options["window_high"])
        return self._volume_grey()

    def _volume_grey(self) -> intensity.Grey:
        word = self.options["ct"]
        is_ct = self.prepared.is_ct if word == "auto" else word == "yes"
        as_medlsam = self.protocol.name == "medlsam"
        found = self.prepared.greys.get((is_ct, as_medlsam))
        if found is None:
            window = intensity.CT_WINDOW if is_ct else None
            if as_medlsam:
                window = intensity.MEDLSAM_WINDOW
            found = intensity.of_volume(
                self.prepared.volume, window, self.monitor, keeps_zero=as_medlsam
            )
            self.prepared.greys[is_ct, as_medlsam] = found
        return found

    def _place(self, plane: Plane) -> tuple[Any, ...]:
        """Name a slice as the network is shown it."""
        contrast = self.options["contrast"]
        more = {"window": ("window_low", "window_high"), "volume": ("ct",)}.get(contrast, ())
        ways = (contrast, *(self.options[name] for name in more))
        return (self.prepared.token, plane, ways, self.protocol.name, self.loaded.key)

    def _report(self, plane: Plane) -> None:
        done = min(self.done, self.total)
        self.monitor.step(done, self.total, f"slice {plane.number}")


def _is_fed(state: _State) -> bool:
    return state.logits is not None or state.chain.start is not None


def _alike(states: Sequence[_State]) -> list[list[_State]]:
    """Group slices whose next prompts can share a call."""
    groups: dict[tuple[Any, ...], list[_State]] = {}
    for state in states:
        prompt = state.next
        form = (prompt.box is not None, len(prompt.points), _is_fed(state))
        groups.setdefault(form, []).append(state)
    return list(groups.values())


@contextmanager
def _cancellable(blocks: Any, work: Work) -> Iterator[None]:
    """Obey a cancel before each block of the encoder while the context is open."""

    def before(_module: Any, _inputs: Any) -> None:
        work.monitor.step(min(work.done, work.total), work.total, "encoding")

    handles = [block.register_forward_pre_hook(before) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
