"""SAM-Med3D end to end, with stand-in weights: upstream's protocol, and what goes beyond it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sam_med3d_inputs import volume as golden_volume

from napari_openmedlab.errors import Cancelled, CheckpointError, EngineError, PromptError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import BoxPrompt, MaskPrompt, PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.catalogue import load_engine
from napari_openmedlab.models.contract import Hint, Monitor, Request

torch = pytest.importorskip("torch", reason="SAM-Med3D needs the extra 'models'")

from napari_openmedlab.models.engines.sam_med3d.chain import Chain, CropState, advance  # noqa: E402
from napari_openmedlab.models.engines.sam_med3d.crops import Crop, WorkingGrid  # noqa: E402
from napari_openmedlab.models.engines.sam_med3d.steps import Step  # noqa: E402
from napari_openmedlab.models.networks.sam_med3d import upsample  # noqa: E402


@pytest.fixture
def record(stand_ins):
    return stand_ins.add("sam-med3d")


@pytest.fixture
def engine(record):
    made = load_engine("sam-med3d")
    yield made
    made.unload()


@pytest.fixture(scope="module")
def scan():
    """A CT-like patient scan: smooth blobs, anisotropic, with air around."""
    rng = np.random.RandomState(5)
    coarse = rng.standard_normal((6, 11, 11)).repeat(10, 0).repeat(16, 1).repeat(16, 2)
    array = (coarse * 120 + rng.standard_normal(coarse.shape) * 20).astype(np.int16)
    array[:, :12] = -1000
    affine = [[0, 0, 1.2, -100], [0, 1.1, 0, -90], [-3.0, 0, 0, 80], [0, 0, 0, 1]]
    return Volume(array, Geometry(array.shape, np.array(affine)), name="scan", modality="CT")


@pytest.fixture
def ask(engine, scan):
    """Predict on the scan, prepared once."""
    prepared = engine.prepare(scan, Monitor())

    def run(prompts, monitor=None, **fields):
        return engine.predict(prepared, Request(prompts, **fields), monitor or Monitor())

    return run


@pytest.fixture
def encoded(engine, record, ask, monkeypatch):
    """The number of encoder runs so far, as a list of one mark each."""
    runs = []
    network = type(engine._weights.run({**OPTIONS}, Monitor(), lambda loaded: loaded.network))
    original = network.encode

    def counting(self, image):
        runs.append(1)
        return original(self, image)

    monkeypatch.setattr(network, "encode", counting)
    return runs


OPTIONS = {"checkpoint": "", "device": "cpu", "precision": "auto"}


def at(scan, *index):
    return tuple(scan.geometry.to_world(index))


# -- upstream's numbers --------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["newest", "history"])
def test_two_clicks_give_upstreams_masks(stand_ins, record, golden, protocol):
    stored = np.load(golden / "sam_med3d" / "two_clicks.npz")
    network = stand_ins.store.load(record.name)
    cube = golden_volume(int(stored["volume_seed"]))
    with torch.inference_mode():
        embedding = network.encode(cube)

    def decode(_crop, points, labels, mask):
        given = (torch.from_numpy(each)[None] for each in (points, labels))
        with torch.inference_mode():
            logits, _ = network.decode(embedding, *given, torch.from_numpy(mask)[None, None])
        return logits[0, 0].numpy()

    # A scan that is the cube itself: working voxel and crop voxel are one.
    grid = WorkingGrid(Geometry.from_spacing((128, 128, 128), (1.5,) * 3))
    chain = Chain()
    for number in (1, 2):
        i, j, k, label = stored[f"click{number}"].tolist()
        step = Step(((1.5 * i, 1.5 * j, 1.5 * k),), (bool(label),))
        if number == 1:  # upstream's crop is given; ours would be centred on the click
            zeros = np.zeros((32, 32, 32), np.float32)
            chain = Chain((CropState(Crop(grid, (0, 0, 0)), zeros),))
        chain = advance(chain, step, grid, decode, history=protocol == "history")
        tag = "click1" if number == 1 else f"click2_{protocol}"
        (state,) = chain.states
        cube = upsample(torch.from_numpy(state.logits)[None, None])[0, 0].numpy()
        profiles = [(cube > 0).sum(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]
        near = int(stored[f"{tag}_near_zero_voxels"])
        assert np.abs(np.array(profiles) - stored[f"{tag}_mask_profiles"]).max() <= near
        if f"{tag}_lowres_sub" in stored:
            found = state.logits[::2, ::2, ::2]
            np.testing.assert_allclose(found, stored[f"{tag}_lowres_sub"], atol=2e-4)
        else:
            np.testing.assert_allclose(state.logits, stored[f"{tag}_lowres"], atol=2e-4)
        different = abs(np.count_nonzero(cube > 0) - int(stored[f"{tag}_mask_voxels"]))
        assert different <= near


def test_an_answer_is_the_composition_of_its_published_parts(stand_ins, record, ask, scan):
    from napari_openmedlab.models.engines.sam_med3d.intensity import CT_LIMITS, normalise

    point = at(scan, 30, 90, 80)
    found = ask(PromptSet().with_click(point), options={"smooth": False})
    grid = WorkingGrid(scan.geometry)
    crop = grid.crop_around(grid.nearest(point))
    pixels, note = normalise(crop.sample(scan, CT_LIMITS))
    assert note == ""
    network = stand_ins.store.load(record.name)
    with torch.inference_mode():
        embedding = network.encode(torch.from_numpy(pixels)[None, None])
        points = torch.full((1, 1, 3), 64.0)
        logits, _ = network.decode(embedding, points, torch.ones(1, 1), network.empty_mask())
        cube = upsample(logits)[0, 0].numpy()
    wanted = crop.paste(cube, smooth=False)
    assert found.patch == wanted
    assert found.patch.count > 1000
    assert found.provenance["checkpoint_sha256"] == record.source_sha256


# -- speed by keeping ----------------------------------------------------------------------


def test_a_correction_costs_no_encoding(ask, scan, encoded):
    prompts = PromptSet().with_click(at(scan, 30, 90, 80))
    first = ask(prompts)
    assert len(encoded) == 1
    more = prompts.with_click(at(scan, 33, 99, 70), False)
    second = ask(more, previous=first.patch, previous_prompts=prompts)
    assert len(encoded) == 1
    assert second.patch != first.patch


def test_a_hint_leaves_the_click_nothing_to_encode(engine, scan, encoded):
    prepared = engine.prepare(scan, Monitor())
    point = at(scan, 30, 90, 80)
    engine.anticipate(prepared, Hint(point), Monitor())
    assert len(encoded) == 1
    engine.predict(prepared, Request(PromptSet().with_click(point)), Monitor())
    assert len(encoded) == 1


def test_warm_and_cold_engines_give_the_same_correction(ask, scan, record):
    prompts = PromptSet().with_click(at(scan, 30, 90, 80))
    first = ask(prompts)
    more = prompts.with_click(at(scan, 33, 99, 70), False)
    request = Request(more, previous=first.patch, previous_prompts=prompts)
    warm = ask(more, previous=first.patch, previous_prompts=prompts)
    other = load_engine("sam-med3d")
    cold = other.predict(other.prepare(scan, Monitor()), request, Monitor())
    other.unload()
    assert cold.patch == warm.patch


def test_a_cancel_during_encoding_acts_between_blocks(engine, scan):
    class Stop(Monitor):
        def step(self, done=0, total=0, text=""):
            if text == "encoding" and done == 3:
                self.cancel()
            super().step(done, total, text)

    prepared = engine.prepare(scan, Monitor())
    request = Request(PromptSet().with_click(at(scan, 30, 90, 80)))
    with pytest.raises(Cancelled):
        engine.predict(prepared, request, Stop())
    assert engine.predict(prepared, request, Monitor()).patch.count


# -- beyond upstream -----------------------------------------------------------------------


def test_a_mask_of_another_engine_is_corrected_not_replaced(ask, scan):
    mask = np.zeros(scan.geometry.shape, bool)
    mask[20:40, 60:120, 60:120] = True
    patch = MaskPatch.of(mask)
    before = PromptSet((at(scan, 20, 90, 90), at(scan, 39, 90, 90)))
    after = before.with_click(at(scan, 30, 90, 125))
    corrected = ask(after, previous=patch, previous_prompts=before)
    scratch = ask(after)
    assert corrected.patch != scratch.patch


def test_a_mask_cut_by_a_neighbour_goes_on_without_encoding_anew(ask, scan, encoded):
    prompts = PromptSet().with_click(at(scan, 30, 90, 80))
    first = ask(prompts)
    cut = first.mask.copy()
    cut[: cut.shape[0] // 3] = False  # the overlap rule gave these voxels to a neighbour
    more = prompts.with_click(at(scan, 33, 99, 70), False)
    found = ask(more, previous=MaskPatch(first.box, cut), previous_prompts=prompts)
    assert len(encoded) == 1
    assert found.patch != ask(more, previous=first.patch, previous_prompts=prompts).patch


def test_what_others_made_beyond_the_crop_stays(ask, scan):
    mask = np.zeros(scan.geometry.shape, bool)
    mask[:, 20:170, :] = True  # 198 mm wide: larger than the crop
    far = (30, 168, 5)
    before = PromptSet().with_click(at(scan, 30, 40, 170))
    after = before.with_click(at(scan, 30, 30, 172), False)
    found = ask(after, previous=MaskPatch.of(mask), previous_prompts=before)
    assert found.patch.to_full(scan.geometry.shape)[far]


def test_a_mask_prompt_alone_starts_a_mask(ask, scan):
    mask = np.zeros(scan.geometry.shape, bool)
    mask[20:40, 60:120, 60:120] = True
    found = ask(PromptSet(mask=MaskPrompt(MaskPatch.of(mask), scan.geometry)))
    assert found.patch.count


def test_obstacles_are_cut_out_and_the_correction_still_goes_on(ask, scan, encoded):
    wall = np.zeros(scan.geometry.shape, bool)
    wall[:, :, 90:] = True
    obstacles = MaskPatch.of(wall)
    prompts = PromptSet().with_click(at(scan, 30, 90, 80))
    first = ask(prompts, obstacles=obstacles)
    assert not (first.patch.to_full(scan.geometry.shape) & wall).any()
    more = prompts.with_click(at(scan, 33, 99, 70), False)
    ask(more, obstacles=obstacles, previous=first.patch, previous_prompts=prompts)
    assert len(encoded) == 1


def test_a_box_larger_than_a_crop_takes_a_coarser_grid_and_says_so(ask, scan):
    box = BoxPrompt.from_box(Box((0, 0, 0), scan.geometry.shape), scan.geometry)
    found = ask(PromptSet(boxes=(box,)))
    assert found.provenance["voxel_size"] > 1.8
    assert any("coarser grid" in note for note in found.notes)


def test_a_mask_cut_by_the_crop_is_told(ask, scan):
    found = ask(PromptSet().with_click(at(scan, 30, 90, 5)))
    inside = [note for note in found.notes if "edge of what SAM-Med3D looked at" in note]
    assert bool(inside) == bool(found.patch.mask[:, :, -1].any())


def test_microscopy_is_told_that_it_is_untrained(engine, scan):
    plain = Geometry.from_spacing(scan.geometry.shape, (3.0, 1.1, 1.2), unit="um")
    image = replace(scan, geometry=plain, modality="")
    prompts = PromptSet().with_click(tuple(plain.to_world((30, 90, 80))))
    found = engine.predict(engine.prepare(image, Monitor()), Request(prompts), Monitor())
    assert any("trained on CT and MR" in note and "3 um" in note for note in found.notes)
    chosen = Request(prompts, options={"voxel_size": 2.0})
    found = engine.predict(engine.prepare(image, Monitor()), chosen, Monitor())
    assert found.provenance["voxel_size"] == 2.0
    assert not any("trained on CT and MR" in note for note in found.notes)


def test_ct_is_known_by_modality_or_by_its_air(engine, scan):
    assert engine.prepare(scan, Monitor()).is_ct
    assert engine.prepare(replace(scan, modality=""), Monitor()).is_ct
    bright = replace(scan, array=np.abs(scan.array), modality="")
    assert not engine.prepare(bright, Monitor()).is_ct
    assert not engine.prepare(replace(scan, modality="MR"), Monitor()).is_ct


def test_without_voxels_above_zero_all_count_and_the_user_is_told(engine, scan):
    dark = replace(scan, array=-np.abs(scan.array) - 1, modality="MR")
    prompts = PromptSet().with_click(at(scan, 30, 90, 80))
    found = engine.predict(engine.prepare(dark, Monitor()), Request(prompts), Monitor())
    assert any("above 0" in note for note in found.notes)


# -- weights -------------------------------------------------------------------------------


def test_without_weights_the_user_is_sent_to_the_models_panel(scan, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path))
    engine = load_engine("sam-med3d")
    request = Request(PromptSet().with_click(at(scan, 30, 90, 80)))
    with pytest.raises(CheckpointError, match=r"no weights here yet.*Models"):
        engine.predict(engine.prepare(scan, Monitor()), request, Monitor())


def test_a_model_of_another_engine_or_name_is_refused(engine, stand_ins, scan):
    other = stand_ins.add("axon-seg-plain")
    request = Request(PromptSet().with_click(at(scan, 30, 90, 80)))
    prepared = engine.prepare(scan, Monitor())
    with pytest.raises(EngineError, match="is a axon-seg-plain"):
        engine.predict(prepared, replace(request, options={"checkpoint": other.name}), Monitor())
    with pytest.raises(CheckpointError, match="nobody"):
        engine.predict(prepared, replace(request, options={"checkpoint": "nobody"}), Monitor())
    with pytest.raises(EngineError, match="cuda:9"):
        engine.predict(prepared, replace(request, options={"device": "cuda:9"}), Monitor())


def test_prompts_that_start_nothing_are_refused(ask, scan):
    with pytest.raises(PromptError, match="positive"):
        ask(PromptSet().with_click(at(scan, 30, 90, 80), False))
