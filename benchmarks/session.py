"""Read, click-to-labels, undo, redo and export of a 512 x 512 x 300 scan: time and peak memory.

The scan is made in memory, so the figures need no data. Times are medians; memory is the peak
of what Python and NumPy allocate during one repetition, over what was allocated before.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.session.session import Session
from napari_openmedlab.session.workbench import Workbench, run_once

SPACING_MM = (1.5, 0.8, 0.8)
LARGE_MM = (85.0, 75.0, 65.0)
"""Semi-axes (z, y, x) of an object as large as a liver."""
SMALL_MM = (40.0, 22.0, 24.0)
"""Semi-axes of one as large as a kidney."""


@dataclass
class Rows:
    """Measured figures, one row a task."""

    repeat: int
    rows: list[tuple[str, float, int, float]] = field(default_factory=list)

    def measure(
        self, name: str, task: Callable[[], object], before: Callable[[], object] | None = None
    ) -> None:
        """Time a task ``repeat`` times, once more for its memory; ``before`` is not counted."""
        seconds = []
        for _ in range(self.repeat):
            if before is not None:
                before()
            start = time.perf_counter()
            task()
            seconds.append(time.perf_counter() - start)
        if before is not None:
            before()
        self.rows.append((name, statistics.median(seconds), self.repeat, _peak_mib(task)))

    def table(self) -> Table:
        """Return the figures for the terminal."""
        table = Table("task")
        for head in ("median s", "repetitions", "peak memory MiB"):
            table.add_column(head, justify="right")
        for name, seconds, count, peak in self.rows:
            memory = "" if np.isnan(peak) else f"{peak:.0f}"
            table.add_row(name, f"{seconds:.4f}", str(count), memory)
        return table


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks session", description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(300, 512, 512), metavar="N")
    parser.add_argument("--engine", default="built-in")
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args(arguments)
    console = Console()
    rows = Rows(given.repeat)
    volume = make_scan(tuple(given.shape))
    console.print(
        f"scan {' x '.join(map(str, volume.geometry.shape))}, engine '{given.engine}', "
        f"{volume.array.nbytes / 2**20:.0f} MiB"
    )
    with tempfile.TemporaryDirectory() as folder:
        volume = measure_read(rows, volume, Path(folder))
        measure_session(rows, volume, given.engine, Path(folder))
    console.print(rows.table())
    if peak := _peak_rss_mib():
        console.print(f"peak resident memory of the whole process: {peak:.0f} MiB")
    return 0


def make_scan(shape: tuple[int, int, int]) -> Volume:
    """Return a body with a large and a small object, noise, int16."""
    affine = np.zeros((4, 4))
    # Display order: axes grow to I, P, L.
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = -SPACING_MM[0], *SPACING_MM[1:], 1
    geometry = Geometry(shape, affine)
    rng = np.random.default_rng(1)
    array = np.empty(shape, dtype=np.int16)
    for z in range(shape[0]):
        array[z] = rng.integers(-18, 19, shape[1:], dtype=np.int16) + np.int16(20)
    for centre, semi_axes, value in _objects(geometry):
        box, inside = _ellipsoid(geometry, centre, semi_axes)
        array[box.slices][inside] += np.int16(value)
    return Volume(array, geometry, name="benchmark", modality="CT")


def _objects(geometry: Geometry) -> list[tuple[np.ndarray, tuple[float, ...], int]]:
    size = np.array(geometry.shape)
    extent = size * geometry.spacing
    shrink = min(1.0, float((extent / 410).min()))
    return [
        (size * (0.45, 0.45, 0.3), tuple(shrink * a for a in LARGE_MM), 90),
        (size * (0.6, 0.6, 0.75), tuple(shrink * a for a in SMALL_MM), 150),
    ]


def _ellipsoid(
    geometry: Geometry, centre: np.ndarray, semi_axes: tuple[float, ...]
) -> tuple[Box, np.ndarray]:
    reach = np.ceil(np.array(semi_axes) / geometry.spacing).astype(int) + 1
    middle = np.rint(centre).astype(int)
    box = Box(tuple(middle - reach), tuple(middle + reach + 1)).clip(geometry.shape)
    axes = np.ogrid[box.slices]
    gap = sum(
        ((a - m) * s / r) ** 2
        for a, m, s, r in zip(axes, middle, geometry.spacing, semi_axes, strict=True)
    )
    return box, gap <= 1.0


def extreme_points(geometry: Geometry, number: int) -> np.ndarray:
    """Return the six ends of an object of the scan, world (x, y, z)."""
    centre, semi_axes, _ = _objects(geometry)[number]
    ends = []
    for axis in range(3):
        for sign in (-1, 1):
            end = np.rint(centre)
            end[axis] += sign * np.floor(semi_axes[axis] / geometry.spacing[axis])
            ends.append(end)
    return geometry.to_world(ends)


def measure_read(rows: Rows, volume: Volume, folder: Path) -> Volume:
    """Measure reading from NIfTI, plain and compressed; return the scan as read."""
    import nibabel

    from napari_openmedlab.geometry.frames import ras_lps
    from napari_openmedlab.io.api import read

    stored = volume.array[::-1, :, :].transpose(2, 1, 0)
    geometry = volume.geometry
    affine = np.eye(4)
    affine[:3, 0] = geometry.affine[:3, 2]
    affine[:3, 1] = geometry.affine[:3, 1]
    affine[:3, 2] = -geometry.affine[:3, 0]
    affine[:3, 3] = geometry.to_world((geometry.shape[0] - 1, 0, 0))
    image = nibabel.Nifti1Image(stored, ras_lps(affine))
    for suffix in (".nii", ".nii.gz"):
        path = folder / f"scan{suffix}"
        image.to_filename(path)
        rows.measure(f"read {suffix}", lambda path=path: np.asarray(read(path).array).max())
    found = read(folder / "scan.nii")
    if not np.array_equal(found.array, volume.array):
        raise SystemExit("the scan was read back different: the figures would mean nothing")
    return found


def measure_session(rows: Rows, volume: Volume, engine: str, folder: Path) -> None:
    """Measure answers, corrections, undo, redo, saving and export."""
    from dataclasses import replace

    from napari_openmedlab.session.export import export
    from napari_openmedlab.session.store import load, save

    bench = Workbench()
    session = Session(volume)
    session.choice = replace(session.choice, engine=engine)
    asked = time.perf_counter()
    run_object(session, bench, 1)
    rows.rows.append(("first answer, engine loading", time.perf_counter() - asked, 1, float("nan")))

    for number, size in ((1, "kidney"), (0, "liver")):
        name = f"six extreme points to labels, {size} size"
        rows.measure(
            name, lambda n=number: run_object(session, bench, n), lambda: take_back(session)
        )
    clicks = iter(_clicks(volume.geometry, 4 * rows.repeat))
    rows.measure("click to labels, liver size", lambda: click(session, bench, *next(clicks)))
    take_back(session)
    run_object(session, bench, 0)
    rows.measure("undo the liver", session.undo, session.redo)
    session.redo()
    rows.measure("redo the liver", session.redo, session.undo)
    if not session.objects[0].voxels:
        raise SystemExit("the liver is gone after redo: the figures would mean nothing")
    rows.measure("save the session", lambda: save(session, folder / "s.omlsession"))
    rows.measure("load the session", lambda: load(folder / "s.omlsession", volume))
    rows.measure("export .nii.gz", lambda: export(session, folder / "mask.nii.gz"))
    bench.release()


def take_back(session: Session) -> None:
    """Undo until there is no object."""
    while session.objects:
        session.undo()


def run_object(session: Session, bench: Workbench, number: int) -> None:
    """Add an object and answer its extreme points."""
    session.add_object()
    points = extreme_points(session.volume.geometry, number)
    session.set_prompts(PromptSet(extreme_points=tuple(map(tuple, points))))
    answer(session, bench)


def click(session: Session, bench: Workbench, point: np.ndarray, positive: bool) -> None:
    """Add a click to the active object and answer it."""
    session.set_prompts(session.active.prompts.with_click(point, positive))
    answer(session, bench)


def answer(session: Session, bench: Workbench) -> None:
    """Let the engine answer, through the session, as the viewer does."""
    request = session.request()
    found = run_once(session.choice.engine, session.volume, request, bench=bench)
    session.apply(found, request)


def _clicks(geometry: Geometry, count: int) -> list[tuple[np.ndarray, bool]]:
    """Return points just inside and just outside the large object, in turn."""
    centre, semi_axes, _ = _objects(geometry)[0]
    rng = np.random.default_rng(2)
    found = []
    for number in range(count):
        way = rng.standard_normal(3)
        reach = 0.9 if number % 2 == 0 else 1.1
        offset = reach * way / np.linalg.norm(way) * semi_axes / geometry.spacing
        found.append((geometry.to_world(np.rint(centre + offset)), number % 2 == 0))
    return found


def _peak_mib(task: Callable[[], object]) -> float:
    gc.collect()
    tracemalloc.start()
    try:
        task()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def _peak_rss_mib() -> float:
    try:
        import resource
    except ImportError:  # Windows has no such figure in the standard library
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
