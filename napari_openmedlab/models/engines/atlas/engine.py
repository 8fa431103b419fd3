"""The engine: no weights, no GPU, the same answer every time.

Each template is laid over the scan (place, affine map, smooth field: see ``aligning``), carries
its six points along, and the templates' answers are fused. It sees what two scans have in common;
it knows no anatomy. A MedLAM with trained weights should do better between different people.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from napari_openmedlab.errors import OpenMedLabError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.atlas.aligning import Alignment, align, correlation, warped
from napari_openmedlab.models.engines.atlas.fusing import Guess, fuse, nowhere
from napari_openmedlab.models.engines.atlas.working import STEP_MM, Worked, to_upright, work
from napari_openmedlab.models.localisation import Found, Landmarks, Localisation, Template
from napari_openmedlab.models.modality import looks_like_ct

__all__ = ["Atlas"]

VERSION = 1
"""Raise when the working image changes; part of the signature of kept ones."""
_KEPT = 24  # working images of templates in memory, some 8 MB each
_SMALL_MM = 80.0
_AROUND_MM = 12.0  # of a structure's surroundings that are compared


class Atlas:
    """Finds structures by laying templates over the scan."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Worked] = OrderedDict()

    def locate(
        self,
        volume: Volume,
        templates: Sequence[Template],
        options: Mapping[str, Any],
        monitor: Monitor,
        structures: Sequence[str] = (),
    ) -> Localisation:
        """Find structures of templates in a scan.

        Parameters
        ----------
        volume : Volume
            In mm; any orientation, tilt, spacing and field of view.
        templates : sequence of Template
            Of the same modality.
        options : mapping
            "mode", "contrast" (see the catalogue).
        monitor : Monitor
        structures : sequence of str
            By default all that any template has.

        Returns
        -------
        Localisation

        Raises
        ------
        EngineError
            If the scan is not in mm or shows nothing.
        """
        begun = time.monotonic()
        wanted = list(structures) or _names(templates)
        serving = [t for t in templates if any(t.structure(name) for name in wanted)]
        tick = _ticker(monitor, 7 * len(serving) + 1)
        tick("reading the scan")
        contrast = str(options.get("contrast", "auto"))
        query = work(volume, _is_ct(volume, contrast))
        fine = options.get("mode", "full") == "full"
        guesses: dict[str, list[Guess]] = {name: [] for name in wanted}
        notes = list(_advice(volume, templates))
        for number, template in enumerate(serving):
            say = f"template {number + 1} of {len(serving)}"
            tick(say)
            try:
                image = self._worked(template, contrast)
            except OpenMedLabError as error:  # one bad template never stops the others
                notes.append(f"template {template.id} was left out: {error}")
                continue
            found = align(image, query, lambda said=say: tick(said), fine=fine)  # type: ignore[misc]
            if found is not None:
                _guess(guesses, template, image, query, found)
        tick("done", last=True)
        answers = tuple(self._answer(name, guesses[name], templates, volume) for name in wanted)
        provenance = {
            "engine": "atlas",
            "version": VERSION,
            "device": "cpu",
            "options": {k: v for k, v in options.items() if k in ("mode", "contrast")},
            "templates": [t.id for t in serving],
        }
        return Localisation(answers, time.monotonic() - begun, provenance, tuple(notes))

    def unload(self) -> None:
        """Forget the templates' working images."""
        self._kept.clear()

    @staticmethod
    def _answer(
        name: str, guesses: Sequence[Guess], templates: Sequence[Template], volume: Volume
    ) -> Found:
        if not any(t.structure(name) for t in templates):
            return nowhere(name, "no template has it")
        return fuse(name, guesses, volume.geometry)

    def _worked(self, template: Template, contrast: str) -> Worked:
        """Return a template's working image: from memory, from its library, or made."""
        key = f"atlas:image@{VERSION}-{STEP_MM:g}-{contrast}-{template.content}"
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        held = template.features.get(key) if template.features is not None else None
        image = None if held is None else _from_arrays(held)
        if image is None:
            if template.load is None:
                raise OpenMedLabError(
                    "its library keeps neither its image nor this engine's copy of it"
                )
            volume = template.load()
            image = work(volume, _is_ct(volume, contrast))
            # As it will come back from the library: the first run and the next must agree.
            image = _from_arrays(_as_arrays(image)) or image
            if template.features is not None:
                template.features.put(key, _as_arrays(image))
        self._kept[key] = image
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return image


def _ticker(monitor: Monitor, total: int) -> Callable[..., None]:
    done = iter(range(1, 10**9))

    def tick(text: str = "", last: bool = False) -> None:
        monitor.step(total if last else min(next(done), total - 1), total, text)

    return tick


def _names(templates: Sequence[Template]) -> list[str]:
    return list(dict.fromkeys(mark.name for t in templates for mark in t.structures))


def _is_ct(volume: Volume, contrast: str) -> bool:
    """Return whether values are Hounsfield units: as told, else as they look."""
    return looks_like_ct(volume) if contrast == "auto" else contrast == "ct"


def _advice(volume: Volume, templates: Sequence[Template]) -> Iterator[str]:
    if volume.geometry.frame != "patient":
        yield (
            f"{volume.name} does not say how the patient lay; its own axes are taken for left, "
            "posterior and superior"
        )
    extent = np.array(volume.geometry.shape) * np.array(volume.geometry.spacing)
    if extent.min() < _SMALL_MM:
        yield (
            f"{volume.name} is only {extent.min():.0f} mm along one axis: little to compare "
            "with the templates, look at every box"
        )
    if len(templates) < 2:
        yield "one template only: nothing can disagree with it; mark two or three"


def _guess(
    guesses: dict[str, list[Guess]],
    template: Template,
    image: Worked,
    query: Worked,
    found: Alignment,
) -> None:
    moved = warped(query, image, found)
    for name, kept in guesses.items():
        mark = template.structure(name)
        if mark is not None:
            kept.append(_one(mark, image, moved, found))


def _one(mark: Landmarks, image: Worked, moved: Worked, found: Alignment) -> Guess:
    points = to_upright(np.array(mark.points))
    index = image.index(points)
    margin = _AROUND_MM / image.step
    low = np.clip(np.floor(index.min(axis=0) - margin), 0, None).astype(int)
    high = np.ceil(index.max(axis=0) + margin + 1).astype(int)
    cut = tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))
    both = image.seen[cut] & moved.seen[cut]
    likeness = correlation(image.image[cut][both], moved.image[cut][both])
    if both.size and both.mean() < 0.2:
        likeness = min(likeness, 0.0)  # hardly anything of it could be compared
    return Guess(found.map(points), likeness)


def _as_arrays(image: Worked) -> dict[str, Any]:
    return {
        "image": np.rint(image.image * 255).astype(np.uint8),
        "seen": np.packbits(image.seen),
        "origin": image.origin,
        "step": np.array(image.step),
    }


def _from_arrays(arrays: Mapping[str, Any]) -> Worked | None:
    """Return a kept working image, ``None`` if it is not what we kept."""
    try:
        image = arrays["image"].astype(np.float32) / np.float32(255)
        seen = np.unpackbits(arrays["seen"], count=image.size).astype(bool).reshape(image.shape)
        return Worked(image, seen, arrays["origin"].astype(np.float64), float(arrays["step"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
