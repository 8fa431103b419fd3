import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from napari_openmedlab.errors import ReadError, SessionError, WriteError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.frames import Reorientation
from napari_openmedlab.geometry.labels import LabelPatch, MaskPatch
from napari_openmedlab.geometry.prompts import BoxPrompt, MaskPrompt, PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.io.source import SourceGrid
from napari_openmedlab.session.objects import EngineChoice, OverlapRule
from napari_openmedlab.session.runner import run_once
from napari_openmedlab.session.session import Session
from napari_openmedlab.session.store import load, save, saved_image


@pytest.fixture
def worked(session, at):
    """A session with all kinds of prompts, an answer, a stroke, a lock and an undone step."""
    session.add_object("liver")
    session.set_prompts(PromptSet().with_click(at(5, 8, 6)))
    request = session.request()
    session.apply(run_once("flood", session.volume, request), request)
    box = Box((0, 0, 0), (2, 3, 4))
    before = session.labels[box.slices].copy()
    session.labels[box.slices] = 1
    session.apply_edit(LabelPatch(box, before, session.labels[box.slices].copy()))
    session.add_object("rest", (0.25, 0.5, 1.0))
    mask = MaskPrompt(MaskPatch.of(session.labels == 1), session.volume.geometry)
    session.set_prompts(
        PromptSet(
            (at(1, 1, 1), at(2, 2, 2)),
            (BoxPrompt(at(0, 0, 0), at(3, 3, 3)),),
            mask=mask,
        ).with_scribble([at(4, 4, 4), at(4, 4, 5)], positive=False)
    )
    session.update_object(1, locked=True)
    session.add_object("gone")
    session.undo()
    session.overlap = OverlapRule.OVERWRITE
    return session


def test_a_loaded_session_is_the_saved_one(worked, tmp_path):
    path = save(worked, tmp_path / "case")
    assert path.name == "case.omlsession"
    again = load(path, worked.volume)
    np.testing.assert_array_equal(again.labels, worked.labels)
    assert again.state == worked.state
    assert again.overlap is OverlapRule.OVERWRITE
    assert [s.text for s in again.history.past] == [s.text for s in worked.history.past]
    assert again.redo()
    assert again.get().name == "gone"
    while again.undo():
        pass
    assert not again.labels.any()
    assert again.objects == ()


def test_saving_what_was_loaded_gives_the_same_session(worked, tmp_path):
    first = save(worked, tmp_path / "a")
    second = save(load(first), tmp_path / "b")  # without its image
    again = load(second, worked.volume)
    np.testing.assert_array_equal(again.labels, worked.labels)
    assert again.state == worked.state


def test_a_session_opens_without_its_image_but_engines_say_why_they_cannot(worked, tmp_path):
    again = load(save(worked, tmp_path / "case"))
    assert again.volume.geometry.same_grid(worked.volume.geometry)
    assert again.mask_of(1) == worked.mask_of(1)
    again.update_object(1, locked=False)
    with pytest.raises(SessionError, match="image 'two blocks' of this session is not loaded"):
        run_once("flood", again.volume, again.request(1))


def test_given_labels_are_part_of_the_file(volume, flood, tmp_path):
    labels = np.zeros(volume.geometry.shape, dtype=np.uint16)
    labels[2:5, 3:7, 4:9] = 3
    session = Session(volume, labels=labels.copy())
    session.remove_object(3)
    again = load(save(session, tmp_path / "s"), volume)
    assert not again.labels.any()
    again.undo()
    np.testing.assert_array_equal(again.labels, labels)


def test_another_image_is_refused_with_a_sentence(worked, tmp_path):
    path = save(worked, tmp_path / "case")
    volume = worked.volume
    other_voxels = Volume(volume.array + 1, volume.geometry, name="follow-up")
    with pytest.raises(SessionError, match=r"follow-up lies on the grid .* voxels differ"):
        load(path, other_voxels)
    moved = volume.geometry.affine.copy()
    moved[0, 3] += 5.0
    elsewhere = Volume(volume.array, Geometry(volume.geometry.shape, moved), name="moved")
    with pytest.raises(SessionError, match=r"moved is not the image .* 5 mm apart"):
        load(path, elsewhere)
    cut = Volume(volume.array[1:], volume.geometry.crop(Box((1, 0, 0), (12, 20, 24))))
    with pytest.raises(SessionError, match="shape"):
        load(path, cut)


def test_the_same_image_in_another_dtype_or_lazy_is_accepted(worked, tmp_path):
    import dask.array as da

    path = save(worked, tmp_path / "case")
    volume = worked.volume
    for array in (volume.array.astype(np.float64), da.from_array(volume.array, chunks=5)):
        load(path, Volume(array, volume.geometry))


def test_an_image_with_nan_is_recognised(flood, tmp_path):
    array = np.full((4, 5, 6), np.nan, dtype=np.float32)
    volume = Volume(array, Geometry.from_spacing((4, 5, 6), (1.0, 1.0, 1.0)))
    load(save(Session(volume), tmp_path / "s"), volume)


def test_the_image_is_remembered_relative_to_the_session(worked, tmp_path):
    image = tmp_path / "scans" / "ct.nii.gz"
    image.parent.mkdir()
    image.touch()
    grid = worked.volume.geometry
    header = {"PatientName": "Doe^Jane"}
    source = SourceGrid("nifti", image, grid, Reorientation((0, 1, 2), (False,) * 3), header)
    session = Session(Volume(worked.volume.array, grid, source=source, name="ct"))
    path = save(session, tmp_path / "work" / "case")
    with zipfile.ZipFile(path) as archive:
        content = archive.read("session.json").decode()
    assert json.loads(content)["image"]["path"] == "../scans/ct.nii.gz"
    assert "Doe" not in content
    os.rename(tmp_path / "work", tmp_path / "elsewhere")  # both folders keep their places
    assert saved_image(tmp_path / "elsewhere" / "case.omlsession").path == image.resolve()


def _rewrite(path: Path, change):
    with zipfile.ZipFile(path) as archive:
        content, data = json.loads(archive.read("session.json")), archive.read("data.bin")
    change(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("session.json", json.dumps(content))
        archive.writestr("data.bin", data)


def test_a_newer_format_says_to_update(worked, tmp_path):
    path = save(worked, tmp_path / "case")
    _rewrite(path, lambda c: c.update(version=99))
    with pytest.raises(ReadError, match=r"format version 99.*update napari-openmedlab"):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("tables"),
        lambda c: c["tables"]["objects"][0].update(id=0),
        lambda c: c["tables"]["objects"][0].pop("name"),
        lambda c: c["past"][1]["change"].update(changed=[0, 10**9]),
        lambda c: c["past"][1]["change"].update(changed=[3, 5]),
        lambda c: c["past"][1].update(kind="magic"),
        lambda c: c["past"][1].update(change=None),
        lambda c: c["image"]["geometry"].update(shape=[0, 1, 2]),
        lambda c: c.update(overlap="maybe"),
        lambda c: c["state"]["objects"].append(500),
    ],
)
def test_a_damaged_session_is_an_error_that_names_the_file(worked, tmp_path, change):
    path = save(worked, tmp_path / "case")
    _rewrite(path, change)
    with pytest.raises(ReadError, match=r"case\.omlsession is damaged"):
        load(path)


def test_a_session_cut_off_anywhere_is_an_error(worked, tmp_path):
    path = save(worked, tmp_path / "case")
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ReadError, match=r"case\.omlsession"):
            load(path)


def test_other_files_are_no_sessions(tmp_path):
    with pytest.raises(ReadError, match="there is no session file"):
        load(tmp_path / "none.omlsession")
    text = tmp_path / "text.omlsession"
    text.write_text("hello")
    with pytest.raises(ReadError, match="is not a session file"):
        load(text)
    with zipfile.ZipFile(tmp_path / "other.omlsession", "w") as archive:
        archive.writestr("session.json", "{}")
        archive.writestr("data.bin", "")
    with pytest.raises(ReadError, match="is not a session of napari-openmedlab"):
        load(tmp_path / "other.omlsession")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(worked, tmp_path, monkeypatch):
    path = save(worked, tmp_path / "case")
    old = path.read_bytes()

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    worked.add_object()
    with pytest.raises(WriteError, match="disk is full"):
        save(worked, path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="a file in the way of a folder")
def test_a_folder_that_cannot_be_made_is_an_error(worked, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="could not be saved"):
        save(worked, tmp_path / "file" / "case")


def test_a_session_of_an_unknown_engine_still_loads(worked, tmp_path, monkeypatch):
    from napari_openmedlab.models import catalogue

    path = save(worked, tmp_path / "case")
    monkeypatch.setattr(catalogue, "entry_points", lambda group: [])
    assert load(path, worked.volume).choice == EngineChoice("flood")


def test_a_thousand_steps_of_many_objects_stay_small(session, tmp_path):
    for number in range(100):
        session.add_object(f"object {number}")
    for number in range(900):
        session.update_object(number % 100 + 1, name=f"name {number}")
    path = save(session, tmp_path / "many")
    assert path.stat().st_size < 1_000_000
    assert load(path, session.volume).state == session.state


def test_whatever_an_engine_says_of_itself_can_be_saved(session, tmp_path):
    from napari_openmedlab.models.contract import Prediction

    said = {
        "threshold": np.float32(0.5),
        "quality": float("nan"),
        "sizes": (1, np.int64(2)),
        "device": Path("cpu"),
        3: {"deep": np.array([1.0, np.inf])},
    }
    session.add_object()
    answer = Prediction(Box((0, 0, 0), (1, 1, 1)), np.ones((1, 1, 1), bool), provenance=said)
    session.apply(answer, session.request())
    again = load(save(session, tmp_path / "s"), session.volume)
    assert again.state == session.state
    assert dict(again.active.provenance) == {
        "threshold": 0.5,
        "quality": None,
        "sizes": [1, 2],
        "device": "cpu",
        "3": {"deep": [1.0, None]},
    }
