"""The command on real scans: a DICOM series and a CT whose organs are known."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from napari_openmedlab.geometry.boxes import box_of_mask
from napari_openmedlab.io.api import read, read_labels
from napari_openmedlab.sample_data import extreme_points

pytestmark = pytest.mark.data

# Clicked by eye on the series, LPS mm: right, left, front, back, top and bottom of the liver.
LIVER_CLICKS = [
    [-147.5, -136.7, -802.5],
    [25.9, -237.3, -768.5],
    [0.5, -251.0, -802.5],
    [-81.5, -74.2, -768.5],
    [-73.7, -203.1, -766.5],
    [-73.7, -203.1, -804.5],
]


def write_prompts(path, name, points):
    entry = {"name": name, "extreme_points": [list(p) for p in points]}
    path.write_text(json.dumps({"coordinate_system": "LPS", "objects": [entry]}))
    return path


def test_a_liver_on_a_dicom_series_lies_in_place_for_simpleitk_and_nibabel(
    real_data, openmedlab, tmp_path
):
    series = real_data / "ct_dicom_jpeg2000"
    prompts = write_prompts(tmp_path / "liver_prompts.json", "liver", LIVER_CLICKS)
    done = openmedlab("segment", series, "-p", prompts, "-o", tmp_path / "liver.nii.gz")
    assert done.code == 0, done.err
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(series))
    scan, mask = sitk.ReadImage(files), sitk.ReadImage(str(tmp_path / "liver.nii.gz"))
    assert mask.GetSize() == scan.GetSize()
    assert mask.GetOrigin() == pytest.approx(scan.GetOrigin(), abs=1e-3)
    assert mask.GetDirection() == pytest.approx(scan.GetDirection(), abs=1e-6)
    inside = sitk.GetArrayFromImage(scan)[sitk.GetArrayFromImage(mask) == 1]
    assert 85 < np.median(inside) < 105  # liver in the portal phase, in Hounsfield units
    assert 550 < inside.size * 0.9765625**2 * 2 / 1000 < 800  # ml within these 4 cm
    image = nibabel.load(tmp_path / "liver.nii.gz")
    centre_ras = image.affine @ [*np.argwhere(np.asarray(image.dataobj) == 1).mean(axis=0), 1]
    stats = sitk.LabelShapeStatisticsImageFilter()
    stats.Execute(mask)
    assert centre_ras[:3] * [-1, -1, 1] == pytest.approx(stats.GetCentroid(1), abs=1e-3)


@pytest.mark.parametrize(("value", "least"), [(1, 0.88), (2, 0.85), (3, 0.88), (5, 0.88)])
def test_organs_of_a_real_ct_agree_with_their_labels(real_data, openmedlab, tmp_path, value, least):
    folder = real_data / "ct_torso_3mm"
    scan = read(folder / "ct.nii.gz")
    labels = np.asarray(read_labels(folder / "labels.nii.gz", like=scan)[0].array)
    assert not box_of_mask(labels == value).is_empty
    points = extreme_points(labels, value, scan.geometry)
    prompts = write_prompts(tmp_path / "p.json", "organ", points)
    out = tmp_path / "organ.nii.gz"
    done = openmedlab("segment", folder / "ct.nii.gz", "-p", prompts, "-o", out)
    assert done.code == 0, done.err
    truth = np.asarray(nibabel.load(folder / "labels.nii.gz").dataobj) == value
    found = np.asarray(nibabel.load(out).dataobj) == 1
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > least
