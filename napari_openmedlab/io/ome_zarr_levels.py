"""One multiscale image of an OME-Zarr store: its arrays, scales and units."""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from napari_openmedlab.errors import ReadError
from napari_openmedlab.geometry.volume import Geometry, Unit
from napari_openmedlab.io.tiff_scale import LENGTH_UM

__all__ = ["BROKEN", "SPACE", "Level", "StoredImage", "array_of", "levels_of", "reason"]

BROKEN = (
    ValueError, LookupError, TypeError, AttributeError, OSError, RuntimeError, SystemError,
    ImportError, ArithmeticError, MemoryError, EOFError, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What zarr and its codecs raise on broken stores (found by fuzzing)."""

SPACE = ("z", "y", "x")


@dataclass(frozen=True, eq=False)
class Level:
    """One resolution of an image: a (z, y, x) dask array and its grid."""

    array: Any = field(repr=False)
    geometry: Geometry


@dataclass(frozen=True, eq=False)
class StoredImage:
    """A multiscale image of a store."""

    key: str
    name: str
    group: Any
    axes: tuple[str, ...]
    units: Mapping[str, str]
    multiscale: Mapping[str, Any]
    channels: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int, int]:
        """Shape (z, y, x) of the finest level."""
        extent = dict(zip(self.axes, self.shape, strict=True))
        return extent.get("z", 1), extent["y"], extent["x"]


def array_of(group: Any, dataset: Mapping[str, Any], path: Path) -> Any:
    """Return the array that an entry of a multiscale's ``datasets`` names."""
    where = str(dataset.get("path", ""))
    try:
        array = group[where]
        shape = array.shape
    except BROKEN as error:
        raise ReadError(
            f"{path}: the array '{where}' named by its metadata is missing or broken "
            f"({reason(error)})",
            path,
        ) from error
    if not shape or min(shape) < 1:
        raise ReadError(f"{path}: the array '{where}' is empty", path)
    return array


def reason(error: BaseException) -> str:
    """Return the first line of an error's text, or its type if it says nothing."""
    text = str(error).strip("\"'") or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def levels_of(
    image: StoredImage, pick: Mapping[str, int], path: Path
) -> tuple[list[Level], tuple[str, ...]]:
    """Return the image at every resolution, finest first, and what the user must know.

    Parameters
    ----------
    pick : mapping of str to int
        Index on every axis other than z, y, x.
    """
    unit, factors, notes = _unit(image)
    levels: list[Level] = []
    for dataset in image.multiscale["datasets"]:
        stored = array_of(image.group, dataset, path)
        if len(stored.shape) != len(image.axes):
            raise ReadError(f"{path}: '{dataset['path']}' has other axes than the rest", path)
        array = _zyx(stored, image.axes, pick, path)
        scale, shift = _transform(image, dataset, path)
        spacing, origin = (
            {a: values.get(a, default) * factors.get(a, 1.0) for a in SPACE}
            for values, default in ((scale, scale.get("y", 1.0)), (shift, 0.0))
        )
        affine = np.zeros((4, 4))
        affine[2, 0], affine[1, 1], affine[0, 2] = spacing["z"], spacing["y"], spacing["x"]
        affine[:, 3] = origin["x"], origin["y"], origin["z"], 1.0
        levels.append(Level(array, Geometry(array.shape, affine, unit=unit, frame="image")))
    return levels, notes


def _unit(image: StoredImage) -> tuple[Unit, dict[str, float], tuple[str, ...]]:
    """Return the volume's unit, the factor to it for each axis, and notes."""
    spatial = [a for a in SPACE if a in image.axes]
    factors = {a: LENGTH_UM.get(image.units[a]) for a in spatial}
    scaled = any(
        step.get("type") == "scale" for step in _steps(image, image.multiscale["datasets"][0])
    )
    known = {a: f for a, f in factors.items() if f is not None}
    if scaled and len(known) == len(spatial):
        known.setdefault("z", known["y"])
        return "um", known, ()
    what = "unit of its voxel size" if scaled else "voxel size"
    note = f"the image doesn't state the {what}: lengths and volumes are in voxels; set it"
    return "pixel", {}, (note,)


def _steps(image: StoredImage, dataset: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    own = dataset.get("coordinateTransformations") or ()
    return [*own, *(image.multiscale.get("coordinateTransformations") or ())]


def _transform(
    image: StoredImage, dataset: Mapping[str, Any], path: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Return scale and translation by axis: the level's own steps, then those of all levels."""
    scale, shift = np.ones(len(image.axes)), np.zeros(len(image.axes))
    for step in _steps(image, dataset):
        kind = step.get("type")
        if kind == "identity":
            continue
        values = step.get(str(kind))
        if kind not in ("scale", "translation") or not _numbers(values, len(image.axes)):
            raise ReadError(
                f"{path}: the transformation {dict(step)} is not a scale or translation of "
                f"{len(image.axes)} numbers",
                path,
            )
        vector = np.asarray(values, dtype=float)
        if kind == "scale":
            scale, shift = scale * vector, shift * vector
        else:
            shift = shift + vector
    spatial = [scale[i] for i, a in enumerate(image.axes) if a in SPACE]
    if min(spatial) <= 0:
        raise ReadError(f"{path}: a voxel size of {min(spatial):g} makes no sense", path)
    return dict(zip(image.axes, scale, strict=True)), dict(zip(image.axes, shift, strict=True))


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == count
        and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    )


def _zyx(stored: Any, axes: tuple[str, ...], pick: Mapping[str, int], path: Path) -> Any:
    """Return a (z, y, x) dask array of the chosen channel and time."""
    import dask.array as da

    chunks = getattr(stored, "chunks", None) or stored.shape
    array = da.from_array(_Guarded(stored, path), chunks=chunks, name=False, asarray=False)
    array = array[tuple(pick.get(a, slice(None)) for a in axes)]
    kept = [a for a in axes if a not in pick]
    array = array.transpose([kept.index(a) for a in SPACE if a in kept])
    return array if "z" in kept else array[None]


class _Guarded:
    """A Zarr array whose read errors are sentences (for dask)."""

    def __init__(self, array: Any, path: Path) -> None:
        self.shape = tuple(array.shape)
        self.dtype = array.dtype
        self.ndim = len(self.shape)
        self._array = array
        self._path = path

    def __getitem__(self, key: Any) -> Any:
        try:
            return self._array[key]
        except BROKEN as error:
            raise ReadError(
                f"{self._path} holds a damaged block of voxels ({reason(error)}); copy or "
                "export the image again",
                self._path,
            ) from error
