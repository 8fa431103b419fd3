"""The memory estimate: against measured peaks, and what the user is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models import networks
from napari_openmedlab.models.device import Device
from napari_openmedlab.models.memory import (
    MARGIN,
    MemoryNeed,
    estimate,
    shortage,
    weights_in_file,
)

MIB, GIB = 2**20, 2**30
FIXED = 128 * MIB

MEASURE = """
import json, sys
from pathlib import Path
import psutil, torch
from napari_openmedlab.models import networks
torch.set_num_threads(1)
network, shape = networks.build(sys.argv[1]), json.loads(sys.argv[2])
run = getattr(network, "encode", network)
with torch.inference_mode():  # the libraries' own code comes into memory first
    nn = torch.nn
    nn.Conv3d(1, 1, 3)(torch.zeros(1, 1, 8, 8, 8)), nn.Linear(64, 64)(torch.zeros(64, 64))
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")
    run(torch.zeros(shape))
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM")) - before)
"""


def need_of(name: str, shape: tuple[int, ...], precision="float32") -> MemoryNeed:
    return estimate(
        lambda: networks.build(name),
        lambda network: getattr(network, "encode", network)(torch.zeros(shape)),
        precision,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="peaks can be set back on Linux only")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("axon-seg-plain", (1, 1, 64, 64, 64)),
        pytest.param("medlam", (1, 1, 64, 64, 64), marks=pytest.mark.slow),
        pytest.param("stu-net-s", (1, 1, 64, 64, 64), marks=pytest.mark.slow),
        pytest.param("fmunet", (1, 1, 32, 64, 64), marks=pytest.mark.slow),
        pytest.param("pct-net", (1, 1, 48, 96, 96), marks=pytest.mark.slow),
        pytest.param("ft-sam", (4, 3, 256, 256), marks=pytest.mark.slow),
        pytest.param("sam-med3d", (1, 1, 128, 128, 128), marks=pytest.mark.slow),
    ],
)
def test_the_estimate_holds_against_the_measured_peak(name, shape):
    command = [sys.executable, "-c", MEASURE, name, json.dumps(shape)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    measured, told = int(done.stdout), need_of(name, shape).running
    assert measured <= MARGIN * told, f"{measured / MIB:.0f} MiB, told {told / MIB:.0f} MiB"
    assert told - FIXED <= MARGIN * measured, f"{measured / MIB:.0f}, told {told / MIB:.0f} MiB"


def test_the_weights_are_those_of_the_network():
    network = networks.build("medlam", device="meta")
    state = network.state_dict()
    assert need_of("medlam", (1, 1, 64, 64, 64)).weights == 4 * sum(
        t.numel() for t in state.values()
    )


def test_more_at_a_time_needs_more_and_half_precision_less():
    one, two, half = (
        need_of("axon-seg-plain", shape, precision).running - FIXED
        for shape, precision in (
            ((1, 1, 64, 64, 64), "float32"),
            ((2, 1, 64, 64, 64), "float32"),
            ((1, 1, 64, 64, 64), "bfloat16"),
        )
    )
    assert two == pytest.approx(2 * one, rel=0.15)
    assert 0.45 * one < half < 0.75 * one


def test_counted_are_the_tensors_that_live_at_the_same_time():
    """1 MiB in, a chain of in-place and new tensors: three of them live at the worst moment."""

    def forward(_network):
        x = torch.zeros(MIB // 4)  # 1
        y = x + 1  # 2
        y.mul_(2)
        z = y.view(2, -1) + y.view(2, -1)  # 3
        del x, y  # 1
        return z + 1  # 2

    need = estimate(lambda: nn.Linear(2, 2), forward)
    assert need.running == 3 * MIB + FIXED
    assert need.weights == 6 * 4


def test_a_convolution_needs_a_copy_of_input_and_weights():
    def forward(network):
        return network(torch.zeros(1, 4, 32, 32, 32))  # 0.5 MiB in, 1 MiB out

    need = estimate(lambda: nn.Conv3d(4, 8, 3, padding=1, bias=False), forward)
    assert need.running == 2 * MIB + 4 * 8 * 27 * 4 + FIXED


def test_nothing_is_computed():
    """A network of a terabyte is followed as fast as a small one."""

    def forward(network):
        return network(torch.zeros(1, 500_000))

    need = estimate(lambda: nn.Linear(500_000, 500_000, bias=False), forward)
    assert need.weights == 10**12
    assert need.running == 2 * 4 * 500_000 + FIXED


def test_a_network_in_use_is_left_as_it_is():
    before = networks.build("medlam", device="meta")
    need_of("medlam", (1, 1, 64, 64, 64))
    with torch.no_grad():
        assert type(torch.zeros(1)) is torch.Tensor
    assert all(type(t.data) is torch.Tensor for t in before.parameters())


def test_bytes_of_a_file_come_from_its_header(tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = {"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.float16)}
    save_file(tensors, path, metadata={"openmedlab.network": "medlam"})
    assert weights_in_file(path) == 3 * 5 * 4 + 7 * 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\xff" * 64,
        (9).to_bytes(8, "little") + b"<html></h",
        (2).to_bytes(8, "little") + b"[]",
        (12).to_bytes(8, "little") + b'{"a": {"b":1',
        (8).to_bytes(8, "little") + b'{"a": 1}',
        (21).to_bytes(8, "little") + b'{"a":{"data_off": 1}}',
    ],
)
def test_what_is_no_weight_file_is_refused(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is no safetensors file"):
        weights_in_file(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors can't be read"):
        weights_in_file(Path(tmp_path) / "nothing.safetensors")


def test_what_fits_is_not_mentioned():
    card = Device("cuda:0", "Card", 10 * GIB, 16 * GIB)
    assert shortage(MemoryNeed(1 * GIB, 6 * GIB), card) == ""


def test_what_may_not_or_will_not_fit_is_told():
    card = Device("cuda:0", "Card", 10 * GIB, 16 * GIB)
    may = shortage(MemoryNeed(1 * GIB, 8 * GIB), card)
    assert may.startswith("This may not fit into the memory of cuda:0: about 9.0 GiB")
    assert "10.0 GiB are free" in may
    will_not = shortage(MemoryNeed(1 * GIB, 20 * GIB), card)
    assert "will not fit" in will_not
    assert "half precision" in will_not
    assert shortage(MemoryNeed(9 * GIB, 1 * GIB), card, loaded=True) == ""
    cpu = Device("cpu", "CPU", 1 * GIB, 16 * GIB)
    assert "Close other programs" in shortage(MemoryNeed(1 * GIB, 1 * GIB), cpu)


def test_a_need_is_readable():
    assert str(MemoryNeed(402 * MIB, 3 * GIB)) == "402 MiB for the weights and 3.0 GiB to run"
