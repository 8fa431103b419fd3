"""Bundles: what goes in comes out the same elsewhere, and nothing else does."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_files import save_medlam, store_with_medlam

from napari_openmedlab.errors import Cancelled, CheckpointError, WriteError
from napari_openmedlab.models.checkpoints import bundle, disk
from napari_openmedlab.models.checkpoints.bundle import contents, is_bundle, pack, unpack
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Monitor, Progress


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> ModelStore:
    """A folder with a published model and one of the user's own. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    made = store_with_medlam(folder / "once")
    made.import_file(save_medlam(folder / "tuned.pth", "other"))
    return made


@pytest.fixture(scope="module")
def packed(full, tmp_path_factory) -> Path:
    return pack(tmp_path_factory.mktemp("packed") / "models.zip", full)


@pytest.fixture
def offline(tmp_path) -> ModelStore:
    """The machine without a network."""
    return ModelStore(tmp_path / "offline")


def visible(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name != ".lock"] if folder.exists() else []


# -- there and back ----------------------------------------------------------------------------


def test_a_bundle_brings_all_models_to_another_machine(full, packed, offline):
    assert is_bundle(packed)
    reports: list[Progress] = []
    records = unpack(packed, offline, Monitor(reports.append, interval=0))
    assert [record.name for record in records] == ["medlam", "tuned"]
    total = sum(record.size for record in full.records())
    assert reports[-1].done == reports[-1].total == total
    for record in records:
        offline.verify(record.name)
        before = full.get(record.name)
        assert {**record.as_json(), "mtime_ns": 0} == {**before.as_json(), "mtime_ns": 0}
    mine, theirs = offline.load("tuned").state_dict(), full.load("tuned").state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert len(visible(offline.folder)) == 4


def test_a_bundle_tells_people_and_programs_what_is_in_it(packed):
    with zipfile.ZipFile(packed) as archive:
        assert all(m.compress_type == zipfile.ZIP_STORED for m in archive.infolist())
        index = json.loads(archive.read("bundle.json"))
        words = archive.read("README.txt").decode()
    by_name = {model["record"]["name"]: model for model in index["models"]}
    assert by_name["medlam"]["catalogue"]["id"] == "medlam"
    assert "CC BY-NC 4.0" in by_name["medlam"]["catalogue"]["weights_licence"]
    assert by_name["tuned"]["catalogue"] is None
    for said in ("CC BY-NC 4.0", "drive.google.com", by_name["tuned"]["record"]["sha256"]):
        assert said in words


def test_a_bundle_of_some_models(full, tmp_path):
    one = pack(tmp_path / "one.zip", full, ["tuned", "tuned"])
    assert [record.name for record in contents(one)] == ["tuned"]
    with pytest.raises(CheckpointError, match="there are"):
        pack(tmp_path / "none.zip", full, ["medlm"])
    assert visible(tmp_path) == ["one.zip"]


def test_what_is_here_already_is_left_as_it_is(packed, offline):
    unpack(packed, offline)
    before = {path: path.stat().st_mtime_ns for path in offline.folder.iterdir()}
    assert len(unpack(packed, offline)) == 2
    assert {path: path.stat().st_mtime_ns for path in offline.folder.iterdir()} == before


def test_a_damaged_model_is_repaired_by_a_bundle(packed, offline):
    unpack(packed, offline)
    os.truncate(offline.path("medlam"), 10)
    unpack(packed, offline)
    offline.verify("medlam")


def test_other_weights_of_the_same_name_stay_unless_told_otherwise(full, packed, offline, tmp_path):
    offline.import_file(save_medlam(tmp_path / "mine.pth", "third"), "tuned")
    before = offline.get("tuned")
    with pytest.raises(CheckpointError, match="already is a model 'tuned'"):
        unpack(packed, offline)
    assert offline.records() == (before,)
    unpack(packed, offline, replace_old=True)
    assert offline.get("tuned").sha256 == full.get("tuned").sha256


# -- packing that can't be ---------------------------------------------------------------------


def test_an_empty_folder_makes_no_bundle(tmp_path):
    with pytest.raises(CheckpointError, match="no model"):
        pack(tmp_path / "b.zip", ModelStore(tmp_path / "empty"))
    assert visible(tmp_path) == []


def test_a_damaged_model_is_not_packed_and_an_older_bundle_stays(full, tmp_path):
    shutil.copytree(full.folder, tmp_path / "copy")
    copy = ModelStore(tmp_path / "copy")
    with copy.path("tuned").open("r+b") as file:
        file.seek(10**6)
        file.write(b"damage")
    (tmp_path / "b.zip").write_bytes(b"older")
    with pytest.raises(CheckpointError, match="weights of tuned are damaged"):
        pack(tmp_path / "b.zip", copy)
    assert (tmp_path / "b.zip").read_bytes() == b"older"
    assert sorted(visible(tmp_path)) == ["b.zip", "copy"]


def test_a_cancelled_packing_leaves_nothing(full, tmp_path):
    monitor = Monitor(interval=0)
    monitor._on_progress = lambda report: monitor.cancel() if report.done > 10**7 else None
    with pytest.raises(Cancelled):
        pack(tmp_path / "b.zip", full, monitor=monitor)
    assert visible(tmp_path) == []


def test_a_full_disk_is_noticed_before_packing_and_unpacking(
    full, packed, offline, tmp_path, monkeypatch
):
    monkeypatch.setattr(disk, "_SPARE", 2**60)
    with pytest.raises(WriteError, match="too full"):
        pack(tmp_path / "b.zip", full)
    with pytest.raises(WriteError, match="too full"):
        unpack(packed, offline)
    assert visible(tmp_path) == []


def test_a_folder_that_is_not_there_is_a_sentence(full, tmp_path):
    with pytest.raises(WriteError, match="does not exist"):
        pack(tmp_path / "no" / "b.zip", full)


# -- bundles that are damaged, or made to do harm ----------------------------------------------


def test_a_cancelled_unpacking_leaves_nothing(packed, offline):
    monitor = Monitor(interval=0)
    monitor._on_progress = lambda report: monitor.cancel() if report.done > 7 * 10**7 else None
    with pytest.raises(Cancelled):
        unpack(packed, offline, monitor)
    assert visible(offline.folder) == []


@pytest.mark.parametrize("share", [0.3, 0.999])
def test_a_cut_off_bundle_is_recognised_and_refused(packed, offline, tmp_path, share):
    cut = tmp_path / "cut.zip"
    cut.write_bytes(packed.read_bytes()[: int(packed.stat().st_size * share)])
    assert is_bundle(cut)
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        unpack(cut, offline)
    assert visible(offline.folder) == []


def test_a_single_wrong_bit_is_found_and_nothing_is_imported(packed, offline, tmp_path):
    bad = tmp_path / "bad.zip"
    content = bytearray(packed.read_bytes())
    content[-2_000_000] ^= 1  # in the last model; the first is sound
    bad.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        unpack(bad, offline)
    assert visible(offline.folder) == []


def test_other_files_are_no_bundles(full, tmp_path):
    weights = save_medlam(tmp_path / "medlam.pth")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("weights.pth", b"x")
    for path in (weights, tmp_path / "other.zip", tmp_path, tmp_path / "absent.zip"):
        assert not is_bundle(path)
    with pytest.raises(CheckpointError, match="no bundle of models"):
        contents(tmp_path / "other.zip")
    with pytest.raises(CheckpointError, match="does not exist"):
        contents(tmp_path / "absent.zip")


SMALL = b"weights"
SHA256 = "9c41a2b4e5a9f7a3e8e3a3b2a7b2c5d4e5f60718293a4b5c6d7e8f9012345678"


def record(**changes) -> dict:
    return {
        "format": 1, "name": "small", "network": "medlam", "variant": {}, "sha256": SHA256,
        "size": len(SMALL), **changes,
    }  # fmt: skip


def write(path: Path, index: object, extra: Callable[[zipfile.ZipFile], None], **members) -> Path:
    """Write an archive that looks like a bundle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bundle.json", index if isinstance(index, str) else json.dumps(index))
        for name, content in members.items():
            archive.writestr(name, content)
        extra(archive)
    return path


def index_of(*records: dict) -> dict:
    return {"kind": bundle._KIND, "format": 1, "models": [{"record": r} for r in records]}


def add(name: str, **attributes) -> Callable[[zipfile.ZipFile], None]:
    def extra(archive: zipfile.ZipFile) -> None:
        member = zipfile.ZipInfo(name)
        for key, value in attributes.items():
            setattr(member, key, value)
        archive.writestr(member, SMALL)

    return extra


WEIGHTS = f"small.{SHA256[:12]}.safetensors"
LINK = (stat.S_IFLNK | 0o777) << 16

HARMFUL = {
    "up": (index_of(record()), add("../evil.json"), "outside"),
    "absolute": (index_of(record()), add("/tmp/evil.json"), "outside"),
    "windows": (index_of(record()), add("..\\evil.json"), "outside"),
    "drive": (index_of(record()), add("C:evil"), "outside"),
    "inside a folder": (index_of(record()), add("a/b.json"), "outside"),
    "link": (index_of(record()), add(WEIGHTS, external_attr=LINK), "link"),
    "compressed": (
        index_of(record()), add(WEIGHTS, compress_type=zipfile.ZIP_DEFLATED), "compressed"
    ),
    "surprise": (index_of(record()), add("run_me.py"), "which no bundle does"),
    "hostile name": (index_of(record(name="../../x")), add(WEIGHTS), "name can't be right"),
    "hostile hash": (index_of(record(sha256="../../x")), add(WEIGHTS), "sha256 can't be right"),
    "too big": (index_of(record(size=10**15)), add(WEIGHTS), "not complete"),
    "missing": (index_of(record()), lambda _archive: None, "missing or not complete"),
    "wrong hash": (index_of(record()), add(WEIGHTS), "hash is not the recorded one"),
    "twice": (index_of(record(), record()), add(WEIGHTS), "one twice"),
    "nothing": (index_of(), add(WEIGHTS), "lists no models"),
    "no list": ({"kind": bundle._KIND, "format": 1}, add(WEIGHTS), "lists no models"),
    "no record": (
        {"kind": bundle._KIND, "format": 1, "models": [{}]}, add(WEIGHTS), "lists no models"
    ),
    "newer": ({"kind": bundle._KIND, "format": 2}, add(WEIGHTS), "newer version"),
    "other kind": ({"kind": "recipes"}, add(WEIGHTS), "not that of a bundle"),
    "no JSON": ("{", add(WEIGHTS), "no JSON text"),
    "deep JSON": ("[" * 100_000, add(WEIGHTS), "no JSON text"),
    "long index": (" " * (2**23 + 1), add(WEIGHTS), "far too big"),
}  # fmt: skip


@pytest.mark.parametrize("case", HARMFUL.values(), ids=HARMFUL.keys())
def test_a_bundle_made_to_do_harm_is_refused(offline, tmp_path, case):
    index, extra, words = case
    folder = tmp_path / "in"
    folder.mkdir()
    made = write(folder / "bundle.zip", index, extra)
    assert is_bundle(made)
    with pytest.raises(CheckpointError, match=words):
        unpack(made, offline)
    assert visible(offline.folder) == []
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock") == [
        "bundle.zip"
    ]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_comes_twice_is_refused(offline, tmp_path):
    def twice(archive: zipfile.ZipFile) -> None:
        add(WEIGHTS)(archive)
        add(WEIGHTS)(archive)

    made = write(tmp_path / "twice.zip", index_of(record()), twice)
    with pytest.raises(CheckpointError, match="twice"):
        unpack(made, offline)


def test_a_weights_file_with_another_content_does_not_load(full, offline, tmp_path):
    """Size and hash are right, the content is none: the loader has the last word."""
    import hashlib

    digest = hashlib.sha256(SMALL).hexdigest()
    name = f"small.{digest[:12]}.safetensors"
    made = write(tmp_path / "b.zip", index_of(record(sha256=digest)), add(name))
    (kept,) = unpack(made, offline)
    assert kept.name == "small"
    with pytest.raises(CheckpointError, match="damaged"):
        offline.load("small")
