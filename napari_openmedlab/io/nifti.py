"""NIfTI-1 and NIfTI-2 files to volumes.

How the grid is found (NIfTI-1 standard, ``nifti1.h``):

1. ``sform_code > 0``: the sform affine (a note says so if the qform lies elsewhere).
2. else ``qform_code > 0``: the qform affine.
3. else the file knows voxel sizes only. Where the patient's left is can't be told, so nothing
   is claimed: the volume's frame is ``"image"``, axes stay as stored, and a note says it.

RAS becomes LPS here and nowhere else. Sizes in metres become millimetres; micrometres stay.
Integers stay integers unless the file scales them (``scl_slope``, ``scl_inter``): then the
values are float32. NaN stays NaN and is said. ``SourceGrid.geometry`` is in stored (i, j, k)
order.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError, ReadError
from napari_openmedlab.geometry import frames
from napari_openmedlab.geometry.volume import Geometry, Unit, Volume
from napari_openmedlab.io.choices import ImageChoice
from napari_openmedlab.io.source import SourceGrid
from napari_openmedlab.io.suffixes import stem_of, suffix_of
from napari_openmedlab.io.values import nan_note

__all__ = ["claims", "list_images", "read"]

_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")
_DAMAGE = (OSError, EOFError, zlib.error, ValueError)
_COLOUR = {128: "RGB", 2304: "RGBA"}  # NIfTI datatype codes
_DEFLATE_RATIO = 1032  # no gzip stream unpacks to more than this times its size (zlib FAQ)
_AS_STORED = frames.Reorientation((2, 1, 0), (False, False, False))


def claims(path: Path) -> bool:
    """Return whether a file is NIfTI by its name or its first bytes."""
    if not path.is_file():
        return False
    return suffix_of(path) in _SUFFIXES or _magic(_head(path)) is not None


def list_images(path: Path) -> tuple[ImageChoice, ...]:
    """Return the volumes of a file: one, or one for each step of the fourth axis."""
    header = _header(Path(path))
    shape, count = _shape(header, path)
    title = stem_of(Path(path))
    if count == 1:
        return (ImageChoice("0", title, shape),)
    return tuple(
        ImageChoice(str(n), f"{title} [{n}]", shape, f"volume {n + 1} of {count}")
        for n in range(count)
    )


def read(path: Path, *, series: str | None = None, index: int | None = None) -> Volume:
    """Read a NIfTI file.

    Parameters
    ----------
    path : Path
        ``.nii``, ``.nii.gz`` or either file of a ``.hdr``/``.img`` pair.
    series : str, optional
        Key of :func:`list_images`; means the same as ``index``.
    index : int, optional
        Volume along the fourth axis, counted from 0.

    Returns
    -------
    Volume
        Display order; a view of the stored array where no scaling is asked for.

    Raises
    ------
    ReadError
        If the file is damaged, empty, no NIfTI, in colour, or has several volumes and none
        was chosen.
    """
    path = Path(path)
    header = _header(path)
    shape, count = _shape(header, path)
    chosen = _choose(series, index, count, path)
    grid = _grid(header, shape, path)
    array = _voxels(path, header, (*shape, count), chosen)
    array, value_notes = _scaled(array, header, path)
    source = SourceGrid("nifti", path, grid.geometry, grid.move, header)
    picked = () if count == 1 else (f"volume {chosen + 1} of {count} of a 4D file",)
    return Volume(
        array=grid.move.apply(array),
        geometry=source.display_geometry,
        source=source,
        name=stem_of(path) if count == 1 else f"{stem_of(path)} [{chosen}]",
        notes=(*grid.notes, *picked, *value_notes),
        info={"format": "NIfTI", "volumes": count},
    )


# --- files ---------------------------------------------------------------------------------


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


def _head(path: Path) -> bytes:
    try:
        with _opened(path) as file:
            return file.read(540)
    except PermissionError:
        raise
    except _DAMAGE:
        return b""


def _magic(head: bytes) -> bytes | None:
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return head[344:348]
    return head[4:8] if head[4:8] in (b"n+2\0", b"ni2\0") else None


def _pair(path: Path) -> tuple[Path, Path]:
    """Return the header and the image file (the same one, but for pairs)."""
    suffix = suffix_of(path)
    if suffix not in _SUFFIXES[2:]:
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


def _header(path: Path) -> Any:
    """Return the checked header (``nibabel.Nifti1Header`` or ``Nifti2Header``, or of a pair)."""
    import nibabel as nib

    head = _head(_pair(path)[0])
    kinds = {
        b"n+1\0": nib.Nifti1Header,
        b"ni1\0": nib.nifti1.Nifti1PairHeader,
        b"n+2\0": nib.Nifti2Header,
        b"ni2\0": nib.nifti2.Nifti2PairHeader,
    }
    magic = _magic(head)
    if magic is None:
        raise ReadError(_no_nifti(path, head), path)
    kind = kinds[magic]
    try:
        return kind(head[: kind.template_dtype.itemsize], check=False)
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise ReadError(f"the header of {path} is damaged: {error}; copy it again", path) from error


def _no_nifti(path: Path, head: bytes) -> str:
    with path.open("rb") as file:
        raw = file.read(512)
    if not raw:
        return f"{path} is empty (0 bytes); copy or download it again"
    if raw.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return f"{path} is a web page, not a scan; the download failed, download it again"
    if raw[:2] == b"\x1f\x8b" and len(head) < 348:
        return f"{path} is cut short or damaged; copy or download it again"
    if len(head) >= 348 and head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):  # size 348
        return (
            f"{path} is an Analyze 7.5 file, which does not say where left and right are; "
            "convert it to NIfTI with the program that made it"
        )
    return f"{path} is named like a NIfTI file but isn't one; check where it came from"


# --- header --------------------------------------------------------------------------------


def _shape(header: Any, path: Path) -> tuple[tuple[int, int, int], int]:
    """Return (i, j, k) and the number of volumes."""
    code = int(header["datatype"])
    if code in _COLOUR:
        raise ReadError(
            f"{path} is a colour image ({_COLOUR[code]}); grey values are needed, convert it",
            path,
        )
    rank = int(header["dim"][0])
    dims = [int(n) for n in header["dim"][1 : rank + 1]] if 1 <= rank <= 7 else []
    if len(dims) < 2 or min(dims) < 1:
        raise ReadError(
            f"the header of {path} gives no image size (dim {header['dim'].tolist()}); it is "
            "damaged, copy it again",
            path,
        )
    if any(n > 1 for n in dims[4:]):
        raise ReadError(
            f"{path} has {len(dims)} axes {tuple(dims)}: a vector or tensor image (a "
            "deformation field, say), not a scan",
            path,
        )
    dims += [1, 1]
    return (dims[0], dims[1], dims[2]), dims[3]


def _choose(series: str | None, index: int | None, count: int, path: Path) -> int:
    if index is None and series is not None:
        if not series.isdecimal():
            raise ReadError(
                f"{path} has no image called '{series}'; it has volumes 0 to {count - 1}", path
            )
        index = int(series)
    if index is None:
        if count > 1:
            raise ReadError(
                f"{path} has four axes, {count} volumes of one shape; choose one: index 0 to "
                f"{count - 1}",
                path,
            )
        return 0
    if not 0 <= index < count:
        raise ReadError(f"{path} has volumes 0 to {count - 1}, not {index}", path)
    return index


@dataclass(frozen=True)
class _Grid:
    geometry: Geometry
    move: frames.Reorientation
    notes: tuple[str, ...]


def _grid(header: Any, shape: tuple[int, int, int], path: Path) -> _Grid:
    affine_ras, notes = _patient_affine(header, shape)
    factor, unit, unit_note = _unit(header)
    if affine_ras is None:
        return _unplaced(header, shape, notes)
    affine = frames.ras_lps(affine_ras)
    affine[:3] *= factor
    try:
        geometry = Geometry(shape, affine, unit=unit)
    except GeometryError as error:
        raise ReadError(f"the position in {path} makes no sense: {error}", path) from error
    return _Grid(geometry, frames.display_reorientation(affine), (*notes, *unit_note))


def _unit(header: Any) -> tuple[float, Unit, tuple[str, ...]]:
    """Return the factor to our unit, the unit, and a note."""
    code = int(header["xyzt_units"]) & 7
    if code == 1:
        return 1000.0, "mm", ("sizes are stored in metres and shown in millimetres",)
    if code == 3:
        return 1.0, "um", ()
    return 1.0, "mm", ()  # by custom also where the file names no unit (code 0)


def _patient_affine(
    header: Any, shape: tuple[int, int, int]
) -> tuple[NDArray[np.float64] | None, tuple[str, ...]]:
    """Return the RAS affine the standard's rules give, or ``None`` if there is none."""
    sform = _usable(header.get_sform(coded=True))
    qform = _usable(_qform(header))
    bad = (
        f"the file's {name} can't be inverted and was passed over"
        for name, form in (("sform", sform), ("qform", qform))
        if form is None and int(header[f"{name}_code"]) > 0
    )
    if sform is None:
        return qform, tuple(bad)
    notes = list(bad)
    if qform is not None:
        gap = _gap(sform, qform, shape)
        if gap > 0.5 * min(frames.spacing_of(sform)):
            notes.append(
                f"the file places the image twice, up to {gap:.3g} apart (sform and qform); the "
                "sform is used, other programs may use the qform"
            )
    return sform, tuple(notes)


def _qform(header: Any) -> tuple[NDArray[np.float64] | None, int]:
    """Return qform and code; a quaternion that is none counts as no qform."""
    from nibabel.spatialimages import HeaderDataError

    try:
        affine, code = header.get_qform(coded=True)
    except (HeaderDataError, ValueError):
        return None, 0
    return affine, code


def _usable(form: tuple[NDArray[np.float64] | None, int]) -> NDArray[np.float64] | None:
    affine, code = form
    if affine is None or code <= 0:
        return None
    try:
        return frames.as_affine(affine)
    except GeometryError:
        return None


def _gap(one: NDArray[np.float64], two: NDArray[np.float64], shape: tuple[int, int, int]) -> float:
    """Return the largest distance between where the two affines put a corner."""
    corners = np.array(np.meshgrid(*((0, n - 1) for n in shape), (1,))).reshape(4, -1)
    return float(np.linalg.norm(((one - two) @ corners)[:3], axis=0).max())


def _unplaced(header: Any, shape: tuple[int, int, int], notes: tuple[str, ...]) -> _Grid:
    """Return the grid of a file that knows voxel sizes only."""
    factor, unit, unit_note = _unit(header)
    sizes = np.abs(np.array(header["pixdim"][1:4], dtype=np.float64)) * factor
    wrong = ~np.isfinite(sizes) | (sizes == 0)
    sizes[wrong] = 1.0
    known = int(header["xyzt_units"]) & 7 or not (sizes == 1).all()
    notes += (
        "the file does not say how the patient lies: left and right are not known, axes are "
        "shown as stored",
    )
    if wrong.any():
        notes += ("a voxel size is missing from the file and taken as 1",)
    affine = np.diag([*sizes, 1.0])
    geometry = Geometry(shape, affine, unit=unit if known else "pixel", frame="image")
    return _Grid(geometry, _AS_STORED, (*notes, *(unit_note if known else ())))


# --- voxels --------------------------------------------------------------------------------


def _voxels(path: Path, header: Any, shape: tuple[int, ...], index: int) -> NDArray[Any]:
    """Return one volume as stored, shape (i, j, k), in native byte order; file read once."""
    image = _pair(path)[1]
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


def _scaled(array: NDArray[Any], header: Any, path: Path) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Apply the file's slope and intercept, as float32; say what isn't a number."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        slope, inter = 1.0, 0.0  # the standard: no scaling
    if not np.isfinite(inter):
        raise ReadError(f"{path} has a scaling that is no number (scl_inter {inter})", path)
    if (slope, inter) != (1.0, 0.0):
        array = array.astype(np.float32, order="F")
        array *= np.float32(slope)
        array += np.float32(inter)
    return array, nan_note(array)
