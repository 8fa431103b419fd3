from __future__ import annotations

import errno
import os
import tempfile

import pytest

from napari_openmedlab.errors import WriteError
from napari_openmedlab.io.atomic import resolved_target, staging


def fail_with(code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return fail


def put(folder, error=None):
    """Write a.nii through a staging folder, perhaps failing in the middle."""
    with staging(folder) as temporary:
        (temporary / "a.nii").write_bytes(b"new")
        if error is not None:
            raise error


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_files_appear_together_and_nothing_else_stays(tmp_path):
    with staging(tmp_path) as folder:
        (folder / "a.raw").write_bytes(b"data")
        (folder / "a.mhd").write_bytes(b"header")
        assert folder.parent == tmp_path
    assert content(tmp_path) == {"a.raw": b"data", "a.mhd": b"header"}


def test_a_failure_in_the_block_leaves_the_old_file(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        put(tmp_path, ZeroDivisionError())
    assert content(tmp_path) == {"a.nii": b"old"}


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "no permission"),
        (errno.EIO, "failed"),
    ],
)
@pytest.mark.parametrize("step", ["mkdtemp", "fsync", "replace", "write"])
def test_whatever_the_disk_refuses_is_a_sentence_and_leaves_the_old_file(
    tmp_path, monkeypatch, code, sentence, step
):
    (tmp_path / "a.nii").write_bytes(b"old")
    owner = {"mkdtemp": tempfile, "fsync": os, "replace": os}.get(step)
    if owner is not None:
        monkeypatch.setattr(owner, step, fail_with(code))
    with pytest.raises(WriteError, match=sentence):
        put(tmp_path, OSError(code, "no") if step == "write" else None)
    assert content(tmp_path) == {"a.nii": b"old"}


def test_headers_come_after_the_data_they_point_at(tmp_path, monkeypatch):
    order = []
    replace = os.replace

    def watched(source, target):
        order.append(source.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    with staging(tmp_path) as folder:
        for name in ("a.json", "a.mhd", "a.zraw"):
            (folder / name).write_bytes(b"")
    assert order == ["a.zraw", "a.json", "a.mhd"]


def test_a_link_keeps_pointing_and_its_file_is_replaced(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "a.nii").write_bytes(b"old")
    try:
        (tmp_path / "a.nii").symlink_to(real / "a.nii")
    except OSError:
        pytest.skip("this system grants no symbolic links")
    assert resolved_target(tmp_path / "a.nii") == (real / "a.nii").resolve()


def test_a_write_protected_file_is_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.nii"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda *a: False)
    with pytest.raises(WriteError, match="write-protected"):
        resolved_target(path)
