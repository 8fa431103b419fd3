import zipfile

import numpy as np
import pytest

from napari_openmedlab.errors import Cancelled, ReadError, SessionError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import LabelPatch
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.session.objects import EngineChoice, OverlapRule
from napari_openmedlab.session.replay import replay, replay_steps
from napari_openmedlab.session.runner import run_once
from napari_openmedlab.session.store import save


def click(session, point, positive=True):
    session.set_prompts(session.active.prompts.with_click(point, positive))
    request = session.request()
    session.apply(run_once("flood", session.volume, request), request)


def paint(session, box, value):
    before = session.labels[box.slices].copy()
    session.labels[box.slices] = value
    session.apply_edit(LabelPatch(box, before, session.labels[box.slices].copy()))


@pytest.fixture
def worked(session, at):
    """Two objects, corrections, strokes, a lock, both rules, a removal, undone steps."""
    session.add_object("left")
    click(session, at(5, 8, 6))
    paint(session, Box((0, 0, 0), (4, 5, 6)), 1)
    click(session, at(4, 5, 4), positive=False)
    session.add_object("right")
    session.overlap = OverlapRule.OVERWRITE
    session.choice = EngineChoice("flood", {"tolerance": 120.0}, avoid_neighbours=True)
    click(session, at(5, 8, 15))
    session.update_object(1, locked=True)
    session.choice = EngineChoice("flood", {"tolerance": 250.0})
    click(session, at(10, 18, 22))
    session.add_object("third")
    click(session, at(10, 18, 22))
    session.remove_object(3)
    session.add_object("undone")
    click(session, at(5, 8, 15))
    session.undo()
    session.undo()
    return session


def test_replay_gives_the_same_mask_bit_for_bit(worked, tmp_path):
    path = save(worked, tmp_path / "case")
    result = replay_steps(path, worked.volume)
    assert result.differences == ()
    assert result.computed == 5
    assert result.taken == 2
    np.testing.assert_array_equal(result.session.labels, worked.labels)
    assert result.session.state == worked.state


def test_replay_really_asks_the_engine_again(worked, tmp_path, monkeypatch, flood):
    path = save(worked, tmp_path / "case")
    original = flood.predict

    def shifted(self, volume, request, monitor):
        answer = original(self, volume, request, monitor)
        mask = answer.mask.copy()
        mask[0, 0, 0] = not mask[0, 0, 0]
        return type(answer)(answer.box, mask)

    monkeypatch.setattr(flood, "predict", shifted)
    result = replay_steps(path, worked.volume)
    assert result.differences
    assert "step 2, click (left): 1 voxels" in result.differences
    counts = {o.id: o.voxels for o in result.session.objects if o.voxels}
    assert counts == result.session.count_voxels()
    with pytest.raises(SessionError, match="differs from the saved masks: step 2"):
        replay(path, volume=worked.volume)


def test_an_answer_whose_neighbours_changed_meanwhile_is_taken_from_the_file(session, at, tmp_path):
    session.add_object("a")
    session.add_object("b")
    session.choice = EngineChoice("flood", avoid_neighbours=True)
    session.set_prompts(PromptSet().with_click(at(5, 8, 6)))
    request = session.request()
    paint(session, Box((3, 4, 3), (5, 6, 5)), 1)  # while the engine runs
    session.apply(run_once("flood", session.volume, request), request)
    result = replay_steps(save(session, tmp_path / "s"), session.volume)
    assert (result.computed, result.differences) == (0, ())
    np.testing.assert_array_equal(result.session.labels, session.labels)


def test_replay_reports_steps_and_can_be_cancelled(worked, tmp_path):
    path = save(worked, tmp_path / "case")
    seen = []
    replay(path, volume=worked.volume, monitor=Monitor(seen.append, interval=0.0))
    assert seen[0].total == len(worked.history.past)
    assert seen[-1].done == seen[-1].total
    monitor = Monitor(lambda progress: monitor.cancel(), interval=0.0)
    with pytest.raises(Cancelled):
        replay(path, volume=worked.volume, monitor=monitor)


def test_replay_without_an_image_file_says_so(worked, tmp_path):
    path = save(worked, tmp_path / "case")
    with pytest.raises(ReadError, match="came from no file; give its image"):
        replay(path)


def test_replay_of_a_file_that_is_no_session_says_so(tmp_path):
    path = tmp_path / "x.omlsession"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other", "")
    with pytest.raises(ReadError, match="not a session file"):
        replay(path)


def test_replay_releases_the_engine(worked, tmp_path, flood):
    path = save(worked, tmp_path / "case")
    replay(path, volume=worked.volume)
    assert flood.loaded == flood.unloaded


@pytest.mark.parametrize("images", [1, 3])
def test_the_image_is_found_again_beside_the_session(flood, at, tmp_path, images):
    """The third volume of a 4D file is recognised by its content."""
    import nibabel

    from napari_openmedlab.io.api import list_images, read
    from napari_openmedlab.session.session import Session

    data = np.random.default_rng(0).integers(0, 50, (16, 14, 12, images)).astype(np.int16)
    data[4:9, 4:9, 4:9] = 400
    image = nibabel.Nifti1Image(data if images > 1 else data[..., 0], np.diag([-1, 2, 3, 1.0]))
    nibabel.save(image, tmp_path / "ct.nii.gz")
    choices = list_images(tmp_path / "ct.nii.gz")
    assert len(choices) == images
    picked = choices[-1].key if images > 1 else None
    session = Session(read(tmp_path / "ct.nii.gz", series=picked))
    session.choice = EngineChoice("flood")
    session.add_object("cube")
    click(session, session.volume.geometry.to_world(np.argwhere(session.volume.array == 400)[0]))
    assert session.active.voxels == 125
    path = save(session, tmp_path / "sub" / "s")
    again = replay(path, tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(again.labels, session.labels)
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), data[..., -1] == 400)
    np.testing.assert_array_equal(mask.affine, image.affine)


def test_an_image_that_has_moved_away_is_named(flood, tmp_path):
    import nibabel

    from napari_openmedlab.io.api import read
    from napari_openmedlab.session.session import Session

    where = tmp_path / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), where)
    path = save(Session(read(where)), tmp_path / "s")
    where.unlink()
    with pytest.raises(ReadError, match=r"no longer at .*ct\.nii\.gz; give its new place"):
        replay(path)
