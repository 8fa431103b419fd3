"""Any row of commands, undone and redone in any way, against a model that keeps full copies."""

from types import SimpleNamespace
from unittest.mock import patch

import flood_engine
import numpy as np
import small_grid as grid
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import LabelPatch
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.models import catalogue
from napari_openmedlab.models.contract import Prediction
from napari_openmedlab.session.history import History
from napari_openmedlab.session.objects import EngineChoice, OverlapRule
from napari_openmedlab.session.session import Session
from napari_openmedlab.session.store import load, save

SHAPE = (4, 5, 6)


@st.composite
def boxes(draw):
    start = [draw(st.integers(0, n - 1)) for n in SHAPE]
    stop = [draw(st.integers(a, n)) for a, n in zip(start, SHAPE, strict=True)]
    return Box(tuple(start), tuple(stop))


class UndoMachine(RuleBasedStateMachine):
    """The plain model: copies of the labels and of what the user sees, in two lists."""

    def __init__(self):
        super().__init__()
        point = SimpleNamespace(name="flood", load=lambda: flood_engine.SPEC)
        self.patch = patch.object(catalogue, "entry_points", lambda group: [point])
        self.patch.start()
        self.session = Session(grid.volume(SHAPE))
        self.session.choice = EngineChoice("flood")
        self.past = []
        self.future = []
        self.labels = self.session.labels.copy()
        self.seen = self._seen()

    def teardown(self):
        self.patch.stop()

    def _seen(self):
        return tuple(
            (o.id, o.name, o.colour, o.locked, o.prompts, o.answered) for o in self.session.objects
        )

    def _stepped(self, labels, joined=False):
        """Note a step in the model; ``joined`` ones replace the last."""
        if not joined:
            self.past.append((self.labels, self.seen))
        self.future = []
        self.labels, self.seen = labels, self._seen()

    def _unlocked(self):
        return [o for o in self.session.objects if not o.locked]

    @initialize(locked=st.booleans())
    def start_with_neighbours(self, locked):
        """Two objects side by side, so that overlaps and locks matter from the first step."""
        for half in (slice(0, 3), slice(3, 6)):
            self.add()
            labels = self.labels.copy()
            labels[:, :, half] = self.session.active_id
            patch = LabelPatch(Box.whole(SHAPE), self.labels, labels)
            self.session.apply_edit(patch)
            self._stepped(labels)
        if locked:
            self.session.update_object(1, locked=True)
            self._stepped(self.labels.copy())

    @rule()
    @precondition(lambda self: len(self.session.objects) < 4)
    def add(self):
        self.session.add_object()
        self._stepped(self.labels.copy())

    @rule(data=st.data())
    @precondition(lambda self: self._unlocked())
    def remove(self, data):
        gone = data.draw(st.sampled_from(self._unlocked())).id
        self.session.remove_object(gone)
        labels = self.labels.copy()
        labels[labels == gone] = 0
        self._stepped(labels)

    @rule(data=st.data())
    @precondition(lambda self: self.session.objects)
    def lock(self, data):
        target = data.draw(st.sampled_from(self.session.objects))
        self.session.update_object(target.id, locked=not target.locked)
        self._stepped(self.labels.copy())

    @rule(data=st.data(), index=st.tuples(*(st.integers(0, n - 1) for n in SHAPE)))
    @precondition(lambda self: self._unlocked())
    def prompt(self, data, index):
        target = data.draw(st.sampled_from(self._unlocked()))
        point = self.session.volume.geometry.to_world(index)
        self.session.set_prompts(target.prompts.with_click(point), target.id)
        self._stepped(self.labels.copy())

    @rule(data=st.data(), box=boxes(), seed=st.integers(0, 99), overwrite=st.booleans())
    @precondition(lambda self: self._unlocked())
    def answer(self, data, box, seed, overwrite):
        session = self.session
        target = data.draw(st.sampled_from(self._unlocked()))
        session.overlap = OverlapRule.OVERWRITE if overwrite else OverlapRule.KEEP
        mask = np.random.default_rng(seed).random(box.shape) < 0.7
        last, before = session.history.last, len(session.history.past)
        joined = last is not None and last.kind.value == "prompts" and last.object_id == target.id
        joined = joined and not session.can_redo
        session.apply(Prediction(box, mask), session.request(target.id), target.id)
        labels = self.labels.copy()
        labels[labels == target.id] = 0
        locked = [o.id for o in session.objects if o.locked]
        part = labels[box.slices]
        free = ~np.isin(part, locked) if overwrite else part == 0
        part[mask & free] = target.id
        if joined or len(session.history.past) != before or session.history.last is not last:
            self._stepped(labels, joined=joined)
        else:  # the same mask for the same prompts once more
            np.testing.assert_array_equal(labels, self.labels)

    @rule(box=boxes(), value=st.integers(0, 5))
    def paint(self, box, value):
        array = self.session.labels
        before = array[box.slices].copy()
        array[box.slices] = value
        locked = [o.id for o in self.session.objects if o.locked]
        self.session.apply_edit(LabelPatch(box, before, array[box.slices].copy()))
        labels = self.labels.copy()
        part = labels[box.slices]
        if value not in locked:
            part[~np.isin(part, locked)] = value
        if not np.array_equal(labels, self.labels):
            self._stepped(labels)

    @rule()
    def undo(self):
        assert self.session.undo() == bool(self.past)
        if self.past:
            self.future.append((self.labels, self.seen))
            self.labels, self.seen = self.past.pop()

    @rule()
    def redo(self):
        assert self.session.redo() == bool(self.future)
        if self.future:
            self.past.append((self.labels, self.seen))
            self.labels, self.seen = self.future.pop()

    @rule()
    def reload(self):
        """Saving and loading changes nothing, undo and redo included."""
        with grid.folder() as folder:
            path = save(self.session, folder / "s")
            self.session = load(path, self.session.volume)

    @invariant()
    def agrees_with_the_model(self):
        np.testing.assert_array_equal(self.session.labels, self.labels)
        assert self._seen() == self.seen
        assert self.session.can_undo == bool(self.past)
        assert self.session.can_redo == bool(self.future)

    @invariant()
    def counts_and_masks_agree_with_the_array(self):
        for each in self.session.objects:
            full = self.labels == each.id
            assert each.voxels == full.sum()
            np.testing.assert_array_equal(self.session.mask_of(each.id).to_full(SHAPE), full)

    @invariant()
    def bytes_are_counted_right(self):
        history = self.session.history
        assert history.nbytes == sum(s.nbytes for s in (*history.past, *history.future))


TestUndoMachine = UndoMachine.TestCase
TestUndoMachine.settings = settings(
    max_examples=150,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_the_oldest_steps_leave_first_and_stay_in_the_start(flood):
    session = Session(grid.volume(SHAPE), history_bytes=6000)
    session.choice = EngineChoice("flood")
    session.add_object()
    rng = np.random.default_rng(0)
    for _ in range(30):
        mask = rng.random(SHAPE) < 0.5
        session.apply(Prediction(Box.whole(SHAPE), mask), session.request())
        session.set_prompts(session.active.prompts.with_click((1.0, 1.0, 1.0)))
    history = session.history
    assert history.nbytes <= 6000
    assert history.dropped > 20
    labels = session.labels.copy()
    with grid.folder() as folder:
        again = load(save(session, folder / "s"), session.volume)
    np.testing.assert_array_equal(again.labels, labels)
    assert again.history.dropped == history.dropped
    while again.undo() and session.undo():
        np.testing.assert_array_equal(again.labels, session.labels)
    assert again.objects == session.objects
    assert session.objects[0].voxels > 0  # the start is not empty: older steps are in it


def test_a_history_smaller_than_one_step_still_keeps_that_step(flood):
    session = Session(grid.volume(SHAPE), history_bytes=1)
    session.choice = EngineChoice("flood")
    session.add_object()
    session.set_prompts(PromptSet().with_click((1.0, 1.0, 1.0)))
    assert len(session.history.past) == 1
    assert session.undo()
    assert not session.undo()


def test_an_empty_history_has_nothing_to_undo():
    history = History()
    assert history.undo() is None
    assert history.redo() is None
    assert history.last is None
