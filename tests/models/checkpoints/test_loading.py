"""Converted once, loaded in a moment; nothing half-done is ever left behind."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch
from checkpoint_factory import save
from published_layouts import layout
from safetensors.torch import load_file, save_file

from napari_openmedlab.errors import Cancelled, CheckpointError, WriteError
from napari_openmedlab.models import networks
from napari_openmedlab.models.checkpoints import loading, weight_files
from napari_openmedlab.models.checkpoints.disk import hash_file
from napari_openmedlab.models.checkpoints.identify import AmbiguousCheckpoint
from napari_openmedlab.models.checkpoints.loading import convert, load_network
from napari_openmedlab.models.checkpoints.skeleton import skeleton
from napari_openmedlab.models.contract import Monitor

ROOT = Path(__file__).resolve().parents[3]


def numbers(name: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Weights of a published layout with different numbers everywhere."""
    generator = torch.Generator().manual_seed(11)
    return {
        key: torch.randn(value.shape, generator=generator).to(dtype)
        if value.is_floating_point()
        else torch.arange(value.numel()).reshape(value.shape)
        for key, value in layout(name).items()
    }


@pytest.fixture(scope="module")
def weights():
    return numbers("fmunet_mini")


@pytest.fixture
def source(tmp_path, weights):
    (tmp_path / "from").mkdir()
    return save({"model_state_dict": weights, "epoch": 3}, tmp_path / "from" / "fmu.pt")


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder / "fmunet.safetensors"


def left(target: Path) -> list[str]:
    return sorted(entry.name for entry in target.parent.iterdir())


# --- convert -------------------------------------------------------------------------------------


def test_convert_and_load(source, target, weights):
    done = convert(source, target)
    assert done.network == "fmunet"
    assert done.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert done.sha256 == hashlib.sha256(target.read_bytes()).hexdigest() == hash_file(target)
    assert done.size == target.stat().st_size
    assert done.tensors_dtype == "float32"
    json.dumps(dataclasses.asdict(done))
    assert left(target) == [target.name]

    network = load_network(target, done.network, json.loads(json.dumps(done.variant)))
    state = network.state_dict()
    assert list(state) == list(weights)
    assert all(torch.equal(state[key], weights[key]) for key in weights)
    assert not network.training
    with torch.inference_mode():
        out = network(torch.zeros(1, 1, 32, 32, 32))
    assert torch.isfinite(out if isinstance(out, torch.Tensor) else out[0]).all()


def test_others_can_read_what_is_written(source, target, weights):
    convert(source, target)
    stored = load_file(target)
    assert stored.keys() == weights.keys()
    assert all(torch.equal(stored[key], weights[key]) for key in weights)
    with safetensors.safe_open(target, "pt") as file:
        metadata = file.metadata()
    assert metadata["openmedlab.network"] == "fmunet"
    assert metadata["openmedlab.source_sha256"] == hash_file(source)


def test_the_same_source_gives_the_same_bytes(source, target):
    first = convert(source, target)
    assert convert(source, target) == first


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_number_type_becomes_float32(tmp_path, target, dtype, legacy):
    weights = numbers("fmunet_mini", dtype)
    source = save({"state_dict": weights}, tmp_path / "half.pth", legacy)
    done = convert(source, target)
    assert done.tensors_dtype == str(dtype).removeprefix("torch.")
    state = load_network(target, done.network, done.variant).state_dict()
    assert all(torch.equal(state[key], weights[key].float()) for key in weights)


def test_counters_and_scalars_keep_their_place(tmp_path, target):
    weights = numbers("pctnet_mini")
    done = convert(save(weights, tmp_path / "pct.pt"), target)
    state = load_network(target, done.network, done.variant).state_dict()
    assert all(torch.equal(state[key], weights[key]) for key in weights)
    with target.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__")
    assert length % 8 == 0
    for entry in header.values():
        assert entry["data_offsets"][0] % {"F32": 4, "I64": 8}[entry["dtype"]] == 0


def test_odd_tensors_are_written_right(tmp_path, target, weights):
    odd = dict(weights)
    key = "encoder.en_conv1.conv_list.0.3.weight"
    odd[key] = weights[key].permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    shared = torch.cat([odd["project.bias"], odd["out_layers.0.0.bias"]])
    odd["project.bias"], odd["out_layers.0.0.bias"] = shared[:8], shared[8:]
    done = convert(save(odd, tmp_path / "odd.pt"), target)
    state = load_network(target, done.network, done.variant).state_dict()
    assert all(torch.equal(state[k], weights[k]) for k in weights)


def test_a_safetensors_source(tmp_path, target, weights):
    save_file(weights, tmp_path / "x.safetensors")
    done = convert(tmp_path / "x.safetensors", target)
    assert done.network == "fmunet"
    assert all(torch.equal(load_file(target)[k], weights[k]) for k in weights)


def test_the_source_is_left_alone(source, target):
    before = source.read_bytes()
    source.chmod(0o444)
    source.parent.chmod(0o555)
    try:
        convert(source, target)
    finally:
        source.parent.chmod(0o755)
    assert source.read_bytes() == before
    assert left(source) == [source.name]


def test_notes_reach_the_caller(tmp_path, target):
    weights = {k: torch.zeros(v.shape) for k, v in layout("stu_net_s").items()}
    done = convert(save({"state_dict": weights}, tmp_path / "small.model"), target)
    assert done.variant["strides"][-1] == [1, 1, 2]
    assert "Strides" in done.notes[0]
    load_network(target, done.network, done.variant)


# --- progress and cancel -------------------------------------------------------------------------


def test_progress_runs_to_the_end_without_going_back(source, target):
    heard = []
    convert(source, target, monitor=Monitor(heard.append, interval=0))
    done = [progress.done for progress in heard]
    assert done == sorted(done)
    assert done[-1] == heard[-1].total > 0
    assert {progress.total for progress in heard} == {heard[-1].total}
    assert {"checking fmu.pt", "writing"} <= {progress.text for progress in heard}


@pytest.mark.parametrize("after", [0, 1, 2, 40, 150, 250, "last"])
def test_a_cancel_leaves_nothing(source, target, monkeypatch, after):
    monkeypatch.setattr(weight_files, "_CHUNK", 4096)
    steps = 0
    every = []
    convert(source, target, monitor=Monitor(every.append, interval=0))
    target.unlink()
    at = len(every) - 1 if after == "last" else after

    def listen(_progress):
        nonlocal steps
        steps += 1
        if steps >= at:
            monitor.cancel()

    monitor = Monitor(listen, interval=0)
    if at == 0:
        monitor.cancel()
    with pytest.raises(Cancelled):
        convert(source, target, monitor=monitor)
    assert left(target) == []


def test_a_cancel_keeps_what_was_there(source, target):
    target.write_bytes(b"the old one")
    monitor = Monitor(lambda _progress: monitor.cancel(), interval=0)
    with pytest.raises(Cancelled):
        convert(source, target, monitor=monitor)
    assert target.read_bytes() == b"the old one"
    assert left(target) == [target.name]


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_full_disk_half_way(source, target, monkeypatch):
    target.write_bytes(b"the old one")
    real = weight_files._pieces

    def full(ordered):
        for count, piece in enumerate(real(ordered)):
            if count == 20:
                raise OSError(errno.ENOSPC, "No space left on device")
            yield piece

    monkeypatch.setattr(weight_files, "_pieces", full)
    with pytest.raises(WriteError, match="the disk is full"):
        convert(source, target)
    assert target.read_bytes() == b"the old one"
    assert left(target) == [target.name]


def test_too_little_space_is_said_before_the_work(source, target, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: shutil._ntuple_diskusage(9, 9, 100))
    with pytest.raises(WriteError, match=r"need 0\.00 GB .* are free"):
        convert(source, target)
    assert left(target) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path, target, weights, bad):
    broken = {**weights, "project.bias": weights["project.bias"].clone()}
    broken["project.bias"][3] = bad
    with pytest.raises(CheckpointError, match=r"'project\.bias' holds numbers that are none"):
        convert(save(broken, tmp_path / "nan.pt"), target)
    assert left(target) == []


@pytest.mark.parametrize("content", [b"", b"<!doctype html>", b"PK\x03\x04 cut"])
def test_bad_sources_leave_nothing(tmp_path, target, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        convert(tmp_path / "x.pth", target)
    assert left(target) == []


def test_alike_networks_are_asked_for(tmp_path, target):
    path = tmp_path / "sam.pth"
    save({k: v.clone() for k, v in layout("sam_vit_b", torch.float16).items()}, path)
    with pytest.raises(AmbiguousCheckpoint):
        convert(path, target)
    assert left(target) == []
    assert convert(path, target, as_network="medsam").network == "medsam"


def test_no_folder_for_the_target(source, tmp_path):
    with pytest.raises(WriteError, match="does not exist"):
        convert(source, tmp_path / "nowhere" / "x.safetensors")


# --- load ----------------------------------------------------------------------------------------


@pytest.fixture
def converted(source, target):
    return convert(source, target)


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_network(tmp_path / "x.safetensors", "fmunet", {})


def test_another_network_or_variant(converted, target):
    with pytest.raises(CheckpointError, match="holds weights of fmunet, not of medlam"):
        load_network(target, "medlam", {})
    with pytest.raises(CheckpointError, match="another variant of fmunet"):
        load_network(target, "fmunet", {**converted.variant, "out_channels": 3})


def test_a_file_written_by_others(tmp_path, weights):
    save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not written by this program"):
        load_network(tmp_path / "x.safetensors", "fmunet", {})


def test_damage_is_noticed(converted, target):
    data = target.read_bytes()
    for broken in (data[:-8], data[:100], data[:-8] + b"12345678more", b"<html>", b""):
        target.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"fmunet\.safetensors"):
            load_network(target, converted.network, converted.variant)


def test_a_tensor_gone_from_the_file(converted, target, weights):
    with safetensors.safe_open(target, "pt") as file:
        metadata = file.metadata()
    short = {key: weights[key] for key in list(weights)[:-1]}
    save_file(short, target, metadata)
    with pytest.raises(CheckpointError, match="is missing; import the published file again"):
        load_network(target, converted.network, converted.variant)


def test_nothing_is_left_to_chance(converted, target, monkeypatch):
    """A constant that the network forgot to make real is an error, not a random number."""
    real = loading.skeleton

    def forgetful(network, variant):
        module = real(network, variant)
        module.register_buffer("forgotten", torch.ones(2, device="meta"), persistent=False)
        return module

    monkeypatch.setattr(loading, "skeleton", forgetful)
    with pytest.raises(CheckpointError, match="no values for forgotten"):
        load_network(target, converted.network, converted.variant)


def test_changing_a_loaded_network_leaves_the_file(converted, target):
    before = hash_file(target)
    network = load_network(target, converted.network, converted.variant)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert hash_file(target) == before


@pytest.mark.parametrize("name", networks.names())
def test_a_skeleton_has_the_networks_shapes(name):
    """Leaving out the random numbers changes no shape and leaves every weight without memory."""
    bare = skeleton(name, {})
    plain = networks.build(name, device="meta")
    state, wanted = bare.state_dict(), plain.state_dict()
    assert [(k, v.shape, v.dtype) for k, v in state.items()] == [
        (k, v.shape, v.dtype) for k, v in wanted.items()
    ]
    assert all(parameter.is_meta for parameter in bare.parameters())
    assert not bare.training


# --- speed and memory ----------------------------------------------------------------------------

MEASURE = """
import json, sys, time
import torch
from napari_openmedlab.models.checkpoints.loading import load_network, convert
import napari_openmedlab.models.networks.sam_med3d
torch.set_num_threads(1)
def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))
before, start = memory("VmRSS:"), time.perf_counter()
if len(sys.argv) == 3:
    convert(sys.argv[1], sys.argv[2])
    loaded = time.perf_counter() - start
else:
    network = load_network(sys.argv[1], "sam-med3d", {})
    loaded = time.perf_counter() - start
    with torch.inference_mode():
        sum(float(tensor.sum()) for tensor in network.state_dict().values())
print(json.dumps({
    "loaded": loaded,
    "used": time.perf_counter() - start,
    "memory": memory("VmHWM:") - before,
    "own": memory("RssAnon:"),
}))
"""


def measured(*arguments: Path) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_sam_med3d_loads_in_a_moment(tmp_path):
    """402 MB: under a second to a usable module, and one copy of the weights in memory."""
    weights = {k: torch.randn(v.shape) * 0.02 for k, v in layout("sam_med3d").items()}
    source = save({"model_state_dict": weights, "epoch": 1}, tmp_path / "turbo.pth")
    target = tmp_path / "sam-med3d.safetensors"
    size = sum(value.numel() * 4 for value in weights.values())
    assert size == pytest.approx(402e6, rel=0.01)
    figures = measured(source, target)
    assert figures["memory"] < 1.3 * size
    figures = measured(target)
    assert figures["used"] < 1.0
    assert figures["memory"] < 1.15 * size
