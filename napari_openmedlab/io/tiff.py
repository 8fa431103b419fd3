"""TIFF stacks to volumes: multi-page files, ImageJ and OME metadata, folders of slices.

* Voxels keep their order (z, y, x) and frame ``"image"``; a 2D image is one slice.
* Channels, time points and other axes are chosen by ``index``; several images in a file (OME
  series) or folder (stacks, by their names) by ``series``. Nothing is guessed.
* Where slices of a folder are missing by their numbers, the one before is shown, with a note.
* The voxel size comes from OME or ImageJ metadata, in um. Where it isn't stated for all axes
  the volume has unit ``"pixel"`` and a note asks for it: TIFF's own resolution tags are print
  resolutions (72 dpi) far more often than measurements, and nothing is said of z.
* Small images are read at once; from 512 MB on they stay on disk: memory-mapped where the
  pixels lie uncompressed in one run, else a dask array with one block a plane.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from napari_openmedlab.errors import ReadError
from napari_openmedlab.geometry.frames import Reorientation
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.io.choices import ImageChoice, position_of_choice
from napari_openmedlab.io.dicom_files import is_dicom_file
from napari_openmedlab.io.slice_names import Stack, listed, natural_key, stacks_of
from napari_openmedlab.io.source import SourceGrid
from napari_openmedlab.io.tiff_pages import (
    READ_ERRORS,
    Plane,
    check_whole,
    load_planes,
    planes_of,
    unreadable,
)
from napari_openmedlab.io.tiff_scale import VoxelSize, voxel_size

__all__ = ["claims", "is_tiff", "list_images", "read"]

_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".tf2")
_SNIFFED = 100  # other files of a folder looked at before it counts as a TIFF folder
_COLOURS = {3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}
_AXIS_WORDS = {"C": "channel", "T": "time", "S": "sample", "R": "tile", "P": "position"}


@dataclass(frozen=True)
class _Image:
    """One (z, y, x) image: planes in order, type, voxel size, what it is called."""

    key: str
    title: str
    planes: tuple[Plane, ...]
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    voxel: VoxelSize
    notes: tuple[str, ...] = ()

    @property
    def choice(self) -> ImageChoice:
        detail = f"{self.dtype}, {self.shape[0]} slice{'s' if self.shape[0] != 1 else ''}"
        return ImageChoice(self.key, self.title, self.shape, detail)


def claims(path: Path) -> bool:
    """Return whether this is a TIFF file by name, or a folder with one and without DICOM."""
    if not path.is_dir():
        return is_tiff(path)
    inside = sorted(path.iterdir())
    if not any(is_tiff(p) for p in inside):
        return False
    others = [p for p in inside if p.is_file() and not is_tiff(p)]
    return not any(is_dicom_file(p) for p in others[:_SNIFFED])


def list_images(path: Path) -> tuple[ImageChoice, ...]:
    """Return the (z, y, x) images in a TIFF file or folder.

    Raises
    ------
    ReadError
        If there is none, or a file is damaged.
    """
    return tuple(image.choice for image in _images(Path(path)))


def read(
    path: Path,
    *,
    series: str | None = None,
    index: int | None = None,
    lazy_bytes: int | None = None,
) -> Volume:
    """Read one (z, y, x) image of a TIFF file, or of a folder of TIFF slices.

    Parameters
    ----------
    path : Path
        A folder's slices are put in the order of the numbers in their names.
    series : str, optional
        Key from :func:`list_images`, or the part of one before a slash: in a folder of slices
        the pattern of their names, in one of stacks the file's name, in a file with several
        images their number from 0.
    index : int, optional
        Number (from 0) among the images, in the order of :func:`list_images`.
    lazy_bytes : int, optional
        Images of this size or more stay on disk, instead of 512 MB; 0: all.

    Returns
    -------
    Volume
        Frame ``"image"``, unit ``"um"`` or, if the voxel size is not known, ``"pixel"``.

    Raises
    ------
    ReadError
        If there is no image, several to choose from, or a damaged or unsupported file.
    """
    path = Path(path)
    images = _images(path)
    image = images[position_of_choice([i.choice for i in images], series, index, path)]
    array, lazy = load_planes(image.planes, image.shape, image.dtype, lazy_bytes)
    geometry = Geometry.from_spacing(
        image.shape, image.voxel.spacing, unit=image.voxel.unit, frame="image"
    )
    as_stored = Reorientation((0, 1, 2), (False, False, False))
    return Volume(
        array=array,
        geometry=geometry,
        source=SourceGrid("tiff", path, geometry, as_stored),
        name=image.title,
        modality="",
        notes=(*image.voxel.notes, *image.notes),
        info={"format": "TIFF", "files": len({p.path for p in image.planes}), "lazy": lazy},
    )


def is_tiff(path: Path) -> bool:
    """Return whether this is a TIFF file by name; what macOS leaves beside files is not."""
    return path.suffix.lower() in _SUFFIXES and path.is_file() and not path.name.startswith("._")


def _images(path: Path) -> list[_Image]:
    if not path.exists():
        raise ReadError(f"{path} does not exist", path)
    if not path.is_dir():
        return _images_of_file(path)
    files = sorted((p for p in path.iterdir() if is_tiff(p)), key=lambda p: natural_key(p.name))
    if not files:
        raise ReadError(f"{path} holds no TIFF file", path)
    singles = [_images_of_file(p) for p in files]
    if all(len(images) == 1 and images[0].shape[0] == 1 for images in singles):
        of = {file: images[0] for file, images in zip(files, singles, strict=True)}
        stacks = stacks_of(files)
        return [_stacked(stack, of, path, several=len(stacks) > 1) for stack in stacks]
    return [
        _Image(
            f"{file.name}/{image.key}" if len(images) > 1 else file.name,
            image.title,
            image.planes,
            image.shape,
            image.dtype,
            image.voxel,
            image.notes,
        )
        for file, images in zip(files, singles, strict=True)
        for image in images
    ]


def _stacked(stack: Stack, of: Mapping[Path, _Image], folder: Path, *, several: bool) -> _Image:
    """Make one image of 2D files of equal size and type."""
    slices = [of[file] for file in stack.files]
    first = slices[0]
    for other in slices[1:]:
        if (other.shape, other.dtype) != (first.shape, first.dtype):
            raise ReadError(
                f"the slices in {folder} differ: {first.planes[0].path.name} is "
                f"{_size(first)}, {other.planes[0].path.name} is {_size(other)}; put the slices "
                "of one stack into a folder of their own",
                other.planes[0].path,
            )
    # Slices that are missing are shown as the one before: those behind then lie where they are.
    counts = (1,) * len(slices) if stack.is_sparse else stack.counts
    planes = [s.planes[0] for s, count in zip(slices, counts, strict=True) for _ in range(count)]
    return _Image(
        key=stack.pattern if several else "0",
        title=f"{folder.name}, {stack.pattern}" if several else folder.name,
        planes=tuple(planes),
        shape=(len(planes), *first.shape[1:]),
        dtype=first.dtype,
        voxel=first.voxel if len(planes) == 1 else first.voxel.without_z(),
        notes=_gap_notes(stack),
    )


def _gap_notes(stack: Stack) -> tuple[str, ...]:
    if not stack.missing:
        return ()
    shown = (
        "more than there are, so the stack is shown without them and its length along z is not true"
        if stack.is_sparse
        else "the slice before is shown there"
    )
    return (f"{listed(stack.missing)}; {shown}",)


def _size(image: _Image) -> str:
    return f"{image.shape[1]} x {image.shape[2]} {image.dtype}"


def _images_of_file(path: Path) -> list[_Image]:
    """List the (z, y, x) images of one TIFF file."""
    from tifffile import TiffFile

    try:
        check_whole(path)
        with TiffFile(path) as file:
            images = [
                image
                for number, series in enumerate(file.series)
                for image in _images_of_series(file, number, series)
            ]
    except READ_ERRORS as error:
        raise unreadable(path, error) from error
    if not images:
        raise ReadError(f"{path} holds no image", path)
    return images


def _images_of_series(file: Any, number: int, series: Any) -> list[_Image]:
    path = Path(file.filehandle.path)
    axes, shape, dtype = str(series.axes), tuple(series.shape), np.dtype(series.dtype)
    if dtype.kind not in "buif":
        raise ReadError(f"{path} holds {dtype} pixels, which can't be shown as grey values", path)
    # Of the axes that aren't named channel or time, the last before (y, x) is depth.
    rest = [i for i, a in enumerate(axes) if a not in "YX"]
    depth = next((i for i in rest if axes[i] == "Z"), None)
    if depth is None:
        depth = next((i for i in reversed(rest) if axes[i] in "IQ"), None)
    others = [i for i in rest if i != depth]
    voxel = voxel_size(file, number, depth is not None and shape[depth] > 1)
    size = (1 if depth is None else shape[depth], shape[axes.index("Y")], shape[axes.index("X")])
    several = len(file.series) > 1
    name = f"{_stem(path)} {series.name or number + 1}" if several else _stem(path)
    images = []
    for pick in product(*(range(shape[i]) for i in others)):
        chosen = dict(zip(others, pick, strict=True))
        words = [_word(axes[i], n, shape[i]) for i, n in chosen.items() if shape[i] > 1]
        key = "/".join([str(number)] * several + [str(n) for n in pick]) or "0"
        planes = planes_of(path, number, series, depth, chosen)
        title = ", ".join([name, *words])
        images.append(_Image(key, title, planes, size, dtype.newbyteorder("="), voxel))
    return images


def _word(axis: str, number: int, size: int) -> str:
    if axis == "S" and size in _COLOURS:
        return _COLOURS[size][number]
    return f"{_AXIS_WORDS.get(axis, f'axis {axis}')} {number}"


def _stem(path: Path) -> str:
    stem = path.stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem
