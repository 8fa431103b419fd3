"""`openmedlab segment` with an engine that needs weights: same masks as the viewer, and where
the weights come from."""

from __future__ import annotations

import json
import shutil
import threading

import nibabel
import numpy as np
import pytest

from napari_openmedlab.cli import weights as command
from napari_openmedlab.io.api import read
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.session.export import export
from napari_openmedlab.session.objects import EngineChoice
from napari_openmedlab.session.prompt_files import read_prompts
from napari_openmedlab.session.runner import Runner
from napari_openmedlab.session.session import Session

pytest.importorskip("torch", reason="the engine needs the extra 'models'")

ENGINE = "sam-med3d"


@pytest.fixture
def model(stand_ins):
    return stand_ins.add("sam-med3d")


@pytest.fixture
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    return ModelStore(tmp_path / "models")


@pytest.fixture
def clicked(case):
    """The case with clicks: two inside and one outside the liver, one in the spleen."""
    affine = np.asarray(nibabel.load(case.image).affine)

    def ras(*index):
        return [float(v) for v in (affine @ [*index, 1])[:3]]

    liver = [((12, 20, 10), True), ((9, 16, 9), True), ((21, 20, 10), False)]
    objects = [
        {"name": "liver", "clicks": [{"point": ras(*i), "positive": p} for i, p in liver]},
        {"name": "spleen", "clicks": [{"point": ras(33, 16, 8)}]},
        {"name": "both", "box": [ras(4, 8, 4), ras(38, 30, 15)]},
    ]
    case.prompts.write_text(json.dumps({"coordinate_system": "RAS", "objects": objects}))
    return case


def segment(openmedlab, case, *extra, out="mask.nii", engine=ENGINE):
    return openmedlab(
        "segment", case.image, "-e", engine, "-p", case.prompts, "-o", case.folder / out, *extra
    )


def as_the_panel(case, options=(), *, click_by_click=False, overlap="keep"):
    """Drive a session as the Segment panel does: its worker thread answers each request."""
    session = Session(read(case.image))
    session.choice = EngineChoice(ENGINE, dict(options))
    session.overlap = overlap
    answers, done = [], threading.Event()
    runner = Runner(
        on_result=lambda _number, answer: (answers.append(answer), done.set()),
        on_error=lambda _number, error: (answers.append(error), done.set()),
    )
    try:
        for each in read_prompts(case.prompts, session.volume):
            session.add_object(each.name)
            for prompts in _growing(each.prompts) if click_by_click else [each.prompts]:
                session.set_prompts(prompts)
                request = session.request()
                done.clear()
                runner.submit(ENGINE, session.volume, request, session.active_id)
                assert done.wait(120)
                session.apply(answers[-1], request)
    finally:
        runner.close(10)
    return session


def _growing(prompts):
    from dataclasses import replace

    if not prompts.clicks:
        return [prompts]
    return [replace(prompts, clicks=prompts.clicks[:n]) for n in range(1, len(prompts.clicks) + 1)]


# -- the same as the viewer ------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["overwrite"])  # 'keep', the default, is in all tests below
def test_the_mask_is_the_panels_to_the_byte(model, clicked, openmedlab, overlap):
    done = segment(openmedlab, clicked, "--overlap", overlap)
    assert done.code == 0, done.err
    session = as_the_panel(clicked, overlap=overlap)
    export(session, clicked.folder / "panel.nii")
    written = (clicked.folder / "mask.nii").read_bytes()
    assert written == (clicked.folder / "panel.nii").read_bytes()
    found = np.asarray(nibabel.load(clicked.folder / "mask.nii").dataobj)
    assert 0.01 < (found > 0).mean() < 0.99  # stand-in weights find something, somewhere


def test_all_clicks_at_once_are_the_clicks_one_by_one(model, clicked, openmedlab):
    # Objects may not take voxels of each other here: a correction goes on from a mask that the
    # others cut, and that is another request than the uncut one.
    text = json.loads(clicked.prompts.read_text())
    clicked.prompts.write_text(json.dumps({**text, "objects": text["objects"][:1]}))
    assert segment(openmedlab, clicked).code == 0
    session = as_the_panel(clicked, click_by_click=True)
    found = read(clicked.folder / "mask.nii").array
    np.testing.assert_array_equal(found, session.labels)


def test_the_sidecar_tells_network_weights_device_and_prompts(model, clicked, openmedlab):
    done = segment(openmedlab, clicked, "--device", "cpu", "--precision", "float32")
    assert done.code == 0, done.err
    made = json.loads((clicked.folder / "mask.json").read_text())["provenance"]["objects"]
    assert [each["engine"] for each in made] == [ENGINE] * 3
    said = json.dumps(made)
    assert model.source_sha256 in said
    assert '"device": "cpu"' in said
    assert '"precision": "float32"' in said


def test_a_saved_session_is_replayed_to_the_same_mask(model, clicked, openmedlab):
    done = segment(openmedlab, clicked, "--session", clicked.folder / "work.omlsession")
    assert done.code == 0, done.err
    again = openmedlab("replay", clicked.folder / "work.omlsession", "-o", clicked.folder / "b.nii")
    assert again.code == 0, again.err
    assert (clicked.folder / "b.nii").read_bytes() == (clicked.folder / "mask.nii").read_bytes()


# -- where weights come from -----------------------------------------------------------------


def test_a_model_is_named(model, clicked, openmedlab):
    assert segment(openmedlab, clicked, "--checkpoint", model.name).code == 0
    assert segment(openmedlab, clicked, out="plain.nii").code == 0
    names = ("mask.nii", "plain.nii")
    assert len({(clicked.folder / name).read_bytes() for name in names}) == 1


def test_a_file_is_imported_once_and_gives_the_same_mask(
    stand_ins, model, clicked, openmedlab, tmp_path, monkeypatch
):
    assert segment(openmedlab, clicked, out="named.nii").code == 0
    file = tmp_path / "My weights.safetensors"
    shutil.copy(stand_ins.store.path(model.name), file)
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    done = segment(openmedlab, clicked, "--checkpoint", file)
    assert done.code == 0, done.err
    (record,) = ModelStore().records()
    assert (record.name, record.network) == ("my-weights", "sam-med3d")
    masks = [(clicked.folder / name).read_bytes() for name in ("mask.nii", "named.nii")]
    assert masks[0] == masks[1]

    monkeypatch.setattr(
        ModelStore, "import_file", lambda *_args, **_fields: pytest.fail("imported again")
    )
    moved = file.rename(tmp_path / "moved.safetensors")
    done = segment(openmedlab, clicked, "--checkpoint", moved, out="again.nii")
    assert done.code == 0, done.err
    assert (clicked.folder / "again.nii").read_bytes() == masks[0]


def test_a_model_goes_before_a_file_of_its_name(model, clicked, openmedlab, monkeypatch):
    monkeypatch.chdir(clicked.folder)
    (clicked.folder / model.name).write_text("not weights")
    assert segment(openmedlab, clicked, "--checkpoint", model.name).code == 0


def refused(done, folder, *words, code=2):
    assert done.code == code
    said = " ".join(done.err.split())
    for word in words:
        assert word in said
    assert "Traceback" not in done.err
    assert not list(folder.glob("mask*"))


def test_without_weights_a_sentence_says_how_to_get_them(empty_store, clicked, openmedlab):
    done = segment(openmedlab, clicked)
    refused(done, clicked.folder, "no weights here yet", "models download sam-med3d-turbo")


def test_weights_are_looked_for_before_the_scan_is_read(
    empty_store, clicked, openmedlab, monkeypatch
):
    from napari_openmedlab.io import api

    monkeypatch.setattr(api, "read", lambda *_args, **_fields: pytest.fail("read in vain"))
    refused(segment(openmedlab, clicked), clicked.folder, "no weights")


def test_a_published_model_that_is_not_here_is_told_apart(empty_store, clicked, openmedlab):
    done = segment(openmedlab, clicked, "--checkpoint", "sam-med3d-turbo")
    refused(done, clicked.folder, "not here yet", "openmedlab models download sam-med3d-turbo")


def test_an_unknown_model_is_refused_with_those_there_are(model, clicked, openmedlab):
    done = segment(openmedlab, clicked, "--checkpoint", "nobody")
    refused(done, clicked.folder, "no model 'nobody'", model.name)


@pytest.mark.parametrize("name", ["none.pth", "folder/none"])
def test_a_missing_file_is_named(empty_store, clicked, openmedlab, name):
    done = segment(openmedlab, clicked, "--checkpoint", clicked.folder / name)
    refused(done, clicked.folder, "none", "does not exist")


def test_a_folder_is_no_file_of_weights(empty_store, clicked, openmedlab):
    refused(segment(openmedlab, clicked, "--checkpoint", clicked.folder), clicked.folder, "folder")


def test_a_file_that_is_no_checkpoint_is_refused(empty_store, clicked, openmedlab):
    text = clicked.folder / "notes.pth"
    text.write_text("remember the milk")
    refused(segment(openmedlab, clicked, "--checkpoint", text), clicked.folder, "notes.pth")
    assert ModelStore().records() == ()


def test_weights_of_another_network_are_refused(stand_ins, model, clicked, openmedlab, tmp_path):
    other = stand_ins.add("axon-seg-plain")
    done = segment(openmedlab, clicked, "--checkpoint", other.name)
    refused(done, clicked.folder, "weights of axon-seg-plain", "takes sam-med3d")
    done = segment(openmedlab, clicked, "--checkpoint", stand_ins.store.path(other.name))
    refused(done, clicked.folder, "holds weights of axon-seg-plain")


def test_damaged_weights_are_refused(stand_ins, clicked, openmedlab, tmp_path, monkeypatch):
    store = ModelStore(tmp_path / "models")
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(store.folder))
    file = stand_ins.store.path(stand_ins.add("sam-med3d").name)
    record = store.import_file(file, "mine")
    path = store.path("mine")
    path.write_bytes(path.read_bytes()[:-1000])
    done = segment(openmedlab, clicked, "--checkpoint", record.name)
    refused(done, clicked.folder, "mine are damaged")
    refused(segment(openmedlab, clicked), clicked.folder, "no weights", "mine are damaged")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--device", "cuda:9"], "cuda:9"),
        (["--device", "toaster"], "toaster"),
        (["--precision", "double"], "float32"),
        (["--device", "cpu", "--option", "device=cpu"], "given twice"),
        (["--option", "voxel_size=many"], "voxel_size"),
    ],
)
def test_a_device_or_precision_there_is_not_is_refused(model, clicked, openmedlab, flags, words):
    done = segment(openmedlab, clicked, *flags)
    assert done.code in (1, 2)
    refused(done, clicked.folder, words, code=done.code)


def test_an_engine_without_weights_takes_no_checkpoint(clicked, openmedlab):
    done = segment(openmedlab, clicked, "--checkpoint", "any", engine="built-in")
    refused(done, clicked.folder, "no option checkpoint")


def test_medsams_file_is_what_the_engine_asked_for_takes(empty_store, tmp_path, monkeypatch):
    """SAM's and MedSAM's files are alike; an engine of one of them decides."""
    from dataclasses import replace

    from napari_openmedlab.errors import CheckpointError

    file = tmp_path / "alike.pth"
    file.write_bytes(b"alike")
    asked = []

    def import_file(self, path, name=None, as_=None, monitor=None):
        asked.append(as_)
        if as_ is None:
            error = CheckpointError("alike.pth fits sam-vit-b and medsam")
            error.candidates = ("sam-vit-b", "medsam")
            raise error
        return Record("alike", as_)

    monkeypatch.setattr(ModelStore, "import_file", import_file)
    spec = replace(get_spec(ENGINE), networks=("medsam",))
    assert command.choose_model(spec, str(file)) == "alike"
    assert asked == [None, "medsam"]
    with pytest.raises(CheckpointError, match="--as sam-vit-b', or medsam"):
        command.choose_model(replace(spec, networks=("sam-vit-b", "medsam")), str(file))


# -- the list of engines ---------------------------------------------------------------------


def test_the_list_tells_which_weights_are_there(empty_store, stand_ins, model, openmedlab):
    done = openmedlab("engines")  # `stand_ins` set its folder last: weights are there
    assert done.code == 0
    assert "yes, with" in " ".join(done.out.split())
    assert model.name in done.out


def test_the_list_tells_how_to_get_weights(empty_store, openmedlab):
    done = openmedlab("engines", ENGINE)
    assert done.code == 0
    assert "models download sam-med3d-turbo" in done.out
    assert "voxel_size=0.0" in done.out
    assert 'checkpoint=""' in done.out
    assert "no weights here yet" in " ".join(openmedlab("engines").out.split())


def test_an_unknown_engine_in_the_list_is_refused(openmedlab):
    done = openmedlab("engines", "magic")
    assert done.code == 2
    assert "built-in" in done.err
