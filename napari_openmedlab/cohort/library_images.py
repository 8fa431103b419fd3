"""The scan of a template: its hash, a copy of its voxels without any header, small pictures."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.cohort.library_features import read_arrays, write_arrays
from napari_openmedlab.errors import GeometryError, ReadError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.extreme_points import box_of_walls
from napari_openmedlab.geometry.frames import display_reorientation
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.localisation import Landmarks

__all__ = [
    "SCAN",
    "content_of",
    "guess_modality",
    "read_mask",
    "read_scan",
    "write_mask",
    "write_scan",
    "write_view",
]

SCAN = "scan.npz"
_SIDE = 220  # pixels of one of the three pictures


def content_of(volume: Volume) -> str:
    """Return a hash of a scan's voxels (as float32) and grid; of lazy arrays plane by plane.

    Raises
    ------
    GeometryError
        If the scan holds values that aren't real numbers.
    """
    geometry = volume.geometry
    if np.dtype(volume.array.dtype).kind not in "biuf":
        raise GeometryError(f"{volume.name} holds {volume.array.dtype}, not real numbers")
    digest = hashlib.blake2b(digest_size=20)
    grid: list[str | int] = [geometry.unit, geometry.frame, *geometry.shape]
    grid += [f"{value + 0.0:.4f}" for value in np.round(geometry.affine[:3], 4).ravel()]
    digest.update("|".join(str(value) for value in grid).encode())
    for plane in range(geometry.shape[0]):
        values = np.asarray(volume.array[plane], dtype="<f4") + np.float32(0)
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def guess_modality(volume: Volume) -> str:
    """Return what the reader knew, or ``"CT"`` for air far below zero, else ``""``."""
    if volume.modality:
        return volume.modality.upper()
    if volume.geometry.frame != "patient" or np.dtype(volume.array.dtype).kind == "u":
        return ""
    steps = tuple(slice(None, None, max(1, n // 48)) for n in volume.geometry.shape)
    sample = np.asarray(volume.array[steps], dtype=np.float32)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return ""
    return "CT" if np.percentile(sample, 10) < -300 and sample.min() >= -4096 else ""


def write_scan(folder: Path, volume: Volume) -> None:
    """Write the voxels alone; the grid stands in the template's JSON, bit for bit."""
    array = np.asarray(volume.array)
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        array = array.astype(np.float32)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    write_arrays(folder / SCAN, {"voxels": np.ascontiguousarray(native)}, compress=True)


def read_scan(folder: Path, geometry: Geometry, name: str, modality: str) -> Volume:
    """Read the copy of a template's scan.

    Raises
    ------
    ReadError
        If it is missing or damaged.
    """
    arrays = read_arrays(folder / SCAN)
    if arrays is None or "voxels" not in arrays or arrays["voxels"].shape != geometry.shape:
        raise ReadError(
            f"the scan of template {folder.name} is missing or damaged ({folder / SCAN}); mark "
            "the template anew, or restore the file from a copy",
            folder / SCAN,
        )
    return Volume(arrays["voxels"], geometry, name=name, modality=modality)


def write_mask(path: Path, patch: MaskPatch) -> None:
    """Write a mask as its box and packed bits."""
    bits = np.packbits(patch.mask)
    box = np.array([patch.box.start, patch.box.stop], dtype=np.int32)
    write_arrays(path, {"box": box, "bits": bits}, compress=True)


def read_mask(path: Path) -> MaskPatch | None:
    """Return a mask, ``None`` if the file is missing or damaged."""
    arrays = read_arrays(path)
    try:
        if arrays is None:
            return None
        start, stop = (tuple(int(v) for v in row) for row in arrays["box"])
        box = Box(start, stop)  # type: ignore[arg-type]
        bits = np.unpackbits(arrays["bits"], count=box.size).astype(bool)
        return MaskPatch(box, bits.reshape(box.shape))
    except (KeyError, TypeError, ValueError):  # GeometryError is a ValueError
        return None


def write_view(path: Path, volume: Volume, landmarks: Landmarks) -> None:
    """Draw a structure's three middle slices with its box and points, as a small PNG."""
    from PIL import Image

    box = box_of_walls(landmarks.points, volume.geometry)
    index = volume.geometry.to_index(np.array(landmarks.points))
    middle = np.rint((np.array(box.start) + np.array(box.stop) - 1) / 2).astype(int)
    middle = np.clip(middle, 0, np.array(volume.geometry.shape) - 1)
    low, high = _window(volume, box)
    order = display_reorientation(volume.geometry.affine).order
    tiles = [_tile(volume, box, index, (axis, int(middle[axis])), (low, high)) for axis in order]
    sheet = np.zeros((_SIDE, _SIDE * 3 + 8, 3), dtype=np.uint8)
    for number, tile in enumerate(tiles):
        left = number * (_SIDE + 4) + (_SIDE - tile.shape[1]) // 2
        top = (_SIDE - tile.shape[0]) // 2
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    Image.fromarray(sheet).save(path, format="PNG")


def _window(volume: Volume, box: Box) -> tuple[float, float]:
    if guess_modality(volume) == "CT":
        return -160.0, 240.0  # soft tissue
    values = np.asarray(volume.crop(box.grow(8).clip(volume.geometry.shape)), dtype=np.float32)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, (1, 99)))
    return low, max(high, low + 1e-6)


def _tile(
    volume: Volume,
    box: Box,
    index: NDArray[np.float64],
    at: tuple[int, int],
    window: tuple[float, float],
) -> NDArray[np.uint8]:
    """Return one slice in the layer's own display order, box and points drawn, pixels square."""
    from PIL import Image, ImageDraw

    across, place = at
    geometry = volume.geometry
    cut: list[Any] = [slice(None)] * 3
    cut[across] = place
    plane = np.nan_to_num(np.asarray(volume.array[tuple(cut)], dtype=np.float32))
    low, high = window
    grey = (np.clip((plane - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    move = display_reorientation(geometry.affine)
    rows, columns = sorted((a for a in range(3) if a != across), key=move.order.index)
    if rows > columns:
        grey = grey.T
    extent = [geometry.shape[a] * geometry.spacing[a] for a in (rows, columns)]
    scale = _SIDE / max(extent)
    size = [max(1, min(_SIDE, round(e * scale))) for e in extent]
    flips = [move.flips[move.order.index(a)] for a in (rows, columns)]
    grey = grey[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    image = Image.fromarray(np.ascontiguousarray(grey)).resize((size[1], size[0])).convert("RGB")
    draw = ImageDraw.Draw(image)

    def pixel(value: float, number: int) -> float:
        axis = (rows, columns)[number]
        n = geometry.shape[axis]
        place = (n - 1 - value if flips[number] else value) + 0.5
        return place / n * size[number]

    if not box.is_empty:
        corners = [
            sorted((pixel(box.start[a] - 0.5, k), pixel(box.stop[a] - 0.5, k)))
            for k, a in enumerate((rows, columns))
        ]
        (top, bottom), (left, right) = corners
        draw.rectangle((left, top, right, bottom), outline=(255, 200, 60))
    for point in index:
        y, x = pixel(float(point[rows]), 0), pixel(float(point[columns]), 1)
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(90, 220, 255))
    return np.asarray(image, dtype=np.uint8)
