"""MedLAM as a localizer: six points on a few templates, the same structures in any other CT."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from napari_openmedlab.errors import EngineError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.extreme_points import box_of_walls
from napari_openmedlab.geometry.prompts import as_point
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.embeddings import EmbeddingCache
from napari_openmedlab.models.engines.medlam.grid import ENGINE_ID
from napari_openmedlab.models.engines.medlam.judging import checks_of, judge
from napari_openmedlab.models.engines.medlam.jumps import start_voxels
from napari_openmedlab.models.engines.medlam.patches import Steps
from napari_openmedlab.models.engines.medlam.preparing import VERSION, Prepared, prepare
from napari_openmedlab.models.engines.medlam.search import Located, look_at, refine
from napari_openmedlab.models.engines.medlam.templates import Gathered, Lesson, gather
from napari_openmedlab.models.engines.weights import Loaded, Weights
from napari_openmedlab.models.localisation import Found, Localisation, Template

__all__ = ["SCALES_OF", "MedLam"]

SCALES_OF: Mapping[str, tuple[int, ...]] = {"full": (0, 1, 2), "quick": (0, 1)}
"""Feature scales by the option ``mode``; quick leaves out the finest, 3/4 of the work."""

_BATCH = 8  # patches at a time on a graphics card
_EMPTY = Box((0, 0, 0), (0, 0, 0))
_NOT_FOUND = "Not found: it seems to lie outside the scan, or nothing there is like it."
_MEMORY = 512 * 2**20  # bytes of template features kept: some 380 structures of one template


@dataclass(frozen=True, eq=False)
class _Run:
    """What one attempt gave: templates, both stages, and the network it ran on."""

    loaded: Loaded
    gathered: Gathered
    located: Mapping[str, Located]


class MedLam:
    """Finds structures marked by six extreme points, coarse then fine, as published.

    Source: openmedlab/MedLSAM (arXiv 2306.14752). Beyond it: any orientation, starts that depend
    on nothing but the scan, all structures at once, and a confidence with its reasons.
    """

    def __init__(self) -> None:
        # float16, as upstream: bfloat16 moves positions by up to 135 mm.
        self._weights = Weights(ENGINE_ID, batch=_BATCH, half="float16")
        self._cache = EmbeddingCache(_MEMORY)

    def locate(
        self,
        volume: Volume,
        templates: Sequence[Template],
        options: Mapping[str, Any],
        monitor: Monitor,
        structures: Sequence[str] = (),
    ) -> Localisation:
        """Find structures in a CT.

        Parameters
        ----------
        volume : Volume
            In Hounsfield units, with a voxel size, in any orientation.
        templates : sequence of Template
            Features missing in a template are computed from its scan and kept with it.
        options : mapping
            Options of the catalogue's entry; missing ones take their default.
        monitor : Monitor
            Hears of every patch; a cancel acts at the next one.
        structures : sequence of str
            Names to look for; empty: all that any template has.

        Returns
        -------
        Localisation
            One entry a structure, in the order asked. One that no template can teach, or that
            seems to lie outside the scan, comes back with ``found=False`` and says why.

        Raises
        ------
        EngineError
            If the volume is no CT, too thin, empty or without voxel size; if a structure is in
            no template, or marked twice in one; if no template can be used at all.
        CheckpointError
            If there are no weights, or they are damaged.
        """
        began = time.perf_counter()
        options = get_spec(ENGINE_ID).check_options(options)
        names = _names(templates, structures)
        prepared = prepare(volume, monitor)
        read = time.perf_counter()

        def attempt(loaded: Loaded) -> _Run:
            loaded.network.to(memory_format=loaded.network.memory_format)
            return self._search(loaded, prepared, templates, names, options, monitor)

        run = self._weights.run(options, monitor, attempt)
        if not run.gathered.known:
            raise EngineError(
                "no template can be used. " + " ".join(_all_notes(run.gathered)),
                engine=ENGINE_ID,
                stage="templates",
            )
        found = tuple(_found(name, run, prepared) for name in names)
        provenance = {
            "engine": ENGINE_ID,
            **run.loaded.provenance(),
            "preprocessing": VERSION,
            "options": {name: options[name] for name in sorted(options)},
            "templates": [each.id for each in templates],
            "points_learnt": run.gathered.computed,
            "prepare_seconds": round(read - began, 3),
        }
        notes = list(prepared.notes) + list(run.loaded.notes)
        if options["mode"] == "quick":
            notes.append(
                "Quick mode: compared at two scales of three, without the finest. How much "
                "accuracy that costs is not published."
            )
        return Localisation(found, time.perf_counter() - began, provenance, tuple(notes))

    def unload(self) -> None:
        """Release the network and all features kept in memory."""
        self._weights.unload()
        self._cache.clear()

    def _search(
        self,
        loaded: Loaded,
        prepared: Prepared,
        templates: Sequence[Template],
        names: Sequence[str],
        options: Mapping[str, Any],
        monitor: Monitor,
    ) -> _Run:
        scales = SCALES_OF[options["mode"]]
        steps = Steps(monitor)
        gathered = gather(Lesson(loaded, scales, self._cache, steps), templates, names)
        known = {name: gathered.known[name] for name in names if name in gathered.known}
        if not known:
            return _Run(loaded, gathered, {})
        starts = start_voxels(prepared, options["seed"])
        points = sum(each.positions.shape[1] for each in known.values())
        steps.done, steps.total = 0, len(starts) + points
        query = look_at(loaded, prepared, starts, steps)
        jumps = {name: query.jump_to(each) for name, each in known.items()}
        return _Run(loaded, gathered, refine(loaded, query, jumps, known, scales, steps))


def _names(templates: Sequence[Template], structures: Sequence[str]) -> tuple[str, ...]:
    """Return the structures to look for, checked against the templates."""
    if not templates:
        raise EngineError(
            "there is no template: mark the structures on a scan first",
            engine=ENGINE_ID,
            stage="templates",
        )
    there: dict[str, None] = {}
    for template in templates:
        own = [each.name for each in template.structures]
        if twice := sorted({name for name in own if own.count(name) > 1}):
            raise EngineError(
                f"template '{template.id}' has two structures named '{twice[0]}'; rename one",
                engine=ENGINE_ID,
                stage="templates",
            )
        there.update(dict.fromkeys(own))
    if not there:
        raise EngineError(
            "no structure is marked on any template", engine=ENGINE_ID, stage="templates"
        )
    if unknown := [name for name in structures if name not in there]:
        raise EngineError(
            f"no template has {', '.join(unknown)}; there are: {', '.join(there)}",
            engine=ENGINE_ID,
            stage="templates",
        )
    return tuple(dict.fromkeys(structures or there))


def _all_notes(gathered: Gathered) -> list[str]:
    return list(dict.fromkeys(note for notes in gathered.notes.values() for note in notes))


def _found(name: str, run: _Run, prepared: Prepared) -> Found:
    """Return one structure's answer."""
    told = tuple(run.gathered.notes.get(name, ()))
    known, located = run.gathered.known.get(name), run.located.get(name)
    if known is None or located is None:
        said = (*told, "No template that has it can be used.")
        return Found(name, _EMPTY, found=False, notes=said)
    checks = checks_of(located, known.extents_mm, prepared.grid.shape)
    verdict = judge(checks)
    world = prepared.grid.world(located.voxels)
    box = box_of_walls(world, prepared.grid.source)
    found = verdict.found and not box.is_empty
    return Found(
        name,
        box if found else _EMPTY,
        tuple(as_point(point) for point in world),
        verdict.confidence if found else 0.0,
        found,
        len(known.templates),
        checks,
        (*told, *verdict.notes) if found else (*told, _NOT_FOUND, *verdict.notes),
    )
