"""Axons in large volumes: Mvoxel/s, peak memory, previews, and upstream's order of operations.

``filter`` streams a made-up light-sheet brain (OME-Zarr, uint16, generated on first use) through
the built-in filter; ``preview`` scores one block as the panel does; ``network`` runs Axon-Seg's
network with stand-in weights on one block and extrapolates to D-LMBmap's brain; ``upstream`` runs
the published order of operations and ours on one region with one small network, and measures the
step at block borders of both. Each way runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil

__all__ = ["main", "table"]

ROOT = Path(__file__).resolve().parents[1]
Facts = dict[str, Any]
WAYS = ("filter", "preview", "network", "upstream")
_COLUMNS = ("way", "volume", "seconds", "Mvoxel/s", "peak memory", "")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a way failed."""
    options = _options(argv)
    facts: list[Facts] = []
    for way in options.ways:
        shapes = options.shape or [(512, 512, 512)]
        for shape in shapes if way == "filter" else shapes[:1]:
            print(f"{way} {shape if way == 'filter' else ''} ...", file=sys.stderr, flush=True)
            runs = [_call(way, shape, options) for _ in range(options.repeat)]
            facts.append(_median(runs))
    load = ", ".join(f"{value:.1f}" for value in psutil.getloadavg())
    print(
        f"{os.cpu_count()} cores, {options.threads or 'all'} threads, {options.repeat} runs; load "
        f"of the machine {load}.\n"
    )
    print(table(facts))
    return int(any("failed" in fact for fact in facts))


def table(facts: Sequence[Facts]) -> str:
    """Return measured facts as a Markdown table."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
    lines += ["| " + " | ".join(_cells(fact)) + " |" for fact in facts]
    return "\n".join(lines)


def _cells(fact: Facts) -> list[str]:
    if "failed" in fact:
        return [fact["way"], fact["failed"], *[""] * (len(_COLUMNS) - 2)]
    return [
        fact["way"],
        " x ".join(map(str, fact["shape"])),
        f"{fact['seconds']:.2f}",
        f"{fact['rate']:.3g}",
        f"{fact['peak'] / 1e9:.2f} GB",
        fact.get("remark", ""),
    ]


def _median(runs: Sequence[Facts]) -> Facts:
    """Return the run of the middle time, with the largest peak."""
    good = [run for run in runs if "failed" not in run]
    if not good:
        return runs[0]
    middle = median(run["seconds"] for run in good)
    chosen = min(good, key=lambda run: abs(run["seconds"] - middle))
    return {**chosen, "peak": max(run["peak"] for run in good)}


def _call(way: str, shape: Sequence[int], options: argparse.Namespace) -> Facts:
    """Run one way in a process of its own and return its facts."""
    wanted = {
        "way": way,
        "shape": list(shape),
        "folder": str(options.folder),
        "workers": options.workers,
        "device": options.device,
        "window": options.window,
    }
    environment = dict(os.environ)
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    command = [sys.executable, "-m", "benchmarks._axons_run"]
    if way == "filter":  # the volume is made in a process whose memory is not counted
        made = subprocess.run(
            [*command, json.dumps({**wanted, "way": "make"})], cwd=ROOT, check=False,
            capture_output=True, text=True, env=environment,
        )  # fmt: skip
        if made.returncode:
            return {"way": way, "failed": (made.stderr.strip().splitlines() or ["failed"])[-1]}
    done = subprocess.run(
        [*command, json.dumps(wanted)], capture_output=True, text=True, cwd=ROOT, check=False,
        env=environment,
    )  # fmt: skip
    if done.returncode == 0:
        return {"way": way, **json.loads(done.stdout.splitlines()[-1])}
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    print(done.stderr, file=sys.stderr)
    return {"way": way, "failed": f"failed: {last}"}


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks axons", description=__doc__)
    add = parser.add_argument
    add("ways", nargs="*", metavar="WAY", help=f"of {', '.join(WAYS)} (default: filter preview)")
    add(
        "--shape", type=int, nargs=3, action="append",
        help="voxels (z, y, x) of the made-up brain; may be repeated (default: 512 512 512)",
    )  # fmt: skip
    add(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "openmedlab-benchmarks",
        help="where volumes and results go; volumes are kept for the next time",
    )  # fmt: skip
    add("--repeat", type=int, default=1, help="runs of each way (default: 1)")
    add("--workers", type=int, default=0, help="blocks at once; 0: one for each core")
    add("--threads", type=int, default=0, help="CPU threads of the network")
    add("--device", default="auto", help="of the network (default: auto)")
    add("--window", type=int, default=128, help="of the network's published form (default: 128)")
    options = parser.parse_args(argv)
    options.ways = options.ways or ["filter", "preview"]
    unknown = sorted(set(options.ways) - set(WAYS))
    if unknown:
        parser.error(f"no way {', '.join(unknown)}; there are: {', '.join(WAYS)}")
    return options
