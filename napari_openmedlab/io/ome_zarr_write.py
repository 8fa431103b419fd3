"""Writing OME-Zarr (NGFF 0.4, Zarr 2) piece by piece, for images larger than memory.

An image starts with its finest level and valid metadata; coarser levels are made from it
afterwards, chunk by chunk. Chunks of zeros are not written.

References
----------
.. [1] J. Moore et al., "OME-NGFF", https://ngff.openmicroscopy.org/0.4/
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import OpenMedLabError, WriteError
from napari_openmedlab.io.atomic import sentence
from napari_openmedlab.io.ome_zarr_levels import BROKEN, reason

__all__ = ["ImagePlace", "Reduction", "add_labels", "build_levels", "create_image", "level_shapes"]

Reduction = Literal["mean", "max", "nearest"]

_SMALLEST = 192  # a level whose longest edge is at most this is the last
_COLOUR = [255, 80, 60, 255]


@dataclass(frozen=True)
class ImagePlace:
    """Where an image lies in space.

    Attributes
    ----------
    spacing : tuple of float or None
        Voxel size (z, y, x) in um; ``None``: not known, lengths are voxels.
    origin : tuple of float
        Centre of its first voxel (z, y, x), in um or voxels.
    """

    spacing: tuple[float, float, float] | None
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)


def create_image(
    folder: Path,
    shape: tuple[int, int, int],
    dtype: Any,
    chunks: tuple[int, int, int],
    place: ImagePlace,
    name: str,
) -> Any:
    """Create an image of zeros and return its finest level, a Zarr array.

    Parameters
    ----------
    folder : Path
        Is made; must not exist yet.
    shape, dtype
        Of the finest level.
    chunks : tuple of int
    place : ImagePlace
    name : str

    Raises
    ------
    WriteError
        If it can't be made.
    """
    import zarr

    with _in_sentences(folder):
        group = zarr.open_group(str(folder), mode="w-", zarr_format=2)
        array = _array(group, "0", shape, dtype, chunks)
        _describe(group, [shape], place, name, None)
    return array


def add_labels(folder: Path, name: str, place: ImagePlace, chunks: tuple[int, int, int]) -> Any:
    """Create a label image of zeros (uint8) beside an image; return its finest level.

    Parameters
    ----------
    folder : Path
        Of the image.
    name : str
        Name below ``labels``.
    place : ImagePlace
    chunks : tuple of int
    """
    import zarr

    with _in_sentences(folder):
        root = zarr.open_group(str(folder), mode="r+")
        labels = root.require_group("labels")
        listed = list(labels.attrs.get("labels", []))
        labels.attrs["labels"] = [*listed, *([name] if name not in listed else [])]
        group = labels.require_group(name)
        shape = root["0"].shape
        array = _array(group, "0", shape, np.uint8, chunks)
        _describe(group, [shape], place, name, None)
        group.attrs["image-label"] = {
            "version": "0.4",
            "colors": [{"label-value": 1, "rgba": _COLOUR}],
            "source": {"image": "../../"},
        }
    return array


def level_shapes(
    shape: tuple[int, int, int], spacing: tuple[float, float, float] | None
) -> list[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """Return shape and factors to the level before, for every coarser level.

    An axis whose voxels are twice as long as the shortest waits until the others have caught up.
    """
    size = list(spacing or (1.0, 1.0, 1.0))
    current, levels = list(shape), []
    while max(current) > _SMALLEST:
        factors = [
            2 if s < 2 * min(size) and n > 1 else 1 for s, n in zip(size, current, strict=True)
        ]
        if max(factors) == 1:
            factors = [2 if n == max(current) else 1 for n in current]
        current = [-(-n // f) for n, f in zip(current, factors, strict=True)]
        size = [s * f for s, f in zip(size, factors, strict=True)]
        levels.append(((current[0], current[1], current[2]), (factors[0], factors[1], factors[2])))
    return levels


def build_levels(
    folder: Path,
    place: ImagePlace,
    name: str,
    reduction: Reduction,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make the coarser levels of an image, chunk by chunk, and list them in its metadata.

    Levels that are there already are made anew.

    Parameters
    ----------
    folder : Path
        The group that holds level ``0``.
    place : ImagePlace
    name : str
    reduction : {"mean", "max", "nearest"}
        How voxels are joined.
    step : callable
        Hears of chunks done of chunks in all; may raise to stop.

    Raises
    ------
    WriteError
        If a level can't be written.
    """
    import zarr

    with _in_sentences(folder):
        group = zarr.open_group(str(folder), mode="r+")
        finest = group["0"]
        levels = level_shapes(tuple(finest.shape), place.spacing)
        chunks = tuple(finest.chunks)
        total = sum(prod(-(-n // c) for n, c in zip(s, chunks, strict=True)) for s, _ in levels)
        done = itertools.count(1)
        _describe(group, [tuple(finest.shape)], place, name, reduction)
        above = finest
        for number, (shape, factors) in enumerate(levels, start=1):
            shutil.rmtree(folder / str(number), ignore_errors=True)
            below = _array(group, str(number), shape, finest.dtype, chunks)
            for cut in _cuts(shape, chunks):
                step(next(done), total)
                block = _reduced(_above(above, cut, factors), factors, reduction)
                if block.any():
                    below[cut] = block
            above = below
        shapes = [tuple(finest.shape), *(shape for shape, _ in levels)]
        _describe(group, shapes, place, name, reduction)


def _array(group: Any, name: str, shape: Any, dtype: Any, chunks: Any) -> Any:
    from numcodecs import Blosc  # type: ignore[import-untyped]

    dtype = np.dtype(dtype)
    shuffle = Blosc.BITSHUFFLE if dtype.itemsize > 1 else Blosc.NOSHUFFLE
    return group.create_array(
        name,
        shape=tuple(shape),
        dtype=dtype,
        chunks=tuple(chunks),
        compressors=Blosc(cname="zstd", clevel=1, shuffle=shuffle),
        chunk_key_encoding={"name": "v2", "separator": "/"},
        fill_value=0,
    )


def _describe(
    group: Any, shapes: Sequence[Any], place: ImagePlace, name: str, reduction: str | None
) -> None:
    """Write the multiscale metadata: every level lies so that its voxels cover those above."""
    spacing = np.array(place.spacing or (1.0, 1.0, 1.0))
    origin = np.array(place.origin, dtype=float)
    steps = [(1, 1, 1)] + [f for _, f in level_shapes(tuple(shapes[0]), place.spacing)]
    datasets = []
    scale = np.ones(3)
    for number in range(len(shapes)):
        scale = scale * np.array(steps[number])
        shift = origin + (scale - 1) / 2 * spacing
        datasets.append(
            {
                "path": str(number),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [float(v) for v in spacing * scale]},
                    {"type": "translation", "translation": [float(v) for v in shift]},
                ],
            }
        )
    unit = {"unit": "micrometer"} if place.spacing else {}
    axes = [{"name": axis, "type": "space", **unit} for axis in "zyx"]
    multiscale: dict[str, Any] = {
        "version": "0.4",
        "name": name,
        "axes": axes,
        "datasets": datasets,
    }
    if reduction:
        multiscale["type"] = reduction
    group.attrs["multiscales"] = [multiscale]


def _cuts(shape: Sequence[int], chunks: Sequence[int]) -> Iterator[tuple[slice, slice, slice]]:
    for low in itertools.product(*(range(0, n, c) for n, c in zip(shape, chunks, strict=True))):
        z, y, x = (slice(a, min(a + c, n)) for a, c, n in zip(low, chunks, shape, strict=True))
        yield z, y, x


def _above(array: Any, cut: Sequence[slice], factors: Sequence[int]) -> NDArray[Any]:
    z, y, x = (slice(c.start * f, c.stop * f) for c, f in zip(cut, factors, strict=True))
    return np.asarray(array[z, y, x])


def _reduced(block: NDArray[Any], factors: Sequence[int], reduction: Reduction) -> NDArray[Any]:
    """Return a block with voxels joined; at the far ends fewer voxels may make one."""
    if not block.any():
        return np.zeros(
            [-(-n // f) for n, f in zip(block.shape, factors, strict=True)], block.dtype
        )
    if reduction == "nearest":
        return block[tuple(slice(None, None, f) for f in factors)]
    fill = [(0, -n % f) for n, f in zip(block.shape, factors, strict=True)]
    whole = np.pad(block, fill, mode="edge") if any(b for _, b in fill) else block
    (a, b, c), (z, y, x) = factors, whole.shape
    parts = whole.reshape(z // a, a, y // b, b, x // c, c)
    if reduction == "max":
        found: NDArray[Any] = parts.max(axis=(1, 3, 5))
        return found
    means = parts.mean(axis=(1, 3, 5), dtype=np.float32)
    joined: NDArray[Any] = np.rint(means) if block.dtype.kind in "ui" else means
    return joined.astype(block.dtype)


@contextmanager
def _in_sentences(folder: Path) -> Iterator[None]:
    try:
        yield
    except OpenMedLabError:
        raise
    except OSError as error:
        raise WriteError(sentence(error, folder), folder) from error
    except BROKEN as error:
        raise WriteError(f"{folder} can't be written: {reason(error)}", folder) from error
