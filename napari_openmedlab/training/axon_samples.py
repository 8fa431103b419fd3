"""Patches of axon cubes for training: matched histograms, CutMix with artefact cubes, turns.

As D-LMBmap prepared its data (``tests/axons`` holds what was checked): every cube may be matched
to the histogram of another of its kind, a corner of an axon cube may be overwritten by a cube
without axons, labels there being cleared, and patches are turned and mirrored. Here all that is
done while training, by chance, instead of once into files. Importing this module imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import ReadError, SettingsError

__all__ = [
    "AxonCubes",
    "TrainingCube",
    "cut_mix",
    "fitting_patch",
    "match_histogram",
    "read_cubes",
    "require_room",
    "standardised",
]

_LEVELS = 4096  # quantiles by which histograms are matched
_PUBLISHED, _STEP = 128, 32  # voxels: the published patch, and what the network halves evenly


@dataclass(frozen=True, eq=False)
class TrainingCube:
    """A cube to train on.

    Attributes
    ----------
    name : str
    image : ndarray of float32, shape (z, y, x)
        Grey values as stored.
    label : ndarray of uint8, same shape
        1 on axons.
    """

    name: str
    image: NDArray[np.float32]
    label: NDArray[np.uint8]

    @property
    def is_artefact(self) -> bool:
        """Whether it holds no axon at all."""
        return not self.label.any()

    @property
    def sha256(self) -> str:
        """Of its voxels and its label."""
        found = hashlib.sha256(repr(self.image.shape).encode())
        found.update(np.ascontiguousarray(self.image).data)
        found.update(np.ascontiguousarray(self.label).data)
        return found.hexdigest()


@dataclass(frozen=True, eq=False)
class AxonCubes:
    """Draws patches; a :class:`.batches.Samples`.

    Attributes
    ----------
    cubes : sequence of TrainingCube
        With and without axons.
    patch : tuple of int
        Voxels (z, y, x); no cube may be smaller.
    matching : float
        Share of patches whose cube is matched to another cube's histogram.
    mixing : float
        Share of patches with axons into which a corner of an artefact cube is put.
    artefacts : float
        Share of patches that come from artefact cubes, if there are any.
    turning : bool
        Quarter turns in the (y, x) plane and mirrors along all axes, by chance.
    """

    cubes: Sequence[TrainingCube]
    patch: tuple[int, int, int] = (128, 128, 128)
    matching: float = 0.5
    mixing: float = 0.5
    artefacts: float = 0.3
    turning: bool = True

    def __post_init__(self) -> None:
        if all(cube.is_artefact for cube in self.cubes):
            raise SettingsError("no cube holds an axon; mark some before training")
        require_room(self.cubes, self.patch)

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return a patch (1, z, y, x), mean 0 and deviation 1, and its classes (z, y, x)."""
        kinds: tuple[list[TrainingCube], list[TrainingCube]] = ([], [])
        for cube in self.cubes:
            kinds[cube.is_artefact].append(cube)
        axons, artefacts = kinds
        empty = bool(artefacts) and rng.random() < self.artefacts
        own = artefacts if empty else axons
        image, label = self._cut(own, rng)
        if artefacts and not empty and rng.random() < self.mixing:
            other, _ = self._cut(artefacts, rng)
            corner = tuple(int(rng.integers(n + 1)) for n in self.patch)
            image, label = cut_mix(image, label, other, corner)
        if self.turning:
            image, label = self._turned(image, label, rng)
        return np.ascontiguousarray(standardised(image)[None]), np.ascontiguousarray(label)

    def _cut(
        self, cubes: Sequence[TrainingCube], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return a patch of one of the cubes, perhaps with another's histogram."""
        cube = cubes[int(rng.integers(len(cubes)))]
        model = cubes[int(rng.integers(len(cubes)))]
        start = [int(rng.integers(n - p + 1)) for n, p in zip(cube.image.shape, self.patch,
                                                              strict=True)]  # fmt: skip
        cut = tuple(slice(a, a + p) for a, p in zip(start, self.patch, strict=True))
        image = cube.image[cut]
        if rng.random() < self.matching and model is not cube:
            image = match_histogram(image, cube.image, model.image)
        return image, cube.label[cut]

    def _turned(
        self, image: NDArray[np.float32], label: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        quarter = int(rng.integers(4)) if self.patch[1] == self.patch[2] else 0
        mirrored = tuple(axis for axis in range(3) if rng.random() < 0.5)
        image, label = np.rot90(image, quarter, (1, 2)), np.rot90(label, quarter, (1, 2))
        return np.flip(image, mirrored), np.flip(label, mirrored)


def fitting_patch(cubes: Sequence[TrainingCube]) -> tuple[int, int, int]:
    """Return the largest patch that every cube holds: multiples of 32, at most 128, one above 32.

    Raises
    ------
    SettingsError
        If the cubes are too small.
    """
    least = [min(cube.image.shape[axis] for cube in cubes) for axis in range(3)]
    z, y, x = (min(_PUBLISHED, n // _STEP * _STEP) for n in least)
    if min(z, y, x) < _STEP or max(z, y, x) <= _STEP:
        raise SettingsError(
            f"the smallest edges of the cubes are {' x '.join(map(str, least))} voxels; training "
            "takes at least 32 along every axis and 64 along one: cut larger cubes"
        )
    return z, y, x


def require_room(cubes: Sequence[TrainingCube], patch: tuple[int, int, int]) -> None:
    """Raise :class:`SettingsError` if a cube is smaller than a patch."""
    for cube in cubes:
        if any(n < p for n, p in zip(cube.image.shape, patch, strict=True)):
            size, edges = (" x ".join(map(str, each)) for each in (cube.image.shape, patch))
            raise SettingsError(
                f"cube '{cube.name}' has {size} voxels, less than a patch of {edges}; choose a "
                "smaller patch, or larger cubes"
            )


def standardised(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an image with mean 0 and deviation 1, as the network sees cubes."""
    spread = max(float(image.std()), 1e-8)
    return (image - np.float32(image.mean())) / np.float32(spread)


def cut_mix(
    image: NDArray[np.float32],
    label: NDArray[np.uint8],
    artefact: NDArray[np.float32],
    corner: tuple[int, ...],
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return a cube whose corner ``[:z, :y, :x]`` shows an artefact cube, without label there.

    Parameters
    ----------
    image, artefact : ndarray of float32, shape (z, y, x)
    label : ndarray of uint8, same shape
    corner : tuple of int
        Edges (z, y, x) of the box.
    """
    image, label = image.copy(), label.copy()
    box = tuple(slice(0, n) for n in corner)
    image[box] = artefact[box]
    label[box] = 0
    return image, label


def match_histogram(
    image: NDArray[np.float32], own: NDArray[np.float32], model: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return an image whose grey values are moved so that ``own`` has ``model``'s distribution.

    Parameters
    ----------
    image : ndarray of float32
        Part of ``own``.
    own, model : ndarray of float32
    """
    share = np.linspace(0.0, 1.0, _LEVELS)
    before, after = np.quantile(own, share), np.quantile(model, share)
    # Equal quantiles (many equal voxels) map to the middle of what they become.
    values, first = np.unique(before, return_index=True)
    last = np.append(first[1:], len(before)) - 1
    wanted = (after[first] + after[last]) / 2.0
    matched: NDArray[np.float32] = np.interp(image, values, wanted).astype(np.float32)
    return matched


def read_cubes(folder: str | Path) -> tuple[TrainingCube, ...]:
    """Read the cubes of a training folder (``images/`` and ``labels/``).

    Raises
    ------
    ReadError
        If a folder or a partner is missing, or a pair differs in size.
    """
    from napari_openmedlab.training.pairs import pair_folders

    folder = Path(folder)
    cases, left_out = pair_folders(folder / "images", folder / "labels")
    if left_out:
        name, reason = left_out[0]
        raise ReadError(f"cube '{name}' of {folder} can't be used: {reason}", folder)
    cubes = []
    for case in cases:
        volume, label, _ = case.read()
        image = np.asarray(volume.array)
        if image.shape != label.shape:
            raise ReadError(
                f"cube '{case.name}' of {folder}: the image has {image.shape} voxels, its label "
                f"{label.shape}",
                folder,
            )
        cubes.append(
            TrainingCube(case.name, image.astype(np.float32), (label != 0).astype(np.uint8))
        )
    return tuple(cubes)
