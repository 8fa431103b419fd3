"""SAM-Med3D as a promptable engine: a click gives a mask, a correction costs one decoder pass."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.catalogue import get_spec
from napari_openmedlab.models.contract import Hint, Monitor, Prediction, Request
from napari_openmedlab.models.engines.sam_med3d.advice import advice
from napari_openmedlab.models.engines.sam_med3d.chain import Chain, start_from_mask, with_mask
from napari_openmedlab.models.engines.sam_med3d.crops import SPACING_MM, WorkingGrid
from napari_openmedlab.models.engines.sam_med3d.steps import (
    Step,
    new_steps,
    steps_of,
    within,
    working_spacing,
)
from napari_openmedlab.models.engines.sam_med3d.work import Encodings, Prepared, Work, united
from napari_openmedlab.models.engines.weights import Loaded, Weights
from napari_openmedlab.models.modality import looks_like_ct

__all__ = ["SamMed3D"]

_ID = "sam-med3d"
_MEMORY = 512 * 2**20  # bytes of embeddings kept: some 650 crops
_CHAINS = 64  # objects whose logits are remembered between clicks


class SamMed3D:
    """Published pre-processing, click protocol and paste-back, on crops of the scan itself.

    Source: uni-medical/SAM-Med3D (arXiv 2310.15161). Beyond it: several crops for one object,
    a coarser grid for objects larger than a crop, corrections of masks made by hand or by
    another engine.
    """

    def __init__(self) -> None:
        self._weights = Weights(_ID)
        self._encodings = Encodings(_MEMORY)
        self._chains: OrderedDict[tuple[Any, ...], Chain] = OrderedDict()

    def prepare(self, volume: Volume, monitor: Monitor) -> Prepared:
        """Look at the scan; encoding waits until a prompt (or a hint) says where."""
        monitor.step(0, 1, "looking at the scan")
        return Prepared(volume, looks_like_ct(volume))

    def anticipate(self, prepared: Prepared, hint: Hint, monitor: Monitor) -> None:
        """Encode the crop that a click at the hint would open."""
        options = get_spec(_ID).check_options(hint.options)
        grid = WorkingGrid(prepared.volume.geometry, _spacing_for_click(prepared, options))
        crop = grid.crop_around(grid.nearest(hint.point))

        def encode(loaded: Loaded) -> None:
            Work(self._encodings, loaded, prepared, grid, options, monitor).embedding(crop)

        self._weights.run(options, monitor, encode)

    def predict(self, prepared: Prepared, request: Request, monitor: Monitor) -> Prediction:
        """Answer a request; see :class:`~napari_openmedlab.models.contract.Promptable`."""
        started = time.perf_counter()
        geometry = prepared.volume.geometry
        before = request.previous_prompts
        request = replace(
            request,
            prompts=within(request.prompts, geometry),
            previous_prompts=None if before is None else within(before, geometry),
        )
        if not request.prompts.has_positive:
            raise PromptError("SAM-Med3D needs a positive prompt: click inside the object")
        options = get_spec(_ID).check_options(request.options)
        grid = WorkingGrid(geometry, SPACING_MM)
        spacing = options["voxel_size"] or working_spacing(grid, request.prompts)
        grid = replace(grid, spacing=spacing)

        def answer(loaded: Loaded) -> Prediction:
            work = Work(self._encodings, loaded, prepared, grid, options, monitor)
            return self._answer(work, request)

        found = self._weights.run(options, monitor, answer)
        return replace(found, seconds=time.perf_counter() - started)

    def unload(self) -> None:
        """Release the network, embeddings and logits."""
        self._weights.unload()
        self._encodings.clear()
        self._chains.clear()

    # -- inside ----------------------------------------------------------------------------

    def _answer(self, work: Work, request: Request) -> Prediction:
        chain, start = self._chain_for(work, request)
        mask = _keep_elsewhere(work.mask_of(chain), chain, start)
        if request.obstacles is not None and not request.obstacles.is_empty:
            mask = MaskPatch(mask.box, mask.mask & ~request.obstacles.inside(mask.box)).trimmed()
        self._remember(self._key(work, mask), chain)
        said = advice(work.grid, chain, mask, chosen=bool(work.options["voxel_size"]))
        facts = {"voxel_size": work.grid.spacing, "crops": len(chain.states)}
        return Prediction(
            mask.box,
            mask.mask,
            provenance=work.loaded.provenance() | facts,
            notes=tuple(dict.fromkeys((*work.loaded.notes, *work.notes, *said))),
        )

    def _chain_for(self, work: Work, request: Request) -> tuple[Chain, MaskPatch | None]:
        """Return the chain after all steps, and the mask it started from if that was another's."""
        later = new_steps(request.prompts, request.previous_prompts or PromptSet())
        previous = request.previous
        if later is not None and previous is not None and not previous.is_empty:
            known = self._chains.get(self._key(work, previous))
            if known is not None:
                return work.run(known, later), None
            return self._taken_over(work, request, previous, later)
        steps = steps_of(request.prompts)
        if request.prompts.mask is not None:
            given = request.prompts.mask.on_grid(work.grid.source)
            if given.is_empty:
                raise PromptError("the mask prompt has no voxel on this scan")
            chain = start_from_mask(work.grid, given, _first(steps))
            return work.run(chain, steps or (None,)), given
        return work.run(Chain(), steps), None

    def _taken_over(
        self, work: Work, request: Request, previous: MaskPatch, later: tuple[Step, ...]
    ) -> tuple[Chain, MaskPatch | None]:
        """Go on from a mask that is not remembered: ours of another run, or another's."""
        before = request.previous_prompts
        if before is None or before.mask is not None or not before.has_positive:
            chain = start_from_mask(work.grid, previous, _first(later))
            return work.run(chain, later or (None,)), previous
        chain = work.run(Chain(), steps_of(before))
        mask = work.mask_of(chain)
        if request.obstacles is not None:
            mask = MaskPatch(mask.box, mask.mask & ~request.obstacles.inside(mask.box)).trimmed()
        if mask == previous.trimmed():
            return work.run(chain, later), None
        chain = with_mask(chain, previous, work.grid, _first(later))
        return work.run(chain, later or (None,)), previous

    def _key(self, work: Work, mask: MaskPatch) -> tuple[Any, ...]:
        options = (work.options["points"], work.options["smooth"], work.grid.spacing)
        return (work.prepared.token, work.loaded.sha256, options, mask.trimmed())

    def _remember(self, key: tuple[Any, ...], chain: Chain) -> None:
        self._chains[key] = chain
        self._chains.move_to_end(key)
        while len(self._chains) > _CHAINS:
            self._chains.popitem(last=False)


def _keep_elsewhere(mask: MaskPatch, chain: Chain, start: MaskPatch | None) -> MaskPatch:
    """Add what a mask made by others has outside all crops: nothing there was looked at."""
    if start is None:
        return mask
    rest = start.mask.copy()
    for state in chain.states:
        inside = state.crop.source_box().intersection(start.box)
        if not inside.is_empty:
            rest[inside.relative_to(start.box).slices] = False
    return united([mask, MaskPatch(start.box, rest).trimmed()])


def _first(steps: Sequence[Step]) -> Step | None:
    return steps[0] if steps else None


def _spacing_for_click(prepared: Prepared, options: dict[str, Any]) -> float:
    geometry = prepared.volume.geometry
    if options["voxel_size"]:
        return float(options["voxel_size"])
    return SPACING_MM if geometry.unit == "mm" else max(geometry.spacing)
