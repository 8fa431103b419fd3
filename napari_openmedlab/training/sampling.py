"""Patches of prepared cases: placed by chance, often on a labelled voxel, mirrored, changed a bit.

MIS-FM's fine-tuning crops uniformly and mirrors; PyMIC can place crops on labelled voxels, which
helps where few voxels are labelled. The mild change of intensities is ours. MONAI's transforms
would do the same, but want whole volumes in memory and take ten seconds to load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.training.prepared import Prepared

__all__ = ["Patches", "changed"]

_AXES = "zyx"
_OFTEN = 0.5  # how often each change of intensity is made


@dataclass(frozen=True, eq=False)
class Patches:
    """Draws patches; a :class:`.batches.Samples`.

    Attributes
    ----------
    cases : sequence of Prepared
        Those to train on.
    patch : tuple of int
        Voxels (z, y, x).
    foreground : float
        Share of patches that hold a voxel of a class drawn by chance.
    flips : str
        Axes that are mirrored by chance: letters of "zyx".
    contrast : float
        As in :func:`changed`.
    """

    cases: Sequence[Prepared]
    patch: tuple[int, int, int]
    foreground: float = 0.5
    flips: str = ""
    contrast: float = 0.0

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return a patch (1, z, y, x) and its class numbers (z, y, x)."""
        if rng.random() < self.foreground:
            case, start = self._on_a_class(rng)
        else:
            case = self.cases[int(rng.integers(len(self.cases)))]
            start = tuple(int(rng.integers(room + 1)) for room in self._room(case))
        cut = tuple(slice(a, a + n) for a, n in zip(start, self.patch, strict=True))
        image, labels = np.asarray(case.image[cut]), np.asarray(case.labels[cut])
        mirrored = [axis for axis, letter in enumerate(_AXES) if letter in self.flips]
        turned = tuple(axis for axis in mirrored if rng.random() < 0.5)
        image = changed(np.flip(image, turned), self.contrast, rng)
        return image[None], np.ascontiguousarray(np.flip(labels, turned))

    def _room(self, case: Prepared) -> list[int]:
        return [size - edge for size, edge in zip(case.image.shape, self.patch, strict=True)]

    def _on_a_class(self, rng: np.random.Generator) -> tuple[Prepared, tuple[int, ...]]:
        """Return a case that has a class drawn by chance, and a patch that holds a voxel of it.

        The voxel lies anywhere in the patch, not at its centre, so that where a structure lies
        in a patch tells the network nothing.
        """
        classes = sorted({value for case in self.cases for value in case.places})
        wanted = classes[int(rng.integers(len(classes)))]
        having = [case for case in self.cases if wanted in case.places]
        case = having[int(rng.integers(len(having)))]
        places = case.places[wanted]
        voxel = np.unravel_index(int(places[int(rng.integers(len(places)))]), case.image.shape)
        start = []
        for place, edge, room in zip(voxel, self.patch, self._room(case), strict=True):
            low, high = max(0, int(place) - edge + 1), min(room, int(place))
            start.append(int(rng.integers(low, high + 1)))
        return case, tuple(start)


def changed(
    image: NDArray[np.float32], strength: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return an image with brightness, contrast and gamma changed a bit, each every other time.

    Parameters
    ----------
    image : ndarray of float32
        Scaled.
    strength : float
        Contrast is multiplied by ``1 - strength`` to ``1 + strength`` around the mean, brightness
        moved by as much of the deviation, and values between the patch's extremes raised to a
        power of ``exp(-strength)`` to ``exp(strength)``. 0: nothing is changed.
    rng : numpy.random.Generator
        The same number of draws is taken whatever is changed.
    """
    often, amount = rng.random(3) < _OFTEN, rng.uniform(-strength, strength, 3)
    out = np.array(image, dtype=np.float32)
    if not strength:
        return out
    contrast, brightness, gamma = (
        float(a) if on else 0.0 for a, on in zip(amount, often, strict=True)
    )
    if contrast or brightness:
        mean, spread = float(out.mean()), float(out.std())
        out = (out - np.float32(mean)) * np.float32(1 + contrast)
        out += np.float32(mean + brightness * spread)
    low, high = float(out.min()), float(out.max())
    if gamma and high > low:
        share = (out - np.float32(low)) / np.float32(high - low)
        out = np.float32(low) + np.float32(high - low) * share ** np.float32(np.exp(gamma))
    return np.ascontiguousarray(out, dtype=np.float32)
