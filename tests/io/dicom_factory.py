"""Writes small synthetic DICOM files: every test knows what it put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def oblique(degrees=20.0):
    """Axial, turned about x and then z."""
    a, b = np.radians(degrees), np.radians(degrees / 2)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    turn = about_z @ about_x
    return (*turn[:, 0], *turn[:, 1])


def phantom(shape=(7, 8, 10), seed=0):
    """Random 12-bit voxels, so any two of them differ."""
    return np.random.default_rng(seed).integers(0, 4000, shape).astype(np.uint16)


def ct_slice(pixels, position, orientation=AXIAL, spacing=(0.8, 0.7), **tags):
    """Return a CT image data set; ``tags`` set or (with None) remove attributes."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = generate_uid()
    ds.StudyInstanceUID = "1.2.3.4"
    ds.SeriesInstanceUID = "1.2.3.4.5"
    ds.FrameOfReferenceUID = "1.2.3.4.6"
    ds.PatientName = "Muster^Erika"
    ds.PatientID = "ID-998877"
    ds.StudyDate = "19991231"
    ds.Modality = "CT"
    ds.SeriesDescription = "Abdomen 3.0"
    ds.SeriesNumber = 4
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    ds.BitsStored = 12 if pixels.dtype == np.uint16 else ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.SliceThickness = 3.0
    if position is not None:
        ds.ImagePositionPatient = [round(float(v), 8) for v in position]
        ds.ImageOrientationPatient = [round(float(v), 10) for v in orientation]
        ds.PixelSpacing = list(spacing)
    ds.PixelData = np.ascontiguousarray(pixels).tobytes()
    for name, value in tags.items():
        if value is None:
            del ds[name]
        else:
            setattr(ds, name, value)
    return ds


def save(ds, path: Path) -> Path:
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    pixels,
    *,
    orientation=AXIAL,
    origin=(-40.0, -30.0, 100.0),
    step=2.5,
    steps=None,
    shear=(0.0, 0.0, 0.0),
    spacing=(0.8, 0.7),
    syntax=None,
    shuffle=True,
    prefix="IM",
    **tags,
):
    """Write one file a slice, named in an order that has nothing to do with position.

    Parameters
    ----------
    pixels : ndarray, shape (slices, rows, columns)
        Slice k lies at ``origin + steps[k] * (step * normal + shear)``.
    tags : value, or callable taking the slice number
    """
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    steps = np.arange(len(pixels)) if steps is None else np.asarray(steps)
    names = np.random.default_rng(1).permutation(len(pixels)) if shuffle else range(len(pixels))
    paths = []
    for k, name in enumerate(names):
        position = np.array(origin) + steps[k] * (step * normal + np.array(shear))
        own = {t: v(k) if callable(v) else v for t, v in tags.items()}
        own.setdefault("InstanceNumber", int(name) + 1)
        ds = ct_slice(pixels[k], position, orientation, spacing, **own)
        if syntax is not None:
            ds.compress(syntax, generate_instance_uid=False)
        paths.append(save(ds, folder / f"{prefix}{name:04d}"))
    return paths


def write_enhanced(path: Path, pixels, positions, *, slopes=None, stacks=None, echoes=None):
    """Write an enhanced multi-frame object; frames lie at ``positions`` (N, 3), axial."""
    ds = ct_slice(pixels, None)
    ds.SOPClassUID = EnhancedMRImageStorage
    ds.Modality = "MR"
    ds.NumberOfFrames = len(pixels)
    del ds.RescaleSlope, ds.RescaleIntercept, ds.SliceThickness
    shared = Dataset()
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=list(AXIAL))]
    shared.PixelMeasuresSequence = [_item(PixelSpacing=[0.8, 0.7], SliceThickness=3.0)]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for n, position in enumerate(positions):
        group = Dataset()
        group.PlanePositionSequence = [_item(ImagePositionPatient=[float(v) for v in position])]
        slope = 1.0 if slopes is None else slopes[n]
        group.PixelValueTransformationSequence = [
            _item(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US")
        ]
        group.FrameContentSequence = [_item(StackID=str(stacks[n]) if stacks else "1")]
        if echoes:
            group.MREchoSequence = [_item(EffectiveEchoTime=float(echoes[n]))]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    return save(ds, path)


def _item(**tags):
    ds = Dataset()
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds
