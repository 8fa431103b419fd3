"""The picture shows masks where they are, with left and right as radiologists know them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from napari_openmedlab.cli.picture import LegendRow, draw_picture, save_picture, window_of
from napari_openmedlab.errors import WriteError
from napari_openmedlab.geometry.volume import Geometry, Volume

RED, GREEN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


def scan(modality="CT"):
    shape = (20, 40, 60)
    # Display order: axes grow to I, P, L.
    affine = [[0, 0, 2.0, 0], [0, 2.0, 0, 0], [-4.0, 0, 0, 0], [0, 0, 0, 1]]
    array = np.full(shape, -1000, dtype=np.int16)
    array[:, 5:35, 5:55] = 40
    labels = np.zeros(shape, dtype=np.uint8)
    labels[4:9, 8:16, 10:20] = 1  # right, anterior, superior
    labels[4:16, 24:32, 40:50] = 2
    return Volume(array, Geometry(shape, affine), modality=modality), labels


def places(picture, colour, region):
    """Return the mean (row, column) of pixels of a colour in a region, as fractions of it."""
    left, top, right, bottom = region
    pixels = np.asarray(picture)[top:bottom, left:right]
    found = np.argwhere((pixels == np.array(colour) * 255).all(axis=-1))
    assert len(found) > 20
    return found.mean(axis=0) / pixels.shape[:2]


def test_right_is_left_and_anterior_up_on_the_axial_panel():
    volume, labels = scan()
    picture = draw_picture(volume, labels, {1: RED, 2: GREEN}, [])
    axial = (14, 14, 14 + 900, 14 + 600)  # 120 x 80 mm at 7.5 pixels per mm
    row, column = places(picture, RED, axial)
    assert (row, column) == pytest.approx((12 / 40, 15 / 60), abs=0.02)
    row, column = places(picture, GREEN, axial)
    assert (row, column) == pytest.approx((28 / 40, 45 / 60), abs=0.02)


def test_outlines_leave_the_inside_of_an_object_visible():
    volume, labels = scan()
    plain = draw_picture(volume, labels * 0, {1: RED}, [])
    drawn = draw_picture(volume, labels, {2: GREEN}, [])
    assert not (np.asarray(plain) == [255, 0, 0]).all(axis=-1).any()
    green = (np.asarray(drawn) == [0, 255, 0]).all(axis=-1).sum()
    assert 200 < green < 20_000


def test_the_legend_is_part_of_the_picture():
    volume, labels = scan()
    rows = [LegendRow("liver: 12 ml", RED)]
    with_legend = np.asarray(draw_picture(volume, labels * 0, {}, rows))
    assert (with_legend == [255, 0, 0]).all(axis=-1).sum() > 100


def test_the_window_fits_the_modality():
    assert window_of(scan("CT")[0]) == (-160.0, 240.0)
    low, high = window_of(scan("MR")[0])
    assert (low, high) == (-1000.0, 40.0)


def test_an_image_without_values_still_gives_a_picture():
    volume, labels = scan("")
    flat = Volume(np.full(volume.geometry.shape, np.nan, np.float32), volume.geometry)
    assert draw_picture(flat, labels, {1: RED}, []).size[0] > 900


def test_a_picture_that_cant_be_written_is_a_sentence(tmp_path):
    with pytest.raises(WriteError, match=r"p\.png could not be written"):
        save_picture(Image.new("RGB", (4, 4)), tmp_path / "no" / "p.png")
