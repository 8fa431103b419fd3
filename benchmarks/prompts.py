"""Prompt engines from click to labels: SAM-Med3D (against upstream's order) and SAM-Med2D.

Weights are stand-ins made on the spot: times don't depend on them, and nothing is downloaded.
Prints Markdown. The scan is 512 x 512 x 300 int16, in memory.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

__all__ = ["main"]

ENGINES = ("sam-med3d", "sam-med2d")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the engines asked for and print their tables."""
    given = _options(argv)
    if given.threads:
        os.environ["OMP_NUM_THREADS"] = str(given.threads)
    import SimpleITK
    import torch

    if given.threads:
        torch.set_num_threads(given.threads)
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(given.threads)
    from benchmarks import _prompt_run as run

    volume = run.scan(tuple(given.shape))
    before = os.environ.get("OPENMEDLAB_MODELS")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        os.environ["OPENMEDLAB_MODELS"] = folder
        try:
            print(_about(given, volume))
            for engine in given.engines:
                print(f"\n### {engine}\n", flush=True)
                _measure(engine, given, volume, Path(folder))
        finally:
            os.environ.pop("OPENMEDLAB_MODELS")
            if before is not None:
                os.environ["OPENMEDLAB_MODELS"] = before
    return 0


def _measure(engine: str, given: argparse.Namespace, volume: Any, folder: Path) -> None:
    from benchmarks import _prompt_run as run

    model = run.stand_in(engine, folder)
    rows = run.Rows(given.runs)
    options = {"checkpoint": model, "device": given.device, "precision": given.precision}
    if engine == "sam-med2d":
        run.measure_sam_med2d(rows, volume, options, slices=2 if given.quick else 12)
        print(rows.table())
        return
    run.measure_sam_med3d(rows, volume, options)
    run.measure_parts(rows, volume, model)
    compared = ""
    if not given.no_upstream:
        compared = run.measure_upstream(rows, volume, model, options, quick=given.quick)
    print(rows.table())
    print(f"\n{compared}")


def _about(given: argparse.Namespace, volume: Any) -> str:
    import torch

    from napari_openmedlab.models.device import choose

    size = " x ".join(str(n) for n in reversed(volume.geometry.shape))
    load = ", ".join(f"{value:.1f}" for value in psutil.getloadavg())
    return (
        f"Scan {size} {volume.array.dtype}, {volume.array.nbytes / 2**20:.0f} MiB in memory; "
        f"{choose(given.device).device.name}; {os.cpu_count()} cores {platform.machine()}, "
        f"{torch.get_num_threads()} threads; torch {torch.__version__}; stand-in weights; medians; "
        f"load of the machine {load}."
    )


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks prompts", description=__doc__)
    add = parser.add_argument
    add("engines", nargs="*", metavar="ENGINE", help=f"{', '.join(ENGINES)} (default: all there)")
    add("--device", default="cpu", help="auto, cpu, cuda, cuda:1, mps (default: cpu)")
    add("--precision", default="auto", choices=("auto", "float32", "half"))
    add("--threads", type=int, default=2, help="CPU threads; 0: as torch sets them (default: 2)")
    add("--runs", type=int, default=5, help="runs of each task (default: 5)")
    add("--shape", type=int, nargs=3, default=(300, 512, 512), metavar="N", help="scan (z, y, x)")
    add("--no-upstream", action="store_true", help="leave the comparison out: it takes minutes")
    add("--quick", action="store_true", help="compare with upstream's order but our encoder")
    add("--folder", type=Path, help="folder for temporary weight files")
    given = parser.parse_args(argv)
    from napari_openmedlab.models.catalogue import engines

    here = [spec.id for spec in engines("promptable") if spec.id in ENGINES]
    if unknown := sorted(set(given.engines) - set(here)):
        parser.error(f"no engine {', '.join(unknown)} to measure; there are: {', '.join(here)}")
    if given.runs < 1 or given.threads < 0:
        parser.error("--runs starts at 1, --threads at 0")
    given.engines = given.engines or here
    return given
