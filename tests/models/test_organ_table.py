"""Volumes, means, places and sides of labelled structures."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.frames import Reorientation
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.io.api import read, read_labels
from napari_openmedlab.models.organ_table import COLUMNS, measure, to_csv
from napari_openmedlab.models.organs import TOTAL_SEGMENTATOR

DISPLAY = np.array([[0, 0, 2.0, -40], [0, 2.0, 0, -40], [-3.0, 0, 0, 50], [0, 0, 0, 1]])
SHAPE = (20, 40, 40)
NAMES = {1: "kidney_left", 2: "kidney_right", 3: "vertebrae_L1", 4: "liver"}


def body(swapped=False):
    """Kidneys beside a vertebra; in display order patient left has the larger index along x."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[5:10, 20:26, 28:34] = 2 if swapped else 1
    labels[5:10, 20:26, 6:12] = 1 if swapped else 2
    labels[0:12, 28:34, 17:23] = 3
    array = np.where(labels > 0, 100 + 10 * labels.astype(int), -1000).astype(np.int16)
    return Volume(array, Geometry(SHAPE, DISPLAY), modality="CT"), labels


def rows_of(volume, labels, box=None):
    return {row.name: row for row in measure(volume, labels, NAMES, box)}


def test_volume_mean_place_and_faces():
    rows = rows_of(*body())
    left = rows["kidney_left"]
    assert left.voxels == 180
    assert left.volume_ml == pytest.approx(180 * 12 / 1000)
    assert left.mean == 110
    assert left.box == Box((5, 20, 28), (10, 26, 34))
    assert left.slices == (5, 9)
    assert left.centre == pytest.approx((2 * 30.5 - 40, 2 * 22.5 - 40, 50 - 3 * 7))
    assert left.touches == ()
    assert rows["vertebrae_L1"].touches == ("superior",)
    assert rows["liver"].voxels == 0
    assert math.isnan(rows["liver"].mean)
    assert rows["liver"].slices is None


@pytest.mark.parametrize(
    "turn", [((2, 1, 0), (True, False, True)), ((1, 2, 0), (False, True, False))]
)
def test_the_order_of_axes_changes_no_measure(turn):
    volume, labels = body(swapped=True)
    move = Reorientation(*turn)
    other = Volume(move.apply(volume.array), volume.geometry.reorient(move), modality="CT")
    wanted, found = rows_of(volume, labels), rows_of(other, move.apply(labels))
    for name, row in wanted.items():
        assert found[name].voxels == row.voxels
        assert found[name].side_check == row.side_check
        assert set(found[name].touches) == set(row.touches)
        if row.voxels:
            assert found[name].centre == pytest.approx(row.centre)


def test_swapped_sides_are_noticed():
    assert not any(row.side_check for row in rows_of(*body()).values())
    swapped = rows_of(*body(swapped=True))
    assert swapped["kidney_left"].side_check == "lies further right than kidney, right"
    assert swapped["kidney_right"].side_check == "lies further left than kidney, left"


def test_a_single_structure_on_the_wrong_side_is_noticed():
    volume, labels = body(swapped=True)
    labels[labels == 2] = 0
    rows = rows_of(volume, labels)
    assert rows["kidney_left"].side_check == "lies mostly on the right of the body's middle"
    volume, labels = body()
    labels[labels == 2] = 0
    assert rows_of(volume, labels)["kidney_left"].side_check == ""


def test_labels_of_a_region_are_measured_in_the_scan():
    volume, labels = body()
    box = Box((3, 15, 4), (20, 40, 36))
    rows = rows_of(volume, labels[box.slices], box)
    whole = rows_of(volume, labels)
    assert rows["kidney_left"] == whole["kidney_left"]
    assert rows["vertebrae_L1"].touches == ()  # cut by the region, which is no face of the scan


def test_labels_on_another_grid_are_refused():
    volume, labels = body()
    with pytest.raises(GeometryError, match="don't fit"):
        measure(volume, labels[1:], NAMES)


def test_csv_has_a_line_for_every_structure():
    volume, labels = body(swapped=True)
    found = list(csv.DictReader(io.StringIO(to_csv(measure(volume, labels, NAMES)))))
    assert tuple(found[0]) == COLUMNS
    assert [row["name"] for row in found] == list(NAMES.values())
    assert float(found[0]["volume_ml"]) == pytest.approx(2.16)
    assert found[2]["touches_border"] == "superior"
    assert found[3]["mean"] == ""
    assert "further right" in found[0]["side_check"]


def test_values_without_a_name_are_left_out():
    volume, labels = body()
    labels = labels.astype(np.uint16)
    labels[0, 0, 0] = 700
    assert sum(row.voxels for row in measure(volume, labels, NAMES)) == 180 + 180 + 12 * 36


def test_an_image_without_a_patient_has_no_sides():
    _, labels = body(swapped=True)
    geometry = Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0), unit="um")
    rows = rows_of(Volume(labels.astype(np.int16), geometry), labels)
    assert rows["vertebrae_L1"].touches == ("axis 0 start",)
    assert rows["kidney_left"].side_check == ""
    assert rows["kidney_left"].volume_ml == pytest.approx(180e-12)


@pytest.mark.data
def test_on_a_real_scan_every_side_is_right(real_data):
    """TotalSegmentator's own labels of a real CT; v2's numbers of the paired structures."""
    folder = real_data / "ct_torso_3mm"
    volume = read(folder / "ct.nii.gz")
    labels, _ = read_labels(folder / "labels.nii.gz", volume)
    known = {2: "kidney_right", 3: "kidney_left", 8: "adrenal_gland_right"}
    known |= {9: "adrenal_gland_left", 27: "vertebrae_L5", 28: "vertebrae_L4", 5: "liver"}
    rows = measure(volume, labels.array, known)
    found = [row for row in rows if row.voxels]
    assert len(found) >= 2
    assert not any(row.side_check for row in found)
    assert set(known.values()) < set(TOTAL_SEGMENTATOR)
    for row in found:
        assert row.voxels == (labels.array == row.value).sum()
        assert row.mean == pytest.approx(volume.array[labels.array == row.value].mean())
