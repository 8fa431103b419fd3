"""Small labelled volumes and tiny networks for tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.training.cases import Case, CasesFound, check_cases
from napari_openmedlab.training.settings import TrainSettings

TINY = (2, 4, 4, 4, 4)
NAMES = {1: "ball", 2: "block"}


def scan(seed: int, shape: tuple[int, int, int] = (24, 34, 36)) -> tuple[Volume, np.ndarray]:
    """Return noise with a bright ball and a dark block at places of their own."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    centre = [int(rng.integers(7, n - 7)) for n in shape]
    labels = np.zeros(shape, dtype=np.uint8)
    start = [int(rng.integers(2, n - 10)) for n in shape]
    labels[tuple(slice(a, a + 8) for a in start)] = 2
    labels[(z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= 36] = 1
    image = rng.normal(100, 10, shape).astype(np.float32)
    image[labels == 1] += 80
    image[labels == 2] -= 80
    geometry = Geometry.from_spacing(shape, (1.5, 1.0, 1.0))
    return Volume(image, geometry, name=f"scan {seed}", modality="MR"), labels


def case(number: int, **changes: Any) -> Case:
    """Return a case made in memory."""
    volume, labels = scan(number)
    return Case(
        **{"name": f"case {number}", "image": volume, "labels": labels, "names": NAMES} | changes
    )


def cases(count: int) -> CasesFound:
    """Return checked cases."""
    return check_cases([case(number) for number in range(count)])


def labelled_files(folder: Path, count: int) -> tuple[Path, Path]:
    """Write scans ``images/case_N_0000.nii.gz`` and ``labels/case_N_seg.nii.gz`` with names."""
    import nibabel

    from napari_openmedlab.io.api import read, write
    from napari_openmedlab.io.sidecar import LabelInfo

    images, labels = folder / "images", folder / "labels"
    images.mkdir()
    labels.mkdir()
    info = {value: LabelInfo(name, (1.0, 0.0, 0.0)) for value, name in NAMES.items()}
    for number in range(count):
        volume, array = scan(number)
        path = images / f"case_{number}_0000.nii.gz"
        nibabel.save(nibabel.Nifti1Image(volume.array.transpose(), np.diag([1, 1, 1.5, 1])), path)
        # Stored to the right, front and head; shown to the left, back and feet.
        shown = array[::-1, ::-1, ::-1]
        write(labels / f"case_{number}_seg.nii.gz", shown, read(path), objects=info)
    return images, labels


def tiny(**changes: Any) -> TrainSettings:
    """Return settings of a run of seconds."""
    return TrainSettings(
        **{
            "name": "Ball and block",
            "size": TINY,
            "patch": (16, 32, 32),
            "resolution_mode": 0,
            "iterations": 6,
            "batch": 2,
            "validate_every": 3,
            "device": "cpu",
        }
        | changes
    )
