"""What every engine promises (``models/contract.py``), checked for each one in the catalogue."""

import contextlib
import gc
import json
import math
import os
import threading
import warnings
import weakref
from dataclasses import replace

import grey_network
import numpy as np
import pytest

from napari_openmedlab.errors import Cancelled, EngineError, OpenMedLabError, PromptError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import BoxPrompt, MaskPrompt, PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.catalogue import engines, get_spec, load_engine
from napari_openmedlab.models.contract import Monitor, Prediction, Request

SHAPE = (20, 36, 40)
# MedSAM blows every slice up to 1024 pixels with splines, a second each; its own tests do that.
PROMPTABLE = [e.id for e in engines("promptable") if not e.missing() and e.id != "medsam"]
# Pixels of the slice engines' networks. They take up to ten seconds a slice, so here a network of
# grey values stands in for them: what a contract promises does not depend on what was learned.
SLICE_NETWORKS = {"sam-med2d": 256, "sam": 1024}


def straight(spacing=(2.0, 1.0, 1.0), signs=(-1.0, 1.0, 1.0)):
    """Axis-aligned grid; signs are the directions of the array axes along z, y, x."""
    affine = np.eye(4)
    affine[:3, :3] = 0.0
    for axis in range(3):
        affine[2 - axis, axis] = spacing[axis] * signs[axis]
    affine[:3, 3] = (-40.0, 75.0, 310.0)
    return affine


def turned(degrees=25.0):
    tilt = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    return turn @ straight()


GRIDS = {
    "display order": straight(),
    "thick slices": straight((6.0, 0.8, 0.8)),
    "fine": straight((0.05, 0.05, 0.05)),
    "flipped": straight(signs=(1.0, -1.0, -1.0)),
    "oblique": turned(),
}


def truth():
    """An ellipsoid off the centre, about 4,000 voxels, that touches no face."""
    z, y, x = np.indices(SHAPE)
    return ((z - 9) / 6) ** 2 + ((y - 20) / 12) ** 2 + ((x - 17) / 13) ** 2 <= 1


def phantom(affine=None, dtype=np.int16, unit="mm"):
    """The ellipsoid, 120 against 0, in noise of 12."""
    noise = np.random.default_rng(3).normal(0.0, 12.0, SHAPE)
    array = (truth() * 120.0 + noise).round().astype(dtype)
    grid = Geometry(SHAPE, straight() if affine is None else affine, unit=unit)
    return Volume(array, grid, name="ellipsoid", modality="CT")


def extremes(volume, mask=None):
    """Six extreme points of the mask, as a careful user places them."""
    index = np.argwhere(truth() if mask is None else mask)
    points = []
    for axis in range(3):
        for end in (index[:, axis].min(), index[:, axis].max()):
            layer = index[index[:, axis] == end]
            middle = np.abs(layer - np.median(layer, axis=0)).sum(axis=1).argmin()
            points.append(tuple(volume.geometry.to_world(layer[middle])))
    return PromptSet(tuple(points))


def dice(prediction, mask):
    found = prediction.patch.to_full(mask.shape)
    return 2 * np.count_nonzero(found & mask) / (found.sum() + mask.sum())


@pytest.fixture(params=PROMPTABLE)
def spec(request, monkeypatch):
    found = get_spec(request.param)
    if found.id in SLICE_NETWORKS:
        grey_network.install(monkeypatch, SLICE_NETWORKS[found.id])
    elif found.networks:
        request.getfixturevalue("stand_ins").add(found.networks[0])
    return found


@pytest.fixture(scope="module")
def networks_at_work():
    """Engines with weights, kept between the tests: encoding all anew would take minutes."""
    made = {}
    yield made
    for engine in made.values():
        engine.unload()


@pytest.fixture
def agrees(spec):
    """Ask for a Dice: of engines without weights only, since stand-in weights find nothing."""

    def check(found, mask, floor):
        assert spec.networks or dice(found, mask) > floor

    return check


@pytest.fixture
def engine(spec, networks_at_work):
    if spec.networks:
        if spec.id not in networks_at_work:
            networks_at_work[spec.id] = load_engine(spec.id)
        yield networks_at_work[spec.id]
        return
    made = load_engine(spec.id)
    yield made
    made.unload()


@pytest.fixture
def answer(spec, engine):
    """Prepare and predict in one."""

    def run(volume, prompts, monitor=None, **fields):
        fields.setdefault("options", spec.check_options({}))
        monitor = monitor or Monitor()
        return engine.predict(engine.prepare(volume, monitor), Request(prompts, **fields), monitor)

    return run


def check_form(found, volume):
    assert isinstance(found, Prediction)
    assert found.mask.dtype == bool
    assert found.mask.shape == found.box.shape
    assert Box.whole(volume.geometry.shape).contains(found.box)
    assert math.isnan(found.score) or 0.0 <= found.score <= 1.0
    assert found.seconds >= 0.0
    assert all(isinstance(note, str) and note for note in found.notes)
    json.dumps(dict(found.provenance), allow_nan=False)


@pytest.mark.parametrize("grid", GRIDS)
def test_extreme_points_find_the_object_on_any_grid(answer, grid, agrees):
    volume = phantom(GRIDS[grid])
    found = answer(volume, extremes(volume))
    check_form(found, volume)
    agrees(found, truth(), 0.8)


def test_the_same_request_gives_the_same_answer(spec, answer):
    volume = phantom()
    prompts = extremes(volume)
    first, second = answer(volume, prompts), answer(volume, prompts)
    other = load_engine(spec.id)
    request = Request(prompts, options=spec.check_options({}))
    third = other.predict(other.prepare(volume, Monitor()), request, Monitor())
    other.unload()
    for again in (second, third):
        assert again.box == first.box
        np.testing.assert_array_equal(again.mask, first.mask)
        assert again.score == first.score or (math.isnan(again.score) and math.isnan(first.score))


@pytest.mark.parametrize("unit", ["mm", "um", "pixel"])
def test_any_unit_is_served(answer, unit, agrees):
    volume = phantom(unit=unit)
    agrees(answer(volume, extremes(volume)), truth(), 0.8)


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "uint16", "float32", "float64"])
def test_any_dtype_is_served(answer, dtype, agrees):
    volume = phantom()
    array = np.clip(volume.array.astype(np.int32) + 60, 0, 255).astype(dtype)
    volume = replace(volume, array=array)
    agrees(answer(volume, extremes(volume)), truth(), 0.8)


def test_a_lazy_array_is_served(answer):
    import dask.array as da

    volume = phantom()
    lazy = replace(volume, array=da.from_array(volume.array, chunks=12))
    prompts = extremes(volume)
    np.testing.assert_array_equal(answer(lazy, prompts).mask, answer(volume, prompts).mask)


def test_every_accepted_kind_of_prompt_starts_a_mask(spec, answer, agrees):
    volume = phantom()
    world = volume.geometry.to_world
    box = Box((2, 7, 3), (17, 34, 32))
    starts = {
        "extreme_points": extremes(volume),
        "box": PromptSet(boxes=(BoxPrompt.from_box(box, volume.geometry),)),
        "click": PromptSet().with_click(world((9, 20, 17))),
        "scribble": PromptSet().with_scribble(world([(9, 20, x) for x in range(10, 25)])),
        "mask": PromptSet(mask=MaskPrompt(MaskPatch.of(truth()), volume.geometry)),
    }
    assert set(starts) >= spec.prompts
    for kind in sorted(spec.prompts):
        found = answer(volume, starts[kind])
        check_form(found, volume)
        agrees(found, truth(), 0.5)


def test_corrections_are_obeyed_where_they_were_made(spec, answer):
    if not {"extreme_points", "click"} <= spec.prompts:
        pytest.skip("takes no clicks after extreme points")
    volume = phantom()
    prompts = extremes(volume)
    first = answer(volume, prompts)
    for index, positive in (((9, 20, 24), False), ((9, 20, 34), True)):
        more = prompts.with_click(volume.geometry.to_world(index), positive)
        found = answer(volume, more, previous=first.patch, previous_prompts=prompts)
        check_form(found, volume)
        assert spec.networks or found.patch.to_full(SHAPE)[index] == positive


def test_obstacles_are_never_entered(spec, answer):
    volume = phantom()
    blocked = np.zeros(SHAPE, dtype=bool)
    blocked[:, :, 20:] = True
    found = answer(volume, extremes(volume), obstacles=MaskPatch.of(blocked))
    assert not (found.patch.to_full(SHAPE) & blocked).any()
    assert spec.networks or found.patch.count


class Stopper(Monitor):
    """Cancels at the n-th step and counts those that come after."""

    def __init__(self, stop_at):
        super().__init__()
        self.stop_at, self.steps = stop_at, 0

    def step(self, done=0, total=0, text=""):
        self.steps += 1
        assert 0 <= done <= total or total == 0
        if self.steps == self.stop_at:
            self.cancel()
        super().step(done, total, text)


def test_a_cancel_acts_at_the_very_next_step(spec, engine, answer, agrees):
    volume = phantom()
    prompts = extremes(volume)
    counter = Stopper(-1)
    answer(volume, prompts, counter)
    assert counter.steps >= 1
    stops = range(1, counter.steps + 1)
    if spec.networks:
        engine.unload()  # what is kept from the last run would save it steps
        counter = Stopper(-1)
        answer(volume, prompts, counter)
        stops = np.unique(np.linspace(1, counter.steps, 4).astype(int)).tolist()
    for stop_at in stops:
        if spec.networks:
            engine.unload()
        stopper = Stopper(stop_at)
        with pytest.raises(Cancelled):
            answer(volume, prompts, stopper)
        assert stopper.steps == stop_at
    agrees(answer(volume, prompts), truth(), 0.8)  # and the engine is none the worse


def test_inputs_are_never_written_to(answer):
    volume = phantom()
    volume.array.setflags(write=False)
    before = volume.array.copy()
    prompts = extremes(volume)
    first = answer(volume, prompts)
    mask = first.mask.copy()
    more = prompts.with_click(volume.geometry.to_world((9, 20, 24)), False)
    answer(volume, more, previous=first.patch, previous_prompts=prompts)
    np.testing.assert_array_equal(volume.array, before)
    np.testing.assert_array_equal(first.mask, mask)


def test_no_global_state_is_touched(answer):
    volume = phantom()
    state = np.random.get_state()
    before = (
        dict(os.environ),
        np.geterr(),
        list(warnings.filters),
        [t.name for t in threading.enumerate()],
        os.getcwd(),
    )
    answer(volume, extremes(volume))
    after = (
        dict(os.environ),
        np.geterr(),
        list(warnings.filters),
        [t.name for t in threading.enumerate()],
        os.getcwd(),
    )
    assert after == before
    for one, other in zip(state, np.random.get_state(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_prompts_that_start_nothing_raise_a_prompt_error(answer):
    volume = phantom()
    world = volume.geometry.to_world
    for prompts in (
        PromptSet(),
        PromptSet().with_click(world((2, 2, 2)), positive=False),
        PromptSet().with_click(world((9, 20, 400))),
        PromptSet(boxes=(BoxPrompt(world((0, 0, 90)), world((5, 5, 99))),)),
    ):
        with pytest.raises(PromptError, match=r".{15,}"):
            answer(volume, prompts)


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_nan_voxels_do_not_break_it(answer, share, agrees):
    volume = phantom(dtype=np.float32)
    array = volume.array.copy()
    array[np.random.default_rng(0).random(SHAPE) < share] = np.nan
    try:
        found = answer(replace(volume, array=array), extremes(volume))
    except OpenMedLabError:
        assert share > 0.1
        return
    check_form(found, volume)
    agrees(found, truth(), 0.0 if share > 0.1 else 0.7)


@pytest.mark.parametrize("value", [0.0, 1e9, -1e-9])
def test_an_image_without_contrast_does_not_break_it(answer, value):
    volume = phantom(dtype=np.float32)
    flat = replace(volume, array=np.full(SHAPE, value, dtype=np.float32))
    with contextlib.suppress(OpenMedLabError):  # a sentence is an answer too; a crash is none
        check_form(answer(flat, extremes(volume)), volume)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_scan_of_one_slice_is_served(answer, axis, agrees):
    middle = (9, 20, 17)
    cut = tuple(slice(middle[a], middle[a] + 1) if a == axis else slice(None) for a in range(3))
    whole = phantom()
    array, mask = whole.array[cut], truth()[cut]
    volume = Volume(array, Geometry(array.shape, whole.geometry.affine))
    points = tuple(dict.fromkeys(extremes(volume, mask).extreme_points))
    found = answer(volume, PromptSet(points))
    check_form(found, volume)
    agrees(found, mask, 0.7)


def test_points_at_the_faces_of_the_volume_are_served(answer):
    volume = phantom()
    world = volume.geometry.to_world
    corner = tuple(world((0, 0, 0)))
    check_form(answer(volume, PromptSet().with_click(corner)), volume)
    last = np.array(SHAPE) - 1
    faces = [(0, 18, 20), (last[0], 18, 20), (10, 0, 20), (10, last[1], 20), (10, 18, 0)]
    points = tuple(tuple(world(f)) for f in [*faces, (10, 18, last[2])])
    check_form(answer(volume, PromptSet(points)), volume)


def test_unload_lets_go_of_everything(spec):
    engine = load_engine(spec.id)
    volume = phantom()
    array = weakref.ref(volume.array)
    request = Request(extremes(volume), options=spec.check_options({}))
    prepared = engine.prepare(volume, Monitor())
    engine.predict(prepared, request, Monitor())
    engine.unload()
    engine.unload()  # twice is fine
    del prepared, volume
    gc.collect()
    assert array() is None


def test_options_are_checked(spec):
    with pytest.raises(EngineError, match="no option nonsense"):
        spec.check_options({"nonsense": 1})
    for option in spec.options:
        kind = type(option.default)
        with pytest.raises(EngineError, match=option.name):
            spec.check_options({option.name: object() if kind is not str else 3})


def test_every_option_at_its_limits_is_served(spec, answer):
    volume = phantom()
    prompts = extremes(volume)
    if spec.networks and "click" in spec.prompts:  # one slice, not all: seconds, not minutes
        prompts = PromptSet().with_click(volume.geometry.to_world((9, 20, 17)))
    for option in spec.options:
        values = [v for v in (option.minimum, option.maximum) if v is not None]
        values += list(option.choices)
        values += [True, False] if isinstance(option.default, bool) else []
        for value in values:
            options = spec.check_options({option.name: type(option.default)(value)})
            check_form(answer(volume, prompts, options=options), volume)
