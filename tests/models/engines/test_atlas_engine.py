"""The localizer without training, on torsos of ellipsoids and, where at hand, real anatomy."""

import json
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from torso_phantoms import own_anatomy, phantom, real_anatomy

from napari_openmedlab.errors import Cancelled, EngineError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.extreme_points import walls_of_mask
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.catalogue import get_spec, load_engine
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.localisation import Landmarks, Template

COARSE = (8.0, 5.0, 5.0)
TRUNK = (0.45, 1.0)  # without the bladder: half the work
QUICK = {"mode": "quick", "contrast": "auto"}


class Keeping(dict):
    """Features in memory."""

    def put(self, key, arrays):
        self[key] = arrays


def template(anatomy, seed, span=TRUNK, **more):
    made = phantom(anatomy, seed, spacing=COARSE, span=span)
    marks = tuple(
        Landmarks(n, tuple(map(tuple, walls_of_mask(made.labels == v, made.volume.geometry))))
        for v, n in made.names.items()
        if (made.labels == v).sum() > 3
    )
    return Template(
        f"t{seed}", f"c{seed}-{len(made.names)}-{span}", marks, load=lambda: made.volume, **more
    )


@lru_cache(maxsize=1)
def templates():
    return tuple(template(own_anatomy(), seed) for seed in (1, 2))


@lru_cache(maxsize=1)
def query():
    return phantom(own_anatomy(), 50, spacing=COARSE, span=TRUNK, codes="RAS")


@pytest.fixture(scope="module")
def engine():
    made = load_engine("atlas")
    yield made
    made.unload()


def locate(engine, volume, marked, structures=(), monitor=None, **options):
    chosen = get_spec("atlas").check_options(QUICK | options)
    return engine.locate(volume, marked, chosen, monitor or Monitor(), structures)


def overlap(found, labels, value):
    truth = MaskPatch.of(labels == value).box
    shared = found.box.intersection(truth).size
    return shared / (found.box.size + truth.size - shared)


def test_organs_are_found_in_a_scan_stored_another_way(engine):
    scan = query()
    found = locate(engine, scan.volume, templates())
    organs = {n: v for v, n in scan.names.items() if n != "bladder"}
    assert [f.name for f in found.found] == list(organs)
    assert all(f.found and f.templates == 2 for f in found.found)
    scores = {f.name: overlap(f, scan.labels, organs[f.name]) for f in found.found}
    assert np.mean(list(scores.values())) > 0.6, scores
    assert scores["liver"] > 0.7
    for each in found.found:
        assert Box.whole(scan.volume.geometry.shape).contains(each.box)
        assert 0 < each.confidence <= 1
        assert len(each.points) == 6
        assert {"likeness", "inside", "spread_mm"} <= set(each.checks)
    json.dumps(dict(found.provenance), allow_nan=False)


def test_the_same_scan_gives_the_same_answer_and_a_crop_or_turn_of_axes_nearly(engine):
    scan = query()
    first = locate(engine, scan.volume, templates()[:1], ["liver"])
    other = load_engine("atlas")
    again = locate(other, scan.volume, templates()[:1], ["liver"])
    assert again.found == first.found
    turned = Volume(
        np.asarray(scan.volume.array).transpose(2, 0, 1)[::-1],
        reordered(scan.volume.geometry),
        modality="CT",
    )
    same = locate(engine, turned, templates()[:1], ["liver"])
    gap = np.abs(np.array(same.found[0].points) - np.array(first.found[0].points))
    assert gap.max() < 1.0


def reordered(grid):
    """Of ``array.transpose(2, 0, 1)[::-1]``."""
    affine = grid.affine.copy()
    affine[:, :3] = grid.affine[:, [2, 0, 1]]
    affine[:3, 3] += affine[:3, 0] * (grid.shape[2] - 1)
    affine[:3, 0] *= -1
    return Geometry((grid.shape[2], grid.shape[0], grid.shape[1]), affine)


def test_what_lies_outside_a_cropped_scan_is_not_found(engine):
    scan, whole = query(), template(own_anatomy(), 3, span=(0.0, 1.0))
    found = {f.name: f for f in locate(engine, scan.volume, [whole]).found}
    gone = found["bladder"]
    assert not (scan.labels == 14).any()
    assert not gone.found
    assert gone.confidence == 0
    assert gone.box.is_empty
    assert "outside this scan" in gone.notes[0]
    assert found["liver"].found
    assert overlap(found["liver"], scan.labels, 6) > 0.5


def test_noise_gives_no_confident_box(engine):
    rng = np.random.default_rng(0)
    grid = query().volume.geometry
    noise = Volume(rng.integers(-1000, 300, grid.shape).astype(np.int16), grid, modality="CT")
    for each in locate(engine, noise, templates()[:1]).found:
        assert each.confidence < 0.1


def test_a_cancel_acts_at_the_next_step(engine):
    class Stopper(Monitor):
        steps = 0

        def step(self, done=0, total=0, text=""):
            self.steps += 1
            assert 0 <= done <= total
            if self.steps == 4:
                self.cancel()
            super().step(done, total, text)

    stopper = Stopper()
    with pytest.raises(Cancelled):
        locate(engine, query().volume, templates(), monitor=stopper)
    assert stopper.steps == 4


def test_working_images_are_kept_in_the_library_and_serve_without_the_scan():
    keeping = Keeping()
    marked = template(own_anatomy(), 1, features=keeping)
    scan = query().volume
    first = locate(load_engine("atlas"), scan, [marked], ["liver"])
    assert [key.partition("@")[0] for key in keeping] == ["atlas:image"]
    without = replace(marked, load=None)
    assert locate(load_engine("atlas"), scan, [without], ["liver"]).found == first.found


def test_templates_that_cannot_serve_are_named_and_the_others_go_on(engine):
    lost = replace(templates()[0], id="lost", content="x", load=None, features=None)
    found = locate(engine, query().volume, [lost, templates()[1]], ["liver", "heart"])
    assert any("template lost was left out" in note for note in found.notes)
    liver, heart = found.found
    assert liver.found
    assert liver.templates == 1
    assert not heart.found
    assert heart.notes == ("no template has it",)
    alone = locate(engine, query().volume, [lost], ["liver"]).found[0]
    assert not alone.found


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"unit": "um"}, "measured in um"), ({"scale": 60.0}, "voxel size must be wrong"),
     ({"flat": True}, "shows nothing")],
)  # fmt: skip
def test_scans_it_cannot_work_on_are_refused(engine, change, sentence):
    volume = query().volume
    grid = volume.geometry
    if "unit" in change:
        volume = replace(volume, geometry=replace(grid, unit="um"))
    elif "scale" in change:
        affine = grid.affine @ np.diag([60, 60, 60, 1.0])
        volume = replace(volume, geometry=replace(grid, affine=affine))
    else:
        volume = replace(volume, array=np.zeros(grid.shape, np.int16))
    with pytest.raises(EngineError, match=sentence):
        locate(engine, volume, templates()[:1])


def test_tiny_scans_and_nan_are_served(engine):
    volume = query().volume
    array = np.asarray(volume.array, dtype=np.float32).copy()
    array[np.random.default_rng(0).random(array.shape) < 0.01] = np.nan
    found = locate(engine, replace(volume, array=array), templates()[:1], ["liver"])
    assert found.found[0].found
    box = Box((10, 10, 10), (14, 15, 16))
    small = Volume(volume.crop(box), volume.geometry.crop(box), modality="CT")
    tiny = locate(engine, small, templates()[:1], ["liver"])
    assert any("mm along one axis" in note for note in tiny.notes)
    assert tiny.found[0].confidence < 0.5


@pytest.mark.data
def test_real_anatomy_is_found_within_a_centimetre(engine, real_data):
    anatomy = real_anatomy(real_data / "organ_labels" / "amos_0013_label.nii.gz")
    scan = phantom(anatomy, 50, spacing=COARSE, span=TRUNK)
    found = locate(engine, scan.volume, [template(anatomy, 1)], ["liver", "left kidney", "spleen"])
    for each in found.found:
        value = next(v for v, n in scan.names.items() if n == each.name)
        truth = MaskPatch.of(scan.labels == value).box
        gaps = np.abs(np.array([each.box.start, each.box.stop]) - [truth.start, truth.stop])
        assert (gaps * COARSE).mean() < 10, each
