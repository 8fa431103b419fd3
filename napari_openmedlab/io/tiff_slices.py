"""Folders of 2D TIFF slices, one file a slice, opened without reading a voxel.

Thousands of files are looked at by their headers only. Slices that are missing by their numbers,
or whose file is damaged, stop the reading or are filled with their neighbour: the user's choice.
Voxels that can't be decoded show when they are read; the same choice holds then.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import ReadError
from napari_openmedlab.geometry.frames import Reorientation
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.io.choices import ImageChoice, position_of_choice
from napari_openmedlab.io.slice_names import Stack, listed, natural_key, stacks_of
from napari_openmedlab.io.source import SourceGrid
from napari_openmedlab.io.tiff import is_tiff
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

_log = logging.getLogger(__name__)


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


def read_slices(
    folder: Path, gaps: Gaps = "stop", *, series: str | None = None, index: int | None = None
) -> Volume:
    """Open a folder of 2D TIFF slices lazily.

    Parameters
    ----------
    folder : Path
        Its TIFF files, in the order of the numbers in their names, are the slices along z.
    gaps : {"stop", "fill"}
        What to do about slices that are missing by their numbers or whose file is damaged:
        refuse, or repeat the slice before (at the start: the one behind). Damage that shows only
        when a slice is decoded raises :class:`ReadError` then, or is filled the same way.
    series, index : optional
        Which stack, if the names tell several apart (channels, tiles): the pattern of its names,
        or its number from 0.

    Returns
    -------
    Volume
        A dask array with one block a plane. The distance between slices is never stated in such
        files, so the unit is ``"pixel"``.

    Raises
    ------
    ReadError
        If there are no slices, several stacks and none was chosen, slices differ in size or type,
        or some are missing or damaged and ``gaps`` is ``"stop"``.
    """
    stacks = stacks_of(_files(folder))
    choices = [_choice(stack, folder, several=len(stacks) > 1) for stack in stacks]
    if not stacks:
        raise ReadError(f"{folder} holds no TIFF file", folder)
    chosen = position_of_choice(choices, series, index, folder)
    stack = stacks[chosen]
    found, damaged = _looked(stack.files)
    first = next((s for s in found if s is not None), None)
    if first is None:
        raise ReadError(f"{folder} holds no TIFF slice that can be read", folder)
    _check_alike([s for s in found if s is not None], first, folder)
    faults = [*damaged, *stack.missing]
    _check_gaps(stack, faults, gaps, folder)
    planes = _filled(found, stack.counts)
    array = _lazy(_SliceSource(planes, first.size, first.dtype, gaps))
    voxel = first.voxel.without_z() if len(planes) > 1 else first.voxel
    geometry = Geometry.from_spacing(
        (len(planes), *first.size), voxel.spacing, unit=voxel.unit, frame="image"
    )
    notes = (f"filled with the slice before: {listed(faults)}",) if faults else ()
    return Volume(
        array=array,
        geometry=geometry,
        source=SourceGrid("tiff", folder, geometry, Reorientation((0, 1, 2), (False,) * 3)),
        name=choices[chosen].title,
        notes=(*voxel.notes, *notes),
        info={"format": "TIFF slices", "files": len(stack.files), "lazy": True},
    )


def _choice(stack: Stack, folder: Path, *, several: bool) -> ImageChoice:
    size = next((s.size for s in map(_sound, stack.files) if s is not None), (0, 0))
    title = f"{folder.name}, {stack.pattern}" if several else folder.name
    return ImageChoice(stack.pattern if several else "0", title, (sum(stack.counts), *size))


def _looked(files: Sequence[Path]) -> tuple[list[_Slice | None], list[str]]:
    """Return what the headers say, ``None`` for a damaged file, and a phrase on each of those."""
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
    return found, damaged


def _check_gaps(stack: Stack, faults: list[str], gaps: Gaps, folder: Path) -> None:
    if faults and gaps == "stop":
        raise ReadError(
            f"{folder}: {listed(faults)}. Put the right files there, or choose to fill "
            "(--gaps fill): the slice before is then repeated",
            folder,
        )
    if stack.is_sparse:
        raise ReadError(
            f"{folder}: {listed(faults)}. More slices are missing than there are, so the numbers "
            "in the names hardly count slices; rename the files from 1 on",
            folder,
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


def _sound(path: Path) -> _Slice | None:
    try:
        return _look(path)
    except ReadError:
        return None


def _why(error: ReadError, path: Path) -> str:
    text = str(error).replace(str(path), "it").replace(path.name, "it")
    return text.partition(";")[0].rstrip(".")


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


def _filled(found: list[_Slice | None], counts: Sequence[int]) -> list[Plane]:
    """Return a plane for every z: a slice that is not there repeats the one before it."""
    planes: list[Plane] = []
    last = next(s for s in found if s is not None)
    for slice_, count in zip(found, counts, strict=True):
        last = slice_ if slice_ is not None else last
        planes += [last.plane] * count
    return planes


def _lazy(source: _SliceSource) -> Any:
    import dask.array as da

    return da.from_array(source, chunks=(1, *source.shape[1:]), name=False, asarray=False)


class _SliceSource:
    """Array-like whose slices are read from their files when they are indexed (for dask).

    A slice is whole or not at all, whichever part of it is asked for, and what stands for a
    damaged one depends on the files only: not on what was read before, here or elsewhere.
    """

    ndim = 3

    def __init__(
        self, planes: Sequence[Plane], size: tuple[int, int], dtype: np.dtype[Any], gaps: Gaps
    ) -> None:
        self.shape = (len(planes), *size)
        self.dtype = dtype
        self._planes = tuple(planes)
        self._fill = gaps == "fill"
        self._stand_ins: dict[Path, Plane] = {}  # for files that turned out damaged

    def __getitem__(self, key: tuple[Any, ...]) -> NDArray[Any]:
        first, within = key[0], key[1:]
        wanted = np.arange(self.shape[0])[first]
        stack = np.stack([self._part(int(z), within) for z in np.atleast_1d(wanted)])
        return stack if wanted.ndim else stack[0]

    def _part(self, z: int, within: tuple[Any, ...]) -> NDArray[Any]:
        plane = self._planes[z]
        try:
            return self._read(self._stand_ins.get(plane.path, plane), within)
        except ReadError as error:
            if not _is_damage(error):
                raise
            if not self._fill:
                raise _undecodable(plane.path, error) from error
            return self._neighbour(z, within, error)

    def _neighbour(self, z: int, within: tuple[Any, ...], damage: ReadError) -> NDArray[Any]:
        """Return part of the nearest slice before (else behind) that can be decoded."""
        broken = self._planes[z].path
        for other in (*reversed(self._planes[:z]), *self._planes[z + 1 :]):
            if other.path == broken:
                continue
            try:
                values = self._read(other, within)
            except ReadError as error:
                if not _is_damage(error):
                    raise
                continue
            self._stand_ins[broken] = other
            why = _why(damage, broken)  # an error, for the command line doesn't show warnings
            _log.error("%s can't be read (%s): filled with %s", broken, why, other.path.name)
            return values
        raise damage

    def _read(self, plane: Plane, within: tuple[Any, ...]) -> NDArray[Any]:
        try:
            array, _ = load_planes((plane,), (1, *self.shape[1:]), self.dtype, 0)
            part = array[(0, *within)]
            compute = getattr(part, "compute", None)
            values = np.asarray(compute(scheduler="synchronous") if compute else part)
        except ReadError:
            raise
        except READ_ERRORS as error:
            raise unreadable(plane.path, error) from error
        return values.astype(self.dtype, copy=False)


def _is_damage(error: ReadError) -> bool:
    """Return whether it is the file's content; a drive that fails or full memory may pass."""
    cause = error.__cause__
    return isinstance(cause, ReadError) or not isinstance(cause, OSError | MemoryError)


def _undecodable(path: Path, error: ReadError) -> ReadError:
    return ReadError(
        f"{path} can't be read ({_why(error, path)}). Copy or export it again, or choose to fill "
        "(--gaps fill): the slice before is then repeated",
        path,
    )
