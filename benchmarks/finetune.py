"""Training FMUNet or PCT-Net on half of a real CT, measured on the other half.

The scan is cut across into four slabs; the first and the third are learnt from, the second and
the fourth are not seen before the end. All are of one patient: the figure says that training
works, not how well a model does on other patients.
With ``--device cuda`` the published setting runs (patch 64x128x128, batch 2, 1000 iterations).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

#: TotalSegmentator v2's numbers, which the labels use.
STRUCTURES = {"spleen": 1, "kidney right": 2, "liver": 5, "stomach": 6, "aorta": 52}
SLABS = ("1 learnt", "2 held out", "3 learnt", "4 held out")
DATA = Path(os.environ.get("OPENMEDLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))


def main(arguments: Sequence[str]) -> int:
    """Train, and print what it cost and what it brought."""
    options = _options(arguments)
    folder = options.data / "ct_torso_3mm"
    if not folder.is_dir():
        print(f"there is no {folder}: set OPENMEDLAB_DATA to the folder with real scans")
        return 2
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    found = slabs(folder, options.structures)
    settings = _settings(options)
    with tempfile.TemporaryDirectory() as place:
        report(found, settings, Path(place) / "run")
    return 0


def slabs(folder: Path, structures: Sequence[str]) -> Any:
    """Return the four slabs of the scan as checked cases."""
    import numpy as np

    from napari_openmedlab.geometry.boxes import Box
    from napari_openmedlab.geometry.volume import Volume
    from napari_openmedlab.io.api import read, read_labels
    from napari_openmedlab.training.cases import Case, check_cases

    scan = read(folder / "ct.nii.gz")
    labels = np.asarray(read_labels(folder / "labels.nii.gz", scan)[0].array)
    depth, height, width = scan.geometry.shape
    cases = []
    for number, name in enumerate(SLABS):
        first, last = (depth * n // len(SLABS) for n in (number, number + 1))
        box = Box((first, 0, 0), (last, height, width))
        half = Volume(scan.crop(box), scan.geometry.crop(box), name=name, modality="CT")
        cases.append(Case(name, half, labels[box.slices]))
    classes = {STRUCTURES[name]: name for name in structures}
    return check_cases(cases, classes, others_as_background=True)


def report(found: Any, settings: Any, folder: Path) -> None:
    """Train and print."""
    from napari_openmedlab.training.events import Event, Step
    from napari_openmedlab.training.plan import make_plan
    from napari_openmedlab.training.run import train

    plan = make_plan(found, settings)
    card = settings.device == "cuda"
    print(f"{plan.network} {plan.variant}")
    print(f"{plan.preprocessing}")
    print(f"{plan.loop}")
    times: list[float] = []
    seen = [time.perf_counter()]

    def hear(event: Event) -> None:
        now = time.perf_counter()
        if isinstance(event, Step):
            times.append(now - seen[0])
            if event.iteration % max(1, event.total // 10) == 0:
                print(f"  iteration {event.iteration}: loss {event.loss:.3f}", flush=True)
        seen[0] = now

    before = psutil.Process().cpu_times()
    begin = time.perf_counter()
    done = train(found, settings, folder, on_event=hear)
    wall, after = time.perf_counter() - begin, psutil.Process().cpu_times()
    used = after.user + after.system - before.user - before.system
    own = statistics.median(times[min(5, len(times) - 1) :])
    print(f"untrained: {_words(untrained(plan, found, folder))}")
    print(f"trained:   {_words(done.dice)} (held-out slabs, last weights)")
    print(
        f"{wall:.0f} s in all, {used:.0f} s of processor time, {own:.3f} s per iteration (median)"
    )
    print(f"peak memory: {_peak(card)}, load {os.getloadavg()[0]:.1f}")


def untrained(plan: Any, found: Any, folder: Path) -> dict[str, float]:
    """Return the Dice of the same network with its start weights."""
    from napari_openmedlab.models.contract import Monitor
    from napari_openmedlab.models.device import Placement
    from napari_openmedlab.training.prepared import open_cases, prepare_cases
    from napari_openmedlab.training.transfer import fresh_network
    from napari_openmedlab.training.validation import HeldOut

    by_name = {checked.case.name: checked for checked in found.cases}
    held_out = [by_name[name] for name in plan.held_out]
    prepare_cases(held_out, plan.preprocessing, plan.classes, folder, Monitor())
    network = fresh_network(plan.network, plan.variant, plan.loop.seed)
    measure = HeldOut(open_cases(folder), plan.preprocessing, plan.classes)
    return measure(network, Placement(), Monitor())


def _words(dice: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in dice.items())


def _peak(card: bool) -> str:
    if card:
        import torch

        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the card"
    status = Path("/proc/self/status")
    if not status.exists():
        return "not known here"
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return f"{int(line.split()[1]) / 2**20:.2f} GiB of the process"


def _settings(options: argparse.Namespace) -> Any:
    from napari_openmedlab.training.settings import TrainSettings

    card = options.device != "cpu"
    iterations = options.iterations or (1000 if card else 150)
    return TrainSettings(
        network=options.network,
        size="published" if card or options.network == "pct-net" else "small",
        patch=(64, 128, 128) if card else (8, 64, 64),
        resolution_mode=0 if card else 1,
        window=tuple(options.window),
        iterations=iterations,
        flips=options.flips,
        batch=2 if card else 4,
        held_out=(SLABS[1], SLABS[3]),
        validate_every=iterations,  # only at the end: nothing is chosen by the held-out half
        seed=options.seed,
        device=options.device,
        precision=options.precision,
    )


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks finetune", description=__doc__)
    parser.add_argument("--structures", nargs="+", choices=STRUCTURES, default=["liver", "spleen"])
    parser.add_argument("--network", choices=("fmunet", "pct-net"), default="fmunet")
    parser.add_argument("--iterations", type=int, default=0, help="150 on the CPU, 1000 on a card")
    parser.add_argument("--window", nargs=2, type=float, default=(-160.0, 240.0), metavar="HU")
    parser.add_argument("--flips", default="none", help="axes to mirror, or none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA)
    return parser.parse_args(list(arguments))
