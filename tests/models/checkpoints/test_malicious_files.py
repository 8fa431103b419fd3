"""Files that try to run code when they are opened: nothing runs, and the text says so."""

from __future__ import annotations

import os
import pickle
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_factory import (
    legacy_with_pickle,
    opcodes,
    payloads,
    pickled,
    save,
    small_weights,
    trained_file,
    zip_with_pickle,
)

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models.checkpoints.nnunet_plans import find_plan, read_plans
from napari_openmedlab.models.checkpoints.reading import read_checkpoint

TRICKS = list(payloads(Path("marker")))
HAND_WRITTEN = list(opcodes("x"))


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "code-has-run"


def refused(path: Path, marker: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert not marker.exists(), "the file ran its code"
    text = str(caught.value)
    assert path.name in text
    assert "weights_only" not in text, "no advice to switch the protection off"
    return text


@pytest.mark.parametrize("trick", ["os.system", "eval", "getattr chain", "pickle in a pickle"])
def test_the_files_are_armed(tmp_path, marker, trick):
    path = save({"model": small_weights(), "x": payloads(marker)[trick]}, tmp_path / "a.pth")
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("trick", TRICKS)
def test_a_call_beside_the_weights(tmp_path, marker, trick, legacy):
    content = {"model": small_weights(), "x": payloads(marker)[trick]}
    text = refused(save(content, tmp_path / "evil.pth", legacy), marker)
    assert "was refused, and nothing in it was run" in text or "special class" in text


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["bare", "wrapper", "weights", "optimizer", "state"])
def test_a_call_anywhere(tmp_path, marker, where, legacy):
    evil = payloads(marker)["os.system"]
    content = trained_file(small_weights())
    if where == "bare":
        content = evil
    elif where == "wrapper":
        content["model"] = evil
    elif where == "weights":
        content["model"]["a.weight"] = evil
    elif where == "optimizer":
        content["optimizer"].state["hidden"] = evil
    else:
        content["optimizer_state_dict"]["param_groups"][0]["lr"] = evil
    text = refused(save(content, tmp_path / "evil.pth", legacy), marker)
    assert f"'{os.name if os.name == 'nt' else 'posix'}.system'" in text
    assert "harmful" in text


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("trick", HAND_WRITTEN)
def test_a_pickle_written_by_hand(tmp_path, marker, trick, legacy):
    content = opcodes(f"touch {marker}")[trick]
    make = legacy_with_pickle if legacy else zip_with_pickle
    refused(make(tmp_path / "evil.pth", content), marker)


@pytest.mark.parametrize("at", range(5))
def test_a_call_in_any_pickle_of_a_legacy_file(tmp_path, marker, at):
    content = opcodes(f"touch {marker}")["system"]
    refused(legacy_with_pickle(tmp_path / "evil.pth", content, at), marker)


def test_a_second_data_pickle_in_the_archive(tmp_path, marker):
    path = save({"model": small_weights()}, tmp_path / "two.pth")
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, opcodes(f"touch {marker}")["system"])
    assert "twice" in refused(path, marker)


def test_pickles_elsewhere_in_the_archive_are_not_read(tmp_path, marker):
    path = save({"model": small_weights()}, tmp_path / "more.pth")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more/.data/evil.pkl", opcodes(f"touch {marker}")["system"])
    assert set(read_checkpoint(path).tensors) == set(small_weights())
    assert not marker.exists()


def test_a_name_allowed_by_another_program_is_still_refused(tmp_path, marker):
    path = save({"model": small_weights(), "x": payloads(marker)["os.system"]}, tmp_path / "e.pth")
    with torch.serialization.safe_globals([os.system]):
        refused(path, marker)


def test_known_names_are_never_called(tmp_path, monkeypatch):
    """What lies beside the weights becomes a stand-in: the real classes are not even asked."""
    path = save(trained_file(small_weights()), tmp_path / "trained.pth")

    def explode(*_arguments, **_named):
        raise AssertionError("called")

    monkeypatch.setattr("argparse.Namespace.__init__", explode)
    monkeypatch.setattr(torch.optim.Adam, "__setstate__", explode)
    monkeypatch.setattr(torch.optim.Adam, "__init__", explode)
    assert set(read_checkpoint(path).tensors) == set(small_weights())


def test_what_a_file_does_to_a_stand_in_ends_with_it(tmp_path):
    """A state given to the class itself must not change the next file's reading."""
    first = b"\x80\x02cargparse\nNamespace\nN}X\x01\x00\x00\x00xK\x01s\x86b."
    with pytest.raises(CheckpointError):
        read_checkpoint(zip_with_pickle(tmp_path / "a.pth", first))
    path = save(trained_file(small_weights()), tmp_path / "trained.pth")
    assert read_checkpoint(path).wrapper == "model"


def test_the_allowed_names_are_given_back(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(save(trained_file(small_weights()), tmp_path / "trained.pth"))
    with pytest.raises(CheckpointError):
        read_checkpoint(zip_with_pickle(tmp_path / "bad.pth", b"\x80\x02."))
    assert set(torch.serialization.get_safe_globals()) == before


def test_two_threads_read_at_the_same_time(tmp_path):
    path = save(trained_file(small_weights()), tmp_path / "trained.pth")
    failures: list[Exception] = []

    def read() -> None:
        try:
            for _ in range(10):
                read_checkpoint(path)
        except CheckpointError as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((10**6,), (1,), 0), ((4, 3), (3, 1), 5), ((2,), (-1,), 3), ((-2,), (1,), 0)],
)
def test_a_tensor_beyond_its_storage(tmp_path, size, stride, offset):
    """Such a file would make torch read memory that is not the file's."""
    from torch._utils import _rebuild_tensor_v2

    class Liar:
        def __reduce__(self):
            return _rebuild_tensor_v2, (
                torch.zeros(12)._typed_storage(), offset, size, stride, False, {},
            )  # fmt: skip

    path = save({"model": {"a.weight": Liar()}}, tmp_path / "liar.pth")
    with pytest.raises(CheckpointError, match=r"liar\.pth is damaged"):
        read_checkpoint(path)


def test_a_storage_that_lies_about_its_size(tmp_path):
    path = save({"model": small_weights()}, tmp_path / "liar.pth")
    with zipfile.ZipFile(path) as archive:
        content = archive.read("liar/data.pkl")
    assert content.count(b"K\x0c") >= 1  # 12 numbers
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(zip_with_pickle(path, content.replace(b"K\x0c", b"K\x7f")))


def test_a_number_that_would_fill_the_memory(tmp_path):
    """Python makes room for as many objects as the largest number says: 32 GB here."""
    greedy = b"\x80\x02}r\xff\xff\xff\x7f."
    for make in (zip_with_pickle, legacy_with_pickle):
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(make(tmp_path / "greedy.pth", greedy))
    (tmp_path / "plans.pkl").write_bytes(greedy)
    with pytest.raises(CheckpointError, match="damaged"):
        read_plans(tmp_path / "plans.pkl")


PLAN_TRICKS = [name for name in TRICKS if name not in ("hooks of a tensor", "in arguments")]


@pytest.mark.parametrize("trick", PLAN_TRICKS)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_call_in_a_plan(tmp_path, marker, trick, protocol):
    path = tmp_path / "base_ep4k.model.pkl"
    path.write_bytes(pickled({"plans": payloads(marker)[trick]}, protocol))
    with pytest.raises(CheckpointError, match="nothing in it was run"):
        read_plans(path)
    assert not marker.exists()


@pytest.mark.parametrize("trick", HAND_WRITTEN)
def test_a_plan_written_by_hand(tmp_path, marker, trick):
    path = tmp_path / "plans.pkl"
    path.write_bytes(opcodes(f"touch {marker}")[trick])
    with pytest.raises(CheckpointError, match=r"plans\.pkl"):
        read_plans(path)
    assert not marker.exists()


def test_an_evil_plan_beside_good_weights_is_named(tmp_path, marker):
    (tmp_path / "base.model.pkl").write_bytes(pickled(payloads(marker)["os.system"]))
    with pytest.raises(CheckpointError, match=r"base\.model\.pkl was refused"):
        find_plan(tmp_path / "base.model")
    assert not marker.exists()


def test_the_plans_are_armed(marker):
    pickle.loads(pickled(payloads(marker)["os.system"]))
    assert marker.exists()
