"""MedLAM as a localizer: finds what it can know, says what it can't, the same way every time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from knowing_medlam import Kept, Knowing, body, loaded, marks, stored, template

from napari_openmedlab.cohort.library_features import FolderFeatures
from napari_openmedlab.errors import Cancelled, CheckpointError, EngineError, ReadError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.catalogue import load_engine
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.device import Placement
from napari_openmedlab.models.fallback import fallbacks, run_with_fallback
from napari_openmedlab.models.localisation import Landmarks

LIVER = ((40, 30, 50), (56, 44, 70))  # body voxels
KIDNEY = ((24, 20, 20), (36, 32, 30))


@pytest.fixture
def engine():
    made = load_engine("medlam")
    yield made
    made.unload()


@pytest.fixture
def network(engine, monkeypatch):
    """The network that knows; the engine runs it as it would run the published one."""
    made = Knowing().eval()
    put(engine, monkeypatch, made)
    return made


def put(engine, monkeypatch, network, sha256="0" * 64):
    given = loaded(network, sha256)
    monkeypatch.setattr(engine._weights, "run", lambda options, monitor, attempt: attempt(given))


def liver_and_kidney(features=None, name="one"):
    scan = body(name="template")
    return template(
        scan, marks("liver", *LIVER), marks("kidney", *KIDNEY), features=features, name=name
    )


def locate(engine, volume, *templates, structures=("liver",), monitor=None, **options):
    options = {"mode": "quick", **options}
    return engine.locate(volume, templates, options, monitor or Monitor(), structures)


def mm_off(found, low, high, origin=(0.0, 0.0, 0.0)):
    """Largest distance of a wall from where it should be."""
    wanted = np.array(marks("x", low, high, origin).points)
    got = np.array(found.points)
    return max(abs(got[wall, axis] - wanted[wall, axis]) for wall, axis in WALL_AXES)


WALL_AXES = ((0, 2), (1, 1), (2, 0), (3, 2), (4, 1), (5, 0))


# -- finding -----------------------------------------------------------------------------------


def test_structures_are_found_in_another_part_of_the_body(engine, network):
    scan = body((10, 4, 8), (100, 78, 94), origin=(31.0, -12.0, 400.0))
    answer = locate(engine, scan, liver_and_kidney(), structures=())
    assert [each.name for each in answer.found] == ["liver", "kidney"]
    for found, place in zip(answer.found, (LIVER, KIDNEY), strict=True):
        assert found.found, found.notes
        assert found.confidence > 0.8, found.checks
        assert found.templates == 1
        assert mm_off(found, *place, origin=(31.0, -12.0, 400.0)) <= 3.1
        assert scan.geometry.contains_index(scan.geometry.to_index(found.points)).all()
    liver = answer.found[0].box
    assert np.abs(np.array(liver.start) - (30, 26, 42)).max() <= 1
    assert np.abs(np.array(liver.stop) - (47, 41, 63)).max() <= 1


@pytest.mark.parametrize("codes", ["IPL", "RPI", "ASL", "LIA"])
def test_the_answer_does_not_depend_on_how_the_scan_is_stored(engine, network, codes):
    scan = body((8, 2, 4), (90, 74, 84))
    straight = locate(engine, scan, liver_and_kidney()).found[0]
    turned = stored(scan, codes)
    found = locate(engine, turned, liver_and_kidney()).found[0]
    np.testing.assert_allclose(found.points, straight.points, atol=1e-9)
    assert found.confidence == pytest.approx(straight.confidence, abs=1e-6)
    inside = turned.geometry.to_index(np.array(straight.points))
    walls = [inside[wall] for wall in range(6)]
    for axis in range(3):
        near = [w[axis] for w in walls]
        assert found.box.start[axis] >= min(near) - 0.5
        assert found.box.stop[axis] <= max(near) + 1.5


def test_the_same_scan_gets_the_same_answer_whatever_ran_before(engine, network):
    scan = body((10, 4, 8), (84, 70, 80))
    kept = Kept()
    first = locate(engine, scan, liver_and_kidney(kept))
    locate(engine, body((0, 0, 0), (70, 70, 70)), liver_and_kidney(kept))
    np.random.default_rng(5)
    again = locate(engine, scan, liver_and_kidney(kept))
    fresh = load_engine("medlam")
    fresh._weights.run = engine._weights.run
    anew = locate(fresh, scan, liver_and_kidney(kept))
    for other in (again, anew):
        assert other.found == first.found


def test_all_structures_together_or_each_alone_are_found_at_the_same_place(engine, network):
    scan = body((10, 4, 8), (84, 70, 80))
    together = locate(engine, scan, liver_and_kidney(), structures=("kidney", "liver"))
    assert [each.name for each in together.found] == ["kidney", "liver"]
    alone = locate(engine, scan, liver_and_kidney(), structures=("liver",))
    assert alone.found[0].points == together.found[1].points


def test_slabs_of_a_structure_are_structures_like_others(engine, network):
    """As a library cuts them from masks; cohorts put them together."""
    one = template(
        body(),
        marks("liver", *LIVER),
        marks("liver [1/2]", LIVER[0], (48, 44, 70)),
        marks("liver [2/2]", (48, 30, 50), LIVER[1]),
    )
    scan = body((8, 2, 4), (90, 74, 84))
    whole, lower, upper = locate(engine, scan, one, structures=()).found
    assert np.abs(np.array(lower.box.start) - (32, 28, 46)).max() <= 1
    assert np.abs(np.array(upper.box.stop) - (49, 43, 67)).max() <= 1
    assert lower.box.stop[0] - upper.box.start[0] in (0, 1, 2)
    assert whole.parts == ()


# -- outside the field of view -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high"),
    [((66, 0, 0), (120, 80, 90)), ((0, 0, 0), (96, 80, 34)), ((0, 54, 0), (96, 110, 90))],
)
def test_a_structure_outside_the_scan_is_not_found(engine, network, low, high):
    found = locate(engine, body(low, high), liver_and_kidney()).found[0]
    assert not found.found
    assert found.confidence == 0.0
    assert found.box.is_empty
    assert "outside the scan" in found.notes[0]
    assert found.checks["inside"] < 0.3


def test_the_more_of_a_structure_is_cut_off_the_less_certain_it_is(engine, network):
    confidences = []
    for cut in (0, 38, 46, 51, 56):
        found = locate(engine, body((cut, 0, 0), (120, 80, 90)), liver_and_kidney()).found[0]
        confidences.append(found.confidence)
    assert confidences[0] > 0.8
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[3] < 0.3
    assert confidences[4] == 0.0


def test_templates_that_disagree_cost_confidence(engine, network):
    scan = body((8, 2, 4), (90, 74, 84))
    one = liver_and_kidney()
    other = template(body(), marks("liver", (4, 4, 4), (20, 18, 24)), name="two")
    agreed = locate(engine, scan, one, replace(one, id="three")).found[0]
    found = locate(engine, scan, one, other).found[0]
    assert found.templates == agreed.templates == 2
    assert agreed.checks["templates_mm"] < 1.0
    assert found.checks["templates_mm"] > 60.0
    assert found.confidence < 0.6 * agreed.confidence


# -- what is kept of templates -----------------------------------------------------------------


def test_features_are_kept_and_serve_without_the_image(engine, network):
    kept, scan = Kept(), body((10, 4, 8), (84, 70, 80))
    one = liver_and_kidney(kept)
    first = locate(engine, scan, one, structures=())
    assert first.provenance["points_learnt"] == 12
    assert len(kept) == 2
    engine.unload()
    again = locate(engine, scan, replace(one, load=None), structures=())
    assert again.provenance["points_learnt"] == 0
    assert again.found == first.found


def test_a_librarys_folder_keeps_features_and_drops_those_of_other_weights(
    engine, network, monkeypatch, tmp_path
):
    folder, scan = FolderFeatures(tmp_path / "features"), body((10, 4, 8), (84, 70, 80))
    one = liver_and_kidney(folder)
    first = locate(engine, scan, one, structures=())
    before = set(folder.keys())
    assert len(before) == 2
    engine.unload()
    assert locate(engine, scan, replace(one, load=None), structures=()).found == first.found
    put(engine, monkeypatch, network, sha256="1" * 64)
    locate(engine, scan, one, structures=())
    assert len(folder.keys()) == 2
    assert not before & set(folder.keys())


def test_features_of_all_scales_serve_the_quick_mode(engine, network):
    kept, scan = Kept(), body((10, 4, 8), (84, 70, 80))
    one = liver_and_kidney(kept)
    locate(engine, scan, one, mode="full")
    assert locate(engine, scan, one).provenance["points_learnt"] == 0
    assert any("Quick mode" in note for note in locate(engine, scan, one).notes)


def test_other_weights_or_points_are_learnt_anew(engine, network, monkeypatch):
    kept, scan = Kept(), body((10, 4, 8), (84, 70, 80))
    one = liver_and_kidney(kept)
    locate(engine, scan, one)
    put(engine, monkeypatch, network, sha256="1" * 64)
    assert locate(engine, scan, one).provenance["points_learnt"] == 6
    put(engine, monkeypatch, network, sha256="2" * 64)
    with pytest.raises(EngineError, match=r"no template can be used.*belongs to other weights"):
        locate(engine, scan, replace(one, load=None))
    moved = replace(one, structures=(marks("liver", (39, 30, 50), LIVER[1]),))
    assert locate(engine, scan, moved).provenance["points_learnt"] == 6


def test_damaged_features_are_computed_again(engine, network):
    kept, scan = Kept(), body((10, 4, 8), (84, 70, 80))
    one = liver_and_kidney(kept)
    first = locate(engine, scan, one)
    engine.unload()
    for arrays in kept.values():
        arrays["kernels1"] = arrays["kernels1"] * np.nan
    kept.put = lambda key, arrays: None
    assert locate(engine, scan, one).found == first.found


def test_a_full_disk_loses_nothing_but_time(engine, network):
    def full(key, arrays):
        raise OSError(28, "No space left on device")

    kept = Kept()
    kept.put = full
    found = locate(engine, body((10, 4, 8), (84, 70, 80)), liver_and_kidney(kept)).found[0]
    assert found.found
    assert any("No space left" in note for note in found.notes)


def test_templates_need_not_have_the_same_structures(engine, network):
    scan = body((8, 2, 4), (90, 74, 84))
    two = template(body((2, 0, 0), (98, 80, 90)), marks("kidney", *KIDNEY), name="two")
    answer = locate(engine, scan, liver_and_kidney(), two, structures=())
    assert [each.templates for each in answer.found] == [1, 2]
    assert mm_off(answer.found[1], *KIDNEY) <= 3.1


def test_a_template_that_cannot_be_read_is_left_out(engine, network):
    def gone():
        raise ReadError("old.nii.gz is gone")

    bad = replace(liver_and_kidney(name="two"), load=gone)
    magnetic = replace(bad, id="three", load=lambda: replace(body(name="knee"), modality="MR"))
    scan = body((8, 2, 4), (90, 74, 84))
    found = locate(engine, scan, liver_and_kidney(), bad, magnetic).found[0]
    assert found.templates == 1
    assert any("'three' was left out: 'knee' is MR" in note for note in found.notes)
    assert "Template 'two' was left out: old.nii.gz is gone." in found.notes
    with pytest.raises(EngineError, match=r"old\.nii\.gz is gone"):
        locate(engine, body(), bad)


def test_one_structure_without_a_usable_template_does_not_stop_the_others(engine, network):
    low, high = KIDNEY
    crossed = template(body(), marks("kidney", high, low), name="two")
    far = template(body(), marks("spleen", (500, 0, 0), (510, 9, 9)), name="three")
    liver = template(body(), marks("liver", *LIVER))
    scan = body((8, 2, 4), (90, 74, 84))
    found = locate(engine, scan, liver, crossed, far, structures=()).found
    assert [each.found for each in found] == [True, False, False]
    assert "inferior point lies on the superior side" in " ".join(found[1].notes)
    assert "a point lies outside its scan" in " ".join(found[2].notes)
    assert found[1].confidence == 0.0


# -- bad input ---------------------------------------------------------------------------------


def test_names_are_checked(engine, network):
    with pytest.raises(EngineError, match="no template has spleen; there are: liver, kidney"):
        locate(engine, body(), liver_and_kidney(), structures=("spleen",))
    with pytest.raises(EngineError, match="there is no template"):
        locate(engine, body())
    with pytest.raises(EngineError, match="no structure is marked on any template"):
        locate(engine, body(), template(body()))
    twice = template(body(), marks("liver", *LIVER), marks("liver", *KIDNEY))
    with pytest.raises(EngineError, match="two structures named 'liver'"):
        locate(engine, body(), twice)
    with pytest.raises(EngineError, match="no option speed"):
        locate(engine, body(), liver_and_kidney(), speed="fast")


def changed(array=None, modality="CT", unit="mm", shape=(40, 40, 40), spacing=3.0):
    array = body(high=shape).array if array is None else array
    affine = np.diag([spacing, spacing, spacing, 1.0])[[2, 1, 0, 3]]
    return Volume(array, Geometry(array.shape, affine, unit=unit), None, "strange", modality)


@pytest.mark.parametrize(
    ("volume", "sentence"),
    [
        (changed(modality="MR"), "'strange' is MR; MedLAM was made for CT only"),
        (changed(unit="pixel"), "has no voxel size in mm"),
        (changed(np.full((40, 40, 40), np.nan)), "'strange' is empty"),
        (changed(np.full((40, 40, 40), -1000, np.int16)), "'strange' is empty"),
        (changed(np.full((40, 40, 40), 7, np.uint8)), "'strange' is empty"),
        (changed(np.arange(64000.0).reshape(40, 40, 40), ""), "does not look like a CT"),
        (changed(shape=(5, 40, 40)), "spans only 15 x 120 x 120 mm"),
        (changed(spacing=100.0), "more than a patient does: its voxel size is wrong"),
    ],
)
def test_a_scan_the_method_was_not_made_for_is_refused(engine, network, volume, sentence):
    with pytest.raises(EngineError, match=sentence):
        locate(engine, volume, liver_and_kidney())


def test_a_small_scan_is_searched_with_a_warning(engine, network):
    scan = body((30, 20, 40), (66, 54, 80))
    answer = locate(engine, scan, liver_and_kidney())
    assert any("less than the 192 mm" in note for note in answer.notes)
    assert mm_off(answer.found[0], *LIVER) <= 6.1


def test_where_memory_runs_out_the_next_try_goes_on_with_what_was_learnt(
    engine, network, monkeypatch
):
    scan = body((8, 2, 4), (90, 74, 84))
    wanted = locate(engine, scan, liver_and_kidney(), structures=()).found
    engine.unload()
    given, tries = loaded(network), []

    def run(options, monitor, attempt):
        def on(placement):
            tries.append(placement.batch)
            return attempt(replace(given, placement=placement))

        return run_with_fallback(on, fallbacks(Placement(batch=2))).value

    whole, count = network.maps, iter(range(100))

    def short(patches, scales):
        if next(count) == 8:
            raise MemoryError
        return whole(patches, scales)

    monkeypatch.setattr(engine._weights, "run", run)
    network.maps = short
    answer = locate(engine, scan, liver_and_kidney(), structures=())
    assert tries == [2, 1]
    assert answer.found == wanted
    assert answer.provenance["points_learnt"] == 6  # the liver had been learnt


def test_some_nan_is_air(engine, network):
    scan = body((8, 2, 4), (90, 74, 84))
    holed = np.array(scan.array)
    holed[:3] = np.nan
    answer = locate(engine, Volume(holed, scan.geometry, None, "holed", "CT"), liver_and_kidney())
    assert answer.found[0].found


def test_a_cancel_acts_at_the_next_patch(engine, network):
    for after in (3, 8, 20):
        reports = []
        monitor = Monitor(lambda progress, seen=reports: seen.append(progress), interval=0.0)
        step, count = monitor.step, iter(range(10**6))

        def counted(*values, step=step, count=count, after=after, monitor=monitor):
            if next(count) == after:
                monitor.cancel()
            step(*values)

        monitor.step = counted
        engine.unload()
        with pytest.raises(Cancelled):
            locate(engine, body(), liver_and_kidney(), monitor=monitor)
        assert len(reports) <= after


def test_progress_counts_every_patch(engine, network):
    reports = []
    monitor = Monitor(reports.append, interval=0.0)
    locate(engine, body(), liver_and_kidney(), monitor=monitor)
    learnt = [r for r in reports if r.text.startswith("learning liver")]
    assert [r.done for r in learnt] == list(range(6))
    last = reports[-1]
    assert 10 < last.total <= 16  # points on one voxel share a patch
    assert last.done == last.total - 1


def test_embeddings_that_are_no_numbers_are_refused(engine, network):
    """As half precision gives them where it overflows."""
    scan, kept = body((8, 2, 4), (90, 74, 84)), Kept()
    locate(engine, scan, liver_and_kidney(kept))
    network.located = lambda patches: torch.full((len(patches), 3), torch.nan)
    with pytest.raises(EngineError, match="precision to float32"):
        locate(engine, scan, liver_and_kidney(kept))
    with pytest.raises(EngineError, match="precision to float32"):
        locate(engine, scan, liver_and_kidney(name="new"))


# -- the real network --------------------------------------------------------------------------


def test_without_weights_it_says_where_they_come_from(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path))
    with pytest.raises(CheckpointError, match="has no weights here yet"):
        locate(engine, body(), liver_and_kidney())


@pytest.mark.slow
def test_stand_in_weights_run_through_the_store(engine, stand_ins, monkeypatch):
    """Published width, by the model store, as a user's weights would be."""
    record = stand_ins.add("medlam")
    small = np.zeros((6, 96, 2, 2, 2), np.float32)
    known = {"positions": np.zeros((6, 3), np.float32), "kernels0": small + 0.1}
    known["kernels1"] = np.repeat(known["kernels0"], 2, axis=2).repeat(2, 3).repeat(2, 4)
    kept = Kept()
    monkeypatch.setattr(Kept, "get", lambda self, key: known)  # spares the template's patches
    one = template(body(), marks("liver", *LIVER), features=kept)
    scan = body((8, 2, 4), (60, 54, 64))
    answer = locate(engine, scan, one)
    found = answer.found[0]
    assert answer.provenance["weights_sha256"] == record.sha256
    assert answer.provenance["templates"] == ["one"]
    assert kept == {}
    assert set(found.checks) >= {"starts_mm", "stages_mm", "similarity", "inside"}
    assert Box.whole(scan.geometry.shape).contains(found.box)
    assert len(found.points) == 6


def test_fewer_than_six_points_are_refused():
    from napari_openmedlab.errors import PromptError

    with pytest.raises(PromptError, match="'liver' needs six extreme points"):
        Landmarks("liver", ((0.0, 0.0, 0.0),) * 5)
