"""DICOM headers: which files of a folder hold image slices, and what each slice says.

Pixel data are never touched here: a header costs about half a millisecond.
"""

from __future__ import annotations

import logging
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["PARSE_ERRORS", "Scan", "Slice", "find_dicom", "is_dicom_file", "scan"]

logger = logging.getLogger(__name__)

PARSE_ERRORS = (
    ValueError, TypeError, LookupError, AttributeError, EOFError, OSError, ArithmeticError,
    RuntimeError, struct.error, MemoryError, AssertionError,
)  # fmt: skip
"""What pydicom raises on damaged files (found by fuzzing), beside its own errors."""

_SUFFIXES = (".dcm", ".ima", ".dicom", ".dic")
_TAGS = """
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID Modality
    SeriesDescription SeriesNumber InstanceNumber ImageType Rows Columns NumberOfFrames
    SamplesPerPixel PhotometricInterpretation BitsStored BitsAllocated PixelRepresentation
    PixelPaddingValue PixelPaddingRangeLimit RescaleSlope RescaleIntercept PixelSpacing
    SliceThickness SpacingBetweenSlices ImagePositionPatient ImageOrientationPatient
    AcquisitionNumber AcquisitionTime EchoTime EchoNumbers TemporalPositionIdentifier
    TriggerTime DiffusionBValue SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
    PatientName PatientID
"""


_NOT_IMAGES = {
    "RTSTRUCT": "structure set (RTSTRUCT)",
    "RTPLAN": "treatment plan (RTPLAN)",
    "RTDOSE": "dose grid (RTDOSE)",
    "SEG": "segmentation (SEG)",
    "SR": "report (SR)",
    "PR": "presentation state (PR)",
    "KO": "key object note (KO)",
    "REG": "registration (REG)",
    "DOC": "document",
}


@dataclass(frozen=True)
class Slice:
    """One image plane: a single-frame file, or one frame of a multi-frame file.

    Attributes
    ----------
    path : Path
    frame : int or None
        Frame index from 0 in a multi-frame file; ``None`` in a single-frame file.
    position : tuple of float or None
        ImagePositionPatient: LPS mm of the centre of the first voxel. ``None`` unless
        position, orientation and pixel spacing are all there.
    orientation : tuple of float or None
        ImageOrientationPatient: directions of growing column index and growing row index.
    spacing : tuple of float or None
        PixelSpacing in mm: between rows, between columns.
    thickness : float or None
        SliceThickness, else SpacingBetweenSlices, in mm.
    slope, intercept : float
        Stored value to real value.
    padding : tuple of int or None
        Lowest and highest stored value that mean "no data".
    traits : mapping
        What may tell several volumes of one series apart, in the order they are tried.
    """

    path: Path
    frame: int | None
    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference: str
    modality: str
    description: str
    series_number: str
    instance: int
    rows: int
    columns: int
    bits: int
    signed: bool
    photometric: str
    position: tuple[float, float, float] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    thickness: float | None
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    traits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scan:
    """What a look at the headers found: slices, files left out (why), damaged files."""

    slices: tuple[Slice, ...]
    left_out: tuple[tuple[Path, str], ...] = ()
    damaged: tuple[Path, ...] = ()


def is_dicom_file(path: Path) -> bool:
    """Return whether the first bytes are those of a DICOM file (with or without preamble)."""
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except PermissionError:
        # It may be a slice: passing over it would leave a hole, so scan() is to report it.
        return path.suffix.lower() in ("", *_SUFFIXES)
    except OSError:
        return False
    if head[128:132] == b"DICM":
        return True
    # Without the preamble of PS3.10 a data set starts with a tag of group 0008 (or 0002).
    return head[:2] in (b"\x08\x00", b"\x02\x00") and head[2:4] in (
        b"\x00\x00",
        b"\x01\x00",
        b"\x05\x00",
        b"\x08\x00",
        b"\x16\x00",
    )


def find_dicom(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield (file, is DICOM) for all files of a folder and below it, in a stable order."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            yield path, is_dicom_file(path)


def scan(files: Iterator[tuple[Path, bool]]) -> Scan:
    """Read the headers of these files; files that aren't DICOM are passed over.

    An empty file with a DICOM suffix or none counts as damaged: it is what an interrupted copy
    leaves behind, and passing over it would hide a missing slice.
    """
    from pydicom.errors import BytesLengthException, InvalidDicomError

    slices: list[Slice] = []
    left_out: list[tuple[Path, str]] = []
    damaged: list[Path] = []
    for path, dicom in files:
        if not dicom:
            if path.suffix.lower() in ("", *_SUFFIXES) and _is_empty(path):
                damaged.append(path)
            continue
        try:
            found = _look(path)
        except (*PARSE_ERRORS, BytesLengthException, InvalidDicomError) as error:
            logger.debug("unusable header in %s: %s", path, type(error).__name__)
            found = None
        if found is None:
            damaged.append(path)
        elif isinstance(found, str):
            left_out += [(path, found)] if found else []
        else:
            slices.extend(found)
    return Scan(tuple(slices), tuple(left_out), tuple(damaged))


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def _look(path: Path) -> list[Slice] | str | None:
    """Return a file's slices, why it is left out, or ``None`` if its header is cut short."""
    from pydicom import dcmread

    with path.open("rb") as stream:
        header = dcmread(stream, stop_before_pixels=True, force=True, specific_tags=_TAGS.split())
        ended = not stream.read(1)
    meta = getattr(header, "file_meta", {})
    named = "SOPClassUID" in header or "SeriesInstanceUID" in header
    if not named and "MediaStorageSOPClassUID" not in meta:
        return None
    # A deflated file is read to its end before it is parsed.
    deflated = str(meta.get("TransferSyntaxUID", "")) == "1.2.840.10008.1.2.1.99"
    if _is_image(header) and ended and not deflated:
        return None
    reason = _why_not(header)
    return _slices(header, path) if reason is None else reason


def _is_image(header: Any) -> bool:
    """Whether pixel data must follow, by the object's class or because it has rows."""
    from pydicom.uid import UID

    media = getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID", "")
    name = UID(str(header.get("SOPClassUID", "") or media)).name
    return "Image Storage" in name or "Rows" in header


def _why_not(header: Any) -> str | None:
    """Return ``None`` for a readable image, else why it is left out (``""``: not worth saying)."""
    media = str(getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID", ""))
    if media == "1.2.840.10008.1.3.10":  # Media Storage Directory, a DICOMDIR
        return ""
    modality = str(header.get("Modality", ""))
    if "Rows" not in header or "Columns" not in header or modality in _NOT_IMAGES:
        return _NOT_IMAGES.get(modality, "object without an image")
    if int(header.get("SamplesPerPixel", 1) or 1) > 1:
        return "colour image"
    if str(header.get("PhotometricInterpretation", "")) == "PALETTE COLOR":
        return "colour image"
    if _frames(header) > 1 and "PerFrameFunctionalGroupsSequence" not in header:
        return "film of several frames without positions"
    return None


def _frames(header: Any) -> int:
    return int(header.get("NumberOfFrames", 1) or 1)


def _slices(header: Any, path: Path) -> list[Slice]:
    """Turn one header into slices: one, or one for each frame of an enhanced object."""
    if "PerFrameFunctionalGroupsSequence" not in header:
        return [_slice(_Groups(header, ()), path, None)]
    shared = tuple(header.get("SharedFunctionalGroupsSequence") or ())
    frames = list(header.PerFrameFunctionalGroupsSequence)
    if len(frames) != _frames(header):
        raise ValueError(f"{len(frames)} functional groups for {_frames(header)} frames")
    return [
        _slice(_Groups(header, (group, *shared)), path, index) for index, group in enumerate(frames)
    ]


class _Groups:
    """Looks a value up in a frame's functional groups, then in the shared ones, then on top."""

    def __init__(self, header: Any, groups: tuple[Any, ...]) -> None:
        self.header = header
        self._groups = groups

    def get(self, keyword: str, sequence: str = "", default: Any = None) -> Any:
        for group in self._groups:
            items = group.get(sequence) if sequence else None
            if items and items[0].get(keyword) is not None:
                return items[0].get(keyword)
        value = self.header.get(keyword)
        return default if value is None or value == "" else value

    def numbers(self, keyword: str, sequence: str, count: int) -> tuple[float, ...] | None:
        value = self.get(keyword, sequence)
        if value is None or isinstance(value, str) or not hasattr(value, "__len__"):
            return None
        found = tuple(float(v) for v in value)
        return found if len(found) == count and all(map(math.isfinite, found)) else None

    def number(self, keyword: str, sequence: str = "") -> float | None:
        value = self.get(keyword, sequence)
        if value is None:
            return None
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"{keyword} is {number}")
        return number


def _slice(groups: _Groups, path: Path, frame: int | None) -> Slice:
    header = groups.header
    position = groups.numbers("ImagePositionPatient", "PlanePositionSequence", 3)
    orientation = groups.numbers("ImageOrientationPatient", "PlaneOrientationSequence", 6)
    spacing = groups.numbers("PixelSpacing", "PixelMeasuresSequence", 2)
    if spacing is not None and min(spacing) <= 0:
        spacing = None
    number = str(header.get("SeriesNumber", "") or "")
    words = _safe_description(header)
    rows, columns, bits = int(header.Rows), int(header.Columns), int(header.get("BitsStored", 16))
    if min(rows, columns, bits) < 1 or bits > 64:
        raise ValueError(f"{rows} rows, {columns} columns, {bits} bits")
    placed = position is not None and orientation is not None and spacing is not None
    return Slice(
        path=path,
        frame=frame,
        sop_class=str(header.get("SOPClassUID", "")),
        sop_uid=str(header.get("SOPInstanceUID", "")),
        study_uid=str(header.get("StudyInstanceUID", "")),
        # Some anonymisers take the UID away: number or description have to do.
        series_uid=str(header.get("SeriesInstanceUID", "") or f"series-{number or words or '?'}"),
        frame_of_reference=str(header.get("FrameOfReferenceUID", "")),
        modality=str(header.get("Modality", "")),
        description=words,
        series_number=number,
        instance=int(header.get("InstanceNumber", 0) or 0) if frame is None else frame,
        rows=rows,
        columns=columns,
        bits=bits,
        signed=bool(header.get("PixelRepresentation", 0)),
        photometric=str(header.get("PhotometricInterpretation", "")),
        position=(position[0], position[1], position[2]) if placed and position else None,
        orientation=orientation if placed else None,
        spacing=(spacing[0], spacing[1]) if spacing else None,
        thickness=_thickness(groups),
        # A slope of 0 would wipe the image out: some writers mean "none" by it.
        slope=groups.number("RescaleSlope", "PixelValueTransformationSequence") or 1.0,
        intercept=groups.number("RescaleIntercept", "PixelValueTransformationSequence") or 0.0,
        padding=_padding(header),
        traits=_traits(groups),
    )


def _thickness(groups: _Groups) -> float | None:
    for keyword in ("SliceThickness", "SpacingBetweenSlices"):
        value = groups.number(keyword, "PixelMeasuresSequence")
        if value is not None and value > 0:
            return value
    return None


def _padding(header: Any) -> tuple[int, int] | None:
    """Return the stored values that mean "no data" (PS3.3 C.7.5.1.1.2).

    Many writers give the value with the wrong sign for its pixel representation; it is brought
    to the range the pixels have.
    """
    value = header.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = header.get("PixelPaddingRangeLimit", value)
    bits = int(header.get("BitsAllocated", 16) or 16)
    signed = bool(header.get("PixelRepresentation", 0))
    ends = sorted(_wrap(int(v), bits, signed) for v in (value, limit))
    return ends[0], ends[1]


def _wrap(value: int, bits: int, signed: bool) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >= 1 << (bits - 1) else value


def _traits(groups: _Groups) -> dict[str, str]:
    """Collect what can tell volumes of one series apart, most telling first."""
    kind = groups.get("FrameType", "MRImageFrameTypeSequence") or groups.get(
        "FrameType", "CTImageFrameTypeSequence"
    )
    kind = kind if kind is not None else groups.header.get("ImageType", "")
    values = {
        "stack": groups.get("StackID", "FrameContentSequence"),
        "image type": kind if isinstance(kind, str) else "/".join(str(v) for v in kind),
        "echo": groups.get("EffectiveEchoTime", "MREchoSequence") or groups.get("EchoTime"),
        "echo number": groups.get("EchoNumbers"),
        "time point": groups.get("TemporalPositionIndex", "FrameContentSequence")
        or groups.get("TemporalPositionIdentifier"),
        "b-value": groups.get("DiffusionBValue", "MRDiffusionSequence"),
        "acquisition": groups.get("AcquisitionNumber"),
        "trigger time": groups.get("TriggerTime"),
        "acquisition time": groups.get("AcquisitionTime"),
    }
    return {name: str(value) for name, value in values.items() if value not in (None, "")}


def _safe_description(header: Any) -> str:
    """Return the series description, or ``""`` if it repeats the patient's name or number."""
    text = " ".join(str(header.get("SeriesDescription", "") or "").split())[:64]
    person = str(header.get("PatientName", "") or "").replace("^", " ").replace("=", " ").split()
    secrets = [*person, str(header.get("PatientID", "") or "").strip()]
    folded = text.casefold()
    if any(len(word) >= 3 and word.casefold() in folded for word in secrets):
        return ""
    return text
