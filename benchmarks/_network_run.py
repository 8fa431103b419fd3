"""One step of the benchmark ``networks`` in a process of its own: ``prepare`` or ``forward``.

Called by ``benchmarks.networks`` with one JSON argument; the last line printed is JSON. A
process a step keeps the memory of one out of the peak of the next.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks._network_cases import CASES, agreement, image
from napari_openmedlab.models import networks
from napari_openmedlab.models.checkpoints.loading import convert, load_network
from napari_openmedlab.models.device import (
    Placement,
    autocast,
    choose,
    is_out_of_memory,
    precision_for,
)
from napari_openmedlab.models.memory import estimate

Facts = dict[str, Any]
TESTS = Path(__file__).resolve().parents[1] / "tests"


def prepare(name: str, folder: Path, quick: bool) -> Facts:
    """Build the network, give it stand-in weights, write them as published, convert them."""
    case = CASES[name]
    variant = dict(case.small_variant if quick else case.variant)
    networks.build(name, device="meta", **variant)  # the first one also imports modules
    meta = _timed(lambda: networks.build(name, device="meta", **variant))[1]
    torch.manual_seed(0)
    network, on_cpu = _timed(lambda: networks.build(name, **variant))
    stand_in = _fill(network)
    source, target = folder / f"{name}.pth", folder / f"{name}.safetensors"
    torch.save(network.state_dict(), source)
    parameters = sum(p.numel() for p in network.parameters())
    del network
    done, seconds = _timed(lambda: convert(source, target, as_network=name))
    source.unlink()
    return {
        "build_meta": meta,
        "build_cpu": on_cpu,
        "convert": seconds,
        "parameters": parameters,
        "bytes": done.size,
        "variant": done.variant,
        "weights": stand_in,
    }


def forward(  # noqa: PLR0913 -- one value for each option of the command line
    name: str,
    path: str,
    variant: Facts,
    device: str,
    precision: str,
    runs: int,
    quick: bool,
    threads: int,
) -> Facts:
    """Load the converted weights and run the network."""
    if threads:
        torch.set_num_threads(threads)
    case, chosen = CASES[name], choose(device).device
    place = Placement(chosen.id, precision_for(chosen, precision))
    images = image(case.small if quick else case.shape).to(place.device)
    _wake_libraries(place.device)
    start = _start_of_peak(place.device)
    network, load = _timed(lambda: load_network(path, name, variant).to(place.device), place.device)
    network = _in_its_layout(network)
    facts: Facts = {"load": load, "device": chosen.name, "precision": place.precision}
    facts |= {"shape": list(images.shape), "threads": torch.get_num_threads()}
    with torch.inference_mode(), autocast(place):
        answer, facts["first"] = _timed(lambda: case.forward(network, images), place.device)
        if case.decode is not None:
            case.decode(network, answer)
        # Now, before a second answer is made beside the first.
        facts["peak"] = _peak(place.device) - start
        used = time.process_time()
        facts["forward"] = _median(lambda: case.forward(network, images), runs, place.device)
        facts["cpu"] = (time.process_time() - used) / runs
        if case.decode is not None:
            decode, embedding = case.decode, answer
            answer = decode(network, embedding)
            facts["decode"] = _median(lambda: decode(network, embedding), runs, place.device)
    facts["estimate"] = _estimated(name, variant, tuple(images.shape), place)
    if place.precision != "float32":
        facts["agreement"] = _agreement(name, network, images, answer)
    if name == "sam-med3d":
        facts["ratio"] = _ratio(network, images, place, runs)
    return facts


def _fill(network: torch.nn.Module) -> str:
    """Give the stand-in weights of the golden tests, where those are at hand."""
    if not TESTS.is_dir():
        return "torch's initial weights, seed 0"
    sys.path.insert(0, str(TESTS))
    from golden_networks import load_filled

    tables = {k: v for k, v in network.state_dict().items() if not v.is_floating_point()}
    load_filled(network)
    network.load_state_dict({**network.state_dict(), **tables}, assign=True)  # indexes stay
    return "stand-in weights of the golden tests"


def _in_its_layout(network: Any) -> Any:
    """Bring the weights into the layout that the network names as the faster one."""
    layout = getattr(network, "memory_format", None)
    return network if layout is None else network.to(memory_format=layout)


def _timed(run: Callable[[], Any], device: str = "cpu") -> tuple[Any, float]:
    _wait(device)
    began = time.perf_counter()
    value = run()
    _wait(device)
    return value, time.perf_counter() - began


def _median(run: Callable[[], Any], runs: int, device: str) -> float:
    return statistics.median(_timed(run, device)[1] for _ in range(runs))


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()


def _wake_libraries(device: str) -> None:
    """Let the maths libraries load their code first: it is no part of a network's need."""
    convolution = torch.nn.Conv3d(1, 1, 3).to(device)
    with torch.inference_mode():
        convolution(torch.zeros(1, 1, 8, 8, 8, device=device))
        torch.zeros(8, 8, device=device) @ torch.zeros(8, 8, device=device)


def _start_of_peak(device: str) -> int:
    """Forget the peak so far; return the bytes in use now."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        try:
            reset.write_text("5", encoding="ascii")
        except OSError:
            print("the peak can't be reset; it holds that of the start", file=sys.stderr)
    return int(psutil.Process().memory_info().rss)


def _peak(device: str) -> int:
    """Return the most bytes in use since :func:`_start_of_peak`."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii", errors="ignore").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    memory = psutil.Process().memory_info()
    if os.name == "nt":
        return int(memory.peak_wset)
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS


def _estimated(name: str, variant: Facts, shape: tuple[int, ...], place: Placement) -> int:
    case = CASES[name]
    need = estimate(
        lambda: networks.build(name, **variant),
        lambda network: case.forward(network, torch.zeros(shape)),
        place.precision,
    )
    return need.total


def _agreement(name: str, network: Any, images: torch.Tensor, answer: Any) -> str:
    """Compare with float32 on the same device, without TF32."""
    case = CASES[name]
    cuda = images.device.type == "cuda"
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if cuda else nullcontext()
    with torch.inference_mode(), exact:
        wanted = case.forward(network, images)
        if case.decode is not None:
            wanted = case.decode(network, wanted)
    return agreement(case.compare, answer, wanted)


def _ratio(network: Any, images: torch.Tensor, place: Placement, runs: int) -> str:
    """Time upstream's form of SAM-Med3D's encoder against the package's."""
    if not TESTS.is_dir():
        return "not measured: the reference form lies in tests/"
    sys.path.insert(0, str(TESTS))
    from sam_med3d_reference import use_reference

    clock = time.process_time if place.device == "cpu" else time.perf_counter

    def seconds() -> float:
        _wait(place.device)
        began = clock()
        network.encode(images)
        _wait(place.device)
        return clock() - began

    with torch.inference_mode(), autocast(place):
        short = min(seconds() for _ in range(max(3, runs)))
        with use_reference(network.image_encoder):
            long = min(seconds() for _ in range(1 if place.device == "cpu" else 3))
    unit = "CPU s" if place.device == "cpu" else "s"
    return f"{long / short:.1f} times as long ({long:.3g} instead of {short:.3g} {unit})"


def main(argument: str) -> Facts:
    """Run the step the argument names."""
    wanted = json.loads(argument)
    step = wanted.pop("step")
    try:
        if step == "prepare":
            return prepare(wanted["name"], Path(wanted["folder"]), wanted["quick"])
        return forward(**wanted)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return {"failed": "out of memory"}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
