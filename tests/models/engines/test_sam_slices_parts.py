"""Slices, grey levels, marks, boxes and shapes: what needs no network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from slice_engines_helper import click, phantom

from napari_openmedlab.errors import EngineError, PromptError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import BoxPrompt, MaskPrompt, PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.sam_slices import intensity
from napari_openmedlab.models.engines.sam_slices.between import between
from napari_openmedlab.models.engines.sam_slices.boxes import (
    grown,
    rectangles_of_box,
    rectangles_of_points,
)
from napari_openmedlab.models.engines.sam_slices.marks import Marks, axis_of, read_marks
from napari_openmedlab.models.engines.sam_slices.planes import (
    Outline,
    Plane,
    assembled,
    box_around,
    cut,
    cut_many,
    outline_on,
)
from napari_openmedlab.models.engines.sam_slices.protocols import (
    MedSamProtocol,
    SamMed2DProtocol,
    SamProtocol,
)
from napari_openmedlab.models.engines.sam_slices.steps import chain_of


def flat_volume(array, unit="mm"):
    return Volume(array, Geometry.from_spacing(array.shape, (3.0, 1.0, 1.0), unit=unit))


# -- slices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_keep_the_order_of_the_other_axes(axis):
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    volume = flat_volume(array)
    for number in range(array.shape[axis]):
        np.testing.assert_array_equal(cut(volume, Plane(axis, number)), array.take(number, axis))
    assert cut_many(volume, axis, 1, 3).shape[0] == 2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_outlines_go_to_the_volume_and_back(axis):
    rng = np.random.default_rng(axis)
    full = np.zeros((7, 8, 9), dtype=bool)
    full[2:6, 1:7, 3:8] = rng.random((4, 6, 5)) < 0.6
    patch = MaskPatch.of(full)
    outlines = {Plane(axis, n): outline_on(patch, Plane(axis, n)) for n in range(full.shape[axis])}
    assert assembled(None, outlines) == patch
    for plane, outline in outlines.items():
        on_slice = full.take(plane.number, plane.axis)
        np.testing.assert_array_equal(outline.on(on_slice.shape), on_slice)
        assert outline.area == np.count_nonzero(on_slice)
        if outline.area:
            box = box_around(plane, outline)
            assert full[box.slices].sum() == outline.area


def test_only_the_given_slices_change():
    rng = np.random.default_rng(0)
    full = rng.random((6, 8, 9)) < 0.4
    new = np.zeros((8, 9), dtype=bool)
    new[2:4, 3:6] = True
    empty = Outline.of(np.zeros((8, 9), bool))
    found = assembled(
        MaskPatch.of(full), {Plane(0, 2): Outline.of(new), Plane(0, 4): empty}
    ).to_full(full.shape)
    wanted = full.copy()
    wanted[2], wanted[4] = new, False
    np.testing.assert_array_equal(found, wanted)


def test_nothing_is_an_empty_mask():
    assert assembled(None, {}).is_empty
    empty = Outline.of(np.zeros((8, 9), bool))
    assert assembled(None, {Plane(1, 3): empty}).is_empty
    assert empty.area == 0
    assert not empty.on((8, 9)).any()


def test_outlines_beyond_the_slice_are_cut():
    outline = Outline.of(np.ones((6, 6), bool), -2, 5)
    on_slice = outline.on((5, 8))
    assert on_slice.sum() == 4 * 3
    assert on_slice[:4, 5:].all()


def test_shared_pixels():
    first = Outline.of(np.ones((4, 4), bool), 2, 2)
    assert first.shared(Outline.of(np.ones((4, 4), bool), 4, 3)) == 2 * 3
    assert first.shared(Outline.of(np.ones((2, 2), bool), 9, 9)) == 0


# -- grey levels -------------------------------------------------------------------------------


def test_a_slice_spans_0_to_254_with_its_largest_pixels_alone_on_top():
    plane = np.array([[-1000, 0, 999], [1000, 500, -999]], dtype=np.int16)
    levels = intensity.of_slice(plane)(plane)
    assert levels.tolist() == [[0, 127, 254], [254, 191, 0]]
    assert intensity.of_slice(plane * 20.0)(plane * 20.0).tolist() == levels.tolist()


def test_a_constant_slice_is_black():
    plane = np.full((3, 4), 71.5)
    grey = intensity.of_slice(plane)
    assert grey.is_flat
    assert not grey(plane).any()


def test_what_is_no_number_is_black():
    plane = np.array([[np.nan, 1.0], [np.inf, 3.0], [-np.inf, 2.0]])
    assert intensity.of_slice(plane)(plane).tolist() == [[0, 0], [0, 254], [0, 127]]
    nothing = np.full((2, 2), np.nan)
    assert not intensity.of_slice(nothing)(nothing).any()


def test_a_window_cuts_off():
    grey = intensity.of_window(-100.0, 155.0)
    assert grey(np.array([-500.0, -100, 0, 155, 900])).tolist() == [0, 0, 100, 255, 255]
    with pytest.raises(EngineError, match="upper end"):
        intensity.of_window(10.0, 10.0)


def test_ct_is_shown_by_its_soft_tissue_window():
    array = np.full((9, 4, 5), -1000, dtype=np.int16)
    array[5, 0, :3] = (-160, 40, 3000)
    grey = intensity.of_volume(flat_volume(array), intensity.CT_WINDOW, Monitor(), keeps_zero=False)
    assert (grey.low, grey.high) == (-160.0, 240.0)
    assert grey(array[5, 0]).tolist() == [0, 127, 255, 0, 0]


def test_a_ct_that_does_not_fill_the_window_is_stretched():
    array = np.linspace(-50, 90, 60).reshape(3, 4, 5)
    grey = intensity.of_volume(flat_volume(array), intensity.CT_WINDOW, Monitor(), keeps_zero=False)
    assert (grey.low, grey.high) == pytest.approx((-50.0, 90.0))


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
def test_other_scans_are_shown_by_percentiles(monkeypatch, dtype):
    monkeypatch.setattr(intensity, "_BLOCK", 500)  # many blocks
    rng = np.random.default_rng(4)
    array = rng.gamma(3.0, 20.0, (20, 30, 17)).clip(0, 250).astype(dtype)
    array[rng.random(array.shape) < 0.4] = 0
    grey = intensity.of_volume(flat_volume(array), None, Monitor(), keeps_zero=False)
    wanted = np.percentile(array[array != 0], (0.5, 99.5))
    tolerance = 1e-9 if np.issubdtype(dtype, np.integer) else 250 / 65536 * 1.01
    assert (grey.low, grey.high) == pytest.approx(tuple(wanted), abs=tolerance)
    assert grey(np.array([0, 1e6])).tolist() == [0, 255]


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_volumes_without_contrast(value):
    volume = flat_volume(np.full((3, 4, 5), value))
    for window in (None, intensity.CT_WINDOW):
        grey = intensity.of_volume(volume, window, Monitor(), keeps_zero=False)
        assert not grey(volume.array).any()


# -- marks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def volume():
    return phantom()[0]


def marks_of(prompts, volume, axis=0, rule="contour"):
    return read_marks(prompts, volume.geometry, axis, rule)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_clicks_count_on_their_slice(volume, axis):
    index = (5, 20, 33)
    prompts = click(volume, *index)
    prompts = click(volume, 5, 21, 33, positive=False, prompts=prompts)
    found = marks_of(prompts, volume, axis)
    flat = [index[a] for a in range(3) if a != axis]
    first = found[Plane(axis, index[axis])].strokes[0]
    assert first.places == (tuple(flat),)
    assert first.positive
    planes = {Plane(axis, 5), Plane(axis, 5)} if axis == 0 else set()
    planes = planes or {Plane(axis, index[axis]), Plane(axis, (5, 21, 33)[axis])}
    assert set(found) == planes


def test_a_3d_box_counts_on_all_its_slices(volume):
    box = Box((2, 10, 20), (9, 40, 55))
    prompts = PromptSet(boxes=(BoxPrompt.from_box(box, volume.geometry),))
    for axis, first, second in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        found = marks_of(prompts, volume, axis)
        assert [p.number for p in found] == list(range(box.start[axis], box.stop[axis]))
        rectangle = (box.start[first], box.start[second], box.stop[first], box.stop[second])
        assert {m.box for m in found.values()} == {rectangle}
        assert all(m.closed for m in found.values())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_box_on_one_slice_stays_on_it_whatever_the_axis(volume, axis):
    start, stop = [2, 10, 20], [9, 40, 55]
    stop[axis] = start[axis] + 1
    prompts = PromptSet(boxes=(BoxPrompt.from_box(Box(start, stop), volume.geometry),))
    assert axis_of("auto", prompts, volume.geometry) == axis
    for chosen in range(3):
        found = marks_of(prompts, volume, chosen)
        assert set(found) == {Plane(axis, start[axis])}
        assert not found[Plane(axis, start[axis])].closed


def test_scribbles_are_thinned_out_but_keep_their_extent(volume):
    places = [(4, y, x) for y in range(10, 30) for x in range(12, 40)]
    prompts = PromptSet().with_scribble(volume.geometry.to_world(places))
    assert axis_of("auto", prompts, volume.geometry) == 0
    (stroke,) = marks_of(prompts, volume)[Plane(0, 4)].strokes
    assert len(set(stroke.places)) == 5
    assert stroke.extent == (10, 12, 30, 40)
    spread = np.array(stroke.places)
    assert np.ptp(spread, axis=0).tolist() == [19, 27]
    # In a coronal slice it is one slice of its own axis.
    assert set(marks_of(prompts, volume, axis=1)) == {Plane(0, 4)}


def test_a_scribble_through_many_slices_counts_on_each(volume):
    places = [(z, 20 - z, 30 + z) for z in range(3, 8)]
    prompts = PromptSet().with_scribble(volume.geometry.to_world(places), positive=False)
    found = marks_of(prompts, volume)
    assert {p.number: m.strokes[0].places for p, m in found.items()} == {
        z: ((20 - z, 30 + z),) for z in range(3, 8)
    }
    assert not any(m.has_positive for m in found.values())


def test_mask_prompts_count_where_they_are(volume):
    mask = np.zeros(volume.geometry.shape, dtype=bool)
    mask[3:5, 10:20, 10:30] = True
    mask[8, 12, 12] = True
    prompts = PromptSet(mask=MaskPrompt(MaskPatch.of(mask), volume.geometry))
    assert [p.number for p in marks_of(prompts, volume)] == [3, 4, 8]
    nothing = MaskPrompt(MaskPatch.empty(), volume.geometry)
    with pytest.raises(PromptError, match="no voxel"):
        marks_of(PromptSet(mask=nothing), volume)


def test_an_image_of_one_slice_has_one_axis():
    for axis in range(3):
        shape = [30, 40, 50]
        shape[axis] = 1
        image = flat_volume(np.zeros(shape))
        for wanted in ("auto", "0", "1", "2"):
            assert axis_of(wanted, PromptSet(), image.geometry) == axis


def test_extreme_points_on_one_slice_are_a_box(volume):
    world = volume.geometry.to_world([(4, 10, 20), (4, 30, 22), (4, 18, 8), (4, 22, 44)])
    prompts = PromptSet(tuple(map(tuple, world)))
    found = marks_of(prompts, volume, axis=2)
    assert found == {Plane(0, 4): Marks(box=(10, 8, 31, 45))}


def test_a_single_extreme_point_is_a_point(volume):
    prompts = PromptSet((tuple(volume.geometry.to_world((4, 10, 20))),))
    (stroke,) = marks_of(prompts, volume)[Plane(0, 4)].strokes
    assert stroke.places == ((10, 20),)


def test_prompts_outside_are_refused(volume):
    world = volume.geometry.to_world
    for prompts in (
        click(volume, 5, 20, 400),
        PromptSet(boxes=(BoxPrompt(world((0, 0, 190)), world((5, 5, 199))),)),
        PromptSet().with_scribble(world([(5, -9, 3)])),
    ):
        with pytest.raises(PromptError, match="outside"):
            marks_of(prompts, volume)


# -- boxes -------------------------------------------------------------------------------------


def extremes_of(mask):
    index = np.argwhere(mask)
    points = []
    for axis in range(3):
        for end in (index[:, axis].min(), index[:, axis].max()):
            layer = index[index[:, axis] == end]
            points.append(layer[np.abs(layer - np.median(layer, axis=0)).sum(axis=1).argmin()])
    return np.array(points, dtype=float)


def overlap(one, other):
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    areas = [np.prod(np.subtract(b[2:], b[:2])) for b in (one, other)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_boxes_follow_an_ellipsoid(axis):
    z, y, x = np.indices((40, 60, 70))
    truth = ((z - 20) / 15.5) ** 2 + ((y - 28) / 22.5) ** 2 + ((x - 40) / 25.5) ** 2 <= 1
    points, box = extremes_of(truth), MaskPatch.of(truth).box
    follow = rectangles_of_points(points, box, axis, "contour")
    same = rectangles_of_points(points, box, axis, "constant")
    assert set(follow) == set(same) == set(range(box.start[axis], box.stop[axis]))
    assert len(set(same.values())) == 1
    patch = MaskPatch.of(truth)
    true = {n: outline_on(patch, Plane(axis, n)).rectangle for n in follow}
    gained = np.mean([overlap(follow[n], true[n]) for n in follow])
    assert gained > 0.9
    assert gained > np.mean([overlap(same[n], true[n]) for n in same]) + 0.2
    for number, (r0, c0, r1, c1) in follow.items():
        cr0, cc0, cr1, cc1 = same[number]
        assert cr0 <= r0 < r1 <= cr1
        assert cc0 <= c0 < c1 <= cc1


def test_with_fewer_than_six_points_the_box_is_constant():
    points = np.array([(2.0, 5, 5), (9, 20, 25), (5, 3, 30), (5, 28, 2)])
    box = Box((2, 3, 2), (10, 29, 31))
    found = rectangles_of_points(points, box, 0, "contour")
    assert found == rectangles_of_box(box, 0)


def test_real_organs_are_followed_better(real_data):
    nibabel = pytest.importorskip("nibabel")
    gained = []
    for name in ("amos_0001", "amos_0013"):
        stored = nibabel.load(real_data / "organ_labels" / f"{name}_label.nii.gz")
        labels = np.asarray(stored.dataobj).astype(np.uint8)
        for value in range(1, labels.max() + 1):
            truth = labels == value
            if np.count_nonzero(truth) < 200:
                continue
            patch = MaskPatch.of(truth)
            points = extremes_of(patch.mask) + patch.box.start
            true = {n: outline_on(patch, Plane(2, n)) for n in range(*slice_range(patch, 2))}
            scores = [
                np.mean([overlap(found[n], o.rectangle) for n, o in true.items() if o.area])
                for rule in ("contour", "constant")
                for found in [rectangles_of_points(points, patch.box, 2, rule)]
            ]
            gained.append(scores)
    follow, constant = np.mean(gained, axis=0)
    assert len(gained) >= 25
    assert follow > constant + 0.08


def slice_range(patch, axis):
    return patch.box.start[axis], patch.box.stop[axis]


def test_margins_end_at_the_slice():
    assert grown((2, 3, 50, 60), (5, 5), (52, 100)) == (0, 0, 52, 65)


# -- shapes between ----------------------------------------------------------------------------


def disc(shape, centre, radius):
    rows, columns = np.indices(shape)
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def test_shapes_between_grow_and_wander():
    shape = (80, 120)
    first, second = Outline.of(disc(shape, (30, 25), 8)), Outline.of(disc(shape, (40, 95), 20))
    assert first.shared(second) == 0
    for share in (0.25, 0.5, 0.75):
        centre = (30 + 10 * share, 25 + 70 * share)
        wanted = disc(shape, centre, 8 + 12 * share)
        found = between(first, second, share).on(shape)
        assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.93
    assert between(first, second, 0.0) == first
    assert between(first, second, 1.0) == second


# -- steps -------------------------------------------------------------------------------------


def test_med2d_drops_the_box_after_the_first_step_and_sam_keeps_it(volume):
    box = PromptSet(boxes=(BoxPrompt.from_box(Box((4, 9, 9), (5, 40, 50)), volume.geometry),))
    prompts = click(volume, 4, 20, 20, prompts=click(volume, 4, 30, 30, prompts=box))
    marks = marks_of(prompts, volume)[Plane(0, 4)]
    shape = (60, 70)
    steps = chain_of(marks, None, SamMed2DProtocol(), shape).prompts
    assert [(s.box is not None, len(s.points)) for s in steps] == [
        (True, 0),
        (False, 1),
        (False, 2),
    ]
    steps = chain_of(marks, None, SamProtocol(), shape).prompts
    assert [(s.box is not None, len(s.points)) for s in steps] == [(True, 0), (True, 1), (True, 2)]
    steps = chain_of(marks, None, MedSamProtocol(), shape).prompts
    assert [(s.box, len(s.points)) for s in steps] == [((9, 9, 40, 50), 0)]


def test_a_positive_point_comes_first(volume):
    prompts = click(volume, 4, 30, 30, prompts=click(volume, 4, 20, 20, positive=False))
    marks = marks_of(prompts, volume)[Plane(0, 4)]
    steps = chain_of(marks, None, SamMed2DProtocol(), (60, 70)).prompts
    assert [s.labels for s in steps] == [(1,), (1, 0)]
    alone = replace(marks, strokes=marks.strokes[:1])
    assert chain_of(alone, None, SamMed2DProtocol(), (60, 70)).prompts == ()


def test_medsam_makes_a_box_of_what_there_is(volume):
    protocol, shape = MedSamProtocol(), (60, 70)
    mask = Outline.of(np.ones((10, 12), bool), 20, 30)
    (step,) = chain_of(Marks(), mask, protocol, shape).prompts
    assert step.box == (19, 29, 31, 43)  # a pixel at least, 5 of 1024 are less
    scribble = PromptSet().with_scribble(
        volume.geometry.to_world([(4, 5, x) for x in range(25, 35)])
    )
    marks = marks_of(scribble, volume)[Plane(0, 4)]
    (step,) = chain_of(marks, mask, protocol, shape).prompts
    assert step.box == (5, 25, 31, 43)
    clicks = marks_of(click(volume, 4, 20, 20), volume)[Plane(0, 4)]
    assert chain_of(clicks, None, protocol, shape).prompts == ()
    (step,) = chain_of(clicks, mask, protocol, shape).prompts
    assert step.box == (19, 20, 31, 43)
