"""The bytes of NIfTI files: packed or not, in one file or two, whole or cut short."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import ReadError
from napari_openmedlab.io.suffixes import stem_of, suffix_of

__all__ = ["SUFFIXES", "first_bytes", "magic_of", "pair_of", "read_voxels"]

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")
_DAMAGE = (OSError, EOFError, zlib.error, ValueError)
_DEFLATE_RATIO = 1032  # no gzip stream unpacks to more than this times its size (zlib FAQ)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacking it if its content (not its name) says that it is gzipped."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if zipped:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked  # type: ignore[misc]
        else:
            yield file


def first_bytes(path: Path) -> bytes:
    """Return the first 540 bytes, unpacked; fewer if there aren't as many."""
    try:
        with _opened(path) as file:
            return file.read(540)
    except PermissionError:
        raise
    except _DAMAGE:
        return b""


def magic_of(head: bytes) -> bytes | None:
    """Return the four bytes that name a NIfTI version, ``None`` if they aren't there."""
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return head[344:348]
    return head[4:8] if head[4:8] in (b"n+2\0", b"ni2\0") else None


def pair_of(path: Path) -> tuple[Path, Path]:
    """Return the header and the image file (the same one, but for pairs)."""
    suffix = suffix_of(path)
    if suffix not in SUFFIXES[2:]:
        return path, path
    found = []
    for kind in (".hdr", ".img"):
        names = (path.with_name(stem_of(path) + kind + zipped) for zipped in ("", ".gz"))
        there = next((name for name in names if name.exists()), None)
        if there is None:
            raise ReadError(
                f"{path} is half of a .hdr/.img pair and {stem_of(path)}{kind} is not beside "
                "it; copy both files to one folder",
                path,
            )
        found.append(there)
    return found[0], found[1]


def read_voxels(path: Path, header: Any, shape: tuple[int, ...], index: int) -> NDArray[Any]:
    """Return one volume as stored, shape (i, j, k), in native byte order; file read once."""
    image = pair_of(path)[1]
    dtype = _dtype(header, path)
    count = shape[0] * shape[1] * shape[2]
    offset = _offset(header) + index * count * dtype.itemsize
    _check_length(path, image, offset + count * dtype.itemsize)
    array = np.empty(count, dtype=dtype)
    try:
        with _opened(image) as file:
            file.seek(offset)
            got = _read_into(file, array.view(np.uint8).data)
    except _DAMAGE as error:
        raise ReadError(
            f"{path} is damaged or cut short ({error}); copy or download it again", path
        ) from error
    if got < array.nbytes:
        raise ReadError(
            f"{path} is cut short: {got} of {array.nbytes} bytes of the volume are there; copy "
            "or download it again",
            path,
        )
    native = array.astype(dtype.newbyteorder("="), copy=False)
    return native.reshape(shape[:3], order="F")


def _dtype(header: Any, path: Path) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except KeyError as error:
        raise ReadError(
            f"the header of {path} names the unknown data type {int(header['datatype'])}; it is "
            "damaged, copy it again",
            path,
        ) from error
    if dtype.kind not in "iuf":
        raise ReadError(f"{path} holds {dtype.name} values; grey values are needed", path)
    return dtype


def _check_length(path: Path, image: Path, needed: int) -> None:
    """Refuse a file that can't hold what its header promises, before memory is asked for."""
    there = image.stat().st_size
    with image.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            there *= _DEFLATE_RATIO
    if there < needed:
        raise ReadError(
            f"{path} is cut short or damaged: its header promises {needed} bytes, at most "
            f"{there} are there; copy or download it again",
            path,
        )


def _offset(header: Any) -> int:
    offset = int(header["vox_offset"])
    pair = bytes(header["magic"])[:3] in (b"ni1", b"ni2")
    return offset if pair or offset > 0 else int(header.single_vox_offset)


def _read_into(file: IO[bytes], view: memoryview) -> int:
    got = 0
    while got < len(view):
        block = file.readinto(view[got : got + (1 << 22)])  # type: ignore[attr-defined]
        if not block:
            break
        got += block
    return got
