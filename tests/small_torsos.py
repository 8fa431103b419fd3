"""Small CT-like torsos for cohort tests: a body with a liver and a kidney, as files."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

SHAPE_ZYX = (20, 36, 40)
SPACING = (4.0, 3.0, 3.0)
ORGANS = {"liver": (1, 110, (10, 17, 12), (5, 8, 7)), "kidney": (2, 220, (8, 22, 29), (4, 4, 4))}


def torso(seed: int, size: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return image (int16, HU) and labels, axes (z, y, x) to I, P, L."""
    rng = np.random.default_rng(seed)
    grid = np.indices(SHAPE_ZYX).astype(float)
    middle = (np.array(SHAPE_ZYX) - 1) / 2
    move = rng.integers(-1, 2, 3)
    z, y, x = ((g - c - m) / size for g, c, m in zip(grid, middle, move, strict=True))
    body = (y / 15) ** 2 + (x / 18) ** 2 <= 1
    image = np.where(body, 20.0, -1000.0)
    labels = np.zeros(SHAPE_ZYX, np.uint8)
    for value, hu, centre, radii in ORGANS.values():
        at = np.array(centre) - middle
        inside = sum(((g - c) / r) ** 2 for g, c, r in zip((z, y, x), at, radii, strict=True)) <= 1
        labels[inside] = value
        image[inside] = hu
    image += rng.normal(0, 8, SHAPE_ZYX)
    return np.rint(image).astype(np.int16), labels


def affine_ras() -> np.ndarray:
    """Array order (x, y, z) as stored: to L, P, I, with an origin of its own."""
    affine = np.diag([-SPACING[2], -SPACING[1], -SPACING[0], 1.0])
    affine[:3, 3] = (60.0, 50.0, 300.0)
    return affine


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array.transpose(2, 1, 0), affine_ras()).to_filename(path)
    return path


def save_dicom(folder: Path, array: np.ndarray, uid: str = "1.2.826.0.1.3680043.8.498.77") -> Path:
    """Write an array (z, y, x) as an axial CT series."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    folder.mkdir(parents=True, exist_ok=True)
    for number, plane in enumerate(array):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = f"{uid}.{number + 1}"
        meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        path = folder / f"IM{number:04d}"
        made = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        made.SOPClassUID = meta.MediaStorageSOPClassUID
        made.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        made.StudyInstanceUID, made.SeriesInstanceUID = f"{uid}.0.1", f"{uid}.0.2"
        made.FrameOfReferenceUID = f"{uid}.0.3"
        made.Modality, made.SeriesNumber, made.InstanceNumber = "CT", 3, number + 1
        made.PatientName, made.PatientID = "Test^Nobody", "0"
        made.ImagePositionPatient = [-60.0, -50.0, 300.0 - SPACING[0] * number]
        made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        made.PixelSpacing, made.SliceThickness = [SPACING[1], SPACING[2]], SPACING[0]
        made.Rows, made.Columns = plane.shape
        made.BitsAllocated, made.BitsStored, made.HighBit = 16, 16, 15
        made.PixelRepresentation, made.SamplesPerPixel = 1, 1
        made.PhotometricInterpretation = "MONOCHROME2"
        made.RescaleSlope, made.RescaleIntercept = 1, 0
        made.PixelData = plane.astype("<i2").tobytes()
        pydicom.dcmwrite(path, made, enforce_file_format=True)
    return folder
