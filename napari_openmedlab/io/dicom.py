"""DICOM folders and files to volumes.

* A **folder** is searched with everything below it. Files that aren't DICOM, and DICOM objects
  that aren't grey images, are passed over (the volume's notes count the latter).
* A **file** stands for its series: the other slices are looked for beside it.
* A ``DICOMDIR`` stands for its folder; its own list of files is not needed.
* Several volumes found: the caller chooses one by ``series`` and ``index``; nothing is guessed.
* Missing slices become blank planes and are named in the notes; uneven spacing and different
  images at one place are refused; a tilted gantry gives a sheared affine (``dicom_geometry``).
* Values are the real ones (rescale slope and intercept applied). MONOCHROME1 images keep
  theirs too and are not inverted: the notes say that they show inverted.
* Images without a position in the patient (X-ray, secondary capture) become single-slice
  volumes in a frame of their own.
* Name, notes and info hold no patient data: the series description is used unless it repeats
  the patient's name or number.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError, ReadError
from napari_openmedlab.geometry.frames import Reorientation, display_reorientation
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.io.choices import ImageChoice
from napari_openmedlab.io.dicom_files import Scan, Slice, find_dicom, is_dicom_file, scan
from napari_openmedlab.io.dicom_geometry import Layout, lay_out
from napari_openmedlab.io.dicom_pixels import fill, result_type
from napari_openmedlab.io.dicom_series import Stack, choices, find_stacks, holding, select
from napari_openmedlab.io.source import SourceGrid

__all__ = ["DicomReference", "claims", "list_images", "read"]

_SUFFIXES = (".dcm", ".ima", ".dicom")
_SNIFFED = 500  # files looked at before a folder is said to hold no DICOM


@dataclass(frozen=True)
class DicomReference:
    """What a DICOM writer needs to refer to the source images.

    Attributes
    ----------
    study_uid, series_uid, frame_of_reference_uid, sop_class_uid : str
    instances : tuple of (str, int) or None
        For each slice in source order its SOP instance UID and its frame number (from 1; 0 in
        a single-frame file). ``None`` for a blank plane where a slice is missing.
    """

    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    sop_class_uid: str
    instances: tuple[tuple[str, int] | None, ...]


def claims(path: Path) -> bool:
    """Return whether a file looks like DICOM, or a folder holds a file that does.

    Cheap: a few bytes of a file, of at most 500 files of a folder.
    """
    if path.is_dir():
        return any(dicom for _, dicom in islice(find_dicom(path), _SNIFFED))
    return path.suffix.lower() in _SUFFIXES or is_dicom_file(path)


def list_images(path: Path) -> tuple[ImageChoice, ...]:
    """Return the volumes in a folder, or in the series of a file.

    Raises
    ------
    ReadError
        If there is none.
    """
    with _quiet():
        return choices(_find(path)[1])


def read(path: Path, *, series: str | None = None, index: int | None = None) -> Volume:
    """Read one volume from a DICOM folder, or the series a DICOM file belongs to.

    Parameters
    ----------
    path : Path
    series : str, optional
        Series instance UID, the beginning of one, or the number (from 1) in the list.
    index : int, optional
        Number (from 0) among the volumes of that series, or among all without ``series``.

    Returns
    -------
    Volume
        Display order, LPS mm; int16, uint16, int32 or float32.

    Raises
    ------
    ReadError
        If there is no image, several to choose from, a damaged file among the slices, no
        decoder, or slices that can't be put on an even grid.
    """
    path = Path(path)
    with _quiet():
        found, stacks = _find(path)
        stack = select(stacks, series, index, path)
        _refuse_damaged(found, stack)
        if stack.slices[0].position is None:
            return _unplaced(stack, path)
        try:
            layout = lay_out(stack.slices)
        except GeometryError as error:
            raise ReadError(
                f"series '{stack.title}' in {path} can't be shown as a volume: {error}; open a "
                "reconstruction with even slices",
                path,
            ) from error
        return _volume(stack, layout, found, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom's warnings on odd values back: they may quote patient data."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")
        yield


def _find(path: Path) -> tuple[Scan, tuple[Stack, ...]]:
    """Scan the headers; a file gives the stacks that hold it."""
    if not path.exists():
        raise ReadError(f"{path} does not exist", path)
    if path.name.upper() == "DICOMDIR" and path.is_file():
        path = path.parent
    if path.is_dir():
        found = scan(find_dicom(path))
        return found, _some(find_stacks(found.slices), found, path)
    own = scan(iter([(path, is_dicom_file(path))]))
    _some(find_stacks(own.slices), own, path)
    series = own.slices[0].series_uid
    beside = scan((p, is_dicom_file(p)) for p in sorted(path.parent.iterdir()) if p.is_file())
    members = [s for s in beside.slices if s.series_uid == series or s.path == path]
    return beside, holding(find_stacks(members), path)


def _some(stacks: tuple[Stack, ...], found: Scan, path: Path) -> tuple[Stack, ...]:
    if stacks:
        return stacks
    if found.damaged:
        raise ReadError(
            f"{_names(found.damaged)} in {path} can't be read as DICOM: damaged or cut short, "
            "or no permission; export or copy the series again",
            path,
        )
    if found.left_out:
        raise ReadError(
            f"{path} holds no image that can be opened as a volume, only {_counted(found)}", path
        )
    raise ReadError(
        f"{path} holds no DICOM file" if path.is_dir() else f"{path} is not a DICOM file", path
    )


def _refuse_damaged(found: Scan, stack: Stack) -> None:
    """Refuse a series with a damaged file beside its slices: it may be one of them."""
    folders = {plane.path.parent for plane in stack.slices}
    damaged = [p for p in found.damaged if p.parent in folders]
    if damaged:
        raise ReadError(
            f"{_names(damaged)} beside the slices of '{stack.title}' can't be read "
            "(damaged or cut short, or no permission) and may be one of them; export or copy the "
            "series again, or move the file away",
            damaged[0],
        )


def _names(paths: Any) -> str:
    named = ", ".join(p.name for p in paths[:3])
    return f"{named} and {len(paths) - 3} more" if len(paths) > 3 else named


def _counted(found: Scan) -> str:
    counts = Counter(reason for _, reason in found.left_out)
    return ", ".join(f"{n} x {reason}" for reason, n in counts.most_common())


def _volume(stack: Stack, layout: Layout, found: Scan, path: Path) -> Volume:
    first = stack.slices[0]
    shape = (len(layout.planes), first.rows, first.columns)
    geometry = Geometry(shape, layout.affine)
    move = display_reorientation(layout.affine)
    # Decoded through a source-order view, so the display-order array is contiguous.
    display = np.empty(move.apply_shape(shape), dtype=result_type(stack.slices))
    filled, pixel_notes = fill(layout, move.undo(display))
    display = np.ascontiguousarray(move.apply(filled))  # a copy only where the type was widened
    source = SourceGrid("dicom", path, geometry, move, _reference(layout.planes))
    notes = [*layout.notes, *_missing_note(layout, source), *pixel_notes]
    notes += _other_notes(stack, found)
    return Volume(
        array=display,
        geometry=source.display_geometry,
        source=source,
        name=stack.title,
        modality=first.modality,
        notes=tuple(notes),
        info=_info(stack, layout.missing, source),
    )


def _reference(planes: tuple[Slice | None, ...]) -> DicomReference:
    first = next(s for s in planes if s is not None)
    return DicomReference(
        study_uid=first.study_uid,
        # "series-4" stands for a UID that an anonymiser took away
        series_uid=first.series_uid if first.series_uid[:1].isdigit() else "",
        frame_of_reference_uid=first.frame_of_reference,
        sop_class_uid=first.sop_class,
        instances=tuple(
            None if s is None else (s.sop_uid, 0 if s.frame is None else s.frame + 1)
            for s in planes
        ),
    )


def _missing_note(layout: Layout, source: SourceGrid) -> tuple[str, ...]:
    if not layout.missing:
        return ()
    shown = ", ".join(str(n) for n in _displayed(layout.missing, source)[:8])
    more = f" and {len(layout.missing) - 8} more" if len(layout.missing) > 8 else ""
    one = len(layout.missing) == 1
    return (
        f"{len(layout.missing)} of {len(layout.planes)} slices "
        f"{'is' if one else 'are'} missing from the series and shown blank: "
        f"slice {shown}{more} (counted from 0 as displayed); what lies there is not measured",
    )


def _displayed(planes: tuple[int, ...], source: SourceGrid) -> list[int]:
    """Return planes of source order as positions along their display axis."""
    axis = source.move.order.index(0)
    last = source.geometry.shape[0] - 1
    return sorted(last - p if source.move.flips[axis] else p for p in planes)


def _other_notes(stack: Stack, found: Scan) -> list[str]:
    notes = []
    if stack.copies:
        notes.append(f"{stack.copies} files held a slice a second time and were left out")
    if any(s.photometric == "MONOCHROME1" for s in stack.slices):
        notes.append(
            "the image is meant to be shown inverted (MONOCHROME1); its values are unchanged, "
            "choose an inverted colour map"
        )
    if found.left_out:
        notes.append(f"not opened from this folder: {_counted(found)}")
    return notes


def _info(stack: Stack, missing: tuple[int, ...], source: SourceGrid) -> dict[str, Any]:
    info: dict[str, Any] = {
        "format": "DICOM",
        "files": len({plane.path for plane in stack.slices}),
        "series": stack.slices[0].series_uid,
    }
    if missing:
        info["missing_slices"] = tuple(_displayed(missing, source))
    return info


def _unplaced(stack: Stack, path: Path) -> Volume:
    """Read an image without a position in the patient as one slice in its own frame."""
    plane = stack.slices[0]
    depth = plane.thickness or (plane.spacing[0] if plane.spacing else 1.0)
    spacing = (depth, *(plane.spacing or (1.0, 1.0)))
    shape = (1, plane.rows, plane.columns)
    geometry = Geometry.from_spacing(shape, spacing, unit="mm" if plane.spacing else "pixel")
    layout = Layout((plane,), (), geometry.affine, 0.0, ())
    array: NDArray[Any] = np.empty(shape, dtype=result_type([plane]))
    array, pixel_notes = fill(layout, array)
    as_stored = Reorientation((0, 1, 2), (False, False, False))
    source = SourceGrid("dicom", path, geometry, as_stored, _reference((plane,)))
    note = "the image doesn't state its place in the patient: left and right are not known"
    if not plane.spacing:
        note += ", nor is its pixel size"
    return Volume(
        array=array,
        geometry=geometry,
        source=source,
        name=stack.title,
        modality=plane.modality,
        notes=(note, *pixel_notes, *_other_notes(stack, Scan(()))),
        info=_info(stack, (), source),
    )
