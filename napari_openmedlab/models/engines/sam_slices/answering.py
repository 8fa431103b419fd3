"""From a request to outlines: which slices are asked, from what they start, what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.models.contract import Request
from napari_openmedlab.models.engines.sam_slices import advice
from napari_openmedlab.models.engines.sam_slices.boxes import grown
from napari_openmedlab.models.engines.sam_slices.marks import Marks, axis_of, read_marks
from napari_openmedlab.models.engines.sam_slices.planes import (
    Outline,
    Plane,
    assembled,
    outline_on,
)
from napari_openmedlab.models.engines.sam_slices.propagation import (
    Guess,
    Rules,
    Spread,
    fill,
    walk,
)
from napari_openmedlab.models.engines.sam_slices.steps import Chain, Prompt, chain_of, margin_of
from napari_openmedlab.models.engines.sam_slices.work import Answer, Work

__all__ = ["Result", "answer_request"]

_SAME = 0.002  # share of an outline's pixels by which two computations of it may differ


@dataclass(eq=False)
class Result:
    """A 3D mask and what is to be said of it."""

    mask: MaskPatch
    score: float
    axis: int
    notes: list[str] = field(default_factory=list)


def answer_request(work: Work, request: Request) -> Result:
    """Answer a request.

    Slices whose marks changed since the last answer are asked; all others keep their mask. If
    nothing changed, all marked slices are asked again. With the option ``propagate`` the slices
    between and beyond the asked ones follow; it may then go out from a slice that was edited by
    hand, which is not asked again.

    Raises
    ------
    PromptError
        If nothing says where the object is, or a prompt lies outside the volume.
    """
    case = _Case(work, request)
    answers = case.ask_marked()
    spreads = case.propagate(answers) if work.options["propagate"] else []
    mask = assembled(case.previous, case.changed)
    scores = {plane: answer.score for plane, answer in answers.items()}
    boxes_only = not work.protocol.takes_points
    notes = [
        *advice.score_note(scores),
        *advice.spread_notes(spreads),
        *advice.unused_note(set(case.asked) - set(answers), boxes_only=boxes_only),
        *advice.flat_note(work.flat),
    ]
    if not boxes_only:
        notes += advice.missed_clicks(case.marks, case.outlines)
    if not scores:  # nothing but slices that followed
        scores = {plane: score for spread in spreads for plane, score in spread.scores.items()}
    score = float(np.clip(np.mean(list(scores.values())), 0.0, 1.0)) if scores else np.nan
    return Result(mask, score, case.axis, notes)


class _Case:
    """One request, its marks read."""

    def __init__(self, work: Work, request: Request) -> None:
        self.work = work
        geometry = work.prepared.volume.geometry
        rule = work.options["boxes"]
        self.axis = axis_of(work.options["axis"], request.prompts, geometry)
        self.marks = read_marks(request.prompts, geometry, self.axis, rule)
        if not request.prompts.has_positive:
            raise PromptError(
                "Mark where the object is first: a box, extreme points, a click inside it, or a "
                "mask"
            )
        before = request.previous_prompts or PromptSet()
        self.before = read_marks(before, geometry, self.axis, rule)
        self.obstacles = request.obstacles
        previous = request.previous
        self.previous = None if previous is None or previous.is_empty else previous
        self.changed: dict[Plane, Outline] = {}
        """Outlines on the slices that will not keep their mask."""
        self.outlines: dict[Plane, Outline] = {}
        """Those of them that were asked."""
        self.edited: list[Plane] = []
        """Marked slices that were changed by hand, for propagation to go out from."""
        self.asked = self._find_asked()

    def _find_asked(self) -> list[Plane]:
        """Return the slices to ask; what was asked once and is no longer marked is emptied."""
        if self.previous is None:
            return sorted(self.marks)
        gone = self.before.keys() - self.marks.keys()
        asked = [plane for plane in self.marks if self.marks[plane] != self.before.get(plane)]
        if gone and self.work.options["propagate"]:
            self.previous = None  # what followed from those marks can't be told from the rest
            return sorted(self.marks)
        for plane in gone:
            self.changed[plane] = _NOTHING
        if asked or gone:
            return sorted(asked)
        if self.work.options["propagate"]:
            self.edited = [plane for plane in self.marks if self._is_edited(plane)]
        return sorted(self.marks.keys() - set(self.edited))

    def _is_edited(self, plane: Plane) -> bool:
        """Whether a slice has a mask that its marks did not give."""
        if self.marks[plane].closed:
            return False
        now = outline_on(self.previous, plane)
        return bool(now.area and not now.is_line and not self._is_ours(plane, now))

    def ask_marked(self) -> dict[Plane, Answer]:
        """Answer the slices to be asked."""
        self.work.total = len(self.asked)
        chains = {plane: self._chain(plane) for plane in self.asked}
        answers = self.work.ask(chains)
        if self.asked and not answers:
            raise PromptError(self._nothing_to_ask())
        for plane, answer in answers.items():
            self.outlines[plane] = self.changed[plane] = self._free(plane, answer.outline)
        return answers

    def _nothing_to_ask(self) -> str:
        if not self.work.protocol.takes_points:
            return (
                "MedSAM takes boxes: draw a box or extreme points, paint a scribble, or start "
                "from a mask (clicks alone don't say how large the object is)"
            )
        return "Only points outside the object are marked here: click inside it first"

    def _chain(self, plane: Plane) -> Chain:
        """Return the calls for one slice, from scratch or from its mask as it stands."""
        shape = self.work.shape(plane.axis)
        marks, before = self.marks[plane], self.before.get(plane, Marks())
        now = outline_on(self.previous, plane)
        fresh = marks.box != before.box or marks.mask != before.mask
        start = None
        if now.area and not fresh and not self._is_ours(plane, now):
            start = now
        return chain_of(marks, start, self.work.protocol, shape)

    def _is_ours(self, plane: Plane, now: Outline) -> bool:
        """Whether the marks before this request gave the slice's mask as it stands."""
        before = self.before.get(plane, Marks())
        chain = chain_of(before, None, self.work.protocol, self.work.shape(plane.axis))
        known = self.work.ask({plane: chain}).get(plane)
        if known is None:
            return False
        made = self._free(plane, known.outline)
        common = made.shared(now)
        different = made.area + now.area - 2 * common
        return different <= max(2, _SAME * now.area)

    def _free(self, plane: Plane, outline: Outline) -> Outline:
        """Take the obstacles out of an outline."""
        taken = outline_on(self.obstacles, plane)
        if not taken.area or not outline.area:
            return outline
        return outline.without(taken.on(self.work.shape(plane.axis)))

    # -- propagation -----------------------------------------------------------------------

    def propagate(self, answers: Mapping[Plane, Answer]) -> list[Spread]:
        """Follow the object from the slices just asked, up to the next marked ones."""
        axis = self.axis
        origins = {*answers, *self.edited}
        if origins and not any(plane.axis == axis for plane in origins):
            axis = min(origins).axis
        anchors = self._anchors(axis)
        options = self.work.options
        rules = Rules(score=options["stop_score"], tone=options["stop_brightness"])
        follower = _Follower(self)
        self.work.total = 0
        spreads, filled = [], set()
        numbers = sorted(anchors)
        for place, number in enumerate(numbers):
            plane = Plane(axis, number)
            if plane not in origins:
                continue
            for step, other in ((-1, place - 1), (1, place + 1)):
                ends = [number, numbers[other]] if 0 <= other < len(numbers) else []
                pair = (min(ends, default=0), max(ends, default=0))
                if not ends or self._walled(axis, *pair):
                    spreads.append(self._outward(plane, anchors[number], step, follower, rules))
                elif pair not in filled:
                    filled.add(pair)
                    first, second = ((Plane(axis, n), anchors[n]) for n in pair)
                    shape = self.work.shape(axis)
                    spreads.append(fill(first, second, follower, rules, shape))
        for spread in spreads:
            self.changed.update(spread.outlines)
        return spreads

    def _anchors(self, axis: int) -> dict[int, Outline]:
        """Return the outlines that propagation goes out from, by slice number."""
        found = {}
        for plane, marks in self.marks.items():
            if plane.axis != axis or marks.closed:
                continue
            if plane in self.outlines:
                outline = self.outlines[plane]
            else:
                outline = outline_on(self.previous, plane)
                if outline.is_line:  # answered along another axis: no outline here
                    continue
            if outline.area:
                found[plane.number] = outline
        return found

    def _walled(self, axis: int, low: int, high: int) -> bool:
        """Whether slices of a 3D box lie between two slices."""
        return any(self._is_closed(Plane(axis, n)) for n in range(low + 1, high))

    def _is_closed(self, plane: Plane) -> bool:
        return plane in self.marks and self.marks[plane].closed

    def _outward(
        self, start: Plane, outline: Outline, step: int, follower: _Follower, rules: Rules
    ) -> Spread:
        """Walk from an outermost slice; what an earlier walk left beyond the end is emptied."""
        reach = self.work.options["reach"] or np.inf

        def may(plane: Plane) -> bool:
            near = abs(plane.number - start.number) <= reach
            return bool(near and not self._is_closed(plane))

        spread = walk(start, outline, step, follower, rules, may)
        plane = spread.endings[-1].plane
        while self.work.inside(plane) and may(plane):
            if outline_on(self.previous, plane).area:
                self.changed[plane] = _NOTHING
            plane = plane.beside(step)
        return spread


class _Follower:
    """Asks the network for slices without marks; see :class:`.propagation.Follower`."""

    def __init__(self, case: _Case) -> None:
        self._case = case
        self._work = case.work

    def look(self, shapes: Mapping[Plane, Outline]) -> dict[Plane, Guess]:
        chains = {plane: self._chain(plane, outline) for plane, outline in shapes.items()}
        return {
            plane: self._guess(plane, self._case._free(plane, answer.outline), answer.score)
            for plane, answer in self._work.ask(chains).items()
        }

    def reads(self, plane: Plane, outline: Outline) -> Guess:
        return self._guess(plane, outline, 1.0)

    def inside(self, plane: Plane) -> bool:
        return self._work.inside(plane)

    def _guess(self, plane: Plane, outline: Outline, score: float) -> Guess:
        tone = self._work.tone(plane, outline) if outline.area else (0.0, np.inf)
        return Guess(outline, score, tone)

    def _chain(self, plane: Plane, outline: Outline) -> Chain:
        protocol, shape = self._work.protocol, self._work.shape(plane.axis)
        box = grown(outline.rectangle, margin_of(protocol, shape), shape)
        feeds = protocol.takes_points and self._work.options.get("follow") != "box"
        return Chain(outline if feeds else None, (Prompt(box=box),))

    def coming(self, plane: Plane, step: int) -> None:
        """Encode a batch; where slices go one by one nothing would be gained."""
        if self._work.batch > 1 and not self._work.is_kept(plane):
            run = [plane.beside(step * n) for n in range(self._work.batch)]
            self._work.encode([each for each in run if self._work.inside(each)])


_NOTHING = Outline(0, 0, np.zeros((0, 0), dtype=bool))
