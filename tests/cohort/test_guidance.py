import numpy as np

from napari_openmedlab.cohort.guidance import PLACING_ORDER, guide
from napari_openmedlab.geometry.extreme_points import ROLES, walls_of_mask
from napari_openmedlab.geometry.volume import Geometry

GRID = Geometry((20, 20, 20), [[0, 0, 3, 0], [0, 3, 0, 0], [-3, 0, 0, 60], [0, 0, 0, 1.0]])


def walls():
    z, y, x = np.indices(GRID.shape)
    mask = ((z - 9) / 5) ** 2 + ((y - 10) / 6) ** 2 + ((x - 11) / 7) ** 2 <= 1
    return dict(zip(ROLES, map(tuple, walls_of_mask(mask, GRID)), strict=True))


def test_each_point_is_asked_for_in_words_until_all_six_are_there():
    points = []
    for number, wall in enumerate(PLACING_ORDER):
        found = guide(points, "liver", GRID)
        assert found.next == wall
        assert found.sentence.startswith(f"{number + 1} of 6, the {wall} end of 'liver': ")
        assert not found.complete
        points.append(walls()[wall])
    found = guide(points, "liver", GRID)
    assert found.complete
    assert found.placed == PLACING_ORDER
    assert "'liver' is complete" in found.sentence


def test_points_in_another_order_are_recognised():
    given = [walls()[wall] for wall in ROLES]
    assert guide(given, "x", GRID).placed == ROLES
    two = guide([walls()["inferior"], walls()["superior"]], "x", GRID)
    assert two.placed == ("inferior", "superior")
    assert two.next == "right"


def test_points_that_cannot_be_meant_are_named():
    given = [walls()[wall] for wall in ROLES]
    given[4] = (30.0, 30.0, 500.0)
    found = guide(given, "liver", GRID)
    assert not found.complete
    assert "outside the scan" in found.sentence
    assert "six are enough, remove 1" in guide([*given, given[0]], "liver").sentence
