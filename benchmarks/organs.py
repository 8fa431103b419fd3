"""All organs at once: seconds a stage and peak memory, against the plain order of operations.

``ours`` is the engine; ``plain`` does what nnU-Net v1 does, written out: resampling in float64,
class sums of the whole volume, every class resampled back, then the largest. Both run the same
network with stand-in weights over the same made-up CT, each in a process of its own. Stand-in
weights give noise, so no voxel's neighbours agree and nothing can be copied: the worst case for
the way back. ``smooth`` runs a network without weights whose classes are regions, as trained ones
are; ``memory`` a large grid with 105 classes and next to no network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

__all__ = ["main", "table"]

ROOT = Path(__file__).resolve().parents[1]
Facts = dict[str, Any]
WAYS = ("ours", "plain", "ours-smooth", "plain-smooth", "memory")
_COLUMNS = ("way", "scan", "windows", "prepare", "windows took", "back", "all", "peak memory", "")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a way failed."""
    options = _options(argv)
    facts = []
    for way in options.ways:
        print(f"{way} ...", file=sys.stderr, flush=True)
        facts.append(_call(way, options))
    load = ", ".join(f"{value:.1f}" for value in psutil.getloadavg())
    print(
        f"{options.size.upper()}, grid of {options.spacing:g} mm, step {options.step:g}; "
        f"{os.cpu_count()} cores, {options.threads or 'all'} threads; load of the machine {load}.\n"
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
    whole = sum(fact[stage] for stage in ("prepare", "run", "back"))
    return [
        fact["way"],
        " x ".join(map(str, fact["shape"])),
        str(fact["windows"]),
        f"{fact['prepare']:.1f} s",
        f"{fact['run']:.1f} s",
        f"{fact['back']:.1f} s",
        f"{whole:.1f} s",
        f"{fact['peak'] / 1e9:.2f} GB",
        fact.get("remark", ""),
    ]


def _call(way: str, options: argparse.Namespace) -> Facts:
    """Run one way in a process of its own and return its facts."""
    wanted = {
        "way": way,
        "size": options.size,
        "shape": options.shape,
        "voxel": options.voxel,
        "spacing": options.spacing,
        "step": options.step,
        "channels": options.channels,
        "device": options.device,
    }
    environment = dict(os.environ)
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    command = [sys.executable, "-m", "benchmarks._organs_run", json.dumps(wanted)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    if done.returncode == 0:
        return {"way": way, **json.loads(done.stdout.splitlines()[-1])}
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    print(done.stderr, file=sys.stderr)
    return {"way": way, "failed": f"failed: {last}"}


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks organs", description=__doc__)
    add = parser.add_argument
    add("ways", nargs="*", metavar="WAY", help=f"of {', '.join(WAYS)} (default: ours plain)")
    add("--size", default="s", choices=["s", "b", "l", "h"], help="of STU-Net (default: s)")
    add("--shape", type=int, nargs=3, default=[300, 512, 512], help="voxels (z, y, x)")
    add("--voxel", type=float, nargs=3, default=[1.5, 0.8, 0.8], help="mm (z, y, x)")
    add("--spacing", type=float, default=3.0, help="network's grid in mm (default: 3)")
    add("--step", type=float, default=0.5, help="window step (default: 0.5)")
    add(
        "--channels",
        type=int,
        default=0,
        help="classes that plain brings back, its time there scaled up to all (default: all)",
    )
    add("--device", default="cpu", help="for the ways 'ours' (default: cpu)")
    add("--threads", type=int, default=0, help="CPU threads (default: as torch sets them)")
    options = parser.parse_args(argv)
    options.ways = options.ways or ["ours", "plain"]
    unknown = sorted(set(options.ways) - set(WAYS))
    if unknown:
        parser.error(f"no way {', '.join(unknown)}; there are: {', '.join(WAYS)}")
    return options
