"""Planes of TIFF files: where each lies, and reading them at once or when they are needed."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import ReadError

__all__ = [
    "LAZY_BYTES",
    "READ_ERRORS",
    "Plane",
    "check_whole",
    "load_planes",
    "planes_of",
    "unreadable",
]

LAZY_BYTES = 512 * 1024**2
"""Images of this size or more stay on disk until they are looked at."""

READ_ERRORS = (
    ValueError, LookupError, TypeError, AttributeError, OSError, struct.error, zlib.error,
    RuntimeError, ImportError, AssertionError, ArithmeticError, MemoryError,
)  # fmt: skip
"""What tifffile raises on damaged files (found by fuzzing; its own is a ``ValueError``)."""


@dataclass(frozen=True)
class Plane:
    """One (y, x) plane of a TIFF series.

    Attributes
    ----------
    path : Path
    series : int
        Number of the series in the file.
    index : tuple of (int or None)
        Position along each axis of the series; ``None`` for y and x.
    shape : tuple of int
        Shape of the series.
    lead : int
        The first ``lead`` axes count pages, the others lie within a page.
    """

    path: Path
    series: int
    index: tuple[int | None, ...]
    shape: tuple[int, ...]
    lead: int

    @property
    def page(self) -> int:
        """Number of the plane's page in the series."""
        page = 0
        for number, size in zip(self.index[: self.lead], self.shape[: self.lead], strict=True):
            page = page * size + (number or 0)
        return page

    @property
    def within(self) -> tuple[int | slice, ...]:
        """Index of the plane in its page."""
        return tuple(slice(None) if i is None else i for i in self.index[self.lead :])


def planes_of(
    path: Path, number: int, series: Any, depth: int | None, chosen: Mapping[int, int]
) -> tuple[Plane, ...]:
    """Return the planes along the depth axis of a series, the other axes held at ``chosen``."""
    axes, shape = str(series.axes), tuple(int(n) for n in series.shape)
    inner = int(series.keyframe.size)
    lead = next(k for k in range(len(shape), -1, -1) if prod(shape[k:]) >= inner)
    planes = []
    for z in range(1 if depth is None else shape[depth]):
        index: list[int | None] = [
            None if a in "YX" else chosen.get(i, 0) for i, a in enumerate(axes)
        ]
        if depth is not None:
            index[depth] = z
        planes.append(Plane(path, number, tuple(index), shape, lead))
    return tuple(planes)


def load_planes(
    planes: Sequence[Plane],
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    lazy_bytes: int | None = None,
) -> tuple[Any, bool]:
    """Return the image of these planes, shape (z, y, x), and whether it is lazy.

    Parameters
    ----------
    planes : sequence of Plane
        One for each z.
    shape : tuple of int
    dtype : dtype
    lazy_bytes : int, optional
        Images of this size or more stay on disk, instead of :data:`LAZY_BYTES`.

    Raises
    ------
    ReadError
        If a file is damaged, cut short or compressed in a way that can't be decoded. A lazy
        dask array raises it when the plane is needed.
    """
    if prod(shape) * dtype.itemsize < (LAZY_BYTES if lazy_bytes is None else lazy_bytes):
        array = np.empty(shape, dtype)
        for z, values in enumerate(_values(planes)):
            array[z] = values
        return array, False
    mapped = _mapped(planes)
    if mapped is not None:
        return mapped, True
    import dask.array as da

    source = _PlaneSource(planes, shape, dtype)
    return da.from_array(source, chunks=(1, *shape[1:]), name=False, asarray=False), True


def check_whole(path: Path) -> None:
    """Raise :class:`ReadError` if the file's chain of pages runs out of the file.

    tifffile would show the pages it finds as if there were no more.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 8:
            raise _cut(path, "it doesn't begin as one")
        ifd = _Directory(order, big=head[2:4] in (b"+\0", b"\0+"))
        offset, seen = ifd.first(head.ljust(16, b"\0")), set[int]()
        while offset and offset not in seen:
            seen.add(offset)
            try:
                offset, end = ifd.read(stream, offset)
            except struct.error:
                end = size + 1
            if end > size:
                raise _cut(path, f"page {len(seen)} goes on beyond the end of the file")


class _Directory:
    """Reads a page's directory of tags (TIFF 6.0 section 2, and BigTIFF)."""

    # Description, and where the pixels lie: without these the page can't be shown rightly.
    _NEEDED = (270, 273, 279, 324, 325)
    _BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)

    def __init__(self, order: str, big: bool) -> None:
        self._count = struct.Struct(order + ("Q" if big else "H"))
        self._offset = struct.Struct(order + ("Q" if big else "I"))
        self._entry = struct.Struct(order + ("HHQQ" if big else "HHII"))
        self._start = 8 if big else 4

    def first(self, head: bytes) -> int:
        """Return the offset of the first directory."""
        return int(self._offset.unpack_from(head, self._start)[0])

    def read(self, stream: BinaryIO, offset: int) -> tuple[int, int]:
        """Return the offset of the next directory and the end of what this one needs."""
        stream.seek(offset)
        (count,) = self._count.unpack(stream.read(self._count.size))
        table = stream.read(min(count, 1 << 16) * self._entry.size)
        end = 0
        for code, kind, number, place in self._entry.iter_unpack(table):
            length = number * (self._BYTES[kind] if kind < len(self._BYTES) else 0)
            if code in self._NEEDED and length > self._offset.size:
                end = max(end, place + length)
        (following,) = self._offset.unpack(stream.read(self._offset.size))
        return int(following), end


def unreadable(path: Path, error: BaseException) -> ReadError:
    """Return a sentence for what tifffile raised."""
    if isinstance(error, ReadError):
        return error
    text = str(error).strip("\"'")
    if text.endswith("not supported") or isinstance(error, ImportError):
        return ReadError(
            f"{path.name} is compressed in a way that can't be read here ({text}); save it "
            "uncompressed or with LZW or Deflate",
            path,
        )
    return _cut(path, text)


def _cut(path: Path, why: str) -> ReadError:
    return ReadError(
        f"{path.name} is not a TIFF file, damaged or cut short ({why}); nothing was opened", path
    )


def _values(planes: Sequence[Plane]) -> Iterator[NDArray[Any]]:
    """Yield the pixels of each plane, opening each file once."""
    from tifffile import TiffFile

    for path, group in groupby(planes, key=lambda p: p.path):
        try:
            with TiffFile(path) as file:
                for plane in group:
                    yield _plane_values(file, plane)
        except READ_ERRORS as error:
            raise unreadable(path, error) from error


def _plane_values(file: Any, plane: Plane) -> NDArray[Any]:
    series = file.series[plane.series]
    if series.dataoffset is not None:
        mapped = _memory_map(file, series)
        full = tuple(slice(None) if i is None else i for i in plane.index)
        return np.asarray(mapped[full])
    page = series.pages[plane.page]
    if page is None:
        raise ReadError(f"{plane.path.name} lacks page {plane.page}", plane.path)
    inner = np.asarray(page.asarray()).reshape(plane.shape[plane.lead :])
    return inner[plane.within]


def _memory_map(file: Any, series: Any) -> Any:
    """Map a series whose pixels lie uncompressed in one run."""
    return np.memmap(
        file.filehandle.path,
        dtype=np.dtype(series.dtype).newbyteorder(file.byteorder),
        mode="r",
        offset=series.dataoffset,
        shape=tuple(series.shape),
    )


def _mapped(planes: Sequence[Plane]) -> Any | None:
    """Return the planes as a view of the file on disk, or ``None`` if that isn't possible."""
    from tifffile import TiffFile

    first, last = planes[0], planes[-1]
    if first.path != last.path or first.series != last.series:
        return None
    with TiffFile(first.path) as file:
        series = file.series[first.series]
        if series.dataoffset is None:
            return None
        try:
            mapped = _memory_map(file, series)
        except READ_ERRORS as error:
            raise unreadable(first.path, error) from error
    cut = tuple(
        slice(None) if a is None or a != b else a
        for a, b in zip(first.index, last.index, strict=True)
    )
    view = mapped[cut]
    return view if view.ndim == 3 else view[None]


class _PlaneSource:
    """Array-like whose planes are read from disk when they are indexed (for dask)."""

    ndim = 3

    def __init__(
        self, planes: Sequence[Plane], shape: tuple[int, int, int], dtype: np.dtype[Any]
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._planes = tuple(planes)
        self._lock = threading.Lock()  # a TIFF file has one read position
        self._open: Any = None  # the file read last, kept open: finding a page is slow

    def __getitem__(self, key: tuple[Any, ...]) -> NDArray[Any]:
        first, within = key[0], key[1:]
        wanted = np.arange(self.shape[0])[first]
        with self._lock:
            planes = [self._read(self._planes[z])[within] for z in np.atleast_1d(wanted)]
        stack = np.stack(planes).astype(self.dtype, copy=False)
        return stack if wanted.ndim else stack[0]

    def _read(self, plane: Plane) -> NDArray[Any]:
        from tifffile import TiffFile

        try:
            if self._open is None or Path(self._open.filehandle.path) != plane.path:
                if self._open is not None:
                    self._open.close()
                self._open = TiffFile(plane.path)
            return _plane_values(self._open, plane)
        except READ_ERRORS as error:
            raise unreadable(plane.path, error) from error
