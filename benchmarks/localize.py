"""MedLAM: ten structures of three templates found in a scan, against upstream's order.

Weights are stand-ins made on the spot (the last layer scaled down, so that jumps stay in the scan
and no two points share a patch): times don't depend on them, and nothing is downloaded. Prints
Markdown. Upstream's order is measured on one structure and scaled, as the table says.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence

import psutil

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the engine and upstream's order of operations, and print a table."""
    given = _options(argv)
    if given.threads:
        os.environ["OMP_NUM_THREADS"] = str(given.threads)
    import torch

    if given.threads:
        torch.set_num_threads(given.threads)
    from benchmarks import _localize_run as run

    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    memory = psutil.virtual_memory().total / 2**30
    print(
        f"{platform.machine()}, {psutil.cpu_count(logical=False)} cores, {memory:.0f} GiB, torch "
        f"{torch.__version__} with {torch.get_num_threads()} thread(s); load before {load}.\n"
    )
    print(run.measure(given.structures, given.templates, given.learn, given.width))
    print(f"\nLoad after: {', '.join(f'{each:.1f}' for each in os.getloadavg())}.")
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks localize", description=__doc__)
    add = parser.add_argument
    add("--structures", type=int, default=10)
    add("--templates", type=int, default=3)
    add("--learn", type=int, default=0, help="structures learnt by the network; the others take "
        "copies of what was learnt, in other places (0: all)")  # fmt: skip
    add("--threads", type=int, default=0, help="processor threads (0: as torch sees fit)")
    add("--width", type=int, default=24, help="of the network; 24 as published")
    given = parser.parse_args(argv)
    if (
        min(given.structures, given.templates, given.width) < 1
        or min(given.learn, given.threads) < 0
    ):
        parser.error("--structures, --templates and --width start at 1, the others at 0")
    given.learn = min(given.learn or given.structures, given.structures)
    return given
