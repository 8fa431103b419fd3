"""Labels for training, made with little work: rough by a threshold, fine by thinning.

As D-LMBmap prepared its labels: a high-pass of the image, a threshold set by eye, small pieces
out, thinned, grown by one voxel. Labels made so are machine-made: good enough to train on after a
look, no truth to measure with.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError, ReadError, SettingsError, WriteError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.io.atomic import staging

__all__ = [
    "CUBE",
    "Cube",
    "cube_box",
    "cubes_in",
    "export_cubes",
    "fine_label",
    "high_pass",
    "read_centres",
    "rough_label",
    "without_small",
]

CUBE = 150
"""Edge of a published training cube, in voxels."""

_MANIFEST = "cubes.json"
_NAME = re.compile(r"(axon|artefact)-(\d+)$")

Kind = Literal["axon", "artefact"]


def high_pass(image: NDArray[Any]) -> NDArray[Any]:
    """Return what is brighter than its surroundings in the plane of z and y.

    Parameters
    ----------
    image : ndarray of any real dtype, shape (z, y, x)

    Returns
    -------
    ndarray, same shape
        uint16 of integer images (fractions cut off), float32 of others.

    Notes
    -----
    ``max(0, v - G(v))``, where G is a Gaussian of sigma 10 cut to 3 x 3 voxels, so nearly a box.
    That it lies across z and y, not in the image plane, is upstream's slip; its thresholds and
    labels depend on it. Borders are mirrored without their last voxel.
    """
    from scipy import ndimage

    weights = np.exp(-np.array([1.0, 0.0, 1.0]) / 200.0)
    weights /= weights.sum()
    values = image.astype(np.float64)
    blurred = ndimage.correlate1d(values, weights, axis=0, mode="mirror")
    blurred = ndimage.correlate1d(blurred, weights, axis=1, mode="mirror")
    brighter = np.maximum(values - blurred, 0.0)
    kind = np.uint16 if np.issubdtype(image.dtype, np.integer) else np.float32
    if kind is np.uint16:
        np.minimum(brighter, 65535.0, out=brighter)
    passed: NDArray[Any] = brighter.astype(kind)
    return passed


def rough_label(passed: NDArray[Any], threshold: float) -> NDArray[np.bool_]:
    """Return where a high-pass reaches a threshold; quick enough for every move of a slider."""
    return np.asarray(passed >= threshold)


def without_small(mask: NDArray[np.bool_], smallest: int = 10) -> NDArray[np.bool_]:
    """Return a mask without connected pieces (26 neighbours) of fewer voxels than ``smallest``."""
    from scipy import ndimage

    pieces, _ = ndimage.label(mask, np.ones((3, 3, 3), dtype=bool))
    large = np.bincount(pieces.ravel()) >= smallest
    large[0] = False
    return np.asarray(large[pieces])


def fine_label(rough: NDArray[np.bool_], smallest: int = 10, growths: int = 1) -> NDArray[np.bool_]:
    """Return the published fine label of a rough one: its centre-lines, grown by one voxel.

    Parameters
    ----------
    rough : ndarray of bool, shape (z, y, x)
    smallest : int
        Smaller pieces are left out first; 10 as published.
    growths : int
        Growths over the 6 neighbours; 1 as published.
    """
    from scipy import ndimage
    from skimage.morphology import skeletonize

    thin = skeletonize(without_small(rough, smallest), method="lee") > 0
    if not growths:
        return np.asarray(thin)
    return np.asarray(ndimage.binary_dilation(thin, iterations=growths))


def cube_box(centre: tuple[int, int, int], shape: tuple[int, int, int], edge: int = CUBE) -> Box:
    """Return the cube around a voxel, moved inwards where it would reach out of the volume.

    Raises
    ------
    GeometryError
        If the centre lies outside, or the volume is smaller than the cube.
    """
    if edge < 1 or any(n < edge for n in shape):
        size = " x ".join(map(str, shape))
        raise GeometryError(f"a cube of {edge} voxels does not fit into {size} voxels")
    if any(not 0 <= c < n for c, n in zip(centre, shape, strict=True)):
        raise GeometryError(f"the centre (z, y, x) = {tuple(centre)} lies outside the volume")
    start = [min(max(c - edge // 2, 0), n - edge) for c, n in zip(centre, shape, strict=True)]
    return Box((start[0], start[1], start[2]), (start[0] + edge, start[1] + edge, start[2] + edge))


def read_centres(path: str | Path) -> list[tuple[int, int, int]]:
    """Read cube centres (z, y, x) from ImageJ's table of points (columns X, Y, Slice; CSV).

    ImageJ counts slices from 1; they come back counted from 0.

    Raises
    ------
    ReadError
        If the file can't be read or lacks these columns; the line is named.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ReadError(f"{path} can't be read as a table: {error}", path) from error
    rows = list(csv.DictReader(text.splitlines()))
    centres = []
    for line, row in enumerate(rows, start=2):
        try:
            x, y, z = (float(row[name]) for name in ("X", "Y", "Slice"))
        except (KeyError, TypeError, ValueError) as error:
            raise ReadError(
                f"line {line} of {path} has no number for X, Y and Slice; save ImageJ's results "
                "with these columns as CSV",
                path,
            ) from error
        centres.append((int(z) - 1, int(y), int(x)))
    if not centres:
        raise ReadError(f"{path} holds no centre", path)
    return centres


@dataclass(frozen=True, eq=False)
class Cube:
    """A piece of a volume to train on.

    Attributes
    ----------
    image : ndarray, shape (z, y, x)
    label : ndarray of bool, same shape
        All False in an artefact cube: bright structures that are no axons, and no axon.
    kind : {"axon", "artefact"}
    box : Box
        Where it lies in its volume.
    """

    image: NDArray[Any]
    label: NDArray[np.bool_]
    kind: Kind
    box: Box

    def __post_init__(self) -> None:
        if self.image.shape != self.label.shape or self.image.shape != self.box.shape:
            raise GeometryError(
                f"image {self.image.shape}, label {self.label.shape} and box {self.box.shape} of a "
                "cube must agree"
            )
        if self.kind == "artefact" and self.label.any():
            raise SettingsError(
                "an artefact cube has no axon, but its label is not empty; clear it, or mark the "
                "cube as one with axons"
            )


def export_cubes(
    folder: str | Path,
    cubes: Sequence[Cube],
    spacing: tuple[float, float, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> tuple[Path, ...]:
    """Add cubes to a folder for training: ``images/``, ``labels/`` (NIfTI) and ``cubes.json``.

    ``openmedlab finetune FOLDER/images FOLDER/labels`` takes the folder as it is.

    Parameters
    ----------
    folder : str or Path
        New, empty, or one that this function made: numbers go on, nothing is overwritten.
    cubes : sequence of Cube
    spacing : tuple of float, optional
        Voxel size (z, y, x) in um; without it files say nothing of it.
    provenance : mapping, optional
        JSON values for every cube of this call: source, threshold.

    Returns
    -------
    tuple of Path
        The images written.

    Raises
    ------
    WriteError
        If the folder is another kind of folder or can't be written.
    """
    folder = Path(folder)
    known = cubes_in(folder)
    images, labels = folder / "images", folder / "labels"
    try:
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"{folder} can't be made: {error.strerror or error}; choose another folder", folder
        ) from error
    numbers = [int(m[2]) for m in map(_NAME.fullmatch, known) if m]
    written: list[Path] = []
    for number, cube in enumerate(cubes, start=max(numbers, default=0) + 1):
        name = f"{cube.kind}-{number:04d}"
        geometry = _geometry(cube, spacing)
        with staging(images) as stage:
            _write(stage / f"{name}.nii.gz", _storable(cube.image), geometry)
        with staging(labels) as stage:
            _write(stage / f"{name}.nii.gz", cube.label.astype(np.uint8), geometry)
        known[name] = {
            "kind": cube.kind,
            "start (z, y, x)": list(cube.box.start),
            "shape": list(cube.box.shape),
            "axon voxels": int(cube.label.sum()),
            **(provenance or {}),
        }
        with staging(folder) as stage:
            (stage / _MANIFEST).write_text(json.dumps(known, indent=1), encoding="utf-8")
        written.append(images / f"{name}.nii.gz")
    return tuple(written)


def cubes_in(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Return the cubes of a training folder by name; empty for a new or empty folder.

    Raises
    ------
    WriteError
        If the folder holds something else, or its list is damaged.
    """
    path = Path(folder) / _MANIFEST
    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return {str(name): dict(facts) for name, facts in stored.items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise WriteError(f"{path} is damaged; choose another folder", path) from error
    if Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        raise WriteError(
            f"{folder} is not empty and holds no cubes of ours; choose a new folder", folder
        )
    return {}


def _geometry(cube: Cube, spacing: tuple[float, float, float] | None) -> Geometry:
    if spacing is None:
        return Geometry.from_spacing(cube.box.shape, (1.0, 1.0, 1.0), unit="pixel")
    return Geometry.from_spacing(cube.box.shape, spacing, unit="um")


def _storable(image: NDArray[Any]) -> NDArray[Any]:
    """Return grey values in a type that NIfTI and its readers know."""
    if image.dtype == np.bool_:
        image = image.astype(np.uint8)
    if image.dtype.kind == "f":
        image = image.astype(np.float32)
    elif image.dtype.itemsize > 4:
        image = image.astype(np.int32)
    return np.ascontiguousarray(image.astype(image.dtype.newbyteorder("="), copy=False))


def _write(path: Path, stored: NDArray[Any], geometry: Geometry) -> None:
    from napari_openmedlab.io.nifti_labels import write_labels

    write_labels(path, stored, geometry)
