"""Build, load and run every published network: seconds, peak memory, agreement in half precision.

Each network has processes of its own, so that peaks don't mix. Weights are stand-ins: times
and memory don't depend on them, and nothing is downloaded. The table is Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from napari_openmedlab.models import networks

__all__ = ["LARGE", "main", "table"]

ROOT = Path(__file__).resolve().parents[1]
Facts = dict[str, Any]

#: Left out unless named or asked for by ``--all``: gigabytes of weights, minutes of time.
LARGE = ("sam-vit-l", "sam-vit-h", "stu-net-l", "stu-net-h")

_COLUMNS = (
    "network",
    "parameters",
    "build meta / CPU",
    "convert",
    "load",
    "input",
    "precision",
    "first",
    "forward",
    "CPU time",
    "click",
    "peak memory",
    "estimate",
    "against float32",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a network failed."""
    options = _options(argv)
    names = options.networks or [n for n in networks.names() if options.all or n not in LARGE]
    facts: list[Facts] = []
    print(table(()), flush=True)
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found = measure(name, options)
        print(*(_row(fact) for fact in found), sep="\n", flush=True)
        facts += found
    print(f"\n{_about(facts, options)}")
    for fact in facts:
        if "ratio" in fact:
            print(
                f"\n{fact['name']} in {fact['precision']}: the written-out form of the encoder "
                f"takes {fact['ratio']}."
            )
    return int(any("failed" in fact for fact in facts))


def measure(name: str, options: argparse.Namespace) -> list[Facts]:
    """Return what was measured on one network, one item a precision."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        wanted = {"name": name, "quick": options.quick}
        ready = _call(options, step="prepare", folder=folder, **wanted)
        if "failed" in ready:
            return [{"name": name, **ready}]
        found = []
        for precision in options.precision:
            ran = _call(
                options,
                step="forward",
                path=str(Path(folder) / f"{name}.safetensors"),
                variant=ready["variant"],
                device=options.device,
                precision=precision,
                runs=options.runs,
                threads=options.threads,
                **wanted,
            )
            found.append({"name": name, "precision": precision, **ready, **ran})
        return found


def table(facts: Sequence[Facts]) -> str:
    """Return measured facts as a Markdown table."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
    return "\n".join([*lines, *(_row(fact) for fact in facts)])


def _row(fact: Facts) -> str:
    return "| " + " | ".join(_cells(fact)) + " |"


def _cells(fact: Facts) -> list[str]:
    if "failed" in fact:
        return [fact["name"], fact["failed"], *[""] * (len(_COLUMNS) - 2)]
    return [
        fact["name"],
        f"{fact['parameters'] / 1e6:.1f} M",
        f"{fact['build_meta']:.2f} / {fact['build_cpu']:.2f} s",
        f"{fact['convert']:.1f} s",
        f"{fact['load']:.2f} s",
        " x ".join(str(side) for side in fact["shape"]),
        fact["precision"],
        _seconds(fact["first"]),
        _seconds(fact["forward"]),
        _seconds(fact["cpu"]),
        _seconds(fact["decode"]) if "decode" in fact else "",
        f"{fact['peak'] / 2**20:.0f} MiB",
        f"{fact['estimate'] / 2**20:.0f} MiB",
        fact.get("agreement", ""),
    ]


def _seconds(value: float) -> str:
    return f"{1000 * value:.1f} ms" if value < 0.1 else f"{value:.2f} s"


def _about(facts: Sequence[Facts], options: argparse.Namespace) -> str:
    """Return on what, and how, was measured."""
    import torch

    ran = [fact for fact in facts if "device" in fact]
    devices = sorted({fact["device"] for fact in ran}) or ["nothing ran"]
    threads = sorted({str(fact["threads"]) for fact in ran})
    weights = sorted({fact["weights"] for fact in facts if "weights" in fact})
    load = ", ".join(f"{value:.1f}" for value in psutil.getloadavg())
    return (
        f"On {', '.join(devices)}; {os.cpu_count()} cores {platform.machine()}, "
        f"{'/'.join(threads)} CPU threads; torch {torch.__version__}; median of {options.runs} "
        f"runs after the first; {', '.join(weights)}; load of the machine {load}."
    )


def _call(options: argparse.Namespace, **wanted: Any) -> Facts:
    """Run one step in a process of its own and return its facts."""
    environment = dict(os.environ)
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    command = [sys.executable, "-m", "benchmarks._network_run", json.dumps(wanted)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    print(done.stderr, file=sys.stderr)
    return {"failed": f"failed: {last}"}


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks networks", description=__doc__)
    add = parser.add_argument
    add("networks", nargs="*", metavar="NETWORK", help="names; by default all but the largest")
    add("--all", action="store_true", help=f"also {', '.join(LARGE)}")
    add("--device", default="cpu", help="auto, cpu, cuda, cuda:1, mps (default: cpu)")
    add(
        "--precision",
        nargs="+",
        default=["float32"],
        choices=["auto", "float32", "half", "bfloat16", "float16"],
        help="one row each; half ones are compared with float32",
    )
    add("--runs", type=int, default=3, help="forward passes timed after the first (default: 3)")
    add("--threads", type=int, default=0, help="CPU threads (default: as torch sets them)")
    add("--quick", action="store_true", help="smaller inputs where the network takes them")
    add("--folder", type=Path, help="folder for temporary weight files")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.networks) - set(networks.names()))
    if unknown:
        parser.error(f"no network {', '.join(unknown)}; there are: {', '.join(networks.names())}")
    if options.runs < 1 or options.threads < 0:
        parser.error("--runs starts at 1, --threads at 0")
    return options
