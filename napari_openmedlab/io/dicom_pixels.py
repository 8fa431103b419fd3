"""DICOM pixel data to real values: decode, rescale, padding, the smallest fitting type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import ReadError
from napari_openmedlab.io.dicom_files import PARSE_ERRORS, Slice
from napari_openmedlab.io.dicom_geometry import Layout

__all__ = ["fill", "result_type"]

_INTEGERS = (np.int16, np.uint16, np.int32)
_NEAR_FLOOR = 0.01  # padding this close below the darkest voxel (share of the range) stays


def result_type(slices: Sequence[Slice]) -> np.dtype[Any]:
    """Return the type to begin with for the real values of these slices.

    float32 unless every slope and intercept is a whole number; then int16 or, if BitsStored
    calls for it, uint16. Headers often promise more than is used (signed 16 bits with an
    intercept of -1024), so a wider type is left to :func:`fill`, which sees the values.
    """
    if not all(s.slope.is_integer() and s.intercept.is_integer() for s in slices):
        return np.dtype(np.float32)
    ends: list[float] = []
    for plane in slices:
        low = -(1 << (plane.bits - 1)) if plane.signed else 0
        high = low + (1 << plane.bits) - 1
        ends += [plane.slope * v + plane.intercept for v in (low, high)]
    fitting = _fitting(min(ends), max(ends))
    return np.dtype(np.int16) if fitting == np.int32 else fitting


def _fitting(low: float, high: float) -> np.dtype[Any]:
    for kind in _INTEGERS:
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            return np.dtype(kind)
    return np.dtype(np.float32)


def fill(layout: Layout, out: NDArray[Any]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Decode every slice into its plane, and check slices that share a place.

    Parameters
    ----------
    layout : Layout
    out : ndarray, shape (slices, rows, columns)
        Written in place; its type is that of :func:`result_type`.

    Returns
    -------
    out : ndarray
        The array given, or a copy of wider type if the values call for it.
    notes : tuple of str

    Raises
    ------
    ReadError
        If a slice is damaged or can't be decoded, or two different images share a place.

    Notes
    -----
    Slices are decoded one after the other: the decoders hold Python's global lock, so threads
    gain nothing (measured with JPEG 2000 at 2 and 4 threads).
    """
    members = [(i, s) for i, s in enumerate(layout.planes) if s is not None]
    low, high = np.inf, -np.inf
    padded: list[int] = []
    for index, plane, stored in _decode(members):
        values = _real(stored, plane)
        out = _wide_enough(out, values)
        out[index] = values
        keep = _not_padding(stored, plane)
        if keep is not None:
            padded.append(index)
            values = values[keep]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    floor = low if np.isfinite(low) else 0.0
    notes = _fill_padding(layout, out, padded, (floor, high))
    for index in layout.missing:
        out[index] = floor
    return out, (*notes, *_check_extras(layout, out))


def _wide_enough(out: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Widen ``out`` to a type that holds these values too."""
    if out.dtype.kind == "f" or not values.size:
        return out
    if values.dtype.kind == "f":
        return out.astype(np.float32)
    limits = np.iinfo(out.dtype)
    low, high = float(values.min()), float(values.max())
    if limits.min <= low and high <= limits.max:
        return out
    return out.astype(_fitting(min(low, limits.min), max(high, limits.max)))


def _real(stored: NDArray[Any], plane: Slice) -> NDArray[Any]:
    """Return slope * stored + intercept (PS3.3 C.11.1), exactly for whole numbers."""
    if plane.slope == 1.0 and plane.intercept == 0.0:
        return stored
    if stored.dtype.kind in "iu" and plane.slope.is_integer() and plane.intercept.is_integer():
        return stored.astype(np.int64) * int(plane.slope) + int(plane.intercept)
    return (stored * plane.slope + plane.intercept).astype(np.float32)


def _not_padding(stored: NDArray[Any], plane: Slice) -> NDArray[np.bool_] | None:
    """Return where the slice has data, or ``None`` if everywhere."""
    if plane.padding is None:
        return None
    low, high = plane.padding
    keep: NDArray[np.bool_] = (stored < low) | (stored > high)
    return None if keep.all() else keep


def _fill_padding(
    layout: Layout, out: NDArray[Any], padded: list[int], ends: tuple[float, float]
) -> tuple[str, ...]:
    """Give voxels without data (PixelPaddingValue) the darkest real value.

    Scanners mark the corners outside the reconstruction circle with values such as -2000, which
    would stretch every window and histogram. Padding that is the darkest value anyway, or lies
    among the measured values, stays.
    """
    floor, high = ends
    near = floor - _NEAR_FLOOR * max(high - floor, 1.0)
    changed = False
    for index in padded:
        plane = layout.planes[index]
        if plane is None or plane.padding is None:
            continue
        marks = _real(np.array(plane.padding, dtype=np.int64), plane)
        low_mark, high_mark = float(marks.min()), float(marks.max())
        if near <= low_mark and high_mark <= high:
            continue
        values = out[index]
        values[(values >= low_mark) & (values <= high_mark)] = floor
        changed = True
    if not changed:
        return ()
    return (f"voxels without data (padding) are shown as {floor:g}, the lowest measured value",)


def _check_extras(layout: Layout, out: NDArray[Any]) -> tuple[str, ...]:
    """Leave out slices that repeat a place with the same pixels; refuse different ones."""
    if not layout.extras:
        return ()
    for index, plane, stored in _decode(layout.extras):
        if not np.array_equal(_real(stored, plane).astype(out.dtype), out[index]):
            first = layout.planes[index]
            raise ReadError(
                f"two different images lie at the same place: "
                f"{first.path.name if first else ''} and {plane.path.name}; keep the series you "
                "want in a folder of its own",
                plane.path,
            )
    count = len(layout.extras)
    return (f"{count} slice{'s' if count > 1 else ''} repeated another and was left out",)


def _decode(
    members: Sequence[tuple[int, Slice]],
) -> Iterator[tuple[int, Slice, NDArray[Any]]]:
    """Yield (plane, slice, stored values); each file is opened and parsed once."""
    by_file = sorted(members, key=lambda m: (str(m[1].path), m[1].frame or 0))
    for path, group in groupby(by_file, key=lambda m: m[1].path):
        frames = list(group)
        decoded = _pixels(path, frames)
        for index, plane in frames:
            stored = next(decoded, None)
            if stored is None:
                raise _damaged(path, "it holds fewer frames than it states")
            if stored.shape != (plane.rows, plane.columns):
                raise _damaged(path, f"its pixels have shape {stored.shape}")
            yield index, plane, stored


def _pixels(path: Path, members: Sequence[tuple[int, Slice]]) -> Iterator[NDArray[Any]]:
    """Yield the stored values of these frames of a file."""
    from pydicom import dcmread
    from pydicom.errors import BytesLengthException, InvalidDicomError
    from pydicom.pixels import iter_pixels

    try:
        dataset = dcmread(path, force=True)
        if "TransferSyntaxUID" not in getattr(dataset, "file_meta", {}):
            dataset.ensure_file_meta()
            dataset.file_meta.TransferSyntaxUID = _encoding(dataset)
        indices = None if members[0][1].frame is None else [s.frame or 0 for _, s in members]
        yield from iter_pixels(dataset, indices=indices)
    except (*PARSE_ERRORS, BytesLengthException, InvalidDicomError) as error:
        raise _undecodable(path, error) from error


def _encoding(dataset: Any) -> str:
    """Return the transfer syntax of a data set whose file doesn't state one, as parsed."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    implicit, little = dataset.original_encoding
    if implicit or implicit is None:
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRLittleEndian if little else ExplicitVRBigEndian)


def _undecodable(path: Path, error: BaseException) -> ReadError:
    """Say whether a decoder is missing or the file is damaged."""
    from pydicom import dcmread
    from pydicom.errors import BytesLengthException, InvalidDicomError
    from pydicom.pixels import get_decoder

    try:
        meta = dcmread(path, force=True, specific_tags=[], stop_before_pixels=True).file_meta
        syntax = meta.TransferSyntaxUID
        decoder = get_decoder(syntax)
        missing = "" if decoder.is_available else "; ".join(decoder.missing_dependencies)
        if "does not support" in str(error):  # 12-bit lossy JPEG, the one form GDCM leaves out
            missing = "the installed ones do not support its bit depth"
    except NotImplementedError:
        missing = "none exists"
    except (*PARSE_ERRORS, BytesLengthException, InvalidDicomError):
        missing = ""
    if missing:
        return ReadError(
            f"{path.name} is compressed as '{syntax.name}', for which no decoder is installed "
            f"({missing}); pip install python-gdcm, or pylibjpeg-libjpeg (GPL) for 12-bit lossy "
            "JPEG, or export the series uncompressed",
            path,
        )
    return _damaged(path, str(error).rstrip("."))


def _damaged(path: Path, why: str) -> ReadError:
    short = " ".join(why.split())[:160]
    return ReadError(
        f"the image in {path.name} is damaged or cut short ({short}); nothing was opened: "
        "export or copy the series again",
        path,
    )
