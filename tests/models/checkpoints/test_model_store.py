"""The model folder: import once, check, load, remove; several programs; damage; settings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_files import save_medlam, store_with_medlam

from napari_openmedlab.errors import (
    Cancelled,
    CheckpointError,
    ReadError,
    SettingsError,
    WriteError,
)
from napari_openmedlab.models.catalogue import get_checkpoint
from napari_openmedlab.models.checkpoints import disk, moving, store
from napari_openmedlab.models.checkpoints.locks import locked
from napari_openmedlab.models.checkpoints.records import Record, record_from_json, slug
from napari_openmedlab.models.checkpoints.settings import (
    FOLDER_VARIABLE,
    ModelSettings,
    folder_source,
    read_settings,
    settings_file,
    write_settings,
)
from napari_openmedlab.models.checkpoints.store import ModelStore, default_folder
from napari_openmedlab.models.contract import Monitor


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The published file."""
    return save_medlam(tmp_path_factory.mktemp("published") / "medlam.pth")


@pytest.fixture(scope="module")
def other_source(tmp_path_factory) -> Path:
    """The same network with other weights."""
    return save_medlam(tmp_path_factory.mktemp("published") / "tuned.pth", "other")


@pytest.fixture(scope="module")
def _made_once(tmp_path_factory) -> Path:
    return store_with_medlam(tmp_path_factory.mktemp("made") / "once").folder


@pytest.fixture
def full(_made_once, tmp_path) -> ModelStore:
    """A folder of one's own with MedLAM in it."""
    shutil.copytree(_made_once, tmp_path / "models")
    return ModelStore(tmp_path / "models")


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)


def damage(path: Path, *, keep_time: bool = False) -> None:
    """Turn one bit in the middle of a file; its size stays."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)[0]
        file.seek(before.st_size // 2)
        file.write(bytes([byte ^ 1]))
    later = before.st_mtime_ns if keep_time else before.st_mtime_ns + 10**10
    os.utime(path, ns=(later, later))


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# -- import and load ---------------------------------------------------------------------------


def test_an_import_keeps_weights_and_record_and_leaves_the_source(source, tmp_path):
    before = source.read_bytes(), source.stat().st_mtime_ns
    made = ModelStore(tmp_path / "deep" / "models")
    record = made.import_file(source)
    assert (record.name, record.network, record.checkpoint) == ("medlam", "medlam", "medlam")
    assert record.licence == get_checkpoint("medlam").weights_licence
    assert record.source_sha256 == disk.hash_file(source)
    path = made.path("medlam")
    assert record.sha256 == disk.hash_file(path)
    assert record.size == path.stat().st_size
    assert visible(made.folder) == [path.name, "medlam.json"]
    assert {p.name for p in made.folder.iterdir()} == {path.name, "medlam.json", ".lock"}
    assert made.get("medlam") == record
    assert made.records() == made.models_of("medlam") == (record,)
    assert made.models_of("fmunet") == ()
    assert (source.read_bytes(), source.stat().st_mtime_ns) == before


def test_loading_gives_the_published_weights_exactly(full, source):
    network = full.load("medlam")
    published = torch.load(source, weights_only=True)["model_state_dict"]
    found = network.state_dict()
    assert list(found) == list(published)
    assert all(torch.equal(found[key], published[key]) for key in published)
    assert not network.training


def test_a_second_load_reads_the_file_only_where_it_must(full, monkeypatch):
    monkeypatch.setattr(store, "hash_file", None)  # calling it would fail
    assert full.load("medlam") is not None


def test_another_store_object_sees_the_model(full):
    assert ModelStore(full.folder).get("medlam") == full.get("medlam")


def test_the_same_file_is_not_converted_twice(full, source, monkeypatch):
    from napari_openmedlab.models.checkpoints import loading

    monkeypatch.setattr(loading, "convert", None)  # calling it would fail
    assert full.import_file(source, as_="medlam") == full.get("medlam")


def test_a_name_that_is_taken_is_kept_unless_told_otherwise(full, other_source):
    before = full.get("medlam")
    with pytest.raises(CheckpointError, match="already is a model 'medlam'"):
        full.import_file(other_source, as_="medlam")
    with pytest.raises(CheckpointError, match="already is a model 'medlam'"):
        full.import_file(other_source, "medlam")
    assert full.get("medlam") == before
    record = full.import_file(other_source, as_="medlam", replace_old=True)
    assert full.get("medlam") == record
    assert record.sha256 != before.sha256
    assert visible(full.folder) == [record.file, "medlam.json"]


def test_users_own_weights_get_the_name_of_their_file(full, other_source):
    record = full.import_file(other_source)
    assert (record.name, record.checkpoint, record.licence) == ("tuned", "", "")
    assert [entry.record.name for entry in full.entries()] == ["medlam", "tuned"]


def test_a_network_may_be_named_and_must_fit(full, other_source, tmp_path):
    with pytest.raises(CheckpointError, match="not of fmunet"):
        full.import_file(other_source, as_="fmunet")
    with pytest.raises(CheckpointError, match="did you mean medlam"):
        full.import_file(other_source, as_="medlm")
    assert [entry.record.name for entry in full.entries()] == ["medlam"]


def test_a_published_hash_is_checked(full, other_source, monkeypatch):
    spec = replace(get_checkpoint("medlam"), sha256="0" * 64)
    monkeypatch.setattr(store, "meaning", lambda _as: (spec, "medlam"))
    with pytest.raises(CheckpointError, match="not the published MedLAM"):
        full.import_file(other_source, as_="medlam", replace_old=True)
    assert full.get("medlam").source_name == "medlam.pth"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\models\\My Net", "c-models-my-net"),
        ("Ärzte", "rzte"),
        ("...", "model"),
        ("CON", "model-con"),
        ("x" * 200, "x" * 60),
    ],
)
def test_names_are_never_paths(given, name):
    assert slug(given) == name
    assert slug(name) == name


def test_an_import_under_a_hostile_name_stays_in_the_folder(full, other_source, tmp_path):
    record = full.import_file(other_source, name="../../out")
    assert record.name == "out"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["models"]


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"PK\x03\x04 half"])
def test_what_is_no_checkpoint_leaves_nothing_behind(tmp_path, content):
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(content)
    made = ModelStore(tmp_path / "models")
    with pytest.raises(CheckpointError, match=r"wrong\.pth"):
        made.import_file(wrong)
    assert visible(made.folder) == []
    assert not list(made.folder.glob(".openmedlab*"))


def test_a_cancelled_import_leaves_nothing_behind(source, tmp_path):
    made = ModelStore(tmp_path)
    monitor = Monitor(interval=0)
    monitor._on_progress = lambda report: monitor.cancel() if report.text == "writing" else None
    with pytest.raises(Cancelled):
        made.import_file(source, monitor=monitor)
    assert made.entries() == ()
    assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == []


def test_a_disk_that_fills_up_leaves_nothing_behind(source, tmp_path, monkeypatch):
    import errno

    from napari_openmedlab.models.checkpoints import loading

    def full_disk(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loading, "write_weights", full_disk)
    made = ModelStore(tmp_path)
    with pytest.raises(WriteError, match="disk is full"):
        made.import_file(source)
    assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == []


def test_too_little_space_is_noticed_before_writing(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _p: shutil._ntuple_diskusage(9**9, 9**9, 10))
    with pytest.raises(WriteError, match="too full"):
        ModelStore(tmp_path).import_file(source)


def test_a_folder_that_cannot_be_made_is_a_sentence(source, tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(WriteError, match="file"):
        ModelStore(tmp_path / "file" / "models").import_file(source)


def test_without_torch_the_user_is_told_what_to_install(full, source, monkeypatch):
    monkeypatch.setattr(store, "find_spec", lambda name: None if name == "torch" else name)
    with pytest.raises(CheckpointError, match=r"needs torch: pip install"):
        full.import_file(source, "again")
    with pytest.raises(CheckpointError, match=r"needs torch: pip install"):
        full.load("medlam")
    assert full.verify("medlam")  # hashes need none


# -- damage ------------------------------------------------------------------------------------


def test_verify_finds_a_single_wrong_bit_and_the_model_is_not_loaded_any_more(full):
    damage(full.path("medlam"), keep_time=True)
    assert full.entry("medlam").state == "ready"  # a quick look can't see it
    with pytest.raises(CheckpointError, match="damaged"):
        full.verify("medlam")
    assert full.entry("medlam").state == "damaged"
    with pytest.raises(CheckpointError, match="damaged"):
        full.load("medlam")
    assert full.records() == ()


def test_load_reads_a_file_through_that_was_written_to(full):
    damage(full.path("medlam"))
    with pytest.raises(CheckpointError, match="damaged"):
        full.load("medlam")
    assert full.entry("medlam").state == "damaged"


def test_a_copied_folder_is_read_through_once(full, monkeypatch):
    path = full.path("medlam")
    os.utime(path, (1, 1))
    asked = []
    real = store.hash_file
    monkeypatch.setattr(store, "hash_file", lambda *a: asked.append(a) or real(*a))
    full.load("medlam")
    full.load("medlam")
    assert len(asked) == 1


def test_verify_clears_a_model_that_is_sound_again(full):
    path = full.path("medlam")
    damage(path)
    with pytest.raises(CheckpointError):
        full.verify("medlam")
    damage(path)  # turns the bit back
    full.verify("medlam")
    assert full.entry("medlam").state == "ready"


def test_importing_again_repairs(full, source):
    damage(full.path("medlam"))
    with pytest.raises(CheckpointError):
        full.verify("medlam")
    full.import_file(source)
    full.verify("medlam")
    assert full.load("medlam") is not None


@pytest.mark.parametrize("size", [0, 1000])
def test_cut_off_weights_are_listed_as_damaged(full, size):
    os.truncate(full.path("medlam"), size)
    entry = full.entry("medlam")
    assert entry.state == "damaged"
    assert "Import the published file again" in entry.problem
    with pytest.raises(CheckpointError, match="damaged"):
        full.get("medlam")


def test_missing_weights_are_listed_as_missing(full, source):
    full.path("medlam").unlink()
    (entry,) = full.entries()
    assert (entry.record.name, entry.state) == ("medlam", "file missing")
    with pytest.raises(CheckpointError, match="are missing"):
        full.load("medlam")
    with pytest.raises(CheckpointError, match="are missing"):
        full.verify("medlam")
    full.import_file(source)
    assert full.get("medlam")


BROKEN = {
    "empty": "",
    "no JSON": "{",
    "a list": "[]",
    "deep": "[" * 100_000,
    "nothing in it": "{}",
    "newer": '{"format": 99}',
    "half": '{"format": 1, "name": "medlam", "network": "medlam"}',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_record_is_listed_and_can_be_removed(full, text):
    (full.folder / "medlam.json").write_text(text, encoding="utf-8")
    (entry,) = full.entries()
    assert (entry.record.name, entry.state) == ("medlam", "damaged")
    assert "Remove medlam" in entry.problem
    assert full.records() == ()
    with pytest.raises(CheckpointError, match="medlam"):
        full.load("medlam")
    full.remove("medlam")
    assert visible(full.folder) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("sha256", "../../x"), ("size", -1), ("size", True), ("network", 3), ("variant", []),
     ("name", "../x"), ("name", "other"), ("notes", "text"), ("mtime_ns", 1.5)],
)  # fmt: skip
def test_a_record_that_was_tampered_with_is_not_believed(full, key, value):
    found = full.get("medlam").as_json()
    (full.folder / "medlam.json").write_text(json.dumps({**found, key: value}), encoding="utf-8")
    assert full.entry("medlam").state == "damaged"


def test_a_record_of_another_variant_does_not_load(full):
    found = {**full.get("medlam").as_json(), "variant": {"in_channels": 4}}
    (full.folder / "medlam.json").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(CheckpointError, match="medlam"):
        full.load("medlam")


def test_weights_without_a_record_are_listed(full):
    (full.folder / "medlam.json").unlink()
    (entry,) = full.entries()
    assert entry.state == "damaged"
    assert "no record" in entry.problem


def test_other_files_in_the_folder_are_left_alone(full):
    for name in ("notes.txt", "My Weights.json", "x.safetensors"):
        (full.folder / name).write_text("mine", encoding="utf-8")
    assert [entry.record.name for entry in full.entries()] == ["medlam"]
    full.remove("medlam")
    assert visible(full.folder) == ["My Weights.json", "notes.txt", "x.safetensors"]


def test_records_survive_their_way_through_json():
    record = Record("a", "medlam", {"n": 3, "s": [[2, 2, 2], [1, 1, 2]]}, sha256="0" * 64, size=3)
    record = replace(record, notes=("one", "two"))
    found = record_from_json(json.loads(json.dumps(record.as_json())), Path("a.json"))
    assert found == record


# -- remove and ask ----------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses, with a sentence")
def test_a_model_may_be_removed_while_it_is_loaded(full):
    network = full.load("medlam")
    expected = {k: v.clone() for k, v in list(full.load("medlam").state_dict().items())[:3]}
    full.remove("medlam")
    assert full.entries() == ()
    assert all(torch.equal(network.state_dict()[key], value) for key, value in expected.items())


def test_a_file_in_use_is_a_sentence_and_nothing_is_lost(full, monkeypatch):
    def refused(_self, missing_ok=False):
        raise PermissionError(13, "in use")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refused)
        with pytest.raises(WriteError, match="Close napari"):
            full.remove("medlam")
    assert full.get("medlam")


def test_unknown_names_are_answered_with_help(full, tmp_path):
    with pytest.raises(CheckpointError, match="there are: medlam"):
        full.get("medlm")
    with pytest.raises(CheckpointError, match="models download stu-net-b"):
        full.get("stu-net-b")
    with pytest.raises(CheckpointError, match="the folder is empty"):
        ModelStore(tmp_path / "none").get("mine")
    for hostile in ("../models/medlam", "", ".lock", "medlam.json"):
        with pytest.raises(CheckpointError):
            full.remove(hostile)
    assert full.get("medlam")


# -- several at once ---------------------------------------------------------------------------

_IMPORT = """
import sys, time
from napari_openmedlab.models.checkpoints.store import ModelStore
import torch
store = ModelStore(sys.argv[1])
while time.time() < float(sys.argv[3]): pass
for _ in range(4):
    store.import_file(sys.argv[2], name="shared", replace_old=True)
"""


def test_programs_that_import_at_once_leave_one_sound_model(source, other_source, tmp_path):
    start = str(time.time() + 4)
    arguments = [[str(tmp_path / "models"), str(file), start] for file in (source, other_source)]
    running = [
        subprocess.Popen([sys.executable, "-c", _IMPORT, *each], stderr=subprocess.PIPE, text=True)
        for each in (*arguments, arguments[0])
    ]
    said = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    found = ModelStore(tmp_path / "models")
    record = found.get("shared")
    found.verify("shared")
    assert found.load("shared") is not None
    assert record.source_name in ("medlam.pth", "tuned.pth")
    assert visible(found.folder) == sorted([record.file, "shared.json"])
    assert not list(found.folder.glob(".openmedlab*"))


def test_threads_that_import_at_once_leave_one_sound_model(source, other_source, tmp_path):
    found = ModelStore(tmp_path)
    failed = []

    def work(file: Path) -> None:
        try:
            found.import_file(file, "shared", replace_old=True)
        except Exception as error:  # noqa: BLE001  (the test's thread boundary)
            failed.append(error)

    threads = [threading.Thread(target=work, args=(f,)) for f in (source, other_source) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    found.verify("shared")
    assert visible(tmp_path) == sorted([found.get("shared").file, "shared.json"])


_HOLD = """
import sys, time, pathlib
from napari_openmedlab.models.checkpoints.locks import locked
with locked(pathlib.Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_keeps_others_out_and_ends_with_its_program(full):
    lock = full.folder / ".lock"
    with locked(lock, "busy"), pytest.raises(WriteError, match="busy"), locked(lock, "busy"):
        pass
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(lock)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline()
    with pytest.raises(WriteError, match="busy"), locked(lock, "busy"):
        pass
    killer = threading.Timer(1.0, holder.kill)
    killer.start()
    began = time.monotonic()
    full.remove("medlam")  # waits until the other program is gone
    assert time.monotonic() - began > 0.5
    killer.join()
    holder.wait()
    holder.stdout.close()
    assert full.entries() == ()


def test_what_a_crash_left_is_swept_and_what_runs_is_not(full, other_source):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    left = full.folder / f".openmedlab-work-{disk._host()}-{gone.stdout.strip()}-abc"
    mine = full.folder / f".openmedlab-work-{disk._host()}-{os.getpid()}-abc"
    far = full.folder / ".openmedlab-work-otherhost-1-abc"
    old = full.folder / ".openmedlab-work-oldhost-1-abc"
    stale = full.folder / ".medlam.json.abc.tmp"
    for folder in (left, mine, far, old):
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"half")
    stale.write_text("{", encoding="utf-8")
    for path in (old, stale):
        os.utime(path, (1, 1))
    full.import_file(other_source)
    assert [path.exists() for path in (left, mine, far, old, stale)] == [
        False, True, True, False, False,
    ]  # fmt: skip


def test_a_read_only_folder_can_be_used(full):
    if os.name != "posix" or os.geteuid() == 0:
        pytest.skip("nothing is read-only for this user")
    full.folder.chmod(0o555)
    try:
        assert full.load("medlam") is not None
        assert full.verify("medlam")
        with pytest.raises(WriteError, match="no permission"):
            full.remove("medlam")
    finally:
        full.folder.chmod(0o755)


def test_a_stamp_that_cannot_be_written_does_not_stop_a_load(full, monkeypatch):
    os.utime(full.path("medlam"), (1, 1))

    def refused(*_args):
        raise WriteError("read-only")

    monkeypatch.setattr(store, "write_json", refused)
    assert full.load("medlam") is not None


# -- settings and moving -----------------------------------------------------------------------


def test_the_folder_comes_from_environment_settings_or_default(tmp_path, monkeypatch):
    assert folder_source() == "default"
    assert default_folder().parts[-2:] == ("napari-openmedlab", "models")
    write_settings(ModelSettings(folder=str(tmp_path / "chosen")))
    assert (folder_source(), default_folder()) == ("settings", tmp_path / "chosen")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "given"))
    assert (folder_source(), default_folder()) == ("environment", tmp_path / "given")
    assert ModelStore().folder == tmp_path / "given"


def test_settings_are_kept():
    chosen = ModelSettings(mirror="https://mirror.org/hf", proxy="http://user:pass@proxy:8080")
    write_settings(chosen)
    assert read_settings() == chosen


def test_a_relative_folder_is_refused():
    with pytest.raises(SettingsError, match="full path"):
        ModelSettings(folder="models")


@pytest.mark.parametrize("text", ["{", "[]", '{"folder": 3}', '{"proxy": "nonsense"}'])
def test_damaged_settings_are_a_sentence(text):
    path = settings_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ReadError, match=r"models\.json"):
        read_settings()


def test_settings_of_a_newer_version_are_read():
    path = settings_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"mirror": "https://m.org", "colour": "red"}', encoding="utf-8")
    assert read_settings() == ModelSettings(mirror="https://m.org")


@pytest.mark.parametrize("links", [True, False])
def test_models_move_to_another_folder(full, tmp_path, monkeypatch, links):
    def no_links(*_args):
        raise OSError(18, "another disk")

    if not links:
        monkeypatch.setattr(moving.os, "link", no_links)
    before = full.get("medlam")
    target = tmp_path / "elsewhere"
    (moved,) = moving.move_models(full, target)
    assert replace(moved, mtime_ns=0) == replace(before, mtime_ns=0)
    assert full.entries() == ()
    ModelStore(target).verify("medlam")
    assert ModelStore(target).load("medlam") is not None
    assert moving.move_models(ModelStore(target), target) == ()


def test_a_damaged_model_is_not_moved_to_another_disk(full, tmp_path, monkeypatch):
    def no_links(*_args):
        raise OSError(18, "another disk")

    monkeypatch.setattr(moving.os, "link", no_links)
    damage(full.path("medlam"), keep_time=True)
    with pytest.raises(CheckpointError, match="damaged"):
        moving.move_models(full, tmp_path / "elsewhere")
    assert ModelStore(tmp_path / "elsewhere").entries() == ()
    assert full.path("medlam").exists()


def test_a_cancelled_move_loses_nothing(full, tmp_path):
    monitor = Monitor()
    monitor.cancel()
    with pytest.raises(Cancelled):
        moving.move_models(full, tmp_path / "elsewhere", monitor)
    assert full.verify("medlam")


def test_importing_the_store_loads_no_torch():
    package = "napari_openmedlab.models.checkpoints"
    code = (
        f"import sys, {package}.store as s, {package}.download, {package}.bundle, {package}.moving;"
        "s.ModelStore('nowhere').entries(); assert not {'torch', 'requests'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_sizes_in_words():
    sizes = [0, 999, 1000, 999_499, 60_276_064, 402_000_000, 5.83e9]
    words = ["0 bytes", "999 bytes", "1 kB", "999 kB", "60.3 MB", "402 MB", "5.83 GB"]
    assert [disk.size_text(size) for size in sizes] == words
    assert disk.size_text(999_999) == "1 MB"
