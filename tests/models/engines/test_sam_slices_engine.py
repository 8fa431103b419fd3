"""The slice engines on a phantom: where the mask comes out, what changes, what is said.

A network that segments bright regions stands in for the published ones: their stand-in weights
give the right numbers (see the tests of protocols and of stand-ins) but find nothing.
"""

from __future__ import annotations

from dataclasses import replace

import grey_network
import numpy as np
import pytest
from slice_engines_helper import click, dice, phantom, register

from napari_openmedlab.errors import Cancelled, EngineError, PromptError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import BoxPrompt, MaskPrompt, PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.catalogue import get_spec, load_engine
from napari_openmedlab.models.contract import Anticipating, Hint, Monitor, Request

SIZES = {"sam-med2d": 256, "sam": 1024, "medsam": 1024}
MIDDLE = (6, 27, 38)


class Bench:
    """An engine, its network and a prepared phantom."""

    def __init__(self, monkeypatch, engine_id, **install):
        register(monkeypatch)
        self.spec = get_spec(engine_id)
        self.network = grey_network.install(monkeypatch, SIZES[engine_id], **install)
        self.engine = load_engine(engine_id)
        self.volume, self.truth = phantom()
        self.prepared = self.engine.prepare(self.volume, Monitor())

    def use(self, volume):
        self.volume = volume
        self.prepared = self.engine.prepare(volume, Monitor())

    def ask(self, prompts, monitor=None, **fields):
        options = self.spec.check_options(fields.pop("options", {}))
        request = Request(prompts, options=options, **fields)
        return self.engine.predict(self.prepared, request, monitor or Monitor())

    def box(self, start, stop):
        return PromptSet(boxes=(BoxPrompt.from_box(Box(start, stop), self.volume.geometry),))

    def on_slice(self, found, axis, number):
        return found.patch.to_full(self.truth.shape).take(number, axis)

    def slices(self, found, axis=0):
        full = found.patch.to_full(self.truth.shape)
        others = tuple(a for a in range(3) if a != axis)
        return np.flatnonzero(full.any(axis=others)).tolist()


@pytest.fixture(params=SIZES)
def any_bench(request, monkeypatch):
    return Bench(monkeypatch, request.param)


@pytest.fixture
def bench(monkeypatch):
    return Bench(monkeypatch, "sam-med2d")


def dice2(found, truth):
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def true_box(bench, axis, number, room=2):
    rows, columns = np.nonzero(bench.truth.take(number, axis))
    first, second = (a for a in range(3) if a != axis)
    start, stop = [number] * 3, [number + 1] * 3
    for across, values in ((first, rows), (second, columns)):
        start[across] = max(0, int(values.min()) - room)
        stop[across] = min(bench.truth.shape[across], int(values.max()) + 1 + room)
    return bench.box(start, stop)


def extremes(bench):
    index = np.argwhere(bench.truth)
    points = []
    for axis in range(3):
        for end in (index[:, axis].min(), index[:, axis].max()):
            layer = index[index[:, axis] == end]
            near = np.abs(layer - np.median(layer, axis=0)).sum(axis=1).argmin()
            points.append(tuple(bench.volume.geometry.to_world(layer[near])))
    return PromptSet(tuple(points))


# -- one slice ---------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_box_is_answered_where_it_was_drawn(any_bench, axis):
    number = MIDDLE[axis]
    found = any_bench.ask(true_box(any_bench, axis, number))
    assert any_bench.slices(found, axis) == [number]
    wanted = any_bench.truth.take(number, axis)
    assert dice2(any_bench.on_slice(found, axis, number), wanted) > 0.9
    assert found.provenance["axis"] == axis
    assert 0.8 < found.score <= 1.0


@pytest.mark.parametrize("engine_id", ["sam-med2d", "sam"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_click_is_answered_where_it_was_made(monkeypatch, engine_id, axis):
    bench = Bench(monkeypatch, engine_id)
    prompts = click(bench.volume, *MIDDLE)
    found = bench.ask(prompts, options={"axis": str(axis)})
    assert bench.slices(found, axis) == [MIDDLE[axis]]
    wanted = bench.truth.take(MIDDLE[axis], axis)
    assert dice2(bench.on_slice(found, axis, MIDDLE[axis]), wanted) > 0.9
    assert found.patch.to_full(bench.truth.shape)[MIDDLE]


@pytest.mark.parametrize("kind", ["scribble", "mask"])
def test_scribbles_and_masks_start_one_too(any_bench, kind):
    part = np.zeros(any_bench.truth.shape, dtype=bool)
    rows, _ = np.nonzero(any_bench.truth[6])
    part[6, rows.min() : rows.max() + 1 : 2, 30:46] = True
    part &= any_bench.truth
    world = any_bench.volume.geometry.to_world(np.argwhere(part))
    prompts = PromptSet().with_scribble(world)
    if kind == "mask":
        patch = MaskPatch.of(part)
        prompts = PromptSet(mask=MaskPrompt(patch, any_bench.volume.geometry))
    found = any_bench.ask(prompts)
    assert any_bench.slices(found) == [6]
    assert dice2(any_bench.on_slice(found, 0, 6), any_bench.truth[6]) > 0.6


def test_clicks_correct_the_answer(bench):
    first = click(bench.volume, *MIDDLE)
    start = bench.ask(first)
    second = click(bench.volume, 6, 27, 30, positive=False, prompts=first)
    found = bench.ask(second, previous=start.patch, previous_prompts=first)
    assert not found.patch.to_full(bench.truth.shape)[6, 27, 30]
    assert bench.network.fed[-1] is not None
    assert 0.0 <= float(bench.network.fed[-1].min()) <= float(bench.network.fed[-1].max()) <= 1.0
    again = Bench.ask(bench, second)
    assert again.patch == found.patch


def test_a_correction_costs_one_decoder_call_and_no_encoding(bench):
    first = click(bench.volume, *MIDDLE)
    start = bench.ask(first)
    counts = bench.network.encoded, bench.network.decoded
    second = click(bench.volume, 6, 27, 30, positive=False, prompts=first)
    bench.ask(second, previous=start.patch, previous_prompts=first)
    assert (bench.network.encoded, bench.network.decoded) == (counts[0], counts[1] + 1)


def test_another_machine_comes_to_the_same_mask(bench, monkeypatch):
    first = click(bench.volume, *MIDDLE)
    start = bench.ask(first)
    second = click(bench.volume, 6, 27, 30, positive=False, prompts=first)
    fields = {"previous": start.patch, "previous_prompts": first}
    found = bench.ask(second, **fields)
    other = Bench(monkeypatch, "sam-med2d")
    assert other.ask(second, **fields).patch == found.patch


def test_only_the_slice_of_the_new_click_changes(bench):
    rng = np.random.default_rng(0)
    before = MaskPatch.of(rng.random(bench.truth.shape) < 0.3)
    old = click(bench.volume, 3, 27, 38)
    new = click(bench.volume, *MIDDLE, prompts=old)
    found = bench.ask(new, previous=before, previous_prompts=old)
    full, kept = found.patch.to_full(bench.truth.shape), before.to_full(bench.truth.shape)
    others = [z for z in range(12) if z != 6]
    np.testing.assert_array_equal(full[others], kept[others])
    assert (full[6] != kept[6]).any()


def test_a_painted_mask_is_what_a_click_corrects(bench):
    painted = np.zeros(bench.truth.shape, dtype=bool)
    painted[6, 5:9, 5:12] = True  # a place that is dark: only the mask fed could bring it
    found = bench.ask(click(bench.volume, *MIDDLE), previous=MaskPatch.of(painted))
    fed = bench.network.fed[-1][0, 0]
    assert 0.0 < float(fed.mean()) < 0.05
    assert float(fed[int(7 / 60 * 64), int(8 / 70 * 64)]) == 1.0
    assert bench.slices(found) == [6]


def test_a_new_box_starts_afresh(bench):
    painted = np.zeros(bench.truth.shape, dtype=bool)
    painted[6, 5:9, 5:12] = True
    found = bench.ask(true_box(bench, 0, 6), previous=MaskPatch.of(painted))
    assert bench.network.fed[-1] is None
    assert dice2(bench.on_slice(found, 0, 6), bench.truth[6]) > 0.9


def test_prompts_taken_away_take_their_slice_along(bench):
    one = click(bench.volume, *MIDDLE)
    both = click(bench.volume, 3, 27, 38, prompts=one)
    start = bench.ask(both)
    assert bench.slices(start) == [3, 6]
    found = bench.ask(one, previous=start.patch, previous_prompts=both)
    assert bench.slices(found) == [6]
    assert np.isnan(found.score)  # nothing was asked


def test_medsam_asks_for_a_box(monkeypatch):
    bench = Bench(monkeypatch, "medsam")
    with pytest.raises(PromptError, match="box"):
        bench.ask(click(bench.volume, *MIDDLE))


def test_points_outside_alone_start_nothing(bench):
    outside = click(bench.volume, *MIDDLE, positive=False)
    with pytest.raises(PromptError, match="Mark where the object is"):
        bench.ask(outside)
    both = click(bench.volume, 3, 27, 38, prompts=outside)
    found = bench.ask(both)
    assert bench.slices(found) == [3]
    assert any("Slice 6 was not answered" in note for note in found.notes)


# -- 3D ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["0", "1", "2"])
def test_a_3d_box_is_answered_on_all_its_slices(any_bench, axis):
    box = MaskPatch.of(any_bench.truth).box
    found = any_bench.ask(any_bench.box(box.start, box.stop), options={"axis": axis})
    assert dice(found.patch, any_bench.truth) > 0.85
    assert any_bench.slices(found, int(axis)) == list(
        range(box.start[int(axis)], box.stop[int(axis)])
    )


@pytest.mark.parametrize("rule", ["contour", "constant"])
def test_extreme_points_give_a_box_on_each_slice(any_bench, rule):
    found = any_bench.ask(extremes(any_bench), options={"boxes": rule})
    assert dice(found.patch, any_bench.truth) > 0.85
    assert (
        found.provenance["protocol"]
        == any_bench.engine.protocol(any_bench.spec.check_options({})).name
    )


def test_propagation_finds_the_whole_object(any_bench):
    prompts = true_box(any_bench, 0, 6)
    found = any_bench.ask(prompts, options={"propagate": True})
    assert dice(found.patch, any_bench.truth) > 0.85
    said = " ".join(found.notes)
    assert "Propagated to" in said
    assert said.count("Propagation ended before slice") == 2


@pytest.mark.parametrize("axis", [1, 2])
def test_propagation_along_the_other_axes(bench, axis):
    found = bench.ask(true_box(bench, axis, MIDDLE[axis]), options={"propagate": True})
    assert dice(found.patch, bench.truth) > 0.85


def test_propagation_stays_within_its_reach(bench):
    found = bench.ask(true_box(bench, 0, 6), options={"propagate": True, "reach": 2})
    assert bench.slices(found) == [4, 5, 6, 7, 8]
    assert not any("ended" in note for note in found.notes)


def test_marked_slices_are_joined(bench):
    prompts = PromptSet(
        boxes=(*true_box(bench, 0, 4).boxes, *true_box(bench, 0, 8).boxes),
    )
    found = bench.ask(prompts, options={"propagate": True, "reach": 1})
    assert bench.slices(found) == [3, 4, 5, 6, 7, 8, 9]


def test_a_3d_box_between_marked_slices_is_a_wall(bench):
    middle = MaskPatch.of(bench.truth).box
    region = Box((5, *middle.start[1:]), (7, *middle.stop[1:]))
    boxes = (BoxPrompt.from_box(region, bench.volume.geometry),)
    prompts = click(bench.volume, 9, 27, 38, prompts=PromptSet(boxes=boxes))
    prompts = click(bench.volume, 3, 27, 38, prompts=prompts)
    found = bench.ask(prompts, options={"propagate": True, "axis": "0"})
    assert dice(found.patch, bench.truth) > 0.85
    alone = bench.ask(PromptSet(boxes=boxes), options={"propagate": True})
    assert bench.slices(alone) == [5, 6]  # it says itself where the object ends


def test_sam_takes_the_best_of_three_for_one_click_alone(monkeypatch):
    bench = Bench(monkeypatch, "sam")
    one = click(bench.volume, *MIDDLE)
    assert bench.ask(one).score == pytest.approx(0.9)
    assert bench.ask(one, options={"candidates": "single"}).score == pytest.approx(0.81)
    two = click(bench.volume, 6, 30, 40, prompts=one)
    assert bench.ask(two).score == pytest.approx(0.81)
    assert bench.ask(true_box(bench, 0, 6)).score == pytest.approx(0.81)


def test_a_correction_changes_the_way_to_the_next_marked_slice_only(bench):
    options = {"propagate": True}
    first = true_box(bench, 0, 6)
    start = bench.ask(first, options=options)
    painted = start.patch.to_full(bench.truth.shape).copy()
    painted[3, 0, 0] = True  # by hand, on the other side of slice 6
    before = MaskPatch.of(painted)
    more = click(bench.volume, 8, 27, 38, prompts=first)
    found = bench.ask(more, options=options, previous=before, previous_prompts=first)
    full = found.patch.to_full(bench.truth.shape)
    np.testing.assert_array_equal(full[:7], painted[:7])
    assert dice(found.patch, bench.truth) > 0.85


def test_an_edited_slice_is_what_propagation_starts_from(bench):
    first = true_box(bench, 0, 6)
    start = bench.ask(first)
    edited = start.patch.to_full(bench.truth.shape).copy()
    edited[6, 20:24, 30:34] = False
    before = MaskPatch.of(edited)
    options = {"propagate": True}
    found = bench.ask(first, options=options, previous=before, previous_prompts=first)
    np.testing.assert_array_equal(bench.on_slice(found, 0, 6), edited[6])
    assert bench.slices(found) == bench.slices(bench.ask(first, options=options))
    assert found.score > 0.8


def test_what_an_earlier_propagation_left_beyond_the_end_goes(bench):
    first = true_box(bench, 0, 6)
    options = {"propagate": True}
    whole = bench.ask(first, options=options)
    short = bench.ask(
        first,
        options={"propagate": True, "stop_score": 1.0},
        previous=whole.patch,
        previous_prompts=first,
    )
    assert bench.slices(short) == [6]


def test_obstacles_are_left_out_everywhere(bench):
    blocked = np.zeros(bench.truth.shape, dtype=bool)
    blocked[:, :, :36] = True
    found = bench.ask(
        true_box(bench, 0, 6), options={"propagate": True}, obstacles=MaskPatch.of(blocked)
    )
    assert found.patch.count
    assert not (found.patch.to_full(bench.truth.shape) & blocked).any()


def test_a_one_slice_image(any_bench):
    volume = any_bench.volume
    flat = Volume(volume.array[6:7], Geometry((1, 60, 70), volume.geometry.affine))
    any_bench.use(flat)
    rows, columns = np.nonzero(any_bench.truth[6])
    box = Box((0, rows.min(), columns.min()), (1, rows.max() + 1, columns.max() + 1))
    prompts = PromptSet(boxes=(BoxPrompt.from_box(box, flat.geometry),))
    for axis in ("auto", "1"):
        found = any_bench.ask(prompts, options={"axis": axis, "propagate": True})
        mask = found.patch.to_full((1, 60, 70))[0]
        assert dice2(mask, any_bench.truth[6]) > 0.9


# -- batches, cache, working ahead -------------------------------------------------------------


def test_slices_are_encoded_in_batches_where_that_pays(monkeypatch):
    bench = Bench(monkeypatch, "sam-med2d", batch=4, device="meta:pretend")
    monkeypatch.setattr(
        "napari_openmedlab.models.engines.weights.Loaded.device", property(lambda _: "cpu")
    )
    monkeypatch.setattr(
        "napari_openmedlab.models.engines.weights.Loaded.running", lambda _: _nothing()
    )
    bench.ask(bench.box((1, 10, 10), (11, 50, 60)))
    assert bench.network.batches == [4, 4, 2]
    bench.network.batches.clear()
    bench.engine.unload()
    found = bench.ask(true_box(bench, 0, 6), options={"propagate": True})
    assert bench.network.batches[0] == 1
    assert max(bench.network.batches) == 4
    assert dice(found.patch, bench.truth) > 0.85


class _nothing:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return False


def test_batches_change_no_answer(monkeypatch):
    one = Bench(monkeypatch, "sam-med2d")
    found = one.ask(extremes(one))
    many = Bench(monkeypatch, "sam-med2d", batch=8, device="pretend")
    monkeypatch.setattr(
        "napari_openmedlab.models.engines.weights.Loaded.device", property(lambda _: "cpu")
    )
    monkeypatch.setattr(
        "napari_openmedlab.models.engines.weights.Loaded.running", lambda _: _nothing()
    )
    prompts = click(many.volume, *MIDDLE, prompts=extremes(many))
    assert many.ask(extremes(many)).patch == found.patch
    assert many.ask(prompts).patch == one.ask(prompts).patch


def test_a_slice_is_encoded_once(bench):
    bench.ask(true_box(bench, 0, 6))
    count = bench.network.encoded
    bench.ask(click(bench.volume, 6, 30, 40), options={"axis": "0"})
    bench.ask(bench.box((5, 10, 10), (8, 50, 60)))
    assert bench.network.encoded == count + 2
    bench.ask(true_box(bench, 0, 6), options={"contrast": "window", "window_high": 90.0})
    assert bench.network.encoded == count + 3


def test_moving_the_contrast_limits_costs_nothing_while_they_are_not_used(bench):
    bench.ask(true_box(bench, 0, 6), options={"window_low": 0.0})
    count = bench.network.encoded
    bench.ask(true_box(bench, 0, 6), options={"window_low": 50.0})
    assert bench.network.encoded == count


def test_embeddings_on_disk_serve_the_next_run(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENMEDLAB_EMBEDDINGS", str(tmp_path / "kept"))
    first = Bench(monkeypatch, "sam-med2d")
    stopper = Monitor()
    steps = []

    def stop_after(done=0, total=0, text=""):
        steps.append(text)
        if len(steps) == 12:
            stopper.cancel()
        Monitor.step(stopper, done, total, text)

    stopper.step = stop_after
    prompts = first.box((1, 10, 10), (11, 50, 60))
    with pytest.raises(Cancelled):
        first.ask(prompts, stopper, options={"disk": 0.01})
    part = first.network.encoded
    assert 0 < part < 10
    second = Bench(monkeypatch, "sam-med2d")  # as after a restart
    second.ask(prompts, options={"disk": 0.01})
    assert second.network.encoded == 10 - part
    third = Bench(monkeypatch, "sam-med2d")
    third.ask(prompts)
    assert third.network.encoded == 10  # without the option nothing is read from there
    size = sum(f.stat().st_size for f in (tmp_path / "kept").iterdir())
    assert 0 < size <= 0.01 * 2**30


def test_nothing_is_written_unless_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENMEDLAB_EMBEDDINGS", str(tmp_path / "kept"))
    bench = Bench(monkeypatch, "sam-med2d")
    bench.ask(true_box(bench, 0, 6))
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_slice_shown_and_its_neighbours_are_encoded_ahead(any_bench, axis):
    assert isinstance(any_bench.engine, Anticipating)
    geometry = any_bench.volume.geometry
    normal = geometry.affine[:3, axis] / np.linalg.norm(geometry.affine[:3, axis])
    hint = Hint(tuple(geometry.to_world(MIDDLE)), tuple(-normal))
    any_bench.engine.anticipate(any_bench.prepared, hint, Monitor())
    options = any_bench.spec.check_options({})
    ahead = any_bench.engine.protocol(options).ahead
    assert any_bench.network.encoded == 2 * ahead + 1
    any_bench.ask(true_box(any_bench, axis, MIDDLE[axis]))
    assert any_bench.network.encoded == 2 * ahead + 1


def test_working_ahead_stops_at_once(bench):
    monitor = Monitor()
    monitor.cancel()
    hint = Hint(tuple(bench.volume.geometry.to_world(MIDDLE)))
    with pytest.raises(Cancelled):
        bench.engine.anticipate(bench.prepared, hint, monitor)
    assert not bench.network.encoded


def test_hints_near_the_end_of_the_scan(bench):
    hint = Hint(tuple(bench.volume.geometry.to_world((0, 5, 5))))
    bench.engine.anticipate(bench.prepared, hint, Monitor())
    assert bench.network.encoded == 3


# -- what is said, and bad input ---------------------------------------------------------------


def test_a_low_score_is_said(bench):
    found = bench.ask(bench.box((6, 0, 0), (7, 5, 5)))  # dark there
    assert found.score == pytest.approx(0.2)
    assert found.notes[0].startswith("Low confidence")
    assert not found.patch.count


def test_clicks_that_are_not_obeyed_are_said(bench, monkeypatch):
    monkeypatch.setattr(bench.network, "_one", lambda image, *_: image > 1e9)
    found = bench.ask(click(bench.volume, *MIDDLE))
    assert any("not obeyed" in note for note in found.notes)


@pytest.mark.parametrize("value", [0.0, 1e9, np.nan])
def test_slices_without_contrast_are_said(any_bench, value):
    flat = np.full((12, 60, 70), value, dtype=np.float32)
    any_bench.use(replace(any_bench.volume, array=flat))
    found = any_bench.ask(true_box(any_bench, 0, 6))
    assert any("no contrast" in note for note in found.notes)


def test_nan_voxels_are_served(bench):
    array = bench.volume.array.astype(np.float32)
    array[np.random.default_rng(0).random(array.shape) < 0.01] = np.nan
    bench.use(replace(bench.volume, array=array))
    found = bench.ask(true_box(bench, 0, 6), options={"propagate": True})
    assert dice(found.patch, bench.truth) > 0.8


def test_a_window_without_width_is_refused(bench):
    options = {"contrast": "window", "window_low": 5.0, "window_high": 5.0}
    with pytest.raises(EngineError, match="upper end"):
        bench.ask(true_box(bench, 0, 6), options=options)


def test_prompts_outside_are_refused(bench):
    with pytest.raises(PromptError, match="outside"):
        bench.ask(click(bench.volume, 6, 20, 700))


def test_a_cancel_acts_at_any_step(bench):
    class Stopper(Monitor):
        def __init__(self, stop_at):
            super().__init__()
            self.stop_at, self.steps = stop_at, 0

        def step(self, done=0, total=0, text=""):
            self.steps += 1
            assert 0 <= done <= total or total == 0
            if self.steps == self.stop_at:
                self.cancel()
            super().step(done, total, text)

    prompts = true_box(bench, 0, 6)
    options = {"propagate": True}
    counter = Stopper(-1)
    bench.ask(prompts, counter, options=options)
    for stop_at in range(1, counter.steps + 1):
        bench.engine.unload()
        stopper = Stopper(stop_at)
        with pytest.raises(Cancelled):
            bench.ask(prompts, stopper, options=options)
        assert stopper.steps == stop_at


def test_progress_counts_slices(bench):
    seen = []
    monitor = Monitor(lambda p: seen.append((p.done, p.total, p.text)), interval=0.0)
    bench.ask(bench.box((1, 10, 10), (11, 50, 60)), monitor)
    assert (10, 10, "slice 10") in seen
    assert [done for done, total, _ in seen if total == 10] == sorted(
        done for done, total, _ in seen if total == 10
    )


def test_lazy_volumes_are_read_by_the_slice(bench):
    import dask.array as da

    reads = []

    def loaded(block):
        reads.append(block.shape)
        return block

    lazy = da.from_array(bench.volume.array, chunks=(1, 60, 70)).map_blocks(loaded, dtype=np.int16)
    found = bench.ask(true_box(bench, 0, 6))
    bench.use(replace(bench.volume, array=lazy))
    reads.clear()
    assert bench.ask(true_box(bench, 0, 6)).patch == found.patch
    assert len([shape for shape in reads if shape == (1, 60, 70)]) <= 4


def test_the_engines_options_are_described(any_bench):
    for option in any_bench.spec.options:
        assert option.check(option.default) == option.default
        assert option.description.endswith(".")
    assert any_bench.spec.ahead == "slice"
    assert not any_bench.spec.missing()
