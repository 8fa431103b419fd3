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

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError, ReadError
from napari_openmedlab.geometry import frames
from napari_openmedlab.geometry.volume import Geometry, Unit, Volume
from napari_openmedlab.io.choices import ImageChoice
from napari_openmedlab.io.nifti_files import (
    SUFFIXES,
    first_bytes,
    magic_of,
    pair_of,
    read_voxels,
)
from napari_openmedlab.io.source import SourceGrid
from napari_openmedlab.io.suffixes import stem_of, suffix_of
from napari_openmedlab.io.values import nan_note

__all__ = ["claims", "list_images", "read"]

_COLOUR = {128: "RGB", 2304: "RGBA"}  # NIfTI datatype codes
_AS_STORED = frames.Reorientation((2, 1, 0), (False, False, False))


def claims(path: Path) -> bool:
    """Return whether a file is NIfTI by its name or its first bytes."""
    if not path.is_file():
        return False
    return suffix_of(path) in SUFFIXES or magic_of(first_bytes(path)) is not None


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
        Display order; a view of the stored array where no scaling is asked for. Its ``info`` has
        ``size_stated``: False where mm is custom and not in the file, or a voxel size is missing.

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
    array = read_voxels(path, header, (*shape, count), chosen)
    array, value_notes = _scaled(array, header, path)
    source = SourceGrid("nifti", path, grid.geometry, grid.move, header)
    picked = () if count == 1 else (f"volume {chosen + 1} of {count} of a 4D file",)
    return Volume(
        array=grid.move.apply(array),
        geometry=source.display_geometry,
        source=source,
        name=stem_of(path) if count == 1 else f"{stem_of(path)} [{chosen}]",
        notes=(*grid.notes, *picked, *value_notes),
        info={"format": "NIfTI", "volumes": count, "size_stated": grid.size_stated},
    )


def _header(path: Path) -> Any:
    """Return the checked header (``nibabel.Nifti1Header`` or ``Nifti2Header``, or of a pair)."""
    import nibabel as nib

    head = first_bytes(pair_of(path)[0])
    kinds = {
        b"n+1\0": nib.Nifti1Header,
        b"ni1\0": nib.nifti1.Nifti1PairHeader,
        b"n+2\0": nib.Nifti2Header,
        b"ni2\0": nib.nifti2.Nifti2PairHeader,
    }
    magic = magic_of(head)
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
    size_stated: bool


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
    move = frames.display_reorientation(affine)
    return _Grid(geometry, move, (*notes, *unit_note), _names_unit(header))


def _names_unit(header: Any) -> bool:
    return int(header["xyzt_units"]) & 7 in (1, 2, 3)


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

    if header["pixdim"][0] == 0:  # the standard: 0 means 1
        header = header.copy()
        header["pixdim"][0] = 1
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
    known = _names_unit(header) or not (sizes == 1).all()
    notes += (
        "the file does not say how the patient lies: left and right are not known, axes are "
        "shown as stored",
    )
    if wrong.any():
        notes += ("a voxel size is missing from the file and taken as 1",)
    affine = np.diag([*sizes, 1.0])
    geometry = Geometry(shape, affine, unit=unit if known else "pixel", frame="image")
    stated = _names_unit(header) and not wrong.any()
    return _Grid(geometry, _AS_STORED, (*notes, *(unit_note if known else ())), stated)


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
