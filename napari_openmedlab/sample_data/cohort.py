"""A small cohort to try things on: the CT-like torso as template, and other patients made of it.

Each patient is the torso stretched, turned and bent a little, on a grid of its own, with fresh
noise; so what is true of it is known. One file is broken on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import WriteError
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.io.atomic import sentence
from napari_openmedlab.sample_data import load

__all__ = ["ORGANS", "SampleCohort", "make_cohort"]

ORGANS = ("liver", "spleen", "kidney right", "kidney left")
"""Structures whose true masks are written beside the scans."""

_SAMPLE = "ct_torso"
_AIR = -1000.0
_PATIENTS: tuple[dict[str, Any], ...] = (
    {"stretch": (1.04, 0.97, 1.05), "turn": 4.0, "spacing": (4.0, 2.4, 2.4), "cut": 0.0},
    {"stretch": (0.95, 1.05, 0.96), "turn": -3.0, "spacing": (5.0, 2.2, 2.2), "cut": 0.0},
    {"stretch": (1.0, 1.03, 1.03), "turn": 2.0, "spacing": (4.0, 2.8, 2.8), "cut": 24.0},
)
_BEND_MM = 4.0


@dataclass(frozen=True)
class SampleCohort:
    """Where everything lies.

    Attributes
    ----------
    template, labels : Path
        A scan, and the masks of :data:`ORGANS` on it.
    scans : Path
        Folder with the other scans and a broken file.
    truth : Path
        Folder with their true masks, to compare with.
    """

    template: Path
    labels: Path
    scans: Path
    truth: Path


def make_cohort(folder: str | Path) -> SampleCohort:
    """Write the sample cohort into a folder; files of an earlier time are replaced.

    Raises
    ------
    WriteError
        If it can't be written.
    """
    root = Path(folder)
    found = SampleCohort(
        root / "template.nii.gz", root / "template_labels.nii.gz", root / "scans", root / "truth"
    )
    volume, labels, names = load(_SAMPLE)
    values = {value: name for value, name in names.items() if name in ORGANS}
    kept = np.where(np.isin(labels, list(values)), labels, 0).astype(np.uint8)
    try:
        for each in (found.scans, found.truth):
            each.mkdir(parents=True, exist_ok=True)
        _write_pair(found.template, found.labels, np.asarray(volume.array), kept, volume, values)
        for number, patient in enumerate(_PATIENTS, start=1):
            image, mask, grid = _patient(volume, kept, patient, np.random.default_rng(number))
            name = f"patient{number}.nii.gz"
            other = Volume(image, grid)
            _write_pair(found.scans / name, found.truth / name, image, mask, other, values)
        (found.scans / "broken.nii.gz").write_bytes(found.template.read_bytes()[:2000])
    except OSError as error:
        raise (
            error if isinstance(error, WriteError) else WriteError(sentence(error, root), root)
        ) from error
    return found


def _write_pair(
    scan: Path,
    masks: Path,
    image: NDArray[Any],
    labels: NDArray[np.uint8],
    volume: Volume,
    names: dict[int, str],
) -> None:
    from dataclasses import replace

    from napari_openmedlab.cohort.training_pairs import write_scan
    from napari_openmedlab.io.api import write
    from napari_openmedlab.io.atomic import staging
    from napari_openmedlab.io.sidecar import LabelInfo
    from napari_openmedlab.session.objects import distinct_colour

    with staging(scan.parent) as stage:
        write_scan(stage / scan.name, image, volume)
    objects = {value: LabelInfo(name, distinct_colour(value)) for value, name in names.items()}
    write(masks, labels, replace(volume, source=None), objects=objects)


def _patient(
    volume: Volume, labels: NDArray[np.uint8], how: dict[str, Any], rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8], Geometry]:
    """Return image, labels and grid of another patient."""
    from scipy.ndimage import map_coordinates

    source = volume.geometry
    spacing = np.array(how["spacing"])
    stretch = np.array(how["stretch"])
    extent = np.array(source.shape) * source.spacing * stretch
    extent[0] -= how["cut"]
    shape = np.maximum(1, np.floor(extent / spacing)).astype(int)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = -spacing[0], spacing[1], spacing[2]
    affine[:3, 3] = (-extent[2] / 2, -extent[1] / 2, 1500.0 + 10 * rng.integers(-20, 20))
    affine[3, 3] = 1.0
    places = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*places, indexing="ij", sparse=True)
    angle = np.deg2rad(how["turn"])
    phase = rng.uniform(0, 2 * np.pi, 3)
    turned = (
        z + _BEND_MM * np.sin(x / 70 + phase[0]),
        np.cos(angle) * y - np.sin(angle) * x + _BEND_MM * np.sin(z / 60 + phase[1]),
        np.sin(angle) * y + np.cos(angle) * x + _BEND_MM * np.sin(z / 80 + phase[2]),
    )
    index = [
        np.broadcast_to(place / grow / step + (n - 1) / 2, tuple(shape))
        for place, grow, step, n in zip(turned, stretch, source.spacing, source.shape, strict=True)
    ]
    image = map_coordinates(
        np.asarray(volume.array, np.float32), index, order=1, cval=_AIR, output=np.float32
    )
    mask = map_coordinates(labels, index, order=0, cval=0)
    image += rng.normal(0, 12, image.shape).astype(np.float32)
    grid = Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine)
    return np.rint(image).astype(np.int16), mask, grid
