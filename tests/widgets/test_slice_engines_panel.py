"""SAM-Med2D behind the panel, with stand-in weights: the slice, the pixel and the options asked.

The stand-in masks mean nothing; what the network was asked does.
"""

from __future__ import annotations

import numpy as np
import pytest
from panel_hands import pump, use_engine, wait_for

from napari_openmedlab.models import catalogue
from napari_openmedlab.models.slice_engines import slice_engines
from napari_openmedlab.session import store
from napari_openmedlab.session.replay import replay_steps
from napari_openmedlab.widgets.tools import Tool

pytest.importorskip("torch", reason="SAM-Med2D needs the extra 'models'")

pytestmark = pytest.mark.gui


class Seen:
    """The slices that were encoded (their pictures) and asked (plane and prompts)."""

    def __init__(self):
        self.pictures = []
        self.chains = []


@pytest.fixture(autouse=True)
def _listed(monkeypatch):
    """The engine is in the catalogue, whatever is listed by default."""
    listed = {spec.id for spec in catalogue.OWN_ENGINES}
    weights = catalogue.get_spec("sam-med3d").options[:3]
    missing = [spec for spec in slice_engines(weights) if spec.id not in listed]
    monkeypatch.setattr(catalogue, "OWN_ENGINES", (*catalogue.OWN_ENGINES, *missing))


@pytest.fixture
def seen(stand_ins, monkeypatch):
    stand_ins.add("ft-sam")
    from napari_openmedlab.models.engines.sam_slices.work import Work

    found = Seen()
    encoded, ask = Work._encoded, Work.ask

    def encode(self, pictures):
        found.pictures.extend(each.tobytes() for each in pictures)
        return encoded(self, pictures)

    def asked(self, chains):
        found.chains.append(dict(chains))
        return ask(self, chains)

    monkeypatch.setattr(Work, "_encoded", encode)
    monkeypatch.setattr(Work, "ask", asked)
    return found


@pytest.fixture
def med2d(scene, seen):
    """The scene with texture in the image and SAM-Med2D chosen."""
    _, image, panel, _ = scene
    image.data[...] += np.random.RandomState(2).randint(0, 40, image.data.shape, dtype=np.int16)
    use_engine(panel, "sam-med2d", device="cpu")
    return scene


def idle(panel):
    return not panel._life.worker.busy


def answered(panel):
    active = panel.session.active
    return active is not None and active.answered == active.prompts and idle(panel)


def use(panel, tool):
    panel.prompts.tools[tool].click()
    pump()


@pytest.mark.parametrize(
    "order",
    [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)],
    ids=["axial", "coronal", "sagittal", "rolled", "reversed"],
)
def test_click_asks_the_slice_and_pixel_on_screen(med2d, qtbot, seen, order):
    viewer, image, panel, hand = med2d
    viewer.dims.order = order
    viewer.reset_view()
    pump()
    use(panel, Tool.CLICK)
    target = (9, 22, 31)
    hand.click(image, target)
    wait_for(qtbot, lambda: answered(panel), timeout=30000)
    axis = order[0]
    (plane,) = seen.chains[-1]
    assert (plane.axis, plane.number) == (axis, target[axis])
    places = seen.chains[-1][plane].prompts[-1].points
    assert places == (tuple(n for a, n in enumerate(target) if a != axis),)
    painted = np.unique(np.argwhere(panel.session.labels)[:, axis])
    assert set(painted) <= {target[axis]}
    assert panel.session.history.past[-1].run.options["axis"] == str(axis)


def test_resting_on_a_slice_encodes_it_for_the_click(med2d, qtbot, seen):
    viewer, image, panel, hand = med2d
    use(panel, Tool.CLICK)
    viewer.dims.set_current_step(0, 11)
    wait_for(qtbot, lambda: len(seen.pictures) >= 1, timeout=30000)
    first = seen.pictures[-1]
    pump(300)
    assert not seen.chains
    hand.click(image, (11, 25, 14))
    wait_for(qtbot, lambda: answered(panel), timeout=30000)
    hand.click(image, (11, 40, 30))
    wait_for(qtbot, lambda: answered(panel), timeout=30000)
    assert seen.pictures.count(first) == 1
    assert len(seen.pictures) == len(set(seen.pictures)), "no slice is encoded twice"


def test_flat_box_answers_at_once_and_propagates_on_demand(med2d, qtbot, seen):
    _, image, panel, hand = med2d
    use(panel, Tool.BOX)
    hand.drag(image, (8, 12, 10), (8, 44, 38))
    wait_for(qtbot, lambda: answered(panel), timeout=30000)
    (plane,) = seen.chains[-1]
    assert (plane.axis, plane.number) == (0, 8)
    assert not panel.run.propagate.isHidden()
    count = len(seen.chains)
    panel.run.propagate.click()
    wait_for(qtbot, lambda: len(seen.chains) > count and idle(panel), timeout=60000)
    runs = [s.run for s in panel.session.history.past if s.run is not None]
    assert runs[-1].options["propagate"] or runs[-1].prompts == runs[0].prompts
    assert panel.run.status.severity in ("done", "unsure")


def test_window_is_the_layers_contrast_at_the_time(med2d, qtbot, seen):
    _, image, panel, hand = med2d
    panel.engine.form.input_of("contrast").setCurrentText("window")
    pump()
    image.contrast_limits = (5, 60)
    use(panel, Tool.CLICK)
    hand.click(image, (9, 22, 31))
    wait_for(qtbot, lambda: answered(panel), timeout=30000)
    options = panel.session.history.past[-1].run.options
    assert (options["contrast"], options["window_low"], options["window_high"]) == (
        "window",
        5.0,
        60.0,
    )


def test_saved_work_of_all_axes_is_computed_again_the_same(med2d, qtbot, tmp_path):
    viewer, image, panel, hand = med2d
    use(panel, Tool.CLICK)
    for order, index in (((0, 1, 2), (9, 22, 31)), ((2, 0, 1), (12, 30, 25))):
        viewer.dims.order = order
        viewer.reset_view()
        hand.click(image, index)
        wait_for(qtbot, lambda: answered(panel), timeout=30000)
    saved = store.save(panel.session, tmp_path / "slices.omlsession")
    again = replay_steps(saved, panel.session.volume)
    assert not again.differences
    np.testing.assert_array_equal(again.session.labels, panel.session.labels)
