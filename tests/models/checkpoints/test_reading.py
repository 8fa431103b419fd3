"""Weights in every published form are read; everything else is named for what it is."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from checkpoint_factory import legacy_with_pickle, re_zipped, save, small_weights, trained_file
from safetensors.torch import save_file

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models.checkpoints.nnunet_plans import (
    find_plan,
    plan_of_checkpoint,
    read_plans,
)
from napari_openmedlab.models.checkpoints.reading import read_checkpoint

WEIGHTS = small_weights()
FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(wanted) and all(torch.equal(found[k], wanted[k]) for k in wanted)


def reason(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert caught.value.path == path
    return str(caught.value)


@FORMATS
@pytest.mark.parametrize("suffix", ["pth", "pt", "model", "safetensors", "bin"])
def test_the_content_decides_not_the_suffix(tmp_path, suffix, legacy):
    assert same(read_checkpoint(save(WEIGHTS, tmp_path / f"x.{suffix}", legacy)).tensors, WEIGHTS)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_safetensors(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    save_file({f"module.{key}": value for key, value in WEIGHTS.items()}, path)
    raw = read_checkpoint(path)
    assert raw.tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(raw.tensors[key], WEIGHTS[key]) for key in WEIGHTS)


@FORMATS
@pytest.mark.parametrize(
    "wrapper", ["model", "state_dict", "model_state_dict", "network_weights", ""]
)
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_wrappers_and_prefixes(tmp_path, wrapper, prefix, legacy):
    weights = {prefix + key: value for key, value in WEIGHTS.items()}
    content = {wrapper: weights, "epoch": 3} if wrapper else {**weights, "epoch": 3}
    raw = read_checkpoint(save(content, tmp_path / "x.pth", legacy))
    assert same(raw.tensors, WEIGHTS)
    assert raw.wrapper == wrapper
    assert raw.ignored == ("epoch",)


@FORMATS
@pytest.mark.parametrize("key", ["model", "model_state_dict"])
def test_training_state_beside_the_weights(tmp_path, key, legacy):
    raw = read_checkpoint(save(trained_file(WEIGHTS, key), tmp_path / "x.pth", legacy))
    assert same(raw.tensors, WEIGHTS)
    assert {"optimizer", "optimizer_state_dict", "args", "best_dice"} <= set(raw.ignored)


def test_names_of_older_numpy(tmp_path):
    """NumPy 1 pickled its numbers under numpy.core, NumPy 2 does under numpy._core."""
    path = save({"model": WEIGHTS, "best": np.float64(3)}, tmp_path / "x.pth")
    other = tmp_path / "other.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            swapped = data.replace(b"numpy._core.", b"numpy.core.")
            assert (swapped != data) == name.endswith("data.pkl")
            target.writestr(name, swapped)
    assert same(read_checkpoint(path).tensors, WEIGHTS)
    assert same(read_checkpoint(other).tensors, WEIGHTS)


def test_wrapper_in_a_wrapper(tmp_path):
    raw = read_checkpoint(save({"model": {"state_dict": WEIGHTS, "x": 1}, "y": 2}, tmp_path / "a"))
    assert same(raw.tensors, WEIGHTS)
    assert raw.wrapper == "model.state_dict"
    assert set(raw.ignored) == {"model.x", "y"}


def test_a_content_that_holds_itself(tmp_path):
    content: dict = {"epoch": 1}
    content["model"] = content
    assert "no weights" in reason(save(content, tmp_path / "loop.pth"))


def test_parameters_shared_and_odd_tensors(tmp_path):
    base = torch.arange(24.0)
    weights = {
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "row": base[4:8],
        "transposed": base.reshape(4, 6).t(),
        "same": base,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    for legacy in (False, True):
        found = read_checkpoint(save(weights, tmp_path / "odd.pth", legacy)).tensors
        assert same(found, weights)
        assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_number_types_are_kept(tmp_path, dtype):
    weights = {"a": torch.ones(3, dtype=dtype)}
    assert same(read_checkpoint(save(weights, tmp_path / "a.pth")).tensors, weights)


def test_a_repacked_archive_gives_the_same_numbers(tmp_path):
    """torch maps compressed parts as they are and gives numbers without sense, no error."""
    path = save({"model": WEIGHTS}, tmp_path / "x.pth")
    assert same(read_checkpoint(re_zipped(path, tmp_path / "packed.pth")).tensors, WEIGHTS)


def test_the_plan_in_a_v2_checkpoint(tmp_path):
    arguments = {
        "plans": {
            "configurations": {
                "3d_fullres": {"pool_op_kernel_sizes": [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 2, 2]]}
            }
        },
        "configuration": "3d_fullres",
        "dataset_json": {
            "channel_names": {"0": "T1", "1": "T2"},
            "labels": {"background": 0, "a": 1, "b": 2},
        },
    }
    content = {"network_weights": WEIGHTS, "init_args": arguments, "trainer_name": "x"}
    raw = read_checkpoint(save(content, tmp_path / "checkpoint_final.pth"))
    plan = plan_of_checkpoint(raw.plans, "x")
    assert plan.strides == (*[(2, 2, 2)] * 4, (1, 2, 2))
    assert (plan.in_channels, plan.out_channels) == (2, 3)


# --- what is no file of weights -----------------------------------------------------------------


def test_missing_empty_and_folder(tmp_path):
    assert "does not exist" in reason(tmp_path / "missing.pth")
    (tmp_path / "empty.pth").touch()
    assert "empty (0 bytes)" in reason(tmp_path / "empty.pth")
    assert "is a folder" in reason(tmp_path)


PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PAGE, "web page"),
        (b"\xef\xbb\xbf\r\n  <HTML>", "web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
        (b'{"error": "Repository not found"}', "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS pointer"),
        (b"Not found\n", "a text file"),
        (gzip.compress(b"nifti", mtime=0), "gzip"),
        (b"\x89PNG\r\n\x1a\n" + bytes(90), "PNG"),
        (b"\xff\xd8\xff\xe0" + bytes(90), "JPEG"),
        (b"II*\x00" + bytes(90), "TIFF"),
        (bytes(128) + b"DICM" + bytes(90), "DICOM"),
        (struct.pack("<i", 348) + bytes(340) + b"n+1\x00" + bytes(90), "NIfTI"),
        (b"\x89HDF\r\n\x1a\n" + bytes(90), "HDF5"),
        (b"\x93NUMPY\x01\x00" + bytes(90), "NumPy"),
        (bytes(257) + b"ustar" + bytes(90), "tar archive"),
        (b"\x80\x04}.", "not of weights"),
        (b"\x00\x01\x02\x03" * 40, "no format known"),
        (b"\xfe", "no format known"),
    ],
)
def test_other_files_are_named(tmp_path, content, words):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert words in reason(path)


def test_a_web_page_says_what_to_do(tmp_path):
    path = tmp_path / "sam_med3d_turbo.pth"
    path.write_bytes(PAGE)
    assert "login" in reason(path)
    assert "browser" in reason(path)


@FORMATS
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_file_cut_short(tmp_path, part, legacy):
    weights = {"a": torch.randn(200, 50)}
    path = save({"model": weights}, tmp_path / "x.pth", legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    text = reason(path)
    assert "fetch it again" in text
    assert "incomplete" in text or "damaged" in text


@FORMATS
def test_single_broken_bytes_never_crash(tmp_path, legacy):
    path = save(trained_file(WEIGHTS), tmp_path / "x.pth", legacy)
    data = bytearray(path.read_bytes())
    random = np.random.default_rng(5)
    for position in random.integers(20, len(data), 150):
        broken = bytearray(data)
        broken[position] ^= 0xFF
        path.write_bytes(broken)
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            assert "x.pth" in str(error)  # noqa: PT017 (either outcome is right)


def test_archives_of_something_else(tmp_path):
    path = tmp_path / "drive-download.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/medlam.pth", b"x")
    assert "archive around folder/medlam.pth; unpack it" in reason(path)
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    assert "archive of something else" in reason(tmp_path / "arrays.npz")
    path = tmp_path / "nothing.zip"
    zipfile.ZipFile(path, "w").close()
    assert "archive of something else" in reason(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_programs_are_refused(tmp_path):
    layer = torch.nn.Linear(2, 2)
    torch.jit.save(torch.jit.trace(layer, torch.ones(1, 2)), tmp_path / "script.pt")
    assert "TorchScript program" in reason(tmp_path / "script.pt")
    for legacy in (False, True):
        text = reason(save(layer, tmp_path / "whole.pt", legacy))
        assert "whole Python object" in text
        assert "torch.nn.modules.linear.Linear" in text


@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning")
def test_tensors_that_are_no_plain_weights(tmp_path):
    sparse = torch.eye(3).to_sparse()
    assert "sparse" in reason(save({"model": {"a": sparse}}, tmp_path / "x.pth"))
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    assert "quantized" in reason(save({"model": {"a": quantized}}, tmp_path / "x.pth"))
    meta = torch.ones(3, device="meta")
    assert "without values" in reason(save({"model": {"a": meta}}, tmp_path / "x.pth"))
    eight = torch.ones(3).to(torch.float8_e4m3fn)
    assert "number type" in reason(save({"model": {"a": eight}}, tmp_path / "x.pth"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], "a list"),
        (torch.ones(2), "a single tensor"),
        ({"epoch": 3, "note": "x"}, "'epoch', 'note'"),
        ({"model": {}}, "no weights"),
        ({}, "nothing"),
        ({"a": torch.ones(1), "module.a": torch.ones(1)}, "'a' twice"),
    ],
)
def test_contents_without_named_weights(tmp_path, content, words):
    assert words in reason(save(content, tmp_path / "x.pth"))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_pickle_protocols_are_explained(tmp_path, protocol):
    text = reason(save({"model": WEIGHTS}, tmp_path / "x.pth", protocol=protocol))
    assert f"protocol {protocol}" in text


def test_broken_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(WEIGHTS, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for broken in (data[:-4], data[: 8 + length // 2], data + b"more"):
        path.write_bytes(broken)
        assert "damaged or cut off" in reason(path)
    header["a.weight"]["data_offsets"] = [0, 10**12]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert "damaged or cut off" in reason(path)
    path.write_bytes((2**40).to_bytes(8, "little") + data[8:])
    assert "no format known" in reason(path)


def test_a_legacy_file_of_nothing(tmp_path):
    assert "x.pth" in reason(legacy_with_pickle(tmp_path / "x.pth", b"\x80\x02N."))


def test_read_only_file_and_folder(tmp_path):
    path = save(trained_file(WEIGHTS), tmp_path / "x.pth")
    before = path.read_bytes()
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        raw = read_checkpoint(path)
        assert same(raw.tensors, WEIGHTS)
        raw.tensors["a.bias"].add_(1)  # a mapped tensor may be written to; the file may not
        assert path.read_bytes() == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["x.pth"]
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_no_permission(tmp_path):
    path = save(WEIGHTS, tmp_path / "x.pth")
    path.chmod(0)
    assert "no permission" in reason(path)


def test_no_permission_and_broken_disks_are_explained(tmp_path, monkeypatch):
    path = save(WEIGHTS, tmp_path / "x.pth")
    for error, words in (
        (PermissionError(13, "denied"), "no permission"),
        (OSError(5, "I/O"), "I/O"),
    ):

        def fail(*_arguments, error=error, **_named):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.open", fail)
            assert words in reason(path)


def test_names_with_spaces_and_accents(tmp_path):
    folder = tmp_path / "Modèles (2) 模型"
    folder.mkdir()
    assert same(read_checkpoint(save(WEIGHTS, folder / "poids ü.pth")).tensors, WEIGHTS)


def test_telling_files_apart_needs_no_torch():
    code = (
        "import sys; import napari_openmedlab.models.checkpoints.file_kinds, "
        "napari_openmedlab.models.checkpoints.nnunet_plans; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- plans ---------------------------------------------------------------------------------------

STRIDES = [[2, 2, 2]] * 4 + [[1, 1, 2]]


def v1_plan(classes: int = 104, modalities: int = 1) -> dict:
    return {
        "num_classes": classes,
        "num_modalities": modalities,
        "dataset_properties": {"intensityproperties": None},
        "plans_per_stage": {
            0: {"pool_op_kernel_sizes": STRIDES, "patch_size": np.array([128] * 3)}
        },
        "original_spacings": [
            np.array([1.5, 1.5, 1.5]),
            np.float64(3),
            np.int64(4),
            np.bool_(True),
        ],
    }


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_v1_plan(tmp_path, protocol):
    from checkpoint_factory import pickled

    path = tmp_path / "fold_0" / "base_ep4k.model"
    path.parent.mkdir()
    content = {"init": (1, 2), "name": "x", "plans": v1_plan()}
    beside = path.with_name("base_ep4k.model.pkl")
    beside.write_bytes(pickled(content, protocol))
    plan = find_plan(path)
    assert plan.strides == tuple(map(tuple, STRIDES))
    assert (plan.in_channels, plan.out_channels) == (1, 105)
    assert plan.source == "base_ep4k.model.pkl"
    plain = read_plans(beside)["plans"]
    assert plain["original_spacings"] == [[1.5, 1.5, 1.5], 3.0, 4, True]
    assert plain["plans_per_stage"][0]["patch_size"] == [128, 128, 128]
    json.dumps(plain)
    beside.unlink()
    (tmp_path / "plans.pkl").write_bytes(pickled(v1_plan(9), protocol))
    assert find_plan(path).out_channels == 10  # in the folder above fold_0


def test_a_plan_under_older_numpys_name(tmp_path):
    from checkpoint_factory import pickled

    path = tmp_path / "plans.pkl"
    data = pickled(v1_plan(), 2)
    assert b"numpy._core" in data
    path.write_bytes(data.replace(b"numpy._core", b"numpy.core"))
    assert read_plans(path)["num_classes"] == 104


def test_the_stub_without_stages_is_passed_over(tmp_path):
    from checkpoint_factory import pickled

    (tmp_path / "plans.pkl").write_bytes(pickled({"num_classes": 104}))
    assert find_plan(tmp_path / "x.model") is None
    assert find_plan(tmp_path / "nowhere" / "x.model") is None


@pytest.mark.parametrize("new", [False, True])
def test_a_v2_plan(tmp_path, new):
    strides = [[1, 1, 1], *STRIDES]
    settings = (
        {"architecture": {"arch_kwargs": {"strides": strides}}}
        if new
        else {"pool_op_kernel_sizes": strides}
    )
    plans = {"configurations": {"3d_base": settings, "3d_fullres": {"inherits_from": "3d_base"}}}
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    plan = find_plan(tmp_path / "checkpoint_final.pth")
    assert plan.strides == tuple(map(tuple, STRIDES))
    assert (plan.in_channels, plan.out_channels) == (1, 3)
    dataset["labels"]["both"] = [1, 2]
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    assert find_plan(tmp_path / "checkpoint_final.pth").out_channels is None  # regions


def test_strides_follow_stu_nets_rule():
    def strides(found):
        plans = {"configurations": {"3d_fullres": {"pool_op_kernel_sizes": [[1, 1, 1], *found]}}}
        plan = plan_of_checkpoint({"plans": plans}, "x")
        return None if plan is None else plan.strides

    assert strides([[2, 2, 2]] * 7) == ((2, 2, 2),) * 5
    assert strides([[2, 2, 2]] * 3) == ((2, 2, 2),) * 3 + ((1, 1, 1),) * 2
    assert strides([[2, 2]]) is None
    assert strides([[2, 2, 0]]) is None
    assert strides([["2", 2, 2]]) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\x80\x04", b"\x80\x04N.", b"[1]", b"<html>", b'{"configurations": 3}'],
)
def test_damaged_plans(tmp_path, content):
    path = tmp_path / "plans.json"
    path.write_bytes(content)
    if content == b'{"configurations": 3}':
        assert find_plan(tmp_path / "x.pth") is None
        return
    with pytest.raises(CheckpointError, match=r"plans\.json"):
        find_plan(tmp_path / "x.pth")
