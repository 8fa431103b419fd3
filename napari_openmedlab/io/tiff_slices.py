"""Folders of 2D TIFF slices, one file a slice, opened without reading a voxel.

Thousands of files are looked at by their headers only. Slices that are missing by their numbers,
or whose file is cut short, stop the reading or are filled with their neighbour: the user's choice.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from napari_openmedlab.errors import ReadError
from napari_openmedlab.geometry.frames import Reorientation
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.io.source import SourceGrid
from napari_openmedlab.io.tiff import is_tiff, natural_key
from napari_openmedlab.io.tiff_pages import (
    READ_ERRORS,
    Plane,
    check_whole,
    load_planes,
    planes_of,
    unreadable,
)
from napari_openmedlab.io.tiff_scale import VoxelSize, voxel_size

__all__ = ["Gaps", "is_folder_of_slices", "read_slices"]

Gaps = Literal["stop", "fill"]

_NAMED = 5  # slices named in a message


@dataclass(frozen=True)
class _Slice:
    path: Path
    plane: Plane
    size: tuple[int, int]
    dtype: np.dtype[Any]
    voxel: VoxelSize


def is_folder_of_slices(path: Path) -> bool:
    """Return whether the first readable TIFF file of a folder holds a single grey plane."""
    if not path.is_dir():
        return False
    for file in _files(path):
        try:
            return _look(file) is not None
        except ReadError:
            continue
    return False


def read_slices(folder: Path, gaps: Gaps = "stop") -> Volume:
    """Open a folder of 2D TIFF slices lazily.

    Parameters
    ----------
    folder : Path
        Its TIFF files, in the order of the numbers in their names, are the slices along z.
    gaps : {"stop", "fill"}
        What to do about slices that are missing by their numbers or whose file is damaged:
        refuse, or repeat the slice before (at the start: the one behind).

    Returns
    -------
    Volume
        A dask array (or memory map) with one block a plane. The distance between slices is
        never stated in such files, so the unit is ``"pixel"``.

    Raises
    ------
    ReadError
        If there are no slices, they differ in size or type, or some are missing or damaged
        and ``gaps`` is ``"stop"``.
    """
    files = _files(folder)
    found: list[_Slice | None] = []
    damaged: list[str] = []
    for file in files:
        try:
            slice_ = _look(file)
        except ReadError as error:
            damaged.append(f"{file.name} can't be read ({_why(error, file)})")
            slice_ = None
        else:
            if slice_ is None:
                raise ReadError(f"{file} holds more than one plane; open it by itself", file)
        found.append(slice_)
    first = next((s for s in found if s is not None), None)
    if first is None:
        raise ReadError(f"{folder} holds no TIFF slice that can be read", folder)
    _check_alike([s for s in found if s is not None], first, folder)
    counts, missing = _gaps([file.stem for file in files])
    faults = damaged + missing
    if faults and gaps == "stop":
        raise ReadError(
            f"{folder}: {_listed(faults)}. Put the right files there, or choose to fill: the "
            "slice before is then repeated",
            folder,
        )
    planes = _filled(found, counts)
    array, lazy = load_planes(planes, (len(planes), *first.size), first.dtype, 0)
    voxel = first.voxel.without_z() if len(planes) > 1 else first.voxel
    geometry = Geometry.from_spacing(
        (len(planes), *first.size), voxel.spacing, unit=voxel.unit, frame="image"
    )
    notes = (f"filled with the slice before: {_listed(faults)}",) if faults else ()
    return Volume(
        array=array,
        geometry=geometry,
        source=SourceGrid("tiff", folder, geometry, Reorientation((0, 1, 2), (False,) * 3)),
        name=folder.name,
        notes=(*voxel.notes, *notes),
        info={"format": "TIFF slices", "files": len(files), "lazy": lazy},
    )


def _files(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if is_tiff(p)), key=lambda p: natural_key(p.name))


def _look(path: Path) -> _Slice | None:
    """Return what the header says of a slice; ``None`` if it is not a single grey plane."""
    from tifffile import TiffFile

    try:
        check_whole(path)
        with TiffFile(path) as file:
            if len(file.series) != 1 or str(file.series[0].axes) != "YX":
                return None
            series, page = file.series[0], file.pages[0]
            ends = (a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=False))
            if max(ends, default=0) > path.stat().st_size:
                raise ReadError(f"{path} is cut short: copy it again", path)
            dtype = np.dtype(series.dtype).newbyteorder("=")
            if dtype.kind not in "buif":
                raise ReadError(f"{path} holds {dtype} pixels, which aren't grey values", path)
            rows, columns = (int(n) for n in series.shape)
            plane = planes_of(path, 0, series, None, {})[0]
            return _Slice(path, plane, (rows, columns), dtype, voxel_size(file, 0, deep=False))
    except ReadError:
        raise
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def _why(error: ReadError, path: Path) -> str:
    return str(error).replace(str(path), "it").partition(";")[0].rstrip(".")


def _check_alike(slices: list[_Slice], first: _Slice, folder: Path) -> None:
    for other in slices:
        if (other.size, other.dtype) != (first.size, first.dtype):
            raise ReadError(
                f"the slices in {folder} differ: {first.path.name} is {_form(first)}, "
                f"{other.path.name} is {_form(other)}; put the slices of one stack into a "
                "folder of their own",
                other.path,
            )


def _form(slice_: _Slice) -> str:
    return f"{slice_.size[0]} x {slice_.size[1]} {slice_.dtype}"


def _gaps(stems: list[str]) -> tuple[list[int], list[str]]:
    """Return how many slices each file stands for, and sentences on numbers left out."""
    counts = [1] * len(stems)
    found = [re.search(r"(\d+)\D*$", stem) for stem in stems]
    numbers = [int(m.group(1)) for m in found if m]
    if len(numbers) < len(stems) or len(numbers) < 3:
        return counts, []
    steps = [b - a for a, b in pairwise(numbers)]
    usual = Counter(steps).most_common(1)[0][0]
    missing = []
    for i, step in enumerate(steps):
        if usual > 0 and step > usual and step % usual == 0:
            counts[i] = step // usual
            left_out = [numbers[i] + usual * n for n in range(1, counts[i])]
            several = f"{left_out[0]} to {left_out[-1]}" if len(left_out) > 1 else str(left_out[0])
            missing.append(
                f"slice{'s' if len(left_out) > 1 else ''} {several} missing between "
                f"{stems[i]} and {stems[i + 1]}"
            )
    return counts, missing


def _listed(faults: list[str]) -> str:
    rest = len(faults) - _NAMED
    return "; ".join(faults[:_NAMED]) + (f"; and {rest} more" if rest > 0 else "")


def _filled(found: list[_Slice | None], counts: list[int]) -> list[Plane]:
    """Return a plane for every z: a slice that is not there repeats the one before it."""
    planes: list[Plane] = []
    last = next(s for s in found if s is not None)
    for slice_, count in zip(found, counts, strict=True):
        last = slice_ if slice_ is not None else last
        planes += [last.plane] * count
    return planes
