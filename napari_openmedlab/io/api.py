"""Files to volumes and labels, labels to files: the three calls everything else uses."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from napari_openmedlab.errors import ReadError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.io.choices import ImageChoice
from napari_openmedlab.io.sidecar import LabelInfo

__all__ = ["list_images", "read", "read_labels", "write"]

_FORMATS = ("nifti", "itk", "ome_zarr", "tiff", "dicom")
"""Modules of this package that read a format, in the order in which they are asked."""

_SINGLE = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


class _Format(Protocol):
    def claims(self, path: Path) -> bool: ...

    def list_images(self, path: Path) -> tuple[ImageChoice, ...]: ...

    def read(
        self, path: Path, *, series: str | None = None, index: int | None = None
    ) -> Volume: ...


def read(path: str | Path, *, series: str | None = None, index: int | None = None) -> Volume:
    """Read a scan from a file or folder of any format we know.

    Parameters
    ----------
    path : str or Path
        NIfTI, NRRD, MetaImage, TIFF or DICOM file; DICOM, OME-Zarr or TIFF folder.
    series : str, optional
        Which image, if there are several: a ``key`` of :func:`list_images`.
    index : int, optional
        Which volume of a file with four axes, counted from 0.

    Returns
    -------
    Volume
        Axes (z, y, x) in display order: nearest to I, P, L if the file knows the patient's axes.

    Raises
    ------
    ReadError
        If there is no such file, it is damaged or not an image, or it holds several images and
        none was chosen. The text names the file and what to do.
    """
    path = Path(path)
    with _in_sentences(path):
        return _format_of(path).read(path, series=series, index=index)


def list_images(path: str | Path) -> tuple[ImageChoice, ...]:
    """Return the images in a file or folder that :func:`read` can be asked for.

    Raises
    ------
    ReadError
        If there is none.
    """
    path = Path(path)
    with _in_sentences(path):
        return _format_of(path).list_images(path)


def read_labels(
    path: str | Path, like: Volume | None = None, *, resample: bool = False
) -> tuple[Volume, dict[int, LabelInfo]]:
    """Read a label map, and the names and colours of its objects if a sidecar has them.

    Parameters
    ----------
    path : str or Path
        Any file :func:`read` takes. Labels stored as floats are fine if they are whole numbers.
    like : Volume, optional
        The scan the labels belong to. They come back in its axis order, on its grid.
    resample : bool
        Bring labels from another grid to that of ``like`` by nearest voxel.

    Returns
    -------
    volume : Volume
        An unsigned integer array, 0 is background.
    objects : dict of int to LabelInfo
        By label value; empty without a sidecar.

    Raises
    ------
    ReadError
        If the file can't be read or holds values that aren't labels.
    GeometryError
        If the labels lie on another grid than ``like`` and ``resample`` is False.
    """
    from napari_openmedlab.io import label_grids, sidecar

    path = Path(path)
    volume = label_grids.as_labels(read(path), path)
    if like is not None:
        volume = label_grids.on_grid_of(volume, like, path, resample=resample)
    return volume, sidecar.read_objects(path)


def write(
    path: str | Path,
    labels: NDArray[Any],
    volume: Volume,
    *,
    objects: Mapping[int, LabelInfo] | None = None,
    provenance: Mapping[str, Any] | None = None,
    one_file_per_object: bool = False,
) -> tuple[Path, ...]:
    """Write a label map on the exact grid of the file that ``volume`` was read from.

    Parameters
    ----------
    path : str or Path
        Ends in ``.nii``, ``.nii.gz``, ``.nrrd``, ``.nhdr``, ``.mha``, ``.mhd`` or (without a
        patient) ``.tif``, ``.tiff``.
    labels : ndarray of int or bool, shape ``volume.geometry.shape``
        Display order (z, y, x), 0 is background.
    volume : Volume
        The scan the labels were made on.
    objects : mapping of int to LabelInfo, optional
        Names and colours by label value.
    provenance : mapping, optional
        JSON values on how the labels were made, for the sidecar. No patient data.
    one_file_per_object : bool
        Write ``NAME_<object>`` files of 0 and 1 instead of one file.

    Returns
    -------
    tuple of Path
        The files written, sidecars included.

    Raises
    ------
    GeometryError
        If the labels aren't labels on the volume's grid.
    WriteError
        If a file can't be written or reads back different; old files are then untouched.

    Notes
    -----
    Every file is written to a temporary folder beside its target and read back; only then does
    it take the target's place. ``NAME.json`` beside it holds names, colours and provenance.
    """
    from napari_openmedlab.io import labels as label_files

    return label_files.write(
        Path(path),
        labels,
        volume,
        objects=objects,
        provenance=provenance,
        one_file_per_object=one_file_per_object,
    )


def _format_of(path: Path) -> _Format:
    """Return the module that reads this file, by its name and content."""
    if not path.exists():
        raise ReadError(f"{path} does not exist; check the name and the drive", path)
    for name in _FORMATS:
        module = cast("_Format", importlib.import_module(f"napari_openmedlab.io.{name}"))
        if module.claims(path):
            return module
    raise ReadError(_why_not(path), path)


@contextmanager
def _in_sentences(path: Path) -> Iterator[None]:
    """Turn what the system says of a file into a sentence."""
    try:
        yield
    except ReadError:
        raise
    except PermissionError as error:
        raise ReadError(
            f"{path} can't be opened: no permission to read it; ask its owner or copy it", path
        ) from error
    except OSError as error:
        raise ReadError(
            f"{path} can't be read: {error.strerror or error}; check the drive or copy the file",
            path,
        ) from error
    except MemoryError as error:
        raise ReadError(
            f"{path} is larger than the free memory; close other programs, or convert it to "
            "OME-Zarr, which opens piece by piece",
            path,
        ) from error


def _why_not(path: Path) -> str:
    known = "NIfTI, DICOM, NRRD, MetaImage (MHA, MHD), TIFF and OME-Zarr can be read"
    if path.is_dir():
        if not any(path.iterdir()):
            return f"the folder {path} is empty"
        files = sorted(p.name for p in path.iterdir() if p.name.lower().endswith(_SINGLE))
        if files:
            return f"the folder {path} holds single scans; open one of them, {files[0]} say"
        return f"the folder {path} holds no DICOM series, OME-Zarr image or TIFF stack"
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return f"{path} is empty (0 bytes); copy or download it again"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return f"{path} is a web page, not a scan; the download failed, download it again"
    return f"{path} is not a scan of a known format; {known}"
