"""NRRD and MetaImage files, through SimpleITK.

SimpleITK turns the space of an NRRD (RAS, LAS ...) into LPS. The file's axes come as
(slice, row, column), slowest first. A NRRD without a ``space`` field says nothing of a patient:
its frame is ``"image"``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError, ReadError, WriteError
from napari_openmedlab.geometry.frames import Reorientation, display_reorientation
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.io.choices import ImageChoice
from napari_openmedlab.io.source import SourceGrid
from napari_openmedlab.io.suffixes import stem_of
from napari_openmedlab.io.values import nan_note

__all__ = ["ItkHeader", "claims", "list_images", "read", "write_labels"]

_NRRD, _META = (".nrrd", ".nhdr"), (".mha", ".mhd")
_AS_STORED = Reorientation((0, 1, 2), (False, False, False))


@dataclass(frozen=True)
class ItkHeader:
    """The grid as ITK has it, so that it can be written again to the bit.

    Attributes
    ----------
    origin, spacing : tuple of float, length 3
        Order (x, y, z), LPS.
    direction : tuple of float, length 9
        Row-major; columns are the directions of the axes.
    """

    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    direction: tuple[float, ...]

    @property
    def affine(self) -> NDArray[np.float64]:
        """Index (z, y, x, 1) to LPS."""
        affine = np.eye(4)
        columns = np.array(self.direction).reshape(3, 3) * np.array(self.spacing)
        affine[:3, :3], affine[:3, 3] = columns[:, ::-1], self.origin
        return affine


@dataclass(frozen=True)
class _Facts:
    """What the header of a file says; ``size`` in file order (x, y, z, ...)."""

    size: tuple[int, ...]
    components: int
    header: ItkHeader
    has_patient: bool


def claims(path: Path) -> bool:
    """Return whether a file is NRRD or MetaImage by its name or its first bytes."""
    if not path.is_file():
        return False
    if path.suffix.lower() in (*_NRRD, *_META):
        return True
    with path.open("rb") as file:
        return file.read(4) == b"NRRD"


def list_images(path: Path) -> tuple[ImageChoice, ...]:
    """Return the volumes of a file: one, or one for each step of the fourth axis."""
    path = Path(path)
    facts = _facts(path)
    count = _count(facts, path)
    shape = _size3(facts)[::-1]
    if count == 1:
        return (ImageChoice("0", stem_of(path), shape),)
    return tuple(
        ImageChoice(str(n), f"{stem_of(path)} [{n}]", shape, f"volume {n + 1} of {count}")
        for n in range(count)
    )


def read(path: Path, *, series: str | None = None, index: int | None = None) -> Volume:
    """Read a NRRD or MetaImage file.

    Parameters
    ----------
    path : Path
        ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``.
    series : str, optional
        Key of :func:`list_images`; means the same as ``index``.
    index : int, optional
        Volume along the fourth axis (or component), counted from 0.

    Raises
    ------
    ReadError
        If the file is damaged, in colour, or has several volumes and none was chosen.
    """
    path = Path(path)
    facts = _facts(path)
    count = _count(facts, path)
    chosen = _choose(series, index, count, path)
    array = _voxels(path, facts, chosen)
    notes: tuple[str, ...] = ()
    if not facts.has_patient:
        notes = (
            "the file does not say how the patient lies: left and right are not known, voxel "
            "sizes are taken as mm",
        )
    try:
        geometry = Geometry(
            array.shape, facts.header.affine, frame="patient" if facts.has_patient else "image"
        )
    except GeometryError as error:
        raise ReadError(f"the position in {path} makes no sense: {error}", path) from error
    move = display_reorientation(geometry.affine) if facts.has_patient else _AS_STORED
    source = SourceGrid("itk", path, geometry, move, facts.header)
    if count > 1:
        notes += (f"volume {chosen + 1} of {count} of a 4D file",)
    return Volume(
        array=move.apply(array),
        geometry=source.display_geometry,
        source=source,
        name=stem_of(path) if count == 1 else f"{stem_of(path)} [{chosen}]",
        notes=(*notes, *nan_note(array)),
        info={"format": "NRRD" if path.suffix.lower() in _NRRD else "MetaImage"},
    )


def _reader(path: Path) -> Any:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    meta = path.suffix.lower() in _META
    reader.SetImageIO("MetaImageIO" if meta else "NrrdImageIO")
    return reader


def _facts(path: Path) -> _Facts:
    if path.stat().st_size == 0:
        raise ReadError(f"{path} is empty (0 bytes); copy or download it again", path)
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ReadError(_why(path, error), path) from error
    size = tuple(int(n) for n in reader.GetSize())
    rank = len(size)
    keys = reader.GetMetaDataKeys()
    header = _header3(reader, rank)
    nrrd = path.suffix.lower() not in _META
    return _Facts(size, reader.GetNumberOfComponents(), header, not nrrd or "NRRD_space" in keys)


def _header3(reader: Any, rank: int) -> ItkHeader:
    """Return origin, spacing and direction of the first three axes (a 2D image has depth 1)."""
    n = min(rank, 3)
    direction = np.eye(3)
    direction[:n, :n] = np.array(reader.GetDirection()).reshape(rank, rank)[:n, :n]
    origin = (*reader.GetOrigin()[:n], *(0.0,) * (3 - n))
    spacing = (*reader.GetSpacing()[:n], *(1.0,) * (3 - n))
    return ItkHeader(origin, spacing, tuple(direction.ravel()))


def _why(path: Path, error: RuntimeError) -> str:
    """Return a sentence for what ITK says in many lines."""
    text = str(error)
    if path.suffix.lower() in (".mhd", ".nhdr"):
        return (
            f"{path} can't be read: it is a header whose data file is missing, cut short or "
            "damaged; copy both files to one folder"
        )
    if "irection" in text and ("determinant" in text or "orthonormal" in text):
        return f"the axes in {path} aren't a valid set of directions; export it again as NIfTI"
    return f"{path} is damaged, cut short or not of its named format; copy or export it again"


def _count(facts: _Facts, path: Path) -> int:
    if not 2 <= len(facts.size) <= 4 or (len(facts.size) == 4 and facts.components > 1):
        raise ReadError(
            f"{path} has {len(facts.size)} axes and {facts.components} values per voxel: not a "
            "scan; export one volume",
            path,
        )
    return facts.size[3] if len(facts.size) == 4 else facts.components


def _size3(facts: _Facts) -> tuple[int, int, int]:
    x, y, z = (*facts.size, 1)[:3]
    return x, y, z


def _choose(series: str | None, index: int | None, count: int, path: Path) -> int:
    if index is None and series is not None and series.isdecimal():
        index = int(series)
    if index is None and series is None and count == 1:
        return 0
    if index is None:
        raise ReadError(
            f"{path} holds {count} volumes (a 4D, vector or colour image); choose one: index 0 "
            f"to {count - 1}",
            path,
        )
    if not 0 <= index < count:
        raise ReadError(f"{path} has volumes 0 to {count - 1}, not {index}", path)
    return index


def _voxels(path: Path, facts: _Facts, index: int) -> NDArray[Any]:
    """Return one volume, shape (z, y, x)."""
    import SimpleITK as sitk

    reader = _reader(path)
    if len(facts.size) == 4:
        reader.SetExtractIndex([0, 0, 0, index])
        reader.SetExtractSize([*facts.size[:3], 0])
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise ReadError(_why(path, error), path) from error
    if facts.components > 1:
        array = np.ascontiguousarray(array[..., index])
    if array.dtype.kind not in "iuf":
        raise ReadError(f"{path} holds {array.dtype} values; grey values are needed", path)
    volume: NDArray[Any] = array.reshape(_size3(facts)[::-1])
    return volume


def write_labels(
    path: Path, stored: NDArray[Any], geometry: Geometry, header: ItkHeader | None = None
) -> None:
    """Write a label map as NRRD or MetaImage (compressed) and read it back.

    Parameters
    ----------
    path : Path
    stored : ndarray of uint8, uint16 or uint32, shape (z, y, x)
        Slowest axis of the file first.
    geometry : Geometry
        Grid of ``stored``.
    header : ItkHeader, optional
        Of the source file, to repeat it to the bit.

    Raises
    ------
    WriteError
        If the grid isn't in mm, ITK refuses, or the file reads back different.
    """
    import SimpleITK as sitk

    if geometry.unit != "mm":
        raise WriteError(
            f"{path.name}: this format holds millimetres only and the image is in "
            f"{geometry.unit}; write .nii.gz or .tif",
            path,
        )
    header = header or _header_of(geometry)
    image = sitk.GetImageFromArray(stored)
    try:
        image.SetOrigin(header.origin)
        image.SetSpacing(header.spacing)
        image.SetDirection(header.direction)
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise WriteError(
            f"{path.name} could not be written (is the disk full?); nothing was changed", path
        ) from error
    _check(path, stored, header)


def _header_of(geometry: Geometry) -> ItkHeader:
    columns = geometry.affine[:3, 2::-1]
    lengths = np.linalg.norm(columns, axis=0)
    direction = (columns / lengths).ravel()
    floats = [tuple(float(v) for v in row) for row in (geometry.affine[:3, 3], lengths, direction)]
    return ItkHeader(floats[0], floats[1], floats[2])


def _check(path: Path, stored: NDArray[Any], header: ItkHeader) -> None:
    try:
        volume = read(path)
    except ReadError as error:
        raise WriteError(f"the mask could not be read back ({error}); try again", path) from error
    again = volume.source.to_source(volume.array)
    if not (again.dtype == stored.dtype and np.array_equal(again, stored)):
        raise WriteError("the mask reads back different from what was written; try again", path)
    # ITK writes NRRD as direction times spacing and splits it again: equal to the last digits
    if not np.allclose(volume.source.header.affine, header.affine, rtol=1e-6, atol=1e-6):
        raise WriteError("the mask's position reads back different; use .nii.gz", path)
