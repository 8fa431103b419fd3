"""Axon cubes that are not trained on: chosen, labelled by the network, measured.

Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import SettingsError
from napari_openmedlab.evaluation.axon_metrics import centre_line_agreement, cl_dice
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.device import Placement
from napari_openmedlab.models.tiling.placement import Windows
from napari_openmedlab.training.axon_samples import TrainingCube, standardised

__all__ = ["HeldOutCubes", "split_cubes"]

_SHARE = 5  # one cube of so many, as in the published five-fold training
_TOLERANCE = 2.0  # voxels, of the centre-line F1

Cubes = tuple[TrainingCube, ...]


def split_cubes(cubes: Sequence[TrainingCube], count: int | None, seed: int) -> tuple[Cubes, Cubes]:
    """Return the cubes to train on, and those held out.

    Parameters
    ----------
    cubes : sequence of TrainingCube
    count : int or None
        How many cubes with axons are held out, and the same share of artefact cubes. ``None``: a
        fifth, from five on.
    seed : int
        Decides which, whatever the order of the cubes.

    Raises
    ------
    SettingsError
        If none would be left to train on.
    """
    order = np.random.default_rng(seed)
    named = sorted(cubes, key=lambda cube: cube.name)
    mixed = [int(n) for n in order.permutation(len(named))]
    axons = [n for n in mixed if not named[n].is_artefact]
    artefacts = [n for n in mixed if named[n].is_artefact]
    count = len(axons) // _SHARE if count is None else count
    if count and count >= len(axons):
        raise SettingsError(
            f"{count} of {len(axons)} cubes with axons can't be held out: none would be left to "
            "train on"
        )
    out = set(axons[:count])
    if out:
        out |= set(artefacts[: len(artefacts) * count // len(axons)])
    return (
        tuple(cube for n, cube in enumerate(named) if n not in out),
        tuple(cube for n, cube in enumerate(named) if n in out),
    )


@dataclass(frozen=True, eq=False)
class HeldOutCubes:
    """Measures a network on cubes it is not trained on; for ``Task.validate``.

    Attributes
    ----------
    cubes : sequence of TrainingCube
    patch : tuple of int
        Voxels (z, y, x) of the windows, which overlap by half.
    """

    cubes: Sequence[TrainingCube]
    patch: tuple[int, int, int]

    def __call__(self, network: Any, placement: Placement, monitor: Monitor) -> dict[str, float]:
        """Return the strict Dice over the voxels of all cubes, artefact cubes included."""
        found = self._labelled(network, placement, monitor)
        return {"axons": _dice([(cube.label != 0, mask) for cube, mask in found])}

    def measures(self, network: Any, placement: Placement, monitor: Monitor) -> dict[str, float]:
        """Return that and more of the finished network, by names that say what each is.

        clDice and the centre-line's F1, which allows 2 voxels, are means over the cubes with axons;
        for artefact cubes it is the share of voxels taken for axon.
        """
        from skimage.morphology import skeletonize

        pairs, overlaps, lines, wrong = [], [], [], []
        for cube, mask in self._labelled(network, placement, monitor):
            there = cube.label != 0
            pairs.append((there, mask))
            if cube.is_artefact:
                wrong.append(float(mask.mean()))
                continue
            thin, truth = skeletonize(mask) > 0, skeletonize(there) > 0
            overlaps.append(cl_dice(mask, there, thin, truth))
            lines.append(
                centre_line_agreement(np.argwhere(thin), np.argwhere(truth), _TOLERANCE).f1
            )
        found = {
            "strict Dice": _dice(pairs),
            "clDice": mean(overlaps),
            "centre-line F1 (2 voxels)": mean(lines),
        }
        return found | ({"artefact voxels taken for axon": mean(wrong)} if wrong else {})

    def _labelled(
        self, network: Any, placement: Placement, monitor: Monitor
    ) -> Iterator[tuple[TrainingCube, NDArray[np.bool_]]]:
        from napari_openmedlab.training.validation import Relay, segment

        stride = tuple(edge // 2 for edge in self.patch)
        for number, cube in enumerate(self.cubes):
            z, y, x = cube.image.shape
            windows = Windows.pymic((z, y, x), self.patch, (stride[0], stride[1], stride[2]))
            listening = Relay(monitor, f"held-out cube {number + 1} of {len(self.cubes)}")
            image = standardised(cube.image)
            yield cube, segment(network, image, windows, 2, placement, listening) == 1


def _dice(pairs: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> float:
    both = sum(int((there & mask).sum()) for there, mask in pairs)
    return 2 * both / sum(int(there.sum()) + int(mask.sum()) for there, mask in pairs)
