import json
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import LabelPatch
from napari_openmedlab.session import autosave as module
from napari_openmedlab.session.autosave import Autosave, discard, find_recoverable
from napari_openmedlab.session.store import load

WAIT = 20.0


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    folder = tmp_path / "user data"
    monkeypatch.setattr(module, "default_folder", lambda: folder)
    return folder


def paint(session, value=1):
    box = Box((0, 0, 0), (3, 3, 3))
    before = session.labels[box.slices].copy()
    session.labels[box.slices] = value
    session.apply_edit(LabelPatch(box, before, session.labels[box.slices].copy()))


def until(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _leave(saver):
    """Make an autosave look as a killed process leaves it."""
    saver.flush()
    lock = saver.path.with_name(saver.path.name + ".lock")
    owner = json.loads(lock.read_text())
    lock.write_text(json.dumps({**owner, "began": owner["began"] - 1000.0}))


def test_every_change_is_written_soon_without_being_asked(session, tmp_path):
    saver = Autosave(session, tmp_path, delay=0.05)
    path = saver.start()
    assert not path.exists()
    session.add_object()
    paint(session)
    until(path.exists)
    until(lambda: load(path, session.volume).labels.any())
    session.undo()
    until(lambda: not load(path, session.volume).labels.any())
    saver.stop()


def test_a_live_viewers_autosave_is_not_offered_and_a_dead_ones_is(session, tmp_path):
    saver = Autosave(session, tmp_path, delay=0.05)
    saver.start()
    session.add_object("liver")
    saver.flush()
    assert find_recoverable(tmp_path) == []
    _leave(saver)
    (entry,) = find_recoverable(tmp_path)
    assert (entry.image_name, entry.objects) == ("two blocks", 1)
    assert load(entry.path, session.volume).active.name == "liver"
    saver.stop()


def test_closing_keeps_work_that_was_not_discarded(session, tmp_path):
    saver = Autosave(session, tmp_path, delay=60.0)
    saver.start()
    session.add_object()
    saver.stop()
    assert len(find_recoverable(tmp_path)) == 1
    session.add_object()  # after the stop nothing is written any more
    assert find_recoverable(tmp_path)[0].objects == 1
    discard(find_recoverable(tmp_path)[0].path)
    assert list(tmp_path.iterdir()) == []


def test_discard_leaves_nothing(session, tmp_path):
    saver = Autosave(session, tmp_path, delay=0.05)
    saver.start()
    session.add_object()
    saver.flush()
    saver.discard()
    assert list(tmp_path.iterdir()) == []
    assert not any(t.name == "openmedlab-autosave" for t in threading.enumerate())


def test_two_viewers_on_one_folder_keep_their_own_files(session, volume, flood, tmp_path):
    from napari_openmedlab.session.session import Session

    other = Session(volume)
    savers = [Autosave(s, tmp_path, delay=0.05) for s in (session, other)]
    paths = {saver.start() for saver in savers}
    assert len(paths) == 2
    for saver in savers:
        saver.discard()


def test_a_read_only_folder_falls_back_to_the_users_data_and_says_so(
    session, tmp_path, data_folder
):
    blocked = tmp_path / "file"
    blocked.touch()  # a folder can't be made here, whoever asks (root may write anywhere)
    told = []
    saver = Autosave(session, blocked / "sub", delay=0.05, on_notice=told.append)
    path = saver.start()
    assert path.parent == data_folder
    assert "can't be written to; work is autosaved in" in told[0]
    session.add_object()
    saver.stop()
    assert len(find_recoverable(data_folder)) == 1


def test_a_full_disk_is_said_once_and_work_goes_on(session, tmp_path, monkeypatch):
    told = []
    saver = Autosave(session, tmp_path, delay=60.0, on_notice=told.append)
    saver.start()

    def full(*_args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for _ in range(3):
            session.add_object()
            saver.flush()
    assert len(told) == 1
    assert "disk is full" in told[0]
    session.add_object()
    saver.flush()
    assert len(load(saver.path, session.volume).objects) == 4
    saver.stop()


def test_a_write_that_failed_is_tried_again_without_a_further_change(
    session, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.05)
    real, calls = module.write_snapshot, []

    def held_open(*args):
        calls.append(args)
        if len(calls) < 3:
            raise PermissionError(13, "another program holds the file")
        return real(*args)

    monkeypatch.setattr(module, "write_snapshot", held_open)
    saver = Autosave(session, tmp_path, delay=0.02)
    path = saver.start()
    session.add_object("kept")
    until(path.exists)
    assert load(path, session.volume).active.name == "kept"
    saver.discard()


def test_locks_of_the_dead_that_wrote_nothing_are_swept(session, tmp_path):
    saver = Autosave(session, tmp_path)
    saver.start()
    _leave(saver)
    other = Autosave(session, tmp_path)
    kept = other.start()
    assert find_recoverable(tmp_path) == []
    assert [p.name for p in tmp_path.iterdir()] == [kept.name + ".lock"]
    saver.discard()
    other.discard()


def test_damaged_autosaves_are_passed_over(session, tmp_path):
    (tmp_path / "x.autosave.omlsession").write_bytes(b"PK nonsense")
    assert find_recoverable(tmp_path) == []
    assert find_recoverable(tmp_path / "missing") == []


def test_another_machines_fresh_autosave_counts_as_alive(session, tmp_path):
    saver = Autosave(session, tmp_path, delay=60.0)
    path = saver.start()
    session.add_object()
    saver.flush()
    lock = path.with_name(path.name + ".lock")
    lock.write_text(json.dumps({"pid": 1, "began": 0.0, "host": "another machine"}))
    assert find_recoverable(tmp_path) == []
    old = time.time() - 25 * 3600
    os.utime(path, (old, old))
    assert len(find_recoverable(tmp_path)) == 1
    saver.discard()


def test_changes_during_a_write_never_tear_the_file(session, tmp_path):
    saver = Autosave(session, tmp_path, delay=0.001)
    path = saver.start()
    session.add_object()
    rng = np.random.default_rng(0)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        paint(session, int(rng.integers(0, 5)))
        if rng.random() < 0.3:
            session.undo()
        if path.exists():
            load(path, session.volume)  # checks counts against labels
    saver.stop()
    np.testing.assert_array_equal(load(path, session.volume).labels, session.labels)


def test_work_survives_a_hard_kill(tmp_path):
    script = textwrap.dedent(
        """
        import sys, time
        import numpy as np
        from pathlib import Path
        from napari_openmedlab.geometry.boxes import Box
        from napari_openmedlab.geometry.labels import LabelPatch
        from napari_openmedlab.geometry.volume import Geometry, Volume
        from napari_openmedlab.session.autosave import Autosave
        from napari_openmedlab.session.session import Session

        shape = (8, 9, 10)
        session = Session(Volume(np.zeros(shape), Geometry.from_spacing(shape, (1, 1, 1))))
        Autosave(session, Path(sys.argv[1]), delay=0.02).start()
        session.add_object("tumour")
        number = 0
        while True:
            box = Box((number % 8, 0, 0), (number % 8 + 1, 9, 10))
            before = session.labels[box.slices].copy()
            session.labels[box.slices] = 1
            session.apply_edit(LabelPatch(box, before, session.labels[box.slices].copy()))
            number += 1
            if number == 8:
                print("painted", flush=True)
            time.sleep(0.02 if number < 8 else 0.2)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline().strip() == "painted"
        time.sleep(1.0)
        assert find_recoverable(tmp_path) == []  # it is alive
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    (entry,) = find_recoverable(tmp_path)
    found = load(entry.path)
    assert found.active.name == "tumour"
    assert found.active.voxels == 8 * 9 * 10
