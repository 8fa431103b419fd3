"""Finding structures without training: box IoU and wall distances on phantoms, cropped scans.

Phantoms carry real anatomy (two AMOS22 label volumes, where they are at hand) or that of a torso
of ellipsoids: deformed, turned, scaled, with intensities drawn for every organ. Templates and
scans to search never share a seed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

_LEAST_VOXELS = 4
_SPANS = {"upper half": (0.5, 1.0), "lower 40 %": (0.0, 0.4), "middle": (0.35, 0.75)}


def main(arguments: Sequence[str]) -> int:
    """Measure and print tables in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks atlas", description=__doc__)
    parser.add_argument("--labels", type=Path, help="Folder with the AMOS22 label volumes.")
    parser.add_argument("--queries", type=int, default=3, help="Scans to search per anatomy.")
    parser.add_argument("--mode", default="full", choices=("full", "quick"))
    parser.add_argument("--templates", type=int, nargs="*", default=[1, 3, 5])
    chosen = parser.parse_args(arguments)
    anatomies = _anatomies(chosen.labels)
    print(f"load {os.getloadavg()[0]:.1f}, anatomies: {', '.join(anatomies)}\n")
    bench = _Bench(anatomies, chosen.mode)
    bench.accuracy(chosen.templates, chosen.queries)
    bench.fields_of_view()
    print(f"seconds a pair (clock): {np.mean(bench.seconds):.1f}, CPU: {np.mean(bench.cpu):.1f}")
    print(f"load {os.getloadavg()[0]:.1f}")
    return 0


def _anatomies(folder: Path | None) -> dict[str, Any]:
    from torso_phantoms import own_anatomy, real_anatomy

    files = sorted(folder.glob("amos_*_label.nii.gz")) if folder else []
    return {f.name[5:9]: real_anatomy(f) for f in files} or {"ellipsoids": own_anatomy()}


class _Bench:
    def __init__(self, anatomies: dict[str, Any], mode: str) -> None:
        from napari_openmedlab.models.catalogue import load_engine

        self._anatomies = anatomies
        self._engine = load_engine("atlas")
        self._mode = mode
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self._templates = {
            name: [self._template(a, f"{name}-{k}", 100 + k) for k in range(5)]
            for name, a in anatomies.items()
        }

    @staticmethod
    def _template(anatomy: Any, name: str, seed: int) -> Any:
        from torso_phantoms import phantom

        from napari_openmedlab.geometry.extreme_points import walls_of_mask
        from napari_openmedlab.models.localisation import Landmarks, Template

        made = phantom(anatomy, seed)
        marks = tuple(
            Landmarks(n, tuple(map(tuple, walls_of_mask(made.labels == v, made.volume.geometry))))
            for v, n in made.names.items()
            if np.count_nonzero(made.labels == v) >= _LEAST_VOXELS
        )
        return Template(name, name, marks, load=lambda: made.volume)

    def _guesses(self, query: Any, templates: Sequence[Any], mode: str) -> list[Any]:
        """Return what each template says by itself: every pair is aligned once."""
        from napari_openmedlab.models.engines.atlas import engine as atlas
        from napari_openmedlab.models.engines.atlas.aligning import align
        from napari_openmedlab.models.engines.atlas.working import work

        image = work(query.volume, True)
        said = []
        for template in templates:
            own = self._engine._worked(template, "auto")
            clock, cpu = time.perf_counter(), time.process_time()
            found = align(own, image, lambda: None, fine=mode == "full")
            guesses: dict[str, list[Any]] = {each.name: [] for each in template.structures}
            if found is not None:
                atlas._guess(guesses, template, own, image, found)
            self.seconds.append(time.perf_counter() - clock)
            self.cpu.append(time.process_time() - cpu)
            said.append(guesses)
        return said

    @staticmethod
    def _fused(said: Sequence[Any], query: Any) -> list[Any]:
        from napari_openmedlab.models.engines.atlas.fusing import fuse

        names = dict.fromkeys(name for each in said for name in each)
        grid = query.volume.geometry
        return [fuse(n, [g for each in said for g in each.get(n, [])], grid) for n in names]

    def accuracy(self, counts: Sequence[int], queries: int) -> None:
        """Print how well boxes fit, with templates of the same anatomy and of the other."""
        from torso_phantoms import phantom

        rows: dict[tuple[str, int], dict[str, list[tuple[float, float]]]] = {}
        lost = dict.fromkeys((), 0)
        names = list(self._anatomies)
        for name in names:
            for number in range(queries):
                codes = ("IPL", "RAS", "LPS", "SRA", "LIP")[number % 5]
                query = phantom(self._anatomies[name], 500 + number, codes=codes)
                kinds = {"same anatomy": self._templates[name]}
                others = [t for n in names if n != name for t in self._templates[n]]
                if others:
                    kinds["the other anatomy"] = others
                for kind, templates in kinds.items():
                    said = self._guesses(query, templates[: max(counts)], self._mode)
                    for count in counts:
                        found = self._fused(said[:count], query)
                        key = (kind, count)
                        lost[key] = lost.get(key, 0) + _score(
                            found, query, rows.setdefault(key, {})
                        )
        self._print(rows, lost)

    @staticmethod
    def _print(rows: Any, lost: Any) -> None:
        keys = sorted(rows, key=lambda k: (k[0] != "same anatomy", k[1]))
        print("| organ | " + " | ".join(f"{kind}, {n}" for kind, n in keys) + " |")
        print("|---|" + "---|" * len(keys))
        organs = sorted({organ for row in rows.values() for organ in row})
        for organ in [*organs, "all"]:
            cells = []
            for key in keys:
                chosen = [organ] if organ != "all" else list(rows[key])
                pairs = [pair for each in chosen for pair in rows[key].get(each, [])]
                cells.append(
                    f"{np.mean([p[0] for p in pairs]):.0%} / {np.mean([p[1] for p in pairs]):.1f}"
                    if pairs
                    else "-"
                )
            print(f"| {organ} | " + " | ".join(cells) + " |")
        print(
            "| present, not found | " + " | ".join(str(lost[k]) for k in keys) + " |\n", flush=True
        )

    def fields_of_view(self, count: int = 2, mode: str = "quick") -> None:
        """Print for cropped scans whether what is absent is told, and what is present kept."""
        from torso_phantoms import phantom

        head = ("scan", "templates", "absent", "told absent", "false alarms (confidence)")
        print(f"| {' | '.join(head)} | whole | found |")
        print("|---|---|---|---|---|---|---|")
        for label, span in _SPANS.items():
            for kind in ("same anatomy", "the other anatomy"):
                total = np.zeros(4, int)
                alarms: list[float] = []
                for number, name in enumerate(self._anatomies):
                    others = [n for n in self._anatomies if n != name]
                    source = name if kind == "same anatomy" else (others or [""])[0]
                    if not source:
                        continue
                    query = phantom(self._anatomies[name], 600 + number, span=span)
                    said = self._guesses(query, self._templates[source][:count], mode)
                    found = self._fused(said, query)
                    for each in found:
                        value = next(v for v, n in query.names.items() if n == each.name)
                        _count(each, query.labels == value, total, alarms)
                listed = ", ".join(f"{c:.2f}" for c in sorted(alarms)) or "none"
                print(
                    f"| {label} | {kind}, {count} | {total[0]} | {total[1]} "
                    f"| {len(alarms)} ({listed}) | {total[2]} | {total[3]} |",
                    flush=True,
                )
        print()


def _score(found: Any, query: Any, rows: dict[str, list[tuple[float, float]]]) -> int:
    from napari_openmedlab.geometry.labels import MaskPatch

    lost = 0
    for each in found:
        value = next(v for v, n in query.names.items() if n == each.name)
        patch = MaskPatch.of(query.labels == value)
        if patch.count < _LEAST_VOXELS:
            continue
        if not each.found:
            lost += 1
            continue
        shared = each.box.intersection(patch.box).size
        iou = shared / (each.box.size + patch.box.size - shared)
        gaps = np.abs(np.array([each.box.start, each.box.stop]) - [patch.box.start, patch.box.stop])
        wall = float((gaps * np.array(query.volume.geometry.spacing)).mean())
        rows.setdefault(each.name, []).append((iou, wall))
    return lost


def _count(each: Any, mask: Any, total: Any, alarms: list[float]) -> None:
    """Absent: no voxel; whole: no voxel on the scan's first or last slice."""
    if not mask.any():
        total[0] += 1
        if each.found:
            alarms.append(each.confidence)
        else:
            total[1] += 1
    elif not mask[0].any() and not mask[-1].any():
        total[2] += 1
        total[3] += each.found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
