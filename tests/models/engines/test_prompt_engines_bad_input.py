"""What users really do to engines with weights: each gets an answer or a sentence, and nothing
that was annotated is lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from napari_openmedlab.errors import (
    Cancelled,
    CheckpointError,
    EngineError,
    GeometryError,
    OpenMedLabError,
    PromptError,
    ReadError,
)
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import BoxPrompt, PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.catalogue import engines, get_spec
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.session.objects import EngineChoice
from napari_openmedlab.session.session import Session
from napari_openmedlab.session.workbench import Workbench

torch = pytest.importorskip("torch", reason="these engines need the extra 'models'")

ROOT = Path(__file__).resolve().parents[3]
# The smallest network that each engine takes.
NETWORKS = {"sam-med3d": "sam-med3d", "sam-med2d": "ft-sam"}
HERE = [each.id for each in engines("promptable") if each.id in NETWORKS]
SHAPE = (24, 60, 70)
MIDDLE = (12, 30, 34)


@pytest.fixture(params=HERE)
def engine(request):
    return request.param


@pytest.fixture
def model(engine, stand_ins):
    return stand_ins.add(NETWORKS[engine])


@pytest.fixture(scope="module")
def benches():
    """One loaded engine for the whole file: loading is not what is tested here."""
    made = Workbench()
    yield made
    made.release()


@pytest.fixture
def bench(benches):
    yield benches
    benches.drop_prepared()


@pytest.fixture
def desk(engine, model, bench):
    """Return a function that puts a scan on a desk of its own."""
    return lambda volume, **options: Desk(volume, engine, model.name, bench, options)


class Desk:
    """A session on a scan with its engine, driven as panel and command line do."""

    def __init__(self, volume, engine, model, bench, options=()):
        self.session = Session(volume)
        self.session.choice = EngineChoice(engine, {"checkpoint": model, **dict(options)})
        self.session.add_object("thing")
        self.bench = bench

    @property
    def thing(self):
        return self.session.active

    def set(self, prompts):
        self.session.set_prompts(prompts)
        return self

    def ask(self, monitor=None):
        """Answer what is asked, and write the mask."""
        request, volume = self.session.request(), self.session.volume
        engine = self.session.choice.engine
        found = self.bench.predict(engine, volume, request, monitor or Monitor())
        assert found.mask.shape == found.box.shape
        assert Box.whole(volume.geometry.shape).contains(found.box)
        self.session.apply(found, request)
        return found

    def click(self, index, positive=True):
        return self.set(self.thing.prompts.with_click(self.at(index), positive))

    def at(self, index):
        return tuple(self.session.volume.geometry.to_world(index))

    def fails(self, error, text, monitor=None):
        """Ask; the sentence comes, and neither prompts nor labels are touched."""
        labels, prompts = self.session.labels.copy(), self.thing.prompts
        with pytest.raises(error, match=text) as caught:
            self.ask(monitor)
        assert "internal error" not in str(caught.value)
        np.testing.assert_array_equal(self.session.labels, labels)
        assert self.thing.prompts == prompts
        return self


def picture(shape=SHAPE, dtype=np.int16):
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    middle = [n // 2 for n in shape]
    ball = sum(((g - m) / max(1.0, m * 0.6)) ** 2 for g, m in zip((z, y, x), middle, strict=True))
    noise = np.random.default_rng(4).normal(0, 12, shape)
    return (40 + 90 * (ball <= 1) + noise).astype(dtype)


def affine(spacing=(3.0, 1.2, 1.1)):
    made = np.zeros((4, 4))
    made[2, 0], made[1, 1], made[0, 2], made[3, 3] = -spacing[0], spacing[1], spacing[2], 1
    made[:3, 3] = (-40, -35, 60)
    return made


def scan(array=None, spacing=(3.0, 1.2, 1.1), **fields):
    array = picture() if array is None else array
    return Volume(array, Geometry(array.shape, affine(spacing)), modality="CT", **fields)


# -- images that are no scans ------------------------------------------------------------------


def test_a_2d_layer_is_answered_as_one_slice(desk):
    from napari.layers import Image

    from napari_openmedlab.bridge.layers import volume_of_layer

    volume = volume_of_layer(Image(picture()[12], name="photo"))
    assert any("one slice" in note for note in volume.notes)
    found = desk(volume).click((0, 30, 34)).ask()
    assert found.box.shape[0] in (0, 1)


def test_an_rgb_layer_or_one_of_four_axes_is_refused_with_what_to_do():
    from napari.layers import Image

    from napari_openmedlab.bridge.layers import volume_of_layer

    with pytest.raises(GeometryError, match=r"RGB.*Split RGB"):
        volume_of_layer(Image(np.zeros((20, 30, 3), np.uint8), rgb=True, name="photo"))
    with pytest.raises(GeometryError, match=r"4 axes.*Split Stack"):
        volume_of_layer(Image(np.zeros((5, 6, 7, 8), np.uint8), name="film"))


def test_colour_files_are_refused(tmp_path):
    import tifffile

    from napari_openmedlab.io.api import read

    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((20, 30, 3), np.uint8), photometric="rgb")
    with pytest.raises(ReadError, match=r"(?i)colou?r|RGB"):
        read(tmp_path / "rgb.tif")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_scan_of_a_single_slice_is_answered(desk, axis):
    cut = [slice(None)] * 3
    cut[axis] = slice(MIDDLE[axis], MIDDLE[axis] + 1)
    index = tuple(0 if a == axis else MIDDLE[a] for a in range(3))
    work = desk(scan(np.ascontiguousarray(picture()[tuple(cut)])))
    first = work.click(index).ask()
    outside = tuple(0 if a == axis else 3 for a in range(3))
    work.click(outside, positive=False).ask()
    assert first.box.shape[axis] in (0, 1)


def test_a_scan_of_a_single_voxel_is_answered(desk):
    desk(scan(np.full((1, 1, 1), 7, np.int16))).click((0, 0, 0)).ask()


def test_a_4d_file_asks_which_and_takes_the_answer(engine, model, tmp_path, capsys):
    from napari_openmedlab.cli.main import run

    series = np.stack([picture().T, picture().T[::-1]], axis=-1)
    nibabel.Nifti1Image(series, np.diag([1.1, 1.2, 3.0, 1.0])).to_filename(tmp_path / "4d.nii")
    point = [1.1 * 34, 1.2 * 30, 3.0 * 12]
    content = {"coordinate_system": "RAS", "objects": [{"name": "a", "clicks": [{"point": point}]}]}
    (tmp_path / "p.json").write_text(json.dumps(content))
    call = ["segment", tmp_path / "4d.nii", "-e", engine, "-p", tmp_path / "p.json"]
    call += ["--checkpoint", model.name, "-o", tmp_path / "mask.nii"]
    assert run([str(each) for each in call]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "index" in said or "which" in said
    assert not (tmp_path / "mask.nii").exists()
    code = run([str(each) for each in (*call, "--index", "1")])
    said = capsys.readouterr().err
    assert code == 0 or "no object was found" in said
    assert code != 0 or nibabel.load(tmp_path / "mask.nii").shape == picture().T.shape


# -- voxels that are no numbers, or all the same -----------------------------------------------


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1e300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_voxels_without_a_number_are_survived(desk, value, dtype):
    if dtype is np.float32 and np.isfinite(value):
        pytest.skip("no float32")
    array = picture(dtype=dtype)
    array[::5, ::7, ::3] = value
    array[MIDDLE] = value
    work = desk(scan(array))
    work.click(MIDDLE).ask()
    work.click((12, 20, 30)).ask()


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1000.0, 1e-30, 7.0])
def test_an_image_of_one_value_is_told(desk, value):
    found = desk(scan(np.full(SHAPE, value, np.float32))).click(MIDDLE).ask()
    assert any("constant" in note or "no contrast" in note for note in found.notes)


def test_a_constant_neighbourhood_in_a_real_scan_is_told(desk, engine):
    array = picture((40, 300, 300))
    array[:, :290, :] = 0
    found = desk(scan(array, (5.0, 1.5, 1.5))).click((20, 60, 60)).ask()
    if engine == "sam-med3d":
        assert any("constant" in note for note in found.notes)


# -- voxel sizes -------------------------------------------------------------------------------


def test_a_spacing_of_zero_is_refused_before_any_engine_sees_it():
    for spacing in ((0.0, 1.0, 1.0), (1.0, np.nan, 1.0), (1.0, np.inf, 1.0)):
        with pytest.raises(GeometryError, match=r".{20,}"):
            Geometry(SHAPE, affine(spacing))


def test_a_file_without_a_spacing_is_answered(desk, tmp_path):
    from napari_openmedlab.io.api import read

    image = nibabel.Nifti1Image(picture().T, None)
    image.header["pixdim"][1:4] = 0
    image.header["sform_code"] = image.header["qform_code"] = 0
    image.to_filename(tmp_path / "bare.nii")
    volume = read(tmp_path / "bare.nii")
    desk(volume).click(MIDDLE).ask()


def test_microscopy_without_a_scale_is_answered_and_told(desk, engine, tmp_path):
    import tifffile

    from napari_openmedlab.io.api import read

    tifffile.imwrite(tmp_path / "stack.tif", picture(dtype=np.uint16), photometric="minisblack")
    volume = read(tmp_path / "stack.tif")
    assert volume.geometry.unit == "pixel"
    found = desk(volume).click(MIDDLE).ask()
    if engine == "sam-med3d":
        assert any("voxels of 1 pixel" in note for note in found.notes)


@pytest.mark.parametrize("spacing", [(0.001, 0.001, 0.001), (60.0, 50.0, 40.0), (40.0, 0.05, 0.05)])
def test_extreme_spacings_are_answered(desk, spacing):
    work = desk(scan(spacing=spacing))
    work.click(MIDDLE).ask()
    work.click((12, 3, 4), positive=False).ask()


def test_an_oblique_scan_is_answered_as_the_same_voxels_unturned(desk):
    # Not a multiple of 1.5 mm: there the last bit decides how many working voxels there are.
    volume, turn = scan(spacing=(3.1, 1.23, 1.17)), np.eye(4)
    tilt = np.radians(17.0)
    turn[1:3, 1:3] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    turned = replace(volume, geometry=Geometry(SHAPE, turn @ volume.geometry.affine))
    masks: list[np.ndarray] = []
    for each in (volume, turned):
        work = desk(each)
        work.click(MIDDLE).ask()
        work.click((12, 22, 40), positive=False).ask()
        masks.append(work.session.labels.copy())
    different = np.count_nonzero(masks[0] != masks[1])
    assert different <= 1e-3 * max(1, np.count_nonzero(masks[0]))


# -- prompts -----------------------------------------------------------------------------------


def test_a_click_outside_the_scan_is_refused_and_nothing_changes(desk):
    work = desk(scan())
    work.click(MIDDLE).ask()
    labels, prompts = work.session.labels.copy(), work.thing.prompts
    with pytest.raises(PromptError, match="outside the volume"):
        work.click((12, 30, 400))
    np.testing.assert_array_equal(work.session.labels, labels)
    assert work.thing.prompts == prompts
    work.click((12, 31, 34)).ask()


def test_only_negative_clicks_are_refused_and_kept(desk):
    work = desk(scan()).click(MIDDLE, positive=False)
    work.fails(PromptError, "positive|inside")
    work.click((12, 28, 30)).ask()
    assert [click.positive for click in work.thing.prompts.clicks] == [False, True]


def test_a_negative_click_where_nothing_is_keeps_the_mask(desk, engine):
    work = desk(scan())
    work.click(MIDDLE).ask()
    labels = work.session.labels.copy()
    work.click((2, 3, 4), positive=False)
    if engine == "sam-med3d":
        work.ask()  # one crop sees both
    else:
        work.fails(PromptError, "inside")
        np.testing.assert_array_equal(work.session.labels, labels)
        work.click((12, 28, 30)).ask()  # and goes on


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_box_of_zero_thickness_is_answered(desk, axis):
    start, stop = [4, 12, 14], [19, 47, 55]
    stop[axis] = start[axis] = MIDDLE[axis]
    work = desk(scan())
    work.set(PromptSet(boxes=(BoxPrompt(work.at(start), work.at(stop)),))).ask()


def test_a_box_of_one_point_and_one_between_two_slices_are_answered(desk):
    work = desk(scan())
    work.set(PromptSet(boxes=(BoxPrompt(work.at(MIDDLE), work.at(MIDDLE)),))).ask()
    thin = BoxPrompt(work.at((11.4, 12, 14)), work.at((11.6, 47, 55)))
    work.set(PromptSet(boxes=(thin,))).ask()


def test_a_box_much_larger_than_the_scan_is_cut_to_it(desk):
    work = desk(scan())
    huge = BoxPrompt(work.at((-900, -900, -900)), work.at((900, 900, 900)))
    found = work.set(PromptSet(boxes=(huge,))).ask()
    whole = BoxPrompt.from_box(Box.whole(SHAPE), work.session.volume.geometry)
    other = desk(scan()).set(PromptSet(boxes=(whole,))).ask()
    assert found.patch == other.patch


def test_a_box_outside_the_scan_is_refused_and_nothing_changes(desk):
    work = desk(scan())
    away = BoxPrompt(work.at((12, 30, 300)), work.at((14, 40, 320)))
    with pytest.raises(PromptError, match="outside the volume"):
        work.set(PromptSet(boxes=(away,))).ask()
    assert not work.session.labels.any()


def test_extreme_points_on_one_spot_are_answered(desk):
    work = desk(scan())
    work.set(PromptSet((work.at(MIDDLE),))).ask()


def test_a_mask_rubbed_out_by_hand_starts_again(desk):
    work = desk(scan())
    work.click(MIDDLE).ask()
    labels = work.session.labels
    from napari_openmedlab.geometry.labels import LabelPatch

    before = labels.copy()
    work.session.apply_edit(LabelPatch(Box.whole(SHAPE), before, np.zeros_like(before)))
    assert not work.session.labels.any()
    work.click((12, 26, 30)).ask()
    assert len(work.thing.prompts.clicks) == 2


def test_obstacles_over_the_whole_scan_leave_an_empty_answer(desk, engine, bench):
    work = desk(scan()).click(MIDDLE)
    request = replace(work.session.request(), obstacles=MaskPatch.of(np.ones(SHAPE, bool)))
    found = bench.predict(engine, work.session.volume, request, Monitor())
    assert found.patch.is_empty


# -- weights and memory ------------------------------------------------------------------------


@pytest.fixture
def own_store(stand_ins, model, tmp_path, monkeypatch):
    """A store of its own with the same weights, so that they can be taken away."""
    folder = tmp_path / "models"
    folder.mkdir()
    for path in (stand_ins.store.path(model.name), stand_ins.folder / f"{model.name}.json"):
        os.link(path, folder / path.name)
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(folder))
    return ModelStore(folder)


def test_weights_removed_while_loaded_keep_the_annotation(own_store, desk, model, tmp_path):
    work = desk(scan())
    work.click(MIDDLE).ask()
    kept = tmp_path / "kept"
    kept.mkdir()
    for path in own_store.folder.glob(f"{model.name}.*"):
        os.link(path, kept / path.name)
    own_store.remove(model.name)
    work.click((12, 22, 40)).fails(CheckpointError, f"no model '{model.name}'|not here yet")
    for path in kept.iterdir():
        path.rename(own_store.folder / path.name)
    work.ask()
    assert len(work.thing.prompts.clicks) == 2


def test_weights_whose_file_alone_is_gone_are_told(own_store, desk, model):
    work = desk(scan())
    work.click(MIDDLE).ask()
    own_store.path(model.name).unlink()
    work.click((12, 22, 40)).fails(CheckpointError, "missing")


def test_weights_that_were_never_there_keep_the_prompts(engine, bench, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path))
    work = Desk(scan(), engine, "", bench).click(MIDDLE)
    work.fails(CheckpointError, "no weights here yet")


@contextmanager
def failing(error):
    """Let every image encoder raise; yields a list with a mark for each time it did."""
    raised = []

    def hook(module, _inputs):
        if hasattr(module, "blocks") and hasattr(module, "patch_embed"):
            raised.append(1)
            raise error

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield raised
    finally:
        handle.remove()


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


def other_scan(number):
    """A scan that no engine has met: nothing of it is kept from other tests."""
    return scan(np.roll(picture(), number, axis=2))


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_no_memory_on_the_cpu_is_a_sentence(desk, number):
    work = desk(other_scan(1 + number))
    with failing(ERRORS[number]) as raised:
        work.click(MIDDLE).fails(EngineError, "not enough memory")
    assert raised
    work.ask()  # memory is there again: the prompts were kept
    assert len(work.thing.prompts.clicks) == 1


def test_no_memory_for_a_correction_keeps_the_mask(desk, bench):
    work = desk(other_scan(11))
    work.click(MIDDLE).ask()
    bench.release()  # what was computed is forgotten, so the correction encodes again
    with failing(ERRORS[0]) as raised:
        work.click((12, 20, 30), positive=False).fails(EngineError, "not enough memory")
    assert raised
    work.ask()


def test_a_full_card_is_left_for_the_cpu_and_the_user_is_told(desk, bench, monkeypatch):
    """The card is pretended: "cpu:0" is the CPU to torch, and another device to the engine."""
    from napari_openmedlab.models.device import Choice, Device
    from napari_openmedlab.models.engines import weights

    plain = desk(other_scan(21), device="cpu").click(MIDDLE).ask()
    bench.release()
    card = Device("cpu:0", "pretended card", 2**33, 2**33, ("bfloat16",))
    monkeypatch.setattr(weights, "choose", lambda _wanted: Choice(card, "pretended"))
    steps, original = [], weights.Weights._place

    def place(self, placement, notes):
        steps.append(placement)
        original(self, placement, notes)

    monkeypatch.setattr(weights.Weights, "_place", place)

    def full(module, _inputs):
        encoder = hasattr(module, "blocks") and hasattr(module, "patch_embed")
        if encoder and steps[-1].device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(full)
    work = desk(other_scan(21))
    try:
        found = work.click(MIDDLE).ask()
        again = work.click((12, 28, 30)).ask()  # stays where there is memory
    finally:
        handle.remove()
        bench.release()
    assert found.patch == plain.patch
    assert "bfloat16" in {step.precision for step in steps}
    assert any("full" in note and "CPU" in note for note in found.notes)
    assert found.provenance["device"] == again.provenance["device"] == "cpu"


def test_a_defect_of_the_network_is_told_as_one_and_loses_nothing(desk):
    work = desk(other_scan(31)).click(MIDDLE)
    with (
        failing(RuntimeError("shapes do not match")),
        pytest.raises(EngineError, match=r"internal error.*shapes do not match"),
    ):
        work.ask()
    assert len(work.thing.prompts.clicks) == 1
    work.ask()


# -- cancel ------------------------------------------------------------------------------------


class Stopper(Monitor):
    def __init__(self, stop_at=0):
        super().__init__()
        self.stop_at, self.steps = stop_at, 0

    def step(self, done=0, total=0, text=""):
        self.steps += 1
        if self.steps == self.stop_at:
            self.cancel()
        super().step(done, total, text)


def test_a_cancel_at_any_step_of_a_correction_keeps_the_annotation(desk):
    work = desk(scan())
    work.click(MIDDLE).ask()
    counter = Stopper()
    work.click((12, 22, 40), positive=False).ask(counter)
    work.session.undo()
    assert counter.steps > 2
    work.click((12, 22, 40), positive=False)
    for stop_at in range(1, counter.steps + 1):
        labels = work.session.labels.copy()
        with pytest.raises(Cancelled):
            work.ask(Stopper(stop_at))
        np.testing.assert_array_equal(work.session.labels, labels)
    work.ask()
    assert len(work.thing.prompts.clicks) == 2


# -- arrays larger than memory -----------------------------------------------------------------


class Watched:
    """A lazy array that notes how many voxels are read of it."""

    def __init__(self, array):
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, 3
        self._array, self.read = array, 0

    def __getitem__(self, key):
        piece = self._array[key]
        self.read += piece.size
        return piece


def test_a_lazy_scan_is_read_around_the_prompt_only(desk):
    import dask.array as da

    shape = (120, 400, 400)
    array = np.random.default_rng(0).integers(-800, 800, shape).astype(np.int16)
    masks, watched = [], Watched(array)
    for kind in (array, da.from_array(array, chunks=(16, 128, 128)), watched):
        work = desk(scan(kind, (3.0, 1.5, 1.5)))
        work.click((60, 200, 200)).ask()
        masks.append(work.session.labels.copy())
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])
    assert watched.read < 0.5 * array.size


def test_a_lazy_scan_whose_file_is_gone_is_a_sentence(desk):
    class Gone(Watched):
        def __getitem__(self, key):
            raise OSError(5, "Input/output error", "scan.zarr")

    work = desk(scan(Gone(picture()))).click(MIDDLE)
    with pytest.raises(OpenMedLabError, match="Input/output error"):
        work.ask()
    assert len(work.thing.prompts.clicks) == 1


# Pages of the mapped file are not counted: the system takes them back when it likes.
_PEAK = """
import json, sys, threading, time
import numpy as np
from pathlib import Path
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.contract import Monitor, Request
from napari_openmedlab.session.workbench import Workbench

def own():
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def watch():
    while not done:
        peaks.append(own())
        time.sleep(0.002)

done, peaks = [], []
engine, model, file, *shape = sys.argv[1:]
shape = tuple(map(int, shape))
array = np.memmap(file, np.int16, "r", shape=shape)
affine = np.zeros((4, 4))
affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = -0.8, 0.5, 0.5, 1
volume = Volume(array, Geometry(shape, affine), modality="CT")
point = tuple(volume.geometry.to_world(np.array(shape) // 2))
prompts = PromptSet().with_click(point)
bench = Workbench()
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
options = {"checkpoint": model, "device": "cpu"}
first = bench.predict(engine, volume, Request(prompts, options=options), Monitor())
beside = np.array(shape) // 2 + (0, 9, 9)
more = prompts.with_click(tuple(volume.geometry.to_world(beside)), False)
request = Request(more, first.patch, prompts, options=options)
found = bench.predict(engine, volume, request, Monitor())
done.append(1)
watcher.join()
print(json.dumps([max(peaks), found.patch.count]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory read from /proc")
def test_peak_memory_does_not_grow_with_the_scan(engine, model, tmp_path):
    peaks = []
    for shape in ((300, 420, 420), (600, 1024, 1024)):
        file = tmp_path / "scan.raw"
        block = np.random.default_rng(0).integers(-900, 900, 2**22).astype(np.int16)
        with file.open("wb") as sink:
            for start in range(0, int(np.prod(shape)), block.size):
                sink.write(block[: int(np.prod(shape)) - start].tobytes())
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, engine, model.name, str(file), *map(str, shape)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        peak, count = json.loads(done.stdout.splitlines()[-1])
        assert count
        peaks.append(peak)
        file.unlink()
    scan_bytes = 2 * 600 * 1024 * 1024
    assert peaks[1] - peaks[0] < 0.1 * scan_bytes, [round(p / 2**20) for p in peaks]


def test_every_engine_with_weights_is_tested_here():
    with_weights = {each.id for each in engines("promptable") if each.networks}
    # SAM and MedSAM run the code of SAM-Med2D at 1024 pixels: ten seconds a slice on a CPU.
    assert with_weights <= {*NETWORKS, "sam", "medsam"}
    for each in HERE:
        assert NETWORKS[each] in get_spec(each).networks
    assert re.fullmatch(r"[a-z0-9-]+", HERE[0])
